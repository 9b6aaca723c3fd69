"""The tables of a report as Markdown, to be put into a page of one's own."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lori_pl.report.records import Table

if TYPE_CHECKING:
    from lori_pl.report.page import Chapter


def as_markdown(table: Table, heads: Sequence[str] | None = None) -> str:
    """A table with its text escaped.

    Args:
        table: The table.
        heads: The columns that are wanted, in this order; ``None`` for all. Those that it lacks are left out.
    """
    places = range(len(table.heads)) if heads is None else [table.heads.index(h) for h in heads if h in table.heads]
    lines = [[escaped(row[place]) for place in places] for row in (table.heads, *table.rows)]
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(places), *rest])


def escaped(text: str) -> str:
    """Text in which nothing is Markdown or HTML; a line of a table."""
    text = html.escape(text, quote=False)
    # an underscore within a word is none of Markdown's
    return re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))


def tables_page(title: str, chapters: Sequence[Chapter], analyses: Sequence[Table] = ()) -> str:
    """All tables of a report, under the heads that its page has.

    Args:
        title: The report's title.
        chapters: Its groups of runs.
        analyses: The tables of analyses.
    """
    parts = [f"# {escaped(title)}"]
    for chapter in chapters:
        parts += [f"## {escaped(chapter.title)}{' (selection)' if chapter.selection else ''}", escaped(chapter.about)]
        parts += [f"- {escaped(note)}" for note in chapter.notes]
        made = {
            "Methods (accuracies in percent)": chapter.methods,
            "Claims (differences in points)": chapter.claims,
            "Differences by number of steps": chapter.effects,
            "Claims on further test sets": chapter.other_claims,
            "Runs without a result": chapter.failures,
        }
        parts += [f"### {head}\n\n{as_markdown(table)}" for head, table in made.items() if table and table.rows]
    parts += ["## Analyses"] * bool(analyses)
    parts += [f"### {escaped(each.title)}\n\n{as_markdown(each)}\n\n{escaped(each.caption)}" for each in analyses]
    return "\n\n".join(part.strip() for part in parts) + "\n"
