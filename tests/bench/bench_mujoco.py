"""Do recorded episodes come out the same under another MuJoCo?

    python tests/bench/bench_mujoco.py [3.2.7 3.12.0 4.0.0] [--venvs FOLDER]

256 episodes of the table-top: the 128 that ship with `place` (a policy's, frames and all) and 128
of `square` by its noisy expert, recorded here. Their actions are carried out again from the same
initial states: by the pinned MuJoCo, by it with 1e-6 added to every action, which tells how many
outcomes hang by a thread, and by each of the versions named, in an environment of its own. Two ways
to find contacts, "nativeccd" and "multiccd", have become the default since 3.2: rows "old" and "new
contacts" have both off in the pinned version and both on in 3.2. MuJoCo steps one state at a time
here, because 3.2 has no `Rollout`; the first row tells that this makes no difference.

Writes assets/results/mujoco.json and prints a table.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.2.7", "3.12.0", "4.0.0")
NEEDED = ("numpy==2.4.6", "h5py==3.16.0")
PER_TASK, NOISE, BURST = 128, 0.8, 0.25  # noise of the expert: a quarter of its episodes fail
NUDGE = 1e-6


class OneByOne:
    """`mujoco.rollout.Rollout` in plain steps."""

    def rollout(self, models, datas, states, controls):
        import mujoco

        spec, out = mujoco.mjtState.mjSTATE_FULLPHYSICS, []
        for model, state, sequence in zip(models, states, controls):
            data, new = datas[0], np.empty_like(state)
            mujoco.mj_setState(model, data, state, spec)
            data.qacc_warmstart[:] = 0
            for control in sequence:
                data.ctrl[:] = control
                mujoco.mj_step(model, data)
            mujoco.mj_getState(model, data, new, spec)
            out.append(new)
        return np.stack(out)[:, None], None

    def close(self):
        pass


def blind_env(task: str, contacts: str = ""):
    """The task's environment without pictures, so that no version has to draw."""
    import mujoco

    from wmpo_lite.envs.tabletop import env as module
    from wmpo_lite.envs.tabletop.tasks import get_task

    module.import_mujoco = lambda: mujoco
    env = module.TabletopEnv(get_task(task), size=8, threads=1)
    env.render = lambda b: np.zeros((8, 8, 3), np.uint8)
    for bit in ("MULTICCD", "NATIVECCD"):
        if contacts == "new":
            env.model.opt.enableflags |= int(getattr(mujoco.mjtEnableBit, f"mjENBL_{bit}"))
        elif contacts == "old":
            env.model.opt.disableflags |= int(getattr(mujoco.mjtDisableBit, f"mjDSBL_{bit}"))
    return env


def replay(folder: Path, nudge: float = 0.0, contacts: str = "") -> dict:
    """{task: (done (N, T), joint states (N, T, nq))} of the recorded actions."""
    from wmpo_lite.trajectory import InitialStates

    found = {}
    for path in sorted(folder.glob("*.npz")):
        recorded, env = np.load(path), blind_env(path.stem, contacts)
        env._rollout = OneByOne()
        count = len(recorded["states"])
        env.reset(
            InitialStates(recorded["states"], None, ("",) * count, "rollouts", np.arange(count))
        )
        _, done, info = env.step_chunk(recorded["actions"] + nudge, every_frame=None)
        found[path.stem] = done, info["states"]
    return found


def record(folder: Path) -> None:
    """The episodes as folder/<task>.npz: states, actions, done and joints."""
    from wmpo_lite.envs.tabletop.env import initial_states
    from wmpo_lite.envs.tabletop.expert import demonstrate
    from wmpo_lite.trajectory import load_trajectories

    shipped = load_trajectories(ROOT / "assets/place/run/rollouts.hdf5")[:PER_TASK]
    steps = np.arange(1, len(shipped[0]) + 1)
    np.savez(
        folder / "place.npz",
        states=np.stack([t.initial_state for t in shipped]),
        actions=np.stack([t.actions for t in shipped]),
        done=np.stack([(steps >= t.finish_step) & t.success for t in shipped]),
    )
    env = blind_env("square")
    states = initial_states(env.task, "rollouts", np.arange(PER_TASK))
    found = demonstrate(
        env, states, np.random.default_rng([0, 12]), NOISE, BURST, recover=env.task.collides
    )
    env.close()
    np.savez(
        folder / "square.npz", states=states.states, actions=found["executed"], done=found["done"]
    )


def compare(folder: Path, found: dict, reference: dict) -> dict:
    """Equal outcomes and finish steps of a replay, and how far it ends from the pinned one."""
    row = {}
    for task, (done, joints) in found.items():
        recorded, there = np.load(folder / f"{task}.npz")["done"], reference[task][1]
        other = done[:, -1] != recorded[:, -1]
        apart = np.abs(joints - there).max(axis=(1, 2))  # rad, m, quaternions: the largest of all
        row[task] = {
            "n": len(done),
            "successes_recorded": int(recorded[:, -1].sum()),
            "equal_outcomes": int((~other).sum()),
            "lost": int((other & recorded[:, -1]).sum()),
            "won": int((other & ~recorded[:, -1]).sum()),
            "equal_finish_steps": int((done == recorded).all(axis=1).sum()),
            "bit_equal": int((joints == there).all(axis=(1, 2)).sum()),
            "median_largest_difference": float(np.median(apart)),
        }
    return row


def in_version(version: str, venvs: Path, folder: Path, contacts: str = "") -> dict:
    """The replay in an environment with that MuJoCo and nothing else."""
    python = venvs / f"v{version}" / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", f"mujoco=={version}", *NEEDED], check=True
        )
    out = folder / "out"
    command = [python, __file__, "--replay", folder, "--out", out, "--contacts", contacts]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT), "MUJOCO_GL": "disable"})
    found = {path.stem: np.load(path) for path in sorted(out.glob("*.npz"))}
    return {task: (arrays["done"], arrays["joints"]) for task, arrays in found.items()}


def table(rows: dict) -> str:
    """Markdown of assets/results/mujoco.json's rows."""
    lines = ["| mujoco | task | equal outcomes | lost | won | equal in every step |"]
    lines.append("|---|---|---|---|---|---|")
    for name, row in rows.items():
        for task, told in row.items():
            same = f"{told['equal_outcomes']} of {told['n']}"
            steps = told["equal_finish_steps"]
            lines.append(f"| {name} | {task} | {same} | {told['lost']} | {told['won']} | {steps} |")
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--venvs", type=Path, help="folder of environments, kept for another time")
    parser.add_argument("--replay", type=Path, help="of this script's own: replay here, into --out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--contacts", default="")
    asked = parser.parse_args()
    if asked.replay:
        asked.out.mkdir(exist_ok=True)
        for task, (done, joints) in replay(asked.replay, contacts=asked.contacts).items():
            np.savez(asked.out / f"{task}.npz", done=done, joints=joints)
        return
    import mujoco

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        record(folder)
        venvs, pinned, here = asked.venvs or folder / "venvs", replay(folder), mujoco.__version__
        found = {here: pinned, f"{here}, actions + {NUDGE:g}": replay(folder, NUDGE)}
        found[f"{here}, old contacts"] = replay(folder, contacts="old")
        for version in asked.versions:
            found[version] = in_version(version, venvs, folder)
            if version.startswith("3.2."):
                found[f"{version}, new contacts"] = in_version(version, venvs, folder, "new")
        rows = {name: compare(folder, arrays, pinned) for name, arrays in found.items()}
    path = ROOT / "assets" / "results" / "mujoco.json"
    path.write_text(json.dumps({"recorded_with": mujoco.__version__, "rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
