"""Fixtures of the command line's tests: a tiny world, its teacher, and the parser alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from config_files import CONFIGS, EXPLICIT, TINY, Parse, ParsingOnly
from jsonargparse import Namespace
from matplotlib.figure import Figure
from tiny_world import BACKBONE, LORI_TERMS, World

import lori_pl.callbacks.alignment_monitor as alignment_monitor
import lori_pl.commands.lightning as lightning_commands


@pytest.fixture
def pictures() -> None:
    """For tests of what runs draw: elsewhere their pictures are blank, which is a fifth of a short run's time."""


@pytest.fixture(autouse=True)
def _blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(alignment_monitor, "spectrum_figure", lambda spectra: Figure(figsize=(1, 1)))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a (barely trained) explicit-CoT teacher."""
    world = World(tmp_path_factory.mktemp("teacher"))
    assert world.fit("ExplicitCoT", "run", backbone=BACKBONE) == 0
    return str(world.folder / "run" / "student")


@pytest.fixture
def lori_args(teacher: str) -> dict[str, Any]:
    return {"backbone": {}, "teacher": {"name": teacher}, **LORI_TERMS}


@pytest.fixture(scope="session")
def parse() -> Parse:
    """Parses the arguments of `fit`; files are given relative to `configs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_commands, "LoriCLI", ParsingOnly)
        patch.setattr(sys, "argv", ["lori_pl"])
        files = [f"--config={CONFIGS / name}" for name in (EXPLICIT, TINY)]
        parser = lightning_commands.parse(["fit", *files], lightning_commands.LoriCLI).parser
    cache: dict[tuple[str, ...], Namespace] = {}

    def parsed(*arguments: str | Path) -> Namespace:
        line = tuple(str(a) if str(a).startswith("--") else f"--config={CONFIGS / a}" for a in arguments)
        if line not in cache:
            with lightning_commands.one_line_errors():
                cache[line] = parser.parse_args(["fit", *line])["fit"]
        return cache[line]

    return parsed
