"""What stands between question and answer: latents one after the other or together, learned fillers, or nothing.

A thought is a module with a count of latents and a rule that extends a decoding state. The reasoner owns the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lori_pl.errors import LoriError, check_choice

if TYPE_CHECKING:
    from lori_pl.models.reasoner import LatentReasoner
    from lori_pl.models.state import DecodingState

LatentScale = Literal["embedding", "unit"]
Reasoning = Literal["latent", "parallel", "pause", "none", "words"]
Then = Literal["answer", "words"]
MARKED: frozenset[Reasoning] = frozenset({"latent", "parallel", "pause"})
"""The kinds whose thought stands between ``<bot>`` and ``<eot>``."""


@dataclass(frozen=True)
class ThoughtSettings:
    """What makes a thought, weights apart.

    Args:
        reasoning: ``latent`` (recurrent latents), ``parallel`` (latents updated together), ``pause`` (learned fillers),
            ``none`` (No-CoT) or ``words`` (explicit CoT: the rationale is generated).
        latents: K.
        projector: Whether a latent is the projected last hidden state, or that state as it is.
        latent_scale: Initial gain of the projector's LayerNorm.
        passes: Passes over the latents, where they are updated together.
        then: What follows the thought: the ``answer`` behind its prompt, or ``words``, the rest of a rationale, the
            prompt and the answer, all written by the model (a student in the middle of its stages).

    Raises:
        LoriError: If a value is out of range.
    """

    reasoning: Reasoning = "latent"
    latents: int = 5
    projector: bool = True
    latent_scale: LatentScale = "embedding"
    passes: int = 3
    then: Then = "answer"

    def __post_init__(self) -> None:
        """Checks the values."""
        check_choice("reasoning", self.reasoning, Reasoning)
        check_choice("latent_scale", self.latent_scale, LatentScale)
        check_choice("then", self.then, Then)
        if type(self.latents) is not int or self.latents < 0:
            raise LoriError(f"latents is {self.latents!r}: give 0 or more (0 is <bot><eot> alone)")
        if type(self.passes) is not int or self.passes < 1:
            raise LoriError(f"passes is {self.passes!r}: give 1 or more")

    def build(self, hidden: int, embedding_rms: float) -> Thought:
        """Makes the thought for a model of hidden size ``hidden`` whose embeddings have this RMS entry."""

        def projector() -> nn.Module:
            return Projector(hidden, embedding_rms, self.latent_scale) if self.projector else nn.Identity()

        match self.reasoning:
            case "latent":
                return RecurrentThought(self.latents, projector())
            case "parallel":
                return ParallelThought(self.latents, self.passes, hidden, embedding_rms, projector())
            case "pause":
                return PauseThought(self.latents, hidden, embedding_rms)
        return Thought()


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

    """

    kind = "none"

    def __init__(self, latents: int = 0) -> None:
        super().__init__()
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

    def passes_of(self, latents: int) -> int:
        """Passes, one after the other, that this many latents take once the question has been read.

        The last of them reads the answer's prompt too.
        """
        return 0

    def embeddings(self, batch: int, latents: int) -> Tensor | None:
        """Latent inputs (B, K, D) that are known before the question is read, if they are."""
        return None

    def extend(self, reasoner: LatentReasoner, state: DecodingState, latents: int) -> DecodingState:
        """Runs the latent steps on a state whose last hidden state is that of ``<bot>``.

        What nothing before the answer depends on, such as the last latent, is held, so that it is read with the answer.
        """
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
        self.learned = latents > 0
        # parameters that no step uses would stall data parallelism
        self.projector = projector.requires_grad_(self.learned)

    @property
    def most(self) -> int | None:
        """Any number of latents may be asked for, but of none, whose projector has learned nothing."""
        return None if self.learned else 0

    def passes_of(self, latents: int) -> int:
        """One a latent."""
        return latents

    def extend(self, reasoner: LatentReasoner, state: DecodingState, latents: int) -> DecodingState:
        """Runs K - 1 cached single-token passes and holds the last latent."""
        for _ in range(latents - 1):
            state = reasoner.extend(state, self.projector(state.hidden))
        return state.hold(self.projector(state.hidden)) if latents else state


class ParallelThought(Thought):
    """K latents that are updated together in T Jacobi passes (PCCoT: Wu et al., 2025; whyNLP/PCCoT 2e32e3e).

    z_1 comes from the last hidden state at ``<bot>`` and stays; in the first pass every other latent is a learned
    placeholder, and in each later one it comes from the state that the pass before gave at the latent before it. With
    T >= K the latents are the recurrent ones.

    Args:
        latents: K.
        passes: T.
        hidden: Hidden size D.
        embedding_rms: RMS entry of the embedding matrix, the placeholder's initial scale.
        projector: Maps a last hidden state to an input.
    """

    kind = "parallel"

    def __init__(self, latents: int, passes: int, hidden: int, embedding_rms: float, projector: nn.Module) -> None:
        super().__init__(latents)
        self.passes = passes
        self.projector = projector.requires_grad_(latents > 0)
        self.placeholder = nn.Parameter(torch.randn(hidden) * embedding_rms, requires_grad=latents > 1)

    @property
    def most(self) -> int | None:
        """Any number of latents may be asked for, but of a single one, whose placeholder has learned nothing."""
        return self.latents if self.latents < 2 else None

    def passes_of(self, latents: int) -> int:
        """T, whatever their number."""
        return self.passes if latents else 0

    def extend(self, reasoner: LatentReasoner, state: DecodingState, latents: int) -> DecodingState:
        """Runs T - 1 passes over all latents, of which nothing stays, and holds what the last one reads."""
        if latents == 0:
            return state
        first = self.projector(state.hidden)
        others = self.placeholder.to(first.dtype).expand(len(first), latents - 1, -1)
        for _ in range(self.passes - 1):
            _, hidden = reasoner.append(state.fork(), torch.cat([first, others], dim=1))
            others = self.projector(hidden[:, :-1])
        return state.hold(torch.cat([first, others], dim=1))


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
        """Holds all fillers."""
        return state.hold(self.embeddings(state.mask.shape[0], latents)) if latents else state
