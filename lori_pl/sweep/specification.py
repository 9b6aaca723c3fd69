r"""The sweep file: what is varied, what stays, and where the results go.

A YAML file, read by OmegaConf (``${...}`` refers to other fields of the same file, ``\${...}`` hands an interpolation
on to the run). Paths are relative to the folder that the command is run in, as on the command line. The fields::

    name: rank                          # default: the file's name
    output: runs/sweeps/rank            # default: runs/sweeps/NAME
    results: experiments/rank           # where results.csv and correct*.npz go; default: output
    configs:                            # base configs of every run, in order
      - configs/experiment/embedded/quick.yaml
    fixed:                              # flags that every run gets
      trainer.max_steps: 2000
    grid:                               # every combination of these values is run
      model.alignment.rank_hidden: [4, 8, 16]
      config: [configs/method/lori.yaml, configs/method/no_cot.yaml]   # a config file (or a list of them) as an axis
    variants:                           # sets of flags by name, as a further axis, {variant} in a label; under
      standard: {}                      # `config` a file or a list of them that goes behind the others
      mean_only: {model.weights.covariance: 0}
    search:                             # Optuna proposes the points, one after the other, for each combination of
      trials: 20                        # the grid; a trial is run with every seed
      hours: 8                          # a worker starts none after so long from its start, for each combination; null
                                        # (the default): no limit
      metric: validation                # one of the metrics below; the mean over seeds
      on_test: false                    # true lets it be the test set's, which then no longer tests what it chose
      direction: maximize               # or minimize
      sampler: tpe                      # or random, gp, qmc: Optuna's
      seed: 0
      storage: null                     # where workers share the trials: a journal file in OUTPUT, or a database's URL
      space:
        model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}   # whole numbers where both bounds are
        model.latents: {choices: [4, 5, 6]}
    tests: {latents: [1, 3, 8]}         # `test` of each run's student with every combination of these flags: a row
                                        # each, whose name is the run's with [latents=3] behind it
    seeds: [0, 1, 2]                    # default: [0]; each cell is run with each, --seed_everything
    label: "{method}_{variant}"         # names the rows; {method} is the name in the run's summary.json, {name} the
                                        # sweep's, {config} the varied files' stems, {KEY} any varied or fixed value
    metrics: [accuracy_steps_3]         # what else to copy from the run's summary.json: from the method's entry or
                                        # else from the whole, with dots inwards (test_sets.svamp.accuracy)
    reuse: [experiments/embedded]       # folders of results whose rows are taken for cells that are the very same runs;
                                        # `tests` takes their students from where those runs lie
    compare:                            # pairs of labels whose difference in accuracy is printed at the end, with
      - [lori, anchor_only]             # its intervals over seeds and over problems

Only ``configs``, or ``config`` in the grid or the variants, is required. Flags are dotted keys of the command line with
values of any type: numbers, booleans, null, lists and mappings are written as JSON, a string goes as it stands, so that
a text parameter receives it verbatim (where a parameter takes null or a number as well as text, the command line
decides, as always).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lori_pl.run_files import RESULTS
from lori_pl.sweep.fields import (
    CONFIG_AXIS,
    SWEEP_COLUMNS,
    VARIANT_AXIS,
    FieldReader,
    Interval,
    are_texts,
    is_count,
)
from lori_pl.sweep.reading import read_fields

SAMPLERS = ("tpe", "random", "gp", "qmc")
"""Optuna's samplers that a search may name."""

_FIELDS = (
    *("name", "output", "results", "configs", "fixed", "grid", "variants", "search", "tests"),
    *("seeds", "label", "metrics", "reuse", "compare"),
)


@dataclass(frozen=True)
class Search:
    """A search by Optuna; the fields are those of the module's description."""

    trials: int
    hours: float | None
    metric: str
    on_test: bool
    direction: Literal["maximize", "minimize"]
    sampler: str
    seed: int
    storage: str | None
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
    variants: dict[str, dict[str, Any]]
    search: Search | None
    tests: dict[str, list[Any]]
    seeds: tuple[int, ...]
    label: str | None
    metrics: tuple[str, ...]
    reuse: tuple[Path, ...]
    compare: tuple[tuple[str, str], ...]

    @property
    def axes(self) -> list[str]:
        """The keys that vary among runs, grid first."""
        return [*self.grid, *([VARIANT_AXIS] if self.variants else []), *self.space]

    @property
    def columns(self) -> list[str]:
        """The keys that vary among rows: those of runs, and those of tests of their students."""
        return [*self.axes, *self.tests]

    @property
    def space(self) -> dict[str, Interval | list[Any]]:
        """What a search draws: an `Interval` or a list of choices each."""
        return self.search.space if self.search is not None else {}


def load_specification(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpecification:
    """Read and check a sweep file.

    Args:
        path: The YAML file.
        overrides: ``FIELD=VALUE`` each, replacing a field of the file or, after ``fixed.``, ``grid.``,
            ``search.`` or ``search.space.``, one entry of it: ``seeds=[0]``, ``fixed.trainer.max_steps=10``.

    Returns:
        The sweep.

    Raises:
        LoriError: The file is missing, is no YAML, or a field is unknown or has a wrong value; the message names file
            and field.
    """
    path = Path(path)
    return _Reader(path, read_fields(path, _FIELDS, overrides)).specification()


class _Reader(FieldReader):
    """Turns the fields of one file into a specification."""

    def specification(self) -> SweepSpecification:
        for field in self.content:
            if field not in _FIELDS:
                instead = "; a search with `sampler: random` draws at random" if field == "random" else ""
                self.fail(str(field), f"unknown field; known are {', '.join(_FIELDS)}{instead}")
        name = self.text("name") or self.path.stem
        grid, tests = self.grid("grid"), self.grid("tests")
        fixed = self.flags("fixed")
        configs = self.texts("configs")
        metrics = self.texts("metrics")
        search = self.search(metrics)
        if CONFIG_AXIS in fixed:
            self.fail(f"fixed.{CONFIG_AXIS}", "a config file that every run gets belongs under 'configs'")
        space = search.space if search is not None else {}
        if CONFIG_AXIS in space:
            self.fail(f"search.space.{CONFIG_AXIS}", "config files vary under 'grid' and 'variants'")
        variants = self.variants()
        if not configs and CONFIG_AXIS not in grid and not any(CONFIG_AXIS in flags for flags in variants.values()):
            self.fail("configs", "missing; list at least one base config")
        varied = {key: None for flags in variants.values() for key in flags if key != CONFIG_AXIS}
        parts = (fixed, grid, varied, tests, space)
        for key in [key for part in parts[1:] for key in part]:
            if sum(key in part for part in parts) > 1:
                named = "'fixed', 'grid', 'variants', 'tests' and 'search.space'"
                self.fail(key, f"given more than once among {named}; keep one")
        if search is not None and tests:
            self.fail("tests", "the trials of a search are not tested again; give what it found a sweep of its own")
        for folder in self.texts("reuse"):
            if not (Path(folder) / RESULTS).is_file():
                self.fail("reuse", f"{folder} holds no {RESULTS}")
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
            variants=variants,
            search=search,
            tests=tests,
            seeds=self.seeds(),
            label=self.text("label"),
            metrics=metrics,
            reuse=tuple(map(Path, self.texts("reuse"))),
            compare=self.pairs("compare"),
        )

    def grid(self, field: str) -> dict[str, list[Any]]:
        grid = self.flags(field)
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                self.fail(f"{field}.{key}", f"expected a list of at least one value, got {values!r}")
            if key == CONFIG_AXIS and not all(isinstance(v, str) or are_texts(v) for v in values):
                self.fail(f"{field}.{key}", "expected config files, or lists of them")
        return grid

    def variants(self) -> dict[str, dict[str, Any]]:
        named = self.mapping("variants", self.content)
        for name in named:
            if not isinstance(name, str) or not name:
                self.fail("variants", f"expected names of sets of flags, got {name!r}")
        # a name may have dots
        found = {name: self.flags(f"variants.{name}", {name.rpartition(".")[2]: named[name]}) for name in named}
        for name, flags in found.items():
            if not isinstance(value := flags.get(CONFIG_AXIS, []), str) and not are_texts(value):
                self.fail(f"variants.{name}.{CONFIG_AXIS}", f"expected a config file, or a list of them, got {value!r}")
        return found

    def search(self, metrics: Sequence[str]) -> Search | None:
        given = self.mapping("search", self.content)
        if self.content.get("search") is None:
            return None
        known: dict[str, Any] = {
            "trials": None,
            "hours": None,
            "metric": None,
            "on_test": False,
            "direction": "maximize",
            "sampler": "tpe",
            "seed": 0,
            "storage": None,
            "space": None,
        }
        for key in given:
            if key not in known:
                self.fail(f"search.{key}", f"unknown field; known are {', '.join(known)}")
        values = known | given
        self.positive("search.trials", values["trials"])
        hours = values["hours"]
        if hours is not None and not (isinstance(hours, int | float) and not isinstance(hours, bool) and hours > 0):
            self.fail("search.hours", f"expected a positive number, or null, got {hours!r}")
        choices = {"direction": ("maximize", "minimize"), "sampler": SAMPLERS, "metric": (*metrics, "accuracy")}
        for field, allowed in choices.items():
            if values[field] not in allowed:
                self.fail(f"search.{field}", f"expected one of {', '.join(allowed)}, got {values[field]!r}")
        if not isinstance(values["on_test"], bool):
            self.fail("search.on_test", f"expected true or false, got {values['on_test']!r}")
        if _is_of_the_test(values["metric"]) and not values["on_test"]:
            self.fail(
                "search.metric",
                f"'{values['metric']}' is the test set's, which would no longer test what was chosen by it; choose by "
                "'validation', listed under 'metrics', or set search.on_test to true",
            )
        if not is_count(values["seed"]):
            self.fail("search.seed", f"expected a whole number, got {values['seed']!r}")
        if values["storage"] is not None and "://" not in str(values["storage"]):
            self.fail("search.storage", f"expected a database's URL, such as sqlite:///x.db, got {values['storage']!r}")
        return Search(**{**values, "space": self.space("search.space", given)})

    def seeds(self) -> tuple[int, ...]:
        seeds = self.content.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or not all(is_count(seed) for seed in seeds):
            self.fail("seeds", f"expected a list of whole numbers, 0 or larger, got {seeds!r}")
        if len(set(seeds)) != len(seeds):
            self.fail("seeds", f"a seed occurs twice in {seeds!r}")
        return tuple(seeds)


def _is_of_the_test(metric: str) -> bool:
    return metric in ("accuracy", "low", "high") or metric.startswith(("accuracy_steps_", "test_sets.", "methods."))
