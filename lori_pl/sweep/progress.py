"""The line that shows how far the running cell is, as its run leaves it in a file."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from lori_pl.machine import processor
from lori_pl.run_files import MACHINE


def read_progress(path: Path) -> tuple[int, int | None] | None:
    """The step of a run and how many there will be.

    Args:
        path: The file that `lori_pl.callbacks.progress.ProgressFile` keeps.

    Returns:
        Step and total, which is None where the run has no end; None alone where the file says nothing (yet).
    """
    try:
        step, total = path.read_text(encoding="utf-8").split("/")
        return int(step), None if float(total) == math.inf else int(total)
    except (OSError, ValueError):
        return None


def read_machine(folder: Path) -> str:
    """What the run in a cell's folder ran on, as `ProgressFile` noted it, else the processor that it began on."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / MACHINE).read_text(encoding="utf-8").strip()
    return f"{processor()}, no device taken yet"


def progress_line(console: Console, text: str, path: Path) -> Live:
    """A line that shows the step and the time left while the context is open; nothing where there is no terminal.

    Args:
        console: Where it is shown.
        text: What is running.
        path: The file to read the step from, again and again.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    # over minutes, so that a validation does not hide the time left
    progress = Progress(*columns, console=console, speed_estimate_period=300)
    task = progress.add_task(text, total=None)

    def render() -> RenderableType:
        if found := read_progress(path):
            progress.update(task, completed=found[0], total=found[1])
        return progress.get_renderable()

    return Live(console=console, get_renderable=render, transient=True)
