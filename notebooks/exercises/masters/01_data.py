# %% [markdown]
# # Exercises 01 - Data and cloning
#
# Before a policy can improve it has to be cloned, and before anyone says that it has
# improved somebody has to count. Two short functions, after notebook
# `01_data_collection`. Time: about an hour.
#
# Replace the line below `# YOUR CODE HERE`, run the cell, then run the check below it.
# A check runs your function on random inputs beside the kit's own and names the mistake
# that it most resembles. Calling the kit's function that does the same is refused.

# %%
import math

import torch

from wmpo_lite.course import check

# %% [markdown]
# ## 01.cloning - Cloning a chunk, padding left out
#
# A policy predicts K x D action tokens at once; each is one of `bins` classes. Behavior
# cloning maximizes the probability of the demonstrated tokens. Near the end of a
# demonstration fewer than K actions are left, so the chunk is filled up, and the mask
# says which steps are real: 1 for a demonstrated step, 0 for padding.
#
# The loss is the mean negative log-probability, over the D tokens of a step and over
# all steps that count, wherever in the batch they are. If none counts, it is 0.
#
# *Before you write:* what would a policy learn from padding that repeats the last
# action?
#
# <details><summary>Hint 1</summary>
#
# `torch.log_softmax(logits, -1)`, then `gather(-1, tokens[..., None])` picks the
# demonstrated token's log-probability.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Divide by `mask.sum()`, not by the number of all steps; `clamp(min=1)` keeps 0 / 0
# away.
#
# </details>


# %%
def masked_cloning_loss(
    logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """logits (B, K, D, bins), tokens (B, K, D), mask (B, K) of 0 and 1 -> the loss."""
    # BEGIN SOLUTION
    log_p = torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
    steps = log_p.mean(-1)  # (B, K)
    return -(steps * mask).sum() / mask.sum().clamp(min=1)
    # END SOLUTION


# %%
check("01.cloning")


# %% wrong 01.cloning: averaged over the padded steps
def masked_cloning_loss(logits, tokens, mask):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 2), tokens.flatten())


# %% wrong 01.cloning: divide by the number of steps that count
def masked_cloning_loss(logits, tokens, mask):
    log_p = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return -(log_p * mask[..., None]).mean()


# %% wrong 01.cloning: the sign is wrong
def masked_cloning_loss(logits, tokens, mask):
    log_p = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return (log_p.mean(-1) * mask).sum() / mask.sum().clamp(min=1)


# %% wrong 01.cloning: divided 0 by 0
def masked_cloning_loss(logits, tokens, mask):
    log_p = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return -log_p[mask > 0].mean()


# %% [markdown]
# ## 01.wilson - A success rate with its uncertainty
#
# s of n episodes succeed. The naive 95 % interval, $p \pm 1.96 \sqrt{p(1-p)/n}$ with $p =
# s/n$, has no width at 0 and n successes, where we know least. Wilson's interval holds
# all rates $q$ for which $p$ is not more than $z = 1.96$ standard deviations of $q$ away,
# $|p - q| \le z \sqrt{q(1-q)/n}$. Solving for $q$ gives
#
# $$\frac{1}{1 + z^2/n} \left( p + \frac{z^2}{2n} \pm
# z \sqrt{\frac{p(1-p)}{n} + \frac{z^2}{4n^2}} \right).$$
#
# *Before you write:* 0 of 10 episodes succeed. Which rates are still plausible?
#
# <details><summary>Hint</summary>
#
# Compute the center and half the width apart, both divided by $1 + z^2/n$.
#
# </details>


# %%
def wilson(successes: int, n: int) -> tuple[float, float]:
    """(low, high) of the 95 % interval, as fractions."""
    # BEGIN SOLUTION
    z, p = 1.959964, successes / n
    below = 1 + z * z / n
    center = (p + z * z / (2 * n)) / below
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / below
    return center - half, center + half
    # END SOLUTION


# %%
check("01.wilson")


# %% wrong 01.wilson: the naive interval
def wilson(successes, n):
    p = successes / n
    half = 1.96 * (p * (1 - p) / n) ** 0.5
    return p - half, p + half


# %% wrong 01.wilson: z is 1.645
def wilson(successes, n):
    z, p = 1.644854, successes / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return tuple((p + z * z / (2 * n) + s * half) / (1 + z * z / n) for s in (-1, 1))


# %% wrong 01.wilson: centered on p
def wilson(successes, n):
    z, p = 1.959964, successes / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return p - half, p + half


# %%
for successes, n in ((0, 10), (5, 10), (64, 128), (512, 1024)):
    low, high = wilson(successes, n)
    print(f"{successes} of {n}: {100 * low:.1f} to {100 * high:.1f} %")

# %% [markdown]
# **Open question (3 points).** You have an hour of robot time, which is 60 episodes.
# Would you evaluate one policy on 60 states or two policies on 30 each? What would your
# intervals look like?
