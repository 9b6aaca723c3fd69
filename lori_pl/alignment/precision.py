"""Statistics are computed in full precision, whatever autocast or the backbone's dtype says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast is off on `device`; no-op where the device has no autocast (meta)."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in fp32, or as it is where it is fp64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def accumulator_device(device: torch.device | str | None) -> torch.device:
    """Where fp64 sums for data on `device` live: `device` itself, or the CPU for MPS, which has no fp64."""
    resolved = torch.device("cpu" if device is None else device)
    return torch.device("cpu") if resolved.type == "mps" else resolved
