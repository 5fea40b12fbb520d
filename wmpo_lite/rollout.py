"""One rollout for everything that offers the chunk-level contract: simulator, imagination, LIBERO,
arm.
"""

import numpy as np
import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.progress import progress
from wmpo_lite.trajectory import InitialStates, Trajectory, outcomes


def rollout(
    policy,
    env,
    states: InitialStates,
    *,
    horizon: int,
    seed: int = 0,
    temperature: float | None = None,
    groups=None,
    batch: int = 128,
    every_frame: bool = True,
    desc: str | None = None,
) -> list[Trajectory]:
    """Run `policy` once from every initial state and return one Trajectory each, in order.

    temperature: sampling temperature, or None for the greedy policy. seed: of the action sampling
    (the same in any environment for the same `batch`). horizon: control steps, 1 or more; a last
    chunk that reaches beyond it is carried out up to there, as `replay` does. groups: (B,) group
    number of each state or None. every_frame=False keeps only the frames at chunk ends (frames
    between repeat the older one): enough for a policy and for its update, and several times faster
    where frames have to be rendered.
    """
    if horizon < 1 or batch < 1:
        raise UserError(f"horizon is {horizon} and batch {batch}; expected 1 or more of both")
    if groups is not None and len(groups) != len(states):
        raise UserError(
            f"there are {len(groups)} group numbers for {len(states)} initial states; give one for"
            " each"
        )
    policy.check_environment(env)
    policy.eval()
    generator, found = torch.Generator().manual_seed(seed), []
    pieces = range(0, len(states), batch)
    for begin in progress(pieces, desc=desc, disable=desc is None or len(pieces) < 2):
        part = states[begin : begin + batch]
        frames, done, sampled = _act_out(
            policy, env, part, horizon, temperature, generator, every_frame
        )
        success, finish_step = outcomes(done)
        for b in range(len(part)):
            found.append(
                Trajectory(
                    frames=frames[b],
                    **{name: array[b] for name, array in sampled.items()},
                    success=success[b],
                    finish_step=finish_step[b],
                    instruction=env.instructions[b],
                    initial_state=part.states[b],
                    split=part.split,
                    index=int(part.indices[b]),
                    group=-1 if groups is None else int(groups[begin + b]),
                    chunk=policy.config.chunk,
                )
            )
    return found


def _act_out(
    policy, env, states: InitialStates, horizon: int, temperature, generator, every_frame: bool
) -> tuple[np.ndarray, np.ndarray, dict]:
    """A batch of episodes: frames (B, T + 1, H, W, 3), done (B, T), what was sampled (B, T, D)."""
    current = env.reset(states)
    frames, done = [current[:, None]], []
    sampled = {"tokens": [], "log_probs": [], "actions": []}
    for step in range(0, horizon, policy.config.chunk):
        newest = torch.from_numpy(np.ascontiguousarray(current))
        chosen = policy.act(newest, env.instructions, temperature, generator)
        chosen = [array[:, : horizon - step].cpu().numpy() for array in chosen]
        for arrays, array in zip(sampled.values(), chosen):
            arrays.append(array)
        images, finished, _ = env.step_chunk(chosen[-1], every_frame=every_frame)
        if not every_frame:  # those between repeat the older one
            between = np.repeat(current[:, None], chosen[-1].shape[1] - 1, axis=1)
            images = np.concatenate([between, images], axis=1)
        frames.append(images)
        done.append(finished)
        current = images[:, -1]
    sampled = {name: np.concatenate(arrays, axis=1) for name, arrays in sampled.items()}
    return np.concatenate(frames, axis=1), np.concatenate(done, axis=1), sampled


def replay(
    env,
    trajectories: list[Trajectory],
    states: InitialStates,
    batch: int = 128,
    every_frame: bool = True,
):
    """Execute recorded actions again from `states`: frames uint8 (B, T + 1, H, W, 3), or only the
    first and the chunks' last with every_frame=False, and done bool (B, T). The
    imagined-versus-real test.

    UserError unless there is one trajectory for each state, all of one length and number of action
    dimensions. They are carried out in chunks of the first one's.
    """
    if not len(states) or len(trajectories) != len(states):
        raise UserError(
            f"there are {len(trajectories)} trajectories to replay and {len(states)} initial"
            " states; give one state for each trajectory"
        )
    shapes = {t.actions.shape for t in trajectories}
    if len(shapes) > 1:
        raise UserError(
            f"trajectories differ in (steps, action dimensions): {sorted(shapes)}; replay those of"
            " one kind at a time"
        )
    all_frames, all_done = [], []
    chunk = trajectories[0].chunk
    for begin in range(0, len(states), batch):
        actions = np.stack([t.actions for t in trajectories[begin : begin + batch]])
        frames, done = [env.reset(states[begin : begin + batch])[:, None]], []
        for s in range(0, actions.shape[1], chunk):
            images, finished, _ = env.step_chunk(actions[:, s : s + chunk], every_frame=every_frame)
            frames.append(images)
            done.append(finished)
        all_frames.append(np.concatenate(frames, axis=1))
        all_done.append(np.concatenate(done, axis=1))
    return np.concatenate(all_frames), np.concatenate(all_done)
