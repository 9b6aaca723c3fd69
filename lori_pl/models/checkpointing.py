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
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lori_pl.models.hidden import decoder_layers
from lori_pl.models.one_layer import OneLayer, Piece, find_cache, put_cache
from lori_pl.models.trimming import mlp_at


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
    place, cache = find_cache(args, keywords)
    if cache is None:
        return checkpoint(forward, *args, use_reentrant=False, **keywords)
    index = int(layer.cache_index)  # type: ignore[arg-type]
    past = _pieces(cache, index)

    def run(past: tuple[Piece, ...], *args: Any, **keywords: Any) -> tuple[Any, Piece | None]:
        view = OneLayer(past, index)
        args, keywords = put_cache(args, keywords, place, view)
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
