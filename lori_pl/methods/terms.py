"""The terms of a loss: which of them weigh something, and what each is called."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from lori_pl.alignment import AnchorAlignment, LowRankAlignment, Term
from lori_pl.errors import LoriError

RESERVED = frozenset({"task", "loss", "distillation", "teacher", "keys", "values", "steps", "stage"})
"""What the methods call their own losses."""


def weighs(term: Any, weights: Mapping[str, float]) -> bool:
    """Whether a term, or what a parsed config says of it, has a weight that is not zero under these overrides."""
    if not isinstance(term, Term):
        arguments = dict(term.get("init_args") or {})
        if not all(isinstance(value, str | int | float | None) for value in arguments.values()):
            return True  # only the parser can build it
        module, _, name = str(term["class_path"]).rpartition(".")
        term = getattr(importlib.import_module(module), name)(**arguments)
    return any(weights.get(name, weight) for name, weight in term.weights.items())


def weighted_terms(terms: list[Term], weights: dict[str, float]) -> list[Term]:
    """Applies weights by loss name and drops terms that weigh nothing, unless one that does rests on them.

    Raises:
        LoriError: If a term needs nothing, or what there is not; if two terms give losses of one name; or if a weight
            names no loss or is negative.
    """
    owners: dict[str, Term] = {}
    for term in terms:
        if not term.needs or term.needs - {"trajectory", "anchor"}:
            raise LoriError(
                f"{type(term).__name__}: needs is {sorted(term.needs)}; let it name 'trajectory', 'anchor' or both"
            )
        for name in term.weights:
            if name in owners or name in RESERVED:
                raise LoriError(f"model.terms: two terms give a loss named '{name}'; leave one out or rename its loss")
            owners[name] = term
    if unknown := sorted(set(weights) - set(owners)):
        raise LoriError(f"model.weights names {unknown}, but the terms give {sorted(owners)}")
    for name, weight in weights.items():
        owners[name].weights[name] = float(weight)
    for name, term in owners.items():
        if not term.weights[name] >= 0:
            raise LoriError(
                f"the loss '{name}' of {type(term).__name__} has weight {term.weights[name]}: give 0 or more "
                f"(model.weights.{name})"
            )
    weighing = [term for term in terms if term.weighs]
    return [term for term in terms if term.weighs or any(other.rests_on(term) for other in weighing)]


def named_terms(terms: Iterable[Term]) -> dict[str, Term]:
    """Terms by the name of their class; a second of one class is called ``NAME2``, and so on."""
    named: dict[str, Term] = {}
    for term in terms:
        name, number = type(term).__name__, 1
        while (key := name if number == 1 else f"{name}{number}") in named:
            number += 1
        named[key] = term
    return named


def by_part(terms: Iterable[Term]) -> tuple[set[str], set[str], list[str]]:
    """Names of the terms that are LoRi's anchor, of those that are its rationale term, and of all others."""
    named = named_terms(terms)
    anchor, rationale = (
        {name for name, term in named.items() if isinstance(term, kind)} for kind in (AnchorAlignment, LowRankAlignment)
    )
    return anchor, rationale, [name for name in named if name not in anchor | rationale]
