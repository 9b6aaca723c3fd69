"""Multiplication of two numbers of equal length, read from files or generated."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import LoadedSplit, OnBadRow, OnMissingRationale, RowSource, Split
from lori_pl.data.sources.fields import BadRow, Row, split_text_row, text_rows
from lori_pl.errors import LoriError

_QUESTION = re.compile(r"[0-9](?: [0-9])* \* [0-9](?: [0-9])*")


class Multiplication(RowSource):
    """Products of two numbers, digits apart and reversed, with partial sums (Deng et al., arXiv 2405.14838).

    Format: text, a problem a line; 2365 x 4347 = 10280655 is ``5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1
    ) + 0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 ) + 0 0 0 0 6 4 9 0 #### 5 5 6 0 8 2 0 1``. A step is one partial product, with
    the sum so far in parentheses. Origin: github.com/da03/Internalize_CoT_Step_by_Step. Licence: MIT.

    Split rule: with a `path` a file each: `train.txt`, `valid.txt`, `test.txt`, or one file ending in `_train.txt`,
    `_valid.txt`, `_test.txt`. Without, problems are generated in the same format: unordered pairs of operands are drawn
    without replacement, first for test, then for validation, then for training, so that no pair, turned round or
    not, stands in two splits and a larger training set leaves the other two as they are. With a `path` and
    `generate_train`, training problems are generated of pairs that neither the validation nor the test file has.

    Args:
        path: The folder that holds the files; empty to generate.
        digits: Digits of each generated operand.
        train_size: Generated training problems.
        validation_size: Generated validation problems.
        test_size: Generated test problems.
        seed: Seed of the generated problems.
        generate_train: Generate the training problems also where `path` holds files for validation and test.
        on_bad_row: A malformed row is an `error`, or `skip` counts and leaves it out.
        on_missing_rationale: A training problem without a rationale: `drop` it (and count it), or `error`; the source
            has no `natural`-language steps. Evaluation never needs a rationale.
    """

    name: ClassVar[str] = "multiplication"
    file_names: Mapping[Split, Sequence[str]] = {
        "train": ("train.txt",),
        "validation": ("valid.txt",),
        "test": ("test.txt",),
    }

    def __init__(
        self,
        path: str = "",
        digits: int = 4,
        train_size: int = 100_000,
        validation_size: int = 1_000,
        test_size: int = 1_000,
        seed: int = 0,
        generate_train: bool = False,
        on_bad_row: OnBadRow = "error",
        on_missing_rationale: OnMissingRationale = "drop",
    ) -> None:
        super().__init__(path, on_bad_row, on_missing_rationale)
        self.digits = digits
        self.sizes: dict[Split, int] = {"test": test_size, "validation": validation_size, "train": train_size}
        self.seed = seed
        self.generate_train = generate_train
        if digits < 1:
            raise LoriError(f"multiplication: digits is {digits}; set it to 1 or more")
        for split, size in self.sizes.items():
            if size < 0:
                raise LoriError(f"multiplication: {split}_size is {size}; set it to 0 or more")
        self.low, self.high = 10 ** (digits - 1), 10**digits - 1
        numbers = self.high - self.low + 1
        self.pairs, wanted = numbers * (numbers + 1) // 2, sum(self.sizes.values())
        if not self.has_path and wanted > self.pairs:
            raise LoriError(
                f"multiplication: {wanted} problems wanted, but there are {self.pairs} pairs of {digits}-digit "
                "numbers; set train_size, validation_size and test_size lower, or digits higher"
            )

    def rows(self, file: Path) -> Iterable[Row]:
        """Returns the lines of a file."""
        return text_rows(file)

    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of one line.

        Raises:
            BadRow: A separator is missing or doubled, or the question is no product.
        """
        question, rationale, answer = split_text_row(value)
        if not _QUESTION.fullmatch(question):
            raise BadRow("question", f"should be two numbers in digits apart with '*' between, but is {question!r}")
        steps = [step.strip() for step in re.split(r"(?=\+ )", rationale) if step.strip()]
        return Problem(problem_id, question, steps, answer)

    def files(self, split: Split) -> list[Path]:
        """Returns the file of a split.

        Raises:
            LoriError: There is no such split, folder or file, or several files could be meant.
        """
        if split in self.file_names and self.path.is_dir():
            own = self.file_names[split][0]
            named = sorted(self.path.glob(f"*_{own}"))
            if not (self.path / own).is_file() and named:
                if len(named) > 1:
                    names = ", ".join(file.name for file in named)
                    raise LoriError(
                        f"multiplication: {self.path} has several {split} files ({names}); "
                        f"keep one size in a folder, or name the one to use {own}"
                    )
                return named
        return super().files(split)

    def load(self, split: Split) -> LoadedSplit:
        """Returns the problems of one split, read or generated.

        Raises:
            LoriError: A file is missing or a row is malformed, there is no such split, or it is empty.
        """
        if self.has_path and not (self.generate_train and split == "train"):
            return super().load(split)
        if split not in get_args(Split):
            raise LoriError(f"multiplication: no split '{split}'; use one of {', '.join(get_args(Split))}")
        if self.sizes[split] == 0:
            raise LoriError(f"multiplication: the {split} split is empty; set {split}_size above 0")
        generator = random.Random(self.seed)
        if self.has_path:
            return LoadedSplit(self._generated("train", generator, self._pairs_of_files()))
        seen: set[tuple[int, int]] = set()
        problems: list[Problem] = []
        for drawn in self.sizes:
            problems = self._generated(drawn, generator, seen)
            if drawn == split:
                break
        return LoadedSplit(problems)

    def _generated(self, split: Split, generator: random.Random, seen: set[tuple[int, int]]) -> list[Problem]:
        """Generates a split of pairs that were not seen, and adds them to these."""
        problems: list[Problem] = []
        while len(problems) < self.sizes[split]:
            first, second = (generator.randint(self.low, self.high) for _ in range(2))
            pair = (min(first, second), max(first, second))
            if pair in seen:
                continue
            seen.add(pair)
            name = f"multiplication/{split}/{len(problems)}"
            problems.append(multiplication_problem(first, second, self.digits, name))
        return problems

    def _pairs_of_files(self) -> set[tuple[int, int]]:
        """Pairs of operands, the smaller first, of the validation and the test file."""
        held_out: tuple[Split, ...] = ("validation", "test")
        questions = [
            problem.question for split in held_out for problem in super(Multiplication, self).load(split).problems
        ]
        pairs = [sorted(int(number.replace(" ", "")[::-1]) for number in question.split("*")) for question in questions]
        seen = {(first, second) for first, second in pairs}
        taken = sum(self.low <= first and second <= self.high for first, second in seen)
        if not taken:
            raise LoriError(
                f"multiplication: the files in {self.path} have no product of {self.digits}-digit numbers, which are "
                "to be generated for training; set digits to theirs"
            )
        left = self.pairs - taken
        if self.sizes["train"] > left:
            raise LoriError(
                f"multiplication: {self.sizes['train']} training problems wanted, but there are {left} pairs of "
                f"{self.digits}-digit numbers that the files in {self.path} do not have; set train_size lower"
            )
        return seen


def multiplication_problem(first: int, second: int, digits: int, problem_id: str = "multiplication") -> Problem:
    """Writes a product out as the files do: digits apart, the lowest first, zeros up to a fixed width.

    Step i, counted from 0, is the first number times digit i of the second times 10^i, in `digits` + 1 + i digits;
    every step but the first and the last adds the sum so far, in as many digits.

    Args:
        first: The first operand, of at most `digits` digits.
        second: The second operand, of at most `digits` digits.
        digits: Digits of each operand.
        problem_id: The problem's id.
    """
    steps: list[str] = []
    total = 0
    for place in range(digits):
        product = first * (second // 10**place % 10) * 10**place
        total += product
        step = ("+ " if place else "") + _reversed_digits(product, digits + 1 + place)
        if 0 < place < digits - 1:
            step += f" ( {_reversed_digits(total, digits + 1 + place)} )"
        steps.append(step)
    question = f"{_reversed_digits(first, digits)} * {_reversed_digits(second, digits)}"
    return Problem(problem_id, question, steps, _reversed_digits(total, 2 * digits))


def _reversed_digits(number: int, width: int) -> str:
    return " ".join(str(number).zfill(width)[::-1])
