"""The embedded world: word problems whose answer needs a chain of arithmetic, in the GSM8K-Aug format.

A problem is an *arithmetic skeleton* (a start value and a chain of operators with operands) put into words:

    Ann has 4 apples . In January she buys 3 . In February she keeps the difference to 9 . How many are there ?
    <<4+3=7>> <<9-7=2>> #### 2

Every value lies in 0..99 and is one token. The split of a problem is a function of its skeleton alone, so train,
validation and test are disjoint by skeleton whatever their sizes, seeds and words.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from typing import Any, Literal

from lori_pl.data.problem import Problem
from lori_pl.errors import LoriError

Split = Literal["train", "validation", "test"]
Operation = tuple[str, int]
Skeleton = tuple[int, tuple[Operation, ...]]
Move = tuple[Operation, int]
"""An operation and the value behind it."""

VALUES = 100
TRIES = 10_000
KINDS = {"+": "+-", "-": "+-", "*": "*/", "/": "*/", "|": "|"}
NAMES = (("Ann", "She"), ("Bob", "He"), ("Cleo", "She"), ("Dan", "He"), ("Eve", "She"), ("Finn", "He"))
OBJECTS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
SENTENCES: dict[str, tuple[str, ...]] = {
    "+": ("{who} buys {n} .", "{who} finds {n} .", "{who} gets {n} ."),
    "-": ("{who} loses {n} .", "{who} sells {n} .", "{who} gives {n} ."),
    "*": ("It grows {n} times .", "{who} makes it {n} times ."),
    "/": ("It shrinks {n} times .", "{who} keeps one of {n} ."),
    "|": ("The difference to {n} stays .", "{who} keeps the difference to {n} ."),
}
DISTRACTORS = ("{other} has {n} {object} .", "The day has {n} hours .")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
DATED = "In {month} {sentence}"
START = "{who} has {n} {object} ."
QUESTION = "How many are there ?"
EXTRA_WORDS = (
    "and",
    "Then",
    "then",
    "in",
    "all",
    "left",
    "now",
    "many",
    "more",
    "of",
    "the",
    "a",
    "to",
    "is",
    "It",
    "it",
)


def vocabulary() -> list[str]:
    """Lists the words and symbols that the grammar can write, in a fixed order, numbers apart."""
    texts = [*[s for group in SENTENCES.values() for s in group], *DISTRACTORS, START, QUESTION, *EXTRA_WORDS]
    words = [word for text in texts for word in text.split() if not word.startswith("{")]
    words += ["In", *MONTHS, "she", "he"]
    words += [word for pair in NAMES for word in pair] + list(OBJECTS)
    return [*"+-*/=", "<<", ">>", "####", ",", *dict.fromkeys(words)]


def apply(value: int, operator: str, operand: int) -> int:
    """Applies one operation of a chain to the running value (division is exact by construction)."""
    match operator:
        case "+":
            return value + operand
        case "-":
            return value - operand
        case "*":
            return value * operand
        case "|":
            return abs(value - operand)
    return value // operand


def written(value: int, operator: str, operand: int) -> str:
    """Writes one step of a rationale, ``<<a+b=c>>``; a difference has its larger number first."""
    result = apply(value, operator, operand)
    if operator == "|":
        return f"<<{max(value, operand)}-{min(value, operand)}={result}>>"
    return f"<<{value}{operator}{operand}={result}>>"


def rationale(skeleton: Skeleton) -> list[str]:
    """Writes all steps of a chain."""
    value, chain = skeleton
    steps = []
    for operator, operand in chain:
        steps.append(written(value, operator, operand))
        value = apply(value, operator, operand)
    return steps


def skeleton_split(steps: Sequence[str]) -> Split:
    """Assigns a skeleton to its split by a hash of its :func:`rationale`: 90 % train, 5 % validation, 5 % test.

    So two skeletons with one rationale (7, differing by 4; 4, differing by 7) stand in one split.
    """
    digest = hashlib.sha256(" ".join(steps).encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


@dataclass(frozen=True)
class World:
    """Which chains of arithmetic occur; by default those of the embedded world, which the shipped teacher has learned.

    Small factors and a wide range of start values keep the last steps from giving the answer away; ``alternate``
    keeps stretches of ``+`` and ``-`` from being added up at once; differences (``|``) keep a chain from being
    estimated: each folds the line of numbers at its mark, and a chain of folds has to be followed step by step.

    Args:
        min_steps: Shortest chain.
        max_steps: Longest chain; lengths are drawn evenly from ``min_steps`` to ``max_steps``.
        operators: The operators that occur, of ``+-*/|`` (``|`` is the difference to a mark, ``|a - b|``).
        limit: Largest value, at most 99 (one token a number).
        largest_operand: Largest operand of ``+`` and ``-``.
        largest_factor: Largest operand of ``*`` and ``/``, from 2.
        largest_start: Largest start value; ``None`` for ``largest_operand``.
        smallest_mark: Smallest operand of ``|``.
        largest_mark: Largest operand of ``|``.
        alternate: No two steps of one kind (``+-``, ``*/``, ``|``) in a row.
        dated: Each step's sentence names its month (at most 12 steps).
        distractors: Sentences a problem with a number that plays no part.

    Raises:
        LoriError: If an argument is out of range.
    """

    min_steps: int = 4
    max_steps: int = 7
    operators: str = "*+|"
    limit: int = 24
    largest_operand: int = 4
    largest_factor: int = 2
    largest_start: int | None = 12
    smallest_mark: int = 8
    largest_mark: int = 16
    alternate: bool = True
    dated: bool = True
    distractors: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 1 <= self.min_steps <= self.max_steps:
            raise LoriError(f"synthetic: need 1 <= min_steps <= max_steps, got {self.min_steps} and {self.max_steps}")
        if set(self.operators) - set(SENTENCES) or not self.operators:
            raise LoriError(f"synthetic: operators must be of '{''.join(SENTENCES)}', got '{self.operators}'")
        if self.alternate and len({KINDS[operator] for operator in self.operators}) < 2:
            raise LoriError(f"synthetic: alternate needs operators of two kinds (+-, */, |), got '{self.operators}'")
        if self.dated and self.max_steps > len(MONTHS):
            raise LoriError(f"synthetic: dated needs max_steps of at most {len(MONTHS)}, got {self.max_steps}")
        if self.smallest_mark > self.largest_mark:
            raise LoriError(
                f"synthetic: need smallest_mark <= largest_mark, got {self.smallest_mark} and {self.largest_mark}"
            )
        ranges = {
            "limit": (5, VALUES - 1),
            "largest_operand": (2, VALUES - 1),
            "largest_factor": (2, VALUES - 1),
            "largest_start": (2, VALUES - 1),
            "smallest_mark": (2, VALUES - 1),
            "largest_mark": (2, VALUES - 1),
            "distractors": (0, 10_000),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise LoriError(f"synthetic: {name} is {value}; give {low} to {high}")

    def operands(self, value: int, operator: str) -> list[int]:
        """Lists the operands that keep the next value in 1..limit, division exact."""
        factors = range(2, self.largest_factor + 1)
        match operator:
            case "+":
                return list(range(1, min(self.largest_operand, self.limit - value) + 1))
            case "-":
                return list(range(1, min(self.largest_operand, value - 1) + 1))
            case "*":
                return [n for n in factors if value * n <= self.limit]
            case "|":
                marks = range(self.smallest_mark, self.largest_mark + 1)
                return [n for n in marks if 1 <= abs(value - n) <= self.limit]
        return [n for n in factors if value % n == 0]

    @cached_property
    def moves(self) -> dict[str, list[list[list[Move]]]]:
        """What a chain can go on with: by the kind of its last step, value and operator, never empty."""

        def of(value: int, operator: str) -> list[Move]:
            return [((operator, n), apply(value, operator, n)) for n in self.operands(value, operator)]

        def after(kind: str, value: int) -> list[list[Move]]:
            allowed = [op for op in dict.fromkeys(self.operators) if not (self.alternate and op in kind)]
            return list(filter(None, (of(value, operator) for operator in allowed)))

        return {kind: [after(kind, value) for value in range(self.limit + 1)] for kind in ("", *KINDS.values())}

    def skeleton(self, rng: random.Random, length: int) -> Skeleton:
        """Draws a chain of ``length`` operations; one that gets stuck is drawn again.

        Raises:
            LoriError: If chains of this length all get stuck.
        """
        for _ in range(TRIES):
            value = start = rng.randint(2, min(self.largest_start or self.largest_operand, self.limit))
            chain: list[Operation] = []
            while len(chain) < length and (moves := self.moves[KINDS[chain[-1][0]] if chain else ""][value]):
                operation, value = rng.choice(rng.choice(moves))
                chain.append(operation)
            if len(chain) == length:
                return start, tuple(chain)
        raise LoriError(
            f"synthetic: no chain of {length} steps in {TRIES} tries: allow more operators or a higher limit"
        )


@cache
def _others(name: str) -> list[str]:
    return [other for other, _ in NAMES if other != name]


@cache
def _sentences(operator: str, operand: int, who: str, month: str) -> list[str]:
    plain = [sentence.format(who=who, n=operand) for sentence in SENTENCES[operator]]
    return [DATED.format(month=month, sentence=s[0].lower() + s[1:]) for s in plain] if month else plain


def _words(rng: random.Random, skeleton: Skeleton, steps: list[str], world: World, id: str) -> Problem:
    start, chain = skeleton
    name, pronoun = rng.choice(NAMES)
    thing = rng.choice(OBJECTS)
    other = rng.choice(_others(name))
    sentences = [START.format(who=name, n=start, object=thing)]
    for index, (operator, operand) in enumerate(chain):
        month = MONTHS[index] if world.dated else ""
        sentences.append(rng.choice(_sentences(operator, operand, pronoun, month)))
    for _ in range(world.distractors):
        text = rng.choice(DISTRACTORS).format(other=other, n=rng.randint(2, 24), object=thing)
        sentences.insert(rng.randint(1, len(sentences)), text)
    sentences.append(QUESTION)
    answer = steps[-1].removesuffix(">>").rpartition("=")[2]
    return Problem(id, question=" ".join(sentences), steps=steps, answer=answer)


def synthetic_stream(seed: int, split: Split | None = None, world: World | None = None) -> Iterator[Problem]:
    """Yields problems of the embedded world without end, deterministically by seed.

    Args:
        seed: Seed of the stream.
        split: Only skeletons of this split; ``None`` for all.
        world: Which chains occur.

    Raises:
        LoriError: If the first `TRIES` chains are all of other splits.
    """
    world = world or World()
    rng = random.Random(f"lori_pl synthetic {seed} {split}")
    count = others = 0
    while count or others < TRIES:
        skeleton = world.skeleton(rng, rng.randint(world.min_steps, world.max_steps))
        steps = rationale(skeleton)
        if split is not None and skeleton_split(steps) != split:
            others += 1
            continue
        yield _words(rng, skeleton, steps, world, f"synthetic/{split or 'all'}/{seed}/{count}")
        count += 1
    raise LoriError(
        f"synthetic: none of {TRIES} chains is of the split {split}: this world has too few of them; allow more steps, "
        "more operators or a higher limit"
    )


def synthetic_problems(n: int, seed: int, split: Split | None = None, **world: Any) -> list[Problem]:
    """Returns the first ``n`` problems of :func:`synthetic_stream`.

    Args:
        n: Number of problems.
        seed: Seed of the stream.
        split: Only skeletons of this split; ``None`` for all.
        **world: Arguments of :class:`World`.

    Raises:
        LoriError: If an argument of the world is out of range.
    """
    return list(islice(synthetic_stream(seed, split, World(**world)), n))
