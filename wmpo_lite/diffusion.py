"""Rectified flow: how noise becomes a frame (Liu et al. 2022, arXiv 2209.03003; paper section 3.2).

On the way from data x (t = 0) to noise e (t = 1) a point moves on a straight line,

    x_t = (1 - t) x + t e,        dx_t / dt = e - x = (x_t - x) / t.

The network predicts the clean x from x_t (`predict_x0`); the velocity follows from it. At t = 1
there is nothing of x in x_t, so one Euler step returns the network's forecast, a mean over all
futures that may come; more steps choose one of them.
"""

import torch


def interpolate(x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t for t (B,); x and noise (B, ...)."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    return (1 - t) * x + t * noise


def shift_time(t: torch.Tensor, shift: float) -> torch.Tensor:
    """Push times in [0, 1] towards noise (shift > 1), where sampling is decided (SD3, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def draw_times(
    batch: int, generator, *, shift: float, pure: float, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Training times (B,) in (0, 1]: a share `pure` at 1, where sampling begins, others shifted."""
    u, first = torch.rand(2, batch, generator=generator)
    t = shift_time(u.clamp(min=1e-3), shift)
    return torch.where(first < pure, torch.ones_like(t), t).to(device)


def flow_loss(x0, target, t, *, weight=None, cap: float = 4.0) -> torch.Tensor:
    """The velocity's squared error, (x0 - target)^2 / t^2, with 1 / t^2 at most `cap`; a mean over
    everything.

    weight: of each element, broadcast to the target's shape, or None.
    """
    scale = (1 / t.square()).clamp(max=cap).view(-1, *[1] * (target.ndim - 1))
    error = scale * (x0 - target).square()
    return (error if weight is None else weight * error).mean()


def time_grid(steps: int, shift: float, device: str | torch.device = "cpu") -> torch.Tensor:
    """The steps + 1 times of Euler sampling, from 1 to 0. (diffusers' scheduler for flow matching
    applies the shift to its end twice: two steps would be 1, 0.009, 0.)
    """
    return shift_time(torch.linspace(1, 0, steps + 1, device=device), shift)


def euler_sample(predict_x0, noise: torch.Tensor, steps: int, shift: float) -> torch.Tensor:
    """Integrate from `noise` (B, ...) to data. predict_x0(x_t, t) -> x, with t (B,)."""
    x, grid = noise, time_grid(steps, shift, noise.device)
    for now, then in zip(grid[:-1], grid[1:]):
        x0 = predict_x0(x, now.expand(len(x)))
        x = x + (then - now) / now * (x - x0)
    return x
