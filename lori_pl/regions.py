"""Named regions of a training step: for whatever profiler looks, and for errors to say where they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal

Region = Literal["question", "latents", "answer", "words", "steps", "teacher", "alignment", "optimiser"]
Profile = Callable[[str], AbstractContextManager[Any]]

_profiles: ContextVar[tuple[Profile, ...]] = ContextVar("profiles", default=())
_PLACE = "lori_pl_region"


class _Region(AbstractContextManager[None]):
    def __init__(self, name: Region, profiled: list[AbstractContextManager[Any]]) -> None:
        self.name = name
        self.profiled = profiled

    def __enter__(self) -> None:
        for context in self.profiled:
            context.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for context in reversed(self.profiled):
            context.__exit__(kind, error, trace)
        # the innermost one is the first to see it
        if error is not None and not hasattr(error, _PLACE):
            setattr(error, _PLACE, self.name)


def region(name: Region) -> AbstractContextManager[None]:
    """A context that a profiler sees under ``lori_pl/NAME``; an error that leaves it remembers the name."""
    return _Region(name, [profile(f"lori_pl/{name}") for profile in _profiles.get()])


def place_of(error: BaseException) -> Region | None:
    """The innermost region that an error left."""
    found: Region | None = getattr(error, _PLACE, None)
    return found


@contextmanager
def profiled(profile: Profile) -> Iterator[None]:
    """Within the block regions are entered through ``profile`` too, which makes a context of a name."""
    _profiles.set((*_profiles.get(), profile))
    try:
        yield
    finally:
        # another may have come meanwhile, and stays
        _profiles.set(tuple(other for other in _profiles.get() if other != profile))
