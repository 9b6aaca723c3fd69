"""What is stopped, killed or damaged goes on, and how far."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from sweep_bench import FAKE_RUN, SWEEP

from lori_pl.evaluation.records import git_commit
from lori_pl.machine import processor
from lori_pl.sweep import cell_runner, rows


def test_a_signal_between_a_runs_end_and_its_row_waits_for_the_row(bench, monkeypatch):
    real = rows.read_summary

    def interrupted(path, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        return real(path, metrics)

    monkeypatch.setattr(rows, "read_summary", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run(SWEEP, "seeds=[0]")
    assert [row["status"] for row in bench.rows()] == ["ok"]


def keep_checkpoint(bench):
    def leave(folder):
        (folder / "checkpoints").mkdir(exist_ok=True)
        torch.save({"global_step": 3}, folder / "checkpoints" / "last.ckpt")

    bench.before = leave


def test_a_retry_that_goes_on_and_is_killed_is_not_blamed_on_the_first_error(bench):
    keep_checkpoint(bench)
    flags = (SWEEP, "grid.model.rank=[13]", "seeds=[0]")
    bench.run(*flags)
    Path("fake_run.py").write_text(FAKE_RUN.replace("rank == 99", "rank == 13").replace("raise", "pass  # raise"))
    bench.run(*flags, retry_failed=True)
    first, second = (row["reason"] for row in bench.rows())
    assert first == "ValueError: rank 13 brings no luck"
    assert second.startswith("ended by signal 9 (Killed, perhaps out of memory): training with")
    assert "no luck" in Path(f"out/cells/{bench.ran[0]}/log.txt").read_text()  # it went on in the same folder


def interrupt_third(bench):
    """Stops the sweep in its third cell, whose run leaves something."""

    def interrupt(folder):
        if len(bench.ran) == 3:
            (folder / "summary.json").write_text('{"methods": {"lori": {"accuracy": 0.99}}}')
            (folder / "checkpoints").mkdir(exist_ok=True)
            torch.save({"global_step": 3}, folder / "checkpoints" / "last.ckpt")
            raise KeyboardInterrupt

    bench.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert len(bench.rows()) == 2
    assert "stopped in cell 3; the same command goes on from there" in bench.printed
    return bench.ran[2]


def test_an_interrupted_sweep_goes_on_from_a_clean_folder_under_other_code(bench, monkeypatch):
    monkeypatch.setattr(cell_runner, "code_digest", lambda: "before")
    interrupted = interrupt_third(bench)
    monkeypatch.setattr(cell_runner, "code_digest", lambda: "now")

    def is_clean(folder):
        assert [path.name for path in folder.iterdir()] == ["begun.json"]

    bench.before = is_clean
    assert bench.run() == 0
    assert len(bench.ran) == 2
    assert bench.ran[0] == interrupted
    assert [row["accuracy"] for row in bench.rows()] == ["0.04", "0.08", "0.04", "0.08"]
    # the work of days is not thrown away
    aside = Path(f"out/set_aside/{interrupted}_1")
    assert f"cell 3 begins anew: what stood there is of other code (commit {git_commit()})" in bench.printed
    assert f"is in {aside} now" in bench.printed
    assert torch.load(aside / "checkpoints" / "last.ckpt") == {"global_step": 3}


def test_what_cannot_be_removed_of_an_earlier_run_stops_no_sweep(bench, monkeypatch):
    """NFS keeps a file under another name while a process has it open."""
    bench.run(SWEEP, "grid.model.rank=[13]", "seeds=[0]")
    monkeypatch.setattr(cell_runner.shutil, "rmtree", lambda folder, ignore_errors: None)
    assert bench.run(SWEEP, "grid.model.rank=[13]", "seeds=[0]", retry_failed=True) == 1
    assert [row["reason"] for row in bench.rows()] == ["ValueError: rank 13 brings no luck"] * 2


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_run_goes_on_under_the_same_code(bench, monkeypatch, killed):
    """Whatever git says of it: a tree with changes of one's own, or no checkout at all."""
    monkeypatch.setattr(cell_runner, "git_commit", lambda: "unknown")
    interrupted = interrupt_third(bench)
    noted = Path(f"out/cells/{interrupted}/begun.json")
    content = json.loads(noted.read_text())
    assert content["since"] is None
    # one that is killed leaves what stood there when it began
    last = Path(f"out/cells/{interrupted}/checkpoints/last.ckpt").stat().st_mtime
    content |= {"seconds": 50, "since": last - 60} if killed else {"seconds": 100 + content["seconds"]}
    noted.write_text(json.dumps(content))
    lines = []
    real = bench.run_fake

    def look(line, log, keep_open=()):
        lines.append(line)
        assert (log.parent / "checkpoints").exists() == (log.parent.name == interrupted)
        return real(line, log)

    bench.before = lambda folder: None
    bench.run_fake = look
    assert bench.run() == 0
    assert bench.ran[0] == interrupted
    assert [line[-1] == "--ckpt_path=auto" for line in lines] == [True, False]
    rows = bench.rows()
    assert [row["accuracy"] for row in rows] == ["0.04", "0.08", "0.04", "0.08"]
    assert float(rows[2]["seconds"]) > 100 > float(rows[3]["seconds"])
    assert "--ckpt_path" not in rows[2]["command"]
    assert not noted.exists()


def test_a_run_whose_checkpoints_are_all_damaged_begins_anew(bench, monkeypatch):
    interrupted = interrupt_third(bench)
    Path(f"out/cells/{interrupted}/checkpoints/last.ckpt").write_bytes(b"cut off")

    def is_clean(folder):
        assert [path.name for path in folder.iterdir()] == ["begun.json"]

    bench.before = is_clean
    assert bench.run() == 0
    assert bench.ran[0] == interrupted


def test_a_row_cut_by_a_crash_is_run_again(bench):
    bench.run()
    path = Path("out/results.csv")
    path.write_bytes(path.read_bytes()[:-5])
    bench.run()
    assert len(bench.ran) == 1
    assert [row["status"] for row in bench.rows()] == ["ok"] * 4


def test_a_failed_run_has_its_machine_in_its_row(bench):
    """As the run noted it before it trained, out of memory or not; what an earlier attempt noted is not its own."""
    flags = (SWEEP, "grid.model.rank=[13]", "seeds=[0]")
    keep_checkpoint(bench)
    leave = bench.before
    bench.before = lambda folder: (leave(folder), (folder / "machine.txt").write_text("NVIDIA H100\n"))
    bench.run(*flags)
    bench.before = lambda folder: None
    bench.run(*flags, retry_failed=True)
    assert (Path("out/cells") / bench.ran[0] / "checkpoints").exists()  # it went on in the same folder
    assert [(row["status"], row["machine"]) for row in bench.rows()] == [
        ("failed", "NVIDIA H100"),
        ("failed", f"{processor()}, no device taken yet"),
    ]
