"""A cache that stands for a frozen teacher: with what it must have been built, and what terms take from it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from lori_pl.cache.store import TeacherCache
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.models.identity import teacher_identity

if TYPE_CHECKING:
    from lori_pl.data.datamodule import PairedDataModule
    from lori_pl.methods.distillation import Distillation


def cache_identity(method: Distillation, data: PairedDataModule, precision: str) -> dict[str, Any]:
    """What the teacher's statistics depend on in a run, as plain values.

    Args:
        method: The method.
        data: The data.
        precision: That of the Trainer.
    """
    identity: dict[str, Any] = {}
    if (teacher := method.teacher_backbone) is not None:
        tokenizer = load_tokenizer(teacher.tokenizer_name, False, teacher.revision)
        identity["teacher"] = teacher_identity(teacher, tokenizer, method.layers, precision)
    identity["data"] = {"template": dataclasses.asdict(method.template), "rationale_tokens": data.rationale_tokens}
    identity["statistics"] = {"problems": method.statistics_problems}
    identity["terms"] = {name: term.teacher_measured_with for name, term in method.named_terms.items()}
    return identity


def load_cached_terms(method: Distillation) -> None:
    """Takes the teacher's side of every term from the method's cache.

    Raises:
        LoriError: If a checkpoint brought another.
    """
    store = TeacherCache(str(method.cache))
    for name, term in method.named_terms.items():
        cached = store.state(name)
        if not term.is_fitted:
            term.load_teacher_state(cached)
            continue
        held = term.teacher_state()
        if not all(torch.equal(held[key].cpu(), value) for key, value in cached.items()):
            raise LoriError(
                f"{method.loaded_from} was trained with another {name} than that of the cache {method.cache}; give the "
                "cache that its run had"
            )
