import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from lori_pl.errors import LoriError
from lori_pl.evaluation.intervals import bootstrap_difference, wilson


# Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_values(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 5000), share=st.floats(0, 1), level=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@settings(max_examples=60, deadline=None)
def test_wilson_bounds_solve_the_score_equation(n, share, level):
    """Each bound is the proportion q at which |p - q| is exactly z standard errors *of q*."""
    correct = round(share * n)
    low, high = wilson(correct, n, level)
    p, z = correct / n, NormalDist().inv_cdf((1 + level) / 2)
    assert 0 <= low <= p <= high <= 1
    assert low < high
    for bound in (low, high):
        assert abs(p - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)
    mirrored = wilson(n - correct, n, level)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_is_exact_at_the_ends():
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "at least one problem"),
        ((5, 4), "5 correct out of 4"),
        ((-1, 4), "-1 correct out of 4"),
        ((1, 4, 95), "between 0 and 1, not 95"),
    ],
)
def test_wilson_refuses(arguments, message):
    with pytest.raises(LoriError, match=message):
        wilson(*arguments)


def _bits(both, only_a, only_b, neither):
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return np.array(a, dtype=bool), np.array(b, dtype=bool)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "at least one problem"),
        ([1], [1, 0], r"differ in length \(1 and 2\)"),
        ([1, 2], [1, 0], "'a' hold values other than 0 and 1"),
        ([1, 0], [[1, 0]], r"'b' have shape \(1, 2\)"),
    ],
)
def test_outcomes_that_are_no_pairs_are_refused(a, b, message):
    with pytest.raises(LoriError, match=message):
        bootstrap_difference(a, b)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("counts", [(150, 60, 30, 160), (5, 10, 2, 23), (0, 300, 20, 80)])
def test_the_bootstrap_has_the_quantiles_of_its_exact_distribution(counts, level):
    """Of n draws, how many have only the first right, and only the second, is multinomial."""
    n = sum(counts)
    draws = np.random.default_rng(1).multinomial(n, np.array(counts) / n, size=200_000)
    differences = (draws[:, 1] - draws[:, 2]) / n
    expected = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    # the error of a quantile of 9,999 draws, and the grid of the differences
    tolerance = 0.1 * differences.std() + 1 / n
    assert bootstrap_difference(*_bits(*counts), level) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("counts", [(150, 60, 30, 160), (5, 2, 10, 23)])
def test_the_bootstrap_is_that_of_a_library(counts):
    a, b = _bits(*counts)
    found = bootstrap((a.astype(float) - b,), np.mean, method="percentile", rng=np.random.default_rng(2))
    spread = found.standard_error
    assert bootstrap_difference(a, b) == pytest.approx(found.confidence_interval, abs=0.1 * spread + 1 / len(a))


def test_the_bootstrap_is_the_same_each_time_and_turns_with_the_models():
    a, b = _bits(400, 300, 120, 180)
    for few in (9, 19, 99):  # so few that other draws would show
        low, high = bootstrap_difference(a, b, resamples=few)
        assert bootstrap_difference(a, b, resamples=few) == (low, high)
        assert bootstrap_difference(a, b, resamples=few, seed=1) != (low, high)
        assert bootstrap_difference(b, a, resamples=few) == pytest.approx((-high, -low), abs=1e-12)


def test_the_bootstrap_keeps_a_problem_s_outcomes_together():
    together, apart = bootstrap_difference(*_bits(500, 40, 10, 450)), bootstrap_difference(*_bits(270, 270, 240, 220))
    assert together[0] > 0 > apart[0]
    # normal, of counts: 0.03 -+ 1.96 sqrt(0.05 - 0.03**2) / sqrt(1000)
    assert together == pytest.approx((0.0163, 0.0437), abs=0.001)


def test_where_every_draw_is_the_same_the_bootstrap_has_no_interval():
    for counts in ((3, 0, 0, 4), (0, 5, 0, 0), (0, 1, 0, 0)):
        assert bootstrap_difference(*_bits(*counts)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"level": 95}, "between 0 and 1, not 95"), ({"resamples": 0}, "a bootstrap of 0 resamples")],
)
def test_the_bootstrap_refuses_what_makes_no_sense(settings, message):
    with pytest.raises(LoriError, match=message):
        bootstrap_difference([1, 0], [0, 0], **settings)
