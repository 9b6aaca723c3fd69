"""Answer extraction and comparison: closed-form values, and properties against `Decimal`."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lori_pl.data.answers import MAX_DIGITS, MAX_EXPONENT, clean_answer, extract_answer, parse_number, same_answer

examples = settings(deadline=None, max_examples=60)
decimals = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12)
integers = st.integers(min_value=-(10**15), max_value=10**15)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He has <<16-3=13>>13 left.\n#### 18", "18"),
        ("#### 1 #### 2", "2"),
        ("#### 1,080", "1080"),
        ("#### $1,234.50.", "1234.50"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### \u22125", "-5"),
        ("#### +5", "5"),
        ("#### 5 €", "5"),
        ("#### 50 %", "50%"),
        ("#### 50 percent", "50%"),
        ("#### 18 dollars.", "18 dollars"),
        ("#### 1 / 2", "1/2"),
        ("#### .5", ".5"),
        ("#### 18\nQuestion: what is 3 + 4?", "18"),
        ("####\n18", "18"),
        ("#### 18. She has 3 left", "18"),
        ("#### Tom is a lempus.", "Tom is a lempus."),
        ("#### 5 5 6 0 8 2 0 1", "5 5 6 0 8 2 0 1"),
        ("#### 3 million", "3 million"),
        ("#### May 5", "May 5"),
        ("#### 72km", "72"),
        ("#### $18/day", "18"),
        ("#### -$18/day.", "-18"),
        ("#### **18**", "18"),
        ("#### **$1,080.50** each, at the very most!", "1080.50"),
        ("#### $**18** dollars", "18 dollars"),
        ("#### **18", "18"),
        ("#### `18`", "18"),
        ("#### 18 dollars every day at the market", "18"),
        ("#### 18 dollars every day at the market. She keeps 3", "18"),
        ("#### 18\u00b0C", "18"),
        ("#### 1/2kg", "1/2"),
        ("#### 50% of the eggs in the basket", "50%"),
        ("#### 1e3km", "1e3"),
        ("#### 3rd", "3"),
        ("<<16-3=13>> ####", ""),
    ],
)
def test_takes_what_follows_the_last_mark(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "3 is a lempus.",
        "3 isn't a lempus",
        "3 lempuses were here in the morning",
        "18 or 19",
        "18 or nineteen dollars every day at the market",
        "10-20km",
        "10:30am",
        "3 dollars in 2 days at the market",
        "3\u00bdkm",
        "3 million dollars every day at the market",
        "5million",
        "5bn",
        "5k",
        "5 K",
        "5 b",
        "3 thousandths",
        "3 tenths of it",
        "$5M",
        "2x",
        "3D",
        "5 + yards",
        "5*yards",
        "5 - yards",
        "18 = nine and nine",
        "*5*3",
        "1/0km",
        "1e999km",
        "**5 5 6 0**",
        "**Tom**",
        "Tom sold 18 eggs",
    ],
)
def test_a_text_that_may_mean_more_than_its_number_stays(text):
    assert extract_answer(f"#### {text}") == clean_answer(text) == text
    assert not any(same_answer(text, number) for number in ("18", "3", "5", "2", "10"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 4 apples and 18 pears.", "18"),
        ("48-24", "24"),
        ("<<48-24=24>>", "24"),
        ("so x = -24 in all", "-24"),
        ("That is $1,234,567.5.", "1234567.5"),
        ("pages 10-20.", "20"),
        ("half of it, 1/2", "1/2"),
        ("about 1.5e10 of them", "1.5e10"),
        ("in total...18", "18"),
        ("it is no.7", "7"),
        ("it costs .5 or $.25", ".25"),
        ("5 5 6 0 8 2 0 1", "5 5 6 0 8 2 0 1"),
        (" Tom is a lempus. ", "Tom is a lempus."),
        ("", ""),
    ],
)
def test_takes_the_last_number_without_a_mark(text, answer):
    assert extract_answer(text) == answer


def test_takes_what_follows_the_answer_prompt():
    marks = ("####", " The answer is: ")
    assert extract_answer("3 + 4 = 7. The answer is: 7 apples", marks) == "7 apples"
    assert extract_answer("The answer is: 7 #### 8", marks) == "8"
    assert extract_answer("#### 8 The answer is: 7", marks) == "7"
    assert extract_answer("#### 8, or 9", ("The answer is:",)) == "9"
    assert extract_answer("8 or 9", ("",)) == "9"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("-1,234.50", Fraction(-2469, 2)),
        ("1/2", Fraction(1, 2)),
        ("-3/4", Fraction(-3, 4)),
        ("50%", Fraction(1, 2)),
        ("1e3", 1000),
        ("2.5E-3", Fraction(1, 400)),
        ("$18.", 18),
        ("007", 7),
    ],
)
def test_parses_numbers_exactly(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "Tom", "18 apples", "5 5 6", "1/0", "1,23", "10:30", "3 and a half", "1.2.3", "-", "$"]
)
def test_parses_nothing_else(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("18", "18.0"),
        ("18", "18.00"),
        ("18", "$18."),
        ("18", "36/2"),
        ("1000", "1,000"),
        ("1000", "1e3"),
        ("-0", "0"),
        ("1/2", "0.5"),
        ("50%", "0.5"),
        ("50%", "1/2"),
        ("50%", "50"),  # GSM8K asks "what percentage" and has the gold answer 50
        ("50%", "50.0 %"),
        ("18", "18 dollars"),
        ("18 Apples", "18.0 apples"),
        ("72km", "72"),
        ("$18/day", "**18**"),
        ("18 dollars every day at the market", "18 dollars"),
        ("Tom is a lempus.", " tom  is a Lempus"),
        ("5 5 6 0", "5 5 6 0"),
        ("1e999999999", "1E999999999"),
    ],
)
def test_same(a, b):
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("18", "19"),
        ("18", "-18"),
        ("0.3333", "1/3"),
        ("50%", "5"),
        ("50%", "5000"),
        ("18 apples", "18 pears"),
        ("3", "3 million"),
        ("3 is a lempus", "3 is a gorpus"),
        ("3 is a lempus", "3"),
        ("3", "3 and a half"),
        ("5 5 6 0", "5 5 6 1"),
        ("5 5 6 0", "5560"),  # reversed digits are no number
        ("5 5 6 0", "0"),
        ("0", "1 0"),
        ("Tom is a lempus.", "Tom is a scrompus."),
        ("May 5", "5"),
        ("", "0"),
        ("0.1", "0.10000000000000001"),
        (str(10**40), str(10**40 + 1)),
    ],
)
def test_different(a, b):
    assert not same_answer(a, b)
    assert not same_answer(b, a)


def test_huge_numbers_are_text():
    assert parse_number(f"1e{MAX_EXPONENT}") == 10**MAX_EXPONENT
    assert parse_number(f"1e-{MAX_EXPONENT}") == Fraction(1, 10**MAX_EXPONENT)
    for text in ("1e999999999", "1e-999999999", f"1e{'9' * 5000}", "9" * (MAX_DIGITS + 1), f"1/{'9' * 5000}"):
        assert parse_number(text) is None
        assert extract_answer(f"#### {text}") == text
        assert same_answer(text, text)
        assert not same_answer(text, "1")


@examples
@given(decimals)
def test_agrees_with_decimal(number):
    assert parse_number(str(number)) == Fraction(number)
    assert parse_number(format(number, "f")) == Fraction(number)
    assert parse_number(format(number, ",f")) == Fraction(number)
    assert same_answer(str(number), format(number, "f"))


@examples
@given(decimals, decimals)
def test_numbers_are_the_same_when_they_are_equal(left, right):
    assert same_answer(str(left), str(right)) == (left == right)


@examples
@given(integers, st.integers(min_value=1, max_value=10**6), st.integers(min_value=1, max_value=10**6))
def test_fractions_need_not_be_reduced(numerator, denominator, factor):
    assert same_answer(f"{numerator}/{denominator}", f"{numerator * factor}/{denominator * factor}")
    assert parse_number(f"{numerator}/{denominator}") == Fraction(numerator, denominator)


@examples
@given(decimals, st.sampled_from(["{}", "${}", "{}.", " {} ", "{} dollars", "£{}."]), st.text(alphabet="ab c.\n<=3"))
def test_decorations_do_not_hide_a_number(number, decoration, before):
    answer = extract_answer(f"{before}\n#### {decoration.format(format(number, ',f'))}\nmore 5")
    assert same_answer(answer, str(number))
    assert Decimal(answer.split()[0]) == number


@examples
@given(st.text())
def test_never_raises_and_is_idempotent(text):
    for extracted in (extract_answer(text), extract_answer(f"#### {text}"), clean_answer(text)):
        assert clean_answer(clean_answer(extracted)) == clean_answer(extracted)
        assert same_answer(extracted, extracted)
    parse_number(text)


@examples
@given(st.text(alphabet="0123456789.,-+/%$e #a"), st.text(alphabet="0123456789.,-+/%$e #a"))
def test_comparison_is_symmetric_and_reflexive(a, b):
    assert same_answer(a, a)
    assert same_answer(a, b) == same_answer(b, a)
    assert same_answer(a, clean_answer(a))
