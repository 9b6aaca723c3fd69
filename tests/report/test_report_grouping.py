"""Which runs are seeds of one method, which stand for themselves, and which answered the same problems."""

from __future__ import annotations

import json

import pytest
from folders import IDS, STEPS, N, answers, command, notes, only, row, run, sweep

from lori_pl.evaluation.claims import span
from lori_pl.evaluation.records import ResultTable, write_outcomes
from lori_pl.report import tables
from lori_pl.report.material import gather


def test_runs_of_one_name_and_seed_stand_for_themselves(tmp_path):
    folders = [run(tmp_path / name, "lori", 0, answers(0.5, place)) for place, name in enumerate("ab")]
    material = gather(folders)
    section = only(material)
    assert list(section.group.methods) == ["lori (a)", "lori (b)"]
    assert "share name and seed (lori)" in notes(material)
    found = section.claims[0]
    assert found.one_pair is not None
    # a cell that two sweeps made has one id
    cells = [run(tmp_path / name / "cells" / "1f", "lori", 0, answers(0.5, place)) for place, name in enumerate("xy")]
    assert list(only(gather(cells)).group.methods) == ["lori (x/cells/1f)", "lori (y/cells/1f)"]
    table = tables.claims(section)
    assert table.rows[0][table.heads.index("95 % interval")] == span(found.one_pair.bounds)


def test_rows_of_one_name_and_other_settings_are_no_seeds_of_one_method(tmp_path):
    table = ResultTable(tmp_path / "results.csv")
    other = ["python", "-m", "lori_pl", "fit", "--config=configs/method/codi.yaml", "--seed_everything=4"]
    for seed in range(4):
        flags = {"model.weights.mean": 5} if seed % 2 else {}
        table.append(row("lori", seed, answers(0.5, seed)) | {"command": command("x", seed, **flags)})
        table.append(row("no_cot", seed, answers(0.3, seed)))
        write_outcomes(tmp_path / "correct.npz", IDS, answers(0.5, seed), "lori", seed, STEPS)
    material = gather([tmp_path], pairs=[("lori (mean=5)", "lori (no mean)"), ("lori (mean=5)", "no_cot")])
    group = only(material).group
    seeds = {method: [run.seed for run in runs] for method, runs in group.methods.items()}
    assert seeds == {"lori (no mean)": [0, 2], "no_cot": [0, 1, 2, 3], "lori (mean=5)": [1, 3]}
    assert group.outcomes.bits.keys() == {("lori (no mean)", s) for s in (0, 2)} | {
        ("lori (mean=5)", s) for s in (1, 3)
    }
    assert "Runs of lori were made with different settings (model.weights.mean)" in notes(material)
    assert [list(each.differences) for each in only(material).claims] == [[1, 3]]
    assert "lori (mean=5) and lori (no mean) have no test problems and seed in common" in notes(material)
    # what is long or not told apart by its last words has a number; what records no command is like the rest
    table.append(row("no_cot", 4, answers(0.3, 4)) | {"command": " ".join(other)})
    table.append(row("no_cot", 5, answers(0.3, 5)) | {"command": command("x", 5, note="long" * 20)})
    table.append(row("no_cot", 6, answers(0.3, 6)) | {"command": ""})
    assert list(only(gather([tmp_path])).group.methods)[1:4] == [
        "no_cot (config=lori, no note)",
        "lori (mean=5)",
        "no_cot (config=codi, no note)",
    ]
    assert list(only(gather([tmp_path])).group.methods)[4:] == ["no_cot (settings 3)", "no_cot"]


@pytest.mark.parametrize("damaged", ["[no: yaml", "a: 2001-02-30", "a: 0b_", "model: &a {b: *a}"])
def test_single_runs_of_one_name_and_other_settings_are_no_seeds_of_one_method(tmp_path, damaged):
    folders = []
    for seed in range(4):
        folder = run(tmp_path / f"run{seed}", "lori", seed, answers(0.5, seed))
        model = {"init_args": {"weights": {"mean": 5 if seed else 15}, "cache": f"cache{seed}"}}
        training = {"max_steps": 600, "default_root_dir": str(folder), "devices": seed + 1}
        config = {"seed_everything": seed, "model": model, "trainer": training, "data": {"num_workers": seed}}
        (folder / "config.yaml").write_text(json.dumps(config) if seed < 3 else damaged)
        folders.append(folder)
    group = only(material := gather(folders)).group
    seeds = {method: [run.seed for run in runs] for method, runs in group.methods.items()}
    assert seeds == {"lori (mean=15)": [0], "lori (mean=5)": [1, 2], "lori": [3]}
    assert "Runs of lori were made with different settings (model.init_args.weights.mean)" in notes(material)
    assert group.outcomes.bits.keys() == {(run.method, run.seed) for run in group.runs}


def test_runs_on_other_problems_are_apart(tmp_path):
    here = run(tmp_path / "a", "lori", 0, answers(0.5, 0))
    there = run(tmp_path / "b", "no_cot", 0, answers(0.5, 1), ids=[f"other/{i}" for i in range(N)])
    material = gather([here, there])
    assert [list(section.group.methods) for section in material.sections] == [["lori"], ["no_cot"]]
    assert not any(section.claims for section in material.sections)
    material = gather([here, there], pairs=[("lori", "no_cot")])
    assert "lori and no_cot have no test problems and seed in common" in notes(material)


def test_runs_on_other_problems_of_the_same_ids_are_apart(tmp_path):
    folders = []
    for place, (name, problems) in enumerate({"lori": None, "no_cot": "easy", "pause": "hard", "codi": "easy"}.items()):
        folder = run(tmp_path / name, name, 0, bits := answers(0.5, place))
        (folder / "correct.npz").unlink()
        write_outcomes(folder / "correct.npz", IDS, bits, name, 0, STEPS, problems)
        folders.append(folder)
    material = gather(folders)
    # the first is of an earlier version and does not say
    assert [list(section.group.methods) for section in material.sections] == [["lori", "no_cot", "codi"], ["pause"]]
    assert {(each.first, each.second) for section in material.sections for each in section.claims} == {
        ("lori", "no_cot"),
        ("lori", "codi"),
    }
    # and with other numbers of steps they are others, also without a digest
    (folders[3] / "correct.npz").unlink()
    write_outcomes(folders[3] / "correct.npz", IDS, answers(0.5, 3), "codi", 0, STEPS + 1)
    assert [list(s.group.methods) for s in gather(folders).sections] == [["lori", "no_cot"], ["pause"], ["codi"]]


def test_runs_without_outcomes_are_told_apart_by_their_summaries(tmp_path):
    folders = []
    for name, problems in (("lori", "easy"), ("no_cot", "hard"), ("pause", "easy")):
        folder = run(tmp_path / name, name, 0, answers(0.5, 0))
        (folder / "correct.npz").unlink()
        summary = json.loads((folder / "summary.json").read_text())
        summary["methods"][name]["problems"] = problems
        (folder / "summary.json").write_text(json.dumps(summary))
        folders.append(folder)
    material = gather(folders)
    assert [list(section.group.methods) for section in material.sections] == [["lori", "pause"], ["no_cot"]]


def test_rows_on_other_problems_are_compared_among_themselves_alone(tmp_path):
    """As many problems of the same ids: a sweep over worlds has a pair of methods in each."""
    table = ResultTable(tmp_path / "results.csv")
    worlds = {"easy": 2, "hard": 1}
    for seed in range(3):
        for world, place in worlds.items():
            for method in ("lori", "no_cot"):
                bits = answers(0.3 + 0.1 * place, 10 * seed + len(method))
                table.append(row(f"{method}_{world}", seed, bits) | {"problems": world})
    pairs = [("lori_easy", "no_cot_easy"), ("lori_hard", "no_cot_hard"), ("lori_easy", "lori_hard")]
    material = gather([tmp_path], pairs=pairs)
    assert [(each.first, each.second) for each in only(material).claims] == pairs[:2]
    assert [len(each.differences) for each in only(material).claims] == [3, 3]
    assert "lori_easy and lori_hard have no test problems and seed in common" in notes(material)
    assert "Runs have different test problems, though as many" in notes(material)


def test_outcomes_of_other_problems_say_nothing_of_a_pair(tmp_path):
    folder = sweep(tmp_path, {"lori": 0.8, "no_cot": 0.4}, 1, problems="hard")
    assert only(gather([folder])).claims[0].one_pair is not None
    write_outcomes(folder / "correct.npz", IDS, answers(0.8, 0), "lori", 0, STEPS, "easy")
    assert only(gather([folder])).claims[0].one_pair is None


def test_other_numbers_of_problems_are_not_compared(tmp_path):
    table = ResultTable(tmp_path / "results.csv")
    for seed in range(2):
        table.append(row("lori", seed, answers(0.5, seed)))
        table.append(row("no_cot", seed, answers(0.4, seed)) | {"n": 59 if seed else N})
    material = gather([tmp_path])
    assert list(only(material).claims[0].differences) == [0]
    assert "different numbers of test problems (59, 60)" in notes(material)
    assert "The seeds of no_cot answered different test problems" in notes(material)
    assert "The seeds of lori answered" not in notes(material)
