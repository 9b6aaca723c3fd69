"""What a training step reads under teacher forcing: question, thought and answer, and the explicit sequence.

A model that is its own teacher reads the question once: thought and rationale both follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lori_pl.models.hidden import LayerSelection, record_hidden, stack_layers, take
from lori_pl.models.masks import makes_own_mask, positions
from lori_pl.models.state import DecodingState, Reading
from lori_pl.regions import region

if TYPE_CHECKING:
    from lori_pl.data.pairing import ExplicitBatch
    from lori_pl.models.reasoner import LatentReasoner


@dataclass
class ReadQuestion:
    """A batch's questions, read once for all that follows them.

    Args:
        state: The state at ``<bot>``.
        hidden: (B, 1, D) last hidden state at the question's own last token, which predicts the first word behind it.
        end: (B, 1) position id of that token.
    """

    state: DecodingState
    hidden: Tensor
    end: Tensor


def read_question(reasoner: LatentReasoner, question: Tensor, question_mask: Tensor) -> ReadQuestion | None:
    """Reads (B, Q) ids for thought and words; ``None`` for a model that makes its own mask, where ``<bot>`` would show.

    Args:
        reasoner: The model.
        question: (B, Q) ids, ending in ``<bot>`` where the reasoner has markers.
        question_mask: (B, Q) true at real tokens.
    """
    if makes_own_mask(reasoner.lm.config.get_text_config()):
        return None
    markers = len(reasoner.encoder.bot)
    with region("question"):
        state, hidden = reasoner.read_to(reasoner.embed(question), question_mask, markers)
    return ReadQuestion(state, hidden, state.position[:, None] - markers)


def read_words(reasoner: LatentReasoner, question: ReadQuestion, batch: ExplicitBatch) -> Tensor:
    """Reads what is behind the questions, in words; the thought's own state stays as it is.

    Args:
        reasoner: The model.
        question: The questions.
        batch: The problems in words.

    Returns:
        (B, W, D) last hidden states that predict the W tokens behind each question.
    """
    state = question.state.fork()
    column = torch.arange(batch.written - 1, device=batch.ids.device)
    place = batch.begin[:, None] + column
    ids = batch.ids.gather(1, place.clamp_max(batch.ids.shape[1] - 1))
    before = state.mask & (positions(state.mask) <= question.end)
    written = place < batch.mask.sum(1, keepdim=True)
    mask = torch.cat([before, written], dim=1)
    # padding stays at its row's last position: beyond the model's there may be none
    hidden = reasoner.run(reasoner.embed(ids), mask, question.end + written.long().cumsum(1), state.cache)
    return torch.cat([question.hidden, hidden], dim=1)


def read_pair(
    reasoner: LatentReasoner,
    question: Tensor,
    question_mask: Tensor,
    answer: Tensor,
    answer_mask: Tensor,
    anchor: int,
    trajectory: LayerSelection | None,
    at_anchor: LayerSelection | None,
    columns: Tensor | None,
    state: DecodingState | None,
) -> Reading:
    """Reads a batch; arguments as in :meth:`LatentReasoner.read_pair`."""
    latents = reasoner.thought.latents
    # what the last token would predict, nobody asks for
    answer, answer_mask = answer[:, :-1], answer_mask[:, :-1]
    if state is None:
        if not reasoner.thought.passes_of(latents):
            wanted = (trajectory, at_anchor, columns)
            return _read_at_once(reasoner, question, question_mask, answer, answer_mask, anchor, *wanted)
        with region("question"):
            state = reasoner.read(reasoner.embed(question), question_mask)
    kept: int | None = None
    with recorded(reasoner, trajectory, lambda hidden: hidden[:, :kept]) as found:
        with region("latents"):
            state = reasoner.thought.extend(reasoner, state, latents)
        inputs, held = state.release(reasoner.embed(answer))
        kept = held
        added = torch.cat([state.mask.new_ones(len(inputs), held), answer_mask.bool()], dim=1)
        position = state.position[:, None] + added.long().cumsum(1)
        place = held + (torch.full_like(position[:, :1], anchor) if columns is None else columns)
        with region("answer"), recorded(reasoner, at_anchor, lambda hidden: take(hidden, place)) as anchors:
            hidden = reasoner.run(inputs, torch.cat([state.mask, added], dim=1), position, state.cache)
    return Reading(
        hidden[:, held + anchor :],
        # of parallel latents the last pass alone
        None if found is None else stack_layers({k: calls[-(latents // held) :] for k, calls in found.items()}),
        None if anchors is None else stack_layers(anchors)[:, :, 0],
        state.cache,
    )


def _read_at_once(
    reasoner: LatentReasoner,
    question: Tensor,
    question_mask: Tensor,
    answer: Tensor,
    answer_mask: Tensor,
    anchor: int,
    trajectory: LayerSelection | None,
    at_anchor: LayerSelection | None,
    columns: Tensor | None,
) -> Reading:
    """Reads question, fillers and answer in one pass, where nothing between them has to be computed."""
    fillers = reasoner.thought.embeddings(len(question), reasoner.thought.latents)
    known = [reasoner.embed(question), *([] if fillers is None else [fillers])]
    known = [part.to(known[0].dtype) for part in known]
    begin, start = question.shape[1], sum(part.shape[1] for part in known)
    between = question_mask.new_ones(len(question), start - begin)
    mask = torch.cat([question_mask, between, answer_mask], dim=1).bool()
    inputs = torch.cat([*known, reasoner.embed(answer)], dim=1)
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    first = begin if trajectory is not None else start + anchor
    read = rows * mask.shape[1] + torch.arange(first, mask.shape[1], device=mask.device)
    place = start + (torch.full_like(rows, anchor) if columns is None else columns)
    with (
        region("answer"),
        recorded(reasoner, trajectory, lambda hidden: hidden[:, begin:start]) as found,
        recorded(reasoner, at_anchor, lambda hidden: take(hidden, place)) as anchors,
    ):
        hidden = reasoner.run(inputs, mask, positions(mask), None, read.flatten())
    return Reading(
        hidden[:, start + anchor :],
        None if found is None else stack_layers(found),
        None if anchors is None else stack_layers(anchors)[:, :, 0],
        None,
    )


@contextmanager
def recorded(
    reasoner: LatentReasoner, selection: LayerSelection | None, select: Callable[[Tensor], Tensor]
) -> Iterator[dict[int, list[Tensor]] | None]:
    """Records what ``select`` takes of the states of each pass in the block; ``None`` where no layer is wanted."""
    if selection is None:
        yield None
        return
    layers = selection.resolve(reasoner.depth)
    with record_hidden(reasoner.lm, layers, selection.final_norm, select) as records:
        yield records
