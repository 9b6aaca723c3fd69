"""Looks whether the command line takes the options of a sweep's cells, before any of them is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lori_pl.commands.lightning import OptionsCLI, parse
from lori_pl.errors import LoriError
from lori_pl.sweep.cells import Cell
from lori_pl.sweep.specification import SweepSpecification


class _ParsedOnly(OptionsCLI):
    """Parses a command line and looks at nothing else."""

    def before_instantiate_classes(self) -> None:
        """Values that a search draws together may not go together: that is a failed trial, and not the search's end."""


def check_options(cells: Sequence[Cell], sweep: SweepSpecification) -> None:
    """Parses the command of every cell; nothing is loaded.

    Args:
        cells: The cells.
        sweep: The sweep.

    Raises:
        LoriError: Naming the first cell whose options are not taken, and why.
    """
    kind = OptionsCLI if sweep.search is None else _ParsedOnly
    # `python -m`, by which cells are run, finds modules in the current folder
    sys.path.insert(0, os.getcwd())
    try:
        for cell in cells:
            try:
                parse(cell.command(Path("cell"))[3:], kind)
            except LoriError as error:
                raise LoriError(f"{sweep.file}, cell {cell.number} ({cell.description()}): {error}") from None
    finally:
        sys.path.remove(os.getcwd())
