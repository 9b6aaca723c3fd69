"""Sharded training: each process holds a part of every weight, gradient and moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lori_pl.errors import LoriError
from lori_pl.sharding.fsdp1 import FSDP1Strategy, root_of, summoned
from lori_pl.sharding.fsdp2 import ShardedStrategy, shard
from lori_pl.sharding.parts import gradient_norm, most_anywhere, own_part, part_of, whole

__all__ = [
    "FSDP1Strategy",
    "ShardedStrategy",
    "assembled",
    "gradient_norm",
    "is_sharded",
    "loading",
    "most_anywhere",
    "own_part",
    "part_of",
    "refuse_own_fsdp",
    "shard",
    "shards",
    "whole",
]


def shards(strategy: Any) -> bool:
    """Whether a strategy divides weights among the processes."""
    return isinstance(strategy, ShardedStrategy | FSDP1Strategy)


def refuse_own_fsdp(strategy: Any) -> None:
    """Refuses Lightning's FSDP1 as it comes, by its name or itself.

    Raises:
        LoriError: If it is that.
    """
    if type(strategy) is FSDPStrategy or strategy in FSDPStrategy.get_registered_strategies():
        raise LoriError(
            "trainer.strategy fsdp is Lightning's own, whose checkpoints no other strategy reads: take sharded "
            "(FSDP2), or fsdp1"
        )


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are divided."""
    return isinstance(module, FSDPModule) or root_of(module) is not None


def loading(strategy: Any) -> AbstractContextManager[Any]:
    """Where language models are to be loaded: under a strategy that divides them by the first process alone.

    The others build them without weights, on the meta device, and get their parts from the first.
    """
    if shards(strategy) and not strategy.is_global_zero:
        return torch.device("meta")
    return nullcontext()


@contextmanager
def assembled(module: nn.Module, part: nn.Module) -> Iterator[None]:
    """Within the block the weights of a part stand as a whole, and what is set there is kept in every process's part.

    Nothing that computes with other weights may be called there.

    Args:
        module: The whole, sharded or not.
        part: A part of it that is not sharded by itself.
    """
    if root_of(module) is not None:
        with summoned(module):
            yield
        return
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    yield
    values = {name: weight.detach().clone() for name, weight in part.named_parameters()}
    module.reshard()
    with torch.no_grad():
        for name, weight in part.named_parameters():
            weight.copy_(part_of(values[name], weight))
