"""Rectified flow: the path, the loss, the sampler."""

import torch

from wmpo_lite.diffusion import (
    draw_times,
    euler_sample,
    flow_loss,
    interpolate,
    shift_time,
    time_grid,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_path_runs_from_data_to_noise_in_a_straight_line():
    x, e = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    assert torch.equal(interpolate(x, e, torch.zeros(3)), x)
    assert torch.equal(interpolate(x, e, torch.ones(3)), e)
    middle = interpolate(x, e, torch.full((3,), 0.25))
    assert torch.allclose(middle, 0.75 * x + 0.25 * e)


def test_the_velocity_that_follows_from_x0_is_noise_minus_data():
    x, e, t = normal(3, 4), normal(3, 4, seed=1), torch.tensor([0.3, 0.7, 1.0])
    assert torch.allclose((interpolate(x, e, t) - x) / t[:, None], e - x, atol=1e-6)


def test_shift_keeps_the_ends_and_moves_the_middle_to_noise():
    t = torch.linspace(0, 1, 5)
    shifted = shift_time(t, 3.0)
    assert shifted[0] == 0 and shifted[-1] == 1
    assert torch.allclose(shifted[2], torch.tensor(0.75))
    assert torch.equal(shift_time(t, 1.0), t)


def test_the_grid_is_the_one_that_is_taught():
    assert torch.allclose(time_grid(1, 3.0), torch.tensor([1.0, 0.0]))
    assert torch.allclose(time_grid(2, 3.0), torch.tensor([1.0, 0.75, 0.0]))
    assert torch.allclose(time_grid(4, 1.0), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_times_of_training_are_never_zero_and_so_many_are_pure_noise():
    t = draw_times(4000, torch.Generator().manual_seed(0), shift=3.0, pure=0.25)
    assert t.min() > 0 and t.max() == 1
    assert 0.22 < (t == 1).float().mean() < 0.28
    assert (draw_times(4000, torch.Generator().manual_seed(0), shift=3.0, pure=1.0) == 1).all()


def test_the_loss_is_the_velocitys_squared_error_up_to_the_cap():
    target, found = torch.zeros(2, 3), torch.ones(2, 3)
    assert flow_loss(found, target, torch.tensor([1.0, 1.0])) == 1
    assert torch.isclose(
        flow_loss(found, target, torch.tensor([0.5, 1.0]), cap=100), torch.tensor(2.5)
    )
    assert flow_loss(found, target, torch.tensor([0.01, 0.01]), cap=4.0) == 4
    weight = torch.tensor([[3.0], [1.0]])
    assert flow_loss(found, target, torch.ones(2), weight=weight) == 2


def test_one_step_returns_the_networks_forecast_and_more_steps_visit_it_again():
    seen = []

    def forecast(x, t):
        seen.append(float(t[0]))
        return torch.full_like(x, 5.0)

    noise = normal(2, 3)
    assert torch.allclose(euler_sample(forecast, noise, 1, 3.0), torch.full((2, 3), 5.0))
    assert torch.allclose(euler_sample(forecast, noise, 4, 3.0), torch.full((2, 3), 5.0), atol=1e-5)
    assert seen == [1.0, *time_grid(4, 3.0)[:-1].tolist()]


def test_many_steps_reach_one_of_two_futures_where_one_step_gives_their_mean():
    """Data is -1 or +1 with equal odds; the best forecast from x_t is known in closed form."""

    def posterior_mean(x, t):  # E[x0 | x_t] for x0 = +-1
        t = t[:, None]
        return torch.tanh((1 - t) * x / t.square())

    noise = normal(500, 1)
    once = euler_sample(posterior_mean, noise, 1, 1.0)
    often = euler_sample(posterior_mean, noise, 64, 1.0)
    assert once.abs().max() < 1e-6
    assert (often.abs() > 0.9).float().mean() > 0.95
    assert 0.4 < (often > 0).float().mean() < 0.6
