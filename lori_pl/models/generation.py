"""One generator for every method: batched, KV-cached, greedy or sampled."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lori_pl.errors import LoriError

if TYPE_CHECKING:
    from lori_pl.models.reasoner import LatentReasoner
    from lori_pl.models.state import DecodingState


# finished rows leave the batch once they are a quarter of it: to copy what is left costs about one pass
COMPACT_BELOW = 0.75


@dataclass
class Generation:
    """What a batch generated.

    Args:
        tokens: (B, N) generated ids, end token included.
        mask: (B, N) true at tokens up to and including the end token.
        passes: (B,) sequential backbone calls of each row until its end token, the prompt counted as one.
        latents: Latent steps taken.
        finished: (B,) true where the end token came within the limit.
    """

    tokens: Tensor
    mask: Tensor
    passes: Tensor
    latents: int
    finished: Tensor


class Stopwatch:
    """Seconds of the phases of a generation; a GPU is waited for at each mark.

    Args:
        device: Where the generation runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def mark(self, phase: str) -> None:
        """Ends a phase; the time since the last mark is its own."""
        now = self._now()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Picks the next token (B,) from logits (B, V): the likeliest, or a sample at ``temperature``."""
    if temperature <= 0:
        return logits.argmax(-1)
    # the maximum is taken off first: a low temperature must not overflow
    relative = logits.float() - logits.float().amax(-1, keepdim=True)
    return torch.multinomial(torch.softmax(relative / temperature, -1), 1, generator=generator)[:, 0]


def position_limit(lm: PreTrainedModel) -> int | None:
    """Number of positions that the model has, if it says."""
    limit = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


@torch.no_grad()
def generate(
    reasoner: LatentReasoner,
    question: Tensor,
    question_mask: Tensor,
    latents: int | None,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    stopwatch: Stopwatch | None = None,
) -> Generation:
    """Generates the answers of a batch; arguments as in :meth:`LatentReasoner.generate`.

    What is known before the first token is fed as early as possible: No-CoT's answer prompt and the pause method's
    fillers go in with the question, so their prompt is one pass; the last latent goes in with the answer prompt.
    """
    if max_new_tokens < 1:
        raise LoriError(f"max_new_tokens is {max_new_tokens}: give 1 or more")
    if not temperature >= 0:
        raise LoriError(f"temperature is {temperature}: give 0 (greedy) or more")
    latents = reasoner.thought.count(latents)
    limit = _limits(reasoner, question_mask, latents, max_new_tokens)
    state = _read_prompt(reasoner, question, question_mask, latents, stopwatch)
    tokens, count, finished = _answer(reasoner, state, limit, max_new_tokens, temperature, generator)
    if stopwatch is not None:
        stopwatch.mark("answer")
    columns = torch.arange(tokens.shape[1], device=question.device)
    return Generation(
        tokens=tokens,
        mask=columns < count[:, None],
        passes=reasoner.thought.passes_of(latents) + count,
        latents=latents,
        finished=finished,
    )


def _limits(reasoner: LatentReasoner, question_mask: Tensor, latents: int, max_new_tokens: int) -> Tensor:
    """Tokens (B,) that each row may generate: ``max_new_tokens``, or fewer where the model's positions end."""
    limit = question_mask.new_full((len(question_mask),), max_new_tokens, dtype=torch.long)
    if (positions := position_limit(reasoner.lm)) is not None:
        lengths = question_mask.sum(1) + latents + len(reasoner.given)
        # the last token generated is never read
        limit = limit.minimum(positions - lengths + 1)
        if bool((limit < 1).any()):
            raise LoriError(
                f"a question of {int(question_mask.sum(1).max())} tokens leaves no place for an answer: the model has "
                f"{positions} positions"
            )
    return limit


def _read_prompt(
    reasoner: LatentReasoner, question: Tensor, question_mask: Tensor, latents: int, stopwatch: Stopwatch | None
) -> DecodingState:
    """Reads question, thought and answer prompt; the state stands before the first token of the answer."""
    thought = reasoner.thought
    batch = len(question)
    prefix = torch.tensor(reasoner.given, device=question.device, dtype=torch.long).expand(batch, -1)
    if thought.passes_of(latents):
        state = reasoner.read(reasoner.embed(question), question_mask)
        if stopwatch is not None:
            stopwatch.mark("prefill")
        state = thought.extend(reasoner, state, latents)
        if stopwatch is not None:
            stopwatch.mark("thought")
        return reasoner.extend(state, reasoner.embed(prefix))
    parts = [reasoner.embed(question), reasoner.embed(prefix)]
    if (fillers := thought.embeddings(batch, latents)) is not None:
        parts.insert(1, fillers.to(parts[0].dtype))
    known = torch.cat(parts, dim=1)
    added = question_mask.new_ones(batch, known.shape[1] - question.shape[1])
    state = reasoner.read(known, torch.cat([question_mask, added], dim=1))
    if stopwatch is not None:
        stopwatch.mark("prefill")
    return state


def _answer(
    reasoner: LatentReasoner,
    state: DecodingState,
    limit: Tensor,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Generates from a state until every row has its end token or its limit.

    Returns:
        Tokens (B, N) with padding behind each row's last, their number (B,), and whether the end token came (B,).
    """
    encoder = reasoner.encoder
    batch, device = len(limit), limit.device
    tokens = torch.full((batch, max_new_tokens), encoder.pad, device=device)
    count = torch.zeros(batch, dtype=torch.long, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    banned = torch.tensor(encoder.bot + encoder.eot, device=device, dtype=torch.long)
    rows = torch.arange(batch, device=device)  # those that the state holds
    alive = torch.ones_like(finished)  # of these
    for step in range(max_new_tokens):
        logits = reasoner.logits(state.hidden[:, -1])
        logits = logits.index_fill(-1, banned, float("-inf"))
        token = torch.where(alive, choose(logits, temperature, generator), encoder.pad)
        tokens[rows, step] = token
        count[rows] += alive
        finished[rows] |= alive & (token == encoder.end)
        alive = alive & (token != encoder.end) & (count[rows] < limit[rows])
        going = int(alive.sum())
        if step + 1 == max_new_tokens or (going if reasoner.most is None else reasoner.most(going)) == 0:
            break
        if going <= COMPACT_BELOW * len(rows) and len(rows) > 1:
            # a process that waits for others goes on with a row that is done
            kept = alive.nonzero()[:, 0] if going else rows.new_zeros(1)
            state, token, rows, alive = state.select(kept), token[kept], rows[kept], alive[kept]
        # a row that is done waits at its last position, so that it never runs past the model's
        state.position = torch.where(alive, state.position, state.position - 1)
        state = reasoner.extend(state, reasoner.embed(token[:, None]))
    return tokens[:, : step + 1], count, finished
