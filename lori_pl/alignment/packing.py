"""What is stored: statistics of a core in its entries' standard deviations, a symmetric matrix once; parts by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def pack_statistics(statistics: Mapping[str, Tensor], deviation: Tensor) -> dict[str, Tensor]:
    """Divide by the deviations, so that half precision holds the values, and keep each symmetric matrix once.

    Args:
        statistics: `mean` (B, blocks, d), and where it is there `second` (B, blocks, d, d), symmetric.
        deviation: (blocks, d), positive.

    Returns:
        The same, with `second` as the upper triangle, row by row: (B, blocks, d (d + 1) / 2).
    """
    packed = {**statistics, "mean": statistics["mean"] / deviation}
    if "second" in statistics:
        rows, columns = _triangle(deviation)
        scale = deviation[..., rows] * deviation[..., columns]
        packed["second"] = statistics["second"][..., rows, columns] / scale
    return packed


def unpack_statistics(packed: Mapping[str, Tensor], deviation: Tensor) -> dict[str, Tensor]:
    """The inverse of `pack_statistics` to rounding, in the deviations' dtype and on their device."""
    statistics = {name: tensor.to(deviation) for name, tensor in packed.items()}
    statistics["mean"] = statistics["mean"] * deviation
    if "second" in packed:
        rows, columns = _triangle(deviation)
        values = statistics["second"] * (deviation[..., rows] * deviation[..., columns])
        size = deviation.shape[-1]
        second = values.new_empty(*values.shape[:-1], size, size)
        second[..., rows, columns] = values
        second[..., columns, rows] = values
        statistics["second"] = second
    return statistics


def _triangle(deviation: Tensor) -> tuple[Tensor, Tensor]:
    size = deviation.shape[-1]
    rows, columns = torch.triu_indices(size, size, device=deviation.device)
    return rows, columns


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin so, without that."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
