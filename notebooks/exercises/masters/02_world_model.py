# %% [markdown]
# # Exercises 02 - The world model
#
# A world model answers what the camera would show if the robot did this. After notebook
# `02_world_model` you write its sampler, one half of its transformer block and the
# cutting of its training windows, and you find a bug that many people have had.
# Time: about three hours.

# %%
from collections.abc import Callable

import torch
import torch.nn.functional as F

from wmpo_lite.course import check

# %% [markdown]
# ## 02.euler - From noise to a frame
#
# Rectified flow moves a point from data (t = 0) to noise (t = 1) on a straight line,
# $x_t = (1 - t)\,x + t\,\epsilon$. The network says what the clean $x$ is, $\hat x(x_t,
# t)$; the velocity follows, $v = (x_t - \hat x) / t$. Sampling walks back: with the times
# $1 = t_0 > t_1 > \dots > t_n = 0$, evenly spaced,
#
# $$x \leftarrow x + (t_{i+1} - t_i)\, \frac{x - \hat x(x, t_i)}{t_i}.$$
#
# *Before you write:* what does a single step return?
#
# <details><summary>Hint 1</summary>
#
# `torch.linspace(1, 0, steps + 1)` are the times. `zip(grid[:-1], grid[1:])` are pairs of
# neighbors.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `predict_x0` wants one time for each sample: `now.expand(len(x))`.
#
# </details>


# %%
def euler(predict_x0: Callable, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Noise (B, ...) -> data (B, ...). predict_x0(x_t, t) -> x, with t (B,)."""
    # BEGIN SOLUTION
    x, grid = noise, torch.linspace(1, 0, steps + 1)
    for now, then in zip(grid[:-1], grid[1:]):
        velocity = (x - predict_x0(x, now.expand(len(x)))) / now
        x = x + (then - now) * velocity
    return x
    # END SOLUTION


# %%
check("02.euler")


# %% wrong 02.euler: walk away from the data
def euler(predict_x0, noise, steps):
    x, grid = noise, torch.linspace(1, 0, steps + 1)
    for now, then in zip(grid[:-1], grid[1:]):
        x = x + (now - then) * (x - predict_x0(x, now.expand(len(x)))) / now
    return x


# %% wrong 02.euler: time grid stops before 0
def euler(predict_x0, noise, steps):
    x, grid = noise, torch.linspace(1, 1 / (steps + 1), steps + 1)
    for now, then in zip(grid[:-1], grid[1:]):
        x = x + (then - now) * (x - predict_x0(x, now.expand(len(x)))) / now
    return x


# %% wrong 02.euler: the time where the step ends
def euler(predict_x0, noise, steps):
    x, grid = noise, torch.linspace(1, 0, steps + 1)
    for now, then in zip(grid[:-1], grid[1:]):
        x = x + (then - now) * (x - predict_x0(x, then.expand(len(x)))) / now
    return x


# %% wrong 02.euler: forgot to divide by t
def euler(predict_x0, noise, steps):
    x, grid = noise, torch.linspace(1, 0, steps + 1)
    for now, then in zip(grid[:-1], grid[1:]):
        x = x + (then - now) * (x - predict_x0(x, now.expand(len(x))))
    return x


# %% [markdown]
# ## 02.adaln - How a block listens to time and action
#
# In the paper's denoiser each frame has its own noise level and its own action. They
# reach a block through *adaptive layer norm* (DiT): a linear layer turns the frame's
# condition into shift, scale and gate, and the block's MLP becomes
#
# $$x + \mathrm{gate} \cdot \mathrm{MLP}\big(\mathrm{LN}(x) \cdot (1 + \mathrm{scale}) +
# \mathrm{shift}\big).$$
#
# LN is layer norm over the last dimension, without weights of its own. x holds T frames
# of N tokens each; all tokens of a frame share the frame's condition.
#
# *Before you write:* the layer that makes shift, scale and gate begins at zero. What does
# a new block do to x?
#
# <details><summary>Hint 1</summary>
#
# `F.layer_norm(x, x.shape[-1:])` normalizes the last dimension.
#
# </details>
# <details><summary>Hint 2</summary>
#
# shift is (B, T, W) and x is (B, T, N, W): put the new dimension in the right place, or
# broadcasting puts it in the wrong one, in silence where T = N.
#
# </details>


# %%
def adaln_mlp(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    gate: torch.Tensor,
    mlp: Callable,
) -> torch.Tensor:
    """x (B, T, N, W); shift, scale, gate (B, T, W); mlp: a function -> (B, T, N, W)."""
    # BEGIN SOLUTION
    shift, scale, gate = (part[:, :, None] for part in (shift, scale, gate))
    h = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
    return x + gate * mlp(h)
    # END SOLUTION


# %%
check("02.adaln")


# %% wrong 02.adaln: multiplies by (1 + scale)
def adaln_mlp(x, shift, scale, gate, mlp):
    shift, scale, gate = (part[:, :, None] for part in (shift, scale, gate))
    return x + gate * mlp(F.layer_norm(x, x.shape[-1:]) * scale + shift)


# %% wrong 02.adaln: x is not normalized
def adaln_mlp(x, shift, scale, gate, mlp):
    shift, scale, gate = (part[:, :, None] for part in (shift, scale, gate))
    return x + gate * mlp(x * (1 + scale) + shift)


# %% wrong 02.adaln: the residual is missing
def adaln_mlp(x, shift, scale, gate, mlp):
    shift, scale, gate = (part.unsqueeze(2) for part in (shift, scale, gate))
    return gate * mlp(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)


# %% wrong 02.adaln: each *frame* has its own condition
def adaln_mlp(x, shift, scale, gate, mlp):
    shift, scale, gate = (part[:, None] for part in (shift, scale, gate))
    return x + gate * mlp(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)


# %% [markdown]
# ## 02.windows - What the denoiser is shown
#
# A training window is cut around the *newest* known frame, number `newest`. It holds
#
# - the newest `c` frames, oldest first; before the episode's start the **first frame is
#   repeated**, as imagination does when it begins;
# - the `c - 1` actions that led from each of these frames to the next; before the start
#   nothing moved, so they are **zero**;
# - the `k` frames after the newest one, and the `k` actions that lead to them.
#
# Action number s leads from frame s to frame s + 1.
#
# *Before you write:* write down all numbers for newest = 1, c = 4, k = 2.
#
# <details><summary>Hint 1</summary>
#
# `torch.arange(newest - c + 1, newest + 1)` are the numbers of the context frames, some
# of them negative; `clamp(min=0)` repeats the first frame.
#
# </details>
# <details><summary>Hint 2</summary>
#
# The action that led from context frame number s to the next one is action s. It is zero
# where s is negative: multiply by `(steps >= 0)[:, None]`.
#
# </details>


# %%
def cut_window(
    frames: torch.Tensor, actions: torch.Tensor, newest: int, c: int, k: int
) -> tuple:
    """frames (T + 1, F), actions (T, D) -> context frames (c, F), the actions between
    them (c - 1, D), next frames (k, F), the actions towards them (k, D)."""
    # BEGIN SOLUTION
    numbers = torch.arange(newest - c + 1, newest + 1)
    steps = numbers[:-1]
    between = actions[steps.clamp(min=0)] * (steps >= 0)[:, None]
    after = torch.arange(newest, newest + k)
    return frames[numbers.clamp(min=0)], between, frames[after + 1], actions[after]
    # END SOLUTION


# %%
check("02.windows")


# %% wrong 02.windows: not zeros
def cut_window(frames, actions, newest, c, k):
    padded = torch.cat([torch.zeros(c - 1, frames.shape[1]), frames])
    between = torch.cat([torch.zeros(c - 1, actions.shape[1]), actions])
    next_frames = frames[newest + 1 : newest + 1 + k]
    past = padded[newest : newest + c], between[newest : newest + c - 1]
    return *past, next_frames, actions[newest : newest + k]


# %% wrong 02.windows: not the first action
def cut_window(frames, actions, newest, c, k):
    at = torch.arange(newest - c + 1, newest + 1).clamp(min=0)
    steps = torch.arange(newest - c + 1, newest).clamp(min=0)
    after = torch.arange(newest, newest + k)
    return frames[at], actions[steps], frames[after + 1], actions[after]


# %% wrong 02.windows: begin one later
def cut_window(frames, actions, newest, c, k):
    at = torch.arange(newest - c + 1, newest + 1)
    between = actions[at[:-1].clamp(min=0)] * (at[:-1] >= 0)[:, None]
    after = torch.arange(newest, newest + k)
    return frames[at.clamp(min=0)], between, frames[after], actions[after]


# %% [markdown]
# ## 02.off_by_one - Find the bug
#
# The function below makes training pairs for a world model: a frame, an action and the
# frame after it, for all steps of all episodes. A model trained on its pairs has a small
# loss and imagines smooth videos, yet its arm always moves one step too late, and under
# wrong actions it hardly changes. Find the bug and repair it. Nothing else about the
# function is wrong.
#
# The kit's file reader meets the same question with other people's recordings, and
# decides it by measuring which action explains which motion.
#
# <details><summary>Hint 1</summary>
#
# Write down the first pair for one episode with frames 0, 1, 2, 3 and actions a0, a1, a2.
#
# </details>
# <details><summary>Hint 2</summary>
#
# An episode of T actions has T + 1 frames and T pairs. How many does the function make?
#
# </details>


# %%
def training_pairs(frames: torch.Tensor, actions: torch.Tensor) -> tuple:
    """frames (E, T + 1, F), actions (E, T, D) -> frame, action, next frame of all E * T
    steps: (E * T, F), (E * T, D), (E * T, F), episode by episode."""
    # BEGIN SOLUTION
    before, led, after = frames[:, :-1], actions, frames[:, 1:]
    # INSTEAD
    # before, led, after = frames[:, 1:-1], actions[:, :-1], frames[:, 2:]
    # END SOLUTION
    return before.flatten(0, 1), led.flatten(0, 1), after.flatten(0, 1)


# %%
check("02.off_by_one")


# %% wrong 02.off_by_one: one step too late
def training_pairs(frames, actions):
    before, led, after = frames[:, :-2], actions[:, 1:], frames[:, 1:-1]
    return before.flatten(0, 1), led.flatten(0, 1), after.flatten(0, 1)


# %% wrong 02.off_by_one: last step is missing
def training_pairs(frames, actions):
    before, led, after = frames[:, :-2], actions[:, :-1], frames[:, 1:-1]
    return before.flatten(0, 1), led.flatten(0, 1), after.flatten(0, 1)


# %% wrong 02.off_by_one: you joined the episodes before pairing
def training_pairs(frames, actions):
    video = frames.flatten(0, 1)
    return video[:-1], actions.flatten(0, 1), video[1:]


# %% [markdown]
# **Open question (5 points).** A colleague shows you a world model with a tiny loss.
# Which two experiments would you ask for before you let a policy practice in it?
