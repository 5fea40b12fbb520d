"""A policy in closed loop with an arm: chunks of actions as a stream of joint targets, the next
chunk thought out while the arm moves, everything recorded.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wmpo_lite.arms.control import RATE, Commander, check_action, home
from wmpo_lite.arms.interface import LIMITS, ArmStopped
from wmpo_lite.arms.records import Episode, Recording, save_episode
from wmpo_lite.arms.settings import AHEAD
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.env import CONTROL_PERIOD

# a policy that is slower is asked earlier: this many times as long before the chunk's end as it has
# just needed
HURRY = 1.5
LATEST = 0.9  # control steps to which that leads at most
THINK_LIMIT = 5.0  # s after which a policy that says nothing has hung
NEAR = 0.1  # rad by which a joint may miss that posture
HOME_SPEED = 0.5  # rad/s, and openings a second, on the way to the first posture


@dataclass
class Pace:
    """How well the loop kept time, wall clock seconds: begins of control steps, times to think,
    times the arm held still because no chunk was ready, and bus time.
    """

    begins: list = field(default_factory=list)
    thinking: list = field(default_factory=list)
    waits: list = field(default_factory=list)
    bus: float | None = None

    def measures(self, period: float) -> dict:
        """period_s; p50_jitter_s and p99_jitter_s: deviation of a control step's length from it;
        inference p50 and longest; waits of the arm; bus_s a control step.
        """
        off = np.abs(np.diff(self.begins) - period)
        at = lambda values, q: float(np.percentile(values, q)) if len(values) else None
        return {
            "period_s": period,
            "steps": len(self.begins),
            "p50_jitter_s": at(off, 50),
            "p99_jitter_s": at(off, 99),
            "jitter_s": [round(float(x), 6) for x in off],
            "inference_s": at(self.thinking, 50),
            "inference_worst_s": at(self.thinking, 100),
            "waits": len(self.waits),
            "waited_s": float(np.sum(self.waits)),
            "bus_s": None if self.bus is None or not self.begins else self.bus / len(self.begins),
        }


def deploy(
    policy,
    arm,
    instruction: str,
    *,
    folder=None,
    **options,
):
    """One episode of `policy` on a connected `arm`: returns its Trajectory, and with `folder` saves
    it there first, whatever happened (see `records.save_episode`).

    options: of `run_episode`, with `folder` those of `record_episode`, too. An episode in which the
    arm was stopped is shorter than `horizon`, a failure, and says why in its file; what ended it
    otherwise (Ctrl-C, a fault in the policy) is raised after it is saved.
    """
    if folder is None:
        episode = run_episode(policy, arm, instruction, **options)
    else:
        episode, _ = record_episode(policy, arm, instruction, folder=folder, **options)
    if episode.error is not None:
        raise episode.error
    return episode.trajectory


def record_episode(
    policy,
    arm,
    instruction: str,
    *,
    folder,
    number: int = 0,
    task: str = "place",
    about: dict | None = None,
    **options,
) -> tuple[Episode, Path]:
    """`run_episode`, with a journal while it runs and a file in `folder` after it, whatever
    happened: the Episode and the path. The arm holds still meanwhile.
    """
    journal = Path(folder) / f"episode_{number:04d}.journal"
    episode = run_episode(policy, arm, instruction, journal=journal, **options)
    with ExitStack() as stack:
        if episode.reason is None:
            with suppress(ArmStopped):  # stopped just now: the episode is whole all the same
                stack.enter_context(Hold(arm, arm.observe().joints))
        try:
            path = save_episode(folder, number, episode, task=task, about=about or {})
        except UserError as error:
            raise UserError(
                f"{error}; the episode is kept in {journal} and saved by the next deployment under"
                " this name"
            ) from error
        journal.unlink(missing_ok=True)
    return episode, path


def run_episode(
    policy,
    arm,
    instruction: str,
    *,
    horizon: int,
    temperature: float | None = None,
    seed: int = 0,
    ahead: float = AHEAD,
    rate: float = RATE,
    success=None,
    mark=None,
    initial_state=None,
    split: str = "desk",
    index: int = 0,
    journal=None,
) -> Episode:
    """The closed loop itself: `horizon` control steps of CONTROL_PERIOD (shorter by the factor
    `arm.speed` where the arm's world runs faster than the clock). Never raises for what happens in
    the loop: see `Episode`.

    ahead: control steps before the end of the running chunk at which the next one's picture is
    taken, earlier (up to LATEST) if the policy turns out to be slow; 0: afterwards, as in training,
    while the arm waits. Of 384 held-out states the shipped policy solved 54 % at 0, 51 % at 0.3, 51
    % at 0.5 and 52 % at 1, each +-5. success: called at the end of every control step, the task's
    own test. mark: called at the end with (frames uint8 (T + 1, H, W, 3), instruction); returns the
    frame from which on it is a success, or 0. Without both the episode counts as a failure.
    journal: a file that holds the episode until it is saved. Tokens and log-probabilities are
    recorded for ahead < 1: the frame at a chunk's beginning is then the picture it was chosen on.
    """
    chunk = policy.config.chunk
    if not (horizon >= 1 and 0 <= ahead < chunk):
        raise UserError(
            f"horizon is {horizon} and ahead {ahead}; expected 1 control step or more, and between"
            f" 0 and the chunk of {chunk}"
        )
    loop = _Loop(policy, arm, instruction, ahead, rate, temperature, seed)
    try:
        recording = loop.begin(initial_state, split, index, journal)
    except BaseException as error:  # nothing has been seen, so there is nothing to save
        loop.close()
        arm.stop(_reason(error))
        raise
    reason, problem = None, None
    try:
        loop.run(recording, horizon, success)
    except BaseException as error:
        reason, problem = _reason(error), None if isinstance(error, ArmStopped) else error
        arm.stop(reason)
    loop.close()
    recording.close()
    finish = 0 if reason is not None else None
    if reason is None and mark is not None:
        try:
            with Hold(arm, loop.commander.goal):
                finish = mark(np.stack(recording.frames), instruction)
        except BaseException as error:  # the episode is whole, but nobody can say how it ended
            finish, reason, problem = 0, f"no success mark: {_reason(error)}", error
    trajectory = recording.trajectory(finish=finish, tokens=ahead < 1)
    return Episode(trajectory, reason, loop.pace.measures(loop.period), problem)


class Hold:
    """While the context is open the arm is told again and again to stay at `joints` (6,): between
    two episodes, so that the watchdog does not stop it.
    """

    def __init__(self, arm, joints):
        self.arm, self.joints, self._ended = arm, np.array(joints), threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._hold, name="hold", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._ended.set()
        self._thread.join()

    def _hold(self):
        try:
            while True:
                self.arm.command(self.joints)
                if self._ended.wait(0.1):
                    return
        except ArmStopped:
            return  # whoever uses the arm next is told


def go_home(arm) -> None:
    """Lead the arm slowly and straight, joint by joint, to the posture in which episodes begin;
    ArmStopped if it does not get there.
    """
    begin, goal = arm.observe().joints.clip(*LIMITS.T), home()
    steps = max(2, int(np.ceil(np.abs(goal - begin).max() / HOME_SPEED * RATE)))
    clock = time.monotonic()
    for k in range(1, steps + 1):
        _sleep_until(clock + k / RATE)
        arm.command(begin + (goal - begin) * k / steps)
    while np.abs(arm.observe().joints - goal)[:5].max() > NEAR:
        if time.monotonic() - clock > steps / RATE + 2:
            arm.stop("the arm does not reach its first posture; is something in its way?")
        _sleep_until(time.monotonic() + 1 / RATE)
        arm.command(goal)


class _Loop:
    def __init__(self, policy, arm, instruction, ahead, rate, temperature, seed):
        import torch

        self.policy = policy.eval()
        self.arm = arm
        self.instruction = instruction
        self.ahead = ahead
        self.temperature = temperature
        self.generator = torch.Generator().manual_seed(seed)
        self.commander, self.pace = Commander(rate), Pace()
        self.period = CONTROL_PERIOD / getattr(arm, "speed", 1.0)
        self.tick = self.period / self.commander.steps
        self.chunk = policy.config.chunk
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="policy")

    @property
    def look_at(self) -> int | None:
        """Tick of a chunk at which the picture for the next one is taken, None for afterwards."""
        if not self.ahead:
            return None
        needed = HURRY * max(self.pace.thinking[-3:], default=0.0) / self.period
        ahead = self.ahead if self.ahead >= LATEST else min(max(self.ahead, needed), LATEST)
        return int((self.chunk - ahead) * self.commander.steps + 1e-6)

    def begin(self, initial_state, split, index, journal) -> Recording:
        seen = self.arm.observe()
        self.commander.reset(seen.joints.clip(*LIMITS.T))
        self.pending = self.think(seen.frame)
        if initial_state is None:
            initial_state = seen.joints
        return Recording(
            self.instruction, initial_state, seen.frame, split, index, self.chunk, journal
        )

    def think(self, frame):
        """Begin to choose the chunk for this picture in the worker thread: a future of (actions,
        tokens, log_probs), each (K, D).
        """
        import torch

        picture = torch.from_numpy(np.ascontiguousarray(frame))[None]

        def choose():
            begin = time.monotonic()
            tokens, log_p, actions = self.policy.act(
                picture, [self.instruction], self.temperature, self.generator
            )
            self.pace.thinking.append(time.monotonic() - begin)
            return tuple(part[0].cpu().numpy() for part in (actions, tokens, log_p))

        self.picture = frame
        return self.worker.submit(choose)

    def run(self, recording: Recording, horizon: int, success) -> None:
        arm, n, bus = self.arm, self.commander.steps, getattr(self.arm, "bus_seconds", None)
        measured = arm.observe().joints
        try:
            for step in range(horizon):
                inside = step % self.chunk
                if inside == 0:
                    chosen = self.receive()
                    if step == 0:
                        self.clock = time.monotonic()
                    look_at = self.look_at
                action = chosen[0][inside]
                for j, target in enumerate(self.commander.targets(action, measured)):
                    self.wait_for_tick()
                    if inside * n + j == look_at and step + 1 < horizon:
                        self.pending = self.think(arm.observe().frame)
                    if j == 0:
                        self.pace.begins.append(time.monotonic())
                    arm.command(target)
                    self.clock += self.tick
                self.wait_for_tick()
                seen = arm.observe()
                last, frame, measured = step + 1 == horizon, seen.frame, seen.joints
                if inside + 1 == self.chunk and not last:
                    if look_at is None:
                        self.pending = self.think(frame)
                    elif self.ahead < 1:
                        frame = self.picture
                done = success is not None and success()
                recording.step(frame, *(part[inside] for part in chosen), done)
        finally:
            if bus is not None:
                self.pace.bus = arm.bus_seconds - bus

    def receive(self):
        """The chunk that was being chosen; the arm holds still until it is there. Every action is
        checked before any is carried out.
        """
        begin = time.monotonic()
        while not self.pending.done():
            if time.monotonic() - begin > THINK_LIMIT:
                raise ArmStopped(f"the policy has not answered for {THINK_LIMIT:g} s")
            self.arm.command(self.commander.goal)
            time.sleep(self.tick)
        if self.pace.begins and (waited := time.monotonic() - begin) > self.tick / 2:
            self.pace.waits.append(waited)
        chosen = self.pending.result()
        for action in chosen[0]:
            check_action(action)
        return chosen

    def wait_for_tick(self):
        """Sleep until the next joint target is due. A short delay is caught up with; after a long
        one the clock starts anew, since a burst would be a leap.
        """
        late = time.monotonic() - self.clock
        if late > self.period / 2:
            self.clock += late
        else:
            _sleep_until(self.clock)

    def close(self):
        self.worker.shutdown(wait=False, cancel_futures=True)


def _sleep_until(moment: float):
    if (left := moment - time.monotonic()) > 0:
        time.sleep(left)


def _reason(error: BaseException) -> str:
    if isinstance(error, ArmStopped):
        return error.reason
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C or a signal"
    return f"{type(error).__name__}: {error}"
