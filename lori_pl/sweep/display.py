"""How a sweep's results are shown on a terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lori_pl.sweep.search import Study
from lori_pl.sweep.summary import MEASURES


def results_table(title: str, rows: Iterable[Mapping[str, str]], metrics: Sequence[str]) -> Table:
    """A table of rows of results.

    Args:
        title: Its title.
        rows: The rows, as `ResultTable` gives them.
        metrics: Columns beside those that every sweep has.
    """
    further = [metric for metric in metrics if metric not in MEASURES]
    table = Table(title=Text(title))
    rows = list(rows)
    memory = {"MiB": "peak_memory_mib", "GPU MiB": "peak_gpu_memory_mib"}
    memory = {name: column for name, column in memory.items() if any(row.get(column) for row in rows)}
    for column in ("method", "seed", "accuracy", "n", "passes", "ms", *further, "seconds", *memory):
        table.add_column(column, justify="left" if column == "method" else "right", overflow="fold")
    for row in rows:
        accuracy = Text("failed", style="red")
        if row["status"] == "ok":
            bounds = f" [{short(row['low'])}, {short(row['high'])}]" if row.get("low") and row.get("high") else ""
            accuracy = Text(short(row["accuracy"]) + bounds)
        numbers = [row["n"], row["passes"], row["milliseconds"], *(row.get(metric, "") for metric in further)]
        numbers += [row["seconds"], *(row.get(column, "") for column in memory.values())]
        texts = [Text(short(number)) for number in numbers]
        table.add_row(Text(row["method"]), row["seed"], accuracy, *texts)
    return table


def short(number: str) -> str:
    """A number with four digits; other text as it is."""
    try:
        return f"{float(number):.4g}"
    except ValueError:
        return number


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def best_of(study: Study) -> str:
    """How far a search is and the best that it found."""
    ended = [trial for trial in study.trials() if trial.state != "running"]
    place = f" at {_values(study.point)}" if study.point else ""
    line = f"search{place}: {len(ended)} of {study.search.trials} trials ended"
    if best := study.best():
        found = f"{study.search.metric} {best.value:.4g} with {_values(best.point)}"
        line += f"; best {found} (trial {best.number + 1})"
        line += ", chosen on the test set: its result there is no test of it" if study.search.on_test else ""
    return line


def _values(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())


def shown(command: Sequence[str]) -> str:
    """A command as it is recorded."""
    # The interpreter's path belongs to one machine; the recorded command is to work on any.
    return shlex.join(["python" if part == sys.executable else part for part in command])
