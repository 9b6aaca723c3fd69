"""One decoder layer's part of a KV cache, as an explicit input and output of the layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

Piece = tuple[Tensor, Tensor]
"""Keys and values (B, G, n, d) of some tokens."""


class OneLayer(Cache):
    """A cache view in which one layer finds given keys and values and every other is out of reach.

    Args:
        past: What it finds, in as many pieces as there were passes.
        index: The layer's number; ``None`` not to look at who asks.

    Attributes:
        added: What the layer added.
        whole: What it attends to.
    """

    def __init__(self, past: tuple[Piece, ...], index: int | None = None) -> None:
        self.index, self.past = index, past
        self.added: Piece | None = None
        self.whole: Piece | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes what the layer adds and gives what it attends to."""
        if self.index is not None and (layer_idx != self.index or self.added is not None):
            raise RuntimeError(f"layer {self.index} wrote to layer {layer_idx} of the cache, or twice")
        self.added = (key_states, value_states)
        if self.past:
            key_states = torch.cat([*(piece[0] for piece in self.past), key_states], dim=-2)
            value_states = torch.cat([*(piece[1] for piece in self.past), value_states], dim=-2)
        self.whole = (key_states, value_states)
        return self.whole

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that the layer has."""
        return sum(keys.shape[-2] for keys, _ in (*self.past, *([self.added] if self.added else [])))


def find_cache(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[int | str | None, Cache | None]:
    """Where in a layer's arguments the cache is, by name (LLaMA) or in second place (GPT-2), and the cache."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *keywords.items()]
    return next(((place, value) for place, value in given if isinstance(value, Cache)), (None, None))


def put_cache(
    args: tuple[Any, ...], keywords: dict[str, Any], place: int | str | None, cache: Cache | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another cache in its place."""
    if isinstance(place, int):
        return (*args[:place], cache, *args[place + 1 :]), keywords
    return args, keywords if place is None else {**keywords, place: cache}
