"""The embedded world: word problems whose answer needs a chain of arithmetic, in the GSM8K-Aug format.

A problem is an *arithmetic skeleton* (a start value and a chain of operators with operands) put into words:

    Ann has 4 apples . She buys 3 more . Then the pile grows 2 times . How many apples does she have ?
    <<4+3=7>> <<7*2=14>> #### 14

Every value lies in 0..99 and is one token. The split of a problem is a function of its skeleton alone, so train,
validation and test are disjoint by skeleton whatever their sizes, seeds and words.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Literal

from lori_pl.data.problem import Problem
from lori_pl.errors import LoriError

Split = Literal["train", "validation", "test"]
Skeleton = tuple[int, tuple[tuple[str, int], ...]]

VALUES = 100
NAMES = (("Ann", "She"), ("Bob", "He"), ("Cleo", "She"), ("Dan", "He"), ("Eve", "She"), ("Finn", "He"))
OBJECTS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
SENTENCES: dict[str, tuple[str, ...]] = {
    "+": ("{who} buys {n} more .", "{who} finds {n} .", "{who} gets {n} ."),
    "-": ("{who} loses {n} .", "{who} sells {n} .", "{who} gives {n} away ."),
    "*": ("The pile grows {n} times .", "{who} makes it {n} times as many ."),
    "/": ("The pile shrinks {n} times .", "{who} keeps one part of {n} ."),
}
DISTRACTORS = ("{other} has {n} {object} .", "The day has {n} hours .")
START = "{who} has {n} {object} ."
QUESTION = "How many {object} does {who} have ?"
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
    words += [word for pair in NAMES for word in pair] + list(OBJECTS)
    return [*"+-*/=", "<<", ">>", "####", ",", *dict.fromkeys(words)]


def skeleton_split(skeleton: Skeleton) -> Split:
    """Assigns a skeleton to its split by hash: 90 % train, 5 % validation, 5 % test."""
    bucket = int.from_bytes(hashlib.sha256(repr(skeleton).encode()).digest()[:4], "big") % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


def apply(value: int, operator: str, operand: int) -> int:
    """Applies one operation of a chain to the running value (division is exact by construction)."""
    match operator:
        case "+":
            return value + operand
        case "-":
            return value - operand
        case "*":
            return value * operand
    return value // operand


def _operands(value: int, operator: str, limit: int, largest: int) -> range | list[int]:
    """Operands that keep the next value in 1..limit; factors from 2 to 5, division exact."""
    match operator:
        case "+":
            return range(1, min(largest, limit - value) + 1)
        case "-":
            return range(1, min(largest, value - 1) + 1)
        case "*":
            return [n for n in range(2, 6) if value * n <= limit]
    return [n for n in range(2, 6) if value % n == 0]


def _skeleton(rng: random.Random, length: int, operators: str, limit: int, largest: int) -> Skeleton:
    value = start = rng.randint(2, min(largest, limit))
    chain: list[tuple[str, int]] = []
    for _ in range(length):
        choices = {op: operands for op in operators if (operands := _operands(value, op, limit, largest))}
        operator = rng.choice(list(choices))
        operand = rng.choice(choices[operator])
        chain.append((operator, operand))
        value = apply(value, operator, operand)
    return start, tuple(chain)


def _words(rng: random.Random, skeleton: Skeleton, distractors: int) -> Problem:
    start, chain = skeleton
    name, pronoun = rng.choice(NAMES)
    thing = rng.choice(OBJECTS)
    other = rng.choice([n for n, _ in NAMES if n != name])
    sentences = [START.format(who=name, n=start, object=thing)]
    steps, value = [], start
    for operator, operand in chain:
        sentences.append(rng.choice(SENTENCES[operator]).format(who=pronoun, n=operand))
        result = apply(value, operator, operand)
        steps.append(f"<<{value}{operator}{operand}={result}>>")
        value = result
    for _ in range(distractors):
        text = rng.choice(DISTRACTORS).format(other=other, n=rng.randint(2, 24), object=thing)
        sentences.insert(rng.randint(1, len(sentences)), text)
    sentences.append(QUESTION.format(object=thing, who=name))
    return Problem(id="", question=" ".join(sentences), steps=steps, answer=str(value))


def synthetic_stream(
    seed: int,
    split: Split | None = None,
    min_steps: int = 3,
    max_steps: int = 7,
    operators: str = "+-*",
    limit: int = VALUES - 1,
    largest_operand: int = VALUES - 1,
    distractors: int = 0,
) -> Iterator[Problem]:
    """Yields problems of the embedded world without end, deterministically by seed.

    Args:
        seed: Seed of the stream.
        split: Only skeletons of this split; ``None`` for all.
        min_steps: Shortest chain.
        max_steps: Longest chain; lengths are drawn evenly from ``min_steps`` to ``max_steps``.
        operators: The operators that occur, of ``+-*/``.
        limit: Largest value, at most 99 (one token a number).
        largest_operand: Largest start value and operand of ``+`` and ``-``.
        distractors: Sentences a problem with a number that plays no part.

    Raises:
        LoriError: If an argument is out of range.
    """
    if not 1 <= min_steps <= max_steps:
        raise LoriError(f"synthetic: need 1 <= min_steps <= max_steps, got {min_steps} and {max_steps}")
    if set(operators) - set(SENTENCES) or not set("+-") <= set(operators):
        # without one of the two a chain can get stuck at a bound
        raise LoriError(f"synthetic: operators must be of '+-*/' with '+' and '-' among them, got '{operators}'")
    if not 5 <= limit < VALUES or not 2 <= largest_operand < VALUES or distractors < 0:
        raise LoriError(
            f"synthetic: need 5 <= limit <= 99, 2 <= largest_operand <= 99 and distractors >= 0, "
            f"got {limit}, {largest_operand} and {distractors}"
        )
    rng = random.Random(f"lori_pl synthetic {seed} {split}")
    count = 0
    while True:
        length = rng.randint(min_steps, max_steps)
        skeleton = _skeleton(rng, length, operators, limit, largest_operand)
        if split is not None and skeleton_split(skeleton) != split:
            continue
        problem = _words(rng, skeleton, distractors)
        yield Problem(f"synthetic/{split or 'all'}/{seed}/{count}", problem.question, problem.steps, problem.answer)
        count += 1


def synthetic_problems(n: int, seed: int, split: Split | None = None, **world: int | str) -> list[Problem]:
    """Returns the first ``n`` problems of :func:`synthetic_stream`.

    Args:
        n: Number of problems.
        seed: Seed of the stream.
        split: Only skeletons of this split; ``None`` for all.
        **world: Further arguments of :func:`synthetic_stream`.
    """
    stream = synthetic_stream(seed, split, **world)  # type: ignore[arg-type]
    return [next(stream) for _ in range(n)]
