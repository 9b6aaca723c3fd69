"""Every YAML parses against the real command line, and composes with the others as documented."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_files import (
    CONFIGS,
    EXPLICIT,
    HUB_MODELS,
    LORI,
    README,
    ROOT,
    TEMPLATED,
    TINY,
    Parse,
    ParsingOnly,
    backbone_of,
    names,
)
from jsonargparse import Namespace

import lori_pl.commands.lightning as lightning_commands
from lori_pl.cli import main
from lori_pl.commands.nulls import nulls_in_mappings
from lori_pl.commands.parser_errors import NO_METHOD
from lori_pl.data.datamodule import PairedDataModule, Reader
from lori_pl.data.sources import JSONL
from lori_pl.errors import LoriError
from lori_pl.methods import Method
from lori_pl.methods.stages import Stages
from lori_pl.models.backbone import Backbone, LoRA
from lori_pl.sweep.cells import Cell, expand
from lori_pl.sweep.specification import load_specification

SLOW = pytest.mark.slow
ALL = names("**/*.yaml")
COMPOSED = [name for name in names("experiment/**/*.yaml") if "# Composed of:" in (CONFIGS / name).read_text()]
LINKED = ("config", "model.template", "data.reader")
SWEEPS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "experiments").glob("**/*.yaml"))
ONE_OF_A_KIND = [
    "methods/full",
    "multiplication/students",
    "paper/gpt2",
    "sweeps/keep",
    "sweeps/latents",
    "sweeps/weights",
]
"""For the fast suite; the slow one parses every cell of every sweep."""


def with_bases(name: str) -> list[str]:
    """A config behind the files that it needs, in the documented order."""
    match name.split("/")[0]:
        case "method":
            return [name, TINY]
        case "model":
            return [EXPLICIT, name]
        case "experiment":
            # one that names no method is meant for several, of which LoRi takes every option
            model = yaml.safe_load((CONFIGS / name).read_text()).get("model") or {}
            if "class_path" not in model:
                return [LORI, TINY, name]
            return [name] if {"backbone", "teacher"} & model["init_args"].keys() else [TINY, name]
    return [EXPLICIT, TINY, name]


def flat(node: Any, place: str = "") -> dict[str, Any]:
    """Dotted keys to values, `init_args` left out; without the config files' own names and what links repeat."""
    if isinstance(node, Namespace):
        node = node.as_dict()
    if not isinstance(node, dict) or not node:
        return {place: node}
    found: dict[str, Any] = {}
    for name, child in node.items():
        key = place if name == "init_args" else f"{place}.{name}".strip(".")
        if key not in LINKED:
            found |= flat(child, key)
    return found


def differences(a: Namespace, b: Namespace) -> set[str]:
    left, right = flat(a), flat(b)
    return {key for key in left.keys() | right.keys() if left.get(key) != right.get(key)}


def test_a_command_makes_no_other_ones_parser(monkeypatch):
    """Each would be of the whole Trainer, model and data."""
    monkeypatch.setattr(sys, "argv", ["lori_pl"])
    files = [f"--config={CONFIGS / name}" for name in (EXPLICIT, TINY)]
    for command in ("fit", "test"):
        assert list(lightning_commands.parse([command, *files], ParsingOnly)._subcommand_parsers) == [command]


# ---- every file parses -----------------------------------------------------------------------------------------------


PIECES = ("experiment/embedded/", "experiment/multiplication/", "experiment/paper/")
"""Folders of files that are no whole run; the fast suite parses one of each."""
FIRST = {next(name for name in ALL if name.startswith(piece)) for piece in PIECES}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW) if name.startswith(PIECES) and name not in FIRST else name for name in ALL]
)
def test_config_parses(parse: Parse, name: str):
    config = parse(*with_bases(name))
    assert config.model.class_path.startswith("lori_pl.methods.")
    assert config.data.reader["tokenizer"]
    check_stages(config)


def check_stages(config: Namespace) -> None:
    """The one group of options that parses and may yet contradict itself."""
    if stages := config.model.init_args.get("stages"):
        Stages(**stages.as_dict())


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_reads(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(ROOT)
    assert expand(load_specification(name))


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_a_cell_of_a_sweep_parses(parse: Parse, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(ROOT)
    parse_cell(parse, expand(load_specification(f"experiments/{name}.yaml"))[-1])


def test_the_sweep_on_its_page_could_run(parse: Parse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (tmp_path / "rank.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    cells = expand(load_specification(tmp_path / "rank.yaml"))
    assert len(cells) == 12
    arguments = [a for a in cells[0].command(tmp_path) if a.startswith("--")]
    config = parse(
        *(a if not a.startswith("--config=configs/") else a.removeprefix("--config=configs/") for a in arguments)
    )
    lightning_commands.method_class(config.model).check(config.model.init_args)
    assert config.model.init_args.alignment.init_args.rank_hidden == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_cell_parses(parse: Parse, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(ROOT)
    for cell in expand(load_specification(name, ["seeds=[0]"])):
        parse_cell(parse, cell)


def parse_cell(parse: Parse, cell: Cell) -> None:
    command = cell.command(Path("unused"))
    first = command.index("fit" if cell.test is None else "test") + 1  # both take the same flags
    flags = [argument for argument in command[first:] if not argument.startswith("--config=")]
    check_stages(parse(*(Path(config).resolve() for config in cell.configs), *flags))


def test_every_file_stands_in_the_readme():
    text = README.read_text()
    absent = [name for name in ALL if Path(name).name not in text and not name.startswith("experiment/embedded")]
    assert not absent


def test_commands_of_the_readme_parse(parse: Parse):
    commands = [
        shlex.split(command)
        for block in re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
        for command in block.replace("\\\n", " ").strip().splitlines()
    ]
    assert len(commands) >= 3
    for command in commands:
        assert command[:4] == ["python", "-m", "lori_pl", "fit"]
        pairs = list(zip(command[4::2], command[5::2], strict=True))
        files = [str(Path(value).relative_to("configs")) for flag, value in pairs if flag == "--config"]
        parse(*files, *(f"{flag}={value}" for flag, value in pairs if flag != "--config"))


# ---- composition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSED)
def test_experiment_is_its_parts_and_what_it_calls_its_own(parse: Parse, name: str):
    """An experiment repeats its parts, so that it is one file; this is what keeps it from drifting away from them."""
    header = " ".join(line[1:].strip() for line in (CONFIGS / name).read_text().splitlines() if line.startswith("#"))
    match = re.search(r"Composed of: (.*) Of its own: (.*)$", header)
    assert match
    parts = [part.removeprefix("configs/") for part in match[1].split()]
    own = tuple(key.replace(".init_args", "") for key in match[2].split(", "))
    changed = differences(parse(name), parse(*parts))
    assert {key for key in changed if not key.startswith(own)} == set()
    assert {key for key in own if not any(place.startswith(key) for place in changed)} == set()


def test_order_of_method_model_and_data_does_not_matter(parse: Parse):
    parts = [LORI, "model/llama-3.2-1b.yaml", "data/gsm8k_aug.yaml"]
    assert differences(parse(*parts), parse(*reversed(parts))) == set()
    assert differences(parse(*parts), parse(*parts[1:], parts[0])) == set()


def test_documented_order_gives_the_documented_values(parse: Parse):
    config = parse(LORI, "model/llama-3.2-1b.yaml", "data/gsm8k_aug.yaml", "trainer/gpu.yaml", "--model.teacher.name=t")
    values = config.model.init_args
    assert config.model.class_path == "lori_pl.methods.LoRi"
    assert backbone_of(config) == Backbone(
        name="meta-llama/Llama-3.2-1B-Instruct",
        revision="main",
        dtype="bfloat16",
        attention="sdpa",
        lora=LoRA(128, 32.0, 0.1),
    )
    assert (values.teacher.name, values.latents, values.max_new_tokens) == ("t", 5, 256)
    assert (values.alignment.init_args.rank_hidden, values.anchor.init_args.w_anchor) == (32, 1.0)
    assert (values.optimizer.init_args.lr, values.optimizer.init_args.weight_decay) == (8e-4, 0.1)
    assert (values.schedule.warmup, values.schedule.decay) == (0.03, "cosine")
    assert (config.trainer.max_epochs, config.trainer.gradient_clip_val, config.trainer.precision) == (
        10,
        2.0,
        "bf16-mixed",
    )
    assert sorted(config.data.test_sources) == ["gsm8k", "gsm_hard", "multiarith", "svamp"]
    reader = config.data.reader
    assert (reader["tokenizer"], reader["teacher_tokenizer"]) == ("meta-llama/Llama-3.2-1B-Instruct", "t")
    assert reader["needs_rationale"] is reader["markers"] is True


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        ([], True),
        (["--model.weights", "{mean: 0, covariance: 0}"], True),
        (["--model.weights", "{mean: 0, covariance: 0, anchor: 0}"], False),
        (["--model.alignment", "null", "--model.anchor.w_anchor", "0"], False),
    ],
)
def test_rationales_are_needed_where_a_term_weighs_something(parse, flags, needed):
    lines = [f"{flag}={value}" for flag, value in zip(flags[::2], flags[1::2], strict=True)]
    config = parse("method/lori.yaml", "model/tiny.yaml", "data/gsm8k.yaml", "--model.teacher.name=t", *lines)
    assert config.data.reader["needs_rationale"] is needed


@pytest.mark.parametrize("name", names("method/*.yaml"))
def test_a_method_that_needs_rationales_is_refused_data_without_them(parse: Parse, tmp_path: Path, name: str):
    needed = Path(name).stem not in ("no_cot", "pause", "latent_only")
    config = parse(*with_bases(name))
    assert config.data.reader["needs_rationale"] is needed
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "Ann has 4 apples .", "answer": "4"}))
    source = JSONL(str(tmp_path), on_missing_rationale="error")
    data = PairedDataModule(source, reader=Reader(**config.data.reader))
    with pytest.raises(LoriError, match=r"train\.jsonl, line 1: no rationale") if needed else nullcontext():
        data.setup_train()


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        ("model: {init_args: {optimizer: {init_args: {lr: 1.0e-5}}}}", "model.optimizer.lr", 1e-5),
        ("data: {source: {init_args: {path: other}}}", "data.source.path", "other"),
        pytest.param("model: {init_args: {backbone: {lora: {rank: 16}}}}", "model.backbone.lora.rank", 16, marks=SLOW),
        pytest.param(
            "model: {init_args: {alignment: {init_args: {w_mean: 0.5}}}}", "model.alignment.w_mean", 0.5, marks=SLOW
        ),
        ("data: {template: {answer_prompt: '####'}}", "data.template.answer_prompt", "####"),
    ],
)
def test_a_later_file_replaces_one_nested_value_only(parse: Parse, tmp_path: Path, content: str, key: str, value: Any):
    files = [LORI, "model/gpt2.yaml", "data/gsm8k.yaml", "trainer/gpu.yaml"]
    later = tmp_path / "later.yaml"
    later.write_text(content)
    before, after = parse(*files), parse(*files, later)
    assert differences(before, after) == {key}
    assert flat(after)[key] == value


@pytest.mark.parametrize("method", ["latent_only", "anchor_only", "rationale_only"])
def test_parts_of_lori_differ_from_it_by_their_terms(parse: Parse, method: str):
    """Behind lori.yaml too: what a part leaves out is null there, not absent."""
    alone, behind = parse(f"method/{method}.yaml", TINY), parse(LORI, f"method/{method}.yaml", TINY)
    assert differences(alone, behind) == set()
    lori = parse(LORI, TINY)
    for term, kept in (("alignment", method == "rationale_only"), ("anchor", method == "anchor_only")):
        expected = flat(lori.model.init_args[term]) if kept else {"": None}
        assert flat(alone.model.init_args[term]) == expected


@pytest.mark.parametrize("kind", [HUB_MODELS, TEMPLATED], ids=["models", "data"])
def test_files_of_a_kind_take_each_others_place(parse: Parse, kind: list[str]):
    """They set the same keys (a source's own arguments apart), so nothing of an earlier one stays."""
    source = re.compile(r"data\.(source|test_sources)\.")
    keys = [
        {key for key in flat(yaml.safe_load((CONFIGS / name).read_text())) if not source.match(key)} for name in kind
    ]
    assert all(found | {"data.test_sources"} == keys[0] | {"data.test_sources"} for found in keys)
    base = [EXPLICIT, TINY] if kind is TEMPLATED else [EXPLICIT]
    assert differences(parse(*base, kind[0], kind[-1]), parse(*base, kind[-1])) == set()


def test_svamp_changes_the_test_set_only(parse: Parse):
    changed = differences(
        parse(EXPLICIT, TINY, "data/gsm8k_aug.yaml", "data/svamp.yaml"), parse(EXPLICIT, TINY, "data/gsm8k_aug.yaml")
    )
    assert changed
    assert all(key.startswith("data.test_sources") for key in changed)


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What `fit` prints of the arguments, which come behind some files: one line."""
    monkeypatch.setattr(sys, "argv", ["lori_pl"])
    files = [LORI, "model/gpt2.yaml", "data/gsm8k.yaml"]
    assert main(["fit", *(f"--config={CONFIGS / file}" for file in files), *arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize(
    ("content", "key", "line"),
    [
        ("modle: {latents: 3}", "modle", 1),
        ("# steps\ntrainer: {max_step: 3}", "max_step", 2),
        ("model: {init_args: {backbone: {lora: {rnk: 3}}}}", "rnk", 1),
        (
            "model:\n  init_args:\n    backbone: {lora: {rank: 3}}\n    alignment: {init_args: {rank: 3}}",
            "rank",
            4,
        ),
        ("data:\n  batch_size: many", "data.batch_size", 2),
        ("model:\n  init_args:\n    alignment:\n      init_args: {rank_hidden: [3]}", "rank_hidden", 4),
    ],
)
def test_what_is_wrong_with_a_key_is_one_line_that_names_it_and_its_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    key: str,
    line: int,
):
    later = tmp_path / "later.yaml"
    later.write_text(content)
    error = refused(capsys, monkeypatch, "--config", str(later), f"--config={CONFIGS / 'trainer/cpu.yaml'}")
    assert re.search(rf"\b{re.escape(key)}\b", error)
    assert f"({later}, line {line})" in error


def test_a_nested_field_is_set_to_null_by_a_flag():
    """As the README starts a student from its teacher; as text, ``None`` would be looked for on the hub."""
    flags = [f"--config={CONFIGS / name}" for name in (LORI, "model/qwen2.5-0.5b.yaml", "data/synthetic.yaml")]
    flags += ["--model.backbone.name", "null", "--model.backbone.revision=null", "--model.backbone.dropout", "null"]
    flags += ["--model.teacher.name", str(ROOT / "lori_pl/assets/teacher"), "--model.teacher.revision", "null"]
    method = lightning_commands.parse(["fit", *flags]).model
    assert (method.backbone.name, method.backbone.revision, method.backbone.dropout) == (None, None, None)
    # what stands beside it stays
    assert method.backbone.lora.rank == 128


class Nameless(Method):
    """A method of one's own that is not finished."""

    reasoning = "none"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], NO_METHOD),
        (
            [f"--model.class_path={__name__}.Nameless"],
            "Nameless does not set 'name', as a method has to (docs/extend.md)",
        ),
    ],
)
def test_a_model_without_a_method_is_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], message: str):
    files = [f"--config={CONFIGS / name}" for name in ("model/llama-3.2-1b.yaml", "data/synthetic.yaml")]
    assert main(["preview", *files, *flags]) == 2
    assert capsys.readouterr().err.strip() == f"error: {message}"


def test_only_flags_of_null_are_rewritten():
    plain = ["fit", "--model.backbone.name", "nullable", "--model.anchor", "null", "--model.weights.mean=null"]
    assert nulls_in_mappings(plain) == plain
    nested = ["--model.init_args.backbone.lora.rank", "null", "--model.stages.epochs=null", "--x"]
    assert nulls_in_mappings(nested) == [
        *("--model.backbone", '{"lora": {"rank": null}}', "--model.stages", '{"epochs": null}', "--x"),
    ]


def test_a_flag_is_not_looked_for_in_files(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    error = refused(capsys, monkeypatch, "--data.batch_size=many")
    assert "data.batch_size" in error
    assert ".yaml" not in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1\n b: 2", "later.yaml, line 2: this config is no YAML"),
        (b"- 1", "later.yaml: a config is a mapping .* a list"),
        (b"\xff\x00", "later.yaml: this config is no YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
):
    later = tmp_path / "later.yaml"
    later.write_bytes(content)
    assert re.search(words, refused(capsys, monkeypatch, "--config", str(later)))
