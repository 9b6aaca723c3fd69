"""Arbitrary input: how many, what of it is tried, and what an error has to be."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lori_pl.errors import LoriError

MANY = pytest.param(10_000, marks=pytest.mark.slow)


SECONDS = 10.0


class Hangs(BaseException):
    """No end in sight; no reader takes it for an error of the file, and no search for a smaller input begins."""


def explore(count: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Checks a property on so many inputs, each within `SECONDS`."""

    def check_in_time(drawn: Any) -> None:
        def stop(*_: Any) -> None:
            raise Hangs(f"no end after {SECONDS} s with {drawn!r}")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            check(drawn)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    every = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    settings(max_examples=count, deadline=None, database=None, suppress_health_check=every)(
        given(strategy)(check_in_time)
    )()


def is_clear(error: LoriError) -> None:
    """An error is one line."""
    if "\n" in str(error) or not str(error):
        pytest.fail(f"an error of several lines, or none: {error}")


def altered(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with some bytes changed, cut off, or put in."""
    place = st.integers(0, len(content))
    change = st.tuples(st.sampled_from(["flip", "cut", "insert", "drop"]), place, st.binary(min_size=1, max_size=8))

    def apply(changes: list[tuple[str, int, bytes]]) -> bytes:
        found = content
        for kind, where, new in changes:
            if kind == "flip":
                found = found[:where] + new + found[where + len(new) :]
            elif kind == "cut":
                found = found[:where]
            elif kind == "insert":
                found = found[:where] + new + found[where:]
            else:
                found = found[:where] + found[where + len(new) :]
        return found

    return st.lists(change, min_size=1, max_size=3).map(apply)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
