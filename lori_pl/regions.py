"""Named regions of a training step: for whatever profiler looks, and for errors to say where they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal

Region = Literal["question", "latents", "answer", "words", "steps", "teacher", "alignment", "optimiser"]
Profile = Callable[[str], AbstractContextManager[Any]]

_profile: ContextVar[Profile | None] = ContextVar("profile", default=None)
_PLACE = "lori_pl_region"


class _Region(AbstractContextManager[None]):
    def __init__(self, name: Region, profiled: AbstractContextManager[Any] | None) -> None:
        self.name = name
        self.profiled = profiled

    def __enter__(self) -> None:
        if self.profiled is not None:
            self.profiled.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.profiled is not None:
            self.profiled.__exit__(kind, error, trace)
        # the innermost one is the first to see it
        if error is not None and not hasattr(error, _PLACE):
            setattr(error, _PLACE, self.name)


def region(name: Region) -> AbstractContextManager[None]:
    """A context that a profiler sees under ``lori_pl/NAME``; an error that leaves it remembers the name."""
    profile = _profile.get()
    return _Region(name, None if profile is None else profile(f"lori_pl/{name}"))


def place_of(error: BaseException) -> Region | None:
    """The innermost region that an error left."""
    found: Region | None = getattr(error, _PLACE, None)
    return found


@contextmanager
def profiled(profile: Profile) -> Iterator[None]:
    """Within the block regions are entered through ``profile``, which makes a context of a name."""
    token = _profile.set(profile)
    try:
        yield
    finally:
        _profile.reset(token)
