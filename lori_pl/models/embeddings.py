"""Both ends of a language model: the embedding table with its new rows, and the head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lori_pl.data.tokenizer import BEGIN_OF_THOUGHT, END_OF_THOUGHT, load_tokenizer
from lori_pl.errors import LoriError


def grow_embeddings(model: PreTrainedModel, size: int) -> None:
    """Resizes the embeddings to ``size`` rows (ties kept); a new row is the mean of the old ones."""
    old = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size, mean_resizing=False)
    _average_rows(model, list(range(old, size)), old)


def hold_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None, revision: str | None = None
) -> None:
    """Makes sure that the embeddings have a row for every id of a tokenizer, and that markers start from the mean.

    Args:
        model: The model.
        tokenizer: The tokenizer, markers added.
        name: Hub id, folder or GGUF file that the model was loaded from; ``None`` for random weights.
        revision: Revision of a hub repository.
    """
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        grow_embeddings(model, len(tokenizer))
    elif name is not None:
        start_markers(model, tokenizer, name, revision)


def start_markers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, revision: str | None = None
) -> None:
    """Starts markers that took spare rows of a padded table (Qwen's) from the mean, as added rows do.

    Args:
        model: The model, loaded from ``name``.
        tokenizer: The tokenizer, markers added; without them nothing happens.
        name: Hub id, folder or GGUF file. Markers that its own tokenizer knows were trained, and stay.
        revision: Revision of a hub repository.
    """
    markers = sorted(tokenizer.get_vocab().keys() & {BEGIN_OF_THOUGHT, END_OF_THOUGHT})
    if not markers:
        return
    try:
        own = load_tokenizer(name, False, revision)
    except LoriError:
        return  # a model without a tokenizer says nothing about its rows
    new = [tokenizer.convert_tokens_to_ids(marker) for marker in markers if marker not in own.get_vocab()]
    if new:
        _average_rows(model, new, min(len(own), *new))


def copy_marker_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: PreTrainedTokenizerBase, token: str
) -> None:
    """Starts markers as copies of a token, at both ends of the model.

    Args:
        model: The model.
        tokenizer: The tokenizer, markers added.
        known: The tokenizer that the model came with: markers that it has were trained, and stay.
        token: A token of the tokenizer.
    """
    new = tokenizer.get_vocab().keys() & {BEGIN_OF_THOUGHT, END_OF_THOUGHT} - known.get_vocab().keys()
    rows, row = tokenizer.convert_tokens_to_ids(sorted(new)), tokenizer.convert_tokens_to_ids(token)
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            if weight.device.type != "meta":
                weight[rows] = weight[row].clone()


def _average_rows(model: PreTrainedModel, rows: list[int], known: int) -> None:
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for weight in {id(table): table for table in tables}.values():
            if weight.device.type != "meta":
                weight[rows] = weight[:known].float().mean(0).to(weight.dtype)


def head_logits(model: PreTrainedModel, hidden: Tensor, rows: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Applies the language-model head to chosen hidden states only.

    Args:
        model: The causal language model.
        hidden: (..., D) states after the final norm.
        rows: Ids (N,) and rows (N, D) that take the place of the head's own.

    Returns:
        (..., V) logits, with the scale or soft cap that the architecture puts on them.
    """
    head = model.get_output_embeddings()
    logits: Tensor = head(hidden)
    if rows is not None:
        ids, weight = rows
        bias = head.bias[ids] if getattr(head, "bias", None) is not None else None
        logits.index_copy_(-1, ids, F.linear(hidden, weight.to(hidden.dtype), bias).to(logits.dtype))
    config = model.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
