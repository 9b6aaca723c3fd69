"""What a parsed model config says of the data that it reads: LightningCLI links the one to the other by it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from lori_pl.commands.parser_errors import NO_METHOD
from lori_pl.errors import LoriError
from lori_pl.methods import Method


def fields(node: Any) -> Mapping[str, Any]:
    """The fields of a parsed class or dataclass, however jsonargparse wraps it."""
    return (node.get("init_args") or node) if node else {}


def method_class(model: Mapping[str, Any]) -> type[Method]:
    """The method that a parsed model config names."""
    module, _, name = str(model["class_path"]).rpartition(".")
    found: type[Method] = getattr(importlib.import_module(module), name)
    return found


def reader(model: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a parsed model config says of `lori_pl.data.datamodule.Reader`: its fields by name.

    The student's tokenizer is its own, or that of the teacher that it starts from; empty where neither is given.

    Raises:
        LoriError: If no method is chosen, or the one that is does not say its name and how its student reasons.
    """
    given = fields(model)
    teacher, backbone = fields(given.get("teacher")), fields(given.get("backbone"))
    own = backbone if _tokenizer(backbone) else teacher
    # none is named before the first config file is read
    method = method_class(model) if model and model.get("class_path") else None
    if method is Method:
        raise LoriError(NO_METHOD)
    for name in ("name", "reasoning"):
        if method is not None and not hasattr(method, name):
            raise LoriError(f"{method.__name__} does not set '{name}', as a method has to (docs/extend.md)")
    return {
        "tokenizer": _tokenizer(own) or "",
        "revision": own.get("revision"),
        "teacher_tokenizer": _tokenizer(teacher),
        "teacher_revision": teacher.get("revision"),
        "teacher_cache": given.get("cache"),
        "markers": method is not None and method.uses_markers(),
        "needs_rationale": method is not None and method.requires_rationale(model or {}),
        "pieces": method is not None and method.reads_pieces,
    }


def _tokenizer(backbone: Mapping[str, Any]) -> str | None:
    return backbone.get("tokenizer") or backbone.get("name")
