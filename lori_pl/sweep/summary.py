"""What a run reports of itself, for the row of its cell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lori_pl.errors import LoriError

MEASURES = ("accuracy", "low", "high", "n", "passes", "milliseconds", "problems")


def read_entry(path: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What a run reports of its method.

    Args:
        path: The run's ``summary.json``: ``{"methods": {NAME: {"accuracy", "low", "high", "n", "passes",
            "milliseconds", ...}}, ...}`` with one method.

    Returns:
        The method's name, its entry and the whole summary.

    Raises:
        LoriError: The file is missing or is no summary of one method.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoriError("the run ended without a summary.json in its folder") from None
    except (OSError, ValueError) as error:
        raise LoriError(f"summary.json cannot be read: {error}") from error
    methods = summary.get("methods") if isinstance(summary, dict) else None
    if not isinstance(methods, dict) or len(methods) != 1:
        raise LoriError(f"summary.json must report one method under 'methods', got {_names(methods)}")
    ((method, entry),) = methods.items()
    accuracy = entry.get("accuracy") if isinstance(entry, dict) else None
    if not isinstance(accuracy, int | float) or isinstance(accuracy, bool):
        raise LoriError(f"summary.json has no 'accuracy' of method '{method}'")
    return method, entry, summary


def read_summary(path: Path, metrics: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """What a run reports of itself, for its row.

    Args:
        path: The run's ``summary.json``, as `read_entry` takes it.
        metrics: Further names to copy, from the method's entry or else from the whole summary; dots lead inwards
            (``test_sets.svamp.accuracy``).

    Returns:
        The method's name, and the measures, the machine with its GPU's peak of memory, and the metrics that are there.

    Raises:
        LoriError: The file is missing or is no summary of one method.
    """
    method, entry, summary = read_entry(path)
    found = {name: _find(name, entry) for name in MEASURES}
    for name in ("machine", "peak_gpu_memory_mib", *metrics):
        value = _find(name, entry)
        found[name] = _find(name, summary) if value is None else value
    return method, {name: value for name, value in found.items() if value is not None}


def _find(name: str, values: Any) -> Any:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _names(methods: Any) -> str:
    return ", ".join(methods) or "none" if isinstance(methods, dict) else "none"
