"""Looks whether the command line takes the options of a sweep's cells, before any of them is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lori_pl.commands.lightning import OptionsCLI, parse
from lori_pl.errors import LoriError
from lori_pl.sweep.cells import Cell


def check_options(cells: Sequence[Cell], file: Path) -> None:
    """Parses the command of every cell, those once that differ in their seed alone; nothing is loaded.

    Args:
        cells: The cells.
        file: The sweep's file, for messages.

    Raises:
        LoriError: Naming the first cell whose options are not taken, and why.
    """
    seen: set[str] = set()
    for cell in cells:
        if cell.options in seen:
            continue
        seen.add(cell.options)
        try:
            parse(cell.command(Path("cell"))[3:], OptionsCLI)
        except LoriError as error:
            raise LoriError(f"{file}, cell {cell.number} ({cell.description()}): {error}") from None
