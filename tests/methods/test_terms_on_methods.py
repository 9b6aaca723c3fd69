"""Terms of a frozen teacher on every latent method: what they see of the student, and what they add to the loss."""

from __future__ import annotations

import pytest
import torch
from plain import TINY, batch_of, build, states, student
from torch.testing import assert_close

from lori_pl.alignment import AnchorAlignment, LowRankAlignment, StepwiseAlignment, stiefel
from lori_pl.data import synthetic_problems
from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.pairing import EncodedProblems
from lori_pl.methods import CODI, Coconut, KaVa, LoRi, PCCoT, SIMCoT
from lori_pl.methods.stages import Stages
from lori_pl.models.backbone import Backbone
from lori_pl.models.hidden import LayerSelection

METHODS = {
    LoRi: {"latents": 3},
    CODI: {"latents": 3},
    PCCoT: {"latents": 4, "passes": 2},
    KaVa: {"latents": 4, "passes": 2},
    SIMCoT: {"latents": 3},
    Coconut: {"latents_a_step": 1, "latent_stages": 3, "stages": Stages(steps=2), "projector": True},
}


def with_terms(kind, layers):
    teacher = Backbone(tokenizer="synthetic", config=TINY)
    terms = [LowRankAlignment(rank_hidden=4, w_mean=0.7), AnchorAlignment(w_anchor=0.2), StepwiseAlignment(0.4)]
    method = build(kind, teacher=teacher, terms=terms, layers=LayerSelection(layers), **METHODS[kind])
    if kind is Coconut:
        method.enter(method.final_stage)
        method.latents = method.student.thought.latents
    return method, batch_of(method, [0, 1, 2], pieces=method.reads_pieces)


@pytest.mark.parametrize("layers", ["all", [2]])
@pytest.mark.parametrize("kind", METHODS)
def test_they_see_the_students_states_at_its_latents_and_its_anchor(kind, layers):
    method, batch = with_terms(kind, layers)
    _, _, signals = method.own_losses(batch)
    numbers = [1, 2] if layers == "all" else layers
    table = method.student.lm.get_input_embeddings().weight
    for row in range(3):
        _, anchors, latents = student(method, batch, row)
        assert_close(signals.anchor[row], torch.stack([anchors[n] for n in numbers]), atol=1e-5, rtol=1e-4)
        question = table[batch.question[row][batch.question_mask[row]]]
        hidden = states(method.student.lm, torch.cat([question, latents]))
        expected = torch.stack([hidden[n][len(question) :] for n in numbers])
        assert_close(signals.trajectory[row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", METHODS)
def test_they_add_their_weighted_losses_to_the_methods_own(kind):
    method, batch = with_terms(kind, "all")
    for term in method.active_terms:
        term.assume_fitted()
    own, parts, _ = method.own_losses(batch)
    total, found = method.losses(batch)
    weights = {"mean": 0.7, "covariance": 0.3, "anchor": 0.2, "stepwise": 0.4}
    assert found.keys() == parts.keys() | weights.keys()
    assert all(found[name] > 0 for name in weights)
    expected = own + sum(weight * found[name] for name, weight in weights.items())
    assert_close(total, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", METHODS)
def test_the_sequences_on_which_they_are_measured_have_to_fit_too(kind):
    method, _ = with_terms(kind, "all")
    method.terms.append(LowRankAlignment(student_factors="learned"))  # measures the student
    problems = synthetic_problems(4, 0, min_steps=3, max_steps=3)
    encoded = EncodedProblems(problems, method.student.encoder, steps=True)
    found = method.sequences(PreparedSplit("train", problems, encoded, None))
    explicit = [
        (lm, lengths.tolist()) for what, lm, lengths in found if what.startswith(("the teacher", "question, ra"))
    ]
    assert method.teacher is not None
    for lm in (method.teacher.lm, method.student.lm):
        assert (lm, encoded.lengths().tolist()) in explicit


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, "lori+StepwiseAlignment"),
        ({"stepwise": 0.0}, "lori"),
        ({"mean": 0.0, "covariance": 0.0}, "anchor_only+StepwiseAlignment"),
        ({"mean": 0.0, "covariance": 0.0, "anchor": 0.0}, "latent_only+StepwiseAlignment"),
        ({"anchor": 0.0, "stepwise": 0.0, "mean": 0.0}, "rationale_only"),
    ],
)
def test_a_run_is_called_after_the_terms_that_weigh(weights, expected):
    teacher = Backbone(tokenizer="synthetic", config=TINY)
    terms = [LowRankAlignment(rank_hidden=4), AnchorAlignment(), StepwiseAlignment()]
    assert build(LoRi, teacher=teacher, terms=terms, weights=weights, latents=3).label == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, "lori_codi+StepwiseAlignment"),
        ({"stepwise": 0.0}, "lori_codi"),
        ({"mean": 0.0, "covariance": 0.0, "stepwise": 0.0}, "codi+AnchorAlignment"),
        ({"anchor": 0.0}, "codi+LowRankAlignment+StepwiseAlignment"),
        ({"mean": 0.0, "covariance": 0.0, "anchor": 0.0}, "codi+StepwiseAlignment"),
        ({"mean": 0.0, "covariance": 0.0, "anchor": 0.0, "stepwise": 0.0}, "codi"),
    ],
)
def test_another_method_is_called_after_them_too(weights, expected):
    """So that no two runs of one sweep have one name."""
    teacher = Backbone(tokenizer="synthetic", config=TINY)
    terms = [LowRankAlignment(rank_hidden=4), AnchorAlignment(), StepwiseAlignment()]
    assert build(CODI, teacher=teacher, terms=terms, weights=weights, latents=3).label == expected


def test_orthonormal_factors_are_made_once_a_step(monkeypatch):
    """Though both terms read them."""
    teacher = Backbone(tokenizer="synthetic", config=TINY)
    terms = [LowRankAlignment(rank_hidden=4, student_factors="learned"), AnchorAlignment(anchor_space="low_rank")]
    method = build(LoRi, teacher=teacher, terms=terms, latents=3)
    for term in method.active_terms:
        term.assume_fitted()
    made = []
    original = stiefel._Orthonormal.forward
    monkeypatch.setattr(stiefel._Orthonormal, "forward", lambda self, raw: made.append(self) or original(self, raw))
    total, _ = method.losses(batch_of(method, [0, 1, 2]))
    total.backward()
    assert len(made) == len(set(map(id, made))) > 0
