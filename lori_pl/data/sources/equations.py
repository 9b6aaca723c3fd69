"""Arithmetic written as text, evaluated exactly and step by step (no `eval`)."""

from __future__ import annotations

import re
from fractions import Fraction

from lori_pl.data.answers import parse_number

MAX_LENGTH = 300
_TOKEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+|[-+*/()])")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "negative": 3}


def solve_equation(expression: str) -> tuple[Fraction, list[str]]:
    """Evaluates ``+ - * /`` and parentheses exactly.

    Args:
        expression: E.g. ``( ( 8.0 + 4.0 ) * 3.0 )``, at most `MAX_LENGTH` characters.

    Returns:
        The value, and one annotation an operation, innermost first: ``["<<8+4=12>>", "<<12*3=36>>"]``. Numbers are
        written as integers or terminating decimals, else as fractions (``<<1/3=1/3>>``).

    Raises:
        ValueError: The text is no such expression, is too long, or divides by zero.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"is longer than {MAX_LENGTH} characters")
    values: list[Fraction] = []
    operators: list[str] = []
    steps: list[str] = []

    def apply() -> None:
        operator = operators.pop()
        if operator == "(":
            raise ValueError("has an unclosed parenthesis")
        right = values.pop()
        if operator == "negative":
            values.append(-right)
            return
        left = values.pop()
        if operator == "/" and right == 0:
            raise ValueError("divides by zero")
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1)}[operator]
        values.append(result)
        steps.append(f"<<{_operand(left)}{operator}{_operand(right, signed=False)}={fraction_text(result)}>>")

    position, operand_next = 0, True
    text = expression.rstrip()
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise ValueError(f"has an unexpected {text[position:].split()[0]!r}")
        position, symbol = token.end(), token[1]
        if operand_next and symbol == "(":
            operators.append(symbol)
        elif operand_next and symbol == "-":
            operators.append("negative")
        elif operand_next and symbol not in "+*/)":
            values.append(Fraction(symbol))
            operand_next = False
        elif operand_next or symbol[0] not in "+-*/)":
            raise ValueError(f"has an unexpected {symbol!r}")
        elif symbol == ")":
            while operators and operators[-1] != "(":
                apply()
            if not operators:
                raise ValueError("has an unopened parenthesis")
            operators.pop()
        else:
            while operators and operators[-1] != "(" and _PRECEDENCE[operators[-1]] >= _PRECEDENCE[symbol]:
                apply()
            operators.append(symbol)
            operand_next = True
    if operand_next:
        raise ValueError("ends where a number should follow")
    while operators:
        apply()
    return values[0], steps


def equation_rationale(expression: str, answer: str) -> list[str]:
    """Returns the steps of `solve_equation` as a rationale for an answer: none where they do not come to it.

    Raises:
        ValueError: The text is no expression, is too long, or divides by zero.
    """
    value, steps = solve_equation(expression)
    return steps if value == parse_number(answer) else []


def fraction_text(value: Fraction) -> str:
    """Writes a fraction as an integer or a terminating decimal, else as ``numerator/denominator``."""
    remainder, decimals = value.denominator, 0
    while remainder % 10 == 0 or remainder % 5 == 0 or remainder % 2 == 0:
        remainder //= 10 if remainder % 10 == 0 else 5 if remainder % 5 == 0 else 2
        decimals += 1
    if remainder != 1:
        return f"{value.numerator}/{value.denominator}"
    if decimals == 0:
        return str(value.numerator)
    digits = str(abs(value.numerator) * 10**decimals // value.denominator).zfill(decimals + 1)
    return f"{'-' if value < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def _operand(value: Fraction, signed: bool = True) -> str:
    text = fraction_text(value)
    return f"({text})" if "/" in text or (value < 0 and not signed) else text
