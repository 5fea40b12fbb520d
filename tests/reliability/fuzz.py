"""Damaged inputs of every kind that the kit reads: each has to end in success or in one sentence,
and to stay as it was.

Every kind makes a sound folder once and reads a damaged copy of it for every input, in a process of
its own: a library that dies of a file, or never comes back, is counted like a traceback.
"""

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

from reliability.damage import copy, damage, fingerprint
from wmpo_lite.common.errors import UserError

SHARES = {
    "run folder": 260,
    "report": 60,
    "results": 100,
    "ship": 60,
    "HDF5": 220,
    "weights": 240,
    "training": 80,
    "recordings": 80,
    "calibration": 160,
    "journal": 80,
    "run": 60,
}  # inputs of each kind
PATIENCE = 60  # s for one input
ROOT = Path(__file__).resolve().parents[2]


def each(calls) -> None:
    """All of (function, argument ...), whatever some of them say; then the first sentence that was
    said.
    """
    said = []
    for function, *arguments in calls:
        try:
            function(*arguments)
        except UserError as error:
            said.append(error)
    if said:
        raise said[0]


# -- what is damaged, and who reads it. make(folder) writes sound files; read(folder) is what a
# user's command does with them


def make_run(folder: Path):
    import tiny

    from wmpo_lite.common import checkpoint
    from wmpo_lite.trajectory import save_trajectories

    shipped = ROOT / "assets" / "place" / "run"
    for name in ("config.json", "metrics.jsonl", "trust.json", "result.json", "seen.json"):
        (folder / name).write_bytes((shipped / name).read_bytes())
    whole = json.loads((shipped / "evaluation.json").read_text())
    for row in whole["policies"].values():
        row |= {key: row[key][:40] for key in ("success", "finish_step")}
    checkpoint.write_json(folder / "evaluation.json", whole | {"n": 40})
    save_trajectories(
        folder / "rollouts.hdf5", tiny.trajectories(6), env_args={"task": "place"}, provenance={}
    )
    checkpoint.write_json(
        folder / "stages" / "reward.json", {"result": {"imagined_threshold": 0.4}, "seconds": 1.0}
    )
    for name in ("base", "wmpo"):
        tiny.policy().save(folder / "policies" / name)
    tiny.reward_model().save(folder / "reward")


def read_run(folder: Path):
    from wmpo_lite.report.diagnosis import diagnose

    assert all(len(str(finding).splitlines()) == 1 for finding in diagnose(folder)), (
        "a finding has several lines"
    )


def make_report(folder: Path):
    make_run(folder)
    films = np.zeros((2, 5, 8, 8, 3), np.uint8)
    words = np.array(["put the red cube on the plate"] * 2)
    np.savez(
        folder / "trust_films.npz",
        real=films,
        imagined=films,
        real_success=[True, False],
        scores=[0.9, 0.1],
        instructions=words,
    )
    np.savez(
        folder / "episodes.npz",
        before=films,
        after=films,
        before_success=[True, False],
        after_success=[True, True],
        instructions=words,
    )


def read_report(folder: Path):
    from wmpo_lite.report.write import write_report

    path = write_report(folder)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    path.unlink()


def make_results(folder: Path):
    import tiny

    from wmpo_lite.common import checkpoint

    make_run(folder)
    tiny.world_model().save(folder / "world_model")
    for name in ("main_job.json", "world_model.json", "libero_speed.json"):
        (folder / "results" / name).parent.mkdir(exist_ok=True)
        (folder / "results" / name).write_bytes((ROOT / "assets" / "results" / name).read_bytes())
    checkpoint.write_json(
        folder / "upper" / "upper_bound.json", {"task": "place", "upper_bound_success": 0.5}
    )


def read_results(folder: Path):
    from wmpo_lite.report import results

    with tempfile.TemporaryDirectory() as other:  # collecting writes, so it does that elsewhere
        into = Path(other) / "results"
        copy(folder / "results", into)
        each(
            [
                (results.collect, [folder, folder / "upper"], into),
                (results.collect_panels, [folder], into),
                (results.table, into / "main_job.json"),
                (results.panel_table, into / "world_model.json"),
                (results.speed_table, into / "libero_speed.json"),
            ]
        )


def make_hdf5(folder: Path):
    """A file of the kit and one as other recorders write them, without compression: most bytes have
    a meaning.
    """
    import h5py
    import tiny

    from wmpo_lite.trajectory import save_trajectories

    save_trajectories(
        folder / "own.hdf5", tiny.trajectories(2), env_args={"task": "place"}, provenance={}
    )
    with h5py.File(folder / "foreign.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "put it down"})
        for n in range(2):
            demo = data.create_group(f"demo_{n}")
            demo["actions"] = np.zeros((6, 7))
            demo["dones"] = np.arange(6) == 5
            demo["rewards"] = (np.arange(6) == 5).astype(np.uint8)
            demo["obs/agentview_rgb"] = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones(
                (8, 8, 3), np.uint8
            )
            demo["obs/joint_states"] = np.arange(6)[:, None] + 1.0 * np.ones(7)
            demo["states"] = np.arange(6)[:, None] * np.ones(12)


def read_hdf5(folder: Path):
    from wmpo_lite.trajectory import load_metadata, load_trajectories

    each(
        [
            (load, folder / name)
            for name in ("own.hdf5", "foreign.hdf5")
            for load in (load_trajectories, load_metadata)
        ]
    )


def make_weights(folder: Path):
    import tiny

    for name in ("autoencoder", "world_model", "policy", "reward_model"):
        getattr(tiny, name)().save(folder / name)


def read_weights(folder: Path):
    from wmpo_lite.autoencoder import Autoencoder
    from wmpo_lite.policies import load_policy
    from wmpo_lite.reward import RewardModel
    from wmpo_lite.world_model import WorldModel

    loads = {
        "autoencoder": Autoencoder.load,
        "world_model": WorldModel.load,
        "policy": load_policy,
        "reward_model": RewardModel.load,
    }
    each([(load, folder / name) for name, load in loads.items()])


def make_training(folder: Path):
    from wmpo_lite.train import FitConfig

    _fit(folder, FitConfig(steps=4, save_every=2, ema=0.9, warmup=1))


def read_training(folder: Path):
    from wmpo_lite.train import FitConfig

    with (
        tempfile.TemporaryDirectory() as other
    ):  # going on with a training writes, so it does that elsewhere
        copy(folder, Path(other) / "fit")
        _fit(Path(other) / "fit", FitConfig(steps=4, save_every=2, ema=0.9, warmup=1))


def _fit(folder, config):
    import torch

    from wmpo_lite.train import fit

    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    fit(
        module,
        lambda generator, rng, step: (module(torch.ones(1, 3)).square().mean(), {}),
        config,
        seed=0,
        name="line",
        folder=folder,
    )


def make_recordings(folder: Path):
    from wmpo_lite.datagen import collect

    for shard in range(2):
        rng = np.random.default_rng(shard)
        data = {
            "frames": rng.integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8),
            "actions": rng.random((2, 3, 4), dtype=np.float32),
        }
        collect.write_shard(
            folder / f"play_{shard}.npz", data, collect.recipe(collect.record_play, (shard, 16, 3))
        )


def read_recordings(folder: Path):
    import tiny

    from wmpo_lite.common.origin import require_same
    from wmpo_lite.datagen import collect
    from wmpo_lite.recipes.pretrain import play_latents

    with tempfile.TemporaryDirectory() as other:
        paths = [folder / f"play_{shard}.npz" for shard in range(2)]
        for shard, path in enumerate(paths):
            require_same(
                path, collect.made_from(path), collect.recipe(collect.record_play, (shard, 16, 3))
            )
        play_latents(tiny.autoencoder(), paths, Path(other))


def make_calibration(folder: Path):
    from wmpo_lite.arms.emulator import emulated_calibration

    emulated_calibration().save(folder / "arm.json")


def read_calibration(folder: Path):
    from wmpo_lite.arms.calibration import load_calibration

    load_calibration(folder / "arm.json").check_mechanics()


def make_journal(folder: Path):
    from wmpo_lite.arms.records import Recording

    picture = np.full((8, 8, 3), 7, np.uint8)
    recording = Recording(
        "put the red cube on the plate", np.zeros(5), picture, path=folder / "episode_0003.journal"
    )
    for _ in range(5):
        recording.step(picture, *np.zeros((3, 4)), False)
    recording.close()


def read_journal(folder: Path):
    from wmpo_lite.arms.records import recover

    with tempfile.TemporaryDirectory() as other, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        copy(folder, Path(other) / "j")
        before = sum(
            path.stat().st_size for path in (Path(other) / "j").rglob("*") if path.is_file()
        )
        saved = recover(Path(other) / "j", "place")
        assert saved or said or before < 4000, (
            "a journal with recorded steps left neither an episode nor a word"
        )


def make_run_to_go_on(folder: Path):
    """The folder of a run that is to be resumed, with assets of tiny models."""
    import tiny

    from wmpo_lite.recipes.workspace import Run, Workspace

    tiny.assets(folder / "assets")
    w = Workspace(
        Run(task="place", profile="smoke", rollout_budget=8, assets=str(folder / "assets")),
        folder / "run",
    )
    w.stage("rollouts", lambda: {"n": 8, "successes": 4})
    w.close()


def read_run_to_go_on(folder: Path):
    from wmpo_lite.recipes.workspace import Run, Workspace

    with tempfile.TemporaryDirectory() as other:
        copy(folder / "run", Path(other) / "run")
        w = Workspace(
            Run(task="place", profile="smoke", rollout_budget=8, assets=str(folder / "assets")),
            Path(other) / "run",
        )
        try:
            w.stage("rollouts", lambda: {"n": 8, "successes": 4})
        finally:
            w.close()


def make_ship(folder: Path):
    """A finished run of tiny models beside the assets that it began with."""
    import tiny

    from wmpo_lite.common import checkpoint

    home = tiny.assets(folder / "assets")
    (folder / "run").mkdir()
    make_run(folder / "run")
    models = {"policy": home / "place" / "policy"} | {
        name: home / "tabletop" / name for name in ("autoencoder", "world_model")
    }
    begun = {
        name: checkpoint.checksum(path / "model.safetensors")[:12] for name, path in models.items()
    }
    config = checkpoint.read_json(folder / "run" / "config.json") | {"assets": begun}
    checkpoint.write_json(folder / "run" / "config.json", config)
    checkpoint.write_json(
        folder / "run" / "stages" / "reward.json",
        {"result": {"threshold": 0.25, "imagined_threshold": 0.75}, "seconds": 1.0},
    )
    tiny.world_model(0.2).save(folder / "run" / "world_model")
    for name in ("grpo", "dpo", "wmpo"):
        tiny.policy(contrast=9.0).save(folder / "run" / "policies" / name)


def read_ship(folder: Path):
    from wmpo_lite.recipes.shipped import Shipped, ship_run

    with tempfile.TemporaryDirectory() as other:  # shipping writes, so it does that elsewhere
        copy(folder, Path(other) / "all")
        ship_run(Path(other) / "all" / "run", Path(other) / "all" / "assets")
        shipped = Shipped("place", Path(other) / "all" / "assets")
        each(
            [
                (shipped.world_model,),
                (shipped.reward_model,),
                (shipped.policy, "wmpo"),
                (shipped.rollouts,),
                (shipped.imagined_env,),
                (shipped.metrics,),
            ]
        )


KINDS = {
    "run folder": (make_run, read_run),
    "report": (make_report, read_report),
    "results": (make_results, read_results),
    "ship": (make_ship, read_ship),
    "HDF5": (make_hdf5, read_hdf5),
    "weights": (make_weights, read_weights),
    "training": (make_training, read_training),
    "recordings": (make_recordings, read_recordings),
    "calibration": (make_calibration, read_calibration),
    "journal": (make_journal, read_journal),
    "run": (make_run_to_go_on, read_run_to_go_on),
}


# -- one input, and all of them --------------------------------------------------------------------


def try_one(kind: str, sound: Path, number: int, seed: int = 0) -> dict:
    """Damage a copy of `sound`, one file or two, and read it: {"how", "end", "said"}; end: success,
    sentence, several lines, traceback or changed.
    """
    rng = np.random.default_rng([seed, list(KINDS).index(kind), number])
    with tempfile.TemporaryDirectory() as other:
        folder = Path(other) / "input"
        copy(sound, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        chosen = rng.choice(
            len(files), size=min(len(files), 1 + (rng.random() < 0.25)), replace=False
        )
        how = ", ".join(
            f"{files[i].relative_to(folder)} {damage(files[i], rng)}" for i in sorted(chosen)
        )
        before, said, end = fingerprint(folder), "", "success"
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                KINDS[kind][1](folder)
        except UserError as error:
            said = str(error)
            end = (
                "sentence"
                if said.strip() and len(said.strip().splitlines()) == 1
                else "several lines"
            )
        except Exception:
            said, end = traceback.format_exc(), "traceback"
        if end in ("success", "sentence") and fingerprint(folder) != before:
            end = "changed"
        return {"number": number, "how": how, "end": end, "said": said}


def worker(kind: str, first: int, count: int, seed: int) -> None:
    """Try inputs and print a JSON line for each."""
    sys.path.insert(0, str(ROOT / "tests"))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with tempfile.TemporaryDirectory() as other:
        sound = Path(other) / "sound"
        sound.mkdir()
        KINDS[kind][0](sound)
        KINDS[kind][1](sound)  # sound files are read without a word
        for number in range(first, first + count):
            print(json.dumps(try_one(kind, sound, number, seed)), file=out, flush=True)


def worker_command(kind: str, first: int, count: int, seed: int) -> list[str]:
    """The command line that has `worker` do it."""
    return [sys.executable, "-m", "reliability.fuzz", kind, str(first), str(count), str(seed)]


def run(kind: str, count: int, seed: int = 0) -> list[dict]:
    """Every input's end; a worker that dies or hangs has it as its input's end, and the next one
    goes on after it.
    """
    ends = []
    while len(ends) < count:
        command = worker_command(kind, len(ends), count - len(ends), seed)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "TQDM_DISABLE": "1"}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not ends else None,
        )
        had, deadline = len(ends), time.monotonic() + 2 * PATIENCE
        while len(ends) < count:
            ready, _, _ = select.select(
                [process.stdout], [], [], max(0.0, deadline - time.monotonic())
            )
            line = process.stdout.readline() if ready else b""
            if not line:
                break
            ends.append(json.loads(line))
            deadline = time.monotonic() + PATIENCE
        process.kill()
        errors = process.communicate()[1] or b""
        if len(ends) < count:
            if len(ends) == had == 0:
                raise RuntimeError(
                    f"{kind}: sound files could not be read\n{errors.decode()[-3000:]}"
                )
            ends.append(
                {
                    "number": len(ends),
                    "how": "",
                    "end": "died" if ready else "hung",
                    "said": errors.decode()[-2000:],
                }
            )
    return ends


def summary(ends: list[dict]) -> dict:
    """Counts of one kind's ends."""
    count = lambda *names: sum(end["end"] in names for end in ends)
    return {
        "inputs": len(ends),
        "successes": count("success"),
        "sentences": count("sentence"),
        "several_lines": count("several lines"),
        "tracebacks": count("traceback"),
        "changed_inputs": count("changed"),
        "died_or_hung": count("died", "hung"),
    }


if __name__ == "__main__":
    worker(sys.argv[1], *map(int, sys.argv[2:5]))
