"""Interventions go through the generation of every evaluation, and do what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from thinkers import KINDS, encoded, plain_answer, plain_latents, thinker, world

from lori_pl.analysis.interventions import (
    Drop,
    EditedThought,
    Interventions,
    Plan,
    Project,
    Swap,
    answers,
    edited,
    latent_inputs,
    latent_moments,
)
from lori_pl.analysis.lens import read_latents
from lori_pl.analysis.streams import question_batch
from lori_pl.data.answers import same_answer

MOST = 5
COUNT = 6


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def setting(kind: str, count: int = COUNT, latents: int = 3):
    reasoner, problems = thinker(kind, latents), world(count)
    return reasoner, problems, encoded(reasoner, problems)


def tokens(reasoner, questions) -> list[list[int]]:
    made = reasoner.generate(*question_batch(reasoner, questions, range(len(questions))), max_new_tokens=MOST)
    return [row[keep].tolist() for row, keep in zip(made.tokens, made.mask, strict=True)]


def logits_of(reasoner, questions) -> torch.Tensor:
    """Logits at the token that predicts the answer's first."""
    with torch.no_grad():
        state, _ = reasoner.think(*question_batch(reasoner, questions, range(len(questions))))
        suffix = torch.tensor(reasoner.given).expand(len(questions), -1)
        return reasoner.logits(reasoner.extend(state, reasoner.embed(suffix)).hidden)[:, -1]


def test_the_latents_are_those_that_the_model_reads(kind):
    reasoner, _, questions = setting(kind)
    with torch.no_grad():
        ids, mask = question_batch(reasoner, questions, range(COUNT))
        state = reasoner.read(reasoner.embed(ids), mask)
        before = state.cache.get_seq_length()
        found = latent_inputs(reasoner, reasoner.thought, state, 3)
    assert state.cache.get_seq_length() == before
    for row in range(COUNT):
        torch.testing.assert_close(found[row], plain_latents(reasoner, questions[row]), atol=1e-5, rtol=1e-4)


def test_without_a_change_every_bit_is_that_of_an_evaluation(kind):
    reasoner, _, questions = setting(kind)
    own = reasoner.thought
    expected, logits = tokens(reasoner, questions), logits_of(reasoner, questions)
    with edited(reasoner, lambda latents: latents):
        assert tokens(reasoner, questions) == expected
        assert torch.equal(logits_of(reasoner, questions), logits)
        assert isinstance(reasoner.thought, EditedThought)
    assert reasoner.thought is own


def test_in_half_precision_too(kind):
    reasoner, _, questions = setting(kind)
    reasoner.lm.to(torch.bfloat16)
    expected, logits = tokens(reasoner, questions), logits_of(reasoner, questions)
    moments = latent_moments(reasoner, questions, [np.arange(COUNT)])
    lens = read_latents(reasoner, questions, [np.arange(COUNT)], 2)
    assert lens.mean.dtype == torch.float32
    for edit in (lambda latents: latents, Swap(None, torch.arange(COUNT))):
        with edited(reasoner, edit):
            assert tokens(reasoner, questions) == expected
            assert torch.equal(logits_of(reasoner, questions), logits)
    with edited(reasoner, Project(None, moments.mean, moments.basis)):
        torch.testing.assert_close(logits_of(reasoner, questions), logits, atol=0.1, rtol=0.1)


def test_a_swap_with_itself_changes_nothing_and_a_change_of_all_entries_does(kind):
    reasoner, _, questions = setting(kind)
    logits = logits_of(reasoner, questions)
    for latent in (0, 2, None):
        with edited(reasoner, Swap(latent, torch.arange(COUNT))):
            assert torch.equal(logits_of(reasoner, questions), logits)
        with edited(reasoner, lambda latents: -latents):
            assert not torch.allclose(logits_of(reasoner, questions), logits, atol=1e-3)


def test_a_projection_of_full_rank_changes_nothing_and_one_of_rank_0_gives_the_mean(kind):
    reasoner, _, questions = setting(kind)
    expected, logits = tokens(reasoner, questions), logits_of(reasoner, questions)
    moments = latent_moments(reasoner, questions, [np.arange(4), np.arange(4, COUNT)])
    latents = torch.stack([plain_latents(reasoner, question) for question in questions])
    torch.testing.assert_close(moments.mean, latents.double().mean(0), atol=1e-5, rtol=1e-4)
    spectrum = torch.linalg.svdvals((latents - latents.mean(0)).flatten(0, 1).double()).square()
    torch.testing.assert_close(moments.energy[: len(spectrum)], spectrum, atol=1e-4, rtol=1e-4)
    with edited(reasoner, Project(None, moments.mean, moments.basis)):
        assert tokens(reasoner, questions) == expected
        torch.testing.assert_close(logits_of(reasoner, questions), logits, atol=1e-4, rtol=1e-4)
    constant = Project(None, moments.mean, moments.basis[:, :0])(latents)
    assert torch.equal(constant, moments.mean.float().expand(COUNT, -1, -1))
    basis = moments.basis[:, :2]
    one = Project(1, moments.mean, basis)(latents)
    assert torch.equal(one[:, [0, 2]], latents[:, [0, 2]])
    about = one[:, 1].double() - moments.mean[1]
    torch.testing.assert_close(about @ basis @ basis.T, about, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("edit", ["drop", "swap"])
@pytest.mark.parametrize("latent", [0, 1, 2, None])
def test_answers_are_those_of_full_passes_over_the_changed_latents(kind, latent, edit):
    reasoner, _, questions = setting(kind)
    latents = [plain_latents(reasoner, question) for question in questions]
    partners = torch.tensor([3, 0, 1, 5, 2, 4])
    places = [latent] if latent is not None else [0, 1, 2]
    expected = []
    for row in range(COUNT):
        if edit == "drop":
            left = [k for k in range(3) if k not in places]
            changed = latents[row][left]
        else:
            changed = latents[row].clone()
            changed[places] = latents[int(partners[row])][places]
        expected.append(plain_answer(reasoner, questions[row], changed, MOST))
    with edited(reasoner, Drop(latent) if edit == "drop" else Swap(latent, partners)):
        assert tokens(reasoner, questions) == expected


def test_a_single_latent_can_be_dropped(kind):
    reasoner, _, questions = setting(kind, latents=1)
    none = [plain_answer(reasoner, question, plain_latents(reasoner, question)[:0], MOST) for question in questions]
    with edited(reasoner, Drop(0)):
        assert tokens(reasoner, questions) == none


@pytest.mark.parametrize(("count", "most"), [(4, 1), (5, 2), (9, 3), (16, 64)])
def test_a_plan_covers_all_problems_once_and_gives_each_another_as_partner(count, most):
    plan = Plan.draw(count, most, 0)
    assert np.concatenate(plan.batches).tolist() == list(range(count))
    assert set(plan.halves) == {0, 1}
    for rows, partners in zip(plan.batches, plan.partners, strict=True):
        assert 2 <= len(rows) <= max(most, 3)
        assert sorted(partners.tolist()) == list(range(len(rows)))
        assert (partners.numpy() != np.arange(len(rows))).all()
    again, other = Plan.draw(16, 64, 0), Plan.draw(16, 64, 1)
    assert torch.equal(again.partners[0], Plan.draw(16, 64, 0).partners[0])
    assert not torch.equal(again.partners[0], other.partners[0])


def test_outcomes_count_each_problem_and_projections_are_fitted_on_the_other_half(monkeypatch):
    reasoner, problems, questions = setting("latent", 9)
    plan = Plan.draw(9, 2, 0)
    run = Interventions(reasoner, problems, questions, MOST, plan)
    base = run.unchanged()
    texts = answers(reasoner, questions, np.arange(9), MOST)
    right = [same_answer(text, problem.answer) for text, problem in zip(texts, problems, strict=True)]
    assert base.correct.tolist() == right
    assert run.run("none", None, lambda number: lambda latents: latents).correct.tolist() == right
    swapped = run.swap(None)
    donor = np.concatenate([rows[p.numpy()] for rows, p in zip(plan.batches, plan.partners, strict=True)])
    # all latents swapped, and the question ignored by the test: the donor's answer is what `donated` compares with
    monkeypatch.setattr(
        "lori_pl.analysis.interventions.answers", lambda r, q, rows, m: [problems[donor[i]].answer for i in rows]
    )
    assert run.swap(None).donated.all()
    monkeypatch.undo()
    assert swapped.donated is not None
    # by chance, too: problems share answers
    gold = [problems[donor[i]].answer for i in range(9)]
    assert base.donated.tolist() == [same_answer(text, answer) for text, answer in zip(texts, gold, strict=True)]
    assert base.summary(base.correct)["answers_of_the_other_problem"] == pytest.approx(base.donated.mean())
    moments = run.moments()
    halves = [
        np.concatenate([r for r, h in zip(plan.batches, plan.halves, strict=True) if h == half]) for half in (0, 1)
    ]
    for half in (0, 1):
        own = torch.stack([plain_latents(reasoner, questions[row]) for row in halves[half]]).double().mean(0)
        torch.testing.assert_close(moments[half].mean, own, atol=1e-5, rtol=1e-4)
    used = []

    def watch(name, latent, edit, swaps=False):
        used.extend(edit(number).mean for number in range(len(plan.batches)))

    monkeypatch.setattr(run, "run", watch)
    run.project(None, 1, moments)
    assert all(mean is moments[1 - half].mean for mean, half in zip(used, plan.halves, strict=True))
    summary = swapped.summary(base.correct)
    assert summary["latent"] == "all"
    assert summary["low"] <= summary["accuracy"] <= summary["high"]
    assert summary["difference"][0] == pytest.approx(swapped.correct.mean() - base.correct.mean())
