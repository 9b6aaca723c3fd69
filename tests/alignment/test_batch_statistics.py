"""Statistics over the batch of all processes, here of one."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from lori_pl.alignment.distributed import batch_deviation, mean_across_ranks


def test_the_deviation_is_that_of_each_layers_entries():
    states = torch.randn(5, 3, 4) * torch.tensor([1.0, 10.0, 0.1])[:, None] + 7
    expected = torch.stack([states[:, layer].std() for layer in range(3)])
    assert_close(batch_deviation(states), expected)
    mask = torch.tensor([True, False, True, True, False])
    assert_close(batch_deviation(states, mask), torch.stack([states[mask][:, layer].std() for layer in range(3)]))


def test_a_mean_of_sums_is_the_mean():
    losses = torch.rand(7, requires_grad=True)
    mean = mean_across_ranks(losses.sum(), torch.tensor(7))
    assert_close(mean, losses.mean())
    (gradient,) = torch.autograd.grad(mean, [losses])
    assert_close(gradient, torch.full((7,), 1 / 7))
