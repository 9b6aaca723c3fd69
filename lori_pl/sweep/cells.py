"""The cells of a sweep: a run each, or a test of a run's student, with the flags that define it and an id of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import as_field
from lori_pl.run_files import STUDENT
from lori_pl.sweep.fields import CONFIG_AXIS, VARIANT_AXIS
from lori_pl.sweep.reading import reading
from lori_pl.sweep.specification import SweepSpecification

ANY_METHOD = "\1"
"""Stands in a label for the method's name, which the run alone says."""
_AXES = (CONFIG_AXIS, VARIANT_AXIS)
"""Axes that are no flags themselves."""
_ROOT, _NODES = "trainer.default_root_dir", "trainer.num_nodes"
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, or one test of a run's student.

    Args:
        number: Place in the sweep, from 1.
        id: Hash of everything that defines the run: contents of its configs, flags, seed. Neither the sweep's name nor
            the file names matter, so a run that is already there is found again when the sweep grows. A file that a
            flag names (a checkpoint, a data set), or a config includes, counts by its name only.
        seed: Value of ``--seed_everything``.
        configs: Config files in the order in which they apply.
        fixed: Flags that every cell of the sweep has.
        point: The values that set this cell apart, by key (``config`` for a varied config file, ``variant`` for a
            set of flags, by its name).
        flags: All flags, those of its variant included.
        test: The flags of a test of a run's student; ``None`` for a run.
        of: Id of the run whose student is tested.
        student: That student's folder; by default in the run's folder, beside the test's.
    """

    number: int
    id: str
    seed: int
    configs: tuple[str, ...]
    fixed: dict[str, Any]
    point: dict[str, Any]
    flags: dict[str, Any]
    test: dict[str, Any] | None = None
    of: str | None = None
    student: Path | None = None

    def command(self, folder: Path) -> list[str]:
        """The command line that runs this cell.

        Args:
            folder: The cell's folder, where the run is to leave its ``summary.json``.
        """
        flags, command = dict(self.flags), "fit"
        if self.test is not None:
            assert self.of is not None
            student = self.student or folder.with_name(self.of) / STUDENT
            flags, command = {**flags, "ckpt_path": str(student), **self.test}, "test"
        # One argument a flag: a value that begins with a dash would else read as a flag.
        return [
            *(sys.executable, "-m", "lori_pl", command),
            *(f"--config={config}" for config in self.configs),
            f"--seed_everything={self.seed}",
            *(f"--{key}={flag_text(value)}" for key, value in flags.items()),
            f"--{_ROOT}={folder}",
        ]

    @property
    def options(self) -> str:
        """All that defines the cell but its seed, as text: cells that differ in no more have the same."""
        return _json([list(self.configs), self.flags, self.test])

    def columns(self) -> dict[str, str]:
        """The values that set this cell apart as text, one column each."""
        return {key: _point_text(key, value) for key, value in (self.point | (self.test or {})).items()}

    def description(self) -> str:
        """The values that set this cell apart, with keys as short as they can be, and the seed: one line."""
        return " ".join([*(f"{key}={value}" for key, value in self._short().items()), f"seed={self.seed}"])

    def label(self, template: str | None, sweep: str, method: str) -> str:
        """The name under which the cell's row stands, the same for all its seeds: one line.

        That of a test is its run's, with the values that are tested in brackets.

        Args:
            template: The sweep's ``label``; by default the method's name, with the varied values in brackets.
            sweep: The sweep's name.
            method: The method's name in the run's summary.
        """
        return as_field(self._label(template, sweep, method))

    def _label(self, template: str | None, sweep: str, method: str) -> str:
        if self.test is not None:
            tested = ",".join(f"{key}={_point_text(key, value)}" for key, value in self.test.items())
            return f"{replace(self, test=None)._label(template, sweep, method)}[{tested}]"
        if template is None:
            varied = ",".join(f"{key}={value}" for key, value in self._short().items())
            return f"{method}[{varied}]" if varied else method
        values = {key: _point_text(key, value) for key, value in (self.fixed | self.point).items()}
        names = values | self._stems() | {"method": method, "name": sweep}
        return _PLACEHOLDER.sub(lambda match: names[match[1]], template)

    def _stems(self) -> dict[str, str]:
        if CONFIG_AXIS not in self.point:
            return {}
        return {CONFIG_AXIS: "+".join(Path(file).stem for file in _files(self.point[CONFIG_AXIS])) or "none"}

    def _short(self) -> dict[str, str]:
        values = self.columns() | self._stems()
        lasts = [key.rpartition(".")[2] for key in values]
        return {
            last if lasts.count(last) == 1 else key: value
            for last, (key, value) in zip(lasts, values.items(), strict=True)
        }


class CellMaker:
    """Makes the cells of a sweep; each config file is read once.

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: SweepSpecification) -> None:
        self.sweep = sweep
        self._contents: dict[str, Any] = {}

    def make(self, number: int, point: dict[str, Any], seed: int) -> Cell:
        """The cell of a point and a seed.

        Args:
            number: Its place in the sweep.
            point: The values that set it apart.
            seed: The seed.

        Raises:
            LoriError: A config file is missing or no YAML.
        """
        sweep = self.sweep
        variant = sweep.variants.get(point.get(VARIANT_AXIS, ""), {})
        configs = (*sweep.configs, *_files(point.get(CONFIG_AXIS, [])), *_files(variant.get(CONFIG_AXIS, [])))
        for config in configs:
            if config not in self._contents:
                with reading(Path(config), f"config of {sweep.file}"):
                    self._contents[config] = yaml.safe_load(Path(config).read_bytes())
        flags = {key: value for key, value in (sweep.fixed | point | variant).items() if key not in _AXES}
        self._check_nodes(configs, flags)
        defined = [[self._contents[config] for config in configs], sorted(flags.items()), seed]
        return Cell(number, _id(defined), seed, configs, sweep.fixed, point, flags)

    def _check_nodes(self, configs: Sequence[str], flags: dict[str, Any]) -> None:
        """A run on several machines would wait for the others, which nobody starts."""
        where, nodes = "", 1
        for config in configs:  # later ones win
            trainer = self._contents[config].get("trainer") if isinstance(self._contents[config], dict) else None
            if isinstance(trainer, dict) and "num_nodes" in trainer:
                where, nodes = f"config {config}", trainer["num_nodes"]
        if _NODES in flags:
            where, nodes = f"field '{_NODES}'", flags[_NODES]
        if nodes != 1:
            raise LoriError(
                f"{self.sweep.file}, {where}: {_NODES} is {nodes}, but a sweep runs each cell on one machine; set it "
                "to 1, or start such runs by themselves (docs/cluster.md)"
            )

    def tests(self, cell: Cell) -> list[Cell]:
        """The tests of a run's student, numbered as the run."""
        points = _product(self.sweep.tests) if self.sweep.tests else []
        return [replace(cell, id=_id([cell.id, sorted(test.items())]), test=test, of=cell.id) for test in points]


def grid_points(sweep: SweepSpecification) -> list[dict[str, Any]]:
    """Every combination of the grid's values and the variants; a single empty point where there is no grid."""
    named = {VARIANT_AXIS: list(sweep.variants)} if sweep.variants else {}
    return _product(sweep.grid | named)


def _product(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    pairs = [[(key, value) for value in values] for key, values in axes.items()]
    return [dict(point) for point in itertools.product(*pairs)]


def _id(defined: list[Any]) -> str:
    # YAML reads dates, which JSON lacks.
    return hashlib.sha256(json.dumps(defined, default=str).encode()).hexdigest()[:12]


def expand(sweep: SweepSpecification) -> list[Cell]:
    """All cells of a sweep, the first seed's whole table before the second's; a point that occurs twice is run once.

    The tests of a run's student follow it.

    Of a sweep with a search, whose points are not known before, the cells of its grid alone.

    Raises:
        LoriError: A config file is missing or no YAML, or the label has an unknown placeholder or gives two different
            points the same name.
    """
    points = grid_points(sweep)
    maker = CellMaker(sweep)
    cells: dict[str, Cell] = {}
    for seed in sweep.seeds:
        for point in points:
            cell = maker.make(len(cells) + 1, point, seed)
            for each in [] if cell.id in cells else [cell, *maker.tests(cell)]:
                cells.setdefault(each.id, replace(each, number=len(cells) + 1))
    _check_label(sweep, list(cells.values()))
    return list(cells.values())


def flag_text(value: Any) -> str:
    """A value as the command line reads it back: text verbatim, all else as JSON (``.inf`` and ``.nan`` as YAML).

    Args:
        value: What a YAML file may hold: text, number, boolean, null, list or mapping.
    """
    return value if isinstance(value, str) else _json(value)


def folder_of(command: str) -> Path | None:
    """The run's folder in a command as `Cell.command` makes it and a table records it; ``None`` if it names none."""
    with suppress(ValueError):
        for word in shlex.split(command):
            if word.startswith(f"--{_ROOT}="):
                return Path(word.partition("=")[2])
    return None


def _json(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(key)}: {_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    return json.dumps(value, ensure_ascii=False)


def rounded(value: float) -> float:
    """A number of six digits."""
    return float(f"{value:.6g}")


def uncalled(sweep: SweepSpecification, cells: list[Cell]) -> str:
    """A line on names under ``compare`` that no cell can have; empty where all can, or a search finds the cells."""
    if sweep.search is not None:
        return ""
    # which method a cell is, its run says
    names = {cell.label(sweep.label, sweep.name, ANY_METHOD) for cell in cells}
    patterns = [re.escape(name).replace(re.escape(ANY_METHOD), ".+") for name in names]
    compared = dict.fromkeys(name for pair in sweep.compare for name in pair)
    missing = [name for name in compared if not any(re.fullmatch(pattern, name) for pattern in patterns)]
    if not missing:
        return ""
    known = sorted(name.replace(ANY_METHOD, "METHOD") for name in names)
    more = ", ..." if len(known) > 8 else ""
    return (
        f"note: {sweep.file}, field 'compare': no cell is called {', '.join(missing)}; they are called "
        f"{', '.join(known[:8])}{more}"
    )


def _check_label(sweep: SweepSpecification, cells: list[Cell]) -> None:
    known = {*sweep.fixed, *sweep.axes, "method", "name"}
    for placeholder in _PLACEHOLDER.findall(sweep.label or ""):
        if placeholder not in known:
            raise LoriError(
                f"{sweep.file}, field 'label': unknown placeholder {{{placeholder}}}; "
                f"known are {', '.join(sorted(known))}"
            )
    if sweep.label is not None and sweep.search is not None:
        for key in sweep.search.space:
            if key not in _PLACEHOLDER.findall(sweep.label):
                raise LoriError(
                    f"{sweep.file}, field 'label': '{sweep.label}' gives all trials one name; add {{{key}}}"
                )
    # what a search will draw is not known yet, and each of its keys is in the label
    drawn = dict.fromkeys(sweep.search.space) if sweep.search is not None else {}
    labels: dict[tuple[str, int], Cell] = {}
    for cell in cells:
        # The method's name is not known before the run; what can change it is the config.
        label = replace(cell, point=cell.point | drawn).label(sweep.label, sweep.name, method=f"<{cell.configs}>")
        if (label, cell.seed) in labels:
            other = labels[label, cell.seed]
            left_out = [axis for axis in sweep.axes if f"{{{axis}}}" not in (sweep.label or "")]
            remedy = f"add a varied value, such as {{{left_out[0]}}}" if left_out else "give values that read apart"
            raise LoriError(
                f"{sweep.file}, field 'label': '{sweep.label}' gives cells {other.number} and {cell.number} the same "
                f"name; {remedy}"
            )
        labels[label, cell.seed] = cell


def _files(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _point_text(key: str, value: Any) -> str:
    return " ".join(_files(value)) if key == CONFIG_AXIS else flag_text(value)
