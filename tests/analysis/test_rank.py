"""The parts of the rank of reasoning together, on a reasoner of random weights."""

from __future__ import annotations

import numpy as np
import pytest
from thinkers import encoded, thinker, world

from lori_pl.analysis import right_wrong
from lori_pl.analysis.rank import measure_rank
from lori_pl.analysis.rank_figures import draw_right_wrong
from lori_pl.analysis.streams import Reader, batches_of, latent_states
from lori_pl.data.pairing import EncodedProblems
from lori_pl.models.hidden import LayerSelection


@pytest.fixture(scope="module")
def measure():
    reasoner, problems = thinker(), world(40)
    questions = encoded(reasoner, problems)
    reader = Reader(reasoner.lm, EncodedProblems(problems, reasoner.encoder), LayerSelection(), 16)
    steps = np.array([len(problem.steps) for problem in problems])

    def measured(correct):
        def latents(rows):
            return latent_states(reasoner, questions, LayerSelection(), batches_of(rows, 16))

        return measure_rank({"student": reader}, latents, False, correct, steps, {}, 3, 0)

    return measured


def test_right_and_wrong_answers_are_compared_where_there_are_enough(measure, monkeypatch):
    found = measure(np.arange(40) % 2 == 0)
    right, wrong = (found.spectra[f"student/latents/{kind}"] for kind in ("right", "wrong"))
    difference = found.right_wrong["student/latents"]
    ranks = [each.modes["hidden"].effective_rank for each in (right, wrong)]
    assert difference.observed == pytest.approx(ranks[0] - ranks[1], abs=1e-3)
    assert right.tokens == wrong.tokens == 3 * difference.problems
    summary = found.summary()["right_against_wrong"]["student/latents"]["effective_rank_hidden"]
    assert summary["p"] == difference.p
    assert "random divisions" in draw_right_wrong(found).get_suptitle()
    monkeypatch.setattr(right_wrong, "_ELEMENTS", 10)
    large = measure(np.arange(40) % 2 == 0)
    assert large.right_wrong == {}
    assert "take too much memory for a test" in large.notes[-1]


def test_too_few_wrong_answers_are_told_of(measure):
    found = measure(np.arange(40) < 38)
    assert found.right_wrong == {}
    assert "38 of 40 problems are answered right" in found.notes[-1]
    assert draw_right_wrong(found) is None
