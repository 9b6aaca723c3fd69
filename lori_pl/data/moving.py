"""Batches that go to a device as a whole: what stands in two fields goes once, and from pinned memory nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from typing_extensions import Self


class TensorFields:
    """A dataclass of tensors, of such dataclasses and of dictionaries of tensors; all else stays as it is."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Gives the same with every tensor changed; an object that stands in several fields is changed once."""
        changed: Self = _each(self, change, {})
        return changed

    def to(self, device: torch.device | str) -> Self:
        """Copies the tensors to a device; to a GPU without waiting for it, where they are in pinned memory."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pin_memory(self) -> Self:
        """Copies the tensors to pinned memory; a loader calls it where there is a GPU."""
        return self.each(lambda tensor: tensor.pin_memory())


Fields = TypeVar("Fields", bound=TensorFields)


def _each(value: Any, change: Callable[[Tensor], Tensor], known: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _each(entry, change, known) for name, entry in value.items()}
    if not (isinstance(value, TensorFields) and is_dataclass(value)):
        return value
    if id(value) not in known:
        changed = object.__new__(type(value))
        known[id(value)] = changed
        for field in fields(value):
            setattr(changed, field.name, _each(getattr(value, field.name), change, known))
    return known[id(value)]


@overload
def send(made: Tensor, device: torch.device) -> Tensor: ...
@overload
def send(made: Fields, device: torch.device) -> Fields: ...
def send(made: Any, device: torch.device) -> Any:
    """Copies what a step made on the host to its device: to a GPU from pinned memory, so that nobody waits for it."""
    if device.type == "cuda":
        made = made.pin_memory()
    return made.to(device, non_blocking=True) if isinstance(made, Tensor) else made.to(device)


def pins(trainer: Any) -> bool:
    """Whether a trainer's loaders are to give batches in pinned memory: where they go to a GPU."""
    return trainer is not None and trainer.strategy.root_device.type == "cuda"
