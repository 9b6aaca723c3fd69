"""The one error that a user of lori_pl is meant to read."""


class LoriError(ValueError):
    """Bad input: one message that names the cause, the place (file, line, field) and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def printable(text: str) -> str:
    """Text from data or elsewhere as a terminal may have it: without control characters, lines and tabs apart."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(fault: BaseException | str, limit: int = 240) -> str:
    """Gives a message as one line of at most ``limit`` characters; an error without one gives its type."""
    text = printable(" ".join(str(fault).split())) or type(fault).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
