"""What a parser has to say of a bad config or flag, as one line that names the place."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lori_pl.errors import LoriError, one_line
from lori_pl.sweep.reading import reading

NO_METHOD = "no method is chosen: add --config configs/method/NAME.yaml, or give --model a class"
_LINK = re.compile(r"Call to compute_fn of link 'reader\(model\).* failed: (.*)", re.S)
"""What `lori_pl.commands.links.reader` says of a model; the whole model's config stands before it."""
_WRONG_CLASS = re.compile(
    r"given class_path '([\w.]+)': (?=module|No module)|dot import path string: ([\w.]+)|Import path ([\w.]+) does not"
)
"""A name that is that of no class, or of one that does not go there."""
_MARK = "Does not validate against any"
_NOISE = (_MARK, "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")


@contextmanager
def one_line_errors(arguments: Sequence[str] = ()) -> Iterator[None]:
    """Turns a parser's error into one line.

    Args:
        arguments: What is parsed: the config files in it are searched for what is wrong.

    Raises:
        LoriError: What was wrong with a config, a flag or an object that one of them describes.
    """
    try:
        yield
    except (ArgumentError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, LoriError):
                raise cause from None
            cause = cause.__cause__
        files = _config_files(arguments)
        if isinstance(error, UnicodeDecodeError) or str(error).startswith(("Problems parsing", "Unexpected config")):
            for file in files:
                _check_is_mapping(file)
        # the second comes of an object that cannot be made, such as a logger whose package is not installed
        if not isinstance(error, ArgumentError) and not str(error).startswith(_MARK):
            raise
        raise LoriError(_explanation(str(error), files, arguments)) from None


@contextmanager
def trainer_errors(options: Mapping[str, Any]) -> Iterator[None]:
    """Says in one line why no Trainer can be made.

    Args:
        options: What is under ``trainer``.

    Raises:
        LoriError: What is wrong with them, or is not there, such as a GPU.
    """
    try:
        yield
    except LoriError:
        raise
    except (MisconfigurationException, ValueError) as error:
        cause = one_line(error)
        if "invalid strategy name" in cause:
            # Lightning names neither ours nor any of the sharding ones in what fits a line
            cause = "there is no such strategy; auto, ddp, sharded and fsdp1 are those that are tested"
        chosen = ", ".join(f"{name} {options.get(name)}" for name in ("accelerator", "devices", "strategy"))
        raise LoriError(
            f"the options under trainer ({chosen}, ...) make no trainer: {cause}; change them, or put "
            "--config configs/trainer/cpu.yaml behind the other files for one CPU process"
        ) from error


def _explanation(message: str, files: Sequence[Path], arguments: Sequence[str]) -> str:
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    if any("arguments are required" in line and ".model" in line for line in lines):
        return NO_METHOD
    if (found := _LINK.search(message)) is not None:
        return found[1]
    useful = [line for line in lines if not line.startswith(_NOISE)]
    kinds = ["".join(re.findall(r"^(?:Problem with given class_path|Parser key)", line)) for line in useful]
    if [kind for kind in kinds if kind][-1:] == ["Problem with given class_path"]:
        # what other types would have wanted helps nobody who has chosen a class
        useful = [line for line in useful if not line.startswith("Expected a <class")]
    text = " ".join(useful or lines)
    return f"{text[:600]}{_place(text, files, arguments)}; see `{_help(text, arguments)}`"


def _help(message: str, arguments: Sequence[str]) -> str:
    """The option that lists what could have been written: of the outermost class that was found, or of the command."""
    wrong = _wrong_class(message)
    found = re.search(r"Parser key \"([\w.]+)\": Problem with given class_path '([\w.]+)'", message)
    shown = f"{found[1]}.help={found[2]}" if found is not None and found[2] != wrong else "help"
    return f"python -m lori_pl {' '.join(arguments[:1])} --{shown}"


def _wrong_class(message: str) -> str | None:
    found = [name for groups in _WRONG_CLASS.findall(message) for name in groups if name]
    return found[-1] if found else None


def _config_files(arguments: Sequence[str]) -> list[Path]:
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    named = [
        follows if given == "--config" else given.removeprefix("--config=")
        for given, follows in pairs
        if given.startswith("--config=") or given == "--config"
    ]
    return [Path(name) for name in named if Path(name).is_file()]


def _check_is_mapping(file: Path) -> None:
    with reading(file, "config"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        found = "empty" if content is None else "a list" if isinstance(content, list) else "a single value"
        raise LoriError(f"{file}: a config is a mapping of fields (model, data, trainer, ...), but this one is {found}")


def _place(message: str, files: Sequence[Path], arguments: Sequence[str]) -> str:
    """Says where what a message is about is set: in the last file that names the wrong class, or has the wrong key.

    Nowhere, if a flag does.
    """
    found = [
        key
        for pattern in (r"Parser key \"([\w.]+)\"", r"[Oo]ption '([\w.]+)'", r"unrecognized arguments: --([\w.]+)")
        for key in re.findall(pattern, message)
    ]
    keys = ".".join(found).split(".")
    if any(re.match(rf"--(.*\.)?{re.escape(keys[-1])}(\.class_path)?(=|$)", given) for given in arguments):
        return ""
    wrong = _wrong_class(message)
    for file in reversed(files):
        with reading(file, "config"):
            document = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
        for path, value, line in _entries(document):
            named = wrong in (None, value) if path[-1] == keys[-1] else path[-1] == "class_path" and wrong == value
            if path[0] == keys[0] and named and _is_within(keys, path):
                return f" ({file}, line {line})"
    return ""


def _is_within(keys: Sequence[str], path: Sequence[str]) -> bool:
    """Whether the keys occur in the path in their order: the parser leaves out what stands between two classes."""
    rest = iter(path)
    return all(key in rest for key in keys)


def _entries(node: yaml.Node | None, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str | None, int]]:
    """Every key of a YAML document, with those above it, the text that it has, if it is one, and its line."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _entries(item, above)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*above, str(key.value))
            yield path, value.value if isinstance(value, yaml.ScalarNode) else None, key.start_mark.line + 1
            yield from _entries(value, path)
