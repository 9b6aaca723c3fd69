"""Messages as a terminal may have them."""

from __future__ import annotations

import pytest

from lori_pl.errors import one_line, printable


@pytest.mark.parametrize("steering", ["\x1b[2J", "\x07", "\x08", "\r", "\x9b31m", "\u202e", "\u2066", "\ud800"])
def test_nothing_that_steers_a_terminal_is_left(steering):
    shown = printable(f"problem {steering}7")
    assert steering[0] not in shown
    assert shown.startswith("problem \ufffd")
    assert one_line(f"a\x1b[31m {steering[0]}b").isprintable()


@pytest.mark.parametrize(
    "text", ["a\tb\nc", "4\u00a0000 \u20ac", "\u4e00\u3000\u4e8c", "\U0001f468\u200d\U0001f469", ""]
)
def test_other_text_stays(text):
    assert printable(text) == text
