"""SVAMP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import RowSource, Split
from lori_pl.data.sources.equations import equation_rationale
from lori_pl.data.sources.fields import BadRow, answer_field, text_field
from lori_pl.data.sources.published import PublishedFile
from lori_pl.errors import LoriError


class SVAMP(RowSource):
    """SVAMP, elementary word problems with varied structure (Patel et al., arXiv 2103.07191).

    Format: a JSON list with `ID`, `Body`, `Question`, `Equation` (``( ( 8.0 + 4.0 ) * 3.0 )``) and `Answer` (``36.0``,
    read as ``36``). The question is body and question joined by a space. The rationale is the equation solved exactly,
    one annotation an operation, innermost first: ``<<8+4=12>>``, ``<<12*3=36>>``. An equation that is a lone number has
    none, nor has one that contradicts the answer (chal-680: ``( 4.0 - 2.0 ) + 3.0`` against ``1.0``; the published
    answer stands). Origin: github.com/arkilpatel/SVAMP. Licence: MIT.

    Split rule: evaluation only, the whole of `SVAMP.json` is the test split; `path` may be the file itself. A folder
    with an own `train.json` has to hold an own `test.json` too, since `SVAMP.json` would repeat its problems.
    """

    name: ClassVar[str] = "svamp"
    file_names: Mapping[Split, Sequence[str]] = {"test": ("SVAMP.json",)}
    published: Mapping[Split, PublishedFile] = {
        "test": PublishedFile(
            "SVAMP.json",
            "https://raw.githubusercontent.com/arkilpatel/SVAMP/689d7ccac74b9983a2ac7cc3b264f441b99e7c53/SVAMP.json",
        )
    }
    lone_file_split: ClassVar[Split | None] = "test"

    def files(self, split: Split) -> list[Path]:
        """Returns the file of a split.

        Raises:
            LoriError: There is no such split, folder or file, or `SVAMP.json` stands beside a `train.json`.
        """
        own = self._own_splits()
        if split in own:
            return [own[split]]
        if split == "test" and "train" in own:
            raise LoriError(
                f"svamp: {self.path} has a train.json but no test.json, and SVAMP.json would repeat training problems; "
                "add the test.json of that split"
            )
        return super().files(split)

    def absent(self, split: Split) -> PublishedFile | None:
        """Returns the published file if the folder does not hold it; None beside a split of its own."""
        return None if self._own_splits() else super().absent(split)

    def _own_splits(self) -> dict[str, Path]:
        files = {split: self.path / f"{split}.json" for split in ("train", "validation", "test")}
        return {split: file for split, file in files.items() if file.is_file()}

    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of one row.

        Raises:
            BadRow: A field is missing or malformed, or the equation cannot be solved.
        """
        question = f"{text_field(value, 'Body')} {text_field(value, 'Question')}"
        answer = answer_field(value, "Answer").removesuffix(".0")  # some copies write the number as text, "145.0"
        equation = text_field(value, "Equation")
        try:
            steps = equation_rationale(equation, answer)
        except ValueError as error:
            raise BadRow("Equation", str(error)) from None
        return Problem(problem_id, question, steps, answer)
