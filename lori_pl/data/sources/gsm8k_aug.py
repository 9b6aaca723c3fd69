"""GSM8K-Aug, as text and as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import RowSource, Split
from lori_pl.data.sources.fields import (
    Row,
    answer_field,
    json_rows,
    split_steps,
    split_text_row,
    steps_field,
    text_field,
    text_rows,
)
from lori_pl.data.sources.published import PublishedFile

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

_ORIGIN = "da03/Internalize_CoT_Step_by_Step/e06a32ee5e4cd117171daeb4755d2a97ece62761/data/gsm8k"


class GSM8KAug(RowSource):
    """GSM8K-Aug, GSM8K enlarged to 385,620 training problems by GPT-4 (Deng et al., arXiv 2311.01460).

    Formats: text, a problem a line, ``question||<<16-3-4=9>> <<9*2=18>> #### 18``; JSON, a list or a record a line,
    with `question`, `answer`, and `steps` (a list) or `cot` (a text: annotations, or natural sentences as in
    GSM8K-Aug-NL, each of which is a step). Origin: github.com/da03/Internalize_CoT_Step_by_Step; the JSON in
    github.com/facebookresearch/coconut and huggingface.co/datasets/zen-E/GSM8k-Aug. Licence: MIT.

    Split rule: a file each: `train`, `valid` or `validation`, and `test`, ending in `.txt`, `.jsonl` or `.json`, with
    or without `gsm_` before. The test split is GSM8K's own.
    """

    name: ClassVar[str] = "gsm8k_aug"
    file_names: Mapping[Split, Sequence[str]] = {
        "train": tuple(f"{n}.{e}" for n in ("train", "gsm_train") for e in ("txt", "jsonl", "json")),
        "validation": tuple(f"{n}.{e}" for n in ("valid", "validation", "gsm_valid") for e in ("txt", "jsonl", "json")),
        "test": tuple(f"{n}.{e}" for n in ("test", "gsm_test") for e in ("txt", "jsonl", "json")),
    }
    published: Mapping[Split, PublishedFile] = {
        "train": PublishedFile(
            "train.txt",
            f"https://media.githubusercontent.com/media/{_ORIGIN}/train.txt",
            "0a3909a9e7d8d2f7ad6b8c7b5608aa744988d835f9bf874d4cf06ca77df6bf8c",
        ),
        "validation": PublishedFile(
            "valid.txt",
            f"https://raw.githubusercontent.com/{_ORIGIN}/valid.txt",
            "04f9bddfe8ac4846571b1e2b612b289c95770b5012fdb34cc36a597b041afb87",
        ),
        "test": PublishedFile(
            "test.txt",
            f"https://raw.githubusercontent.com/{_ORIGIN}/test.txt",
            "e464efa2713fbcf423bdbfb482c543a6a086188c3d97c294b1d19a70c2a515e8",
        ),
    }

    def rows(self, file: Path) -> Iterable[Row]:
        """Returns the lines of a `.txt` file, the records of any other."""
        return text_rows(file) if file.suffix == ".txt" else json_rows(file)

    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of a line or of a record.

        Raises:
            BadRow: A separator or a field is missing or malformed.
        """
        if isinstance(value, str):
            question, rationale, answer = split_text_row(value)
            return Problem(problem_id, question, _sentences(split_steps(rationale)), answer)
        question, answer = text_field(value, "question"), answer_field(value, "answer")
        name = "cot" if "cot" in value else "steps"
        steps = steps_field(value, name)
        return Problem(problem_id, question, steps if isinstance(value.get(name), list) else _sentences(steps), answer)


def _sentences(steps: list[str]) -> list[str]:
    return [sentence for step in steps for sentence in _SENTENCE_END.split(step)]
