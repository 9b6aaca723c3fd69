"""Gradient checkpointing that keeps the KV cache.

transformers' own drops ``past_key_values`` while training, so latent steps would lose the question without an error.
Here each decoder layer is recomputed from its input *and the keys and values that it found*, which are explicit
inputs; what it adds to the cache is an explicit output. The cache's content is kept once, in the pieces in which the
passes added it: the concatenation that every latent step makes anew is not kept for the backward pass.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lori_pl.models.hidden import decoder_layers
from lori_pl.models.trimming import mlp_at

Piece = tuple[Tensor, Tensor]


class _OneLayer(Cache):
    """A cache view in which one layer finds given keys and values and every other is out of reach."""

    def __init__(self, index: int, past: tuple[Piece, ...]) -> None:
        self.index, self.past = index, past
        self.added: Piece | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx != self.index or self.added is not None:
            raise RuntimeError(f"layer {self.index} wrote to layer {layer_idx} of the cache, or twice")
        self.added = (key_states, value_states)
        if not self.past:
            return self.added
        keys = torch.cat([*(piece[0] for piece in self.past), key_states], dim=-2)
        values = torch.cat([*(piece[1] for piece in self.past), value_states], dim=-2)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return sum(keys.shape[-2] for keys, _ in (*self.past, *([self.added] if self.added else [])))


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Makes every decoder layer of ``model`` recompute its activations in the backward pass.

    Losses and gradients are those without it, with and without a cache. Only while training with gradients on.

    Raises:
        LoriError: If the model has no single stack of decoder layers.
    """
    for index, layer in enumerate(decoder_layers(model)):
        attributes = vars(layer)
        if "plain_forward" in attributes:
            continue
        # bound methods, which a deep copy of the model binds to the copied layer
        attributes["plain_forward"] = layer.forward
        attributes["cache_index"] = index
        attributes["forward"] = MethodType(_checkpointed, layer)


def _checkpointed(layer: nn.Module, *args: Any, **keywords: Any) -> Any:
    plain: Any = layer.plain_forward
    tokens = vars(layer).get("mlp_tokens")

    def forward(*args: Any, **keywords: Any) -> Any:
        with mlp_at(layer, tokens):
            return plain(*args, **keywords)

    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args, **keywords)
    # the cache comes by name (LLaMA) or in second place (GPT-2)
    place = next((i for i, value in enumerate(args) if isinstance(value, Cache)), None)
    name = next((key for key, value in keywords.items() if isinstance(value, Cache)), None)
    cache: Cache | None = args[place] if place is not None else keywords[name] if name is not None else None
    if cache is None:
        return checkpoint(forward, *args, use_reentrant=False, **keywords)
    index = int(layer.cache_index)  # type: ignore[arg-type]
    past = _pieces(cache, index)

    def run(past: tuple[Piece, ...], *args: Any, **keywords: Any) -> tuple[Any, Piece | None]:
        view = _OneLayer(index, past)
        if place is not None:
            args = (*args[:place], view, *args[place + 1 :])
        elif name is not None:
            keywords = {**keywords, name: view}
        return forward(*args, **keywords), view.added

    output, added = checkpoint(run, past, *args, use_reentrant=False, **keywords)
    if added is not None:
        cache.update(*added, index)
        found = cache.layers[index]
        if type(found) is DynamicLayer:  # a sliding window forgets
            vars(found)["pieces"] = (found.keys, (*past, added))
    return output


def _pieces(cache: Cache, index: int) -> tuple[Piece, ...]:
    """What a layer of the cache holds, as the passes added it; in one piece where something else changed it since."""
    found = cache.layers[index] if index < len(cache.layers) else None
    if found is None or not found.is_initialized or found.get_seq_length() == 0:
        return ()
    whole, pieces = vars(found).get("pieces", (None, ()))
    return pieces if whole is found.keys else ((found.keys, found.values),)
