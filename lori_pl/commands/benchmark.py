"""`benchmark`: students side by side, accuracy against the time of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from rich.table import Table
from rich.text import Text

from lori_pl.commands.device import add_device, find_device
from lori_pl.commands.lightning import load_trained, parse
from lori_pl.commands.own_options import OwnOptions
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.data.problem import Problem
from lori_pl.errors import LoriError, printable
from lori_pl.evaluation.benchmark import PHASES, largest_batch, time_answers
from lori_pl.evaluation.records import git_commit
from lori_pl.evaluation.report import machine_name, write_json
from lori_pl.files import replace_file
from lori_pl.models.reasoner import LatentReasoner
from lori_pl.models.saving import SETTINGS
from lori_pl.report.drawings import timings
from lori_pl.report.files import timed
from lori_pl.report.pictures import picture
from lori_pl.run_files import CONFIG, STUDENT
from lori_pl.tables import print_whole, say

JSON = "benchmark.json"
PICTURE = "benchmark.png"
# what a data config needs beside it to be parsed; none of it is loaded
_STAND_IN = ["--model", "lori_pl.methods.ExplicitCoT", "--model.backbone.tokenizer", "synthetic"]


def main(arguments: list[str]) -> int:
    """Times the answers of students.

    Args:
        arguments: Folders and checkpoints, options, and a data config.

    Raises:
        LoriError: If a folder holds no student, the output exists, or there is no problem.
    """
    options, rest = _parser().parse_known_args(arguments)
    folder = Path(options.out)
    for name in (JSON, PICTURE):
        if (folder / name).exists():
            raise LoriError(f"{folder / name} exists already; remove it or give another --out")
    for name in ("problems", "repeats", "threads", "largest"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise LoriError(f"--{name} is {value}: give 1 or more")
    device = find_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    students = named_students(options.student)
    sets = test_problems(rest, options.problems)
    found: dict[str, dict[str, Any]] = {name: {} for name in sets}
    result = {
        "commit": git_commit(),
        "device": machine_name(device),
        "threads": torch.get_num_threads(),
        "sets": found,
    }
    for student, path in track(students.items(), ", ".join(students), transient=True):
        reasoner = load_student(path, device, options.dtype)
        for name, problems in sets.items():
            steps = np.array([len(problem.steps) for problem in problems])
            sizes = {1, largest_batch(reasoner, problems, options.max_new_tokens, options.largest)}
            timings = {
                str(size): time_answers(reasoner, problems, size, options.max_new_tokens, options.repeats)
                for size in sorted(sizes)
            }
            found[name][student] = {size: timing.summary(steps) for size, timing in timings.items()}
        del reasoner  # before the next one is loaded
    for name, rows in found.items():
        print_timings(name, rows)
    write_json(folder / JSON, result)
    replace_file(folder / PICTURE, lambda file: file.write(drawn(found)))
    say(f"{folder / JSON}, {folder / PICTURE}")
    return 0


def _parser() -> OwnOptions:
    parser = OwnOptions(
        "benchmark",
        "Answer the test problems of a data config with several students, one at a time and in the largest batch, and "
        "compare accuracy, passes, tokens and milliseconds of prefill, thought and answer.",
    )
    parser.add_argument("student", nargs="+", help="a student's folder, a run's folder, or NAME=FOLDER")
    parser.add_argument("--problems", type=int, default=256, help="problems of each test set (default: 256)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats, of which the median counts (default: 3)")
    parser.add_argument("--largest", type=int, default=512, help="most problems a batch (default: 512)")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="most tokens of an answer (default: 256)")
    parser.add_argument("--threads", type=int, help="threads on a CPU (default: torch's)")
    add_device(parser)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the weights")
    parser.add_argument("--out", default="runs/benchmark", metavar="DIR", help="folder of the table and the picture")
    return parser


def named_students(given: Sequence[str]) -> dict[str, Path]:
    """Names what is to be timed: as given, or after the folder that tells it from the others.

    Raises:
        LoriError: If something is no student, or two have one name.
    """
    found: dict[str, Path] = {}
    for each in given:
        # a folder's own name may have the sign in it, as those of a sweep's runs
        name, _, rest = ("", "", "") if Path(each).exists() else each.partition("=")
        path = Path(rest or each)
        if (path / STUDENT / SETTINGS).is_file():
            path = path / STUDENT
        if not path.is_file() and not (path / SETTINGS).is_file():
            raise LoriError(
                f"{path} holds no student: give its folder, that of a run that has ended, or a checkpoint of a run"
            )
        if not rest:
            name = next((part for part in reversed(path.parts) if part != STUDENT), path.name)
        if name in found:
            raise LoriError(f"two students are called '{name}': give them names, as in {name}2={path}")
        found[name] = path
    return found


def load_student(path: Path, device: torch.device, dtype: Any) -> LatentReasoner:
    """Loads a student's folder, or a checkpoint with the ``config.yaml`` of its run.

    Raises:
        LoriError: If it cannot be loaded.
    """
    if path.is_dir():
        return LatentReasoner.from_pretrained(path, str(device), dtype)
    config = next((folder / CONFIG for folder in path.resolve().parents[:2] if (folder / CONFIG).is_file()), None)
    if config is None:
        raise LoriError(f"{path}: no {CONFIG} of its run beside it or above; give the student's folder")
    arguments = ["--config", str(config), "--model.backbone.dtype", dtype]
    return load_trained(arguments, str(path)).student.eval().to(device)


def test_problems(rest: list[str], limit: int) -> dict[str, list[Problem]]:
    """The first test problems of each set of a data config."""
    data: PairedDataModule = parse(["fit", *_STAND_IN, *rest]).datamodule
    return {name: source.load("test").problems[:limit] for name, source in data.tested.items()}


def print_timings(title: str, rows: dict[str, Any]) -> None:
    """Prints a line for each student and batch size."""
    table = Table(title=Text(printable(f"{title}: milliseconds a question, median (quartiles)")))
    for column in ("", "batch", "accuracy", "interval", "passes", "tokens", "ms", *PHASES):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, sizes in rows.items():
        for size, row in sizes.items():
            milliseconds = row["milliseconds"]
            low, high = milliseconds["quartiles"]
            table.add_row(
                Text(printable(name)),
                size,
                f"{100 * row['accuracy']:.1f}",
                f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
                f"{row['passes']:.1f}",
                f"{row['tokens']:.1f}",
                f"{milliseconds['median']:.2f} ({low:.2f} to {high:.2f})",
                *(f"{row['phases'][phase]:.2f}" for phase in PHASES),
            )
    print_whole(table)


def drawn(sets: dict[str, Any]) -> bytes:
    """Accuracy against the time of one question alone, a panel a test set, as a PNG file."""
    found = {title: [timed(name, sizes) for name, sizes in rows.items()] for title, rows in sets.items()}
    whole = {title: [student for student in students if student is not None] for title, students in found.items()}
    title = "Latency of one question"
    return picture(PICTURE, title, title, partial(timings, whole)).png
