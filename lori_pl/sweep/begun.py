"""What a cell's folder notes of a run that has not ended well, so that the same code can go on with it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from lori_pl.errors import LoriError
from lori_pl.files import replace_file
from lori_pl.run_files import CHECKPOINTS

BEGUN = "begun.json"
"""Of what code the run is, the seconds so far, since when it runs."""


def note_begun(folder: Path, code: str, commit: str, seconds: float, since: float | None) -> None:
    """Notes a run.

    Args:
        folder: The cell's folder.
        code: Digest of the code.
        commit: The code's commit, for people.
        seconds: What earlier attempts took.
        since: When this attempt began (seconds since the epoch); ``None`` where it was stopped and ``seconds`` has it.
    """
    text = json.dumps({"code": code, "commit": commit, "seconds": seconds, "since": since})
    replace_file(folder / BEGUN, lambda file: file.write(text.encode()))


def commit_of(folder: Path) -> str:
    """The commit of the code whose run is noted in a folder; ``unknown`` where none is."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / BEGUN).read_text(encoding="utf-8"))["commit"])
    return "unknown"


def seconds_before(folder: Path, code: str) -> float | None:
    """Seconds that a cell's run had taken before it was broken off; ``None`` where this code cannot go on with it."""
    from lori_pl.checkpoint_files import newest_sound  # torch, for which a look at a sweep need not wait

    try:
        noted = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
        seconds, since = float(noted["seconds"]), noted["since"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    try:
        newest = newest_sound(folder / CHECKPOINTS) if noted["code"] == code else None
    except LoriError:  # all are damaged
        return None
    if newest is None:
        return None
    # of a run that was killed, what it did up to its last checkpoint
    return seconds + (0.0 if since is None else max(0.0, newest.stat().st_mtime - float(since)))
