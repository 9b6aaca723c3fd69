"""Hidden states of chosen layers at chosen tokens, without keeping the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lori_pl.errors import LoriError


@dataclass
class LayerSelection:
    """Which hidden states make a trajectory.

    Args:
        layers: ``all``, or layer numbers from 1 (after the first block) to the model's depth; negative ones count
            from the end.
        final_norm: Take the last layer after the model's final norm, as transformers returns it, or before.
        embedding_layer: Add the input embeddings as layer 0.
    """

    layers: Literal["all"] | list[int] = "all"
    final_norm: bool = True
    embedding_layer: bool = False

    def resolve(self, depth: int, place: str = "layers") -> list[int]:
        """Gives the layer numbers for a model of ``depth`` layers, in order.

        Args:
            depth: Number of layers.
            place: The option that holds this selection, for messages.

        Raises:
            LoriError: If no layer is named, or one is out of range or named twice.
        """
        if isinstance(self.layers, str) and self.layers != "all":
            raise LoriError(f"{place}.layers '{self.layers}': give 'all' or a list of layer numbers")
        numbers = list(range(1, depth + 1)) if self.layers == "all" else [int(layer) for layer in self.layers]
        resolved = [layer + depth + 1 if layer < 0 else layer for layer in numbers]
        wrong = [layer for layer, number in zip(numbers, resolved, strict=True) if not 1 <= number <= depth]
        twice = sorted({number for number in resolved if resolved.count(number) > 1})
        if wrong or twice or not resolved:
            reason = f"{wrong} are out of range" if wrong else f"{twice} are named twice" if twice else "none is named"
            raise LoriError(
                f"{place}.layers {self.layers}: {reason}; the model has layers 1 to {depth} (or -1 to -{depth})"
                + (f"; {place}.embedding_layer adds layer 0" if 0 in wrong else "")
            )
        return ([0] if self.embedding_layer else []) + sorted(resolved)


def base_model(model: PreTrainedModel) -> nn.Module:
    """Gives the model without its language-model head."""
    return model.base_model


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Finds the stack of decoder layers.

    Raises:
        LoriError: If the model has no single stack of ``num_hidden_layers`` modules.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in base_model(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise LoriError(f"{type(model).__name__} has no list of {depth} decoder layers: not a supported causal LM")


def take(hidden: Tensor, columns: Tensor) -> Tensor:
    """Gathers token columns: hidden (B, T, D) and columns (B, N) give (B, N, D)."""
    return hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))


def _hidden_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output[0]


@contextmanager
def record_hidden(
    model: PreTrainedModel, layers: Sequence[int], final_norm: bool, select: Callable[[Tensor], Tensor]
) -> Iterator[dict[int, list[Tensor]]]:
    """Records, for each backbone call in the block, ``select(hidden)`` of each chosen layer.

    Args:
        model: The causal language model.
        layers: Layer numbers, 0 for the embeddings.
        final_norm: Whether the last layer is taken after the final norm.
        select: Picks tokens out of hidden states (B, T, D); what it leaves out is not kept.

    Yields:
        Layer number to one tensor a call.
    """
    stack = decoder_layers(model)
    records: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    handles = []

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            records[layer].append(select(_hidden_of(output)))

        return hook

    def keep_input(_module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        records[0].append(select(args[0] if args else keywords["hidden_states"]))

    try:
        for layer in layers:
            if layer == 0:
                handles.append(stack[0].register_forward_pre_hook(keep_input, with_kwargs=True))
            elif layer == len(stack) and final_norm:
                handles.append(base_model(model).register_forward_hook(keep(layer)))
            else:
                handles.append(stack[layer - 1].register_forward_hook(keep(layer)))
        yield records
    finally:
        for handle in handles:
            handle.remove()


def stack_layers(records: dict[int, list[Tensor]]) -> Tensor:
    """Stacks records to a trajectory (B, L, T, D), the calls in a row along T."""
    return torch.stack([torch.cat(calls, dim=1) for _, calls in sorted(records.items())], dim=1)
