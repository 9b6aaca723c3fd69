"""Two methods over seeds: the t interval by hand, and what is printed."""

from __future__ import annotations

import numpy as np
import pytest

from lori_pl.errors import LoriError
from lori_pl.evaluation.comparison import compare
from lori_pl.evaluation.intervals import bootstrap_difference, paired_difference
from lori_pl.evaluation.records import Outcomes


def right(count, n=100):
    return np.arange(n) < count


def outcomes(**counts):
    bits = {(method, seed): right(c) for method, by_seed in counts.items() for seed, c in enumerate(by_seed)}
    return Outcomes([str(i) for i in range(100)], bits)


def test_the_interval_over_seeds_is_the_t_interval():
    found = compare(outcomes(a=[50, 60, 70], b=[40, 40, 40]), "a", "b")
    # sd 0.1, n 3, t of two degrees of freedom 4.302653
    assert found.mean == pytest.approx(0.2)
    assert found.bounds == pytest.approx((0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5), abs=1e-6)
    assert found.by_seed[1] == paired_difference(right(60), right(40))


def test_only_seeds_that_both_have_count():
    found = compare(outcomes(a=[50, 60], b=[55]), "a", "b")
    assert list(found.by_seed) == [0]
    assert (found.mean, found.bounds) == (pytest.approx(-0.05), None)
    assert str(found).startswith("a - b: -5.0 points; by seed")


def test_the_line_has_both_intervals():
    line = str(compare(outcomes(a=[50, 52], b=[40, 44]), "a", "b"))
    assert line.startswith("a - b: +9.0 points (95 % interval -3.7 to +21.7, t over 2 seeds); by seed")
    assert "0: +10.0 (" in line
    assert "1: +8.0 (" in line


def test_one_pair_of_models_has_the_bootstrap_s_interval_too():
    found = compare(outcomes(a=[50, 60], b=[40]), "a", "b")
    assert found.bootstrap == bootstrap_difference(right(50), right(40))
    # ten problems of a hundred decide: 10 points, with a binomial's spread of 3
    assert str(found).endswith("; by bootstrap: +5.0 to +16.0")
    several = compare(outcomes(a=[50, 60], b=[40, 40]), "a", "b")
    assert several.bootstrap is None
    assert "bootstrap" not in str(several)
    assert "bootstrap" not in str(compare(outcomes(a=[50], b=[50]), "a", "b"))


def test_without_a_common_seed_there_is_nothing_to_compare():
    with pytest.raises(LoriError, match="no seed in common"):
        compare(outcomes(a=[50]), "a", "b")
