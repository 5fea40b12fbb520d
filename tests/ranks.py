"""Trainings that one process or several do, for tests to compare: `python ranks.py FOLDER CASE`.

Every process writes what its model computes in the end, and what it logged, to FOLDER/CASE-<rank>.
"""

import atexit
import dataclasses
import json
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiny
import torch
import torch.distributed as dist

from wmpo_lite import grpo
from wmpo_lite.common import parallel
from wmpo_lite.common.checkpoint import save_tensors, write_json
from wmpo_lite.common.errors import UserError
from wmpo_lite.dpo import DPOConfig, train_dpo
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.recipes.evaluation import outcomes
from wmpo_lite.recipes.pretrain_policy import clone
from wmpo_lite.recipes.trust import shared_scores
from wmpo_lite.recipes.workspace import replay_in
from wmpo_lite.reward import reward_loss
from wmpo_lite.rollout import rollout
from wmpo_lite.train import FitConfig, fit
from wmpo_lite.train_grpo import optimize

STEPS = 20
CONFIG = FitConfig(steps=STEPS, warmup=5, decay=0.0, ema=0.9, save_every=5)
GRPO = grpo.GRPOConfig(group_size=4, groups=4, minibatch=6, micro_batch=4, epochs=2)


def world_model(folder, steps=STEPS, passes=1):
    """A batch of 5, which two processes cannot halve."""
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 9, 4, 8, 8, generator=draw)
    episodes = Episodes(latents, torch.from_numpy(tiny.random_actions(4, 8, 4)))
    model = tiny.world_model()
    pool = Pool(episodes, model, WindowConfig(batch=5, own=3, ramp=4))
    config = FitConfig(**vars(CONFIG) | {"steps": steps})
    options = dict(seed=0, name="world model", extra=pool.tensors, shared=True, passes=passes)
    records = fit(model, pool.loss, config, folder=folder / "fit", log_every=5, **options)
    return model, records


def world_model_in_passes(folder):
    return world_model(folder / "passes", passes=2)


def half_of_world_model(folder):
    return world_model(folder / "two", STEPS // 2)


def other_half(folder):
    """Go on with what one process has begun in the folder `one`."""
    return world_model(folder / "one")


def episodes():
    found = tiny.trajectories(8)
    names = ("frames", "success", "finish_step", "instruction")
    columns = {name: np.array([getattr(t, name) for t in found]) for name in names}
    return found, columns | {"other": [""] * len(found)}


def reward_model(folder, passes=1):
    model = tiny.reward_model()
    loss = reward_loss(model, episodes()[1], half=4)
    options = dict(seed=0, name="reward", log_every=5, shared=True, passes=passes)
    return model, fit(model, loss, CONFIG, **options)


def cloning(folder, passes=1):
    found, columns = episodes()
    actions = np.stack([t.actions for t in found])
    struck = actions + (np.random.default_rng(0).random(actions.shape[:2]) < 0.2)[..., None]
    done = np.arange(1, 17) >= columns["finish_step"][:, None]
    demos = {
        "intended": actions,
        "executed": struck,  # so that masks differ from row to row
        "done": done & columns["success"][:, None],
        "frames": columns["frames"],
        "instruction": columns["instruction"],
    }
    policy = tiny.policy()
    options = dict(seed=0, folder=None, batch=7, log_every=5, passes=passes)
    return policy, clone(policy, demos, CONFIG, **options)


def groups(policy):
    """Four groups from the Counter, each with successes and failures."""
    states = tiny.states(12).repeat(4)
    numbers = np.repeat(np.arange(12), 4)
    found = rollout(policy, tiny.Counter(), states, horizon=8, temperature=1.0, groups=numbers)
    kept, _ = grpo.filter_groups(found)
    assert len(kept) >= 16
    return [kept[i : i + 4] for i in range(0, 16, 4)]


def update(shares, **changes):
    """One GRPO update with groups kept as unevenly as `shares` says: of each process, how many."""
    policy = tiny.policy()
    sampled, mine = groups(policy), slice(0, 4)
    if parallel.count() > 1:
        first = sum(shares[: parallel.rank()])
        mine = slice(first, first + shares[parallel.rank()])
    kept = sum(sampled[mine], [])
    batch = grpo.batch_from_trajectories(kept) if kept else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    generator, config = torch.Generator().manual_seed(0), dataclasses.replace(GRPO, **changes)
    return policy, [grpo.update(policy, optimizer, batch, config, generator)]


def update_uneven(folder):
    return update((3, 1))


def update_tokens(folder):
    return update((3, 1), loss_aggregation="token")


def update_none(folder):
    return update((4, 0))


def dpo(folder, micro_batch=None, batch=3):
    """Steps of 3 pairs, which two processes cannot halve."""
    policy = tiny.policy()
    config = DPOConfig(lr=1e-3, pairs=9, batch=batch, micro_batch=micro_batch)
    return policy, train_dpo(policy, None, sum(groups(policy), []), config)


def dpo_of_single_pairs(folder):
    """One of two processes has nothing to do."""
    return dpo(folder, batch=1)


def imagination(folder):
    """What the trust panel and the evaluation share out; a single episode cannot be."""
    env = ImaginedEnv(tiny.autoencoder(), tiny.world_model(), seed=0, stop=False)
    films = [replay_in(env, tiny.trajectories(n)) for n in (9, 1, 130)]
    policy, judge = tiny.policy(), tiny.reward_model()
    w = SimpleNamespace(reward_model=lambda: judge, env=tiny.Counter(), horizon=8)
    success, finish_step = outcomes(w, policy, tiny.states(70))
    record = {"success": success, "finish_step": finish_step}
    record["scores"] = shared_scores(w, films[2], tiny.states(130)).tolist()
    return policy, [record | {"films": [film[:, ::4].tolist() for film in films]}]


class Judged(ImaginedEnv):
    """Success where the first numbers of a chunk's actions are large on average."""

    def step_chunk(self, actions, every_frame=True):
        frames, done, info = super().step_chunk(actions, every_frame)
        self.done |= np.asarray(actions)[:, :, 0].mean(axis=1) > 0.2
        return frames, done | self.done[:, None], info


def loop(folder):
    """Sampling and updates. Episodes end at different times, groups are dropped and drawn anew."""
    policy, models = tiny.policy(), (tiny.autoencoder(), tiny.world_model())
    options = dict(iterations=3, horizon=16, seed=0, stage="x", refill=2, folder=folder / "loop")
    env = lambda seed: Judged(*models, seed=seed)
    return policy, optimize(policy, env, tiny.states(9), GRPO, **options)


def dies(folder):
    """The second process ends in the middle; the first one has to notice."""

    def loss(generator, rng, step):
        if step == 2 and parallel.rank() == 1:
            sys.exit(3)
        return model.weight.square().sum() * parallel.share(2), {}

    model = torch.nn.Linear(2, 2)
    return model, fit(model, loss, CONFIG, seed=0, name="x", folder=folder / "dies", shared=True)


def answers(module) -> torch.Tensor:
    """What a trained model computes from fixed inputs."""
    frames = torch.from_numpy(tiny.noise_frames(3, 4))
    with torch.no_grad():
        if hasattr(module, "denoiser"):
            draw = torch.Generator().manual_seed(0)
            state = module.init_state(torch.randn(3, 4, 8, 8, generator=draw))
            return module.next_frames(state, torch.from_numpy(tiny.random_actions(3, 8, 4)), draw)[
                0
            ]
        if hasattr(module, "threshold"):
            return module(frames, [tiny.RED] * 3)
        return module.logits(frames[:, 0], [tiny.RED] * 3)


def launch(arguments: list[str], processes: int, **options) -> list[subprocess.Popen]:
    """Python with `arguments` as so many processes of one thread each that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "OMP_NUM_THREADS": 1}
    names |= {"MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1", "TQDM_DISABLE": 1}
    tests = Path(__file__).resolve().parent
    names["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent)])
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | options
    started = []
    for rank in range(processes):
        own = names | {"RANK": rank, "LOCAL_RANK": rank}
        environment = os.environ | {key: str(value) for key, value in own.items()}
        started.append(subprocess.Popen([sys.executable, *arguments], env=environment, **options))
    return started


def main(folder: Path, cases: list[str]):
    torch.set_num_threads(1)
    groups = []
    atexit.register(lambda: [print("the group is left", file=sys.stderr) for g in groups if g()])
    parallel.start()
    groups.append(weakref.ref(dist.group.WORLD))
    for case in cases:
        torch.manual_seed(parallel.rank())  # weights that differ at first: the first one's count
        try:
            module, records = globals()[case](folder)
        except UserError as error:
            print(f"UserError: {error}", file=sys.stderr)
            sys.exit(1)
        out = folder / f"{case}-{parallel.rank()}"
        tensors = module.state_dict() | {"answers": answers(module.eval())}
        save_tensors(out.with_suffix(".safetensors"), tensors)
        write_json(out.with_suffix(".json"), json.loads(json.dumps(records)))
    parallel.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
