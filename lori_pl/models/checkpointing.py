"""Gradient checkpointing that keeps the KV cache.

transformers' own drops ``past_key_values`` while training, so latent steps would lose the question without an error.
Here each decoder layer is recomputed from its input *and the keys and values that it found*, which are explicit
inputs; what it adds to the cache is an explicit output.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lori_pl.models.hidden import decoder_layers


class _OneLayer(Cache):
    """A cache view in which one layer starts from given keys and values and every other is out of reach."""

    def __init__(self, index: int, keys: Tensor | None, values: Tensor | None) -> None:
        self.index, self.keys, self.values = index, keys, values

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        if layer_idx != self.index:
            raise RuntimeError(f"layer {self.index} wrote to layer {layer_idx} of the cache")
        self.keys = key_states if self.keys is None else torch.cat([self.keys, key_states], dim=-2)
        self.values = value_states if self.values is None else torch.cat([self.values, value_states], dim=-2)
        return self.keys, self.values


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Makes every decoder layer of ``model`` recompute its activations in the backward pass.

    Losses and gradients are those without it, with and without a cache. Only while training with gradients on.
    """
    for index, layer in enumerate(decoder_layers(model)):
        layer.forward = _checkpointed(layer.forward, index, layer)


def _checkpointed(forward: Any, index: int, layer: torch.nn.Module) -> Any:
    @functools.wraps(forward)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(*args, **keywords)
        # the cache comes by name (LLaMA) or in second place (GPT-2)
        place = next((i for i, a in enumerate(args) if isinstance(a, Cache)), None)
        cache = keywords.get("past_key_values") if place is None else args[place]
        if cache is None:
            return checkpoint(forward, *args, use_reentrant=False, **keywords)
        found = cache.layers[index] if index < len(cache.layers) else None
        past = (found.keys, found.values) if found is not None and found.is_initialized else (None, None)

        def run(past: tuple[Tensor | None, Tensor | None], *args: Any, **keywords: Any) -> tuple[Any, Tensor, Tensor]:
            view = _OneLayer(index, *past)
            if place is None:
                keywords["past_key_values"] = view
            else:
                args = (*args[:place], view, *args[place + 1 :])
            output = forward(*args, **keywords)
            return output, view.keys, view.values  # type: ignore[return-value]

        output, keys, values = checkpoint(run, past, *args, use_reentrant=False, **keywords)
        if type(found) is DynamicLayer:
            if not found.is_initialized:
                found.lazy_initialization(keys, values)
            found.keys, found.values = keys, values
        else:  # a sliding window keeps only its last tokens
            added = past[0].shape[-2] if past[0] is not None else 0
            cache.update(keys[..., added:, :], values[..., added:, :], index)
        return output

    return wrapped
