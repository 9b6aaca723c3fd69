"""Searches: Optuna proposes, the budget holds, what was left is taken over, and the best is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from lori_pl.errors import LoriError
from lori_pl.sweep import runner
from lori_pl.sweep.cells import grid_points
from lori_pl.sweep.looking import show_plan, show_status
from lori_pl.sweep.search import Study
from lori_pl.sweep.specification import load_specification

SEARCH = """
configs: [base.yaml]
output: out
fixed: {model.depth: 3}
search:
  trials: 6
  metric: loss
  direction: minimize
  space:
    model.rank: {low: 2, high: 60}
    model.rate: {low: 1.0e-4, high: 1.0e-1, log: true}
    model.kind: {choices: [a, null, [1, 2]]}
seeds: [0, 1]
metrics: [loss]
"""

# the loss is least at a rank of 30; 13 fails
RUN = """
import json, pathlib, sys
flags = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
rank, seed = int(flags["model.rank"]), int(flags["seed_everything"])
if flags.get("model.fails") in ("true", str(rank)):
    raise ValueError("it fails")
summary = {"methods": {"lori": {"accuracy": 0.5}}, "loss": abs(rank - 30) + seed}
pathlib.Path(flags["trainer.default_root_dir"], "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def searching(bench):
    Path("fake_run.py").write_text(RUN)
    return bench


def test_a_trial_is_run_with_every_seed_and_judged_by_the_mean(searching):
    assert searching.run(SEARCH) == 0
    rows = searching.rows()
    assert len(rows) == 12
    assert [row["seed"] for row in rows] == ["0", "1"] * 6
    (study,) = searching.sweep(SEARCH).studies()
    trials = study.trials()
    assert [trial.number for trial in trials] == list(range(6))
    for trial, first, second in zip(trials, rows[::2], rows[1::2], strict=True):
        assert first["model.rank"] == second["model.rank"] == str(trial.point["model.rank"])
        assert trial.value == (float(first["loss"]) + float(second["loss"])) / 2
        assert 2 <= trial.point["model.rank"] <= 60
        assert 1e-4 <= trial.point["model.rate"] <= 1e-1
        assert trial.point["model.kind"] in ("a", None, [1, 2])
        assert f"--model.rate={trial.point['model.rate']}" in first["command"]
    best = min(trials, key=lambda trial: trial.value)
    assert study.best() == best
    found = f"best loss {best.value:.4g} with rank={best.point['model.rank']}"
    assert f"6 of 6 trials ended; {found}" in searching.printed
    assert searching.run(SEARCH) == 0
    assert searching.ran == []


def test_a_search_by_a_metric_that_is_asked_for_later_runs_nothing_again(searching):
    first = ["search.trials=3", "search.metric=accuracy", "search.on_test=true", "metrics=[]"]
    searching.run(SEARCH, *first)
    searching.run(SEARCH, "search.trials=3")
    assert searching.ran == []
    (study,) = searching.sweep(SEARCH, "search.trials=3").studies()
    assert [trial.state for trial in study.trials()] == ["complete"] * 3
    assert "3 of 3 trials ended; best loss" in searching.printed


def test_what_was_chosen_on_the_test_set_is_told(searching):
    text = SEARCH.replace("metric: loss", "metric: accuracy").replace("trials: 6", "trials: 1")
    searching.run(text, "search.on_test=true")
    assert "best accuracy 0.5 with" in searching.printed
    assert "chosen on the test set: its result there is no test of it" in searching.printed
    searching.run(SEARCH, "search.trials=1")
    assert "best loss" in searching.printed
    assert "chosen on the test set" not in searching.printed


def test_more_trials_go_on_and_the_first_are_the_same(searching):
    searching.run(SEARCH, "search.trials=3")
    before = [row["cell"] for row in searching.rows()]
    searching.run(SEARCH)
    assert len(searching.ran) == 6
    rows = [row["cell"] for row in searching.rows()]
    assert rows[:6] == before
    Path("out/search.journal").unlink()
    searching.run(SEARCH)  # the same seed proposes the same points: nothing is left to run
    assert searching.ran == []


def test_each_point_of_the_grid_is_searched_by_itself(searching):
    text = SEARCH.replace("search:", "grid: {model.method: [x, y]}\nsearch:")
    assert searching.run(text, "search.trials=2", "seeds=[0]") == 0
    assert [row["model.method"] for row in searching.rows()] == ["x", "x", "y", "y"]
    assert "search at method=x: 2 of 2 trials ended; best loss" in searching.printed
    numbers = [cell.number for cell in searching.sweep(text, "search.trials=2", "seeds=[0]").cells]
    assert numbers == []  # a sweep knows its trials once it has looked
    sweep = searching.sweep(text, "search.trials=2", "seeds=[0]")
    sweep.studies()
    assert [cell.number for cell in sweep.cells] == [1, 2, 3, 4]


def test_a_failed_trial_counts_and_has_no_value(searching):
    assert searching.run(SEARCH, "search.trials=2", "fixed.model.fails=yes") == 2
    (study,) = searching.sweep(SEARCH, "search.trials=2", "fixed.model.fails=yes").studies()
    assert [(trial.state, trial.value) for trial in study.trials()] == [("fail", None)] * 2
    assert study.best() is None
    assert "2 of 2 trials ended\n" in searching.printed


def test_an_interrupted_trial_is_taken_over(searching):
    def stop(folder):
        if len(searching.ran) == 4:
            raise KeyboardInterrupt

    searching.before = stop
    with pytest.raises(KeyboardInterrupt):
        searching.run(SEARCH, "search.trials=3")
    interrupted = searching.ran[-1]
    searching.before = lambda folder: None
    assert searching.run(SEARCH, "search.trials=3") == 0
    assert searching.ran[0] == interrupted
    assert len(searching.rows()) == 6
    (study,) = searching.sweep(SEARCH, "search.trials=3").studies()
    assert [trial.state for trial in study.trials()] == ["complete"] * 3


def test_a_trial_that_another_worker_holds_is_left_to_it(searching):
    Path("sweep.yaml").write_text(SEARCH)
    sweep = load_specification("sweep.yaml", ["search.trials=2"])
    (point,) = grid_points(sweep)
    one, two = Study(sweep, point), Study(sweep, point)
    with one.proposal() as first, two.proposal() as second:
        assert (first.number, second.number) == (0, 1)
        assert first.point != second.point
        with Study(sweep, point).proposal() as third:
            assert third is None
        one.end(0, 1.0)
    with one.proposal() as again:
        assert again.number == 1
        assert again.point == second.point


def test_a_trial_of_the_own_journal_without_a_mark_is_taken_over(searching):
    """Of an earlier version, or of a worker that was killed as it drew."""
    Path("sweep.yaml").write_text(SEARCH)
    sweep = load_specification("sweep.yaml", ["search.trials=1"])
    (point,) = grid_points(sweep)
    study = Study(sweep, point)
    study.made.ask()
    with study.proposal() as proposal:
        assert proposal.number == 0


def test_sweeps_of_separate_folders_may_share_a_database(searching):
    """As on machines that share no files: no trial is anybody else's, and the budget is that of all."""
    Path("sweep.yaml").write_text(SEARCH)
    further = ["search.storage=sqlite:///trials.db", "search.trials=2"]
    here, there = (load_specification("sweep.yaml", [f"output={name}", *further]) for name in ("here", "there"))
    (point,) = grid_points(here)
    with Study(here, point).proposal() as first:
        with Study(there, point).proposal() as second:
            assert (first.number, second.number) == (0, 1)
            assert first.point != second.point
            with Study(there, point).proposal() as third:
                assert third is None
        # trial 0 is at work, and no lock of this folder says so
        with Study(there, point).proposal() as again:
            assert again.number == 1
            Study(there, point).end(1, 0.5)
        with Study(there, point).proposal() as none:
            assert none is None
    with Study(here, point).proposal() as again:
        assert again.number == 0


def test_of_two_folders_that_ask_at_once_none_goes_beyond_the_trials(searching, monkeypatch):
    Path("sweep.yaml").write_text(SEARCH)
    sweep = load_specification("sweep.yaml", ["search.storage=sqlite:///trials.db", "search.trials=1"])
    (point,) = grid_points(sweep)
    study = Study(sweep, point)
    ask = study.made.ask

    def beaten():
        Study(sweep, point).made.ask()
        return ask()

    monkeypatch.setattr(study.made, "ask", beaten)
    with study.proposal() as proposal:
        assert proposal is None
    assert [trial.number for trial in study.trials()] == []  # the other has drawn nothing yet
    assert len(study.made.get_trials()) == 2


def test_no_trial_starts_after_the_hours_are_over(searching, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    searching.before = lambda folder: now.__setitem__(0, now[0] + 1000)
    assert searching.run(SEARCH, "search.hours=0.5", "seeds=[0]") == 0
    assert len(searching.rows()) == 2


def test_a_database_may_hold_the_trials(searching):
    assert searching.run(SEARCH, "search.storage=sqlite:///trials.db", "search.trials=2") == 0
    assert Path("trials.db").exists()
    assert not Path("out/search.journal").exists()
    with pytest.raises(LoriError, match=r"storage nodb://me:\*@x failed .* mend it") as error:
        searching.run(SEARCH, "search.storage=nodb://me:secret@x")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "gp"])
def test_samplers(searching, sampler):
    assert searching.run(SEARCH, f"search.sampler={sampler}", "search.trials=4", "seeds=[0]") == 0
    assert len({row["model.rate"] for row in searching.rows()}) == 4


def test_a_sequence_goes_on_after_a_failure(searching):
    searching.run(SEARCH, "search.sampler=qmc", "search.trials=4", "seeds=[0]", "fixed.model.fails=yes")
    assert len({row["model.rate"] for row in searching.rows()}) == 4


def test_a_metric_that_no_run_has_ends_the_search_after_its_first_run(searching):
    for _ in range(2):
        with pytest.raises(LoriError, match=r"'search.metric': the run out/cells/\w+ has no number 'other' in its"):
            searching.run(SEARCH, "search.metric=other", "metrics=[loss, other]", "seeds=[0]")
    assert len(searching.rows()) == 1  # the next start asks for no other trial


def test_a_search_that_is_looked_at_is_not_made(searching):
    Path("out").mkdir()
    show_status(searching.sweep(SEARCH))
    show_plan(searching.sweep(SEARCH))
    show_status(searching.sweep(SEARCH, "search.storage=sqlite:///trials.db"))
    assert list(Path("out").iterdir()) == []
    assert searching.run(SEARCH, "search.storage=sqlite:///trials.db", "search.trials=1") == 0


def test_a_sampler_learns(searching):
    text = SEARCH.replace("    model.kind: {choices: [a, null, [1, 2]]}\n", "").replace("trials: 6", "trials: 25")
    searching.run(text, "seeds=[0]", "search.space.model.rate={low: 0.1, high: 0.2}")
    losses = [float(row["loss"]) for row in searching.rows()]
    assert sum(losses[15:]) / 10 < sum(losses[:10]) / 10


def test_a_plan_and_a_status_run_nothing(searching):
    sweep = searching.sweep(SEARCH)
    show_plan(sweep)
    assert (
        "1 searches of 6 trials each over model.rank, model.rate, model.kind, 2 seeds a trial, by tpe"
        in searching.said()
    )
    assert not Path("out").exists()
    searching.run(SEARCH, "search.trials=1")
    sweep = searching.sweep(SEARCH)
    show_plan(sweep)
    assert "[1/12]" in searching.said()
    sweep = searching.sweep(SEARCH)
    show_status(sweep)
    assert "2 of 12 cells done, 0 failed, 0 at work, about" in searching.said()
    assert "1 of 6 trials ended; best loss" in searching.said()
    with pytest.raises(LoriError, match="--only takes a cell of a grid"):
        searching.run(SEARCH, only=1)


def test_a_label_must_tell_trials_apart(searching):
    text = SEARCH + 'label: "{method}_{model.rank}"'
    with pytest.raises(LoriError, match=r"gives all trials one name; add \{model.rate\}"):
        searching.sweep(text)


def test_a_label_of_all_searched_keys_names_the_trials(searching):
    text = SEARCH.replace("    model.kind: {choices: [a, null, [1, 2]]}\n", "").replace("seeds: [0, 1]", "seeds: [0]")
    text += 'label: "{method}_{model.rank}_{model.rate}"'
    assert searching.run(text) == 0
    names = {row["method"] for row in searching.rows()}
    assert names == {f"lori_{row['model.rank']}_{row['model.rate']}" for row in searching.rows()}
    assert len(names) == 6


@pytest.mark.parametrize(
    ("fails", "said"), [("0", "4 of 4 cells done, 0 failed"), ("30", "2 of 4 cells done, 1 failed")]
)
def test_a_search_that_has_ended_has_no_time_left(searching, fails, said):
    """Trials of one point share cells, and a seed that fails ends its trial."""
    text = """
configs: [base.yaml]
output: out
search: {trials: 4, metric: loss, direction: minimize, sampler: random, space: {model.rank: {choices: [2, 30]}}}
seeds: [0, 1]
metrics: [loss]
"""
    flag = f"fixed={{model.fails: {fails}}}"
    searching.run(text, flag)
    sweep = searching.sweep(text, flag)
    show_status(sweep)
    line = searching.said().splitlines()[0]
    assert line.endswith(f"{said}, 0 at work")
