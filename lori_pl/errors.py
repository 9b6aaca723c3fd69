"""The one error that a user of lori_pl is meant to read."""

from __future__ import annotations

import unicodedata
from typing import Any, get_args


class LoriError(ValueError):
    """Bad input: one message that names the cause, the place (file, line, field) and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def check_choice(what: str, value: object, choices: Any) -> None:
    """Checks that a value is one of a `Literal`'s, for who does not come by the command line.

    Args:
        what: What has the value, for the message.
        value: The value.
        choices: The `Literal`.

    Raises:
        LoriError: If it is another.
    """
    if value not in (known := get_args(choices)):
        raise LoriError(f"{what} is {value!r}: give one of {', '.join(map(str, known))}")


def printable(text: str) -> str:
    """Text from data or elsewhere as a terminal may have it: without what steers it, lines and tabs apart."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(c) else c for c in text)


def _steers(character: str) -> bool:
    """Whether a character is a control, half a pair, or turns the direction of writing."""
    if character in "\n\t":
        return False
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or "\u202a" <= character <= "\u202e"
        or ("\u2066" <= character <= "\u2069")
    )


def one_line(fault: BaseException | str, limit: int = 240) -> str:
    """Gives a message as one line of at most ``limit`` characters; an error without one gives its type."""
    text = printable(" ".join(str(fault).split())) or type(fault).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
