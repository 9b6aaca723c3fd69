"""What a data source is: it gives the problems of a split, and says what it left out."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from lori_pl.data.problem import Problem
from lori_pl.data.sources.fields import BadRow, Row, json_rows
from lori_pl.data.sources.published import PublishedFile
from lori_pl.errors import LoriError, check_choice, one_line

Split = Literal["train", "validation", "test"]
OnBadRow = Literal["error", "skip"]
OnMissingRationale = Literal["drop", "natural", "error"]


@dataclass(frozen=True)
class LoadedSplit:
    """The problems of one split and what was left out of it.

    Args:
        problems: In the order of the files.
        bad_rows: Malformed rows that were skipped.
        missing_rationale: Problems of the split without a rationale.
        dropped: How many of these were left out; the others are kept as they are, or have their natural-language steps.
    """

    problems: list[Problem]
    bad_rows: int = 0
    missing_rationale: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Table:
    """Rows that stand together: a file, or a split of a data set.

    Args:
        where: Names it in messages, e.g. the path of the file.
        label: Names it in the ids of its problems.
        rows: Its rows, read as they are asked for.
    """

    where: str
    label: str
    rows: Iterable[Row]


class Source(abc.ABC):
    """Where problems come from. A source that is read row by row extends `RowSource` instead."""

    name: ClassVar[str]

    needs_rationale: bool = True
    """Whether training problems need a rationale; the data module says so by its method."""

    @abc.abstractmethod
    def load(self, split: Split) -> LoadedSplit:
        """Returns the problems of one split.

        Raises:
            LoriError: The source has no such split, or the split is empty.
        """

    def read(self, file: str | Path) -> list[Problem]:
        """Returns every problem of one file.

        Raises:
            LoriError: This source reads no files.
        """
        raise LoriError(f"{self.name} reads no files, so not '{file}'; ask for a split")


class RowSource(Source):
    """A source that is read row by row. A subclass sets `name` and `file_names` and writes `parse`.

    Args:
        path: The folder that holds the files.
        on_bad_row: A malformed row is an `error`, or `skip` counts and leaves it out.
        on_missing_rationale: A training problem without a rationale: `drop` it (and count it), take its
            `natural`-language steps, or `error`. Evaluation never needs a rationale, nor does a method that learns
            from answers alone.
    """

    file_names: Mapping[Split, Sequence[str]] = {}
    """The names a file of each split may have in the folder, in the order in which they are looked for."""

    published: Mapping[Split, PublishedFile] = {}
    """The file of a split at the data set's origin, which the command `prepare` fetches where the folder has none."""

    lone_file_split: ClassVar[Split | None] = None
    """The split that the file makes where `path` is a file."""

    one_file_makes_all: ClassVar[bool] = False
    """Whether `path` may be a file of all splits; a subclass whose does says in `in_split` which row is whose."""

    def __init__(
        self,
        path: str = "",
        on_bad_row: OnBadRow = "error",
        on_missing_rationale: OnMissingRationale = "drop",
    ) -> None:
        self.path = Path(path).expanduser()
        self.has_path = str(path) != ""
        check_choice(f"{self.name}: on_bad_row", on_bad_row, OnBadRow)
        check_choice(f"{self.name}: on_missing_rationale", on_missing_rationale, OnMissingRationale)
        self.on_bad_row, self.on_missing_rationale = on_bad_row, on_missing_rationale

    @abc.abstractmethod
    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of a row's value; its steps are empty where the row has no rationale.

        Raises:
            BadRow: The row is malformed.
        """

    def rows(self, file: Path) -> Iterable[Row]:
        """Returns the rows of a file: by default the records of JSON, a list or one a line."""
        return json_rows(file)

    def natural_steps(self, value: Any) -> list[str] | None:
        """Returns the natural-language steps of a row's value, or None where the source has none."""
        return None

    def in_split(self, problem: Problem, split: Split) -> bool:
        """Whether a problem read for a split belongs to it: not all do where splits share a file."""
        return True

    def files(self, split: Split) -> list[Path]:
        """Returns the files that hold a split.

        Raises:
            LoriError: There is no such split, folder or file.
        """
        if split not in get_args(Split):
            raise LoriError(f"{self.name}: no split '{split}'; use one of {', '.join(get_args(Split))}")
        names = self.file_names.get(split)
        if not names:
            raise LoriError(
                f"{self.name} is for evaluation only and has no {split} split; use it as a test source, "
                f"and take {split} problems from another source"
            )
        if self.path.is_file() and self.lone_file_split == split:
            return [self.path]
        for name in names:
            if (self.path / name).is_file():
                return [self.path / name]
        raise self._not_found(split, names)

    def _not_found(self, split: Split, names: Sequence[str]) -> LoriError:
        expected = " or ".join(names)
        if self.path.is_file():
            return LoriError(
                f"{self.name}: {self.path} is a file; set path to the folder that holds the {split} file ({expected})"
            )
        if self.absent(split) is not None:
            expected += " (the command prepare fetches it)"
        if self.path.is_dir():
            return LoriError(f"{self.name}: no {split} file in {self.path}; expected {expected}")
        takes_file = self.one_file_makes_all or self.lone_file_split is not None
        kind, file = ("file or folder", "the file, or to ") if takes_file else ("folder", "")
        return LoriError(f"{self.name}: no {kind} {self.path}; set path to {file}the folder that holds {expected}")

    def absent(self, split: Split) -> PublishedFile | None:
        """Returns the published file of a split that the folder does not hold.

        None where nothing is to be fetched: nobody published it, the folder has the split, or files of another origin.
        """
        file, names = self.published.get(split), self.file_names.get(split, ())
        if file is None or file.name not in names or not self.has_path:
            return None
        means_a_file = self.path.suffix in {Path(name).suffix for name in names} and not self.path.is_dir()
        if means_a_file or self.path.is_file() or any((self.path / name).is_file() for name in names):
            return None
        # beside files of another origin it might hold what they hold: GSM8K-Aug's validation is from GSM8K's training
        others = [(self.path / name, self.published.get(s)) for s, every in self.file_names.items() for name in every]
        if any(path.is_file() and not (other is not None and other.is_at(path)) for path, other in others):
            return None
        return file

    def tables(self, split: Split) -> list[Table]:
        """Returns the tables that hold a split: by default its files.

        Raises:
            LoriError: No path is given, or there is no such split, folder or file.
        """
        if not self.has_path:
            raise LoriError(f"{self.name}: no path given; set path to the folder that holds the files")
        return [self._table(file) for file in self.files(split)]

    def read(self, file: str | Path) -> list[Problem]:
        """Returns every problem of one file, with or without a rationale.

        Raises:
            LoriError: The file is missing or empty, or a row is malformed and `on_bad_row` is `error`.
        """
        path = Path(file).expanduser()
        if path.is_dir():
            raise LoriError(f"{self.name}: {path} is a folder; name one of its files, or ask for a split")
        if not path.is_file():
            raise LoriError(f"{self.name}: no file {path}; check the path")
        table = self._table(path)
        problems = [problem for row in table.rows if (problem := self._parse(row, table)) is not None]
        if not problems:
            raise LoriError(f"{self.name}: {path} holds no problem; check that it is the right file")
        return problems

    def load(self, split: Split) -> LoadedSplit:
        """Returns the problems of one split.

        Raises:
            LoriError: A file is missing, a row is malformed, a training problem has no rationale (where the options
                make these errors), there is no such split, or it is empty.
        """
        tables = self.tables(split)
        problems: list[Problem] = []
        bad_rows = missing_rationale = dropped = elsewhere = 0
        bare: Any = None
        for table in tables:
            for row in table.rows:
                problem = self._parse(row, table)
                if problem is None:
                    bad_rows += 1
                    continue
                if not self.in_split(problem, split):
                    elsewhere += 1
                    continue
                if not problem.steps:
                    missing_rationale += 1
                    bare = row.value if bare is None else bare
                    if split == "train" and self.needs_rationale:
                        if self.on_missing_rationale == "drop":
                            dropped += 1
                            continue
                        problem = replace(problem, steps=self._natural_steps(row, table))
                problems.append(problem)
        if not problems:
            raise LoriError(
                f"{self.name}: the {split} split is empty ({', '.join(table.where for table in tables)}; "
                f"{bad_rows} malformed rows skipped, {missing_rationale} problems without a rationale); "
                f"{self.remedy_of_empty(elsewhere, bare)}"
            )
        return LoadedSplit(problems, bad_rows, missing_rationale, dropped)

    def remedy_of_empty(self, elsewhere: int, bare: Any) -> str:
        """What to do where a split has no problem.

        Args:
            elsewhere: How many problems of its files are of another split.
            bare: The value of the first row without a rationale, if there is one.
        """
        return "check the files and the options"

    def _table(self, file: Path) -> Table:
        inside = self.path in file.parents
        label = (file.relative_to(self.path) if inside else Path(file.name)).with_suffix("")
        return Table(str(file), label.as_posix(), self.rows(file))

    def _parse(self, row: Row, table: Table) -> Problem | None:
        try:
            if isinstance(row.value, BadRow):
                raise row.value
            return self.parse(row.value, f"{self.name}/{table.label}/{row.position}")
        except BadRow as fault:
            if self.on_bad_row == "skip":
                return None
            raise LoriError(
                f"{table.where}, {row.place}, {one_line(fault)}; correct the row, or leave such rows out "
                "(--data.on_bad_row skip)"
            ) from None

    def _natural_steps(self, row: Row, table: Table) -> list[str]:
        where = f"{table.where}, {row.place}: no rationale, and training needs one"
        if self.on_missing_rationale == "error":
            raise LoriError(f"{where}; add one, or set on_missing_rationale to drop")
        steps = self.natural_steps(row.value)
        if steps is None:
            raise LoriError(f"{where}; {self.name} has no natural-language steps: set on_missing_rationale to drop")
        if not steps:
            raise LoriError(f"{where}; it has no natural-language steps either: set on_missing_rationale to drop")
        return steps
