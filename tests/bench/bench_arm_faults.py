"""What happens when something breaks while the arm moves? Every fault, many times, on the emulated
SO-101 with the whole loop of `wmpo-lite deploy` around it.

    python tests/bench/bench_arm_faults.py --tries 100        writes assets/results/arm_faults.json,
    and beside it arm_faults_passing.json:
                                                              faults that pass, and how all of it
                                                              was measured

Each try: a process of its own connects to an emulated arm that is in a first posture, runs an
episode of a policy that never rests, and after a moment of motion something breaks. Then the table
counts: did all joints come to rest and stay there (`stopped`), how long after the fault did the
last one move (`worst_stop_s`), and is the episode so far on disk, as a Trajectory that loads
(`saved`). Faults are the lasting ones: a single lost or broken answer is asked for again and must
not stop anything, which the two `one_...` rows show. For the killed process nobody is left to stop
the arm: the servos hold the last target they heard, at most one target ahead, and the next start
saves the episode from its journal. It takes about three seconds a try and worker.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from wmpo_lite.arms.interface import JOINTS  # noqa: E402
from wmpo_lite.common.errors import UserError  # noqa: E402
from wmpo_lite.envs.splits import numbers  # noqa: E402

OUT = Path(__file__).resolve().parents[2] / "assets" / "results" / "arm_faults.json"
WITHIN = 0.5  # s
MOVES, STILL = 0.2, 0.05  # rad/s: an arm on its way, and one at rest
HORIZON, RIDDEN_OUT = (
    40,
    15,
)  # control steps of an episode that something ends long before, and of one that goes on
# The fault, as Emulator.fault takes it, or what else is done; whether the arm must stop.
FAULTS = {
    "dropped_packet": (("drop", {"share": 1.0}), True),
    "bad_checksum": (("corrupt", {"share": 1.0}), True),
    "servo_error": (("error", {}), True),
    "serial_gone": (("pull", {}), True),
    "camera_frozen": (("camera", {}), True),
    "policy_nan": ("nan", True),
    "process_killed": ("kill", True),
    "one_dropped_packet": (("drop", {"count": 1}), False),
    "one_bad_checksum": (("corrupt", {"count": 1}), False),
}


class NotBegun(RuntimeError):
    """A try that went wrong before anything was broken: it is done again, and counted apart."""


class Restless:
    """A policy that always moves the tips; from its `nan_after`-th chunk on it has diverged."""

    class config:
        chunk = 2

    def __init__(self, nan_after=None):
        self.calls, self.nan_after, self.nan_time = 0, nan_after, None

    def eval(self):
        return self

    def act(self, frames, instructions, temperature, generator):
        import torch

        t = 2 * self.calls + np.arange(2)
        actions = np.stack(
            [np.sin(1.1 * t), np.cos(0.8 * t), np.sin(1.7 * t + 1), np.sign(np.sin(t))], axis=1
        )[None]
        if self.nan_after is not None and self.calls >= self.nan_after:
            actions[0, 1, 2] = np.nan
            self.nan_time = self.nan_time or time.monotonic()
        self.calls += 1
        return (
            torch.zeros(1, 2, 4, dtype=torch.int64),
            torch.zeros(1, 2, 4),
            torch.from_numpy(actions).float(),
        )


def control(port, calibration, pictures, folder, horizon, nan_after, line):
    """The process that holds the arm."""
    import warnings

    from wmpo_lite.arms.cameras import SharedCamera
    from wmpo_lite.arms.deploy import deploy
    from wmpo_lite.arms.so101 import SO101

    warnings.simplefilter("ignore")  # that the torque stays on behind a dead cable is known here
    policy = Restless(nan_after)
    with SO101(port, calibration, SharedCamera(pictures)) as arm:
        deploy(policy, arm, "keep moving", horizon=horizon, folder=folder)
        line.send({"nan": policy.nan_time})
        line.recv()  # the torque stays on until the arm has been watched


def attempt(context, emulator, states, fault: str, rng) -> dict:
    """One try: {stopped, saved, stop_s, reason, steps, bus_s}. NotBegun if the arm did not even
    begin to move.
    """
    from wmpo_lite.arms.records import COMPLETE, STOPPED, recover
    from wmpo_lite.trajectory import load_metadata, load_trajectories

    how, must_stop = FAULTS[fault]
    horizon = HORIZON if must_stop else RIDDEN_OUT
    emulator.fault("none")
    emulator.reset(states, int(rng.integers(len(states))))
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = context.Pipe()
        nan_after = int(rng.integers(2, 5)) if how == "nan" else None
        process = context.Process(
            target=control,
            args=(
                emulator.port,
                emulator.calibration,
                emulator.pictures,
                folder,
                horizon,
                nan_after,
                theirs,
            ),
        )
        process.start()
        theirs.close()
        try:
            wait(
                lambda: np.abs(emulator.moving()).max() > MOVES or not process.is_alive(),
                60,
                "the arm never moved",
            )
            if not process.is_alive():
                raise NotBegun("the process that holds the arm ended early")
            if how != "nan":
                time.sleep(rng.uniform(0.2, 1.2))
                wait(
                    lambda: np.abs(emulator.moving()).max() > MOVES,
                    5,
                    "the arm came to rest by itself",
                )
            told = {}
            if how == "kill":
                begin = time.monotonic()
                process.kill()
            elif how == "nan":
                told = hear(ours)
                begin = told.get("nan") or time.monotonic() - 2 * WITHIN
            else:
                name, options = how
                options = dict(options)
                if name == "error":
                    options = {
                        "joint": JOINTS[int(rng.integers(6))],
                        "bits": int(rng.choice([1, 2, 4, 8, 32])),
                    }
                if name == "camera":
                    options = {"how": str(rng.choice(["stop", "repeat"]))}
                begin = emulator.fault(name, **options)
            if must_stop:
                time.sleep(max(0.0, begin + 2 * WITHIN - time.monotonic()))
                end = emulator.last_motion(STILL)
                still = np.abs(emulator.moving()).max() < STILL and end < begin + 2 * WITHIN - 0.1
                told = told or (hear(ours) if how != "kill" else {})
            else:
                told, still, end = hear(ours), True, begin
        finally:
            if how != "kill" and process.is_alive():
                try:
                    ours.send("done")
                except OSError:
                    pass
            process.join(10)
            if process.is_alive():
                process.kill()
            ours.close()
        if how == "kill":
            recover(folder, "place")
        files = [
            path
            for path in Path(folder).iterdir()
            if (STOPPED if must_stop else COMPLETE).fullmatch(path.name)
        ]
        trajectory = load_trajectories(files[0])[0] if len(files) == 1 else None
        about = load_metadata(files[0])["provenance"] if len(files) == 1 else {}
        reason = about.get("stopped")
        saved = (
            trajectory is not None
            and 1 <= len(trajectory)
            and (len(trajectory) < horizon) == must_stop
        )
        return {
            "stopped": bool(still and end - begin <= WITHIN),
            "saved": bool(saved),
            "stop_s": round(max(0.0, end - begin), 4),
            "reason": reason and reason.replace(emulator.port, "the port"),
            "steps": len(trajectory) if trajectory is not None else 0,
            "bus_s": about.get("measures", {}).get("bus_s"),
        }


def hear(line, timeout: float = 30) -> dict:
    if not line.poll(timeout):
        # the process that holds the arm has died of the fault: then nothing is saved either
        return {}
    try:
        return line.recv()
    except EOFError:
        return {}


def wait(condition, timeout: float, message: str):
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise NotBegun(message)
        time.sleep(0.01)


def measure(tries: int, workers: int = 2, faults=tuple(FAULTS), seed: int = 0) -> dict:
    """The table: per fault tries, stopped, saved, worst_stop_s, median_stop_s and a reason that was
    given.
    """
    from wmpo_lite.arms.emulator import Emulator
    from wmpo_lite.envs.tabletop.env import initial_states
    from wmpo_lite.envs.tabletop.tasks import get_task

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "wmpo_lite.arms.deploy", "wmpo_lite.arms.so101", "scservo_sdk", "serial"]
    )
    task = get_task("place")
    states = initial_states(task, *numbers("arm_faults", 8))
    jobs = [(fault, n) for n in range(tries) for fault in faults]
    results, lock, problems = {fault: [] for fault in faults}, threading.Lock(), []

    def work(worker):
        mine = list(range(worker, len(jobs), workers))
        while mine and len(problems) < 1 + len(jobs) // 10:
            try:
                with Emulator(task, states) as emulator:
                    while mine:
                        fault, _ = jobs[mine[0]]
                        result = attempt(
                            context,
                            emulator,
                            states,
                            fault,
                            np.random.default_rng([seed, mine[0], len(problems)]),
                        )
                        mine.pop(0)
                        with lock:
                            results[fault].append(result)
                            print(
                                f"{sum(map(len, results.values()))}/{len(jobs)} {fault}"
                                f" {json.dumps(result)}",
                                flush=True,
                            )
            except (NotBegun, UserError) as error:
                problems.append(str(error))
                print(f"not begun: {error}", flush=True)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    if sum(map(len, results.values())) < len(jobs):
        raise RuntimeError(f"too many tries could not begin: {problems}")
    table = {}
    for fault, rows in results.items():
        stops = [row["stop_s"] for row in rows]
        entry = {
            "tries": len(rows),
            "stopped": sum(row["stopped"] for row in rows),
            "saved": sum(row["saved"] for row in rows),
            "worst_stop_s": round(max(stops), 3),
            "median_stop_s": round(float(np.median(stops)), 3),
            "reason": next((row["reason"] for row in rows if row["reason"]), None),
        }
        if not FAULTS[fault][1]:
            entry = {
                "tries": len(rows),
                "ridden_out": sum(
                    row["reason"] is None and row["steps"] == RIDDEN_OUT for row in rows
                ),
                "saved": entry["saved"],
            }
        table[fault] = entry
    stopping = [fault for fault in faults if FAULTS[fault][1]]
    bus = [
        row["bus_s"]
        for rows in results.values()
        for row in rows
        if row["bus_s"] is not None and row["steps"] == RIDDEN_OUT
    ]
    return {
        "faults": {fault: table[fault] for fault in stopping},
        "transient": {fault: table[fault] for fault in faults if fault not in stopping},
        "within_s": WITHIN,
        "still_rad_per_s": STILL,
        "bus_seconds_per_control_step": round(float(np.median(bus)), 4) if bus else None,
        "workers": workers,
        "not_begun": len(problems),
        "about": (
            "faults: lasting ones (every answer lost or broken, a servo's error until it is"
            " mended), on the emulated SO-101 with the loop of `wmpo-lite deploy`; transient: one"
            " answer lost or broken, which must not stop the arm. stopped: all joints at rest"
            " within within_s of the fault, and afterwards; saved: the episode so far loads as a"
            " Trajectory, after a kill from its journal"
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2, help="arms at a time")
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    begin = time.monotonic()
    table = measure(options.tries, options.workers, tuple(options.faults))
    table["seconds"] = round(time.monotonic() - begin)
    print(json.dumps(table, indent=1))
    options.out.write_text(json.dumps(table.pop("faults"), indent=1) + "\n")
    options.out.with_name(f"{options.out.stem}_passing.json").write_text(
        json.dumps(table, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
