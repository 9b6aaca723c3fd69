"""What the parser does not do about null: it hands some on as a text, and takes it for fields that cannot be null."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from lori_pl.errors import LoriError

_QUOTE = "a flag is read as YAML, where # begins a comment, so quote it twice:"
_NESTED = re.compile(
    r"--model\.(?:init_args\.)?(?P<part>backbone|teacher|decoder|stages)\.(?P<fields>[\w.]+)(?:=(?P<value>.*))?", re.S
)
"""A field of a model's dataclasses, some of which may be null."""


def nulls_in_mappings(arguments: Sequence[str]) -> list[str]:
    """Writes ``--model.backbone.name null`` as ``--model.backbone '{"name": null}'``.

    That changes that field alone, too; jsonargparse hands the first form on within the model's class as the text
    ``None``.

    Args:
        arguments: A command line.
    """
    written, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        found = _NESTED.fullmatch(argument)
        apart = found is not None and found["value"] is None
        if found is None or (rest[:1] if apart else [found["value"]]) != ["null"]:
            written.append(argument)
            continue
        if apart:
            rest.pop(0)
        nested: Any = None
        for field in reversed(found["fields"].split(".")):
            nested = {field: nested}
        written += [f"--model.{found['part']}", json.dumps(nested)]
    return written


def check_nulls(node: Any, place: str, kind: type | None = None) -> None:
    """Refuses null for an argument that takes none, in a parsed config and all classes that it describes.

    Args:
        node: A parsed class (``class_path`` and ``init_args``), the arguments of ``kind``, or values that hold such.
        place: Where it stands, for messages.
        kind: The class whose arguments these are, where the node does not say.

    Raises:
        LoriError: Naming the first, with what it takes.
    """
    if isinstance(node, list):
        for number, each in enumerate(node):
            check_nulls(each, f"{place}[{number}]")
    if not hasattr(node, "items"):
        return
    if isinstance(path := node.get("class_path"), str):
        module, _, name = path.rpartition(".")
        found, node = getattr(importlib.import_module(module), name, None), node.get("init_args") or {}
        kind = found if isinstance(found, type) else None  # a function may stand for a class
    taken = dict(_taken(kind)) if kind is not None else {}
    for name, value in (node if isinstance(node, Mapping) else vars(node)).items():
        hint, default = taken.get(name, (Any, None))
        if value is None and default is not None and not _takes_null(hint):
            shown = "" if default is inspect.Parameter.empty else f", or leave it out for {default!r}"
            quoted = f" ({_QUOTE} --{place}.{name} '\"####\"')" if hint is str else ""
            raise LoriError(f"{place}.{name} is null, and takes {_named(hint)}: give one{shown}{quoted}")
        check_nulls(value, f"{place}.{name}", _dataclass_in(hint))


def _taken(kind: type) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The arguments of a class, those that it hands on to its bases included: type and default by name."""
    for each in reversed(kind.__mro__):
        if (init := vars(each).get("__init__")) is None:
            continue
        try:
            hints = typing.get_type_hints(init)
        except (NameError, TypeError):  # a type that is imported for checkers alone; object's own
            continue
        for name, parameter in inspect.signature(init).parameters.items():
            if name in hints:
                yield name, (hints[name], parameter.default)


def _takes_null(hint: Any) -> bool:
    allowed = (hint, *typing.get_args(hint))
    return any(each in allowed for each in (Any, object, None, type(None)))


def _dataclass_in(hint: Any) -> type | None:
    found = [each for each in (hint, *typing.get_args(hint)) if isinstance(each, type) and is_dataclass(each)]
    return found[0] if found else None


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
