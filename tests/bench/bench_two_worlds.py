"""GRPO where what the policy sees and what decides on success come from different worlds: which of the two keeps it from learning?

    python tests/bench/bench_two_worlds.py --task square --see imagined --judge simulator --iterations 7 14 --folder runs/two_worlds

Both worlds execute the same actions from the same first frames. --see: the simulator's pictures, the same as the autoencoder gives them back ('recoded'),
imagined ones, or what the world model would make of it if it knew where everything goes ('told'); --judge: the simulator, or the scene that the imagined picture is painted from. Starts are the P rollouts' ones, evaluation is on validation states.
"""
import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from wmpo_lite.envs.imagined import ImaginedEnv
from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import labels, stack_labels
from wmpo_lite.envs.tasks import get_task, with_other_sentence
from wmpo_lite.evaluate import success_rate
from wmpo_lite.optimise import optimise
from wmpo_lite.policy import load_policy
from wmpo_lite.pretrain_reward import fulfilled
from wmpo_lite.rollout import rollout
from wmpo_lite.train import set_threads
from wmpo_lite.trajectory import InitialStates
from wmpo_lite.workspace import ASSETS, Run
from wmpo_lite.world_model import Autoencoder, WorldModel


class TwoWorlds:
    """The simulator and imagination side by side, behind the two calls of an environment."""

    def __init__(self, simulator, autoencoder, world_model, see: str, judge: str, seed: int, doubt: float):
        self.simulator, self.autoencoder, self.see, self.judge = simulator, autoencoder, see, judge
        self.imagined = ImaginedEnv(autoencoder, world_model, stop=False, seed=seed, steps=1, doubt=doubt)
        self.action_dim, self.action_names = simulator.action_dim, simulator.action_names

    def reset(self, states):
        first = self.simulator.reset(states)
        self.imagined.reset(InitialStates(states=states.states, frames=first, instructions=states.instructions, split=states.split, indices=states.indices))
        self.instructions, self.done = list(states.instructions), np.zeros(len(states), bool)
        self.first = self.autoencoder.encode_uint8(torch.from_numpy(first))
        self.context, self.generator = self.first[:, None].repeat(1, self.imagined.world_model.config.context, 1, 1, 1), torch.Generator().manual_seed(1)
        return first

    @torch.no_grad()
    def _told(self, actions):
        """The simulator's chunk, painted from its own labels: the newest frame (B, 1, H, W, 3) and done (B, K)."""
        seen, done = [], []
        for k in range(actions.shape[1]):
            done.append(self.simulator.step_chunk(actions[:, k: k + 1], every_frame=None)[1]), seen.append(labels(self.simulator))
        seen, model = stack_labels(seen), self.imagined.world_model
        present = torch.from_numpy(seen["present"].astype(np.float32))[:, None].expand(-1, actions.shape[1], -1)
        scene = model.draft.scene(torch.from_numpy(seen["points"]), present, torch.from_numpy(seen["opening"]))
        draft = model.draft.paint(self.first, scene), torch.cat([scene.points.flatten(2), scene.present, scene.opening[..., None]], dim=-1)
        noise = torch.randn(draft[0].shape, generator=self.generator)
        latents = model.clean(noise, torch.ones(len(noise)), self.context, torch.as_tensor(actions, dtype=torch.float32).clamp(-1, 1), draft)
        self.context = torch.cat([self.context, latents], dim=1)[:, -self.context.shape[1]:]
        return self.autoencoder.decode_uint8(latents[:, -1:]).numpy(), np.concatenate(done, axis=1)

    def step_chunk(self, actions, every_frame=False):
        if self.see == "told":
            return *self._told(np.asarray(actions)), {}
        frames, done, info = self.simulator.step_chunk(actions, every_frame=None if self.see == "imagined" else False)
        if self.see == "imagined" or self.judge == "scene":
            painted, done_there, _ = self.imagined.step_chunk(actions, every_frame=False)
            frames = painted if self.see == "imagined" else frames
        if self.see == "recoded":
            frames = self.autoencoder.recode(frames)
        if self.judge == "scene":
            points, opening = self.imagined.world_model.draft.scene_of(self.imagined.past)
            self.done |= fulfilled(self.simulator.task, points.numpy(), opening.numpy(), self.instructions)
            done = done_there
            done[:, -1] = self.done
        return frames, done, info


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="square"), parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--see", choices=("simulator", "recoded", "imagined", "told"), default="imagined")
    parser.add_argument("--judge", choices=("simulator", "scene"), default="simulator")
    parser.add_argument("--iterations", type=int, nargs="+", default=[7]), parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group-size", type=int, default=None), parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--doubt", type=float, default=0.0), parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    set_threads()
    task, home = get_task(options.task), options.assets / options.task
    simulator, settings = TabletopEnv(task), Run(task=options.task).settings()
    config = dataclasses.replace(settings.wmpo_update(), group_size=options.group_size or settings.group_size)
    policy, autoencoder, world_model = load_policy(home / "policy"), Autoencoder.load(home / "autoencoder"), WorldModel.load(home / "world_model")
    own = initial_states(task, "rollouts", 10_000 * options.seed + np.arange(128))
    starts, held_out = InitialStates.concat([own, with_other_sentence(task, own)]), initial_states(task, "validation", 4000 + np.arange(options.n))
    world = lambda seed: TwoWorlds(simulator, autoencoder, world_model, options.see, options.judge, seed, options.doubt)  # noqa: E731

    def report(after):
        found = rollout(policy, simulator, held_out, horizon=task.horizon, every_frame=False, batch=64)
        print(f"sees {options.see}, judged by {options.judge}, groups of {config.group_size}: after {after} iterations {success_rate(np.array([t.success for t in found]))}", flush=True)

    if options.see == "told" and options.judge == "scene":
        parser.error("--see told paints what the simulator does, so --judge is the simulator")
    if len(options.iterations) > 1 and options.folder is None:
        parser.error("several numbers of --iterations need --folder, where training is kept in between")
    report(0)
    for count in options.iterations:
        records = optimise(policy, world, starts, config, iterations=count, horizon=task.horizon, seed=options.seed, stage="two worlds", folder=options.folder,
                           refill=0, freeze_vision=settings.freeze_vision, tolerate_silence=True)
        report(count)
        print("  sampled success", [round(r["success"], 2) for r in records[-7:]], flush=True)
    simulator.close()


if __name__ == "__main__":
    main()
