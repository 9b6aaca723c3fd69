"""What a sweep shows: progress, its plan and its status."""

import json
import re
import time
from pathlib import Path

from sweep_bench import SWEEP

from lori_pl.evaluation.intervals import seed_interval
from lori_pl.evaluation.records import write_outcomes
from lori_pl.files import lock_folder
from lori_pl.sweep.child import ChildResult, progress_file
from lori_pl.sweep.looking import show_plan, show_status


def test_progress_and_table_are_shown(bench):
    bench.run(SWEEP, "grid.model.rank=[4, 13]", "seeds=[3]", "metrics=[loss, typo]")
    assert "sweep sweep: 2 of 2 cells to run in out" in bench.printed
    assert re.search(
        r"\[1/2\] rank=4 seed=3  accuracy 0\.0400 \(no typo in summary\.json\)  \d+\.\d s  ETA \d+\.\d s", bench.printed
    )
    assert re.search(r"\[2/2\] rank=13 seed=3  failed: ValueError: rank 13 brings no luck  \d+\.\d s\n", bench.printed)
    table = bench.printed.split("out/results.csv")[1]
    assert re.search(r"lori\[rank=4\] .* 3 .* 0\.04 \[0\.01, 0\.2\] .* 50 .* 6 .* 1\.5 .* 0\.75 ", table)
    assert re.search(r"\?\[rank=13\] .* 3 .* failed ", table)


def test_the_eta_is_the_mean_time_of_a_finished_run_for_each_that_waits(bench):
    seconds = iter([60.0, 180.0, 5400.0])

    def run(line, log, keep_open=()):
        (log.parent / "summary.json").write_text('{"methods": {"lori": {"accuracy": 0.5}}}')
        return ChildResult(0, next(seconds), 1.0)

    bench.run_fake = run
    bench.run(SWEEP, "seeds=[0]", "grid.model.rank=[1, 2, 3]")
    lines = [line for line in bench.printed.splitlines() if "rank=" in line]
    assert lines[0].endswith("  accuracy 0.5000 (no loss, accuracy_steps_3 in summary.json)  1 min  ETA 2 min")
    assert lines[1].endswith("  3 min  ETA 2 min")
    assert lines[2].endswith("  1 h 30 min")


def run_for(bench, training, test):
    """Has every training, and every test of a student, take so many seconds."""

    def run(line, log, keep_open=()):
        is_test = line[3] == "test"
        (log.parent / "student").mkdir(exist_ok=True)
        (log.parent / "summary.json").write_text('{"methods": {"lori": {"accuracy": 0.5}}}')
        bench.before(log.parent)
        return ChildResult(0, test if is_test else training, 1.0)

    bench.run_fake = run


def status(bench, flags):
    """What ``--status`` says, also while a sweep runs."""
    running = bench._stream
    show_status(bench.sweep(*flags))
    said, bench._stream = bench.said(), running
    return said


TESTED = [SWEEP, "seeds=[0]", "grid.model.rank=[1, 2]", "tests={latents: [1, 2]}"]


def test_trainings_and_tests_of_students_have_a_mean_of_their_own(bench):
    run_for(bench, 3600.0, 60.0)
    states = []
    bench.before = lambda folder: states.append(status(bench, TESTED))
    bench.run(*TESTED)
    lines = [line for line in bench.printed.splitlines() if "ETA" in line]
    # the first row knows of no test yet
    assert [line.split("ETA ")[1] for line in lines] == ["5 h 0 min", "1 h 3 min", "1 h 2 min", "2 min", "1 min"]
    left = [re.search("about (.*) left", state) for state in states]
    assert [found and found[1] for found in left] == [None, "5 h 0 min", "1 h 3 min", "1 h 2 min", "2 min", "1 min"]


def test_the_student_of_a_failed_run_is_not_waited_for(bench):
    flags = [SWEEP, "seeds=[0]", "grid.model.rank=[1, 13]", "tests={latents: [1, 2]}"]
    bench.run(*flags)
    assert "1 failed, 0 at work\n" in status(bench, flags)
    assert "ETA" not in bench.printed.splitlines()[-1]


def test_the_time_left_is_shared_by_the_workers_that_are_at_work(bench):
    run_for(bench, 3600.0, 60.0)
    flags = [SWEEP, "seeds=[0]", "grid.model.rank=[1, 2, 3, 4, 5]"]
    second, third = (cell.id for cell in bench.sweep(*flags).cells[1:3])
    with lock_folder(Path("out/locks") / second, "busy"), lock_folder(Path("out/locks") / third, "busy"):
        bench.run(*flags, only=1)
        assert "1 of 5 cells done, 0 failed, 2 at work, about 2 h 0 min left" in status(bench, flags)
        bench.run(*flags)
    lines = [line for line in bench.printed.splitlines() if "ETA" in line]
    # behind cell 4 there is cell 5, and those two are at work elsewhere: one for each of the three workers
    assert [line.split("ETA ")[1] for line in lines] == ["1 h 0 min", "1 h 0 min"]


def test_the_time_left_is_that_of_steps_that_are_left_and_rows_that_are_nowhere_yet(bench):
    run_for(bench, 3600.0, 60.0)
    plain = [SWEEP, "seeds=[0]", "metrics=[]"]
    bench.run(*plain, "grid.model.rank=[1, 2, 3]")
    flags = [*plain, "grid.model.rank=[1, 2, 3, 4, 5]", "output=more", "reuse=[out]"]
    bench.run(*flags, only=1)
    assert "1 of 5 cells done, 0 failed, 0 at work, about 2 h 0 min left" in status(bench, flags)
    progress = progress_file(bench.sweep(*flags).folder(bench.sweep(*flags).cells[3]) / "log.txt")
    progress.parent.mkdir(parents=True)
    progress.write_text("1500/2000")
    assert "about 1 h 15 min left" in status(bench, flags)


def test_the_memory_of_a_gpu_has_a_column_of_its_own(bench):
    gpu = {"machine": "NVIDIA H100", "peak_gpu_memory_mib": 2345.5}
    for said in ({}, gpu):
        summary = json.dumps({"methods": {"lori": {"accuracy": 0.5}}, **said})

        def run(line, log, keep_open=(), summary=summary):
            (log.parent / "summary.json").write_text(summary)
            return ChildResult(0, 60.0, 1234.0)

        bench.run_fake = run
        bench.run(SWEEP, "seeds=[0]", f"grid.model.rank=[{len(said)}]")
        assert ("GPU MiB" in bench.printed) == bool(said)
    on_cpu, on_gpu = bench.rows()
    assert (on_cpu["peak_memory_mib"], on_cpu["peak_gpu_memory_mib"]) == ("1234.0", "")
    assert [on_gpu[name] for name in ("peak_memory_mib", "peak_gpu_memory_mib", "machine")] == [
        *("1234.0", "2345.5", "NVIDIA H100"),
    ]
    assert re.search(r"1234 .* 2346 ", bench.printed)


def say_progress(bench, text="120/1400"):
    def before(folder):
        progress_file(folder / "log.txt").write_text(text)
        time.sleep(0.6)

    bench.before = before


def test_a_terminal_shows_the_running_step(bench):
    bench.terminal = True
    say_progress(bench)
    bench.run(only=2)
    assert re.search(r"\[2/4\] rank=8 seed=0 .* 120/1400 +--:--", bench.printed)
    say_progress(bench, "120/")
    assert bench.run(only=1) == 0
    assert " 0/?" in bench.printed


def test_elsewhere_there_is_one_line_a_run(bench):
    say_progress(bench)
    bench.run(only=2)
    assert "120/1400" not in bench.printed
    before, _ = bench.printed.split("out/results.csv")
    lines = [line for line in before.splitlines() if line.strip()]
    assert len(lines) == 2
    assert lines[0].startswith("sweep sweep: 1 of 1 cells to run")
    assert lines[1].startswith("[2/4] rank=8 seed=0  accuracy")
    assert "\x1b" not in bench.printed


def test_a_dry_run_lists_cells_with_status_and_command_and_touches_nothing(bench):
    show_plan(bench.sweep())
    assert not Path("out").exists()
    bench.run(SWEEP, "grid.model.rank=[4, 13]", "seeds=[0]")
    before = Path("out/results.csv").read_bytes()
    bench.ran.clear()
    sweep = bench.sweep(SWEEP, "grid.model.rank=[4, 13, 8]", "seeds=[0]")
    show_plan(sweep)
    lines = bench.said().splitlines()
    ids = [cell.id for cell in sweep.cells]
    assert lines[::2] == [
        f"[1/3] {ids[0]}  ok  rank=4 seed=0",
        f"[2/3] {ids[1]}  failed  rank=13 seed=0",
        f"[3/3] {ids[2]}  to run  rank=8 seed=0",
    ]
    assert lines[5] == (
        "    python -m lori_pl fit --config=base.yaml --seed_everything=0 --model.rank=8 "
        f"--trainer.default_root_dir=out/cells/{ids[2]}"
    )
    assert bench.ran == []
    assert Path("out/results.csv").read_bytes() == before


def test_a_dry_run_tells_whose_rows_will_be_taken_over_and_whose_students_tested(bench):
    bench.run(SWEEP, "grid.model.rank=[4]", "seeds=[0]")
    sweep = bench.sweep(SWEEP, "output=more", "reuse=[out]", "seeds=[0]", "tests={latents: [3]}")
    show_plan(sweep)
    lines = bench.said().splitlines()
    assert [line.split("  ")[1] for line in lines[::2]] == ["in out", "to run", "to run", "to run"]
    students = [line.split("--ckpt_path=")[1].split()[0] for line in lines[3::4]]
    first, second = (cell.id for cell in sweep.cells if cell.test is None)
    assert students == [f"out/cells/{first}/student", f"more/cells/{second}/student"]
    assert not Path("more").exists()


def test_the_status_tells_what_is_done_at_work_left_and_best(bench):
    flags = [SWEEP, "grid.model.rank=[4, 13, 8, 9]", "seeds=[0]"]
    show_status(bench.sweep(*flags))
    assert bench.said().splitlines() == ["sweep sweep: 0 of 4 cells done, 0 failed, 0 at work"]
    assert not Path("out").exists()

    def look(folder):
        if len(bench.ran) == 4:
            show_status(bench.sweep(*flags))

    bench.before = look
    bench.run(*flags)
    lines = bench.said().splitlines()
    assert re.fullmatch(r"sweep sweep: 2 of 4 cells done, 1 failed, 1 at work, about [\d.]+ s left", lines[0])
    assert lines[1:] == [
        "  at work: [4/4] rank=9 seed=0",
        "  failed: [2/4] rank=13 seed=0: ValueError: rank 13 brings no luck",
        "best: lori[rank=8], test accuracy 0.08 (95 % interval over problems 0.01 to 0.2) over 1 seed",
    ]


def test_the_best_has_its_interval_over_seeds(bench):
    shares = {("4", "0"): 0.4, ("4", "1"): 0.5, ("4", "2"): 0.45, **{("8", seed): 0.1 for seed in "012"}}

    def run(line, log, keep_open=()):
        flags = dict(part[2:].split("=", 1) for part in line[4:])
        entry = {"accuracy": shares[flags["model.rank"], flags["seed_everything"]]}
        (log.parent / "summary.json").write_text(json.dumps({"methods": {"lori": entry}}))
        return ChildResult(0, 1.0, 1.0)

    bench.run_fake = run
    flags = [SWEEP, "seeds=[0, 1, 2]"]
    bench.run(*flags)
    low, high = (f"{bound:.4g}" for bound in seed_interval([0.4, 0.5, 0.45]))
    best = f"best: lori[rank=4], test accuracy 0.45 (95 % interval over seeds {low} to {high}) over 3 seeds"
    assert best in status(bench, flags)


def test_differences_that_are_asked_for_are_printed(bench):
    def leave(folder):
        bits = [True, len(bench.ran) != 1]
        write_outcomes(folder / "correct.npz", ["a", "b"], bits, "lori", 0)

    bench.before = leave
    bench.run(SWEEP, "label='r{model.rank}'", "compare=[[r8, r4], [r8, r16]]")
    assert "r8 - r4: +25.0 points (95 % interval" in bench.printed
    assert "t over 2 seeds); by seed 0: +50.0, 1: +0.0; no claim: two seeds" in bench.printed
    assert "r8 - r16: no result of a method 'r16' to compare; there are r4, r8" in bench.printed
    # outcomes of cells that the sweep no longer has do not count
    bench.run(SWEEP, "label='r{model.rank}'", "compare=[[r8, r4]]", "grid.model.rank=[8]")
    assert "r8 - r4: no result of a method 'r4' to compare; there are r8" in bench.printed
