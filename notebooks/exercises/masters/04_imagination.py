# %% [markdown]
# # Exercises 04 - Imagined rollouts
#
# In this kit the imagined environment *is* an environment: simulator, imagination and arm
# offer the same two calls, and one loop serves them all. You write that loop, and the
# number that says how far imagination can be trusted. After notebook
# `04_imagined_rollouts`. Time: about two hours.

# %%
import numpy as np
import torch

from wmpo_lite.course import check
from wmpo_lite.env import Env
from wmpo_lite.policy import TokenPolicy
from wmpo_lite.trajectory import InitialStates

# %% [markdown]
# ## 04.rollout - One loop for every environment
#
# ```python
# frames = env.reset(states)                    # uint8 (B, H, W, 3)
# frames, done, info = env.step_chunk(actions)  # (B, K, D) -> (B, K, H, W, 3), (B, K)
# tokens, log_probs, actions = policy.act(
#     frames, env.instructions, temperature, generator)
# ```
#
# The policy chooses a chunk of `policy.config.chunk` actions from the *newest* frame (a
# tensor) and a generator. `done` stays True once an episode has succeeded. Action s leads
# to frame s + 1, and `finish_step` is the first frame with success, or the horizon
# without. If the horizon is no multiple of the chunk, carry out only what still fits.
#
# Return what GRPO needs. The check compares bit by bit, so draw all noise from one
# generator, `torch.Generator().manual_seed(seed)`.
#
# <details><summary>Hint 1</summary>
#
# `for step in range(0, horizon, chunk)`; `tokens[:, : horizon - step]` cuts the last
# chunk and leaves the others as they are. Cut actions, too.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `done.argmax(axis=1)` is the first step that ended in success. Which frame is that?
#
# </details>


# %%
def roll_out(
    policy: TokenPolicy,
    env: Env,
    states: InitialStates,
    horizon: int,
    temperature: float,
    seed: int,
) -> tuple:
    """Arrays: frames uint8 (B, horizon + 1, H, W, 3), tokens (B, horizon, D), success
    bool (B,), finish_step (B,)."""
    # BEGIN SOLUTION
    generator = torch.Generator().manual_seed(seed)
    current = env.reset(states)
    frames, tokens, done = [current[:, None]], [], []
    for step in range(0, horizon, policy.config.chunk):
        chosen, _, actions = policy.act(
            torch.from_numpy(current), env.instructions, temperature, generator
        )
        left = horizon - step
        images, ended, _ = env.step_chunk(actions[:, :left].numpy())
        frames.append(images)
        tokens.append(chosen[:, :left].numpy())
        done.append(ended)
        current = images[:, -1]
    done = np.concatenate(done, axis=1)
    success = done.any(axis=1)
    finish_step = np.where(success, done.argmax(axis=1) + 1, horizon)
    frames, tokens = np.concatenate(frames, axis=1), np.concatenate(tokens, axis=1)
    return frames, tokens, success, finish_step
    # END SOLUTION


# %%
check("04.rollout")


# %% wrong 04.rollout: always sees the first frame
def roll_out(policy, env, states, horizon, temperature, seed):
    generator, first = torch.Generator().manual_seed(seed), env.reset(states)
    frames, tokens, done = [first[:, None]], [], []
    for step in range(0, horizon, policy.config.chunk):
        chosen, _, actions = policy.act(
            torch.from_numpy(first), env.instructions, temperature, generator
        )
        images, ended, _ = env.step_chunk(actions[:, : horizon - step].numpy())
        frames.append(images), done.append(ended)
        tokens.append(chosen[:, : horizon - step].numpy())
    frames, tokens, done = (np.concatenate(x, 1) for x in (frames, tokens, done))
    success = done.any(1)
    return frames, tokens, success, np.where(success, done.argmax(1) + 1, horizon)


# %% wrong 04.rollout: begin the generator anew
def roll_out(policy, env, states, horizon, temperature, seed):
    current = env.reset(states)
    frames, tokens, done = [current[:, None]], [], []
    for step in range(0, horizon, policy.config.chunk):
        generator = torch.Generator().manual_seed(seed)
        chosen, _, actions = policy.act(
            torch.from_numpy(current), env.instructions, temperature, generator
        )
        images, ended, _ = env.step_chunk(actions[:, : horizon - step].numpy())
        frames.append(images), done.append(ended)
        tokens.append(chosen[:, : horizon - step].numpy())
        current = images[:, -1]
    frames, tokens, done = (np.concatenate(x, 1) for x in (frames, tokens, done))
    success = done.any(1)
    return frames, tokens, success, np.where(success, done.argmax(1) + 1, horizon)


# %% wrong 04.rollout: finish_step is one too small
def roll_out(policy, env, states, horizon, temperature, seed):
    generator, current = torch.Generator().manual_seed(seed), env.reset(states)
    frames, tokens, done = [current[:, None]], [], []
    for step in range(0, horizon, policy.config.chunk):
        chosen, _, actions = policy.act(
            torch.from_numpy(current), env.instructions, temperature, generator
        )
        images, ended, _ = env.step_chunk(actions[:, : horizon - step].numpy())
        frames.append(images), done.append(ended)
        tokens.append(chosen[:, : horizon - step].numpy())
        current = images[:, -1]
    frames, tokens, done = (np.concatenate(x, 1) for x in (frames, tokens, done))
    success = done.any(1)
    return frames, tokens, success, np.where(success, done.argmax(1), horizon)


# %% wrong 04.rollout: runs past the horizon
def roll_out(policy, env, states, horizon, temperature, seed):
    generator, current = torch.Generator().manual_seed(seed), env.reset(states)
    frames, tokens, done = [current[:, None]], [], []
    while len(done) * policy.config.chunk < horizon:
        chosen, _, actions = policy.act(
            torch.from_numpy(current), env.instructions, temperature, generator
        )
        images, ended, _ = env.step_chunk(actions.numpy())
        frames.append(images), done.append(ended), tokens.append(chosen.numpy())
        current = images[:, -1]
    frames, tokens, done = (np.concatenate(x, 1) for x in (frames, tokens, done))
    success = done.any(1)
    return frames, tokens, success, np.where(success, done.argmax(1) + 1, done.shape[1])


# %% [markdown]
# ## 04.auc - Does imagination know the outcome?
#
# Replay real episodes in imagination, let the reward model score the result, and ask: how
# often does a real success score higher than a real failure? Over all pairs of one
# success and one failure, that share is the *area under the ROC curve* (AUC). A tie
# counts one half. 1 is perfect, 0.5 is chance, and no threshold is needed.
#
# Ties are no rarity: a reward model that is sure says 1.0 often.
#
# *Before you write:* what is the AUC of a model that gives everything the same score?
#
# <details><summary>Hint</summary>
#
# `scores[real][:, None] > scores[~real][None]` compares all pairs at once.
#
# </details>


# %%
def auc(real: np.ndarray, scores: np.ndarray) -> float:
    """Real outcomes bool (N,) and scores (N,) -> the AUC."""
    # BEGIN SOLUTION
    good, bad = scores[real][:, None], scores[~real][None]
    return float(((good > bad) + 0.5 * (good == bad)).mean())
    # END SOLUTION


# %%
check("04.auc")


# %% wrong 04.auc: you count it as a failure
def auc(real, scores):
    return float((scores[real][:, None] > scores[~real]).mean())


# %% wrong 04.auc: you count it in full
def auc(real, scores):
    return float((scores[real][:, None] >= scores[~real]).mean())


# %% wrong 04.auc: accuracy at a threshold
def auc(real, scores):
    return np.mean((scores >= 0.5) == real)


# %% [markdown]
# **Open question (5 points).** The AUC of an imagination is 0.88 over all rollouts, but
# 0.65 among rollouts that share a first frame. Which of the two matters for GRPO, and
# why can they differ?
