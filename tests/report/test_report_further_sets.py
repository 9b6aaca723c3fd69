"""Further test sets in a report: claims of their own, beside those on the first, which stay as they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from folders import IDS, STEPS, N, answers, row, run, sweep

from lori_pl.evaluation.claims import Measured, adjust, claim
from lori_pl.evaluation.intervals import seed_interval
from lori_pl.evaluation.records import ResultTable, write_outcomes
from lori_pl.report import page, tables
from lori_pl.report.material import gather

SHARES = {"lori": 0.8, "no_cot": 0.4, "pause": 0.5}
ITEMS = [f"svamp/{i}" for i in range(40)]


def on_svamp(method, seed):
    return answers(0.7 * SHARES[method], 50 + seed)[: len(ITEMS)]


def with_further(folder, seeds):
    sweep(folder, SHARES, seeds)
    arrays = {f"{method}/{seed}": on_svamp(method, seed) for method in SHARES for seed in range(seeds)}
    np.savez(folder / "correct_svamp.npz", ids=np.array(ITEMS), **arrays)
    return folder


def test_claims_on_a_further_set_are_those_of_its_outcomes_and_a_family_of_their_own(tmp_path, monkeypatch):
    alone = gather([sweep(tmp_path / "first", SHARES, 5)]).sections[0]
    material = gather([with_further(tmp_path / "both", 5)])
    (section,) = material.sections
    assert [each.adjusted for each in section.claims] == [each.adjusted for each in alone.claims]
    accuracies = {(m, s): Measured(float(on_svamp(m, s).mean()), {}) for m in SHARES for s in range(5)}
    expected = adjust([claim("lori", other, accuracies) for other in ("no_cot", "pause")])
    made = section.other_claims["svamp"]
    assert [(each.first, each.second, each.effect, each.p, each.adjusted) for each in made] == [
        (each.first, each.second, each.effect, each.p, each.adjusted) for each in expected
    ]
    assert made[0].adjusted > made[0].p
    table = tables.other_claims(section)
    assert [line[:2] for line in table.rows] == [["lori − no_cot", "svamp"], ["lori − pause", "svamp"]]
    chapters = ("results", "claims", "ablations", "learning")
    monkeypatch.setattr(page.album, "of_section", lambda *_: {chapter: [] for chapter in chapters})
    assert "The same differences on further test sets" in page.compose(material, "t").html
    # the methods' own accuracies there, which the table of the sweep has not
    methods = tables.methods(section)
    low, high = seed_interval([on_svamp("lori", s).mean() for s in range(5)])
    mean = np.mean([on_svamp("lori", s).mean() for s in range(5)])
    shown = f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    assert methods.rows[0][methods.heads.index("svamp")] == shown


def test_one_pair_of_models_is_compared_by_the_problems_of_a_further_set(tmp_path):
    (section,) = gather([with_further(tmp_path, 1)]).sections
    pair = section.other_claims["svamp"][0].one_pair
    first, second = on_svamp("lori", 0), on_svamp("no_cot", 0)
    assert (pair.only_first, pair.only_second) == ((first & ~second).sum(), (~first & second).sum())


def test_without_further_sets_there_is_no_table_of_them(tmp_path):
    material = gather([sweep(tmp_path, SHARES, 2)])
    assert material.sections[0].other_claims == {}
    assert tables.other_claims(material.sections[0]) is None


def test_outcomes_of_a_further_set_that_contradict_its_accuracy_are_left_out(tmp_path):
    table = ResultTable(tmp_path / "results.csv")
    for method in ("lori", "no_cot"):
        share = 0.125 if method == "lori" else float(on_svamp(method, 0).mean())
        table.append(row(method, 0, answers(SHARES[method], 0)) | {"test_sets.svamp.accuracy": share})
        write_outcomes(tmp_path / "correct_svamp.npz", ITEMS, on_svamp(method, 0), method, 0)
    (section,) = gather([tmp_path]).sections
    without = "a single seed, and no outcomes problem by problem of both, so that their difference has no interval."
    assert section.group.notes == [
        "lori, seed 0: outcomes and accuracy differ on svamp; the accuracy counts.",
        f"lori and no_cot: {without}",
        f"lori and no_cot on svamp: {without}",
    ]
    (made,) = section.other_claims["svamp"]
    assert made.one_pair is None
    assert made.effect.mean == pytest.approx(0.125 - on_svamp("no_cot", 0).mean())


@pytest.mark.parametrize("same", [True, False])
def test_folders_of_runs_have_their_own_outcomes_on_further_sets(tmp_path, same):
    """Compared only on the same problems, which their digests in the summaries tell."""
    folders = []
    for place, method in enumerate(("lori", "no_cot")):
        folder = run(tmp_path / method, method, 0, answers(SHARES[method], 0))
        bits, digest = on_svamp(method, 0), "words" if same else f"words {place}"
        summary = json.loads((folder / "summary.json").read_text())
        summary["test_sets"]["svamp"] = {"accuracy": float(bits.mean()), "n": len(bits), "problems": digest}
        (folder / "summary.json").write_text(json.dumps(summary))
        write_outcomes(folder / "correct_svamp.npz", ITEMS, bits, method, 0, problems=digest)
        folders.append(folder)
    (section,) = gather(folders).sections
    assert len(section.claims) == 1
    assert section.group.outcomes.ids == IDS
    assert len(section.group.outcomes.steps) == len(STEPS) == N
    if same:
        assert section.other_claims["svamp"][0].one_pair is not None
    else:
        assert section.other_claims == {}
