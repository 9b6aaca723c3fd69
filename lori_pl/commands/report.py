"""`report`: folders of results, runs and analyses as one HTML file with its pictures."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from lori_pl.errors import LoriError
from lori_pl.report.material import gather
from lori_pl.report.page import LOG, PAGE, PICTURES, check_folder, compose, write
from lori_pl.report.sweep_files import sweeps_beside
from lori_pl.sweep.specification import load_specification
from lori_pl.tables import say


def main(arguments: list[str]) -> int:
    """Makes a report.

    Args:
        arguments: Folders and options.

    Raises:
        LoriError: If there is nothing to report, an input cannot be read, or the output folder holds something else.
    """
    options = _parser().parse_args(arguments)
    if not (options.source or options.selection):
        raise LoriError("no folder is given: name those of results, runs, analyses or benchmarks")
    folder = Path(options.folder)
    check_folder(folder)
    sweeps = [load_specification(file) for file in options.sweep]
    if not (options.sweep or options.compare):
        beside = [sweeps_beside(source) for source in options.source]
        sweeps = [sweep for found in beside if any(sweep.compare for sweep in found) for sweep in found]
    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading")
        pairs = [(first, second) for first, second in options.compare]
        material = gather(options.source, options.selection, pairs, sweeps)
        progress.update(task, description="drawing")
        report = compose(material, options.title)
        progress.update(task, description="writing")
        write(report, folder)
    if sweeps and not options.sweep:
        files = ", ".join(dict.fromkeys(os.path.relpath(sweep.file) for sweep in sweeps))
        say(f"note: cells and comparisons are those of {files}; --sweep or --compare takes others", console)
    notes = [*material.notes, *(note for section in material.sections for note in section.group.notes)]
    for note in notes:
        say(f"note: {note}", console)
    line = f"{folder / PAGE}, {len(report.pictures)} pictures in {folder / PICTURES}, TensorBoard: {folder / LOG}"
    say(line, console)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LoriError(f"{message}; see `python -m lori_pl report --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="report",
        usage="python -m lori_pl report FOLDER... [options]",
        description="Make one self-contained HTML file, its pictures as PNG and TensorBoard's log of them, from "
        "recorded results.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        nargs="*",
        metavar="FOLDER",
        help="a folder with results.csv, a run's folder, or one that `analyze` or `benchmark` wrote",
    )
    parser.add_argument("--folder", default="runs/report", metavar="DIR", help="where it goes (default: runs/report)")
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        default=[],
        metavar=("FIRST", "SECOND"),
        help="a claim: two methods, as results name them; may be given several times (default: those of "
        "the sweep file beside the results, or lori with every other)",
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FILE",
        help="a sweep file: of its table its own cells' rows are taken, and its `compare` names the claims; may be "
        "given several times (default, where no --compare is given: those in or beside a folder of results whose table "
        "that is)",
    )
    parser.add_argument(
        "--selection",
        nargs="+",
        action="extend",
        default=[],
        metavar="FOLDER",
        help="results on which settings were chosen: shown apart, by validation, and no claim is made of them",
    )
    parser.add_argument("--title", default="Results", metavar="TEXT", help="the page's title (default: Results)")
    return parser
