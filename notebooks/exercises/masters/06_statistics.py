# %% [markdown]
# # Exercises 06 - Statistics
#
# Most disputes about robot policies are about noise. Notebook `06_evaluation` shows how
# to tell a gain from luck; here you write the two tools that you need before and after
# every experiment. Time: about an hour and a half.

# %%
import math

import numpy as np
from scipy import stats

from wmpo_lite.course import check

# %% [markdown]
# ## 06.bootstrap - A gain and its interval
#
# Two policies ran from the same n initial states; `a[i]` and `b[i]` say whether they
# succeeded from state i. Some states are hard for both, and that luck cancels if you
# compare state by state. The *paired bootstrap* draws n states with replacement, takes
# both outcomes of each, computes rate(b) - rate(a), and does so 2000 times. The 95 %
# interval lies between the 2.5 and 97.5 % points of these gains.
#
# *Before you write:* both policies succeed in half of all states. How wide is the
# interval if they succeed in the very same ones, and if they are independent?
#
# <details><summary>Hint 1</summary>
#
# `rng = np.random.default_rng(seed)`, then `rows = rng.integers(n, size=(2000, n))` are
# the numbers of the drawn states. Which arrays do you index with them?
#
# </details>
# <details><summary>Hint 2</summary>
#
# `np.percentile(gains, (2.5, 97.5))`. The check allows for the noise of 2000 draws.
#
# </details>


# %%
def paired_bootstrap(a: np.ndarray, b: np.ndarray, seed: int) -> tuple:
    """Outcomes bool (n,) -> (gain, low, high), the gain of b over a."""
    # BEGIN SOLUTION
    difference = b.astype(float) - a
    rows = np.random.default_rng(seed).integers(len(a), size=(2000, len(a)))
    low, high = np.percentile(difference[rows].mean(axis=1), (2.5, 97.5))
    return difference.mean(), low, high
    # END SOLUTION


# %%
check("06.bootstrap")


# %% wrong 06.bootstrap: resample the two policies apart
def paired_bootstrap(a, b, seed):
    rng, n = np.random.default_rng(seed), len(a)
    of_a = a[rng.integers(n, size=(2000, n))].mean(axis=1)
    of_b = b[rng.integers(n, size=(2000, n))].mean(axis=1)
    return b.mean() - a.mean(), *np.percentile(of_b - of_a, (2.5, 97.5))


# %% wrong 06.bootstrap: a 90 % interval
def paired_bootstrap(a, b, seed):
    d, n = b.astype(float) - a, len(a)
    gains = d[np.random.default_rng(seed).integers(n, size=(2000, n))].mean(axis=1)
    return d.mean(), *np.percentile(gains, (5, 95))


# %% wrong 06.bootstrap: the other way round
def paired_bootstrap(a, b, seed):
    d, n = a.astype(float) - b, len(a)
    gains = d[np.random.default_rng(seed).integers(n, size=(2000, n))].mean(axis=1)
    return d.mean(), *np.percentile(gains, (2.5, 97.5))


# %% [markdown]
# ## 06.sample_size - How many states before you begin?
#
# Let $d$ be the share of states on which exactly one policy succeeds and $g$ the true
# gain. A two-sided test at 5 % sees the gain with probability `power` when, to a good
# approximation,
#
# $$n = \left(\frac{z_{0.975}\sqrt{d} + z_{power}\sqrt{d - g^2}}{g}\right)^2,$$
#
# where $z_q$ is the point below which a standard normal number lies with probability
# $q$. Return the smallest whole number that suffices.
#
# *Before you write:* the paper evaluates on 128 states. Which gain does that see, if the
# policies differ on 40 % of them?
#
# <details><summary>Hint</summary>
#
# `stats.norm.ppf(0.975)` is 1.96. `math.ceil` rounds up to a whole number.
#
# </details>


# %%
def states_needed(gain: float, differ: float, power: float) -> int:
    """The number of paired states at which `gain` is seen with probability `power`."""
    # BEGIN SOLUTION
    z, z_power = stats.norm.ppf(0.975), stats.norm.ppf(power)
    root = z * math.sqrt(differ) + z_power * math.sqrt(differ - gain**2)
    return math.ceil((root / gain) ** 2)
    # END SOLUTION


# %%
check("06.sample_size")


# %% wrong 06.sample_size: a one-sided test
def states_needed(gain, differ, power):
    root = stats.norm.ppf(0.95) * differ**0.5
    root += stats.norm.ppf(power) * (differ - gain**2) ** 0.5
    return math.ceil((root / gain) ** 2)


# %% wrong 06.sample_size: the power is missing
def states_needed(gain, differ, power):
    return math.ceil(stats.norm.ppf(0.975) ** 2 * differ / gain**2)


# %% wrong 06.sample_size: round up
def states_needed(gain, differ, power):
    z, z_power = stats.norm.ppf(0.975), stats.norm.ppf(power)
    root = z * math.sqrt(differ) + z_power * math.sqrt(differ - gain**2)
    return int((root / gain) ** 2)


# %%
for gain in (0.05, 0.10, 0.15, 0.20):
    needed = states_needed(gain, differ=0.4, power=0.8)
    print(f"a gain of {100 * gain:2.0f} points: {needed} states")

# %% [markdown]
# **Open question (5 points).** A paper reports 56.3 % against 53.9 % on 128 states, from
# one training seed each. Write the three sentences that a careful reviewer would write.
