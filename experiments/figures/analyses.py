"""Puts the tables of recorded analyses into their page.

Run in the root of the repository: ``python experiments/figures/analyses.py``. The page,
``experiments/analysis/README.md``, has ``<!-- analysis:NAME -->`` where the tables of ``NAME/analysis.json`` go.
"""

from __future__ import annotations

import re
from pathlib import Path

from lori_pl.files import replace_file
from lori_pl.report.files import read_analysis
from lori_pl.report.markdown import as_markdown, escaped

FOLDER = Path("experiments/analysis")
END = "<!-- /analysis -->"


def block(folder: Path) -> str:
    """The tables of an analysis, a heading and a caption each."""
    notes: list[str] = []
    _, tables = read_analysis(folder, notes)
    parts = []
    for table in tables:
        title = table.title.removesuffix(f" ({folder.name})")
        parts.append(f"*{escaped(title)}*" + (f" ({escaped(table.caption)})" if table.caption else ""))
        parts.append(as_markdown(table))
    return "\n\n".join(parts)


def put(page: str, folder: Path) -> str:
    """A page with the tables of each analysis in place of what stands below its marker."""
    for name in re.findall(r"<!-- analysis:(\w+) -->", page):
        start = f"<!-- analysis:{name} -->\n"
        before, _, after = page.partition(start)
        _, end, rest = after.partition(END)
        if not end:
            raise SystemExit(f"{folder / 'README.md'}: no {END} behind {start.strip()}")
        page = f"{before}{start}\n{block(folder / name)}\n\n{END}{rest}"
    return page


def main() -> None:
    page = FOLDER / "README.md"
    text = put(page.read_text(encoding="utf-8"), FOLDER)
    replace_file(page, lambda file: file.write(text.encode()))
    print(page)


if __name__ == "__main__":
    main()
