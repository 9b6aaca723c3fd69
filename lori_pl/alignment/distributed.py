"""Sums over the ranks of the default process group; without one, or with one rank, each is the identity.

Tensors must lie on a device that the process group's backend serves, and every rank must make the same calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """True where torch.distributed is initialised with more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _SumAcrossRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def sum_across_ranks(tensor: Tensor) -> Tensor:
    r"""`y = sum_rank x_rank` on every rank, with gradients.

    The backward sums the gradients of all ranks, `dx_rank = sum_rank' dy_rank'`. Where every rank computes the same
    loss f(y), each parameter's gradient is then world-size times too large on each rank and exact after the mean over
    ranks that DDP and FSDP take.
    """
    return _SumAcrossRanks.apply(tensor) if is_distributed() else tensor


def mean_across_ranks(total: Tensor, count: Tensor) -> Tensor:
    """This rank's share of `sum_rank total / sum_rank count`, times the ranks: its mean over them is that mean.

    Args:
        total: This rank's sum or sums, with gradients.
        count: Of how many each is the sum, of the same shape, without; a mean of nothing is 0.
    """
    ranks = dist.get_world_size() if is_distributed() else 1
    return total * ranks / sum_across_ranks(count.to(total.dtype)).clamp_min(1)


@torch.no_grad()
def average_across_ranks(scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means of scalars over all ranks, by the same names on each, in one collective."""
    if not is_distributed() or not scalars:
        return dict(scalars)
    together = torch.stack([scalar.float() for scalar in scalars.values()])
    dist.all_reduce(together)
    return dict(zip(scalars, (together / dist.get_world_size()).unbind(), strict=True))


@torch.no_grad()
def batch_deviation(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard deviation (L,) of all entries of each layer of (B, L, D), over the batches of all ranks (unbiased).

    Args:
        states: (B, L, D).
        mask: (B,) true at rows that count; ``None`` counts all.

    Returns:
        The deviations; 1 where fewer than two entries count, so that a distance of nothing stays 0 when divided by it.
    """
    counted = states.new_ones(len(states), 1, 1) if mask is None else mask[:, None, None].to(states.dtype)
    count = sum_across_ranks(counted.sum() * states.shape[2])
    mean = sum_across_ranks((states * counted).sum((0, 2))) / count.clamp_min(1)
    squares = sum_across_ranks(((states - mean[:, None]).square() * counted).sum((0, 2)))
    return (squares / (count - 1).clamp_min(1)).sqrt().masked_fill(count < 2, 1.0)


@torch.no_grad()
def copy_from_first_rank(module: nn.Module) -> None:
    """Give every rank the first rank's parameters and buffers of `module`, bit for bit."""
    if is_distributed():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)
