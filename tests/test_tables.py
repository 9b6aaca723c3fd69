"""Tables are printed whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lori_pl.evaluation.intervals import wilson
from lori_pl.evaluation.report import print_table
from lori_pl.tables import as_text, percent_above_interval, print_whole, say


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


def test_a_table_as_text_has_what_is_printed():
    table = Table("step", "share", title="a title", caption=Text("a caption"))
    table.add_row(Text("z1"), percent_above_interval(0.5, (0.25, 0.75)))
    table.add_row("[b]2", "")
    assert as_text(table) == {
        "title": "a title",
        "caption": "a caption",
        "heads": ["step", "share"],
        "rows": [["z1", "50.0 (25.0-75.0)"], ["[b]2", ""]],
    }
    assert as_text(Table("a"))["rows"] == []


def test_brackets_of_a_name_or_path_are_printed(capsys):
    row = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "passes": 2, "milliseconds": 1.0, "n": 10}
    print_table({"lori[latents=3] on test[/b]": row})
    path = f"runs/lori[rank=8]/{'a' * 100}[/b]/summary.json"
    say(f"summary: {path}")
    printed = capsys.readouterr().out
    assert "lori[latents=3] on test[/b]" in printed
    assert f"summary: {path}\n" in printed


def test_accuracies_by_steps_have_their_intervals_where_the_numbers_of_problems_are_known(capsys):
    row = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "passes": 2, "milliseconds": 1.0, "n": 60}
    row |= {"accuracy_steps_2": 0.75, "n_steps_2": 40, "accuracy_steps_10": 0.25}
    print_table({"lori": row})
    lines = capsys.readouterr().out.splitlines()
    values = next(place for place, line in enumerate(lines) if "lori" in line)
    low, high = wilson(30, 40)
    assert lines[values].replace("│", " ").split()[5:7] == ["75.0", "25.0"]
    assert lines[values + 1].replace("│", " ").split() == [f"{100 * low:.1f}-{100 * high:.1f}"]
