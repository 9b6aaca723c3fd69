"""What an evaluation leaves on disk: one row of results a (method, seed), and the outcome of every single problem.

A result row stands in a CSV file (`ResultTable`), the outcomes beside it in an ``.npz`` file (`write_outcomes`), so
that two models can be compared problem by problem long after their weights are gone. Both survive a crash at any
moment: a row is on the disk when `ResultTable.append` returns, and a file to be rewritten is replaced in one step.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from lori_pl.errors import LoriError, one_line
from lori_pl.evaluation.intervals import as_bits
from lori_pl.files import make_file, replace_file

log = logging.getLogger(__name__)

RESULT_COLUMNS = ("method", "seed", "accuracy", "n", "passes", "milliseconds", "commit", "command")
"""What every result table has: accuracies are fractions, passes and milliseconds means a question."""

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcomes:
    """Per-problem outcomes of one evaluation set.

    Args:
        ids: The problems' ids, n of them, in the order of the bits.
        bits: For each (method, seed) a boolean array of shape (n,): whether the answer was right.
        steps: The problems' numbers of rationale steps, shape (n,), where they are known.
        problems: The problems' `lori_pl.data.problem.problems_digest`, where it is known.
    """

    ids: list[str]
    bits: dict[tuple[str, int], np.ndarray]
    steps: np.ndarray | None = None
    problems: str | None = None

    def rows_of(self, other: Outcomes) -> list[int]:
        """Where each of these problems stands in another evaluation of the same problems.

        Numbers of steps and digests are compared where both have them: files of earlier versions may have neither.

        Raises:
            OtherProblems: The other evaluation's problems are not these.
        """
        if set(other.ids) != set(self.ids):
            only = min(set(other.ids) ^ set(self.ids))
            raise OtherProblems(f"{len(other.ids)} others ('{only}' is in one only)")
        places = {id: place for place, id in enumerate(other.ids)}
        rows = [places[id] for id in self.ids]
        if self.steps is not None and other.steps is not None and not np.array_equal(self.steps, other.steps[rows]):
            raise OtherProblems("as many of the same ids, but with other numbers of steps")
        if self.problems is not None and other.problems is not None and self.problems != other.problems:
            raise OtherProblems("as many of the same ids, but with other questions or answers")
        return rows

    def save(self, file: IO[bytes]) -> None:
        """Writes the arrays of a file of outcomes."""
        arrays: dict[str, Any] = {f"{method}/{seed}": bits for (method, seed), bits in self.bits.items()}
        if self.steps is not None:
            arrays["steps"] = self.steps
        if self.problems is not None:
            arrays["problems"] = np.asarray(self.problems, dtype=np.str_)
        np.savez_compressed(file, ids=np.asarray(self.ids, dtype=np.str_), **arrays)


class OtherProblems(LoriError):
    """Two evaluations are of different problems; the message says what the other one's are."""


def write_outcomes(
    path: str | Path,
    ids: Sequence[str],
    bits: Sequence[bool] | np.ndarray,
    method: str,
    seed: int,
    steps: Sequence[int] | np.ndarray | None = None,
    problems: str | None = None,
) -> None:
    """Add one (method, seed) to a file of outcomes; the file is made where it does not exist.

    The file holds ``ids``, ``steps`` and ``problems`` where they are known, and one boolean array ``METHOD/SEED`` each.
    It is written beside itself and moved into place, so a reader or a crash sees the old file or the new one. Outcomes
    already there for the same (method, seed) are replaced. Bits in another order than the file's are sorted into it by
    id. A file without ``steps`` or ``problems`` takes those that are given.

    Args:
        path: The ``.npz`` file; its folder is made.
        ids: The problems' ids, n of them, all different.
        bits: Whether each answer is right, shape (n,), in the order of ``ids``.
        method: Name of the method.
        seed: The training seed.
        steps: Number of rationale steps of each problem, shape (n,), in the order of ``ids``.
        problems: The problems' `lori_pl.data.problem.problems_digest`.

    Raises:
        LoriError: Lengths differ, an id occurs twice, or the file's problems are others.
    """
    path, ids, outcome = Path(path), [str(id) for id in ids], as_bits(bits, f"{method}/{seed}")
    if len(ids) != len(outcome):
        raise LoriError(f"{path}: {len(ids)} ids but {len(outcome)} outcomes of {method}/{seed}: give one a problem")
    if len(set(ids)) != len(ids):
        twice = next(id for position, id in enumerate(ids) if id in ids[:position])
        raise LoriError(f"{path}: id '{twice}' occurs twice in the outcomes of {method}/{seed}: ids must be unique")
    counts = None if steps is None else np.asarray(steps, dtype=np.int64)
    if counts is not None and counts.shape != outcome.shape:
        raise LoriError(f"{path}: {len(ids)} ids but numbers of steps of shape {counts.shape}: give one a problem")
    given = Outcomes(ids, {(method, int(seed)): outcome}, counts, problems)
    # another machine may have made it, which this one has not seen
    if not path.exists() and make_file(path, given.save):
        return
    known = read_outcomes(path)
    try:
        rows = known.rows_of(given)
    except OtherProblems as error:
        raise LoriError(
            f"{path}: holds the outcomes of {len(known.ids)} problems, but {method}/{seed} has {error}: evaluate on "
            "the same problems or write to another file"
        ) from None
    merged = replace(
        known,
        bits={**known.bits, (method, int(seed)): outcome[rows]},
        steps=counts[rows] if known.steps is None and counts is not None else known.steps,
        problems=known.problems or problems,
    )
    replace_file(path, merged.save)


def read_outcomes(path: str | Path) -> Outcomes:
    """Read a file that `write_outcomes` made; nothing in it is unpickled.

    Args:
        path: The ``.npz`` file.

    Returns:
        The ids, the outcomes of each (method, seed) in the order in which they were written, and the numbers of steps
        and the problems' digest where the file has them.

    Raises:
        LoriError: The file is missing or is no file of outcomes.
    """
    path = Path(path)
    if not path.is_file():
        raise LoriError(f"{path}: no such file of outcomes: run the evaluation that writes it first")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids = [str(id) for id in arrays["ids"]]
            bits: dict[tuple[str, int], np.ndarray] = {}
            steps = np.asarray(arrays["steps"], dtype=np.int64) if "steps" in arrays.files else None
            problems = str(arrays["problems"][()]) if "problems" in arrays.files else None
            for key in arrays.files:
                if key not in ("ids", "steps", "problems"):
                    method, _, seed = key.rpartition("/")
                    bits[method, int(seed)] = as_bits(arrays[key], key)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise LoriError(f"{path}: not a file of outcomes ({error}): give an .npz with 'ids' and METHOD/SEED") from error
    for (method, seed), array in bits.items():
        if len(array) != len(ids):
            raise LoriError(f"{path}: {method}/{seed} has {len(array)} outcomes for {len(ids)} ids: write it again")
    if steps is not None and steps.shape != (len(ids),):
        raise LoriError(f"{path}: numbers of steps of shape {steps.shape} for {len(ids)} ids: write it again")
    return Outcomes(ids, bits, steps, problems)


_TOLD: set[tuple[Path, bytes]] = set()
"""Last lines without an end that were warned of."""


class ResultTable:
    """An append-only CSV file of results that is sound after a crash at any moment.

    A row is flushed to the disk (fsync) before `append` returns. A row with a new column makes the file be rewritten
    under the union of the columns, in one step. Every row is one line (line breaks inside a value become spaces), so a
    last line without its line end was cut by a crash: it is ignored by `rows`, which warns of it, and moved to
    ``FILE.cut`` by the next `append`.

    Args:
        path: The CSV file; it is made, with its folder, by the first `append`.
        columns: Columns besides `RESULT_COLUMNS` that the header has from the start.
    """

    def __init__(self, path: str | Path, columns: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self._initial = list(dict.fromkeys((*RESULT_COLUMNS, *columns)))

    def rows(self) -> list[dict[str, str]]:
        """Every complete row as text by column, oldest first; none where the file does not exist.

        Raises:
            LoriError: The file cannot be read or is no result table, or a row has another number of fields than the
                header.
        """
        header, rows, *_ = self._read()
        return [dict(zip(header, row, strict=True)) for row in rows]

    def append(self, row: Mapping[str, object]) -> None:
        """Add one row; it is on the disk when this returns.

        Args:
            row: Values by column. A column that the row lacks, and ``None``, stay empty.

        Raises:
            LoriError: As `rows`, or the file cannot be written.
        """
        try:
            self._append(row)
        except OSError as error:
            raise LoriError(
                f"{self.path} cannot be written ({one_line(error)}); check its permissions and the disk's room"
            ) from error

    def _append(self, row: Mapping[str, object]) -> None:
        header, rows, sound, cut = self._read()
        if cut:
            with self.path.with_name(f"{self.path.name}.cut").open("ab") as aside:
                aside.write(cut + b"\n")
        if not header:
            columns = list(dict.fromkeys((*self._initial, *row)))
            first = _as_lines([columns, [_as_text(row.get(column)) for column in columns]])
            if make_file(self.path, lambda file: file.write(first)):
                return
            header, rows, sound, _ = self._read()  # another machine made it, which this one had not seen
        union = list(dict.fromkeys((*(header or self._initial), *row)))
        line = [_as_text(row.get(column)) for column in union]
        if union != header:
            filled = [known + [""] * (len(union) - len(known)) for known in rows]
            replace_file(self.path, lambda file: file.write(_as_lines([union, *filled, line])))
            return
        with self.path.open("r+b") as file:
            file.truncate(sound)
            file.seek(sound)
            file.write(_as_lines([line]))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> tuple[list[str], list[list[str]], int, bytes]:
        """Header, rows, the number of bytes up to the end of the last complete line, and what stands behind it."""
        if not self.path.exists():
            return [], [], 0, b""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise LoriError(f"{self.path} cannot be read ({one_line(error)}); check its permissions") from error
        sound = content.rfind(b"\n") + 1
        cut = content[sound:]
        if cut and (self.path, cut) not in _TOLD:
            _TOLD.add((self.path, cut))
            log.warning(
                "%s: the last line has no line end: it may be cut off, and counts for nothing; if it is whole, end it "
                "(the next row moves it to %s.cut)",
                *(self.path, self.path.name),
            )
        try:
            lines = list(csv.reader(io.StringIO(content[:sound].decode("utf-8-sig"), newline=""), strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise LoriError(f"{self.path}: not a CSV file in UTF-8 ({error}): repair or move it") from error
        if not lines:
            return [], [], 0, cut
        header, rows = lines[0], lines[1:]
        if missing := [column for column in RESULT_COLUMNS if column not in header]:
            raise LoriError(
                f"{self.path}, line 1: not a result table, column '{missing[0]}' is missing: move the file away"
            )
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise LoriError(
                    f"{self.path}, line {number}: {len(row)} fields where the header has {len(header)}: repair the line"
                )
        return header, rows, sound, cut


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file that `write_rows` wrote; none where there is no file.

    Args:
        path: The file.
    """
    path = Path(path)
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))) if path.exists() else []


def write_rows(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows of the same columns as CSV; the file appears whole or not at all.

    Args:
        path: The file to make or replace.
        rows: At least one; the first gives the columns.
    """
    header = list(rows[0])
    lines: list[list[object]] = [[*header], *([row[name] for name in header] for row in rows)]
    replace_file(path, lambda file: file.write(_as_lines(lines)))


def git_commit(paths: Sequence[str | Path] = (_PACKAGE, _PACKAGE.parent / "configs")) -> str:
    """The last commit that changed the running code.

    Args:
        paths: What makes up the code, by default the package and the configs beside it; the first must be tracked.

    Returns:
        The short hash, with ``+dirty`` where one of ``paths`` differs from that commit (new files included), or
        ``unknown`` where the code is installed rather than checked out, or git is missing.
    """
    folder = Path(paths[0])
    where = [str(path) for path in paths]
    if not _git(folder, "ls-files", "--", where[0]):
        return "unknown"
    # later ones, such as those of rows, changed nothing that runs
    commit = _git(folder, "log", "-1", "--format=%h", "--", *where)
    if not commit:
        return "unknown"
    return commit + ("+dirty" if _git(folder, "status", "--porcelain", "--", *where) else "")


def code_digest() -> str:
    """Digest of the running package, shipped files included, committed or not."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in _PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def as_field(text: str) -> str:
    """Text as a table holds it: one line, without NUL, which Python 3.10's csv does not read.

    Args:
        text: The text.
    """
    return " ".join(text.replace("\0", " ").splitlines())


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(float(value))  # NumPy's own would print as np.float64(0.5)
    return as_field(str(value))


def _as_lines(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")
