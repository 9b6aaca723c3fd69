"""Claims over seeds: the paired t test, Holm and McNemar against what they are made of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lori_pl.errors import LoriError
from lori_pl.evaluation.claims import Measured, adjust, claim, compare_models, in_words, paired_t
from lori_pl.evaluation.intervals import bootstrap_difference
from lori_pl.evaluation.records import Outcomes

A = [0.50, 0.62, 0.70, 0.55, 0.61]
B = [0.40, 0.48, 0.57, 0.46, 0.49]


def measured(**methods):
    return {(name, seed): Measured(value, {}) for name, values in methods.items() for seed, value in enumerate(values)}


def test_the_seed_is_the_unit():
    found = claim("a", "b", measured(a=A, b=B))
    d = np.subtract(A, B)
    t = d.mean() / (d.std(ddof=1) / math.sqrt(5))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 4))
    half = 2.7764451 * d.std(ddof=1) / math.sqrt(5)  # t of four degrees of freedom
    assert found.effect.mean == pytest.approx(d.mean())
    assert found.effect.bounds == pytest.approx((d.mean() - half, d.mean() + half))
    assert found.verdict == "a is better"
    assert claim("b", "a", measured(a=A, b=B)).verdict == "a is better"


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        (1, "a lead, no claim: one seed"),
        (2, "no claim: two seeds"),
        (3, "points to a, but no claim: 3 seeds"),
        (4, "points to a, but no claim: 4 seeds"),
    ],
)
def test_few_seeds_claim_nothing(seeds, verdict):
    found = claim("a", "b", measured(a=A[:seeds], b=B))
    assert found.verdict == verdict
    assert (found.p is None) == (seeds < 3)
    assert (found.effect.bounds is None) == (seeds < 2)


def test_no_difference_is_said_so():
    assert claim("a", "b", measured(a=A, b=A[1:] + A[:1])).verdict == "no difference shown"


def test_differences_without_spread_are_not_tested():
    found = claim("a", "b", measured(a=[0.3 + 0.1] * 5, b=[0.4] * 5))
    assert found.p is None
    assert found.effect.bounds is None
    assert found.verdict == "no test: the seeds' differences are all the same"
    assert paired_t([0.5, 0.6, 0.7], [0.4, 0.5, 0.6]) is None


def test_only_common_seeds_count():
    found = claim("a", "b", {**measured(a=A, b=B), ("a", 9): Measured(0.0, {})})
    assert list(found.differences) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_holm_by_its_definition(count):
    values = np.random.default_rng(count).uniform(0, 0.4, count).tolist()
    plain = claim("a", "b", measured(a=A, b=B))
    claims = [type(plain)(**{**vars(plain), "p": p, "adjusted": p}) for p in values]
    order = sorted(range(len(values)), key=lambda i: values[i])
    largest, expected = 0.0, [0.0] * len(values)
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        expected[i] = largest
    assert [each.adjusted for each in adjust(claims)] == pytest.approx(expected)


def test_claims_without_a_p_value_are_left_out_of_the_correction():
    one, lone = claim("a", "b", measured(a=A, b=B)), claim("a", "b", measured(a=A[:1], b=B))
    assert [each.adjusted for each in adjust([lone, one])] == [None, one.p]
    assert adjust([lone]) == [lone]


def test_one_pair_of_models_by_their_problems():
    a, b = np.zeros(40, dtype=bool), np.zeros(40, dtype=bool)
    a[:20], b[:8], b[30:33] = True, True, True
    outcomes = Outcomes([str(i) for i in range(40)], {("a", 0): a, ("b", 0): b})
    found = claim("a", "b", measured(a=[a.mean()], b=[b.mean()]), outcomes).one_pair
    assert (found.only_first, found.only_second) == (12, 3)
    assert found.p == pytest.approx(stats.binomtest(3, 15).pvalue)
    assert found.bounds == bootstrap_difference(a, b)
    assert claim("a", "b", measured(a=A, b=B), outcomes).one_pair is None  # five seeds are no pair of models


def test_models_that_agree_on_every_problem():
    found = compare_models([True, False], [True, False])
    assert (found.p, found.bounds) == (1.0, None)


def test_the_effect_by_number_of_steps():
    results = {
        ("a", 0): Measured(0.5, {3: 0.6, 4: 0.4}),
        ("a", 1): Measured(0.5, {3: 0.62}),
        ("b", 0): Measured(0.4, {3: 0.5, 4: 0.1}),
        ("b", 1): Measured(0.4, {3: 0.5, 5: 0.1}),
    }
    found = claim("a", "b", results).by_steps
    assert list(found) == [3, 4]
    assert found[3].mean == pytest.approx(0.11)
    assert found[3].bounds == pytest.approx((0.11 - 12.7062047 * 0.01, 0.11 + 12.7062047 * 0.01))
    assert (found[4].mean, found[4].bounds, found[4].seeds) == (pytest.approx(0.3), None, 1)


def test_one_pair_by_number_of_steps():
    a, b = np.arange(60) < 40, np.arange(60) % 3 == 0
    steps = np.arange(60) % 2 + 3
    # the rows may have what the outcomes' numbers of steps have not been asked for
    results = {("a", 0): Measured(a.mean(), {4: 0.0, 5: 0.5}), ("b", 0): Measured(b.mean(), {4: 0.0, 5: 0.1})}
    outcomes = Outcomes([str(i) for i in range(60)], {("a", 0): a, ("b", 0): b}, steps)
    found = claim("a", "b", results, outcomes).by_steps
    assert list(found) == [3, 4, 5]
    assert (found[5].mean, found[5].bounds) == (0.4, None)
    for k in (3, 4):
        effect = found[k]
        assert effect.mean == pytest.approx(a[steps == k].mean() - b[steps == k].mean())
        assert (effect.bounds, effect.unit) == (bootstrap_difference(a[steps == k], b[steps == k]), "problems")


def test_an_effect_is_no_larger_than_there_are_differences():
    low, high = claim("a", "b", measured(a=[0.9, 0.2], b=[0.1, 0.1])).effect.bounds
    assert (low, high) == (-1.0, 1.0)


def words(**counts):
    bits = {(name, s): np.arange(100) < n for name, by_seed in counts.items() for s, n in enumerate(by_seed)}
    outcomes = Outcomes([str(i) for i in range(100)], bits)
    return in_words(claim("a", "b", {key: Measured(each.mean(), {}) for key, each in bits.items()}, outcomes))


def test_in_words_the_seeds_have_a_t_interval():
    line = words(a=[50, 52], b=[40, 44])
    assert line == (
        "a - b: +9.0 points (95 % interval -3.7 to +21.7, t over 2 seeds); by seed 0: +10.0, 1: +8.0; "
        "no claim: two seeds"
    )
    line = words(a=[50, 52, 54, 58, 60], b=[40, 44, 43, 47, 51])
    assert "; p < 0.001, Holm < 0.001); by seed 0: +10.0, 1: +8.0" in line
    assert line.endswith("4: +9.0; a is better")


def test_in_words_seeds_without_spread_have_no_interval():
    assert words(a=[50, 50, 50], b=[40, 40, 40]).startswith("a - b: +10.0 points; by seed 0: +10.0")


def test_in_words_one_pair_of_models_has_the_bootstrap_s_interval_and_mcnemar_s_p():
    # ten problems of a hundred decide: 10 points, with a binomial's spread of 3
    p = stats.binomtest(0, 10).pvalue
    assert words(a=[50, 60], b=[40]) == (
        f"a - b: +10.0 points (95 % interval +5.0 to +16.0, bootstrap over problems; McNemar's p {p:.3f}); "
        "a lead, no claim: one seed"
    )
    assert "bootstrap" not in words(a=[50], b=[50])


def test_what_cannot_be_compared():
    with pytest.raises(LoriError, match="no result of a method 'c' to compare; there are a, b"):
        claim("a", "c", measured(a=A, b=B))
    with pytest.raises(LoriError, match="no seed in common"):
        claim("a", "b", {("a", 0): Measured(0.1, {}), ("b", 1): Measured(0.1, {})})


def test_a_claim_takes_a_corrected_p_below_five_percent():
    found = claim("a", "b", measured(a=A, b=B))
    assert replace(found, adjusted=0.0499).verdict == "a is better"
    assert replace(found, adjusted=0.0501).verdict == "no difference shown"
