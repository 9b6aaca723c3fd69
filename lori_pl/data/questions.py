"""Files of questions to be answered, with or without their answers."""

from __future__ import annotations

import json
from pathlib import Path

from lori_pl.data.problem import Problem
from lori_pl.errors import LoriError


def read_questions(path: Path) -> list[Problem]:
    """Reads questions: JSON lines (``.jsonl``) with ``question``, optional ``id`` and ``answer``; or one a line.

    Args:
        path: The file.

    Returns:
        Problems without steps; the answer is empty where none is given, the id the line's number.

    Raises:
        LoriError: If the file is missing or empty, or a line has no question.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LoriError(f"questions: cannot read {path} ({error}); give a UTF-8 text or JSON-lines file") from None
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            problems.append(Problem(str(number), line.strip(), [], ""))
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise LoriError(f"{path}, line {number}: not JSON ({error.msg}); write one object a line") from None
        question = row.get("question") if isinstance(row, dict) else None
        if not isinstance(question, str) or not question.strip():
            raise LoriError(f"{path}, line {number}, field question: missing or empty; give the question as a string")
        answer = "" if row.get("answer") is None else str(row["answer"])
        problems.append(Problem(str(row.get("id", number)), question.strip(), [], answer))
    if not problems:
        raise LoriError(f"questions: {path} is empty; write one question a line")
    return problems
