"""Floating-point operations, a multiplication and an addition as two, counted as they are carried out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from lori_pl.regions import profiled
from lori_pl.sharding import is_sharded

Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores, and the sum of the values."""
    problems, heads, width, entries = query
    return 2 * problems * heads * width * key[-2] * (entries + value[-1])


def _attention_backward(_gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """The scores once more, and the gradients of scores, values, queries and keys."""
    problems, heads, width, entries = query
    return 2 * problems * heads * width * key[-2] * (3 * entries + 2 * value[-1])


_FORMULAS = {
    **flop_registry,
    # PyTorch's own list has the kernels of GPUs alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
}


SAMPLES = 20
"""Least number of batches that are counted where some stand for all, evenly spread: a count takes time."""


def can_count(method: Any) -> bool:
    """Whether the operations of a method's passes are seen: compiled layers and sharded weights are not looked into."""
    return not (method.backbone.compile or is_sharded(method))


class Arithmetic(TorchDispatchMode):
    """Counts matrix products, convolutions and attention within its block, and changes none of their bits.

    PyTorch's ``FlopCounterMode`` takes operations apart and so rounds otherwise. In inference mode nothing is seen.

    Attributes:
        total: Operations so far.
        regions: What was computed in the named regions of a step, their backward passes apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.regions: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carries an operation out and takes note of what it took."""
        out = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out

    @contextmanager
    def counting(self) -> Iterator[Arithmetic]:
        """Counts within the block, by region too."""
        with self, profiled(self._region):
            yield self

    def _region(self, name: str) -> AbstractContextManager[None]:
        return self._entered(name.rpartition("/")[2])

    @contextmanager
    def _entered(self, name: str) -> Iterator[None]:
        before = self.total
        try:
            yield
        finally:
            self.regions[name] = self.regions.get(name, 0) + self.total - before
