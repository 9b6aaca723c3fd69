"""The sweep files that a report goes by: whose rows it takes, in which order, and which pairs it compares."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import ResultTable
from lori_pl.run_files import RESULTS
from lori_pl.sweep.cells import expand
from lori_pl.sweep.specification import SweepSpecification, load_specification


def sweeps_beside(folder: str | Path) -> list[SweepSpecification]:
    """The sweep files in a folder of results or beside it whose results these are: its table has rows of their cells.

    What a file says of folders is relative to the working folder. Of a search no cells are known.

    Args:
        folder: The folder.

    Raises:
        LoriError: If its table cannot be read.
    """
    folder = Path(folder).resolve()
    if not (folder / RESULTS).exists():
        return []
    recorded = {row.get("cell", "") for row in ResultTable(folder / RESULTS).rows()}
    found = []
    for path in [*sorted(folder.glob("*.yaml")), *sorted(folder.parent.glob("*.yaml"))]:
        with suppress(LoriError, ValueError, TypeError):  # any YAML file may lie there, with anything in it
            sweep = load_specification(path)
            if sweep.results.resolve() == folder and (
                sweep.search is not None or recorded.intersection(cells_of([sweep])[folder])
            ):
                found.append(sweep)
    return found


def cells_of(sweeps: Sequence[SweepSpecification]) -> dict[Path, list[str]]:
    """The ids of the sweeps' cells in their order, by their tables' folders.

    A table has none where a search finds its cells.

    Args:
        sweeps: The sweeps.

    Raises:
        LoriError: If a sweep's config file is missing.
    """
    found: dict[Path, list[str]] = {}
    for sweep in sweeps:
        found.setdefault(sweep.results.resolve(), []).extend(cell.id for cell in expand(sweep))
    for sweep in sweeps:
        if sweep.search is not None:
            found.pop(sweep.results.resolve(), None)
    return {place: list(dict.fromkeys(cells)) for place, cells in found.items()}
