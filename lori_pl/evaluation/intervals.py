"""Confidence intervals of an accuracy and of the difference of two accuracies on the same problems.

Wilson's and the bootstrap's describe the draw of *problems* for one trained model. The spread over training seeds is
another question and needs several seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lori_pl.errors import LoriError

NO_SPREAD = 1e-9
"""Fractions that differ by no more than this differ by rounding alone."""


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    r"""Wilson score interval of an accuracy.

    With :math:`p = correct / n` and :math:`z` the normal quantile at :math:`(1 + level) / 2`,

    .. math::
        \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4n^2}}{1 + z^2 / n}.

    Unlike the plain normal interval it stays inside [0, 1] and keeps a width at 0 % and 100 %.

    Args:
        correct: Number of problems answered correctly, 0 to ``n``.
        n: Number of problems, at least 1.
        level: Coverage, between 0 and 1.

    Returns:
        Lower and upper bound, as fractions.

    Raises:
        LoriError: ``n`` is 0 or negative, ``correct`` is not in 0 to ``n``, or ``level`` not between 0 and 1.

    Source:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if n < 1:
        raise LoriError(f"an interval of an accuracy needs at least one problem (n = {n}): evaluate on a larger set")
    if not 0 <= correct <= n:
        raise LoriError(f"{correct} correct out of {n} problems is impossible: give a count from 0 to {n}")
    if not 0 < level < 1:
        raise LoriError(f"an interval's level must lie between 0 and 1, not {level}: 0.95 is the usual one")
    from scipy.stats import binomtest  # a second that a command without intervals need not wait

    low, high = binomtest(correct, n).proportion_ci(level, "wilson")
    # The bounds are 0 and 1 exactly at the ends; rounding would leave 1e-17.
    return (0.0 if correct == 0 else float(low)), (1.0 if correct == n else float(high))


def bootstrap_difference(
    a: Sequence[bool] | np.ndarray,
    b: Sequence[bool] | np.ndarray,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> tuple[float, float] | None:
    r"""Bootstrap interval over problems of the difference of two accuracies (percentile).

    Problems are drawn with replacement, as many as there are and each with the outcomes of both models, which are so
    kept in pairs: the mean of :math:`a_i - b_i` over the drawn. The interval lies between the quantiles
    :math:`(1 \mp level) / 2` of these means. Two models that fail on the same problems differ more clearly than their
    own intervals say; pairing uses that.

    Args:
        a: One bit a problem, shape (n,): whether the first model is right.
        b: The second model's bits on the same problems in the same order, shape (n,).
        level: Coverage, between 0 and 1.
        resamples: How often problems are drawn, at least 1.
        seed: Seed of the draws: the same gives the same interval.

    Returns:
        Lower and upper bound of accuracy of ``a`` minus accuracy of ``b``, as fractions; ``None`` where all problems
        have the same difference, or there is one alone: no draw would be another.

    Raises:
        LoriError: The vectors are empty, differ in length, are not one-dimensional or hold anything but 0 and 1; or
            ``level`` or ``resamples`` is out of range.

    Source:
        B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979).
    """
    first, second = _paired(a, b)
    if not 0 < level < 1:
        raise LoriError(f"an interval's level must lie between 0 and 1, not {level}: 0.95 is the usual one")
    if resamples < 1:
        raise LoriError(f"a bootstrap of {resamples} resamples has no quantiles: give 1 or more, such as 9999")
    difference = first.astype(np.int8) - second.astype(np.int8)
    if np.ptp(difference) == 0:
        return None
    sign = -1 if difference.sum(dtype=int) < 0 else 1  # turned round, the same draws
    # how many of the drawn problems have each difference is multinomial: the draws of the bootstrap, as counts
    values, counts = np.unique(sign * difference, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(difference), counts / len(difference), size=resamples)
    low, high = np.quantile(draws @ values / len(difference), [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high)) if sign > 0 else (-float(high), -float(low))


def _paired(a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = as_bits(a, "a"), as_bits(b, "b")
    if len(first) != len(second):
        raise LoriError(
            f"paired outcomes differ in length ({len(first)} and {len(second)}): compare models on the same problems"
        )
    if len(first) == 0:
        raise LoriError("an interval of a difference needs at least one problem: compare on a larger set")
    return first, second


def as_bits(outcomes: Sequence[bool] | np.ndarray, name: str) -> np.ndarray:
    """Per-problem outcomes as a boolean vector.

    Args:
        outcomes: Booleans or numbers 0 and 1, shape (n,).
        name: What the outcomes are called in an error message.

    Returns:
        The same as a NumPy array of ``bool``, shape (n,).

    Raises:
        LoriError: Not one-dimensional, or a value other than 0 and 1.
    """
    values = np.asarray(outcomes)
    if values.ndim != 1:
        raise LoriError(f"outcomes '{name}' have shape {values.shape}: give one bit a problem, shape (n,)")
    if not np.isin(values, (0, 1)).all():
        raise LoriError(f"outcomes '{name}' hold values other than 0 and 1: give one bit a problem")
    return values.astype(bool)


def seed_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    r"""The t interval of a mean over seeds, with the seed as the unit: mean +- t_(n-1) sd / sqrt(n).

    Args:
        values: One value a seed, shape (n,).
        level: Coverage, between 0 and 1.

    Returns:
        Lower and upper bound; ``None`` for a single value, and for values without any spread, whose interval would have
        no width, which nobody should believe.
    """
    if len(values) < 2 or np.ptp(values) <= NO_SPREAD:
        return None
    from scipy.stats import ttest_1samp  # a second that a command without intervals need not wait

    low, high = ttest_1samp(values, 0.0).confidence_interval(level)
    return float(low), float(high)
