"""The equations of SVAMP and MultiArith: solved exactly, step by step, by a parser of their own."""

import random
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lori_pl.data.answers import same_answer
from lori_pl.data.sources.equations import MAX_LENGTH, fraction_text, solve_equation


@pytest.mark.parametrize(
    ("expression", "value", "steps"),
    [
        ("7", 7, []),
        ("2+3*4", 14, ["<<3*4=12>>", "<<2+12=14>>"]),
        ("10-4-3", 3, ["<<10-4=6>>", "<<6-3=3>>"]),
        ("(1+2)*(3+4)", 21, ["<<1+2=3>>", "<<3+4=7>>", "<<3*7=21>>"]),
        ("1/3", Fraction(1, 3), ["<<1/3=1/3>>"]),
        ("6/(1/3)", 18, ["<<1/3=1/3>>", "<<6/(1/3)=18>>"]),
        ("5-(2-4)", 7, ["<<2-4=-2>>", "<<5-(-2)=7>>"]),
        ("-3+5", 2, ["<<-3+5=2>>"]),
        ("2*-3", -6, ["<<2*(-3)=-6>>"]),
        ("0.1+0.2", Fraction(3, 10), ["<<0.1+0.2=0.3>>"]),
        ("1/8", Fraction(1, 8), ["<<1/8=0.125>>"]),
        ("(" * 100 + "1" + ")" * 100, 1, []),
    ],
)
def test_equation(expression, value, steps):
    assert solve_equation(expression) == (value, steps)


@pytest.mark.parametrize(
    ("expression", "word"),
    [
        ("", "ends"),
        ("3+", "ends"),
        ("3 4", "unexpected '4'"),
        ("3(4)", "unexpected '('"),
        ("+3", "unexpected '+'"),
        ("()", "unexpected ')'"),
        ("(3", "unclosed"),
        ("3)", "unopened"),
        ("3/(2-2)", "zero"),
        ("2**3", "unexpected '*'"),
        ("__import__('os')", "unexpected"),
        ("1+" * MAX_LENGTH + "1", "longer"),
    ],
)
def test_bad_equation(expression, word):
    with pytest.raises(ValueError, match=re.escape(word)):
        solve_equation(expression)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_equation_agrees_with_python(seed, depth):
    generator = random.Random(seed)

    def expression(level):
        if level == 0:
            return str(generator.randint(1, 9))
        return f"( {expression(level - 1)} {generator.choice('+-*/')} {expression(0)} )"

    text = expression(depth)
    exact = eval("".join(f"Fraction({part})" if part.isdigit() else part for part in text.split()))
    value, steps = solve_equation(text)
    assert value == exact
    assert len(steps) == depth
    assert steps[-1].endswith(f"={fraction_text(exact)}>>")
    for step in steps:
        left, right = step[2:-2].split("=")
        assert solve_equation(left)[0] == solve_equation(right)[0]


@settings(deadline=None, max_examples=40)
@given(st.fractions(max_denominator=10**4))
def test_fraction_text_is_exact(value):
    assert Fraction(fraction_text(value)) == value
    assert same_answer(fraction_text(value), f"{value.numerator}/{value.denominator}")
