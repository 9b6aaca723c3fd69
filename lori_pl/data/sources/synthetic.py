"""The embedded world as a source."""

from __future__ import annotations

from typing import Any, get_args

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import LoadedSplit, Source, Split
from lori_pl.data.synthetic import World, synthetic_problems
from lori_pl.errors import LoriError


class Synthetic(Source):
    """Word problems with chained arithmetic, generated (see `lori_pl.data.synthetic`); needs no files.

    Format: that of GSM8K-Aug, `<<a+b=c>>` steps. Licence: this project's. Splits: disjoint by arithmetic skeleton
    (90 : 5 : 5 by hash), each of its own size.

    Args:
        train: Number of training problems.
        validation: Number of validation problems.
        test: Number of test problems.
        seed: Seed of the problems, the same for all splits.
        min_steps: Shortest chain.
        max_steps: Longest chain; lengths are drawn evenly.
        operators: The operators that occur, of `+-*/|`; `|` is the difference to a mark.
        limit: Largest value, at most 99.
        largest_operand: Largest operand of `+` and `-`.
        largest_factor: Largest operand of `*` and `/`.
        largest_start: Largest start value; `null` for `largest_operand`.
        smallest_mark: Smallest mark, the operand of `|`.
        largest_mark: Largest mark.
        alternate: No two steps of one kind (`+-`, `*/`, `|`) in a row.
        dated: Each step's sentence names its month (at most 12 steps).
        distractors: Sentences a problem with a number that plays no part.
    """

    name = "synthetic"

    def __init__(
        self,
        train: int = 130_000,
        validation: int = 1024,
        test: int = 4096,
        seed: int = 0,
        min_steps: int = World.min_steps,
        max_steps: int = World.max_steps,
        operators: str = World.operators,
        limit: int = World.limit,
        largest_operand: int = World.largest_operand,
        largest_factor: int = World.largest_factor,
        largest_start: int | None = World.largest_start,
        smallest_mark: int = World.smallest_mark,
        largest_mark: int = World.largest_mark,
        alternate: bool = World.alternate,
        dated: bool = World.dated,
        distractors: int = World.distractors,
    ) -> None:
        self.sizes = {"train": train, "validation": validation, "test": test}
        self.seed = seed
        self.world: dict[str, Any] = {
            "min_steps": min_steps,
            "max_steps": max_steps,
            "operators": operators,
            "limit": limit,
            "largest_operand": largest_operand,
            "largest_factor": largest_factor,
            "largest_start": largest_start,
            "smallest_mark": smallest_mark,
            "largest_mark": largest_mark,
            "alternate": alternate,
            "dated": dated,
            "distractors": distractors,
        }

    def load(self, split: Split) -> LoadedSplit:
        """Generates the problems of one split.

        Raises:
            LoriError: The split is unknown or empty, or an argument of the world is out of range.
        """
        if split not in get_args(Split):
            raise LoriError(f"synthetic: no split '{split}'; use one of {', '.join(get_args(Split))}")
        if self.sizes[split] < 1:
            raise LoriError(f"synthetic: the {split} split is empty ({split}: {self.sizes[split]}); set it above 0")
        problems: list[Problem] = synthetic_problems(self.sizes[split], self.seed, split, **self.world)
        return LoadedSplit(problems)
