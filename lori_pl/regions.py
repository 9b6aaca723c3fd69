"""Named regions of a training step, for whatever profiler looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

Region = Literal["question", "latents", "answer", "words", "steps", "teacher", "alignment", "optimiser"]
Profile = Callable[[str], AbstractContextManager[Any]]

_profile: ContextVar[Profile | None] = ContextVar("profile", default=None)


def region(name: Region) -> AbstractContextManager[Any]:
    """A context that a profiler sees under ``lori_pl/NAME``; nothing where none looks."""
    profile = _profile.get()
    return nullcontext() if profile is None else profile(f"lori_pl/{name}")


@contextmanager
def profiled(profile: Profile) -> Iterator[None]:
    """Within the block regions are entered through ``profile``, which makes a context of a name."""
    token = _profile.set(profile)
    try:
        yield
    finally:
        _profile.reset(token)
