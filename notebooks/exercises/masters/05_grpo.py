# %% [markdown]
# # Exercises 05 - Policy optimization
#
# Notebook `05_policy_optimization` shows GRPO at work. Here you write its five parts
# yourself: advantages, dynamic sampling, the mask, the clipped loss, and a
# measurement that explains one decision of the kit.
#
# Every exercise is a function with a stub. Replace the line below `# YOUR CODE HERE`,
# run the cell, then run the check below it. A check runs your function on random
# inputs beside the kit's own and names the mistake that it most resembles. Write
# each function by hand: calling the kit's function that does the same is refused.
# Time: about three hours.

# %%
import torch

from wmpo_lite.course import check

# %% [markdown]
# ## 05.advantage - Better than its group
#
# GRPO has no critic. What tells a good trajectory from a bad one is its *group*: G
# trajectories from the same first frame. With rewards $R_1, \dots, R_G$ of a group,
#
# $$A_i = \frac{R_i - \mathrm{mean}(R)}{\mathrm{std}(R)}, \qquad
# \mathrm{std}(R) = \sqrt{\tfrac{1}{G} \textstyle\sum_j (R_j - \mathrm{mean}(R))^2},$$
#
# the *population* standard deviation, as in the paper. A group in which all rewards
# are equal says nothing: its advantages are 0.
#
# *Before you write:* 1 of 8 trajectories succeeds. What is its advantage? What if 4
# of 8 succeed? Which success pushes the policy harder, and is that what you want?
#
# <details><summary>Hint 1</summary>
#
# `rewards.mean(1, keepdim=True)` is the mean of every row, with a shape that
# broadcasts. Mind what `unbiased` is by default in `torch.std`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# The mean of seven times 0.1 is not exactly 0.1. So do not ask whether the deviation
# is 0; ask whether the largest and the smallest reward of the row are equal, and
# choose with `torch.where`.
#
# </details>


# %%
def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards (N_groups, G) -> advantages (N_groups, G)."""
    # BEGIN SOLUTION
    centered = rewards - rewards.mean(1, keepdim=True)
    std = centered.square().mean(1, keepdim=True).sqrt()
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return torch.where(equal, 0.0, centered / std)
    # END SOLUTION


# %%
check("05.advantage")


# %% wrong 05.advantage: unbiased standard deviation
def advantages(rewards):
    out = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)
    same = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return torch.where(same, torch.zeros_like(out), out)


# %% wrong 05.advantage: normalized over the whole batch
def advantages(rewards):
    return (rewards - rewards.mean()) / rewards.std(unbiased=False)


# %% wrong 05.advantage: did not divide by the standard deviation
def advantages(rewards):
    return rewards - rewards.mean(1, keepdim=True)


# %% wrong 05.advantage: divide by 0
def advantages(rewards):
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, False, keepdim=True)
    return (rewards - mean) / std


# %% [markdown]
# ## 05.filter - Groups that teach something
#
# A group of equal rewards has advantages of 0 and no gradient, but it would still
# take its share of the batch. *Dynamic sampling* (DAPO) drops it. Return which groups
# to keep: those whose rewards differ.
#
# The paper's public code keeps groups with a mean reward between 0.1 and 0.9 instead.
# For G = 8 that is the same rule. *Before you write:* for which G is it not, and which
# groups does it lose?
#
# <details><summary>Hint</summary>
#
# Compare the largest reward of each row with the smallest.
#
# </details>


# %%
def groups_to_keep(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards (N_groups, G) -> bool (N_groups,), True for groups worth an update."""
    # BEGIN SOLUTION
    return rewards.amax(1) != rewards.amin(1)
    # END SOLUTION


# %%
check("05.filter")


# %% wrong 05.filter: this is inverted
def groups_to_keep(rewards):
    return (rewards == rewards[:, :1]).all(dim=1)


# %% wrong 05.filter: groups of successes only teach nothing
def groups_to_keep(rewards):
    return rewards.sum(1) > 0


# %% wrong 05.filter: drops a rare success
def groups_to_keep(rewards):
    mean = rewards.mean(1)
    return (mean >= 0.1) & (mean <= 0.9)


# %% [markdown]
# ## 05.mask - What happened after success does not count
#
# A trajectory has `chunks` chunks of K actions of D tokens. Action number $s$, counted
# from 0 over all chunks, leads to frame $s + 1$. `finish_step` is the first frame in
# which the task is solved. What the policy did afterwards has not caused anything, so
# the loss must not see it: exactly the actions that led up to `finish_step` count.
#
# <details><summary>Hint</summary>
#
# Number the actions with `torch.arange(chunks * k)`, compare with
# `finish_step[:, None]`, then `view` and `expand` to (N, chunks, K, D).
#
# </details>


# %%
def valid_tokens(
    finish_step: torch.Tensor, chunks: int, k: int, d: int
) -> torch.Tensor:
    """finish_step (N,) -> bool (N, chunks, K, D), True for tokens the loss sees."""
    # BEGIN SOLUTION
    steps = torch.arange(chunks * k)
    valid = steps < finish_step[:, None]  # (N, chunks * K)
    return valid.view(-1, chunks, k, 1).expand(-1, -1, -1, d)
    # END SOLUTION


# %%
check("05.mask")


# %% wrong 05.mask: one step too many
def valid_tokens(finish_step, chunks, k, d):
    valid = torch.arange(chunks * k) <= finish_step[:, None]
    return valid.view(-1, chunks, k, 1).repeat(1, 1, 1, d)


# %% wrong 05.mask: one step too few
def valid_tokens(finish_step, chunks, k, d):
    valid = torch.arange(1, chunks * k + 1) < finish_step[:, None]
    return valid.view(-1, chunks, k, 1).expand(-1, -1, -1, d)


# %% wrong 05.mask: you keep whole chunks
def valid_tokens(finish_step, chunks, k, d):
    valid = torch.arange(chunks) * k < finish_step[:, None]
    return valid[..., None, None].expand(-1, -1, k, d)


# %% [markdown]
# ## 05.clipped_loss - One step, not too far
#
# With the ratio $r = \exp(\log \pi_{new} - \log \pi_{old})$ of a token and the
# advantage $A$ of its trajectory, the objective of a token is
#
# $$\min\big(r A,\; \mathrm{clip}(r,\, 1 - 0.20,\, 1 + 0.28)\, A\big).$$
#
# The upper end is farther away than the lower one (DAPO's *clip-higher*): a token
# that was unlikely may become likely. Average over the valid tokens of each
# trajectory, then over the trajectories, and return the *negative*, since an optimizer
# minimizes. The check compares the gradient, too.
#
# *Before you write:* A is negative and r is 1.5. What is the gradient? And with r =
# 0.7?
#
# <details><summary>Hint 1</summary>
#
# `torch.minimum(r * a, r.clamp(0.8, 1.28) * a)`, with the advantage as
# `a[:, None, None, None]`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Tokens that do not count must be absent above *and* below the line: multiply by the
# mask before you sum, and divide by the number of valid tokens of that trajectory.
#
# </details>


# %%
def clipped_loss(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities and mask (N, chunks, K, D), advantages (N,) -> the loss."""
    # BEGIN SOLUTION
    r = (new - old).exp()
    a = advantages[:, None, None, None]
    objective = torch.minimum(r * a, r.clamp(0.8, 1.28) * a) * mask
    return -(objective.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean()
    # END SOLUTION


# %%
check("05.clipped_loss")


# %% wrong 05.clipped_loss: the larger of the two
def clipped_loss(new, old, advantages, mask):
    r, a = torch.exp(new - old), advantages.view(-1, 1, 1, 1)
    worst = torch.max(r * a, r.clamp(0.8, 1.28) * a) * mask
    return -(worst.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean()


# %% wrong 05.clipped_loss: long trajectories weigh more
def clipped_loss(new, old, advantages, mask):
    r, a = torch.exp(new - old), advantages.view(-1, 1, 1, 1)
    return -torch.min(r * a, r.clamp(0.8, 1.28) * a)[mask].mean()


# %% wrong 05.clipped_loss: upper clip is 1.2
def clipped_loss(new, old, advantages, mask):
    r, a = torch.exp(new - old), advantages.view(-1, 1, 1, 1)
    parts = torch.min(r * a, r.clamp(0.8, 1.2) * a) * mask
    return -(parts.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean()


# %% wrong 05.clipped_loss: cut off from the graph
def clipped_loss(new, old, advantages, mask):
    r, a = torch.exp(new - old).detach(), advantages.view(-1, 1, 1, 1)
    parts = torch.min(r * a, r.clamp(0.8, 1.28) * a) * mask
    return -(parts.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean()


# %% [markdown]
# ## 05.per_chunk - Why ratios per chunk clip
#
# The paper forms one ratio for each chunk, from the sum of its K x D log-probabilities;
# its public code, and this kit by default, one for each token. Measure what that
# means: the share of ratios at which the clip stops the gradient, for tokens and for
# chunks. The gradient stops where the clipped product is the smaller one: above 1.28
# if the advantage is positive, below 0.80 if it is negative.
#
# Only valid tokens take part; a chunk is valid if one of its tokens is, and its ratio
# joins its valid tokens.
#
# <details><summary>Hint</summary>
#
# `torch.minimum(r * a, r.clamp(0.8, 1.28) * a) < r * a` is True exactly where the clip
# stops the gradient.
#
# </details>


# %%
def clip_fractions(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor
) -> tuple:
    """As `clipped_loss`; returns (share of valid tokens, share of valid chunks)."""
    # BEGIN SOLUTION
    difference = (new - old) * mask
    a = advantages[:, None]
    found = []
    for log_ratio, valid in (
        (difference.flatten(1), mask.flatten(1)),
        (difference.sum((2, 3)), mask.any(3).any(2)),
    ):
        r = log_ratio.exp()
        stopped = r.clamp(0.8, 1.28) * a < r * a
        found.append(stopped[valid].float().mean())
    return found[0], found[1]
    # END SOLUTION


# %%
check("05.per_chunk")


# %% wrong 05.per_chunk: log-ratios are *summed*
def clip_fractions(new, old, advantages, mask):
    d, a = (new - old) * mask, advantages[:, None]
    stop = lambda r: torch.minimum(r.clamp(0.8, 1.28) * a, r * a) < r * a
    tokens = stop(d.flatten(1).exp())[mask.flatten(1)]
    chunks = stop(d.mean((2, 3)).exp())[mask.any(3).any(2)]
    return tokens.float().mean(), chunks.float().mean()


# %% wrong 05.per_chunk: on one side only
def clip_fractions(new, old, advantages, mask):
    d = (new - old) * mask
    stop = lambda r: (r > 1.28) | (r < 0.8)
    tokens = stop(d.flatten(1).exp())[mask.flatten(1)]
    chunks = stop(d.sum((2, 3)).exp())[mask.any(3).any(2)]
    return tokens.float().mean(), chunks.float().mean()


# %% wrong 05.per_chunk: tokens after finish_step take part
def clip_fractions(new, old, advantages, mask):
    d, a = new - old, advantages[:, None]
    stop = lambda r: r.clamp(0.8, 1.28) * a < r * a
    tokens, chunks = stop(d.flatten(1).exp()), stop(d.sum((2, 3)).exp())
    return tokens.float().mean(), chunks.float().mean()


# %% [markdown]
# With ratios whose logarithms have a standard deviation of 0.1, how large is that of a
# chunk's sum of 32 of them?

# %%
generator = torch.Generator().manual_seed(0)
for size in (0.02, 0.05, 0.1):
    old = torch.zeros(512, 1, 8, 4)
    new = size * torch.randn(old.shape, generator=generator)
    sides = torch.randn(512, generator=generator)
    shares = clip_fractions(new, old, sides, torch.ones(old.shape, dtype=torch.bool))
    print(f"deviation {size}: tokens {shares[0]:.0%}, chunks {shares[1]:.0%} clipped")

# %% [markdown]
# **Open question (5 points).** Your policy has K = 8 and D = 7, and its update has one
# pass of four optimizer steps. Would you form ratios per token or per chunk? Argue with
# the table above: what does clipping protect from, and what does it cost? Half a page.
