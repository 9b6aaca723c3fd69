"""The tables of a report as Markdown: every cell comes back as it was, whatever is written in it."""

from __future__ import annotations

import pytest
from folders import analysis, sweep
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_report_page import NAMES

from lori_pl.report import page
from lori_pl.report.markdown import as_markdown, escaped, tables_page
from lori_pl.report.material import gather
from lori_pl.report.tables import Table

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PLAIN = {"text", "text_special"}


def cells(markdown: str) -> list[list[str]]:
    """The rows of the tables of a page, head first, as a reader of Markdown sees them: plain text and nothing else."""
    rows: list[list[str]] = []
    for token in READER.parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level > 3:
            children = token.children or []
            assert {child.type for child in children} <= PLAIN
            rows[-1].append("".join(child.content for child in children))
    return rows


@pytest.mark.parametrize("text", [*NAMES, "a|b", "`x`", "[a](b)", "![](x.png)", "~~no~~", "_a_", "a_b", "\\", "# x"])
def test_text_is_text(text):
    table = Table(["method", text], [["a", text]])
    assert cells(as_markdown(table)) == [["method", " ".join(text.split())], ["a", " ".join(text.split())]]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_text_is_text(text):
    # what stands at the edge of a cell is of no table
    text = f"a{text}z"
    assert cells(as_markdown(Table(["x"], [[text]]))) == [["x"], [" ".join(text.split())]]


def test_names_and_numbers_stay_readable():
    assert escaped("lori_r16[latents=3] +1.5 (-0.2 to 3.0)") == r"lori_r16\[latents=3\] +1.5 (-0.2 to 3.0)"


def test_columns_are_those_that_are_wanted():
    table = Table(["a", "b", "c"], [["1", "2", "3"]])
    assert as_markdown(table, ["c", "missing", "a"]) == "| c | a |\n|---|---|\n| 3 | 1 |"


def test_a_report_has_the_tables_of_its_page(tmp_path):
    material = gather([sweep(tmp_path, {"lori": 0.9, "no_cot": 0.3}, 3)])
    report = page.compose(material, "Mine")
    chapter = page._chapter(material.sections[0], 1)
    assert report.markdown == tables_page("Mine", [chapter])
    assert report.markdown.startswith("# Mine\n\n## ")
    found = cells(report.markdown)
    for table in (chapter.methods, chapter.claims, chapter.effects):
        assert all(line in found for line in (table.heads, *table.rows))
    assert "Claims on further test sets" not in report.markdown
    folder = analysis(tmp_path / "tiny")
    (folder / "lens.png").rename(folder / "agreement.png")
    of_analysis = page.compose(gather([folder]), "Mine")
    assert cells(of_analysis.markdown)[-1] == ["student", "2.0 of 3 (1.9-2.1)"]
    assert of_analysis.html.count("Its figures stand in the tables below") == 1  # the table has no spectra
    page.write(report, tmp_path / "report")
    assert (tmp_path / "report" / "tables.md").read_text(encoding="utf-8") == report.markdown
