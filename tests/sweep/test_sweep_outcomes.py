"""What a sweep keeps of every test problem's outcome, and compares."""

import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sweep_bench import FAKE_RUN, SWEEP

from lori_pl.evaluation.records import ResultTable, read_outcomes, write_outcomes
from lori_pl.sweep.child import ChildResult
from lori_pl.sweep.compared import comparisons
from lori_pl.sweep.looking import show_plan
from lori_pl.sweep.rows import CellRows

COMPARED = SWEEP.replace("seeds: [0, 1]", "seeds: [0]\nlabel: 'lori_{model.rank}'\ncompare: [[lori_8, lori_4]]")


def compared(bench, *overrides):
    sweep = bench.sweep(COMPARED, *overrides)
    return comparisons(sweep.specification, list(sweep.results().values()))


def test_runs_of_another_world_are_neither_merged_nor_compared(bench):
    """Their ids and numbers of steps are alike: the problems' digest tells them apart."""
    world = {}

    def leave(folder):
        problems = world.get(len(bench.ran), "easy")
        write_outcomes(folder / "correct.npz", ["p", "q"], [True, True], "lori", 0, [4, 4], problems)

    bench.before = leave
    bench.run(COMPARED)
    assert read_outcomes("out/correct.npz").problems == "easy"
    assert "lori_8 - lori_4: +0.0 points" in bench.printed
    world[2] = "hard"
    bench.run(COMPARED, "output=more")
    assert "the outcomes stay in more/cells/" in bench.printed
    assert "other questions or answers" in bench.printed
    assert list(read_outcomes("more/correct.npz").bits) == [("lori_4", 0)]
    assert "lori_8 - lori_4: more/correct.npz has no outcomes of 'lori_8', whose test problems are" in bench.printed


def test_outcomes_of_a_cell_that_had_other_problems_are_not_compared(bench):
    """The file still has them under the name of a cell that now has other problems."""
    bench.run(COMPARED)
    for method in ("lori_4", "lori_8"):
        write_outcomes("out/correct.npz", ["p", "q"], [True, False], method, 0, problems="easy")
    table = ResultTable("out/results.csv")
    for row in bench.rows():
        table.append({**row, "problems": "hard" if row["method"] == "lori_8" else "easy"})
    (line,) = compared(bench)
    assert line.startswith("lori_8 - lori_4: out/correct.npz has no outcomes of 'lori_8'")


def test_outcomes_of_further_test_sets_are_collected_and_compared_too(bench):
    """The rows' digests are of the first set's problems, and say nothing of a further one."""

    def leave(folder):
        is_second = len(bench.ran) == 2
        write_outcomes(folder / "correct.npz", ["p", "q"], [True, True], "lori", 0, problems="easy")
        bits = [True, is_second, is_second]
        write_outcomes(folder / "correct_svamp.npz", ["s", "t", "u"], bits, "lori", 0, problems="words")

    Path("fake_run.py").write_text(FAKE_RUN.replace('"n": 50', '"n": 50, "problems": "easy"'))
    bench.before = leave
    bench.run(COMPARED)
    assert read_outcomes("out/correct.npz").ids == ["p", "q"]
    further = read_outcomes("out/correct_svamp.npz")
    assert further.ids == ["s", "t", "u"]
    assert {key: bits.tolist() for key, bits in further.bits.items()} == {
        ("lori_4", 0): [True, False, False],
        ("lori_8", 0): [True, True, True],
    }
    first, second = compared(bench)
    assert first.startswith("lori_8 - lori_4: +0.0 points (McNemar's p 1.000)")
    assert second.startswith("on svamp: lori_8 - lori_4: +66.7 points (95 % interval ")
    # rows that are taken over bring them along; what was not tested there is said
    bench.run(COMPARED, "output=more", "reuse=[out]")
    assert bench.ran == []
    assert read_outcomes("more/correct_svamp.npz").bits.keys() == further.bits.keys()
    assert compared(bench, "output=more") == [first, second]
    bench.before = lambda folder: None
    bench.run(COMPARED, "grid.model.rank=[4, 8, 9]", "compare=[[lori_9, lori_4]]")
    assert "on svamp: lori_9 - lori_4: out/correct_svamp.npz has no outcomes of 'lori_9'" in bench.printed


def test_outcomes_of_the_runs_are_collected(bench):
    ids = {"ids": ["a", "b"]}

    def leave(folder):
        write_outcomes(folder / "correct.npz", ids["ids"], [True, False], "lori", 0)

    bench.before = leave
    bench.run(SWEEP, "grid.model.rank=[4]")
    outcomes = read_outcomes("out/correct.npz")
    assert outcomes.ids == ["a", "b"]
    assert {key: bits.tolist() for key, bits in outcomes.bits.items()} == {
        ("lori[rank=4]", 0): [True, False],
        ("lori[rank=4]", 1): [True, False],
    }
    ids["ids"] = ["c", "d"]
    assert bench.run(SWEEP, "grid.model.rank=[5]", "seeds=[0]") == 0
    assert "the outcomes stay in out/cells/" in bench.printed
    assert len(read_outcomes("out/correct.npz").bits) == 2
    assert bench.rows()[-1]["status"] == "ok"
    bench.before = lambda folder: np.savez(folder / "correct.npz", ids=np.array([0]))
    assert bench.run(SWEEP, "grid.model.rank=[6]", "seeds=[0]") == 1
    assert "0 outcomes, but a cell is one run of one method" in bench.rows()[-1]["reason"]
    assert bench.rows()[-1]["accuracy"] == ""


def test_two_cells_that_end_together_take_two_names(bench, monkeypatch):
    """Of one method, under a label that only the run's own name fills: no row or outcome covers the other's."""
    for name in "ab":
        Path(name).mkdir()
        Path(name, "m.yaml").write_text(f"model: {name}\n")
    text = "output: out\nlabel: '{method}'\ngrid: {config: [a/m.yaml, b/m.yaml]}"
    together = threading.Barrier(2)

    def run(line, log, keep_open=()):
        right = "--config=a/m.yaml" in line
        summary = {"methods": {"lori": {"accuracy": float(right), "n": 4}}}
        (log.parent / "summary.json").write_text(json.dumps(summary))
        write_outcomes(log.parent / "correct.npz", list("wxyz"), [right] * 4, "lori", 0)
        together.wait()
        return ChildResult(0, 1.0, 1.0)

    taken = CellRows._is_taken

    def slow(self, label, cell):  # so that both would look before either has its row
        found = taken(self, label, cell)
        time.sleep(0.2)
        return found

    monkeypatch.setattr(CellRows, "_is_taken", slow)
    bench.run_fake = run
    workers = [threading.Thread(target=bench.sweep(text).run, kwargs={"only": number}) for number in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = {row["method"]: float(row["accuracy"]) for row in bench.rows()}
    kept = {method: float(bits.mean()) for (method, _), bits in read_outcomes("out/correct.npz").bits.items()}
    assert len(rows) == 2
    assert rows == kept
    assert sorted(rows.values()) == [0.0, 1.0]


@pytest.mark.parametrize("label", ["", "label: '{method}_r{model.rank}'\n", "label: 'r{model.rank}'\n"])
def test_a_comparison_with_what_no_cell_is_called_is_told_before_anything_runs(bench, label):
    names = {"": "lori[rank=%d]", "label: 'r{model.rank}'\n": "r%d"}
    pair = [names.get(label, "lori_r%d") % rank for rank in (8, 4)]
    show_plan(bench.sweep(f"{SWEEP}\n{label}compare: [{json.dumps(pair)}]"))
    assert "note:" not in bench.said()
    pair[1] = pair[1].replace("4", "9")
    text = f"{SWEEP}\n{label}compare: [{json.dumps(pair)}]"
    show_plan(bench.sweep(text))
    said = rf"field 'compare': no cell is called {re.escape(pair[1])}; they are called "
    assert re.search(said, bench.said())
    assert bench.ran == []
    bench.run(text)
    assert re.search(said, bench.printed.partition("[1/4]")[0])


def test_p_values_are_corrected_for_all_pairs_of_the_file(tmp_path):
    generator = np.random.default_rng(0)
    ids = [str(i) for i in range(200)]
    rows = []
    for name, share in (("a", 0.6), ("b", 0.5), ("c", 0.45)):
        for seed in range(5):
            bits = generator.random(len(ids)) < share + 0.02 * seed
            write_outcomes(tmp_path / "correct.npz", ids, bits, name, seed)
            rows.append({"method": name, "seed": str(seed)})
    fields = {"results": tmp_path, "compare": [("a", "b"), ("a", "c")]}
    lines = comparisons(SimpleNamespace(**fields), rows)
    apart = [comparisons(SimpleNamespace(**fields | {"compare": [pair]}), rows)[0] for pair in fields["compare"]]
    plain, holm = (
        [[float(x) for x in re.findall(r"p (\S+?), Holm (\S+?)\)", line)[0]] for line in given]
        for given in (apart, lines)
    )
    assert [p for p, _ in plain] == [p for p, _ in holm]
    assert [h for _, h in plain] == [p for p, _ in plain]  # one pair alone
    assert holm[1][1] == pytest.approx(2 * holm[1][0], abs=0.001)  # printed with three digits
    assert holm[1][0] < holm[0][0] == holm[0][1]
