"""The sub-command ``sweep``: its arguments, and what a Ctrl-C or a scheduler's SIGTERM does to it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jsonargparse import ArgumentParser

from lori_pl.sweep.runner import Sweep
from lori_pl.sweep.specification import load_specification

INTERRUPTED = 130
"""Exit status of a sweep that was interrupted, as a shell gives it for Ctrl-C."""


def main(args: list[str]) -> int:
    """Run ``python -m lori_pl sweep``.

    Args:
        args: The arguments after ``sweep``.

    Returns:
        Exit status: 0; 1 where a run failed in this call; 130 where the sweep was interrupted.

    Raises:
        LoriError: Bad sweep file, unknown cell, or the sweep's folder is in use.
    """
    options = _parser().parse_args(args)
    sweep = Sweep(load_specification(options.file, options.override))
    if options.dry_run:
        sweep.show_plan(options.only)
        return 0
    try:
        with signals_interrupt():
            return 1 if sweep.run(retry_failed=options.retry_failed, only=options.only) else 0
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="lori_pl sweep",
        description="Run every cell of a sweep file that is not done yet, one at a time; results land in "
        "OUTPUT/results.csv as each run ends. Started again, it goes on where it stopped.",
    )
    parser.add_argument("file", type=str, help="the sweep file (YAML); lori_pl.sweep.specification describes it")
    parser.add_argument("--dry_run", action="store_true", help="list the cells, their status and command; run nothing")
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
