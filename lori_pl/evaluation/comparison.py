"""Two methods compared on the same problems, over the training seeds that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lori_pl.errors import LoriError
from lori_pl.evaluation.intervals import bootstrap_difference, paired_difference
from lori_pl.evaluation.records import Outcomes


@dataclass(frozen=True)
class Comparison:
    """The difference in accuracy of two methods, as fractions.

    Args:
        first: The method whose accuracy counts positive.
        second: The other.
        by_seed: For each seed the difference with the bounds of `paired_difference`, which speak of the draw of
            problems for one pair of models.
        mean: Mean difference over the seeds.
        bounds: Its t interval with the seed as the unit; ``None`` for a single seed.
        level: Coverage of the intervals.
        bootstrap: For a single seed the bounds of `bootstrap_difference` beside those of `paired_difference`.
    """

    first: str
    second: str
    by_seed: dict[int, tuple[float, float, float]]
    mean: float
    bounds: tuple[float, float] | None
    level: float
    bootstrap: tuple[float, float] | None = None

    def __str__(self) -> str:
        """One line in points, whatever the sign."""
        text = f"{self.first} - {self.second}: {100 * self.mean:+.1f} points"
        if self.bounds is not None:
            text += f" ({100 * self.level:g} % interval {_points(self.bounds)}, t over {len(self.by_seed)} seeds)"
        seeds = [f"{seed}: {100 * d:+.1f} ({_points((low, high))})" for seed, (d, low, high) in self.by_seed.items()]
        text += f"; by seed, with the interval over problems: {', '.join(seeds)}"
        return text if self.bootstrap is None else f"{text}; by bootstrap: {_points(self.bootstrap)}"


def compare(outcomes: Outcomes, first: str, second: str, level: float = 0.95) -> Comparison:
    r"""Compares two methods seed by seed.

    With :math:`d_s` the difference of seed :math:`s`, the interval is
    :math:`\bar d \pm t_{n-1} \sqrt{\mathrm{var}(d) / n}`: the training seed is the unit, not the problem.

    Args:
        outcomes: Whether each answer was right, by method and seed.
        first: A method.
        second: Another.
        level: Coverage of the intervals.

    Raises:
        LoriError: If the two have no seed in common.
    """
    seeds = sorted({s for m, s in outcomes.bits if m == first} & {s for m, s in outcomes.bits if m == second})
    if not seeds:
        raise LoriError(f"'{first}' and '{second}' have no seed in common: run both with the same seeds")
    pairs = {s: (outcomes.bits[first, s], outcomes.bits[second, s]) for s in seeds}
    by_seed = {s: paired_difference(*pair, level) for s, pair in pairs.items()}
    differences = [difference for difference, _, _ in by_seed.values()]
    bootstrap = bootstrap_difference(*pairs[seeds[0]], level) if len(seeds) == 1 else None
    bounds = seed_interval(differences, level)
    return Comparison(first, second, by_seed, float(np.mean(differences)), bounds, level, bootstrap)


def seed_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The t interval of a mean over seeds; ``None`` for a single value."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _points(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"
