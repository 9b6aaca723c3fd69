"""The parts of the rank of reasoning together, on a reasoner of random weights."""

from __future__ import annotations

import numpy as np
import pytest
from thinkers import encoded, thinker, world

from lori_pl.analysis import right_wrong, spectra
from lori_pl.analysis.rank import measure_rank
from lori_pl.analysis.rank_figures import draw_effective_ranks, draw_energy, draw_right_wrong, label
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


def test_positions_are_called_what_they_are(measure):
    """Of few tokens each by itself, of more in parts: they have no axis in common."""
    found = measure(np.arange(40) < 38)
    names = {name: each.longest for name, each in found.spectra.items()}
    assert names["student/latents"] == 3
    assert names["student/question"] > spectra.GROUPS
    _, by_token, by_part = sorted(draw_effective_ranks(found).axes, key=lambda axes: "%" in axes.get_xlabel())
    assert [axes.get_xlabel() for axes in (by_token, by_part)] == [
        *("position (number of the token)", "position (% of the trajectory)"),
    ]
    short = {line.get_label(): line.get_xdata().tolist() for line in by_token.lines}
    assert short[label("student/latents")] == [1, 2, 3]
    assert label("student/question") not in short
    long = {line.get_label(): line.get_xdata().tolist() for line in by_part.lines}
    assert long[label("student/question")] == [6.25 + 12.5 * place for place in range(8)]
    summary = {name: each["positions"] for name, each in found.summary()["states"].items()}
    assert (summary["student/latents"], summary["student/question"]) == ("tokens", "parts of equal length")


def test_the_energy_is_drawn_and_written_by_layer_and_position(measure, monkeypatch):
    found = measure(np.arange(40) < 38)
    names = found.compared
    figure = draw_energy(found)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert [axes.get_title() for axes in panels[: len(names)]] == [label(name) for name in names]
    each = found.spectra["student/latents"]
    by_layer, by_position = (panels[names.index("student/latents") + row * len(names)] for row in (0, 1))
    for axes, parts in ((by_layer, each.by_layer), (by_position, each.by_position)):
        assert len(axes.lines) == len(parts)
        for line, spectrum in zip(axes.lines, parts, strict=True):
            energy = spectrum.values.cumsum(0) / spectrum.values.sum()
            assert line.get_ydata().tolist() == pytest.approx((100 * energy).tolist())
    bars = {axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>"}
    assert {"layer (of those selected)", "position (number of the token)", "position (% of the trajectory)"} == bars
    monkeypatch.setattr(spectra, "WRITTEN", 5)
    for key, parts in (("by_layer", each.by_layer), ("by_position", each.by_position)):
        written = [values["energy_shares"] for values in each.summary()[key]]
        assert written == [(part.values / part.values.sum())[:5].tolist() for part in parts]
