"""Files of questions to be answered, with or without their answers."""

from __future__ import annotations

from pathlib import Path

from lori_pl.data.problem import Problem
from lori_pl.data.sources.fields import BadRow, Row, answer_field, json_rows, text_field, text_rows
from lori_pl.errors import LoriError, one_line

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


def read_questions(path: Path) -> list[Problem]:
    """Reads questions: a JSON file (`JSON_SUFFIXES`, in any case), a record a line or one list; or text, one a line.

    A record has a ``question`` and optionally an ``id`` and an ``answer``, read as the source `JSONL` reads it.

    Args:
        path: The file.

    Returns:
        Problems without steps; answer and id may be empty or absent: the id is then the number of the line or record.

    Raises:
        LoriError: If the file is missing, not UTF-8 or empty, or a record is malformed.
    """
    is_json = path.suffix.lower() in JSON_SUFFIXES
    problems = []
    for row in json_rows(path) if is_json else text_rows(path):
        try:
            problems.append(_problem(row) if is_json else Problem(str(row.position + 1), row.value.strip(), [], ""))
        except BadRow as fault:
            raise LoriError(f"{path}, {row.place}, {one_line(fault)}; correct the row") from None
    if not problems:
        raise LoriError(f"questions: {path} is empty; write one question a line")
    return problems


def _problem(row: Row) -> Problem:
    if isinstance(row.value, BadRow):
        raise row.value
    question = text_field(row.value, "question")
    answer = "" if row.value.get("answer") in (None, "") else answer_field(row.value, "answer")
    name = row.value.get("id")
    return Problem(str(row.position + 1 if name in (None, "") else name), question, [], answer)
