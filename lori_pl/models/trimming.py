"""The last layer's MLP, run only on tokens whose last hidden state somebody reads.

Of a question's tokens only the last one's is read, and of an explicit sequence's those that predict a target; the
others serve by their keys and values, which stand before the MLP. In a model of L layers the rest is wasted: about a
share of 0.7 / L of a question's forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lori_pl.models.hidden import decoder_layers


@contextmanager
def last_mlp_at(lm: PreTrainedModel, tokens: Tensor | None) -> Iterator[None]:
    """Within the block the last layer's MLP runs on some tokens; the others' last hidden states mean nothing.

    Args:
        lm: The causal language model; one whose MLP takes more than the hidden states runs it on all.
        tokens: (N,) numbers of the tokens in the flattened (B, T) of the pass, none twice where gradients are wanted;
            ``None`` for all.
    """
    layer = decoder_layers(lm)[-1]
    layer = getattr(layer, "_fsdp_wrapped_module", layer)  # FSDP1's wrapper
    if hasattr(layer, "plain_forward"):  # a checkpointed layer is run again later
        vars(layer)["mlp_tokens"] = tokens
        try:
            yield
        finally:
            del vars(layer)["mlp_tokens"]
    else:
        with mlp_at(layer, tokens):
            yield


@contextmanager
def mlp_at(layer: nn.Module, tokens: Tensor | None) -> Iterator[None]:
    """As :func:`last_mlp_at`, for a layer that runs in the block."""
    mlp = getattr(layer, "mlp", None)
    if tokens is None or not isinstance(mlp, nn.Module):
        yield
        return
    whole: list[Tensor] = []

    def cut(_module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if len(args) != 1 or keywords:
            return None
        whole.append(args[0])
        return (args[0].flatten(0, 1)[tokens][None],), keywords

    def spread(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not whole:
            return None
        few, *others = (output,) if isinstance(output, Tensor) else output
        all_ = few.new_zeros(whole[0].shape).flatten(0, 1).index_copy(0, tokens, few[0]).view_as(whole.pop())
        return (all_, *others) if others else all_

    handles = [mlp.register_forward_pre_hook(cut, with_kwargs=True), mlp.register_forward_hook(spread)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
