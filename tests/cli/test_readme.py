"""README and docs/: their commands parse, their links lead somewhere, their switches and defaults are real."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_files import ParsingOnly

import lori_pl.commands.lightning as lightning_commands
from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.cli import OWN_COMMANDS, main
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.data.sources import SOURCES
from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.methods import LoRi
from lori_pl.methods.distillation import Distillation
from lori_pl.methods.latent import LatentMethod
from lori_pl.models.hidden import LayerSelection

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/methods").glob("*.md")),
]
# the page of examples runs in tests/cli/test_extend.py
COMMAND_PAGES = [page for page in PAGES if page.name != "extend.md"]

LIGHTNING = ("fit", "validate", "test", "predict")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    found = [block for language in ("bash", "sh") for block in blocks(page, language)]
    lines = [line for block in found for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def own(words: list[str]) -> list[str]:
    """What follows ``-m lori_pl``, whoever starts it: python, srun, torchrun; nothing where it does not stand."""
    starts = [place + 2 for place in range(len(words) - 2) if words[place : place + 2] == ["-m", "lori_pl"]]
    return words[starts[0] :] if starts else []


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


LORI_COMMANDS = [
    pytest.param(own(command), id=f"{page.name}-{number}-{own(command)[0]}")
    for page in COMMAND_PAGES
    for number, command in enumerate(commands(page))
    if own(command)
]


@pytest.fixture(scope="module")
def parsers() -> Iterator[Callable[[str], Any]]:
    """The real parser of each sub-command's line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(lightning_commands, "LoriCLI", ParsingOnly)
        patch.setattr(sys, "argv", ["lori_pl"])
        files = ["--config", "configs/method/explicit_cot.yaml", "--config", "configs/model/tiny.yaml"]
        yield cache(lambda command: lightning_commands.parse([command, *files], lightning_commands.LoriCLI).parser)


def without(arguments: list[str], *options: str) -> list[str]:
    """Takes options with their values out of a command line."""
    places = {place for option in options for place in range(len(arguments)) if arguments[place] == option}
    return [a for place, a in enumerate(arguments) if place not in places and place - 1 not in places]


@pytest.mark.parametrize("arguments", LORI_COMMANDS)
def test_commands_parse(arguments, parsers, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, rest = arguments[0], arguments[1:]
    assert command in (*LIGHTNING, *OWN_COMMANDS)
    if command == "export":
        assert {"--ckpt_path", "--folder"} <= set(rest)
        command, rest = "fit", without(rest, "--ckpt_path", "--folder")
    elif command == "preview":
        command, rest = "fit", without(rest, "--row")
    elif command == "cache":
        command, rest = "fit", without(rest, "--folder")
    elif command == "analyze":
        command, rest = "test", without(rest, "--folder")
    if command in LIGHTNING:
        with lightning_commands.one_line_errors():
            options = parsers(command).parse_args([command, *rest])[command]
        # what a run checks before it loads anything; a student's folder brings all
        if not str(options.get("ckpt_path")).endswith("student"):
            lightning_commands.method_class(options["model"]).check(options["model"]["init_args"])
            assert options["data"]["reader"]["tokenizer"]
        assert command == "fit" or options["ckpt_path"]
    else:
        assert [a for a in rest if a.endswith(".yaml") and not Path(a).is_file()] == []


def test_what_a_script_starts_is_parsed_too():
    """In docs/cluster.md: python alone, behind srun on a cluster, behind torchrun."""
    page = ROOT / "docs" / "cluster.md"
    first = {Path(command[0]).name for command in commands(page) if own(command)}
    assert first == {"python", "srun", "torchrun"}
    fits = [own(command) for command in commands(page) if command[0] in ("srun", "torchrun") and "fit" in command]
    assert len(fits) == 2
    assert all("configs/trainer/sharded.yaml" in arguments for arguments in fits)


def test_a_command_with_a_misspelt_flag_would_not_pass(parsers, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = ["--config", "configs/method/lori.yaml", "--config", "configs/model/tiny.yaml"]
    with pytest.raises(LoriError), lightning_commands.one_line_errors():
        parsers("fit").parse_args(["fit", *files, "--model.alignment.rank_hiden", "8"])


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("fit", ["usage: python -m lori_pl [options] fit ", "--test_after_fit ", "--data.source "]),
        ("export", ["--ckpt_path FILE ", "--folder OUT ", "--apart ", "lori_pl fit --help"]),
        ("preview", ["--row N ", "lori_pl fit --help"]),
        ("cache", ["--folder DIR ", "--dtype ", "--shard_problems N ", "lori_pl fit --help"]),
        ("benchmark", ["student a student's folder", "--problems ", "--out DIR ", "lori_pl fit --help"]),
        ("analyze", ["--ckpt_path PATH ", "--folder OUT ", "--teacher MODEL ", "--split NAME ", "lori_pl fit --help"]),
        ("quickstart", ["[-h] [FILE]", "experiments/quickstart.yaml"]),
        ("sweep", ["[--dry_run]", "--only N ", "--retry_failed ", "--override FIELD=VALUE "]),
        ("report", ["--folder DIR ", "--compare FIRST SECOND ", "--sweep FILE ", "--selection FOLDER "]),
    ],
)
def test_help_lists_the_options(command, parts, capsys):
    with suppress(SystemExit):  # as argparse ends it
        assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: ")
    assert [part for part in parts if part not in " ".join(shown.split())] == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = [command[1] for command in commands(page) if command[0] == "make"]
        named += re.findall(r"`make ([a-z-]+)`", prose(page))
        assert set(named) <= targets, page.name


def test_make_alone_lists_the_targets_and_the_console_script_is_the_module():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "make quickstart" in shown
    (script,) = (e for e in metadata.entry_points(group="console_scripts") if e.name == "lori_pl")
    assert script.load() is main


def slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", ""))
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text(file), flags=re.M | re.S), re.M)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name} links {target}"


def test_files_named_in_the_text_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:configs|docs|tests|lori_pl)/[\w./-]+\.\w+)`", prose(page)):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_names_in_python_blocks_exist():
    imported = 0
    for page in COMMAND_PAGES:
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(str(node.module))
                    assert [n.name for n in node.names if not hasattr(module, n.name)] == [], page.name
                    imported += len(node.names)
    assert imported > 5


def test_what_the_readme_prepares_is_pinned_and_published():
    (line,) = [command for command in commands(README) if command[:4] == ["python", "-m", "lori_pl", "prepare"]]
    config = yaml.safe_load((ROOT / line[line.index("--config") + 1]).read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{40}", config["model"]["init_args"]["backbone"]["revision"])
    by_class = {f"lori_pl.data.sources.{source.__name__}": source for source in SOURCES.values()}
    data = config["data"]
    assert {"train", "validation"} <= set(by_class[data["source"]["class_path"]].published)
    assert len(data["test_sources"]) == 4
    assert all("test" in by_class[test["class_path"]].published for test in data["test_sources"].values())


def test_marker_lines_stand_in_the_readme():
    lines = text(README).splitlines()
    for marker in ("results:quickstart", "results:methods"):
        assert lines.count(f"<!-- {marker} -->") == 1


OWNERS = {
    "model.alignment": LowRankAlignment,
    "model.anchor": AnchorAlignment,
    "model.layers": LayerSelection,
    "model": (LoRi, LatentMethod, Distillation),
    "data.template": Template,
    "data": PairedDataModule,
}


def switches() -> dict[str, str]:
    """The table of switches in docs/method.md: flag and default."""
    rows = re.findall(
        r"^\| `((?:model|data)\.[\w.]+)` \| `([^`]*)` \|", text(ROOT / "docs" / "method.md"), re.MULTILINE
    )
    return dict(rows)


def test_switches_have_the_defaults_that_the_page_gives():
    assert len(switches()) > 20
    for flag, default in switches().items():
        owner, _, name = flag.rpartition(".")
        classes = OWNERS[owner] if isinstance(OWNERS[owner], tuple) else (OWNERS[owner],)
        parameters = {k: v for each in reversed(classes) for k, v in inspect.signature(each).parameters.items()}
        assert name in parameters, flag
        assert parameters[name].default == yaml.safe_load(default), flag


def test_every_switch_of_the_terms_is_on_the_page():
    for owner in ("model.alignment", "model.anchor", "model.layers"):
        for name in inspect.signature(OWNERS[owner]).parameters:
            assert f"{owner}.{name}" in switches()


def test_every_source_is_on_the_page():
    page = text(ROOT / "docs" / "data.md")
    for name, source in SOURCES.items():
        assert f"| `{name}` `{source.__name__}` |" in page


def test_template_defaults_are_those_on_the_page():
    rows = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", text(ROOT / "docs" / "data.md"), re.MULTILINE))
    written = {"a space": " ", "`false`": False, "false": False, "null": None}
    for name, parameter in inspect.signature(Template).parameters.items():
        assert written.get(rows[name], rows[name]) == parameter.default, name
