"""GSM-Hard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import RowSource, Split
from lori_pl.data.sources.fields import answer_field, text_field
from lori_pl.data.sources.published import PublishedFile


class GSMHard(RowSource):
    """GSM-Hard, GSM8K's test problems with larger numbers (Gao et al., PAL, arXiv 2211.10435).

    Format: JSON lines with `input`, `code` (a Python solution; not read) and `target`, a number: negatives, decimals,
    and floats such as ``1.5e10``, which is the answer ``15000000000``. Targets that a program rounded in binary keep
    all their digits, and are compared exactly. Origin: github.com/reasoning-machines/pal, `gsmhardv2.jsonl`. Licence:
    MIT.

    Split rule: evaluation only, the whole file is the test split; `path` may be the file itself. It has no rationale.
    """

    name: ClassVar[str] = "gsm_hard"
    file_names: Mapping[Split, Sequence[str]] = {
        "test": ("gsmhardv2.jsonl", "gsmhard.jsonl", "gsm_hard.jsonl", "test.jsonl"),
    }
    published: Mapping[Split, PublishedFile] = {
        "test": PublishedFile(
            "gsmhardv2.jsonl",
            "https://raw.githubusercontent.com/reasoning-machines/pal/90cb4488f88768be2266a0a0ff4694cb22a48741/"
            "datasets/gsmhardv2.jsonl",
        )
    }
    lone_file_split: ClassVar[Split | None] = "test"

    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of one row.

        Raises:
            BadRow: `input` or `target` is missing or malformed.
        """
        return Problem(problem_id, text_field(value, "input"), [], answer_field(value, "target"))
