"""Runs one cell as a process of its own, so that nothing of a run survives into the next."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GRACE = 120.0
"""Seconds that a run has for its step and a checkpoint after it was asked to end, before it is killed."""

PROGRESS = "LORI_PL_PROGRESS"
"""Environment variable that tells a run the file in which to say how far it is."""

CELL = "LORI_PL_CELL"
"""Environment variable that tells a run that it is a cell: what time it may take is that of all its attempts."""

_PLACE = re.compile(r"(SLURM_|TORCHELASTIC_|MASTER_).*|([A-Z]+_)*(RANK|WORLD_SIZE)")
"""Environment variables of a launcher that give a process its place among others. A run is no part of the job that its
sweep's worker is one task of: it would wait for the others, or take one device where it asks for two."""

_LOG_TAIL = 65536
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# As Python's tracebacks and the argument parsers print it: "module.SomeError: cause", "lori_pl: error: cause".
_ERROR_LINE = re.compile(r"([\w.]*(Error|Exception|Interrupt)(:|$)|([\w. -]+: )?error:)", re.IGNORECASE)


@dataclass(frozen=True)
class ChildResult:
    """How a run ended.

    Args:
        exit_code: The process's exit status, negative for the signal that ended it.
        seconds: Wall-clock time.
        peak_memory_mib: Largest resident memory of the process or one of its children, in MiB. On Linux it is never
            less than what the starting process held, since a new process begins as its copy.
    """

    exit_code: int
    seconds: float
    peak_memory_mib: float


LOG = "log.txt"
"""What a cell's run says, in its folder."""


def progress_file(log: Path) -> Path:
    """Where the run with this log says how far it is."""
    return log.absolute().with_name("progress.txt")


def environment(log: Path) -> dict[str, str]:
    """What a run finds in its environment: the caller's, but for its place in a job of several processes.

    Args:
        log: The run's log.
    """
    kept = {name: value for name, value in os.environ.items() if not _PLACE.fullmatch(name)}
    return {**kept, "PYTHONUNBUFFERED": "1", PROGRESS: str(progress_file(log)), CELL: "1"}


def run_child(command: Sequence[str], log: Path, keep_open: Sequence[int] = ()) -> ChildResult:
    """Run a command to its end; everything it prints goes to a file.

    The process leads a session of its own: a Ctrl-C reaches only the caller, which ends the process *and its children*
    before the exception goes on. Whatever the process leaves running is ended as well.

    Args:
        command: Program and arguments.
        log: The file for standard output and standard error.
        keep_open: File descriptors that the process inherits.
    """
    start = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(log),
            start_new_session=True,
            pass_fds=keep_open,
        )
    try:
        # wait4 rather than Popen.wait: it tells this child's memory apart from its predecessors'.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(timeout=GRACE)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        raise
    _signal_group(process.pid, signal.SIGKILL)
    unit = 1 if sys.platform == "darwin" else 1024
    return ChildResult(process.returncode, time.monotonic() - start, usage.ru_maxrss * unit / 2**20)


def failure_reason(exit_code: int, log: Path, start: int = 0) -> str:
    """Why a run failed, in one line: the signal that ended it, and the log's last error or else its last line.

    Args:
        exit_code: The process's exit status, negative for a signal.
        log: The file that holds its output.
        start: Where in the file its output begins, in bytes: behind that of earlier attempts.
    """
    killed = ""
    if exit_code < 0:
        hint = ", perhaps out of memory" if -exit_code == signal.SIGKILL else ""
        killed = f"ended by signal {-exit_code} ({signal.strsignal(-exit_code)}{hint})"
    lines: list[str] = []
    if log.exists():
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - _LOG_TAIL, start))
            text = _ESCAPE.sub("", file.read().decode("utf-8", errors="replace"))
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    # A message may go on for some lines after the one that names the error.
    error = next((place for place in reversed(range(len(lines))) if _ERROR_LINE.match(lines[place])), -1)
    said = " ".join(lines[error:])[:500]
    return ": ".join(filter(None, (killed, said))) or f"exit status {exit_code} without a message"


def _signal_group(group: int, number: signal.Signals) -> None:
    # macOS answers with a permission error where only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
