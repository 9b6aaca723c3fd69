"""torch.compile of the decoder layers: a graph for each kind of pass, and not for each layer or length.

A latent step is one short pass through every layer, whose many small operations cost more to begin than to do. Given a
cache object, torch would compile every layer anew, and again for what the cache holds; so each layer gets the keys and
values that it finds as inputs, and its number does not count. Question, latent and answer are then three graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lori_pl.errors import LoriError
from lori_pl.models.attention import is_recorded
from lori_pl.models.hidden import decoder_layers
from lori_pl.models.masks import makes_own_mask
from lori_pl.models.one_layer import OneLayer, Piece, find_cache, put_cache


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compiles the decoder layers for training; evaluation, and a pass whose attention is recorded, run as they are.

    Losses and gradients are those without it to rounding; dropout draws other numbers. The names of weights stay. The
    last layer is left out: its MLP does not run on the same tokens in every pass.

    Args:
        model: The causal language model.
        backend: torch.compile's.

    Raises:
        LoriError: If the model has sliding windows or ALiBi, whose layers take more than keys, values and a mask.
    """
    if makes_own_mask(model.config.get_text_config()):
        raise LoriError("backbone.compile serves no model with sliding windows or ALiBi: leave it out")
    # the number of a layer, which attention gives its cache, would make a graph of its own for each
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    run = torch.compile(_run, backend=backend, dynamic=True)
    for index, layer in enumerate(list(decoder_layers(model))[:-1]):
        # a bound method, which a deep copy of the model binds to the copied layer
        vars(layer).update(run=run, cache_index=index, forward=MethodType(_compiled, layer))


def _run(
    forward: Callable[..., Any],
    layer: nn.Module,
    found: tuple[Piece, ...],
    place: int | str | None,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
) -> tuple[Any, Piece | None]:
    view = OneLayer(found)
    args, keywords = put_cache(args, keywords, place, view)
    return forward(layer, *args, **keywords), view.whole


def _compiled(layer: nn.Module, *args: Any, **keywords: Any) -> Any:
    plain = type(layer).forward
    # what is recorded in a graph would be a graph of its own for each layer
    if not (layer.training and torch.is_grad_enabled()) or is_recorded():
        return plain(layer, *args, **keywords)
    place, cache = find_cache(args, keywords)
    found: tuple[Piece, ...] = ()
    if cache is not None:
        held = cache.layers[layer.cache_index]
        if held.is_initialized and held.get_seq_length():
            found = ((held.keys, held.values),)
        args, keywords = put_cache(args, keywords, place, None)
    output, whole = layer.run(plain, layer, found, place, args, keywords)  # type: ignore[operator]
    if cache is not None and found:
        held.keys, held.values = whole
    elif cache is not None:
        held.update(*whole)
    return output
