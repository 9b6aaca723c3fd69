"""Tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

_WIDEST = 1000


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
