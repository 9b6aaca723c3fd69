"""Reads single fields of a sweep file; every complaint names file and field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import RESULT_COLUMNS

CONFIG_AXIS = "config"
"""The grid key whose values are config files rather than values of a flag."""

VARIANT_AXIS = "variant"
"""The key whose values are names of ``variants``."""

SWEEP_COLUMNS = (
    *("low", "high", "cell", "status", "reason", "seconds", "peak_memory_mib", "peak_gpu_memory_mib", "machine"),
    "problems",
)
"""What a sweep's table has besides `RESULT_COLUMNS`."""

_OF_THE_SWEEP = {
    "seed_everything": "list the seeds under 'seeds'",
    "trainer.default_root_dir": "every cell gets a folder of its own under 'output'",
}


@dataclass(frozen=True)
class Interval:
    """A range to draw from, uniformly or uniformly in the logarithm; whole numbers where ``integer``."""

    low: float
    high: float
    log: bool
    integer: bool

    @property
    def least(self) -> float:
        """The lower end, a whole number where the range has no other."""
        return int(self.low) if self.integer else self.low


class FieldReader:
    """Reads the fields of one sweep file.

    Args:
        path: The file, for complaints.
        content: Its fields.
    """

    def __init__(self, path: Path, content: Mapping[Any, Any]) -> None:
        self.path, self.content = path, content

    def fail(self, field: str, cause: str) -> None:
        """Complains of a field.

        Raises:
            LoriError: With file, field and cause, as every reader here does for a value that it does not take.
        """
        raise LoriError(f"{self.path}, field '{field}': {cause}")

    def text(self, field: str) -> str | None:
        """A text, or ``None`` where the file has none."""
        value = self.content.get(field)
        if value is not None and (not isinstance(value, str) or not value):
            self.fail(field, f"expected text, got {value!r}")
        return value

    def _list(self, field: str) -> Any:
        """What should be a list, empty where the file has none."""
        value = self.content.get(field)
        return [] if value is None else value

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts, empty where the file has none."""
        value = self._list(field)
        if not are_texts(value):
            self.fail(field, f"expected a list of texts, got {value!r}")
        return tuple(value)

    def pairs(self, field: str) -> tuple[tuple[str, str], ...]:
        """A list of pairs of texts, empty where the file has none."""
        value = self._list(field)
        if not isinstance(value, list) or not all(are_texts(pair) and len(pair) == 2 for pair in value):
            self.fail(field, f"expected a list of pairs of labels, such as [[lori, no_cot]], got {value!r}")
        if alike := [pair for pair in value if pair[0] == pair[1]]:
            self.fail(field, f"{alike[0][0]!r} is compared with itself: give two labels")
        return tuple((first, second) for first, second in value)

    def mapping(self, field: str, content: Mapping[Any, Any]) -> dict[str, Any]:
        """A mapping, empty where there is none.

        Args:
            field: Its place in the file, dotted.
            content: What holds it under the last part of that.
        """
        value = content.get(field.rpartition(".")[2])
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fail(field, f"expected a mapping, got {value!r}")
        return value

    def flags(self, field: str, content: Mapping[Any, Any] | None = None) -> dict[str, Any]:
        """A mapping whose keys are flags of the command line, or `CONFIG_AXIS`.

        Args:
            field: Its place in the file, dotted.
            content: What holds it; by default the file.
        """
        flags = self.mapping(field, self.content if content is None else content)
        for key in flags:
            place = f"{field}.{key}"
            if not isinstance(key, str) or not key or key.startswith("-") or any(c in "= \n\t" for c in key):
                self.fail(place, "expected a flag of the command line without its dashes, such as trainer.max_steps")
            if key == VARIANT_AXIS or (key == CONFIG_AXIS and field == "tests"):
                where = "sets of flags under 'variants', config files under 'configs', 'grid' and 'variants'"
                self.fail(place, f"no flag: {where}")
            if key in _OF_THE_SWEEP:
                self.fail(place, f"set by the sweep itself: {_OF_THE_SWEEP[key]}")
            if key in RESULT_COLUMNS or key in SWEEP_COLUMNS:
                self.fail(place, "not a flag of the command line but a column of the results")
        return flags

    def positive(self, field: str, value: Any) -> None:
        """Checks that a value is a positive whole number."""
        if not is_count(value) or value == 0:
            self.fail(field, f"expected a positive whole number, got {value!r}")

    def space(self, field: str, content: Mapping[Any, Any]) -> dict[str, Interval | list[Any]]:
        """What is drawn: a range or choices by flag; at least one."""
        flags = self.flags(field, content)
        if not flags:
            self.fail(field, "missing; name at least one key to draw")
        return {key: self.range(f"{field}.{key}", value) for key, value in flags.items()}

    def range(self, field: str, value: Any) -> Interval | list[Any]:
        """A range, ``{low, high, log}``, or ``{choices}``."""
        if isinstance(value, dict) and value.keys() == {"choices"}:
            if not isinstance(value["choices"], list) or not value["choices"]:
                self.fail(f"{field}.choices", f"expected a list of at least one value, got {value['choices']!r}")
            return value["choices"]
        if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
            self.fail(field, f"expected {{low, high, log}} or {{choices}}, got {value!r}")
        low, high, log = value["low"], value["high"], value.get("log", False)
        if not isinstance(log, bool):
            self.fail(f"{field}.log", f"expected true or false, got {log!r}")
        for bound, number in (("low", low), ("high", high)):
            if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
                self.fail(f"{field}.{bound}", f"expected a finite number, got {number!r}")
        if not low < high:
            self.fail(field, f"low ({low}) must be less than high ({high})")
        if log and low <= 0:
            self.fail(f"{field}.low", f"a logarithmic range needs a positive low, got {low}")
        return Interval(low, high, log, integer=isinstance(low, int) and isinstance(high, int))


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts, none empty."""
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number, 0 or larger."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
