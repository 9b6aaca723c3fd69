"""What stands between question and answer: recurrent latents, learned fillers, or nothing.

A thought is a module with a count of latents and a rule that extends a decoding state. The reasoner owns the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lori_pl.errors import LoriError

if TYPE_CHECKING:
    from lori_pl.models.reasoner import DecodingState, LatentReasoner

LatentScale = Literal["embedding", "unit"]


class Projector(nn.Module):
    """Turns the last hidden state into the next latent: Linear, GELU, Linear, LayerNorm.

    In pretrained models the last hidden state is many times longer than an embedding, and a LayerNorm of unit gain
    gives vectors of length sqrt(D); ``embedding`` starts its gain at the embedding matrix's RMS entry instead
    (reconstruction; CODI uses the unit form).

    Args:
        hidden: Hidden size D.
        embedding_rms: RMS entry of the embedding matrix.
        scale: ``embedding`` or ``unit``.
    """

    def __init__(self, hidden: int, embedding_rms: float, scale: LatentScale = "embedding") -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.norm = nn.LayerNorm(hidden)
        if scale == "embedding":
            nn.init.constant_(self.norm.weight, embedding_rms)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (B, 1, D) last hidden states to (B, 1, D) input embeddings."""
        # a backbone in half precision keeps its projector in fp32
        return self.norm(self.layers(hidden.to(self.norm.weight.dtype)))


class Thought(nn.Module):
    """Base of all thoughts; by itself it thinks nothing (No-CoT and explicit CoT).

    Args:
        latents: Number of latents K; another may be asked for at run time.

    Raises:
        LoriError: If K is negative.
    """

    kind = "none"

    def __init__(self, latents: int = 0) -> None:
        super().__init__()
        if latents < 0:
            raise LoriError(f"latents is {latents}: give 0 or more (0 is <bot><eot> alone)")
        self.latents = latents

    def count(self, latents: int | None) -> int:
        """Gives the number of latents for one run: ``latents``, or the thought's own for ``None``.

        Raises:
            LoriError: If it is negative, or more than this kind of thought can take.
        """
        if latents is None:
            return self.latents
        if latents < 0:
            raise LoriError(f"latents is {latents}: give 0 or more (0 is <bot><eot> alone)")
        if (most := self.most) is not None and latents > most:
            raise LoriError(f"latents is {latents}, but this reasoner ({self.kind}) can take at most {most}")
        return latents

    @property
    def most(self) -> int | None:
        """The most latents that may be asked for; ``None`` where any number may."""
        return 0

    def embeddings(self, batch: int, latents: int) -> Tensor | None:
        """Latent inputs (B, K, D) that are known before the question is read, if they are."""
        return None

    def extend(self, reasoner: LatentReasoner, state: DecodingState, latents: int) -> DecodingState:
        """Runs the latent steps on a state whose last hidden state is that of ``<bot>``."""
        return state


class RecurrentThought(Thought):
    """K recurrent latents: z_1 from the last hidden state at ``<bot>``, z_(k+1) from the one at z_k.

    Args:
        latents: K.
        projector: Maps a last hidden state to the next input.
    """

    kind = "latent"

    def __init__(self, latents: int, projector: nn.Module) -> None:
        super().__init__(latents)
        # parameters that no step uses would stall data parallelism
        self.projector = projector.requires_grad_(latents > 0)

    @property
    def most(self) -> None:
        """Any number of latents may be asked for."""
        return None

    def extend(self, reasoner: LatentReasoner, state: DecodingState, latents: int) -> DecodingState:
        """Runs K cached single-token passes."""
        for _ in range(latents):
            state = reasoner.extend(state, self.projector(state.hidden))
        return state


class PauseThought(Thought):
    """K learned filler embeddings: the compute of latents without their recurrence (Goyal et al., 2024).

    Args:
        latents: K.
        hidden: Hidden size D.
        embedding_rms: RMS entry of the embedding matrix, the fillers' initial scale.
    """

    kind = "pause"

    def __init__(self, latents: int, hidden: int, embedding_rms: float) -> None:
        super().__init__(latents)
        self.fillers = nn.Parameter(torch.randn(latents, hidden) * embedding_rms, requires_grad=latents > 0)

    @property
    def most(self) -> int:
        """As many as were learned."""
        return self.latents

    def embeddings(self, batch: int, latents: int) -> Tensor:
        """Gives the fillers (B, K, D) for every row."""
        return self.fillers[:latents].expand(batch, -1, -1)

    def extend(self, reasoner: LatentReasoner, state: DecodingState, latents: int) -> DecodingState:
        """Runs all fillers in one pass."""
        if latents == 0:
            return state
        return reasoner.extend(state, self.embeddings(state.mask.shape[0], latents))
