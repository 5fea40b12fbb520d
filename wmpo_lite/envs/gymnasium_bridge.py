"""Gymnasium both ways: the table-top as its environments, and its environments behind the kit's
contract.

    from wmpo_lite.envs import gymnasium_bridge  # registers wmpo_lite/place-v0, .../square-v0
    envs = gymnasium.make_vec("wmpo_lite/place-v0", num_envs=4)

As made there, `envs` autoresets in the *next* step (`envs.metadata["autoreset_mode"]`): the
observation that ends an episode is the one returned with it, and the step after it ignores its
action, gives reward 0 and returns the first observation of another episode. Leave that step out of
a buffer, or ask for `vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}`, which puts the
last observation into `infos["final_obs"]`.
"""

from collections.abc import Callable

import gymnasium
import numpy as np
from PIL import Image

from wmpo_lite.actions import check_actions
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop import tasks
from wmpo_lite.envs.tabletop.env import (
    ACTION_DIM,
    CONTROL_PERIOD,
    SPLITS,
    TabletopEnv,
    check_numbers,
)
from wmpo_lite.envs.tabletop.env import initial_states as draw
from wmpo_lite.trajectory import InitialStates

SEEDS = 2**31


class TabletopGym(gymnasium.Env):
    """One episode of a table-top task at a time. Observations are pictures, uint8 (size, size, 3);
    actions (4,) in [-1, 1]; the instruction is `info["instruction"]`.

    A step that succeeds gives reward 1 and terminates the episode; the task's horizon truncates it.
    `reset(seed=s)` draws a state of `split` by s, `reset(options={"index": i})` takes number i.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / CONTROL_PERIOD)}

    def __init__(
        self,
        task: str = "place",
        size: int = 64,
        split: str = "rollouts",
        render_mode: str | None = "rgb_array",
    ):
        self.world, self.split = TabletopEnv(tasks.get_task(task), size=size, threads=1), split
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(SEEDS))
        index = (options or {}).get("index", drawn)
        self._frame = self.world.reset(draw(self.world.task, self.split, [index]))[0]
        self._steps = 0
        return self._frame, {"instruction": self.world.instructions[0], "index": index}

    def step(self, action):
        frames, done, _ = self.world.step_chunk(np.asarray(action)[None, None])
        self._frame, success = frames[0, 0], bool(done[0, 0])
        self._steps += 1
        late = self._steps >= self.world.task.horizon
        info = {"instruction": self.world.instructions[0], "is_success": success}
        return self._frame, float(success), success, late and not success, info

    def render(self):
        return self._frame

    def close(self):
        self.world.close()


class FromGymnasium:
    """Environments of gymnasium behind the contract of `wmpo_lite.env`, one for each episode.

    make: makes one of them, with render_mode="rgb_array" and a Box of actions that has bounds:
    [-1, 1] becomes its range. instruction: what the task is, for the policy. action_names: of its
    D numbers. size: pixels of the square frames, averaged from what `picture(env, observation)`
    shows, by default `env.render()`. start(env, seed): begins an episode, by default
    `env.reset(seed=seed)`, which not every environment heeds (metaworld starts what `set_task`
    says). success(terminated, info): by default what info calls `is_success` or `success`, else
    whether the episode has terminated.

    An initial state is a seed. An episode that has ended stays at its last frame, which is the one
    that ended it, until the next `reset`.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        instruction: str,
        action_names: tuple[str, ...],
        *,
        size: int = 64,
        picture: Callable = lambda env, observation: env.render(),
        start: Callable = lambda env, seed: env.reset(seed=seed),
        success: Callable = lambda terminated, info: info.get(
            "is_success", info.get("success", terminated)
        ),
    ):
        self.make, self.instruction, self.size = make, instruction, size
        self.picture, self.start, self.success = picture, start, success
        self._envs, self._frames, self.instructions = [make()], None, []
        box = self._envs[0].action_space
        if not isinstance(box, gymnasium.spaces.Box) or not box.is_bounded() or box.shape == ():
            self.close()
            raise UserError(
                f"the environment's actions are {box}; expected a Box with bounds, such as"
                " Box(-1, 1, (4,))"
            )
        self._low, self._high = box.low.ravel().astype(float), box.high.ravel().astype(float)
        self._box, self.action_dim, self.action_names = box, len(self._low), tuple(action_names)
        if len(self.action_names) != self.action_dim:
            self.close()
            raise UserError(
                f"there are {len(self.action_names)} action_names for the {self.action_dim} numbers"
                " of an action; name each"
            )

    def initial_states(self, split: str, indices) -> InitialStates:
        """States number `indices` of a named split of the table-top; splits share none."""
        indices = check_numbers(split, indices)
        # Splits lie one behind the other, so that no two numbers give one seed.
        seeds = SPLITS[split] * (SEEDS // len(SPLITS)) + indices
        words = (self.instruction,) * len(indices)
        return InitialStates(seeds[:, None].astype(np.float64), None, words, split, indices)

    def reset(self, states: InitialStates) -> np.ndarray:
        if states.states.shape[1] != 1:
            raise UserError(
                "an initial state of a gymnasium environment is one seed; got"
                f" {states.states.shape[1]} numbers: they are of another environment"
            )
        while len(self._envs) < len(states):
            self._envs.append(self.make())
        self.instructions = list(states.instructions)
        self._over, self._done = (np.zeros(len(states), dtype=bool) for _ in range(2))
        begun = [self.start(e, int(s)) for e, s in zip(self._envs, states.states[:, 0])]
        self._frames = np.stack([self._frame(b, begun[b][0]) for b in range(len(states))])
        return self._frames.copy()

    def step_chunk(self, actions: np.ndarray, every_frame: bool = True):
        """See `Env`. info holds `ended` (B, K): from which step on an episode stands still."""
        batch = None if self._frames is None else len(self._frames)
        actions = check_actions(actions, batch, self.action_dim).clip(-1, 1)
        actions = self._low + (actions + 1) / 2 * (self._high - self._low)
        frames, done, ended = [], [], []
        for chosen in np.moveaxis(actions, 1, 0):  # (B, D)
            for b in np.flatnonzero(~self._over):
                action = chosen[b].reshape(self._box.shape).astype(self._box.dtype)
                seen, _, terminated, truncated, info = self._envs[b].step(action)
                self._frames[b] = self._frame(b, seen)
                self._done[b] |= bool(self.success(terminated, info))
                self._over[b] = terminated or truncated
            frames.append(self._frames.copy())
            done.append(self._done.copy())
            ended.append(self._over.copy())
        frames = np.stack(frames if every_frame else frames[-1:], axis=1)
        return frames, np.stack(done, axis=1), {"ended": np.stack(ended, axis=1)}

    def _frame(self, b: int, observation) -> np.ndarray:
        picture = self.picture(self._envs[b], observation)
        if getattr(picture, "dtype", None) != np.uint8 or np.shape(picture)[2:] != (3,):
            said = f"{getattr(picture, 'dtype', type(picture).__name__)} {np.shape(picture)}"
            raise UserError(
                f"the environment shows {said}; expected uint8 (H, W, 3): make it with"
                ' render_mode="rgb_array", or give `picture`'
            )
        if picture.shape[0] != picture.shape[1]:
            raise UserError(
                f"the environment's pictures are {picture.shape[1]} x {picture.shape[0]}; expected"
                " square ones: cut them in `picture`"
            )
        side = (self.size, self.size)
        return np.asarray(Image.fromarray(picture).resize(side, Image.Resampling.BOX))

    def close(self):
        while self._envs:
            self._envs.pop().close()


for _name in tasks.NAMES:
    gymnasium.register(
        f"wmpo_lite/{_name}-v0", entry_point=f"{__name__}:TabletopGym", kwargs={"task": _name}
    )
