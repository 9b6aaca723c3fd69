"""Problems from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import OnBadRow, OnMissingRationale, RowSource, Split, Table
from lori_pl.data.sources.fields import Row, answer_field, steps_field, text_field
from lori_pl.errors import LoriError, one_line

_MOVING = ("main", "master", "head")


class Hub(RowSource):
    """Any data set of the Hugging Face hub, through the `datasets` library (``pip install -e '.[hub]'`` in the clone).

    Format: as of `JSONL`, a column a field. Origin and licence: those of the data set's card.

    Split rule: the data set's own splits, by the names given here; an empty name says that there is none.

    Args:
        path: The data set's id (`owner/name`), or a local folder that `datasets.load_dataset` reads.
        revision: The commit (or a tag) to load; a branch such as `main` is refused, since it moves.
        configuration: The data set's configuration, if it has several.
        train_split: Its name of the training split.
        validation_split: Its name of the validation split.
        test_split: Its name of the test split.
        question_field: Name of the question's column.
        rationale_field: Name of the rationale's column.
        answer_field: Name of the answer's column.
        on_bad_row: A malformed row is an `error`, or `skip` counts and leaves it out.
        on_missing_rationale: A training problem without a rationale: `drop` it (and count it), or `error`; the source
            has no `natural`-language steps. Evaluation never needs a rationale.
    """

    name: ClassVar[str] = "hub"

    def __init__(
        self,
        path: str = "",
        revision: str = "",
        configuration: str | None = None,
        train_split: str = "train",
        validation_split: str = "validation",
        test_split: str = "test",
        question_field: str = "question",
        rationale_field: str = "rationale",
        answer_field: str = "answer",
        on_bad_row: OnBadRow = "error",
        on_missing_rationale: OnMissingRationale = "drop",
    ) -> None:
        super().__init__(path, on_bad_row, on_missing_rationale)
        if not self.has_path:
            raise LoriError("hub: no data set given; set path to its id, e.g. owner/name")
        if not revision or revision.lower() in _MOVING or revision.startswith("refs/"):
            raise LoriError(
                f"hub: revision '{revision}' does not pin {path}; set revision to a commit of the data set "
                "(its page lists them under 'Files', 'History')"
            )
        self.dataset, self.revision, self.configuration = path, revision, configuration
        self.splits: dict[str, str] = {"train": train_split, "validation": validation_split, "test": test_split}
        self.question_field, self.rationale_field, self.answer_field = question_field, rationale_field, answer_field

    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of one row.

        Raises:
            BadRow: A column is missing or malformed.
        """
        question = text_field(value, self.question_field)
        answer = answer_field(value, self.answer_field)
        return Problem(problem_id, question, steps_field(value, self.rationale_field), answer)

    def tables(self, split: Split) -> list[Table]:
        """Loads a split of the data set.

        Raises:
            LoriError: `datasets` is not installed, the data set cannot be loaded, or it has no such split.
        """
        try:
            import datasets
        except ImportError:
            raise LoriError(
                "hub: the package datasets is not installed; in the clone: .venv/bin/pip install -e '.[hub]'"
            ) from None
        if not self.splits.get(split):
            raise LoriError(f"hub: {self.dataset} is given no {split} split; set {split}_split to one of its splits")
        try:
            rows = datasets.load_dataset(
                self.dataset, name=self.configuration, split=self.splits[split], revision=self.revision
            )
        except Exception as error:  # whatever goes wrong in there is one of the user's four settings, or the network
            raise LoriError(
                f"hub: cannot load split '{self.splits[split]}' of {self.dataset} at revision {self.revision} "
                f"({type(error).__name__}: {one_line(error)}); "
                "check path, revision, configuration, the split's name and the network"
            ) from None
        return [Table(f"{self.dataset}@{self.revision}[{self.splits[split]}]", split, _numbered(rows))]

    def read(self, file: str | Path) -> list[Problem]:
        """Refuses: a data set is read by split.

        Raises:
            LoriError: Always.
        """
        raise LoriError(f"hub: {file} is read by split; ask for train, validation or test")


def _numbered(rows: Iterable[Any]) -> Iterable[Row]:
    return (Row(f"record {index + 1}", index, row) for index, row in enumerate(rows))
