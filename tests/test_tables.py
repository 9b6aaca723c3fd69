"""Tables are printed whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from lori_pl.evaluation.report import print_table
from lori_pl.tables import print_whole, say


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


def test_brackets_of_a_name_or_path_are_printed(capsys):
    row = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "passes": 2, "milliseconds": 1.0, "n": 10}
    print_table({"lori[latents=3] on test[/b]": row})
    path = f"runs/lori[rank=8]/{'a' * 100}[/b]/summary.json"
    say(f"summary: {path}")
    printed = capsys.readouterr().out
    assert "lori[latents=3] on test[/b]" in printed
    assert f"summary: {path}\n" in printed
