"""What terms measure on the training rationales before training: centre, scale and factors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import track

from lori_pl.alignment import Signals, Term
from lori_pl.arithmetic import SAMPLES, Arithmetic, can_count
from lori_pl.sharding import assembled

if TYPE_CHECKING:
    from lori_pl.methods.distillation import Distillation

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


@dataclass
class MeasuringCost:
    """What the measuring took of this process.

    Args:
        seconds: Seconds.
        operations: Floating-point operations, those of `SAMPLES` batches of each sweep standing for all; ``None`` where
            they cannot be counted.
    """

    seconds: float = 0.0
    operations: float | None = 0.0


def measure_on_rationales(method: Distillation) -> MeasuringCost:
    """Takes the terms of a method that is about to be trained through their sweeps, on ``statistics_problems``.

    Args:
        method: The method, with its Trainer and data.

    Returns:
        What it took, nothing where all terms were fitted already.
    """
    fitting = [term for term in method.active_terms if not term.is_fitted]
    if not fitting:
        return MeasuringCost()
    begun, counted, looks = time.perf_counter(), Arithmetic(), can_count(method)
    loader = method.data.statistics_dataloader(method.statistics_problems)
    wants_student = any(term.observes_student for term in fitting)
    # sharded weights are put together by all: a process that has a batch less looks at its last once more
    most = method.student.most
    more = 0 if most is None else most(len(loader)) - len(loader)
    every = max(1, len(loader) // SAMPLES)

    def setting() -> AbstractContextManager[None]:
        return assembled(method, method.terms)

    def batches(sweep: int) -> Iterator[Observed]:
        label = f"measuring the rationales, pass {sweep + 1}"
        for number, batch in enumerate(track(loader, label, disable=not method.trainer.is_global_zero, transient=True)):
            last = method.trainer.strategy.batch_to_device(batch)
            counting = counted.counting() if looks and number % every == 0 else nullcontext()
            with counting, method.trainer.precision_plugin.forward_context():  # what a step sees
                seen = method.observed(last, wants_student)
            yield seen
        for _ in range(more):
            with method.trainer.precision_plugin.forward_context():
                method.observed(last, wants_student)
            with setting():
                pass

    measure(method.named_terms, batches, setting)
    scale = len(loader) / len(range(0, len(loader), every))
    return MeasuringCost(time.perf_counter() - begun, counted.total * scale if looks else None)
