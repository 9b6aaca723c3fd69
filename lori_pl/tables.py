"""Tables on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lori_pl.errors import printable

_WIDEST = 1000


def say(line: str, console: Console | None = None) -> None:
    """Prints a line as it stands: brackets in a name or a path are no markup, and a long one is not broken.

    Args:
        line: The line.
        console: Where it is printed; standard output by default.
    """
    (console or Console()).print(printable(line), markup=False, highlight=False, soft_wrap=True)


def percent_above_interval(share: float, bounds: tuple[float, float] | None) -> Text:
    """A cell of two lines: a fraction in percent, and below it its interval where there is one.

    Args:
        share: The fraction.
        bounds: The interval's two ends, as fractions.
    """
    interval = "" if bounds is None else f"\n{100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}"
    return Text(f"{100 * share:.1f}").append(interval, style="dim")


def as_text(table: Table) -> dict[str, Any]:
    """A table as plain text: ``title``, ``caption``, ``heads`` and ``rows``; a cell's second line stands in brackets.

    Args:
        table: The table.
    """
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": _plain(table.title or ""),
        "caption": _plain(table.caption or ""),
        "heads": [_plain(column.header) for column in table.columns],
        "rows": [list(row) for row in zip(*columns, strict=True)],
    }


def _plain(content: object) -> str:
    first, _, second = str(content.plain if isinstance(content, Text) else content).partition("\n")
    return f"{first} ({second})" if second else first


def print_whole(table: Table, console: Console | None = None) -> None:
    """Prints a table as wide as it is: a column that is cut off or folded is worse than a line that wraps.

    Args:
        table: The table.
        console: Where it is printed; standard output by default.
    """
    console = console or Console()
    width = console.width
    console.width = max(width, Console(width=_WIDEST).measure(table).maximum)
    try:
        console.print(table)
    finally:
        console.width = width
