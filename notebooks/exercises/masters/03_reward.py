# %% [markdown]
# # Exercises 03 - The reward model
#
# In imagination nobody knows whether a task was solved; a learned reward model has to
# say it. What it learns depends on the clips that it is shown, what it says on a
# threshold, and whether it is asked at all on a line of code that is easily wrong.
# After notebook `03_reward_model`. Time: about two hours.

# %%
import numpy as np

from wmpo_lite.course import check

# %% [markdown]
# ## 03.clips - Which clips are positive, which negative?
#
# The reward model sees clips of L frames. A clip *ends at* frame e if it holds the
# frames e - L + 1 to e; the first frame of an episode has number 0.
#
# - The positive clip of a successful episode is its terminal one, which ends at
#   `finish_step`, the first frame in which the task is solved (if L frames exist by
#   then).
# - Negative clips of a successful episode end at least L frames before that, so that
#   they share no frame with the terminal clip.
# - Every clip of a failed episode is a negative.
#
# List the frames at which positive and negative clips may end.
#
# *Before you write:* why would a clip that ends one frame before success be a cruel
# negative?
#
# <details><summary>Hint</summary>
#
# The earliest end is L - 1. `range(a, b)` does not include b.
#
# </details>


# %%
def clip_ends(
    success: bool, finish_step: int, last_frame: int, length: int
) -> tuple[list[int], list[int]]:
    """(ends of positive clips, ends of negative clips), each ascending."""
    # BEGIN SOLUTION
    if not success:
        return [], list(range(length - 1, last_frame + 1))
    positives = [finish_step] if finish_step >= length - 1 else []
    return positives, list(range(length - 1, finish_step - length + 1))
    # END SOLUTION


# %%
check("03.clips")


# %% wrong 03.clips: one frame too late
def clip_ends(success, finish_step, last_frame, length):
    if not success:
        return [], [*range(length - 1, last_frame + 2)]
    negatives = [*range(length - 1, finish_step - length + 2)]
    return [finish_step] * (finish_step + 1 >= length), negatives


# %% wrong 03.clips: range(a, b) ends at b - 1
def clip_ends(success, finish_step, last_frame, length):
    if not success:
        return [], [*range(length - 1, last_frame)]
    negatives = [*range(length - 1, finish_step - length)]
    return [finish_step] * (finish_step + 1 >= length), negatives


# %% wrong 03.clips: cannot end before frame L - 1
def clip_ends(success, finish_step, last_frame, length):
    latest = finish_step - length if success else last_frame
    good = [finish_step] if success and finish_step + 1 >= length else []
    return good, list(range(latest + 1))


# %% [markdown]
# ## 03.threshold - Where to cut
#
# The reward model gives probabilities; a trajectory counts as a success if its score is
# at least the threshold, `score >= threshold`. Failures are more frequent than
# successes, so accuracy would be high for a model that never sees a success. The paper
# takes the threshold with the best F1 on held-out rollouts,
#
# $$F_1 = \frac{2\,TP}{2\,TP + FP + FN}.$$
#
# Only thresholds between or at scores matter. Return one with the best F1. (Where
# several are equally good, any will do.)
#
# <details><summary>Hint 1</summary>
#
# `np.unique(scores)` are all candidates: a threshold between two of them decides as the
# upper one does.
#
# </details>
# <details><summary>Hint 2</summary>
#
# TP + FP is the number of scores that reach the threshold, TP + FN that of the true
# labels.
#
# </details>


# %%
def search_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Scores (N,), labels bool (N,) -> a threshold with the best F1."""
    # BEGIN SOLUTION
    candidates = np.unique(scores)
    reached = scores[None] >= candidates[:, None]  # (candidates, N)
    hits = (reached & labels).sum(axis=1)
    f1 = 2 * hits / (reached.sum(axis=1) + labels.sum())
    return float(candidates[f1.argmax()])
    # END SOLUTION


# %%
check("03.threshold")


# %% wrong 03.threshold: a fixed grid
def search_threshold(scores, labels):
    def f1(at):
        hits = ((scores >= at) & labels).sum()
        return 2 * hits / ((scores >= at).sum() + labels.sum())

    return max((n / 10 for n in range(1, 10)), key=f1)


# %% wrong 03.threshold: the best accuracy
def search_threshold(scores, labels):
    return max(np.unique(scores), key=lambda at: ((scores >= at) == labels).sum())


# %% wrong 03.threshold: you maximized recall
def search_threshold(scores, labels):
    return max(np.unique(scores), key=lambda at: (scores >= at)[labels].mean())


# %% wrong 03.threshold: score > threshold
def search_threshold(scores, labels):
    def f1(at):
        hits = ((scores > at) & labels).sum()
        return 2 * hits / max((scores > at).sum() + labels.sum(), 1)

    return max(np.unique(scores), key=f1)


# %% [markdown]
# ## 03.earliest - A reward that is 0 in silence
#
# The window w of the reward model holds the frames w to w + L - 1. The first window whose
# probability reaches the threshold ends the episode; its last frame is the finish
# step. The function below has the bug that users of the paper's public code met: a
# fixed number, tuned to one task, below which nothing is judged. On a task with
# shorter episodes no window was left, no trajectory ever got a reward, every group was
# dropped, and nothing said so.
#
# Repair it: judge every window, return None if none reaches the threshold, and raise a
# `ValueError` if there is no window at all.
#
# <details><summary>Hint</summary>
#
# First run the check on the function as it is. Then ask which line knows something
# about one task only.
#
# </details>


# %%
def first_success(
    probabilities: np.ndarray, threshold: float, length: int
) -> int | None:
    """Probabilities (W,) of all windows -> the finish step, None without success."""
    # BEGIN SOLUTION
    if len(probabilities) == 0:
        raise ValueError("there is no window to judge: the episode is too short")
    hits = np.flatnonzero(probabilities >= threshold)
    return int(hits[0]) + length - 1 if len(hits) else None
    # INSTEAD
    # earliest = 20
    # for window, probability in enumerate(probabilities):
    #     frame = window + length - 1
    #     if frame >= earliest and probability >= threshold:
    #         return frame
    # return None
    # END SOLUTION


# %%
check("03.earliest")


# %% wrong 03.earliest: still never judged
def first_success(probabilities, threshold, length):
    if not len(probabilities):
        raise ValueError("no window")
    for window, probability in enumerate(probabilities):
        if window + length - 1 >= 20 and probability >= threshold:
            return window + length - 1


# %% wrong 03.earliest: you return the window's number
def first_success(probabilities, threshold, length):
    if not len(probabilities):
        raise ValueError("no window")
    hits = np.flatnonzero(probabilities >= threshold)
    return int(hits[0]) if len(hits) else None


# %% wrong 03.earliest: without any window
def first_success(probabilities, threshold, length):
    for window, probability in enumerate(probabilities):
        if probability >= threshold:
            return window + length - 1


# %% wrong 03.earliest: not the last
def first_success(probabilities, threshold, length):
    if not len(probabilities):
        raise ValueError("no window")
    hits = np.flatnonzero(probabilities >= threshold)
    return int(hits[-1]) + length - 1 if len(hits) else None


# %% [markdown]
# **Open question (5 points).** Name three other places in the method at which a wrong
# setting gives zero reward in silence, and for each the check that you would add.
