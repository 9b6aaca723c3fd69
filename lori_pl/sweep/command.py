"""The sub-command ``sweep``: its arguments, and what a Ctrl-C or a scheduler's SIGTERM does to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from jsonargparse import ArgumentParser

from lori_pl.errors import LoriError
from lori_pl.files import has_locks
from lori_pl.sweep.cells import Cell
from lori_pl.sweep.looking import show_plan, show_status
from lori_pl.sweep.runner import Sweep, settled_states
from lori_pl.sweep.specification import load_specification
from lori_pl.sweep.workers import WORKER, run_workers

INTERRUPTED = 130
"""Exit status of a sweep that was interrupted, as a shell gives it for Ctrl-C."""


def main(args: list[str]) -> int:
    """Run ``python -m lori_pl sweep``.

    Args:
        args: The arguments after ``sweep``.

    Returns:
        Exit status: 0; 1 where a run failed in this call; 130 where the sweep was interrupted.

    Raises:
        LoriError: Bad sweep file, unknown cell, options that no run takes, or the sweep's folder is in use.
    """
    options = _parser().parse_args(args)
    if options.workers < 1:
        raise LoriError(f"--workers is {options.workers}: give 1 or more")
    sweep = Sweep(load_specification(options.file, options.override))
    if options.status:
        show_status(sweep)
        return 0
    try:
        with signals_interrupt():
            if options.dry_run:
                show_plan(sweep, options.only)
                look_at(sweep, sweep.examples(options.only))
                return 0
            if sweep.specification.search is not None and not has_locks(sweep.output):
                raise LoriError(
                    f"{sweep.output}: this file system has no locks, by which a search tells trials at work from those "
                    "that were broken off; give another folder by --override output=FOLDER"
                )
            if WORKER not in os.environ:
                look_at(sweep, sweep.examples(options.only, settled_states(options.retry_failed)))
            if options.workers > 1 and WORKER not in os.environ:
                if not has_locks(sweep.output):
                    raise LoriError(f"{sweep.output}: this file system has no locks, by which workers share the cells")
                code = run_workers(args, options.workers)
                sweep.studies(looks=True)
                sweep.show_table()
                return code
            failed = sweep.run(retry_failed=options.retry_failed, only=options.only)
            if WORKER not in os.environ:
                sweep.show_table()
            return 1 if failed else 0
    except KeyboardInterrupt:
        return INTERRUPTED


def look_at(sweep: Sweep, cells: Sequence[Cell]) -> None:
    """Looks whether the options of a sweep's cells are taken; see `lori_pl.commands.cell_options.check_options`."""
    if not cells:
        return
    # it takes seconds to import, which workers and finished sweeps do without
    from lori_pl.commands.cell_options import check_options

    kinds: dict[str, Cell] = {}  # once each that differ in their seed alone
    for cell in cells:
        kinds.setdefault(cell.options, cell)
    sweep.say(f"looking whether the options of {len(kinds)} kind{'s' * (len(kinds) > 1)} of cells are taken")
    check_options(list(kinds.values()), sweep.specification)


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise LoriError(f"{' '.join(message.split())}; see `python -m lori_pl sweep --help`")


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog="lori_pl sweep",
        allow_abbrev=False,
        description="Run every cell of a sweep file that is not done yet, one at a time; results land in the "
        "results.csv of the file's `results` (by default its `output`) as each run ends. Started again, it goes on "
        "where it stopped. Started several times at once, on machines that share the files, workers share the cells.",
    )
    parser.add_argument("file", type=str, help="the sweep file (YAML); lori_pl.sweep.specification describes it")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="list the cells, their status and command, and look whether their options are taken; run nothing",
    )
    parser.add_argument("--status", action="store_true", help="show how far it is, the time left and the best so far")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="cells at a time, each on a GPU or a share of the cores"
    )
    parser.add_argument("--only", type=int, metavar="N", help="only the cell of this number, as --dry_run lists them")
    parser.add_argument("--retry_failed", action="store_true", help="run the failed cells again")
    parser.add_argument(
        "--override",
        type=str,
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="replace a field of the file, such as seeds=[0] or fixed.trainer.max_steps=10",
    )
    return parser


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as a Ctrl-C, so that the run is ended with the sweep; what is ignored stays so."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
