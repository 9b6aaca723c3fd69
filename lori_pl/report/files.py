"""Pictures and timings that other commands left: analyses, spectra of runs, benchmarks."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lori_pl.errors import one_line
from lori_pl.report.records import Run, Table, clean, fraction, number

ANALYSIS, BENCHMARK, SPECTRUM = "analysis.json", "benchmark.json", "spectrum.png"
# what `analyze` calls its pictures, in the order in which they are shown
_TITLES = {
    "spectra": "Spectra of teacher and student",
    "energy": "Energy by layer and position",
    "effective_rank": "Effective rank",
    "right_wrong": "Right and wrong answers",
    "angles": "Angles between subspaces",
    "captured_energy": "Energy captured",
    "lens": "Logit lens of the latents",
    "agreement": "Results of steps in the latents",
    "agreement_by_layer": "Results of steps in the latents, by layer",
    "interventions": "Accuracy under interventions",
}
_TOLD = ("effective_rank", "agreement", "interventions")
_SAID = ("method", "split", "problems", "ckpt_path", "commit")
_LARGEST = 8 * 2**20


@dataclass(frozen=True)
class Found:
    """A PNG picture that is taken as it is.

    Args:
        title: What stands over it.
        note: What stands below it.
        content: The file.
        width: Pixels of the page that it is meant for.
        is_told: Whether a table has its figures, too.
    """

    title: str
    note: str
    content: bytes
    width: int
    is_told: bool = False


@dataclass(frozen=True)
class Timed:
    """A student's time for one question alone, from a benchmark.

    Args:
        name: The student.
        accuracy: With the interval over problems: value, low, high, as fractions.
        milliseconds: Median and quartiles: value, low, high.
        passes: Mean sequential passes, where they are known.
    """

    name: str
    accuracy: tuple[float, float, float]
    milliseconds: tuple[float, float, float]
    passes: float | None


def read_analysis(folder: Path, notes: list[str]) -> tuple[list[Found], list[Table]]:
    """The pictures of an analysis' folder, and the tables that its ``analysis.json`` has.

    Args:
        folder: The folder.
        notes: Takes a line for each file that cannot be shown.
    """
    content = _json(folder / ANALYSIS, notes)
    about = content if isinstance(content, dict) else {}
    name = clean(folder.name if folder.name != "analysis" else folder.resolve().parent.name, 120)
    said = "; ".join(f"{key} {clean(about[key], 200)}" for key in _SAID if isinstance(about.get(key), str | int))
    tables = _tables(about.get("tables"), name)
    order = {stem: place for place, stem in enumerate(_TITLES)}
    found: list[Found] = []
    for path in sorted(folder.glob("*.png"), key=lambda path: (order.get(path.stem, len(order)), path.name)):
        if (content := read_png(path, notes)) is not None:
            title = _TITLES.get(path.stem, clean(path.stem, 120).replace("_", " "))
            is_told = bool(tables) and path.stem in _TOLD
            found.append(Found(f"{title} ({name})", "" if found else said, content, _width(content), is_told))
    if not found:
        notes.append(f"{folder}: {ANALYSIS} has no picture beside it.")
    return found, tables


def _tables(content: Any, name: str) -> list[Table]:
    """Tables as `lori_pl.tables.as_text` gives them; what is none is left out."""
    found = []
    for each in content if isinstance(content, list) else []:
        try:
            heads = [clean(head, 120) for head in each["heads"]]
            rows = [[clean(cell, 400) for cell in row] for row in each["rows"]]
            title, caption = clean(f"{each['title']} ({name})", 400), clean(each["caption"], 1000)
        except (KeyError, TypeError):
            continue
        if heads and all(len(row) == len(heads) for row in rows):
            found.append(Table(heads, rows, title, caption))
    return found


def spectra(runs: Sequence[Run], notes: list[str]) -> list[Found]:
    """The spectrum that each run drew of its teacher; runs with the very same picture share it."""
    shared: dict[str, tuple[bytes, list[Run]]] = {}
    for run in runs:
        path = run.folder / SPECTRUM if run.folder else None
        if path is None or not path.exists():
            continue
        content = read_png(path, notes)
        if content is not None:
            shared.setdefault(hashlib.sha256(content).hexdigest(), (content, []))[1].append(run)
    found = []
    for content, those in shared.values():
        names = [f"{run.method}, seed {run.seed}" for run in those]
        note = "" if len(names) == 1 else f"The same picture in {len(names)} runs: {'; '.join(names)}."
        found.append(Found(f"Teacher's spectrum ({names[0]})", note, content, _width(content)))
    return found


def read_benchmark(folder: Path, notes: list[str]) -> dict[str, list[Timed]]:
    """The timings of one question alone in a benchmark's folder, by test set.

    Args:
        folder: The folder.
        notes: Takes a line for what cannot be read.
    """
    content = _json(folder / BENCHMARK, notes)
    sets = content.get("sets") if isinstance(content, dict) else None
    found: dict[str, list[Timed]] = {}
    for name, rows in (sets if isinstance(sets, dict) else {}).items():
        for student, sizes in (rows if isinstance(rows, dict) else {}).items():
            student_time = timed(clean(student, 120), sizes)
            if student_time is None:
                notes.append(f"{folder / BENCHMARK}: '{clean(student, 120)}' has no timing of one question alone.")
            else:
                found.setdefault(clean(name, 120), []).append(student_time)
    if not found:
        notes.append(f"{folder / BENCHMARK} has no timing that can be shown.")
    return found


def read_png(path: Path, notes: list[str]) -> bytes | None:
    """A PNG file's content, if it is one that opens; a line in the notes otherwise."""
    try:
        if path.stat().st_size > _LARGEST:
            notes.append(f"{path} is larger than {_LARGEST // 2**20} MiB and left out.")
            return None
        content = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                image.load()
    except Exception as error:  # the library raises several kinds for damaged files
        notes.append(f"{path} is no picture that can be shown ({one_line(error, 120)}).")
        return None
    return content


def _width(content: bytes) -> int:
    """Pixels of a page for a picture that was drawn with about 120 dots an inch."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        return max(1, round(image.width * 0.75))


def timed(name: str, sizes: Any) -> Timed | None:
    """A student's time for one question alone among those of a benchmark's batch sizes, if it is there and whole."""
    try:
        row = sizes["1"]
        accuracy = tuple(fraction(row[key]) for key in ("accuracy", "low", "high"))
        low, high = row["milliseconds"]["quartiles"]
        milliseconds = tuple(number(value) for value in (row["milliseconds"]["median"], low, high))
    except (KeyError, TypeError, ValueError):
        return None
    a, b, c = accuracy
    x, y, z = milliseconds
    if a is None or b is None or c is None or x is None or y is None or z is None or x <= 0:
        return None
    return Timed(name, (a, b, c), (x, y, z), number(row.get("passes")))


def _json(path: Path, notes: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path} cannot be read ({one_line(error, 120)}).")
        return None
