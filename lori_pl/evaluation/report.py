"""The end of a run: a table on the terminal, `summary.json`, and the outcome of every problem."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from lori_pl.data.problem import problems_digest
from lori_pl.errors import printable
from lori_pl.evaluation.intervals import wilson
from lori_pl.evaluation.metrics import TestSetMetrics
from lori_pl.evaluation.records import git_commit, write_outcomes
from lori_pl.files import replace_file
from lori_pl.machine import processor
from lori_pl.run_files import OUTCOMES, SUMMARY, outcomes_file
from lori_pl.tables import percent_above_interval, print_whole, say

if TYPE_CHECKING:
    from lori_pl.methods import Method

_BY_STEPS = "accuracy_steps_"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is whole or absent."""
    replace_file(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def majority_floor(golds: list[str]) -> float:
    """Accuracy of always giving the most frequent answer."""
    return Counter(golds).most_common(1)[0][1] / len(golds)


def measured(metrics: TestSetMetrics) -> dict[str, Any]:
    """One test set's figures as plain numbers, with the 95 % Wilson interval of the accuracy."""
    values = {key: float(value) for key, value in metrics.compute().items()}
    n = round(values.pop("n"))
    share = values.pop("accuracy")
    low, high = wilson(round(share * n), n)
    return {"accuracy": share, "low": low, "high": high, "n": n, **values}


def machine_name(device: torch.device) -> str:
    """What a run runs on: the GPU's name, or the processor and the threads that the run has on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {processor()}, {torch.get_num_threads()} threads"


def machine(device: torch.device) -> dict[str, Any]:
    """What a run ran on, and how much of its GPU's memory it took at the most."""
    name = {"machine": machine_name(device)}
    if device.type == "cuda":
        return name | {"peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated(device) / 2**20, 1)}
    return name


def write_report(root: Path, method: Method, extra: Mapping[str, Any]) -> None:
    """Prints the table of a tested method and writes its summary and outcomes.

    Args:
        root: The run's folder.
        method: The method, just tested.
        extra: Further entries of the summary, e.g. seconds of training.
    """
    sets = {name: measured(metrics) for name, metrics in method.test_metrics.items()}
    if not method.trainer.is_global_zero:
        return
    first = next(iter(sets))
    for name, split in method.data.tests.items():
        sets[name]["floor"] = majority_floor([problem.answer for problem in split.problems])
        answered = method.test_metrics[name].outcomes
        sets[name]["problems"] = problems_digest(each for each in split.problems if each.id in answered)
    summary = {
        "methods": {method.label: sets[first]},
        "test_sets": sets,
        "latents": method.student.thought.latents,
        "batch": method.data.eval_batch_size,
        "commit": git_commit(),
        **machine(method.device),
        **extra,
    }
    for name, metrics in method.test_metrics.items():
        file = OUTCOMES if name == first else outcomes_file(name)
        bits = np.array(list(metrics.outcomes.values()), dtype=bool)
        split = method.data.tests[name]
        steps = {problem.id: int(count) for problem, count in zip(split.problems, split.steps, strict=True)}
        (root / file).unlink(missing_ok=True)  # those of the run that this one goes on with
        counts = [steps[id] for id in metrics.outcomes]
        ids, problems = list(metrics.outcomes), sets[name]["problems"]
        write_outcomes(root / file, ids, bits, method.label, extra.get("seed", 0), counts, problems)
        sets[name] |= {f"n_steps_{k}": n for k, n in sorted(Counter(counts).items())}
    write_json(root / SUMMARY, summary)  # the last: who finds it finds the outcomes
    print_table({f"{method.label} on {name}": values for name, values in sets.items()})
    say(f"summary: {root / SUMMARY}")


def print_table(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints accuracy and accuracy by number of steps with intervals, passes and milliseconds a question."""
    found = {key for row in rows.values() for key in row if key.startswith(_BY_STEPS)}
    steps = sorted(int(key.removeprefix(_BY_STEPS)) for key in found)
    table = Table(title="accuracy in percent, with the 95 % interval")
    for column in ("", "accuracy", "interval", *[f"{k} steps" for k in steps], "passes", "ms", "n"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, row in rows.items():
        by_steps = [_at_steps(row, k) for k in steps]
        table.add_row(
            Text(printable(name)),
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
            *by_steps,
            f"{row['passes']:.1f}",
            f"{row['milliseconds']:.2f}",
            str(row["n"]),
        )
    print_whole(table)


def _at_steps(row: Mapping[str, Any], steps: int) -> Text:
    share, n = row.get(f"{_BY_STEPS}{steps}"), row.get(f"n_steps_{steps}")
    if share is None:
        return Text()
    # summaries of earlier versions do not tell the number of problems
    return percent_above_interval(share, wilson(round(share * n), n) if n else None)
