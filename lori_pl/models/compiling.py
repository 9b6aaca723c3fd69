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
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from lori_pl.errors import LoriError
from lori_pl.models.hidden import decoder_layers
from lori_pl.models.masks import makes_own_mask

Pair = tuple[Tensor, Tensor]


class _OneLayer(Cache):
    """A cache view of one layer: what it found, and then what it has."""

    def __init__(self, found: Pair | None) -> None:
        self.pair = found

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if self.pair is not None:
            key_states = torch.cat([self.pair[0], key_states], dim=2)
            value_states = torch.cat([self.pair[1], value_states], dim=2)
        self.pair = (key_states, value_states)
        return self.pair


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compiles the decoder layers for training; evaluation runs as it is.

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
    forward: Callable[..., Any], layer: nn.Module, found: Pair | None, place: int | str | None, args: Any, keywords: Any
) -> tuple[Any, Pair | None]:
    view = _OneLayer(found)
    if isinstance(place, int):
        args = (*args[:place], view, *args[place + 1 :])
    elif place is not None:
        keywords = {**keywords, place: view}
    return forward(layer, *args, **keywords), view.pair


def _compiled(layer: nn.Module, *args: Any, **keywords: Any) -> Any:
    plain = type(layer).forward
    if not (layer.training and torch.is_grad_enabled()):
        return plain(layer, *args, **keywords)
    # the cache comes by name (LLaMA) or in second place (GPT-2)
    places = [(i, value) for i, value in [*enumerate(args), *keywords.items()] if isinstance(value, Cache)]
    place, cache = places[0] if places else (None, None)
    found: Pair | None = None
    if cache is not None:
        held = cache.layers[layer.cache_index]
        if held.is_initialized and held.get_seq_length():
            found = (held.keys, held.values)
        args = tuple(None if value is cache else value for value in args)
        keywords = {key: None if value is cache else value for key, value in keywords.items()}
    output, pair = layer.run(plain, layer, found, place, args, keywords)  # type: ignore[operator]
    if cache is not None:
        if found is None:
            held.update(*pair)
        else:
            held.keys, held.values = pair
    return output
