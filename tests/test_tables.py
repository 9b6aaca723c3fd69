"""Tables are printed whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from lori_pl.tables import print_whole


@pytest.mark.parametrize("columns", [2, 14])
def test_a_table_wider_than_the_terminal_loses_nothing(columns):
    console = Console(file=io.StringIO(), width=60)
    names = [f"accuracy_steps_{i}" for i in range(columns)]
    table = Table(*names)
    table.add_row(*(f"{i}.5" for i in range(columns)))
    print_whole(table, console)
    printed = console.file.getvalue()
    lines = printed.splitlines()
    assert len(lines) == 5
    assert all(name in lines[1] for name in names)
    assert console.width == 60
