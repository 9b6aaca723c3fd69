"""Tensors of which each process holds a part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lori_pl.errors import LoriError


def refuse_offload(wanted: bool, device: torch.device) -> None:
    """Refuses to keep in the host's memory what is there already.

    Raises:
        LoriError: If that is wanted without a GPU.
    """
    if wanted and device.type == "cpu":
        raise LoriError("trainer.strategy.cpu_offload is for GPUs: set it to false")


def most_anywhere(count: int, device: torch.device) -> int:
    """The largest of all processes' counts."""
    most = torch.tensor(count, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, on every process; every process must ask. Any other tensor as it is."""
    if isinstance(tensor, DTensor):
        found: Tensor = tensor.full_tensor()
        return found
    return tensor


def part_of(value: Any, like: Any) -> Any:
    """Shards a whole tensor as another of its shape is; anything else, or beside another, stays as it is."""
    if isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    part: Any = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return torch.as_tensor(part)


_SHAPE = "whole_shape"


def keep_shape(module: nn.Module) -> None:
    """Notes the shape of every parameter on it, once: FSDP1 makes a flat piece of it."""
    for parameter in module.parameters():
        vars(parameter).setdefault(_SHAPE, parameter.shape)


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter, also where this process has a part of it."""
    found: torch.Size = vars(parameter).get(_SHAPE, parameter.shape)
    return found


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor | None:
    """Norm of all gradients together, on every process; every process must ask. ``None`` where there is none."""
    parameters = list(parameters)
    gradients = [own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    divided = any(isinstance(parameter, DTensor) or _SHAPE in vars(parameter) for parameter in parameters)
    if not gradients and not divided:
        return None
    device = parameters[0].device
    norms = torch.stack([torch.zeros((), device=device), *(torch.linalg.vector_norm(g).float() for g in gradients)])
    squares = norms.square().sum()
    if divided:
        dist.all_reduce(squares)
    return squares.sqrt()
