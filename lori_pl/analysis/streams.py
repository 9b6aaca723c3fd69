"""Which states are looked at: a model's own, over question, rationale or latents, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lori_pl.analysis.spectra import States
from lori_pl.data.pairing import EncodedProblems, join_parts, pad_questions
from lori_pl.errors import LoriError
from lori_pl.models.generation import position_limit
from lori_pl.models.hidden import LayerSelection
from lori_pl.models.reasoner import LatentReasoner
from lori_pl.models.teacher import explicit_signals

Words = Literal["question", "rationale", "shuffled"]

_ELEMENTS = 2**24  # 128 MiB of fp64 at a time


@dataclass
class Reader:
    """A language model that reads problems written out.

    Args:
        lm: The causal language model, in eval mode.
        encoded: The problems in its tokenizer, with the rationale tokens that make a trajectory.
        selection: The layers.
        batch_size: Most problems at a time.
    """

    lm: PreTrainedModel
    encoded: EncodedProblems
    selection: LayerSelection
    batch_size: int

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.lm.get_input_embeddings().weight.device

    @property
    def with_rationale(self) -> np.ndarray:
        """(n,) true at problems that have a token of a trajectory."""
        chosen = self.encoded.rationales if self.encoded.selected is None else self.encoded.selected
        return chosen.lengths > 0

    def check(self, name: str, ids: Sequence[str]) -> None:
        """Makes sure that every problem, written out, fits the model's positions.

        Raises:
            LoriError: Naming the longest.
        """
        limit, lengths = position_limit(self.lm), self.encoded.lengths()
        if limit is not None and (lengths > limit).any():
            row = int(lengths.argmax())
            raise LoriError(
                f"analyze: problem {ids[row]} takes {lengths[row]} positions with its rationale, and the {name} has "
                f"{limit}; lower --data.max_length or take fewer problems (--problems)"
            )

    def states(self, words: Words, rows: Sequence[int] | np.ndarray, seed: int = 0) -> Callable[[], Iterator[States]]:
        """States at the tokens of one part of each problem's question, rationale and answer.

        ``shuffled`` reads the tokens of each rationale in a random order behind its question: the same tokens, but
        nothing follows from anything. What rank the kinds of token alone give is thus known. Those that make a
        trajectory are the same ones, wherever they stand then.

        Args:
            words: The part.
            rows: Problems, by number.
            seed: Seed of the order of ``shuffled``; each problem has its own.

        Returns:
            What gives the batches, the same at each call.
        """
        width = int(self.encoded.lengths()[rows].max()) if len(rows) else 1
        layers = len(self.selection.resolve(self.lm.config.get_text_config().num_hidden_layers))
        hidden = int(self.lm.get_input_embeddings().weight.shape[1])
        parts = batches_of(rows, self.batch_size, layers * hidden * width)

        def read() -> Iterator[States]:
            for part in parts:
                yield self._read(part, words, seed)

        return read

    def _read(self, rows: np.ndarray, words: Words, seed: int) -> States:
        parts = self.encoded.parts(rows.tolist())
        selected = self.encoded.selected
        chosen = None if selected is None else [selected[row] for row in rows]
        if words == "shuffled":
            lengths = [len(part[1]) for part in parts]
            orders = [np.random.default_rng([seed, row]).permutation(n) for row, n in zip(rows, lengths, strict=True)]
            parts = [(q, r[order], a) for order, (q, r, a) in zip(orders, parts, strict=True)]
            if chosen is not None:
                chosen = [np.flatnonzero(np.isin(o, place)) for o, place in zip(orders, chosen, strict=True)]
        batch = join_parts(parts, self.encoded.encoder, chosen)
        index, mask = batch.rationale_index, batch.rationale_mask
        if words == "question":
            widths = torch.tensor([len(part[0]) for part in parts])[:, None]
            columns = torch.arange(int(widths.max()))[None]
            mask = columns < widths
            index = torch.where(mask, columns, 0)
        fields: dict[str, Any] = {
            "ids": batch.ids,
            "mask": batch.mask,
            "anchor": batch.anchor,
            "rationale_index": index,
        }
        moved = {name: tensor.to(self.device) for name, tensor in fields.items()}
        with torch.no_grad():
            states, _ = explicit_signals(self.lm, replace(batch, **moved), self.selection)
        return states, mask.to(self.device)


def latent_states(
    reasoner: LatentReasoner, questions: Sequence[np.ndarray], selection: LayerSelection, batches: list[np.ndarray]
) -> Callable[[], Iterator[States]]:
    """States at the latents, as the reasoner takes them by itself.

    Args:
        reasoner: The reasoner, in eval mode, with at least one latent.
        questions: Encoded questions.
        selection: The layers.
        batches: The problems of each batch, by number.

    Returns:
        What gives the batches, the same at each call.
    """

    def read() -> Iterator[States]:
        for rows in batches:
            question, mask = question_batch(reasoner, questions, rows)
            with torch.no_grad():
                _, found = reasoner.think(question, mask, record=selection)
            assert found is not None
            yield found, torch.ones(found.shape[0], found.shape[2], dtype=torch.bool, device=found.device)

    return read


def question_batch(
    reasoner: LatentReasoner, questions: Sequence[np.ndarray], rows: Sequence[int] | np.ndarray
) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, Q) of chosen questions, as the reasoner reads them, on its device."""
    ids, mask = pad_questions([questions[row] for row in rows], reasoner.encoder)
    return ids.to(reasoner.device), mask.to(reasoner.device)


def batches_of(rows: Sequence[int] | np.ndarray, most: int, elements: int = 1) -> list[np.ndarray]:
    """Cuts rows into batches of like size, of at most ``most`` and such that states of ``elements`` a row fit."""
    size = max(1, min(most, _ELEMENTS // max(elements, 1)))
    return [part for part in np.array_split(np.asarray(rows), -(-len(rows) // size) or 1) if len(part)]
