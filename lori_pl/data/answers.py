"""Finding the answer in a text and comparing two answers: one rule for every method and every source.

Extraction (`extract_answer`): what follows the last answer mark, else the last number, else the whole text. Comparison
(`same_answer`): numbers as exact fractions, anything else as text.

A text that begins with its only number is that number, whatever follows: ``72km``, ``$18/day``, ``**18**``, ``18
dollars every day at the market``. It stays a text where the words may change the value or make a statement of it: words
of number and choice (``3 million``, ``18 or nineteen``), operators (``5 + yards``), a single letter (``5k``, ``2x``,
``3D``), or a verb (``3 is a lempus``).

What counts as a number: an optional sign, an optional currency sign, digits with or without thousands commas, decimals,
an exponent (``1e3``), a denominator (``1/2``), a per cent sign. Numbers beyond `MAX_DIGITS` digits or an exponent
beyond `MAX_EXPONENT` are compared as text, so that ``1e999999999`` costs nothing.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

ANSWER_MARK = "####"
MAX_DIGITS = 600
MAX_EXPONENT = 400

_CURRENCY = "$€£¥₹¢"
_NUMBER = re.compile(
    rf"""
    (?:(?<![\w)\]%])(?P<sign>[-+\u2212]))?                   # "48-24" ends in 24, "x = -24" in -24
    (?:[{_CURRENCY}]\ ?(?P<inner_sign>[-\u2212])?)?
    (?P<mantissa>
        [0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?
        | [0-9]+(?:\.[0-9]+)?
        | (?<![\w.)])\.[0-9]+                                    # "in all...18" and "no.7" end in 18 and 7
    )
    (?:[eE](?P<exponent>[-+]?[0-9]+))?
    (?:\ ?/\ ?(?P<denominator>[0-9]+(?:\.[0-9]+)?))?
    (?P<percent>\ ?%|\ percent\b)?
    (?:\ ?[{_CURRENCY}](?![0-9]))?
    """,
    re.VERBOSE,
)
_UNIT = re.compile(r"[^\W\d_][^\W\d_'./-]*(?:[ './-][^\W\d_]+){0,3}")
_NO_UNIT = re.compile(
    r"""
    \b(?:(?:hundred|thousand|million|billion|trillion)(?:ths?)?|[bmt]n|[bk]|dozen)\b
    | \b(?:hal(?:f|ves)|thirds?|quarters?|tenths?)\b
    | \b(?:and|or|to|by|times|plus|minus|over|point|x)\b
    | \b(?:am|are|be|can|did|do|does|had|has|have|is|was|were|will)(?:n['\u2019]t)?\b
    """,
    re.VERBOSE | re.IGNORECASE,
)
# a letter that may be a factor ("5k", "2x", "3D"), and operators
_TERM = re.compile(r"^[^\W\d_](?![^\W\d_])|[=+*^<>\u00d7\u00f7\u00b1\u2212]| [-/] ")
_EMPHASIS = re.compile(rf"^([-+\u2212{_CURRENCY}]*)([*_`]+)(.*?)(?:\2(?![0-9])|$)", re.DOTALL)
_SPACED_DIGITS = re.compile(r"[0-9](?: [0-9])+")
_SENTENCE_END = re.compile(r"[.!?](?=\s)")


class _Quantity(NamedTuple):
    value: Fraction  # the number before the per cent sign
    percent: bool
    unit: str
    text: str


def extract_answer(text: str, marks: Sequence[str] = (ANSWER_MARK,)) -> str:
    """Finds the answer in a solution.

    After the last of the answer marks: the first line; if its first sentence is a number, that number (with its unit,
    if it is short), without commas, currency sign, emphasis and closing period. Without any mark: the last number of
    the text, unless the text is nothing but digits apart (``5 5 6 0``, reversed multiplication). Without any number:
    the text itself.

    Args:
        text: The solution, generated or gold.
        marks: The answer marks, e.g. ``####`` or the answer prompt; white space around a mark is ignored.

    Returns:
        The answer; an empty string where a mark has nothing after it. Answers that are not numbers stay as written.
    """
    found = [(text.rfind(mark), len(mark)) for mark in (mark.strip() for mark in marks) if mark and mark in text]
    if found:
        start, length = max(found)
        line = text[start + length :].strip().split("\n", 1)[0].strip()
        first_sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
        return clean_answer(first_sentence if _leading(first_sentence) else line)
    if _SPACED_DIGITS.fullmatch(text.strip()):
        return text.strip()
    last = deque(_NUMBER.finditer(text), maxlen=1)
    return _number_text(last[0]) if last else text.strip()


def clean_answer(text: str) -> str:
    """Strips what surrounds the number from a text that is a number; leaves other texts as written.

    ``$1,080.`` becomes ``1080``, ``18 dollars.`` becomes ``18 dollars``, ``**$18**/day`` becomes ``18``, ``Tom is a
    lempus.`` stays.
    """
    quantity = _leading(text)
    return text.strip() if quantity is None else quantity.text


def parse_number(text: str) -> Fraction | None:
    """Reads a text that is one number, exactly.

    Args:
        text: E.g. ``-$1,234.50``, ``1/2``, ``1e3``, ``50%`` (one half).

    Returns:
        The number, or None where the text is not one number (a unit word included), divides by zero or is out of
        bounds.
    """
    quantity = _quantity(text)
    if quantity is None or quantity.unit:
        return None
    return quantity.value / 100 if quantity.percent else quantity.value


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are equal.

    Two numbers are compared exactly: ``18`` equals ``18.0``, ``$18.00`` and ``36/2``. Where exactly one has a per cent
    sign, it may mean either its hundredth or the bare count of per cent (a question "what percentage ..." has the gold
    answer ``18``): ``50%`` equals ``1/2`` and ``50``. A unit counts only where both have one: ``18 dollars`` equals
    ``18``, but not ``18 apples``. Anything else is compared as text, without regard to case, white space and closing
    period; digits apart (``5 5 6 0``) are text.
    """
    left, right = _leading(a), _leading(b)
    if left is None or right is None:
        return _normalised(a) == _normalised(b)
    if left.unit and right.unit and left.unit.casefold() != right.unit.casefold():
        return False
    if left.value == right.value:
        return True
    if left.percent == right.percent:
        return False
    percent, plain = (left, right) if left.percent else (right, left)
    return percent.value == 100 * plain.value


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(". ")


def _quantity(text: str) -> _Quantity | None:
    body = text.strip().rstrip("., ")
    match = _NUMBER.match(body)
    if match is None:
        return None
    rest = body[match.end() :]
    unit = rest.strip()
    if unit and not (rest[0] == " " and _UNIT.fullmatch(unit)):
        return None
    if _NO_UNIT.search(unit):  # "3 and a half", "2 million", "3 is a lempus"
        return None
    value = _value(match)
    if value is None:
        return None
    number = _number_text(match)
    return _Quantity(value, match["percent"] is not None, unit, f"{number} {unit}" if unit else number)


def _leading(text: str) -> _Quantity | None:
    body = _EMPHASIS.sub(r"\1\3", text.strip()).strip()
    if (quantity := _quantity(body)) is not None:
        return quantity
    match = _NUMBER.match(body)
    if match is None:
        return None
    rest = body[match.end() :]
    if _NO_UNIT.search(rest) or _TERM.search(rest) or any(map(str.isnumeric, rest)):
        return None
    value, number = _value(match), _number_text(match)
    return None if value is None else _Quantity(value, match["percent"] is not None, "", number)


def _value(match: re.Match[str]) -> Fraction | None:
    mantissa, exponent, denominator = match["mantissa"], match["exponent"] or "0", match["denominator"] or "1"
    if len(mantissa) > MAX_DIGITS or len(denominator) > MAX_DIGITS or len(exponent) > len(str(MAX_EXPONENT)) + 1:
        return None
    if abs(int(exponent)) > MAX_EXPONENT or not Fraction(denominator):
        return None
    value = Fraction(mantissa.replace(",", "")) * Fraction(10) ** int(exponent) / Fraction(denominator)
    return -value if _negative(match) else value


def _negative(match: re.Match[str]) -> bool:
    return (match["sign"] in ("-", "\u2212")) != (match["inner_sign"] is not None)


def _number_text(match: re.Match[str]) -> str:
    sign = "-" if _negative(match) else ""
    exponent = f"e{match['exponent']}" if match["exponent"] else ""
    denominator = f"/{match['denominator']}" if match["denominator"] else ""
    percent = "%" if match["percent"] else ""
    return sign + match["mantissa"].replace(",", "") + exponent + denominator + percent
