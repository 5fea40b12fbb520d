"""`wmpo-lite deploy`: which policy, which arm, which episodes, and what is printed, filmed and kept
of them.
"""

import os
from contextlib import ExitStack
from pathlib import Path

from wmpo_lite.arms import records
from wmpo_lite.arms.deploy import Hold, go_home, record_episode
from wmpo_lite.arms.desks import desk_state, find_states, load_policy, mark_by_reward
from wmpo_lite.arms.interface import ArmStopped
from wmpo_lite.arms.settings import Settings
from wmpo_lite.common import lerobot
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.owner import Owner
from wmpo_lite.datagen.convert import convert
from wmpo_lite.envs.splits import numbers

SHOWN = 6  # episodes of a film at most


class Session:
    """A policy, a desk with an arm, and a folder for what happens. `run` does what the settings say
    and returns the exit status.
    """

    def __init__(self, settings: Settings):
        from wmpo_lite.envs.drawing import import_mujoco
        from wmpo_lite.envs.tabletop.tasks import get_task
        from wmpo_lite.recipes.workspace import run_folder

        self.s, self.task = settings, get_task(settings.task)
        self.run_folder = run_folder(
            settings.name
            or f"{'collect' if settings.collect else 'deploy'}-{settings.arm}-{settings.task}"
        )
        if settings.emulated and not hasattr(os, "openpty"):
            raise UserError(
                "--emulated needs pseudo-terminals, which Linux and macOS have; leave it out, or"
                " use --arm sim"
            )
        if not settings.real:
            import_mujoco()
        self.folder = self.run_folder / "episodes"
        if settings.lerobot:
            lerobot.arrow()  # before anything moves
        if settings.collect and (self.run_folder / "stages" / "align.json").exists():
            raise UserError(
                f"{self.run_folder} has been trained on already; collect under another --name"
            )
        self.policy = load_policy(settings.checkpoint, settings.task, bool(settings.collect))
        self.horizon = self.task.horizon
        self.first_row = 0 if settings.collect else settings.state
        self.temperature = settings.temperature
        if settings.collect and self.temperature is None:
            from wmpo_lite.recipes.profiles import PROFILES

            self.temperature = PROFILES["laptop"].temperature

    def run(self) -> int:
        import torch

        from wmpo_lite.arms.estop import Keys, signals_interrupt

        s = self.s
        size = self.policy.config.image
        with ExitStack() as stack:
            stack.enter_context(Owner(self.run_folder))
            stack.enter_context(signals_interrupt())
            self.keys = stack.enter_context(Keys())
            self._open(stack, size)
            self.keys.on_stop = self.arm.stop
            said = s.instruction or self.states.instructions[self.first_row]
            # the first call is slow, and the arm should not wait for it
            self.policy.act(torch.zeros(1, size, size, 3, dtype=torch.uint8), [said])
            if s.dry_run:
                return self._dry_run()
            self._choose_mark()
            stack.enter_context(self.arm)
            if self.keys.live:
                print("space or q stops the arm")
            return self._collect() if s.collect else self._deploy()

    # -- the desk ----------------------------------------------------------------------------------

    def _open(self, stack, size):
        """Make the arm, not yet connected, and for a simulated desk its initial states."""
        from wmpo_lite.envs.tabletop.env import Disturbance

        s, self.desk, self.states = self.s, None, None
        look = Disturbance(background=s.look, texture=s.look, lighting=s.look, camera=0.01 * s.look)
        if not s.real:
            use = ("rollouts", s.collect, s.seed) if s.collect else ("arm", s.state + s.episodes)
            split, rows = numbers(*use)
            self.states = find_states(self.task, s.instruction, split, int(rows[0]), len(rows))
        if s.arm == "sim":
            from wmpo_lite.arms.simulated import SimulatedArm, SimulatedConfig

            config = SimulatedConfig(
                size=size,
                latency=s.latency,
                camera_noise=s.camera_noise,
                jitter=s.jitter,
                disturbance=look,
                speed=s.speed,
                seed=s.seed,
            )
            self.arm = SimulatedArm(self.task, self.states, self.first_row, config)
            self.test = self.arm.success
            return
        from wmpo_lite.arms.so101 import SO101

        if s.emulated:
            from wmpo_lite.arms.emulator import Emulator

            scene = {"size": size, "disturbance": look, "seed": s.seed}
            desk = Emulator(self.task, self.states, self.first_row, **scene)
            self.desk = stack.enter_context(desk)
            self.arm = SO101(self.desk.port, self.desk.calibration, self.desk.camera())
            self.test = self.desk.success
        else:
            from wmpo_lite.arms.cameras import VideoCamera

            self.arm = SO101(s.port, s.calibration, VideoCamera(s.camera, size=size))
            self.test = None

    def _prepare(self, number: int, row: int):
        """The arm at the beginning of episode `number`: connected, in its first posture, the desk
        set (to initial state `row`, if it is a simulated one).
        """
        if self.s.arm == "sim":
            if self.arm.stopped:
                self.arm.connect()
            self.arm.reset(self.states, row)
        elif self.s.emulated:
            self.arm.close()
            self.desk.reset(self.states, row)
            self.arm.connect()
        else:
            go_home(self.arm)
            if self.keys.live:
                print(
                    f"episode {number}: arrange the desk for '{self.s.instruction}', then press"
                    " Enter (space or q ends)",
                    flush=True,
                )
                self.keys.clear()
                with Hold(self.arm, self.arm.observe().joints):
                    self._pressed("\n", "\r")

    # -- what is done ------------------------------------------------------------------------------

    def _dry_run(self) -> int:
        from wmpo_lite.arms.dryrun import describe, draw, plan

        with self.arm:
            instruction = self.s.instruction or self.states.instructions[self.first_row]
            planned = plan(self.policy, self.arm, instruction, self.temperature, self.s.seed)
        print(describe(planned, instruction))
        print(f"drawn: {draw(planned, self.run_folder / 'dry_run.png')}")
        return 0

    def _episode(self, number: int, row: int):
        """Episode `number`, from initial state `row` of a simulated desk, run and saved."""
        s = self.s
        self._prepare(number, row)
        if s.real:
            instruction = s.instruction
            joints = self.arm.observe().joints if s.collect else None
            state = desk_state(self.task, instruction, s.other, joints) if s.collect else None
            where = {"split": "desk", "index": number}
        else:
            instruction = self.states.instructions[row]
            state = self.states.states[row]
            where = {"split": self.states.split, "index": int(self.states.indices[row])}
        about = {
            "arm": s.arm + (" emulated" if s.emulated else ""),
            "checkpoint": s.checkpoint,
            "temperature": self.temperature,
            "ahead": s.ahead,
            "marked_by": self.marked_by,
        }
        episode, path = record_episode(
            self.policy,
            self.arm,
            instruction,
            horizon=self.horizon,
            folder=self.folder,
            number=number,
            task=s.task,
            about=about,
            temperature=self.temperature,
            seed=1000 * s.seed + number,
            ahead=s.ahead,
            success=self.test if self.mark is None else None,
            mark=self.mark,
            initial_state=state,
            **where,
        )
        print(f"episode {number}: {summary(episode)}\n  {path}", flush=True)
        if episode.error is not None:
            raise episode.error
        return episode

    def _recover(self) -> None:
        for path in records.recover(self.folder, self.s.task):
            print(f"saved what a killed process left: {path}")

    def _deploy(self) -> int:
        s = self.s
        self._recover()
        films, first = [], max([-1, *records.complete(self.folder)]) + 1
        try:
            for k in range(s.episodes):
                episode = self._episode(first + k, s.state + k)
                films.append(episode)
                if episode.reason is not None:
                    return 1
        finally:
            if s.film and films:
                write_film(s.film, films)
        if len(films) > 1:
            from wmpo_lite.evaluate import success_rate

            print(f"success {success_rate([e.trajectory.success for e in films])}")
        return 0

    def _collect(self) -> int:
        s = self.s
        self._recover()
        while missing := sorted({*range(s.collect)} - set(records.complete(self.folder))):
            print(f"{s.collect - len(missing)} of {s.collect} episodes are recorded", flush=True)
            if self._episode(missing[0], missing[0]).reason is not None:
                print(f"the arm was stopped; the same command goes on with episode {missing[0]}")
                return 1
        how = {"arm": s.arm, "emulated": s.emulated, "temperature": self.temperature}
        how |= {"ahead": s.ahead, "checkpoint": s.checkpoint}
        result = records.merge(
            self.run_folder, self.folder, s.collect, task=s.task, provenance={"collected": how}
        )
        if s.lerobot:
            folder = self.run_folder / "lerobot"
            if not folder.exists():
                convert(self.run_folder / "rollouts.hdf5", folder)
            print(f"{folder}: the same episodes for LeRobot")
        print(
            f"{self.run_folder / 'rollouts.hdf5'}: {result['n']} episodes, {result['successes']}"
            f" successes; learn from them with\n  wmpo-lite demo --task {s.task} --name"
            f" {self.run_folder.name} --rollout-budget {s.collect} --seed {s.seed}"
        )
        return 0

    # -- who says whether it was a success ---------------------------------------------------------

    def _choose_mark(self):
        """Sets `marked_by`, and `mark`: None for the task's own test, else a function of the
        recorded frames and the instruction: first successful frame, or 0.
        """
        s = self.s
        usual = "task" if not s.real else "key" if self.keys.live else "reward"
        self.marked_by = usual if s.mark == "auto" else s.mark
        self.mark = None
        if self.marked_by == "reward":
            from wmpo_lite.recipes.shipped import Shipped

            # read now: the arm does not wait half a second for it later
            judge = Shipped(s.task).reward_model()
            self.mark = lambda frames, instruction: mark_by_reward(judge, frames, instruction)
        elif self.marked_by == "key":
            if not self.keys.live:
                raise UserError("--mark key needs a terminal to press keys in; use --mark reward")
            self.mark = self._mark_by_key

    def _mark_by_key(self, frames, instruction) -> int:
        """Ask the person at the desk; the last frame counts as the first successful one, since
        nobody measures with a stopwatch.
        """
        self.keys.clear()
        print(f"was that '{instruction}'? y or n", flush=True)
        return len(frames) - 1 if self._pressed("y", "n") == "y" else 0

    def _pressed(self, *wanted: str) -> str:
        """Which of these keys is pressed first; q ends the session."""
        while (key := self.keys.get()) not in wanted:
            if key == "q":
                raise KeyboardInterrupt
        return key


def summary(episode) -> str:
    """One line about an episode and its timing."""
    m, t = episode.measures, episode.trajectory
    if episode.reason is not None:
        ended = f"arm stopped after {m['steps']} control steps: {episode.reason}"
    else:
        ended = f"{'success after' if t.success else 'no success in'} {t.finish_step} control steps"
    told = [f"'{t.instruction}': {ended}"]
    if m["p99_jitter_s"] is not None:
        told.append(
            f"period {1000 * m['period_s']:.0f} ms, jitter p50 {1000 * m['p50_jitter_s']:.1f} ms,"
            f" p99 {1000 * m['p99_jitter_s']:.1f} ms"
        )
    if m["inference_s"] is not None:
        told.append(
            f"inference {1000 * m['inference_s']:.0f} ms, the arm waited {m['waits']} times"
            f" ({1000 * m['waited_s']:.0f} ms)"
        )
    if m["bus_s"] is not None:
        told.append(f"bus {1000 * m['bus_s']:.0f} ms a control step")
    return "; ".join(told)


def write_film(path: Path, episodes) -> Path:
    """The first few episodes side by side as an MP4 of the speed at which they happened."""
    from wmpo_lite.common import checkpoint
    from wmpo_lite.envs.tabletop.env import CONTROL_PERIOD
    from wmpo_lite.report.show import film_grid, to_mp4

    shown = [e.trajectory for e in episodes[:SHOWN]]
    film = film_grid(
        [t.frames for t in shown],
        [t.instruction for t in shown],
        scale=max(1, 320 // shown[0].frames.shape[1]),
        success=[t.success for t in shown],
    )
    checkpoint.write_atomic(Path(path), to_mp4(film, fps=1 / CONTROL_PERIOD))
    print(f"film: {path}")
    return Path(path)


def main(settings: Settings) -> int:
    """Run a session; a stopped arm is one sentence and exit status 1, never a traceback."""
    try:
        return Session(settings).run()
    except ArmStopped as stopped:
        raise UserError(f"the arm was stopped: {stopped.reason}") from stopped
