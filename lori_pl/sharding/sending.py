"""The first process's weights, given to the others a part of a module at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lori_pl.errors import LoriError


class Sender:
    """Gives every process the first one's parameters and buffers, a part of a module at a time.

    Args:
        module: The whole.
        device: This process's device.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        # a tied weight has several places
        self.places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        what: list[tuple[str, tuple[int, ...], torch.dtype, str]] = []
        names: dict[int, str] = {}
        for path, part in module.named_modules():
            for held in (part._parameters, part._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        self.places.setdefault(id(tensor), []).append((held, name))
                        first_name = names.setdefault(id(tensor), f"{path}.{name}")
                        what.append((f"{path}.{name}", tuple(tensor.shape), tensor.dtype, first_name))
        first = [what]
        dist.broadcast_object_list(first)
        for theirs, ours in zip(first[0], what, strict=False):
            if theirs != ours:
                raise LoriError(
                    f"the first process built {_described(theirs)}, this one {_described(ours)}: start all with one "
                    "config, in which dtype is not auto, and tie_word_embeddings (backbone.config) as the weights are"
                )
        if len(first[0]) != len(what):
            raise LoriError(f"the first process built {len(first[0])} weights, this one {len(what)}")

    def send(self, part: nn.Module) -> None:
        """Sends what of a part was not sent yet."""
        for module in part.modules():
            for held in (module._parameters, module._buffers):
                for tensor in list(held.values()):
                    # each tensor lives until its turn, so its id is its own
                    if (places := self.places.pop(id(tensor), None)) is not None:
                        self._send(tensor, places)

    def _send(self, tensor: Any, places: list[tuple[dict[str, Any], str]]) -> None:
        if tensor.is_meta:
            value = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        else:
            value = tensor.detach().to(self.device).contiguous()
        if value.numel():
            dist.broadcast(value.view(-1).view(torch.uint8), src=0)  # not every backend knows every type
        if not tensor.is_meta:
            tensor.data = value
            return
        made = nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        for held, name in places:
            held[name] = made


def _described(what: tuple[str, tuple[int, ...], torch.dtype, str]) -> str:
    name, shape, dtype, first = what
    return f"{name} {list(shape)} {dtype}" + ("" if first == name else f" (tied to {first})")
