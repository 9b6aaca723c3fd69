"""Names of what a run leaves in its folder, and a sweep in its own."""

from __future__ import annotations

from pathlib import Path

CELLS = "cells"
"""A sweep's runs, a folder each."""
CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
LOGS = "tensorboard"
MACHINE = "machine.txt"
"""What a cell's run runs on, noted before it trains or tests, for runs that leave no summary."""
OUTCOMES = "correct.npz"
"""Of the first test set; others have their name in it, `further_outcomes`."""
REPORT = "report.html"
"""A report's page, beside which its log lies as a run's does."""
RESULTS = "results.csv"
"""A sweep's table, a row a run."""
STUDENT = "student"
"""The best student, exported."""
SUMMARY = "summary.json"
"""The figures of a tested run, written last."""
_FURTHER = "correct_"


def outcomes_file(test_set: str) -> str:
    """Name of the file of outcomes of a further test set."""
    return f"{_FURTHER}{test_set}.npz"


def further_outcomes(folder: Path) -> dict[str, Path]:
    """The files of outcomes of further test sets in a folder, by the sets' names."""
    return {path.stem.removeprefix(_FURTHER): path for path in sorted(folder.glob(outcomes_file("*")))}


def outcomes_in(folder: Path) -> dict[str | None, Path]:
    """The files of outcomes in a folder by the test set's name; ``None`` is the first set."""
    first: dict[str | None, Path] = {None: folder / OUTCOMES} if (folder / OUTCOMES).exists() else {}
    return first | further_outcomes(folder)
