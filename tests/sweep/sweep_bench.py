"""A sweep file with fake runs, for the tests of the runner and of the sub-command."""

import io
import sys
from pathlib import Path

from rich.console import Console

from lori_pl.evaluation.records import ResultTable
from lori_pl.sweep.child import run_child
from lori_pl.sweep.runner import Sweep
from lori_pl.sweep.specification import load_specification

SWEEP = (
    "configs: [base.yaml]\noutput: out\ngrid: {model.rank: [4, 8]}\nseeds: [0, 1]\nmetrics: [loss, accuracy_steps_3]"
)

# Stands for the command line: reads the flags of a cell, leaves what a run leaves, or fails.
FAKE_RUN = """
import json, pathlib, sys
flags = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
folder, rank = pathlib.Path(flags["trainer.default_root_dir"]), int(flags["model.rank"])
print("training with", sorted(flags))
tests = flags.get("ckpt_path", "auto") != "auto"
if tests:
    rank = int((pathlib.Path(flags["ckpt_path"]) / "rank").read_text()) + int(flags["latents"])
elif rank != 50:
    (folder / "student").mkdir(exist_ok=True)
    (folder / "student" / "rank").write_text(str(rank))
if rank == 13:
    raise ValueError("rank 13 brings no luck")
if rank == 99:
    import os; os.kill(os.getpid(), 9)
entry = {"accuracy": rank / 100, "low": 0.01, "high": 0.2, "n": 50, "passes": 6, "milliseconds": 1.5,
         "accuracy_steps_3": 0.25}
if rank != 77:
    trained = {} if tests else {"loss": 0.75}
    (folder / "summary.json").write_text(json.dumps({"methods": {"lori": entry}, **trained}))
"""


class Bench:
    """A folder with a sweep file and a fake run; counts the runs."""

    def __init__(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        Path("base.yaml").write_text("model: {a: 1}")
        Path("fake_run.py").write_text(FAKE_RUN)
        self.ran = []
        self.before = lambda cell_folder: None
        self.printed = ""
        self.terminal = False

    def sweep(self, text=SWEEP, *overrides):
        Path("sweep.yaml").write_text(text)
        self._stream = io.StringIO()
        console = Console(file=self._stream, width=200, force_terminal=self.terminal, color_system=None)
        return Sweep(load_specification("sweep.yaml", overrides), runner=self.run_fake, console=console)

    def run_fake(self, line, log, keep_open=()):
        folder = log.parent
        assert line[:3] == [sys.executable, "-m", "lori_pl"]
        assert line[3] == ("test" if any("--ckpt_path=" in part and "/student" in part for part in line) else "fit")
        self.ran.append(folder.name)
        self.before(folder)
        return run_child([sys.executable, "-S", "fake_run.py", *line[4:]], log)

    def run(self, text=SWEEP, *overrides, **options):
        self.ran.clear()
        sweep = self.sweep(text, *overrides)
        try:
            failed = sweep.run(**options)
            sweep.show_table()
            return failed
        finally:
            self.printed = self.said()

    def said(self):
        return self._stream.getvalue()

    def rows(self):
        return ResultTable("out/results.csv").rows()
