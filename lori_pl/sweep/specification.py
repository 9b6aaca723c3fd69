r"""The sweep file: what is varied, what stays, and where the results go.

A YAML file, read by OmegaConf (``${...}`` refers to other fields of the same file, ``\${...}`` hands an interpolation
on to the run). Paths are relative to the folder that the command is run in, as on the command line. The fields::

    name: rank                          # default: the file's name
    output: runs/sweeps/rank            # default: runs/sweeps/NAME
    results: experiments/rank           # where results.csv and correct.npz go; default: output
    configs:                            # base configs of every run, in order
      - configs/experiment/quick.yaml
    fixed:                              # flags that every run gets
      trainer.max_steps: 2000
    grid:                               # every combination of these values is run
      model.rank: [4, 8, 16]
      config: [configs/method/lori.yaml, configs/method/no_cot.yaml]   # a config file (or a list of them) as an axis
    random:                             # drawn once, then crossed with the grid
      samples: 20
      seed: 0
      space:
        model.learning_rate: {low: 1e-4, high: 1e-2, log: true}   # whole numbers where both bounds are
        model.latents: {choices: [4, 5, 6]}
    seeds: [0, 1, 2]                    # default: [0]; each cell is run with each, --seed_everything
    label: "{method}_r{model.rank}"     # names the rows; {method} is the name in the run's summary.json, {name} the
                                        # sweep's, {config} the varied files' stems, {KEY} any varied or fixed value
    metrics: [accuracy_steps_3]         # what else to copy from the run's summary.json: from the method's entry or
                                        # else from the whole, with dots inwards (test_sets.svamp.accuracy)
    compare:                            # pairs of labels whose difference in accuracy is printed at the end, with
      - [lori, anchor_only]             # its intervals over seeds and over problems

Only ``configs`` or a ``config`` axis is required. Flags are dotted keys of the command line with values of any type:
numbers, booleans, null, lists and mappings are written as JSON, a string goes as it stands, so that a text parameter
receives it verbatim (where a parameter takes null or a number as well as text, the command line decides, as always).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lori_pl.errors import LoriError, one_line
from lori_pl.evaluation.records import RESULT_COLUMNS

CONFIG_AXIS = "config"
"""The grid key whose values are config files rather than values of a flag."""

SWEEP_COLUMNS = ("low", "high", "cell", "status", "reason", "seconds", "peak_memory_mib")
"""What a sweep's table has besides `RESULT_COLUMNS`."""

_FIELDS = ("name", "output", "results", "configs", "fixed", "grid", "random", "seeds", "label", "metrics", "compare")
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


@dataclass(frozen=True)
class RandomSearch:
    """A random search: how many points, from which seed, and from what space (an `Interval` or a list of choices)."""

    samples: int
    seed: int
    space: dict[str, Interval | list[Any]]


@dataclass(frozen=True)
class SweepSpecification:
    """A sweep file, checked; the fields are those of the module's description."""

    file: Path
    name: str
    output: Path
    results: Path
    configs: tuple[str, ...]
    fixed: dict[str, Any]
    grid: dict[str, list[Any]]
    random: RandomSearch | None
    seeds: tuple[int, ...]
    label: str | None
    metrics: tuple[str, ...]
    compare: tuple[tuple[str, str], ...]

    @property
    def axes(self) -> list[str]:
        """The keys that vary, grid first."""
        return [*self.grid, *(self.random.space if self.random else ())]


def load_specification(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpecification:
    """Read and check a sweep file.

    Args:
        path: The YAML file.
        overrides: ``FIELD=VALUE`` each, replacing a field of the file or, after ``fixed.``, ``grid.``, ``random.`` or
            ``random.space.``, one entry of it: ``seeds=[0]``, ``fixed.trainer.max_steps=10``.

    Returns:
        The sweep.

    Raises:
        LoriError: The file is missing, is no YAML, or a field is unknown or has a wrong value; the message names file
            and field.
    """
    path = Path(path)
    content = _read_mapping(path)
    for override in overrides:
        _override(path, content, override)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(content), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise LoriError(f"{path}: {one_line(error)}: correct the interpolation or the value") from error
    assert isinstance(resolved, dict)
    return _Reader(path, resolved).specification()


class _Reader:
    """Turns the fields of one file into a specification; every complaint names file and field."""

    def __init__(self, path: Path, content: Mapping[Any, Any]) -> None:
        self.path, self.content = path, content

    def specification(self) -> SweepSpecification:
        for field in self.content:
            if field not in _FIELDS:
                self.fail(str(field), f"unknown field; known are {', '.join(_FIELDS)}")
        name = self.text("name") or self.path.stem
        grid = self.grid()
        random = self.random()
        fixed = self.flags("fixed")
        configs = self.texts("configs")
        metrics = self.texts("metrics")
        if not configs and CONFIG_AXIS not in grid:
            self.fail("configs", "missing; list at least one base config")
        if CONFIG_AXIS in fixed:
            self.fail(f"fixed.{CONFIG_AXIS}", "a config file that every run gets belongs under 'configs'")
        space = random.space if random else {}
        if CONFIG_AXIS in space:
            self.fail(f"random.space.{CONFIG_AXIS}", "config files vary under 'grid' only")
        for key in [*grid, *space]:
            if sum(key in part for part in (fixed, grid, space)) > 1:
                self.fail(key, "given more than once among 'fixed', 'grid' and 'random.space'; keep one")
        for metric in metrics:
            if metric in SWEEP_COLUMNS[2:] or metric in ("method", "seed", "commit", "command"):
                self.fail("metrics", f"'{metric}' is a column of the sweep's own; leave it out")
        output = self.text("output") or f"runs/sweeps/{name}"
        return SweepSpecification(
            file=self.path,
            name=name,
            output=Path(output),
            results=Path(self.text("results") or output),
            configs=configs,
            fixed=fixed,
            grid=grid,
            random=random,
            seeds=self.seeds(),
            label=self.text("label"),
            metrics=metrics,
            compare=self.pairs("compare"),
        )

    def fail(self, field: str, cause: str) -> None:
        raise LoriError(f"{self.path}, field '{field}': {cause}")

    def text(self, field: str) -> str | None:
        value = self.content.get(field)
        if value is not None and (not isinstance(value, str) or not value):
            self.fail(field, f"expected text, got {value!r}")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        value = self.content.get(field) or []
        if not _are_texts(value):
            self.fail(field, f"expected a list of texts, got {value!r}")
        return tuple(value)

    def pairs(self, field: str) -> tuple[tuple[str, str], ...]:
        value = self.content.get(field) or []
        if not isinstance(value, list) or not all(_are_texts(pair) and len(pair) == 2 for pair in value):
            self.fail(field, f"expected a list of pairs of labels, such as [[lori, no_cot]], got {value!r}")
        return tuple((first, second) for first, second in value)

    def mapping(self, field: str, content: Mapping[Any, Any]) -> dict[str, Any]:
        value = content.get(field.rpartition(".")[2])
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fail(field, f"expected a mapping, got {value!r}")
        return value

    def flags(self, field: str, content: Mapping[Any, Any] | None = None) -> dict[str, Any]:
        flags = self.mapping(field, self.content if content is None else content)
        for key in flags:
            place = f"{field}.{key}"
            if not isinstance(key, str) or not key or key.startswith("-") or any(c in "= \n\t" for c in key):
                self.fail(place, "expected a flag of the command line without its dashes, such as trainer.max_steps")
            if key in _OF_THE_SWEEP:
                self.fail(place, f"set by the sweep itself: {_OF_THE_SWEEP[key]}")
            if key in RESULT_COLUMNS or key in SWEEP_COLUMNS:
                self.fail(place, "not a flag of the command line but a column of the results")
        return flags

    def grid(self) -> dict[str, list[Any]]:
        grid = self.flags("grid")
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                self.fail(f"grid.{key}", f"expected a list of at least one value, got {values!r}")
            if key == CONFIG_AXIS and not all(isinstance(v, str) or _are_texts(v) for v in values):
                self.fail(f"grid.{key}", "expected config files, or lists of them")
        return grid

    def random(self) -> RandomSearch | None:
        search = self.mapping("random", self.content)
        if not search:
            return None
        for key in search:
            if key not in ("samples", "seed", "space"):
                self.fail(f"random.{key}", "unknown field; known are samples, seed, space")
        samples, seed = search.get("samples"), search.get("seed", 0)
        if not _is_count(samples) or samples == 0:
            self.fail("random.samples", f"expected a positive whole number, got {samples!r}")
        if not _is_count(seed):
            self.fail("random.seed", f"expected a whole number, got {seed!r}")
        flags = self.flags("random.space", search)
        if not flags:
            self.fail("random.space", "missing; name at least one key to draw")
        assert isinstance(samples, int)
        return RandomSearch(samples, seed, {key: self.range(f"random.space.{key}", v) for key, v in flags.items()})

    def range(self, field: str, value: Any) -> Interval | list[Any]:
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
            if not isinstance(number, int | float) or isinstance(number, bool):
                self.fail(f"{field}.{bound}", f"expected a number, got {number!r}")
        if not low < high:
            self.fail(field, f"low ({low}) must be less than high ({high})")
        if log and low <= 0:
            self.fail(f"{field}.low", f"a logarithmic range needs a positive low, got {low}")
        return Interval(low, high, log, integer=isinstance(low, int) and isinstance(high, int))

    def seeds(self) -> tuple[int, ...]:
        seeds = self.content.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or not all(_is_count(seed) for seed in seeds):
            self.fail("seeds", f"expected a list of whole numbers, 0 or larger, got {seeds!r}")
        if len(set(seeds)) != len(seeds):
            self.fail("seeds", f"a seed occurs twice in {seeds!r}")
        return tuple(seeds)


def _read_mapping(path: Path) -> dict[Any, Any]:
    with reading(path, "sweep file"):
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(content, dict):
        raise LoriError(f"{path}: a sweep file is a mapping of fields ({', '.join(_FIELDS)}), not a list")
    return content


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Tell in one line why a YAML file cannot be read.

    Args:
        path: The file.
        kind: What the file is, for the message.

    Raises:
        LoriError: The file is missing or no YAML.
    """
    try:
        yield
    except OSError as error:
        raise LoriError(f"{path}: cannot read this {kind} ({error.strerror or error}): check the path") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise LoriError(f"{path}{line}: this {kind} is no YAML ({error.problem}): correct the line") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise LoriError(f"{path}: this {kind} is no YAML ({one_line(error)}): correct it") from error


def _override(path: Path, content: dict[Any, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    # The keys inside these are dotted themselves, so the longest prefix is the place and the rest is one key.
    place = next((p for p in ("random.space.", "random.", "fixed.", "grid.") if key.startswith(p)), "")
    entry = key[len(place) :]
    if not equals or not entry or (not place and entry not in _FIELDS):
        raise LoriError(
            f"--override {override}: expected FIELD=VALUE with a field of {path}, such as seeds=[0] or "
            f"fixed.trainer.max_steps=10"
        )
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise LoriError(f"--override {override}: the value is no YAML ({one_line(error)}): quote it") from error
    assert isinstance(value, dict)
    target = content
    for part in filter(None, place.split(".")):
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise LoriError(f"{path}, field '{place[:-1]}': expected a mapping, got {target!r}")
    target[entry] = value["value"]


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
