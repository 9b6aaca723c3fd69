"""Reading a sweep file: YAML, overrides, interpolations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lori_pl.errors import LoriError, one_line


def read_fields(path: Path, fields: Sequence[str], overrides: Sequence[str]) -> dict[Any, Any]:
    """Reads a sweep file's fields, overrides applied and interpolations resolved.

    Args:
        path: The file.
        fields: Names of the fields that there may be.
        overrides: ``FIELD=VALUE`` each.

    Raises:
        LoriError: The file is missing or no YAML, or an override or an interpolation is wrong.
    """
    content = _read_mapping(path, fields)
    for override in overrides:
        _override(path, content, override, fields)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(content), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise LoriError(f"{path}: {one_line(error)}: correct the interpolation or the value") from error
    assert isinstance(resolved, dict)
    return resolved


def _read_mapping(path: Path, fields: Sequence[str]) -> dict[Any, Any]:
    with reading(path, "sweep file"):
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(content, dict):
        raise LoriError(f"{path}: a sweep file is a mapping of fields ({', '.join(fields)}), not a list")
    return content


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Tell in one line why a YAML file cannot be read.

    Args:
        path: The file.
        kind: What the file is, for the message.

    Raises:
        LoriError: The file is missing or no YAML.
    """
    try:
        yield
    except OSError as error:
        raise LoriError(f"{path}: cannot read this {kind} ({error.strerror or error}): check the path") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise LoriError(f"{path}{line}: this {kind} is no YAML ({error.problem}): correct the line") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise LoriError(f"{path}: this {kind} is no YAML ({one_line(error)}): correct it") from error


def _override(path: Path, content: dict[Any, Any], override: str, fields: Sequence[str]) -> None:
    key, equals, text = override.partition("=")
    # The keys inside these are dotted themselves, so the longest prefix is the place and the rest is one key.
    places = ("search.space.", "search.", "fixed.", "grid.")
    place = next((p for p in places if key.startswith(p)), "")
    entry = key[len(place) :]
    if not equals or not entry or (not place and entry not in fields):
        raise LoriError(
            f"--override {override}: expected FIELD=VALUE with a field of {path}, such as seeds=[0] or "
            f"fixed.trainer.max_steps=10"
        )
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise LoriError(f"--override {override}: the value is no YAML ({one_line(error)}): quote it") from error
    assert isinstance(value, dict)
    target = content
    for part in filter(None, place.split(".")):
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise LoriError(f"{path}, field '{place[:-1]}': expected a mapping, got {target!r}")
    target[entry] = value["value"]
