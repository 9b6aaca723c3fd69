"""Where a batch stands while it is read and thought about."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import Cache


@dataclass
class DecodingState:
    """Where a batch stands: what was read, and the last hidden state.

    Args:
        cache: Keys and values of all tokens so far.
        mask: (B, S) true at real tokens of the cache.
        position: (B,) position id of the last real token.
        hidden: (B, 1, D) last hidden state (after the final norm) at the last real token.
        held: (B, n, D) embeddings of real tokens that come next, and are read together with what follows them.
    """

    cache: Cache
    mask: Tensor
    position: Tensor
    hidden: Tensor
    held: Tensor | None = None

    def fork(self) -> DecodingState:
        """Gives a state of the same content, whose cache grows apart from this one's."""
        cache = copy.copy(self.cache)
        # passes put new tensors into a layer of the cache and never write into the old
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return replace(self, cache=cache)

    def hold(self, inputs: Tensor) -> DecodingState:
        """Gives a state that reads embeddings (B, n, D) of real tokens once it is known what follows them."""
        return replace(self, held=inputs)

    def release(self, inputs: Tensor) -> tuple[Tensor, int]:
        """Puts what is held before embeddings (B, n, D), in their type, and says how many tokens that was."""
        if self.held is None:
            return inputs, 0
        return torch.cat([self.held.to(inputs.dtype), inputs], dim=1), self.held.shape[1]

    def select(self, rows: Tensor) -> DecodingState:
        """Gives the state of some rows (N,), none held; the cache, which is cut in place, serves it alone."""
        self.cache.batch_select_indices(rows)
        return DecodingState(self.cache, self.mask[rows], self.position[rows], self.hidden[rows])


@dataclass
class Reading:
    """What reading question, thought and answer under teacher forcing gives.

    Args:
        hidden: (B, A - anchor - 1, D) last hidden states that predict the columns of the answer after the anchor.
        trajectory: (B, L, K, D) states at the latents, if they were asked for and there are any.
        anchor: (B, L, D) states at the anchor, if they were asked for.
        cache: Keys and values of all that was read; ``None`` where it was read in one pass.
    """

    hidden: Tensor
    trajectory: Tensor | None
    anchor: Tensor | None
    cache: Cache | None
