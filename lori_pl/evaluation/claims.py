"""Claims about pairs of methods: the training seed is the unit, and p-values are those of all claims together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from lori_pl.errors import LoriError
from lori_pl.evaluation.intervals import (
    NO_SPREAD,
    as_bits,
    bootstrap_difference,
    seed_interval,
)
from lori_pl.evaluation.records import Outcomes

FEWEST_SEEDS = 3
"""Below this number of common seeds no test over seeds is made."""

CLAIM_SEEDS = 5
"""The number of common seeds from which a difference may be called a claim."""

SIGNIFICANCE = 0.05
"""The corrected p-value below which a difference is called one; intervals are those of 95 %."""


@dataclass(frozen=True)
class Measured:
    """One trained model's accuracies, as fractions.

    Args:
        accuracy: On the whole test set.
        by_steps: On the problems of each number of rationale steps, where they are known.
    """

    accuracy: float
    by_steps: Mapping[int, float]


@dataclass(frozen=True)
class Effect:
    """A mean difference over seeds, as a fraction.

    Args:
        mean: The mean of the seeds' differences.
        bounds: Its t interval with the seed as the unit, within -1 and 1; ``None`` for a single seed and where the
            seeds do not differ at all. By number of steps a single seed has the bootstrap's over the problems, where
            their outcomes are known.
        seeds: Number of seeds that have it.
        unit: What the interval speaks of: ``seeds``, ``problems``, or nothing.
    """

    mean: float
    bounds: tuple[float, float] | None
    seeds: int
    unit: str


@dataclass(frozen=True)
class OnePair:
    """What the problems say of two models, one of each method: nothing about another training.

    Args:
        bounds: The bootstrap's interval of the difference of accuracies; ``None`` where the problems' differences are
            all the same.
        p: The exact McNemar test's two-sided p-value.
        only_first: Problems that the first model alone answers correctly.
        only_second: Those of the second alone.
    """

    bounds: tuple[float, float] | None
    p: float
    only_first: int
    only_second: int


@dataclass(frozen=True)
class Claim:
    """The difference in accuracy of two methods over the seeds that both have.

    Args:
        first: The method whose accuracy counts positive.
        second: The other.
        differences: The difference of each common seed, as a fraction.
        effect: Their mean with its interval.
        p: Two-sided p-value of the paired t test over the seeds; ``None`` below `FEWEST_SEEDS`, and where the seeds'
            differences are all the same, so that there is no spread to test against.
        adjusted: The same after Holm's correction for all claims that were adjusted together.
        one_pair: Where there is one common seed and the outcomes of both models are known.
        by_steps: The effect among the problems of each number of rationale steps.
    """

    first: str
    second: str
    differences: Mapping[int, float]
    effect: Effect
    p: float | None
    adjusted: float | None
    one_pair: OnePair | None
    by_steps: Mapping[int, Effect]

    @property
    def verdict(self) -> str:
        """What may be said, in a few words: nothing is claimed of fewer than `CLAIM_SEEDS` seeds."""
        n = len(self.differences)
        if n == 1:
            return "a lead, no claim: one seed"
        if n < FEWEST_SEEDS:
            return "no claim: two seeds"
        if self.adjusted is None:
            return "no test: the seeds' differences are all the same"
        shown = self.adjusted < SIGNIFICANCE
        better = self.first if self.effect.mean > 0 else self.second
        if n < CLAIM_SEEDS:
            said = f"points to {better}" if shown else "no difference shown"
            return f"{said}, but no claim: {n} seeds"
        return f"{better} is better" if shown else "no difference shown"


def claim(
    first: str,
    second: str,
    measured: Mapping[tuple[str, int], Measured],
    outcomes: Outcomes | None = None,
) -> Claim:
    r"""Compares two methods over their common seeds.

    With :math:`d_s` the difference of seed :math:`s` of :math:`n`, the test statistic is that of the paired t test,
    :math:`\bar d \sqrt{n} / \mathrm{sd}(d)` with :math:`n - 1` degrees of freedom, and the interval is
    :math:`\bar d \pm t_{n-1}\, \mathrm{sd}(d) / \sqrt{n}`.

    Args:
        first: A method.
        second: Another.
        measured: Accuracies by method and seed, all on the same test problems.
        outcomes: Whether each answer was right, by method and seed, for what one pair of models says.

    Returns:
        The claim, with its own p-value alone; `adjust` corrects those of several.

    Raises:
        LoriError: If a method is unknown or the two have no seed in common.

    Source:
        Student, "The probable error of a mean", Biometrika 6 (1908); Q. McNemar, "Note on the sampling error of the
        difference between correlated proportions or percentages", Psychometrika 12 (1947).
    """
    known = dict.fromkeys(method for method, _ in measured)
    for method in (first, second):
        if method not in known:
            raise LoriError(f"no result of a method '{method}' to compare; there are {', '.join(known) or 'none'}")
    seeds = sorted({s for m, s in measured if m == first} & {s for m, s in measured if m == second})
    if not seeds:
        raise LoriError(f"'{first}' and '{second}' have no seed in common: run both with the same seeds")
    pairs = [(measured[first, seed], measured[second, seed]) for seed in seeds]
    differences = {seed: a.accuracy - b.accuracy for seed, (a, b) in zip(seeds, pairs, strict=True)}
    steps = sorted({k for a, b in pairs for k in a.by_steps.keys() & b.by_steps.keys()})
    by_steps = {
        k: _effect([a.by_steps[k] - b.by_steps[k] for a, b in pairs if k in a.by_steps and k in b.by_steps])
        for k in steps
    }
    p = paired_t([a.accuracy for a, _ in pairs], [b.accuracy for _, b in pairs])
    one_pair = None
    if len(seeds) == 1 and outcomes is not None and {(first, seeds[0]), (second, seeds[0])} <= outcomes.bits.keys():
        a, b = outcomes.bits[first, seeds[0]], outcomes.bits[second, seeds[0]]
        one_pair = compare_models(a, b)
        by_steps = dict(sorted((by_steps | _over_problems(a, b, outcomes.steps)).items()))
    effect = _effect(list(differences.values()))
    return Claim(first, second, differences, effect, p, p, one_pair, by_steps)


def in_words(found: Claim) -> str:
    """A claim in one line: the difference, its interval and test, and each seed's difference."""
    text = f"{found.first} - {found.second}: {100 * found.effect.mean:+.1f} points"
    pair = found.one_pair
    if pair is not None:
        interval = "" if pair.bounds is None else f"95 % interval {span(pair.bounds)}, bootstrap over problems; "
        text += f" ({interval}McNemar's p {p_text(pair.p)})"
    elif found.effect.bounds is not None:
        text += f" (95 % interval {span(found.effect.bounds)}, t over {found.effect.seeds} seeds"
        text += f"; p {p_text(found.p)}, Holm {p_text(found.adjusted)})" if found.p is not None else ")"
    if len(found.differences) > 1:
        seeds = (f"{seed}: {100 * difference:+.1f}" for seed, difference in found.differences.items())
        text += f"; by seed {', '.join(seeds)}"
    return f"{text}; {found.verdict}"


def adjust(claims: Sequence[Claim]) -> list[Claim]:
    """Corrects the p-values of claims that are made together (Holm): that any of them is false is as rare as said.

    Claims without a p-value stay as they are and do not count.

    Args:
        claims: All claims that are made together.

    Source:
        S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    values = [each.p for each in claims if each.p is not None]
    if not values:
        return list(claims)
    corrected = iter(multipletests(values, method="holm")[1].tolist())
    return [each if each.p is None else replace(each, adjusted=float(next(corrected))) for each in claims]


def paired_t(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t test over seeds.

    Args:
        first: One value a seed, shape (n,).
        second: The other method's, in the same order, shape (n,).

    Returns:
        The p-value; ``None`` for fewer than `FEWEST_SEEDS` seeds, or differences without any spread.
    """
    differences = np.subtract(first, second)
    # equal fractions of the same problems differ by rounding alone
    if len(differences) < FEWEST_SEEDS or np.ptp(differences) <= NO_SPREAD:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(stats.ttest_rel(first, second).pvalue)


def compare_models(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> OnePair:
    """Compares two models on the same problems: the bootstrap's interval, and the exact McNemar test.

    Args:
        first: One bit a problem, shape (n,): whether the first model is right.
        second: The second model's bits on the same problems in the same order, shape (n,).

    Raises:
        LoriError: As `bootstrap_difference`.
    """
    bounds = bootstrap_difference(first, second)
    a, b = as_bits(first, "first"), as_bits(second, "second")
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    p = float(mcnemar(table, exact=True).pvalue) if table[0][1] + table[1][0] else 1.0
    return OnePair(bounds, min(p, 1.0), table[0][1], table[1][0])


def _effect(values: Sequence[float]) -> Effect:
    bounds = seed_interval(values)
    if bounds is not None:  # as far as there are such differences
        bounds = max(bounds[0], -1.0), min(bounds[1], 1.0)
    return Effect(float(np.mean(values)), bounds, len(values), "" if bounds is None else "seeds")


def p_text(value: float | None) -> str:
    """A p-value, or nothing."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def span(bounds: Sequence[float]) -> str:
    """An interval of a difference of fractions in points."""
    return f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"


def _over_problems(a: np.ndarray, b: np.ndarray, steps: np.ndarray | None) -> dict[int, Effect]:
    """What one pair of models says by number of steps, shape (n,) each; nothing where the numbers are not known."""
    if steps is None:
        return {}
    found = {}
    for k in np.unique(steps).tolist():
        first, second = a[steps == k], b[steps == k]
        bounds = bootstrap_difference(first, second)
        found[int(k)] = Effect(float(first.mean() - second.mean()), bounds, 1, "" if bounds is None else "problems")
    return found
