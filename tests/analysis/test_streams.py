"""Which states are looked at, against plain passes of one problem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from thinkers import encoded, plain_latents, plain_logits, thinker, world

from lori_pl.analysis import streams
from lori_pl.analysis.streams import Reader, batches_of, latent_states
from lori_pl.data.pairing import EncodedProblems
from lori_pl.errors import LoriError
from lori_pl.models.hidden import LayerSelection

EVERY = LayerSelection("all", final_norm=True, embedding_layer=True)


def reader(reasoner, problems, tokens="all", size=3) -> Reader:
    return Reader(reasoner.lm, EncodedProblems(problems, reasoner.encoder, tokens), EVERY, size)


def rows_of(batches) -> list[torch.Tensor]:
    """Each problem's states (L, T, D)."""
    return [states[i][:, mask[i]] for states, mask in batches() for i in range(len(states))]


@torch.no_grad()
def plain_states(reasoner, ids) -> torch.Tensor:
    found = reasoner.lm(input_ids=torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
    return torch.stack([layer[0] for layer in found])


def test_question_and_rationale_are_those_of_the_problem_alone():
    reasoner, problems = thinker("words"), world(5)
    read = reader(reasoner, problems)
    parts = read.encoded.parts(range(5))
    whole = [plain_states(reasoner, [*q, *r]) for q, r, _ in parts]
    questions = rows_of(read.states("question", np.arange(5)))
    rationales = rows_of(read.states("rationale", np.array([1, 3])))
    assert len(questions) == 5
    assert len(rationales) == 2
    for (q, _, _), states, found in zip(parts, whole, questions, strict=True):
        torch.testing.assert_close(found, states[:, : len(q)], atol=1e-5, rtol=1e-4)
    for row, found in zip((1, 3), rationales, strict=True):
        torch.testing.assert_close(found, whole[row][:, len(parts[row][0]) :], atol=1e-5, rtol=1e-4)


def test_shuffled_reads_the_same_tokens_in_another_order_whatever_the_batches():
    reasoner, problems = thinker("words"), world(6, min_steps=3)
    seen = [rows_of(reader(reasoner, problems, size=size).states("shuffled", np.arange(6), 4)) for size in (2, 6)]
    other = rows_of(reader(reasoner, problems).states("shuffled", np.arange(6), 5))
    straight = rows_of(reader(reasoner, problems).states("rationale", np.arange(6)))
    for one, two, unlike, given in zip(*seen, other, straight, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(one, unlike)
        # layer 0 are the embeddings, so the same rows in another order
        assert not torch.allclose(one[0], given[0])
        torch.testing.assert_close(one[0].sort(0).values, given[0].sort(0).values)


def test_chosen_tokens_are_those_of_the_trajectory():
    reasoner, problems = thinker("words"), world(4)
    chosen = reader(reasoner, problems, "step_results")
    found = rows_of(chosen.states("rationale", np.arange(4)))
    whole = rows_of(reader(reasoner, problems).states("rationale", np.arange(4)))
    places = reasoner.encoder.selected(problems, "step_results")
    for some, every, place in zip(found, whole, places, strict=True):
        torch.testing.assert_close(some, every[:, place], atol=1e-5, rtol=1e-4)


def test_chosen_tokens_are_the_same_ones_where_the_order_is_shuffled():
    reasoner, problems = thinker("words"), world(6, min_steps=3)
    chosen = reader(reasoner, problems, "step_results")
    mixed = rows_of(chosen.states("shuffled", np.arange(6), 4))
    straight = rows_of(chosen.states("rationale", np.arange(6)))
    for one, given in zip(mixed, straight, strict=True):
        # layer 0 are the embeddings of the very tokens; what was read of them is not
        torch.testing.assert_close(one[0].sort(0).values, given[0].sort(0).values)
        assert not torch.allclose(one[-1].sort(0).values, given[-1].sort(0).values, atol=1e-3)


@pytest.mark.parametrize("reasoning", ["latent", "parallel", "pause"])
def test_latent_states_are_those_of_a_full_pass(reasoning):
    reasoner, problems = thinker(reasoning), world(4)
    questions = encoded(reasoner, problems)
    found = rows_of(latent_states(reasoner, questions, EVERY, [np.array([2, 0]), np.array([3])]))
    assert len(found) == 3
    for row, states in zip((2, 0, 3), found, strict=True):
        latents = plain_latents(reasoner, questions[row])
        torch.testing.assert_close(states[0], latents, atol=1e-5, rtol=1e-4)
        logits = plain_logits(reasoner, questions[row], latents, [])[-len(latents) :]
        torch.testing.assert_close(reasoner.logits(states[-1]), logits, atol=1e-4, rtol=1e-3)


def test_batches_cover_all_rows_once_and_fit_into_memory(monkeypatch):
    monkeypatch.setattr(streams, "_ELEMENTS", 1000)
    parts = batches_of(np.arange(10), 4, 300)
    assert np.concatenate(parts).tolist() == list(range(10))
    assert max(map(len, parts)) == 3
    assert [len(part) for part in batches_of([7], 4, 10**6)] == [1]
    assert batches_of([], 4) == []


def test_a_problem_too_long_to_be_written_out_is_named():
    reasoner, problems = thinker("words"), world(2, min_steps=8, max_steps=8)
    with pytest.raises(LoriError, match=r"problem p\d takes \d+ positions with its rationale, and the teacher has 96"):
        reader(reasoner, problems).check("teacher", ["p0", "p1"])
