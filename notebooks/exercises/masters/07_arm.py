# %% [markdown]
# # Exercises 07 - An arm
#
# Two small things stand between a policy and an arm: a picture that is older than the
# policy believes, and limits that the policy knows nothing of. After notebook
# `07_deployment`. Time: about an hour.

# %%
import numpy as np

from wmpo_lite.course import check

# %% [markdown]
# ## 07.latency - Seeing what was
#
# Cameras, networks and buses take time. A policy trained without latency should be tested
# with it before it meets an arm. Write a buffer that shows each frame `latency` control
# steps late:
#
# - `reset(frame)` begins an episode with its first frame and returns what is seen;
# - `push(frame)` takes the next frame and returns what is seen now: the frame from
#   `latency` steps ago, or the episode's first one as long as there is none that old.
#
# With latency 0 the newest frame is seen. A camera's driver **reuses its memory**: the
# array that you were given is overwritten by the next frame.
#
# <details><summary>Hint 1</summary>
#
# A list of `latency + 1` frames, all of them the first one after `reset`; `push` appends
# and returns the oldest.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `frame.copy()`.
#
# </details>


# %%
class LatencyBuffer:
    """Shows frames uint8 (H, W, 3) `latency` control steps late."""

    def __init__(self, latency: int):
        self.latency = latency

    def reset(self, frame: np.ndarray) -> np.ndarray:
        # BEGIN SOLUTION
        self.frames = [frame.copy()] * (self.latency + 1)
        return self.frames[0]
        # END SOLUTION

    def push(self, frame: np.ndarray) -> np.ndarray:
        # BEGIN SOLUTION
        self.frames = [*self.frames[1:], frame.copy()]
        return self.frames[0]
        # END SOLUTION


# %%
check("07.latency")


# %% wrong 07.latency: one step too old
class LatencyBuffer:
    def __init__(self, latency):
        self.latency = latency

    def reset(self, frame):
        self.frames = [frame.copy()] * (self.latency + 1)
        return self.frames[0]

    def push(self, frame):
        shown = self.frames.pop(0)
        self.frames.append(frame.copy())
        return shown


# %% wrong 07.latency: overwrites; keep a copy
class LatencyBuffer:
    def __init__(self, latency):
        self.latency = latency

    def reset(self, frame):
        self.frames = [frame] * (self.latency + 1)
        return self.frames[0]

    def push(self, frame):
        self.frames = [*self.frames[1:], frame]
        return self.frames[0]


# %% wrong 07.latency: the *first* one is shown
class LatencyBuffer:
    def __init__(self, latency):
        self.latency = latency

    def reset(self, frame):
        self.frames = []
        return self.push(frame)

    def push(self, frame):
        self.frames.append(frame.copy())
        late = len(self.frames) <= self.latency
        return frame if late else self.frames[-1 - self.latency]


# %% wrong 07.latency: forget the last episode
class LatencyBuffer:
    def __init__(self, latency):
        self.latency, self.frames = latency, []

    def reset(self, frame):
        if not self.frames:
            self.frames = [frame.copy()] * self.latency
        return self.push(frame)

    def push(self, frame):
        self.frames.append(frame.copy())
        return self.frames[-1 - self.latency]


# %% [markdown]
# ## 07.workspace - Limits belong to the arm
#
# A command is four numbers: x, y, z and the gripper, each in [-1, 1]. A command of 1
# moves the finger tips by `step` meters. Before it reaches the arm,
#
# 1. the three motions are limited to [-speed, speed];
# 2. the tips, which are at `tip` inside the box [low, high], may not leave it: the motion
#    is shortened, axis by axis, so that it ends at the wall.
#
# The gripper's number passes as it is. Return the command that the arm carries out.
#
# *Before you write:* why does the limit come after the policy, and not into its training?
#
# <details><summary>Hint</summary>
#
# Where would the tips be? `np.clip(tip + step * motion, low, high)`. Turn that into a
# command again.
#
# </details>


# %%
def limit(
    action: np.ndarray,
    tip: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    speed: float,
    step: float,
) -> np.ndarray:
    """action (4,), tip, low and high (3,) in meters -> the limited action (4,)."""
    # BEGIN SOLUTION
    motion = np.clip(action[:3], -speed, speed)
    motion = (np.clip(tip + step * motion, low, high) - tip) / step
    return np.append(motion, action[3])
    # END SOLUTION


# %%
check("07.workspace")


# %% wrong 07.workspace: speed limit is missing
def limit(action, tip, low, high, speed, step):
    motion = (np.clip(tip + step * action[:3], low, high) - tip) / step
    return np.array([*motion, action[3]])


# %% wrong 07.workspace: box is missing
def limit(action, tip, low, high, speed, step):
    return np.append(np.clip(action[:3], -speed, speed), action[3])


# %% wrong 07.workspace: return where the tips go
def limit(action, tip, low, high, speed, step):
    goal = tip + step * np.clip(action[:3], -speed, speed)
    return np.append(np.clip(goal, low, high), action[3])


# %% wrong 07.workspace: is not a motion
def limit(action, tip, low, high, speed, step):
    action = np.clip(action, -speed, speed)
    action[:3] = (np.clip(tip + step * action[:3], low, high) - tip) / step
    return action


# %% [markdown]
# **Open question (3 points).** Your policy commands NaN. What should the arm do, and at
# which of the places between network and motor would you make sure of it?
