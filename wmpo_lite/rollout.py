"""One rollout for everything that offers the chunk-level contract: simulator, imagination, LIBERO,
arm.
"""

import numpy as np
import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.progress import progress
from wmpo_lite.trajectory import InitialStates, Trajectory


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
    chunk, generator, out = policy.config.chunk, torch.Generator().manual_seed(seed), []
    pieces = range(0, len(states), batch)
    for begin in progress(pieces, desc=desc, disable=desc is None or len(pieces) < 2):
        part = states[begin : begin + batch]
        current = env.reset(part)
        frames, tokens, log_probs, actions, done = [current[:, None]], [], [], [], []
        for step in range(0, horizon, chunk):
            chosen, log_p, acts = (
                x[:, : horizon - step]
                for x in policy.act(
                    torch.from_numpy(np.ascontiguousarray(current)),
                    env.instructions,
                    temperature,
                    generator,
                )
            )
            images, finished, _ = env.step_chunk(acts.cpu().numpy(), every_frame=every_frame)
            if not every_frame:
                images = np.concatenate(
                    [np.repeat(current[:, None], acts.shape[1] - 1, axis=1), images], axis=1
                )
            (
                frames.append(images),
                tokens.append(chosen),
                log_probs.append(log_p),
                actions.append(acts),
                done.append(finished),
            )
            current = images[:, -1]
        frames, done = np.concatenate(frames, axis=1), np.concatenate(done, axis=1)
        tokens, log_probs, actions = (
            torch.cat(x, dim=1).cpu().numpy() for x in (tokens, log_probs, actions)
        )
        for b in range(len(part)):
            success = bool(done[b].any())
            out.append(
                Trajectory(
                    frames=frames[b],
                    actions=actions[b].astype(np.float32),
                    tokens=tokens[b],
                    log_probs=log_probs[b].astype(np.float32),
                    success=success,
                    finish_step=int(done[b].argmax()) + 1 if success else horizon,
                    instruction=env.instructions[b],
                    initial_state=part.states[b],
                    split=part.split,
                    index=int(part.indices[b]),
                    group=-1 if groups is None else int(groups[begin + b]),
                    chunk=chunk,
                )
            )
    return out


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
            frames.append(images), done.append(finished)
        (
            all_frames.append(np.concatenate(frames, axis=1)),
            all_done.append(np.concatenate(done, axis=1)),
        )
    return np.concatenate(all_frames), np.concatenate(all_done)
