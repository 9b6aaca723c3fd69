"""Writes a report: one HTML file that needs nothing else, its tables as Markdown, its pictures as PNG and in a log."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from torch.utils.tensorboard import SummaryWriter

from lori_pl import __version__
from lori_pl.errors import LoriError, one_line
from lori_pl.evaluation.claims import CLAIM_SEEDS
from lori_pl.files import replace_file, replace_folder
from lori_pl.report import album, tables
from lori_pl.report.markdown import tables_page
from lori_pl.report.material import Material, Section
from lori_pl.report.pictures import Picture
from lori_pl.report.records import Run, clean
from lori_pl.run_files import LOGS, REPORT

PAGE, TABLES, PICTURES, LOG = REPORT, "tables.md", "pictures", LOGS
GENERATOR = "lori_pl report"
_TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Chapter:
    """One group of runs as the page shows it."""

    title: str
    about: str
    selection: bool
    notes: list[str]
    methods: tables.Table
    claims: tables.Table
    effects: tables.Table | None
    other_claims: tables.Table | None
    failures: tables.Table | None
    pictures: dict[str, list[Picture]]
    runs: list[Run]


@dataclass(frozen=True)
class Report:
    """A report, ready to be written.

    Args:
        html: The page.
        markdown: Its tables as Markdown; empty where there are no runs.
        pictures: All its pictures.
    """

    html: str
    markdown: str
    pictures: list[Picture]


def check_folder(folder: Path) -> None:
    """Refuses a folder that holds anything but an earlier report.

    Raises:
        LoriError: If it does, or is no folder.
    """
    if not folder.exists():
        return
    remedy = "give another --folder"
    if not folder.is_dir():
        raise LoriError(f"--folder {folder} is a file; {remedy}")
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    if others := sorted(names - {PAGE, TABLES, PICTURES, LOG}):
        raise LoriError(f"--folder {folder} holds '{others[0]}', which is no part of a report; {remedy}")
    try:
        with (folder / PAGE).open(encoding="utf-8", errors="replace") as file:
            ours = f'content="{GENERATOR}' in file.read(2000)
    except OSError:
        ours = False
    if not ours:
        raise LoriError(f"--folder {folder} holds something that is not a report; {remedy}")


def compose(material: Material, title: str) -> Report:
    """Draws the pictures and makes the page.

    Args:
        material: What it is made of.
        title: Its title.
    """
    chapters = [_chapter(section, place) for place, section in enumerate(material.sections, start=1)]
    timings = album.of_timings(material)
    spectra = album.of_files(material.spectra, "spectrum")
    analyses = album.of_files(material.analyses, "analysis")
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"breakable": breakable, "small_interval": small_interval}
    html = environment.get_template(_TEMPLATE).render(
        title=clean(title, 200),
        generator=f"{GENERATOR} {__version__}",
        made=f"Made {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())} by lori_pl {__version__}",
        material=material,
        chapters=chapters,
        timings=timings,
        spectra=spectra,
        analyses=analyses,
        claim_seeds={5: "five"}.get(CLAIM_SEEDS, CLAIM_SEEDS),
    )
    drawn = [each for chapter in chapters for part in chapter.pictures.values() for each in part]
    told = chapters or material.analysis_tables
    markdown = tables_page(clean(title, 200), chapters, material.analysis_tables) if told else ""
    return Report(html.strip() + "\n", markdown, [*drawn, *timings, *spectra, *analyses])


def write(report: Report, folder: Path) -> None:
    """Writes a report's folder, whole or not at all.

    Args:
        report: The report.
        folder: Its folder, new, empty or that of an earlier report.

    Raises:
        LoriError: As `check_folder`, or if the folder cannot be written.
    """
    check_folder(folder)

    def parts(place: Path) -> None:
        (place / PICTURES).mkdir(parents=True)
        for each in report.pictures:
            (place / PICTURES / f"{each.name}.png").write_bytes(each.png)
        log(report, place / LOG)
        if report.markdown:
            (place / TABLES).write_bytes(report.markdown.encode("utf-8", "replace"))
        replace_file(place / PAGE, lambda file: file.write(report.html.encode("utf-8", "replace")))

    try:
        replace_folder(folder, parts)
    except OSError as error:
        raise LoriError(f"--folder {folder} cannot be written ({one_line(error)}); give another one") from error


def breakable(text: str) -> Markup:
    """A name that may break into lines behind its separators, escaped."""
    return Markup("<wbr>").join(re.split(r"(?<=[_=,/\[({])", text))


def small_interval(text: str) -> Markup:
    """A table's cell with what stands in brackets behind a number in small letters below it, escaped."""
    found = re.fullmatch(r"([<+-]?[\d ./]+) (\(.*\))", text)
    return Markup("{}<small>{}</small>").format(*found.groups()) if found else escape(text)


def log(report: Report, folder: Path) -> None:
    """Writes the pictures to TensorBoard."""
    with SummaryWriter(str(folder)) as writer:
        for each in report.pictures:
            writer.add_image(f"report/{each.name}", each.pixels, dataformats="HWC")


def _chapter(section: Section, place: int) -> Chapter:
    group = section.group
    return Chapter(
        title=group.title,
        about=_about(section),
        selection=group.selection,
        notes=group.notes,
        methods=tables.methods(section),
        claims=tables.claims(section),
        effects=tables.effects(section),
        other_claims=tables.other_claims(section),
        failures=tables.failures(section),
        pictures=album.of_section(section, place),
        runs=group.runs,
    )


def _about(section: Section) -> str:
    group = section.group
    failed = sum(run.status == "failed" for run in group.runs)
    untested = sum(run.status == "not tested" for run in group.runs)
    seeds = ", ".join(str(seed) for seed in group.seeds[:12]) + (", …" if len(group.seeds) > 12 else "")
    most = max((len(runs) for runs in group.methods.values()), default=0)
    text = f"{_count(len(group.methods), 'method')}, {_count(len(group.measured), 'tested run')}"
    text += f", seed{'s' if len(group.seeds) > 1 else ''} {seeds}" if seeds else ""
    text += f"; {failed} failed" if failed else ""
    text += f"; {untested} not tested" if untested else ""
    dirty = sum("+dirty" in run.commit for run in group.measured)
    text += f"; {dirty} of code that differed from its commit" if dirty else ""
    few = {1: "One seed a method: leads, no claims.", 2: "Two seeds a method at most: no claims."}.get(most, "")
    return f"{text}. {few}".strip()


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
