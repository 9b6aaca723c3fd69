"""What a parsed model config says about the data that it needs: LightningCLI links the one to the other by it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from lori_pl.methods import Method


def fields(node: Any) -> Mapping[str, Any]:
    """The fields of a parsed class or dataclass, however jsonargparse wraps it."""
    return (node.get("init_args") or node) if node else {}


def method_class(model: Mapping[str, Any]) -> type[Method]:
    """The method that a parsed model config names."""
    module, _, name = str(model["class_path"]).rpartition(".")
    found: type[Method] = getattr(importlib.import_module(module), name)
    return found


def _given_class(model: Mapping[str, Any] | None) -> type[Method] | None:
    """The method of a parsed model config; ``None`` from one that names none yet."""
    return method_class(model) if model and model.get("class_path") else None


def uses_markers(model: Mapping[str, Any] | None) -> bool:
    """Whether the method of a parsed model config surrounds its thought with ``<bot>`` and ``<eot>``."""
    method = _given_class(model)
    return method is not None and method.uses_markers()


def requires_rationale(model: Mapping[str, Any] | None) -> bool:
    """Whether training under a parsed model config needs rationales."""
    method = _given_class(model)
    return method is not None and method.requires_rationale(model or {})


def reads_pieces(model: Mapping[str, Any] | None) -> bool:
    """Whether the method of a parsed model config reads the explicit sequences in pieces."""
    method = _given_class(model)
    return method is not None and method.reads_pieces


def teacher_tokenizer(model: Mapping[str, Any] | None) -> str | None:
    """The teacher's tokenizer in a parsed model config, if it has a teacher."""
    return _tokenizer(fields(model).get("teacher"))


def student_tokenizer(model: Mapping[str, Any] | None) -> str:
    """The student's tokenizer in a parsed model config: its own, or that of the teacher that it starts from."""
    return _tokenizer(fields(model).get("backbone")) or teacher_tokenizer(model) or ""


def teacher_cache(model: Mapping[str, Any] | None) -> str | None:
    """The cache of the teacher's statistics in a parsed model config, if it has one."""
    return fields(model).get("cache")


def teacher_revision(model: Mapping[str, Any] | None) -> str | None:
    """The revision of the teacher's tokenizer."""
    return fields(fields(model).get("teacher")).get("revision")


def student_revision(model: Mapping[str, Any] | None) -> str | None:
    """The revision of the student's tokenizer."""
    backbone = fields(fields(model).get("backbone"))
    return backbone.get("revision") if _tokenizer(backbone) else teacher_revision(model)


def _tokenizer(backbone: Any) -> str | None:
    given = fields(backbone)
    return given.get("tokenizer") or given.get("name")
