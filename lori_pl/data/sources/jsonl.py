"""Problems from JSON files of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import OnBadRow, OnMissingRationale, RowSource, Split
from lori_pl.data.sources.fields import answer_field, question_hash, steps_field, text_field


class JSONL(RowSource):
    """Any JSON file: a record a line, or one list of records; names of files and fields are open.

    Format: a record has a question (text), an answer (text, of which what follows ``####`` counts, if anything does; or
    a number), and it may have a rationale: a list of texts, a text of nothing but ``<<...>>`` annotations, or a text
    with a step a line (before ``####``, if it is there). Origin and licence: those of the file.

    Split rule: a file each. Where `path` is one file, a hash of the question divides it for good: 80 % training, 10 %
    validation, 10 % test, and equal questions stay together.

    Args:
        path: The folder that holds the files, or one file to divide.
        train_file: Name of the training file in the folder.
        validation_file: Name of the validation file in the folder.
        test_file: Name of the test file in the folder.
        question_field: Name of the question's field.
        rationale_field: Name of the rationale's field.
        answer_field: Name of the answer's field.
        on_bad_row: A malformed row is an `error`, or `skip` counts and leaves it out.
        on_missing_rationale: A training problem without a rationale: `drop` it (and count it), or `error`; the source
            has no `natural`-language steps. Evaluation never needs a rationale.
    """

    name: ClassVar[str] = "jsonl"
    one_file_makes_all: ClassVar[bool] = True

    def __init__(
        self,
        path: str = "",
        train_file: str = "train.jsonl",
        validation_file: str = "validation.jsonl",
        test_file: str = "test.jsonl",
        question_field: str = "question",
        rationale_field: str = "rationale",
        answer_field: str = "answer",
        on_bad_row: OnBadRow = "error",
        on_missing_rationale: OnMissingRationale = "drop",
    ) -> None:
        super().__init__(path, on_bad_row, on_missing_rationale)
        self.file_names = {"train": (train_file,), "validation": (validation_file,), "test": (test_file,)}
        self.question_field, self.rationale_field, self.answer_field = question_field, rationale_field, answer_field

    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of one record.

        Raises:
            BadRow: A field is missing or malformed.
        """
        question = text_field(value, self.question_field)
        answer = answer_field(value, self.answer_field)
        return Problem(problem_id, question, steps_field(value, self.rationale_field), answer)

    def remedy_of_empty(self, elsewhere: int, bare: Any) -> str:
        """What to do where a split has no problem; see `RowSource.remedy_of_empty`."""
        if bare is not None and self.rationale_field not in bare:
            return (
                f"rationale_field is '{self.rationale_field}', and the first such record has "
                f"{', '.join(map(str, list(bare)[:8]))}: name the field that holds the rationale"
            )
        if elsewhere and bare is None:
            return (
                f"a hash of the question divides one file, and put all {elsewhere} of its problems into other splits: "
                "give more problems, or a folder with a file for each split"
            )
        return super().remedy_of_empty(elsewhere, bare)

    def files(self, split: Split) -> list[Path]:
        """Returns the file of a split, or the one file that holds all.

        Raises:
            LoriError: There is no such split, folder or file.
        """
        return [self.path] if self.path.is_file() else super().files(split)

    def in_split(self, problem: Problem, split: Split) -> bool:
        """Whether the question's hash puts a problem of the one file into the split."""
        if not self.path.is_file():
            return True
        tenth = int(question_hash(problem.question), 16) % 10
        return split == {0: "validation", 1: "test"}.get(tenth, "train")
