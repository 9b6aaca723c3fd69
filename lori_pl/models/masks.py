"""Attention masks, made once a pass and without waiting for the device.

Given (B, T) masks, transformers looks whether there is any padding, and so waits for the device in every pass: with K
latents K + 1 times a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_OWN_MASKS = frozenset({"bloom", "falcon", "mpt"})
"""Architectures that read the (B, T) mask themselves, for ALiBi."""


def attention_mask(lm: PreTrainedModel, mask: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """Makes the mask that a model's attention takes.

    Args:
        lm: The causal language model.
        mask: (B, S + n) true at real tokens, those in the cache first.
        queries: n, the tokens of this pass.
        dtype: Type of the hidden states.

    Returns:
        (B, 1, n, S + n), boolean for SDPA and additive for eager attention; (B, S + n) as integers where transformers
        has to make it: flash attention, sliding windows, ALiBi. Padding attends to itself, so that no row is empty.
    """
    config = lm.config.get_text_config()
    kind = config._attn_implementation
    if kind not in ("sdpa", "eager") or makes_own_mask(config):
        return mask.long()
    column = torch.arange(mask.shape[1], device=mask.device)
    row = column[mask.shape[1] - queries :, None]
    allowed = (((column <= row) & mask.bool()[:, None]) | (column == row))[:, None]
    if kind == "sdpa":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def makes_own_mask(config: Any) -> bool:
    """Whether a model of this config has to make its mask itself: for ALiBi, or for sliding windows."""
    return config.model_type in _OWN_MASKS or slides(config)


def positions(mask: Tensor) -> Tensor:
    """Position ids (B, T) of the tokens of ``mask`` (B, T), padding on either side."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def slides(config: object) -> bool:
    """Whether a model of this config has layers with a sliding window, whose cache forgets."""
    layers = getattr(config, "layer_types", None)
    if layers:
        return any(layer != "full_attention" for layer in layers)
    return getattr(config, "sliding_window", None) is not None
