"""Folders become groups of runs: what belongs together, what is missing, what contradicts itself."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import EVIL, IDS, STEPS, analysis, answers, command, notes, only, png, row, run, sweep

from lori_pl.errors import LoriError
from lori_pl.evaluation.claims import claim
from lori_pl.evaluation.intervals import seed_interval, wilson
from lori_pl.evaluation.records import ResultTable, read_outcomes, write_outcomes
from lori_pl.report import album, page, tables
from lori_pl.report.apart import options
from lori_pl.report.material import Section, gather
from lori_pl.report.records import Group, Run, clean, estimate, number, step_accuracies
from lori_pl.sweep.cells import expand
from lori_pl.sweep.specification import SweepSpecification, load_specification


def asking(pairs):
    """A sweep file that compares pairs, and whose table is nowhere."""
    fields = dict.fromkeys((field.name for field in dataclasses.fields(SweepSpecification)), ())
    nothing = {"file": Path("f"), "results": Path("nowhere"), "grid": {}, "variants": {}, "fixed": {}, "tests": {}}
    none = dict.fromkeys(("search", "label"))
    return SweepSpecification(**fields | nothing | none | {"compare": pairs, "name": "f", "seeds": [0]})


def test_claims_are_those_of_the_recorded_outcomes(tmp_path):
    folder = sweep(tmp_path / "a", {"lori": 0.8, "no_cot": 0.4, "pause": 0.5}, 5)
    section = only(gather([folder]))
    outcomes = read_outcomes(folder / "correct.npz")
    assert [(each.first, each.second) for each in section.claims] == [("lori", "no_cot"), ("lori", "pause")]
    for each in section.claims:
        of_seeds = [np.subtract(*(outcomes.bits[m, s].mean() for m in (each.first, each.second))) for s in range(5)]
        assert each.effect.mean == pytest.approx(np.mean(of_seeds))
        assert each.effect.bounds == pytest.approx(seed_interval(of_seeds))
        assert each.adjusted >= each.p
    assert "McNemar's p" not in tables.claims(section).heads  # five seeds are no pair of models


def test_claims_of_all_groups_are_corrected_together(tmp_path):
    folders = [sweep(tmp_path / name, {"lori": 0.6, "no_cot": 0.5}, 5) for name in "ab"]
    alone = only(gather(folders[:1])).claims[0]
    both = [section.claims[0] for section in gather(folders).sections]
    assert alone.adjusted == alone.p
    assert [each.adjusted for each in both] == pytest.approx([min(1.0, 2 * alone.p)] * 2)


def test_what_is_given_twice_counts_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = sweep(tmp_path / "a", {"lori": 0.6, "no_cot": 0.5}, 5)
    pairs = [("lori", "no_cot"), ("no_cot", "lori")]
    for found in (gather([folder, "a"]), gather([folder], pairs=pairs), gather([folder], sweeps=[asking(pairs)])):
        (made,) = only(found).claims
        assert (made.first, made.second, made.adjusted) == ("lori", "no_cot", made.p)
        assert "compare" not in notes(found)
    with pytest.raises(LoriError, match="is given as results and as --selection"):
        gather([folder], ["a"])


def test_numbers_of_steps_that_a_row_has_not_come_from_the_outcomes(tmp_path):
    bits = {(method, 0): answers(share, 0) for method, share in (("lori", 0.6), ("no_cot", 0.5))}
    for (method, seed), each in bits.items():
        known = {k: v for k, v in row(method, seed, each, method).items() if not k.startswith("accuracy_steps")}
        ResultTable(tmp_path / "results.csv").append(known | {"accuracy_steps_3": float(each[STEPS == 3].mean())})
        write_outcomes(tmp_path / "correct.npz", IDS, each, method, seed, STEPS)
    section = only(gather([tmp_path]))
    for found in section.group.runs:
        each = bits[found.method, 0]
        assert found.by_steps == pytest.approx({k: each[k == STEPS].mean() for k in (2, 3, 4)})
    assert list(section.claims[0].by_steps) == [2, 3, 4]


def test_a_row_is_completed_by_the_folder_of_its_cell(tmp_path):
    bits = answers(0.7, 0)
    known = {k: v for k, v in row("lori", 0, bits, "c0").items() if not k.startswith("accuracy_steps")}
    ResultTable(tmp_path / "a" / "results.csv").append(known)
    folder = run(tmp_path / "elsewhere" / "c0", "lori", 0, bits)
    section = only(gather([tmp_path / "a", folder]))
    (found,) = section.group.runs
    assert found.by_steps == pytest.approx({k: bits[k == STEPS].mean() for k in (2, 3, 4)})
    assert found.other_sets == {"svamp": 0.25}
    assert EVIL in found.config
    assert np.array_equal(section.group.outcomes.bits["lori", 0], bits)
    # without being named it is found below the results, as a sweep leaves it
    (tmp_path / "a" / "cells").mkdir()
    folder.rename(tmp_path / "a" / "cells" / "c0")
    assert only(gather([tmp_path / "a"])).group.runs[0].by_steps == found.by_steps


def test_an_accuracy_on_a_further_test_set_has_its_interval(tmp_path):
    """Of one seed over its problems, whose number is the summary's or the table's own."""
    low, high = (f"{100 * bound:.1f}" for bound in wilson(10, 40))
    folder = run(tmp_path / "cells" / "c0", "lori", 0, answers(0.7, 0))
    summary = json.loads((folder / "summary.json").read_text())
    summary["test_sets"]["svamp"]["n"] = 40
    (folder / "summary.json").write_text(json.dumps(summary))
    known = row("lori", 0, answers(0.7, 0), "c0") | {"test_sets.svamp.accuracy": 0.25}
    ResultTable(tmp_path / "a" / "results.csv").append(known)
    ResultTable(tmp_path / "b" / "results.csv").append(known | {"test_sets.svamp.n": 40})
    for folders in ([folder], [tmp_path / "a", folder], [tmp_path / "b"]):
        table = tables.methods(only(gather(folders)))
        assert table.rows[0][table.heads.index("svamp")] == f"25.0 ({low} to {high})"
    table = tables.methods(only(gather([tmp_path / "a"])))
    assert table.rows[0][table.heads.index("svamp")] == "25.0"


def test_a_folder_that_reports_another_accuracy_than_its_row_fills_nothing_in(tmp_path):
    ResultTable(tmp_path / "a" / "results.csv").append(row("lori", 0, answers(0.7, 0), "c0"))
    material = gather([tmp_path / "a", run(tmp_path / "c0", "lori", 0, answers(0.2, 5))])
    assert only(material).group.runs[0].other_sets == {}
    assert "reports another accuracy" in notes(material)


def test_of_a_cell_that_ran_again_the_last_row_counts(tmp_path):
    table = ResultTable(tmp_path / "results.csv", ["status", "reason", "cell"])
    table.append(row("lori", 0, answers(0.2, 0), "c0") | {"status": "failed", "reason": "killed", "accuracy": None})
    table.append(row("lori", 0, answers(0.8, 0), "c0"))
    (found,) = only(gather([tmp_path])).group.runs
    assert (found.status, found.accuracy) == ("ok", answers(0.8, 0).mean())


def test_rows_that_say_nothing_sound_are_told_of(tmp_path):
    table = ResultTable(tmp_path / "results.csv", ["status", "cell"])
    good = row("lori", 0, answers(0.5, 0), "c0")
    table.append(good)
    table.append(good | {"seed": "first", "cell": "c1"})
    table.append(good | {"seed": 1, "accuracy": "much", "cell": "c2"})
    table.append(good | {"seed": 2, "accuracy": 1.5, "cell": "c3"})
    table.append(good | {"seed": 3, "accuracy": "nan", "cell": "c4"})
    table.append(good | {"seed": 4, "passes": "inf", "milliseconds": "", "cell": "c5"})
    material = gather([tmp_path])
    group = only(material).group
    assert "row 3: the seed 'first' is no whole number" in notes(material)
    assert [run.seed for run in group.measured] == [0, 4]
    assert next(run.reason for run in group.runs if run.status == "failed").endswith("accuracy from 0 to 1 ('much')")
    assert (group.runs[-1].passes, group.runs[-1].milliseconds) == (None, None)


def test_outcomes_that_contradict_the_table_are_left_out(tmp_path):
    folder = sweep(tmp_path, {"lori": 0.8, "no_cot": 0.4}, 1)
    write_outcomes(folder / "correct.npz", IDS, answers(0.1, 7), "lori", 0)
    material = gather([folder])
    assert "lori, seed 0: outcomes and accuracy differ" in notes(material)
    (found,) = only(material).claims
    assert (found.one_pair, found.verdict) == (None, "a lead, no claim: one seed")
    assert "lori and no_cot: a single seed, and no outcomes problem by problem of both" in notes(material)


def test_milliseconds_of_several_machines_are_told(tmp_path):
    table = ResultTable(tmp_path / "results.csv")
    for seed, machine in enumerate(["one", "", "one"]):
        table.append(row("lori", seed, answers(0.5, seed)) | {"machine": machine})
    (section,) = gather([tmp_path]).sections
    assert section.group.notes == []
    assert "and milliseconds" in album.of_section(section, 1)["results"][-1].alt
    table.append(row("lori", 3, answers(0.5, 3)) | {"machine": "two"})
    (section,) = gather([tmp_path]).sections
    assert "Milliseconds were measured on 2 machines (one; two)" in section.group.notes[0]
    picture = album.of_section(section, 1)["results"][-1]
    assert "milliseconds" not in picture.alt
    assert picture.note.endswith("Milliseconds are left out: they were measured on several machines.")
    folder = run(tmp_path / "single", "lori", 4, answers(0.5, 4))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"machine": "three"}))
    (group,) = [section.group for section in gather([folder]).sections]
    assert [each.machine for each in group.runs] == ["three"]


def test_runs_that_have_not_ended_are_shown_as_such(tmp_path):
    folder = run(tmp_path / "a", "lori", 0, answers(0.5, 0))
    (folder / "summary.json").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.txt").write_text("killed")
    done = run(tmp_path / "b", "lori", 1, answers(0.5, 1))
    material = gather([folder, tmp_path / "empty", done])
    assert [(run.method, run.status) for run in only(material).group.runs] == [("lori", "ok"), ("a", "not tested")]
    assert f"nothing of a run to read: {tmp_path / 'empty'}" in notes(material)


@pytest.mark.parametrize(
    "methods", ["", "{", "[]", '{"methods": {}}', '{"methods": {"a": {}, "b": {}}}', '{"methods": 3}']
)
def test_a_damaged_summary_is_told_of(tmp_path, methods):
    folder = run(tmp_path / "a", "lori", 0, answers(0.5, 0))
    (folder / "summary.json").write_text(methods)
    material = gather([folder])
    assert "no summary of one method" in notes(material)
    assert only(material).group.runs[0].status == "not tested"


def test_damaged_files_of_a_run_leave_the_rest(tmp_path):
    folder = run(tmp_path / "a", "lori", 0, answers(0.5, 0))
    (folder / "correct.npz").write_bytes(b"nothing")
    (folder / "config.yaml").write_bytes(b"a: \xff\x00\x01b\n" + b"x" * 100_000)
    (folder / "spectrum.png").write_bytes(b"\x89PNG broken")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out.tfevents.1.x").write_bytes(b"\x01" * 100)
    material = gather([folder])
    (found,) = only(material).group.runs
    assert found.accuracy == answers(0.5, 0).mean()
    assert found.config.startswith("a: \N{REPLACEMENT CHARACTER} b\n")
    assert len(found.config) < 70_000
    assert "not a file of outcomes" in notes(material)
    assert "spectrum.png is no picture that can be shown" in notes(material)
    assert not material.spectra


def test_selection_is_apart_and_its_seeds_are_compared_with_those_of_the_claims(tmp_path):
    chosen = sweep(tmp_path / "chosen", {"lori": 0.5, "no_cot": 0.6}, 2)
    final = sweep(tmp_path / "final", {"lori": 0.8, "no_cot": 0.4}, 3)
    material = gather([final], [chosen])
    assert [bool(section.claims) for section in material.sections] == [True, False]
    assert "selected on seeds that the claims use too (0, 1)" in notes(material)


def test_many_methods_are_not_compared_unasked(tmp_path):
    folder = sweep(tmp_path, dict.fromkeys("abcde", 0.5), 1)
    material = gather([folder])
    assert only(material).claims == []
    assert "5 methods make 10 pairs" in notes(material)
    assert len(only(gather([folder], pairs=[("a", "b")])).claims) == 1
    assert "The sweep compares a and z" in notes(gather([folder], sweeps=[asking([("a", "z")])]))


def test_of_a_sweeps_table_its_own_cells_are_shown(tmp_path):
    (tmp_path / "lori.yaml").write_text("{}")
    folder, table = tmp_path / "results", ResultTable(tmp_path / "results" / "results.csv")

    def sweep_of(ranks):
        lines = [f"configs: [{tmp_path / 'lori.yaml'}]", f"results: {folder}", f"grid: {{model.rank: {ranks}}}"]
        (tmp_path / "rank.yaml").write_text("\n".join(lines))
        return load_specification(tmp_path / "rank.yaml")

    for each in expand(sweep_of([4, 8, 16])):
        table.append(row(f"r{each.point['model.rank']}", 0, answers(0.5, 0), each.id, **each.point))
        run(tmp_path / "cells" / each.id, "lori", 0, answers(0.5, 0))
    everything = [folder, tmp_path]
    assert list(only(gather(everything)).group.methods) == ["r4", "r8", "r16"]
    material = gather(everything, sweeps=[sweep_of([4, 16, 32])])
    assert list(only(material).group.methods) == ["r4", "r16"]
    assert f"1 of {table.path}'s rows are of cells that the sweep file does not have, and are left out: r8." in notes(
        material
    )
    assert "1 of the sweep's 3 cells have no row yet" in notes(material)
    assert "sweep" not in notes(gather(everything, sweeps=[sweep_of([4, 8, 16])]))
    # what a file calls by one name is one method, also where a config was renamed meanwhile
    (first,) = expand(sweep_of([4]))
    renamed = {"command": "python -m lori_pl fit --config=renamed.yaml --seed_everything=1 --model.rank=4"}
    other = replace(sweep_of([4]), seeds=(0, 1))
    second = expand(other)[1]
    table.append(row("r4", 1, answers(0.4, 1), second.id, **first.point) | renamed)
    assert [run.seed for run in only(gather(everything, sweeps=[other])).group.methods["r4"]] == [0, 1]
    assert "different settings (config)" in notes(gather([folder]))
    moved = {"command": command("x", 1, **first.point).replace("configs/method", "/elsewhere/configs/method")}
    table.append(row("r4", 1, answers(0.4, 1), second.id, **first.point) | moved)
    assert "different settings" not in notes(gather([folder]))
    # several files may share a table, and what a table holds that is none of theirs stays
    both = [sweep_of([4]), sweep_of([8, 16])]
    assert list(only(gather(everything, sweeps=both)).group.methods) == ["r4", "r8", "r16"]
    other = replace(sweep_of([4]), results=tmp_path / "elsewhere")
    assert list(only(gather(everything, sweeps=[other])).group.methods) == ["r4", "r8", "r16"]
    with pytest.raises(LoriError, match="no row is of a cell of the sweep file; its values or the contents"):
        gather(everything, sweeps=[sweep_of([5])])


def test_what_cannot_be_reported(tmp_path):
    with pytest.raises(LoriError, match="no such folder"):
        gather([tmp_path / "nowhere"])
    with pytest.raises(LoriError, match="holds nothing to report"):
        gather([tmp_path])
    (tmp_path / "log.txt").write_text("")
    with pytest.raises(LoriError, match="can be shown"):
        gather([tmp_path])
    folder = sweep(tmp_path / "a", {"lori": 0.5}, 1)
    with pytest.raises(LoriError, match="there is no method 'nocot' to make a claim of; there are lori"):
        gather([folder], pairs=[("lori", "nocot")])
    (folder / "correct.npz").write_bytes(b"")
    with pytest.raises(LoriError, match="not a file of outcomes"):
        gather([folder])
    (folder / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LoriError, match="column 'method' is missing"):
        gather([folder])


def test_an_empty_table_is_no_fault(tmp_path):
    ResultTable(tmp_path / "results.csv").append(row("lori", 0, answers(0.5, 0)))
    path = tmp_path / "results.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    material = gather([tmp_path])
    assert only(material).group.runs == []
    assert "no row yet" in notes(material)


def test_pictures_of_an_analysis_in_its_order(tmp_path):
    folder = analysis(tmp_path / "tiny")
    (folder / "broken.png").write_bytes(b"GIF89a")
    material = gather([folder])
    assert [each.title for each in material.analyses] == [
        "Spectra of teacher and student (tiny)",
        "Logit lens of the latents (tiny)",
        "something else (tiny)",
    ]
    assert material.analyses[0].note == f"method lori {EVIL}; split test; problems 16"
    assert "broken.png is no picture" in notes(material)
    (table,) = material.analysis_tables
    assert (table.title, table.caption) == (f"lori {EVIL} (tiny)", "of at most 3")
    assert (table.heads, table.rows[1]) == (["states", "layer"], ["student", "2.0 of 3 (1.9-2.1)"])


@pytest.mark.parametrize("content", ["[]", '{"tables": 3}', '{"tables": {"a": 1}}', "{}"])
def test_an_analysis_of_an_earlier_version_has_no_tables(tmp_path, content):
    folder = analysis(tmp_path / "tiny")
    (folder / "analysis.json").write_text(content)
    material = gather([folder])
    assert (len(material.analyses), material.analysis_tables) == (3, [])
    assert "below the pictures" not in page.compose(material, "Mine").html


def test_an_analysis_whose_pictures_are_gone_has_its_tables(tmp_path):
    folder = analysis(tmp_path / "tiny")
    for path in folder.glob("*.png"):
        path.unlink()
    made = page.compose(gather([folder]), "Mine")
    assert '<a href="#analyses">' in made.html
    assert "2.0 of 3" in made.html


def test_the_same_spectrum_is_shown_once(tmp_path):
    folders = [run(tmp_path / name, "lori", place, answers(0.5, place)) for place, name in enumerate("ab")]
    for folder in folders:
        png(folder / "spectrum.png")
    (found,) = gather(folders).spectra
    assert "2 runs: lori, seed 0; lori, seed 1" in found.note


def test_flags_of_a_recorded_command():
    line = command("runs/x", 3, **{"model.weights": '{"mean": 1}', "trainer.max_steps": 5})
    assert options(line) == {
        "model.weights": '{"mean": 1}',
        "trainer.max_steps": "5",
        "config": ("configs/method/lori.yaml",),
    }
    assert options("fit --a 1 --b --c=2") == {"a": "1", "b": "", "c": "2", "config": ()}
    assert options("fit 'open") is None
    assert options("") is None


def test_what_an_interval_is_over_is_said_where_it_is_not_the_rows():
    """Seeds that do not differ on the problems of a number of steps leave Wilson's interval there."""
    runs = [Run("lori", s, accuracy=0.5 + s / 10, n=60, by_steps={2: 1.0, 3: 0.4 + s / 10}) for s in range(3)]
    for each in runs:
        each.step_counts = {2: 20, 3: 40}
    table = tables.methods(Section(Group("", runs)))
    row = dict(zip(table.heads, table.rows[0], strict=True))
    assert row["over"] == "seeds"
    low, high = wilson(20, 20)
    assert row["2 steps"] == f"100.0 ({100 * low:.1f} to {100 * high:.1f}, over problems)"
    assert "over" not in row["3 steps"]


def test_estimates_say_what_they_speak_of():
    assert estimate([0.5], 10).bounds == wilson(5, 10)
    assert estimate([0.5], 10).unit == "problems"
    assert estimate([0.5]).bounds is None
    alike = estimate([1.0, 1.0], 10)  # no spread over seeds is no certainty
    assert (alike.unit, alike.bounds) == ("problems", wilson(10, 10))
    two = estimate([0.9, 0.99], 10)
    assert two.unit == "seeds"
    assert two.bounds[1] == 1.0  # an accuracy has no more
    assert estimate([5.0, 9.0], share=False).bounds[1] > 9


def test_text_from_data_is_made_fit_for_a_page():
    assert clean("a\x00\x1b[31mb\ud800\u2028c") == "a [31mb? c"
    assert len(clean("x" * 50, 10)) == 10
    for odd in (None, True, [], "", "x", "nan", "inf", "1e999"):
        assert number(odd) is None
    assert number("1e-3") == 0.001
    odd = {"accuracy_steps_3": "0.5", "accuracy_steps_x": 1, "accuracy_steps_²": 1, "accuracy_steps_2": 0.1, "n": 3}
    assert step_accuracies(odd) == {2: 0.1, 3: 0.5}


def test_measured_by_steps_comes_from_outcomes_where_nothing_else_has_it(tmp_path):
    bits = answers(0.6, 0)
    folder = run(tmp_path / "a", "lori", 0, bits)
    summary = json.loads((folder / "summary.json").read_text())
    entry = {k: v for k, v in summary["methods"]["lori"].items() if "steps" not in k}
    (folder / "summary.json").write_text(json.dumps(summary | {"methods": {"lori": entry}}))
    other = run(tmp_path / "b", "no_cot", 0, answers(0.4, 0))
    section = only(gather([folder, other], pairs=[("lori", "no_cot")]))
    found = section.group.runs[0]
    assert found.by_steps == pytest.approx({k: bits[k == STEPS].mean() for k in (2, 3, 4)})
    assert found.step_counts == {2: 20, 3: 20, 4: 20}
    again = claim("lori", "no_cot", section.group.comparable(), section.group.outcomes)
    assert section.claims[0].by_steps == again.by_steps
    assert {effect.unit for effect in again.by_steps.values()} == {"problems"}
