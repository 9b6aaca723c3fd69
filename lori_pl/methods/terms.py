"""The terms of a loss: which of them weigh something, what each is called, and how they are measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lori_pl.alignment import Signals, Term
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
            names no loss.
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


Observed = tuple[Mapping[str, Signals], Signals | None]
"""The teacher's side of a batch by term, and the untrained student's where a term observes it."""


def measure(
    terms: Mapping[str, Term],
    batches: Callable[[int], Iterable[Observed]],
    setting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Takes every term that is not fitted yet through its sweeps.

    Args:
        terms: The terms by name.
        batches: Gives what each sweep, by its number, observes.
        setting: Where terms may read and set their weights: around each batch, and as a sweep begins and ends.
    """
    fitting = {name: term for name, term in terms.items() if not term.is_fitted}
    for sweep in range(max((term.sweeps for term in fitting.values()), default=0)):
        at_work = {name: term for name, term in fitting.items() if sweep < term.sweeps}
        with setting():
            for term in at_work.values():
                term.begin_sweep(sweep)
        for teacher, student in batches(sweep):
            with setting():
                for name, term in at_work.items():
                    term.observe(sweep, teacher[name], student)
        with setting():
            for term in at_work.values():
                term.end_sweep(sweep)
