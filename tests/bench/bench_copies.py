"""How often a policy succeeds in the simulator when it is shown an autoencoder's copies of frames.

    python tests/bench/bench_copies.py place assets/tabletop/autoencoder assets/place/policy [256]

Imagination can show a policy nothing better than such copies. Where it succeeds much less often on
them than on the frames themselves, the autoencoder (or a policy that has never seen a copy) is in
the way, and no world model will help. Greedy, on validation states.
"""

import sys
from pathlib import Path

import numpy as np

from wmpo_lite.autoencoder import Autoencoder
from wmpo_lite.envs.splits import numbers
from wmpo_lite.envs.tasks import get_task, initial_states, make_env
from wmpo_lite.evaluate import success_rate
from wmpo_lite.policy import Policy
from wmpo_lite.rollout import rollout


class Copies:
    """The environment `env`, seen through an autoencoder."""

    def __init__(self, env, autoencoder: Autoencoder):
        self.env, self.autoencoder = env, autoencoder

    def __getattr__(self, name):
        return getattr(self.env, name)

    def reset(self, states):
        return self.autoencoder.reconstruct(self.env.reset(states))

    def step_chunk(self, actions, **options):
        frames, done, info = self.env.step_chunk(actions, **options)
        return self.autoencoder.reconstruct(frames), done, info


def main(name: str, autoencoder: str, policy: str, n: str = "256") -> None:
    """Print the rates on true frames and on copies."""
    task = get_task(name)
    env = make_env(task)
    states = initial_states(task, env, *numbers("tuning", int(n)))
    copies = Copies(env, Autoencoder.load(Path(autoencoder)).eval())
    actor = Policy.load(Path(policy))
    for shown, seen in (("true frames", env), ("copies", copies)):
        found = rollout(actor, seen, states, horizon=task.horizon, every_frame=False)
        print(f"{shown}: {success_rate(np.array([t.success for t in found]))}", flush=True)
    env.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
