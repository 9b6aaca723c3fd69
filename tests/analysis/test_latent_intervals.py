"""What is said of latents has its interval, in tables and pictures."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from lori_pl.analysis.agreement import NONE, Results, agreement
from lori_pl.analysis.interventions import Outcome
from lori_pl.analysis.latent_figures import draw_agreement, draw_agreement_by_layer, draw_interventions
from lori_pl.analysis.report import agreement_table, interventions_table
from lori_pl.evaluation.intervals import wilson
from lori_pl.tables import print_whole

LATENTS, TOP, PROBLEMS = 2, 3, 40


@pytest.fixture
def part():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.rand(PROBLEMS, 2, LATENTS, 8, generator=generator).argsort(-1)[..., :TOP]
    results = torch.randint(0, 8, (PROBLEMS, 2), generator=generator)
    results[:10, 1] = NONE
    rng = np.random.default_rng(0)
    kinds = [(name, latent) for name in ("drop", "rank 0", "rank 2") for latent in (0, 1, None)]
    outcomes = [Outcome("none", None, rng.uniform(size=PROBLEMS) < 0.8)]
    outcomes += [Outcome(name, latent, rng.uniform(size=PROBLEMS) < 0.5) for name, latent in kinds]
    return SimpleNamespace(
        agreement=agreement(tokens, results, 8),
        results=Results(results, 0, 70),
        lens=SimpleNamespace(tokens=tokens),
        outcomes=outcomes,
        latents=LATENTS,
    )


def printed(table):
    console = Console(file=io.StringIO(), width=200)
    print_whole(table, console)
    return console.file.getvalue()


def percent(bounds, digits):
    return "-".join(f"{100 * bound:.{digits}f}" for bound in bounds)


def test_the_table_of_interventions_has_the_interval_of_each(part):
    said = printed(interventions_table(part))
    for each in part.outcomes:
        assert percent(wilson(int(each.correct.sum()), PROBLEMS), 1) in said
    assert f"({percent(part.outcomes[0].bounds, 1)}) without a change" in said


def test_the_heat_map_of_interventions_has_the_interval_of_each(part):
    (heat, *_) = draw_interventions(part).axes
    texts = [text.get_text() for text in heat.texts]
    expected = [
        f"{100 * each.correct.mean():.0f}\n({percent(wilson(int(each.correct.sum()), PROBLEMS), 0)})"
        for each in part.outcomes[1:]
    ]
    assert sorted(texts) == sorted(expected)
    assert f"({percent(part.outcomes[0].bounds, 1)})" in heat.get_title()


def test_the_agreement_has_the_interval_of_its_difference_to_chance(part):
    found = part.agreement
    difference, half = 100 * (found.share - found.chance), 100 * 1.96 * found.error
    panels = draw_agreement(found, TOP).axes
    texts = {text.get_text() for text in panels[2].texts}
    places = list(np.ndindex(2, LATENTS))
    assert texts == {f"{difference[-1][place]:+.0f}\n±{half[-1][place]:.0f}" for place in places}
    assert not any("±" in text.get_text() for text in panels[0].texts)
    title = draw_agreement_by_layer(found, TOP).get_suptitle()
    assert f"± {half.median():.0f} points in the median, ± {half.max():.0f} at most" in title
    said = printed(agreement_table(part))
    for step in range(2):
        best = int(difference[-1, step].argmax())
        middle, width = float(difference[-1, step, best]), float(half[-1, step, best])
        assert f"{middle - width:+.1f} to {middle + width:+.1f}" in said


def test_where_no_step_has_two_problems_there_is_no_interval():
    results = torch.tensor([[3], [NONE]])
    found = agreement(torch.zeros(2, 1, 1, 1, dtype=torch.long), results, 8)
    assert "interval" not in draw_agreement_by_layer(found, 1).get_suptitle()
