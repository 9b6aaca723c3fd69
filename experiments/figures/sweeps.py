"""Puts a sweep's tables into its page and draws its picture, as `lori_pl report` makes them of the recorded rows.

Run in the root of the repository: ``python experiments/figures/sweeps.py experiments/sweeps/NAME...``. The page,
``README.md`` in that folder, has ``<!-- report:methods -->`` where the accuracies go, ``<!-- report:claims -->`` where
the differences go that its sweep files compare, those in or beside the folder whose results are there, and
``<!-- report:effects -->`` for the same by number of steps; the picture is ``accuracy.png`` beside the page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lori_pl.files import replace_file
from lori_pl.report import album, tables
from lori_pl.report.markdown import as_markdown
from lori_pl.report.material import Section, gather
from lori_pl.report.pictures import Picture
from lori_pl.report.sweep_files import sweeps_beside

PAGE, PICTURE = "README.md", "accuracy.png"
EACH = "each seed"
METHODS = ("method", "accuracy", "95 % interval", "over", EACH)
CLAIMS = ("pair", "difference", "95 % interval", "over", EACH, "p", "p, Holm", "McNemar's p", "what it says")


def section_of(folder: Path) -> Section:
    """What a report makes of a sweep's rows, with the claims that its file names, in the order of its cells."""
    return gather([folder], sweeps=sweeps_beside(folder)).sections[0]


def blocks(section: Section) -> dict[str, str]:
    """The page's tables by the names of their markers."""
    methods, claims = tables.methods(section), tables.claims(section)
    by_steps = [head for head in methods.heads if head.endswith(" steps")]
    wanted = [head for head in CLAIMS if head != EACH or EACH in methods.heads]
    made = {"methods": as_markdown(methods, [*METHODS, *by_steps, "passes"]), "claims": as_markdown(claims, wanted)}
    effects = tables.effects(section)
    return made if effects is None else made | {"effects": as_markdown(effects)}


def picture_of(section: Section) -> Picture:
    """Accuracy against what was varied, where that is a number or its list has all rows; else all rows side by side."""
    pictures = album.of_section(section, 1)
    last = section.ablations[-1] if section.ablations else None  # what tests vary comes behind what runs vary
    if last is not None and (last.numeric or sum(len(s.points) for s in last.series) == len(section.group.methods)):
        return pictures["ablations"][-1]
    return pictures["results"][0]


def put(page: str, made: dict[str, str]) -> str:
    """A page with each block in place of the one that stands below its marker; blocks without a marker are left out."""
    for name, block in made.items():
        marker = re.compile(rf"(<!-- report:{name} -->\n\n)(?:(?:\|.*\n)+\n)?")
        page = marker.sub(lambda found, block=block: f"{found[1]}{block}\n\n", page)
    return page


def main(arguments: Sequence[str]) -> None:
    for folder in map(Path, arguments):
        section = section_of(folder)
        page = folder / PAGE
        text = put(page.read_text(encoding="utf-8"), blocks(section))
        replace_file(page, lambda file, text=text: file.write(text.encode()))
        drawn = picture_of(section)
        replace_file(folder / PICTURE, lambda file, drawn=drawn: file.write(drawn.png))
        print(f"{page} and {folder / PICTURE}")


if __name__ == "__main__":
    main(sys.argv[1:])
