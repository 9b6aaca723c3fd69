"""What attention reads, recorded while a model runs: queries, keys and values of every layer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lori_pl.errors import LoriError

_recorded: ContextVar[bool] = ContextVar("recorded", default=False)


def is_recorded() -> bool:
    """Whether a `recorded_attention` is around."""
    return _recorded.get()


@dataclass
class AttentionInputs:
    """What one layer's attention reads, positions applied.

    Args:
        query: (B, H, T, d).
        key: (B, G, S, d), G key-value heads, each of which serves H / G queries; S is more than T where tokens stand
            before the queries'.
        value: (B, G, S, d).
        scaling: What the products of query and key are multiplied with.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float


@contextmanager
def recorded_attention(lm: PreTrainedModel) -> Iterator[list[AttentionInputs]]:
    """Records what attention reads, layer by layer in order, for every pass in the block; results do not change.

    Args:
        lm: The causal language model, with any attention that transformers dispatches by name.

    Yields:
        One entry a layer and pass.

    Raises:
        LoriError: If the model ran and nothing was recorded.
    """
    name = lm.config.get_text_config()._attn_implementation
    plain = ALL_ATTENTION_FUNCTIONS.get(name)
    found: list[AttentionInputs] = []

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **keywords: Any) -> Any:
        scaling = keywords.get("scaling")
        found.append(AttentionInputs(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling))
        # eager attention is no entry: each architecture has its own
        attend = plain or sys.modules[type(module).__module__].eager_attention_forward
        return attend(module, query, key, value, *args, **keywords)

    ALL_ATTENTION_FUNCTIONS[name] = record
    token = _recorded.set(True)
    try:
        yield found
    finally:
        _recorded.reset(token)
        del ALL_ATTENTION_FUNCTIONS[name]
        if ALL_ATTENTION_FUNCTIONS.get(name) is not plain:  # not transformers' own: somebody had set it
            ALL_ATTENTION_FUNCTIONS[name] = plain
    if not found:
        raise LoriError(
            f"{type(lm).__name__} does not take its attention from transformers' interface, so it cannot be read: take "
            "another model"
        )
