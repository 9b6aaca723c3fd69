"""What a row of a data file is and how its fields are read: every fault becomes a `BadRow` that names the field."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

from lori_pl.data.answers import ANSWER_MARK, MAX_EXPONENT, clean_answer, extract_answer
from lori_pl.errors import LoriError

ANNOTATION = re.compile(r"<<.*?>>")


class BadRow(ValueError):
    """A row that cannot be read.

    Args:
        field: The field at fault; ``None`` for the whole row.
        cause: What is wrong with it, in one line.
    """

    def __init__(self, field: str | None, cause: str) -> None:
        super().__init__(f"the row {cause}" if field is None else f"field '{field}' {cause}")


class Row(NamedTuple):
    """One row: its place for messages (``line 17``), its position from 0, and its value, or its fault."""

    place: str
    position: int
    value: Any


def text_rows(file: Path) -> Iterator[Row]:
    """Yields the lines of a text file that are not blank.

    Raises:
        LoriError: The file cannot be read or is not UTF-8.
    """
    # not splitlines(): GSM8K has U+2028 inside strings
    for index, line in enumerate(_read_text(file).split("\n")):
        if line.strip():
            yield Row(f"line {index + 1}", index, line.rstrip("\r"))


def json_rows(file: Path) -> Iterator[Row]:
    """Yields the records of a JSON list, or of JSON lines; floats stay exact (`decimal.Decimal`).

    Raises:
        LoriError: The file cannot be read, is not UTF-8, or is a JSON list that cannot be parsed.
    """
    text = _read_text(file)
    if not text.lstrip().startswith("["):
        for row in text_rows(file):
            yield row._replace(value=_json_or_fault(row.value))
        return
    try:
        records = _parse_json(text)
    except (ValueError, RecursionError) as error:
        raise LoriError(f"{file}: not valid JSON ({error}); correct the file or fetch it again") from None
    for index, record in enumerate(records):
        yield Row(f"record {index + 1}", index, record)


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LoriError(f"{file}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise LoriError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None


def _parse_json(text: str) -> Any:
    return json.loads(text, parse_float=_exact_float, parse_constant=_refuse_constant)


def _json_or_fault(line: str) -> Any:
    try:
        return _parse_json(line)
    except (ValueError, RecursionError) as error:
        return BadRow(None, f"is not valid JSON ({error})")


def _exact_float(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"number out of range: {text[:40]}") from None


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number that JSON knows")


def field(value: Any, name: str) -> Any:
    """Returns a field of a record.

    Raises:
        BadRow: The row is no record, or has no such field.
    """
    if not isinstance(value, Mapping):
        raise BadRow(None, f"should be a JSON object, but is a {type(value).__name__}")
    if name not in value:
        raise BadRow(name, f"is missing (the row has {', '.join(map(str, list(value)[:8])) or 'no field'})")
    return value[name]


def text_field(value: Any, name: str) -> str:
    """Returns a field that must be text and not empty, without white space around it.

    Raises:
        BadRow: It is missing, empty or no text.
    """
    content = field(value, name)
    if not isinstance(content, str):
        raise BadRow(name, f"should be text, but is a {type(content).__name__}")
    if not content.strip():
        raise BadRow(name, "is empty")
    return content.strip()


def answer_field(value: Any, name: str) -> str:
    """Returns the gold answer of a record: a number, or a text of which what follows ``####`` counts, if anything does.

    Raises:
        BadRow: It is missing, empty, or neither text nor number.
    """
    content = field(value, name)
    if isinstance(content, str):
        answer = extract_answer(content) if ANSWER_MARK in content else clean_answer(content)
        if not answer:
            raise BadRow(name, "holds no answer")
        return answer
    if isinstance(content, bool) or not isinstance(content, (int, float, Decimal)):
        raise BadRow(name, f"should be a number or text, but is a {type(content).__name__}")
    return number_text(content, name)


def number_text(number: int | float | Decimal, name: str) -> str:
    """Writes a number as a person does: ``51.0`` as ``51``, ``1.5e10`` as ``15000000000``, ``0.25`` as it stands.

    Raises:
        BadRow: It is not finite.
    """
    exact = number if isinstance(number, Decimal) else Decimal(repr(number))
    if not exact.is_finite():
        raise BadRow(name, f"is not a finite number ({number})")
    if exact == 0:
        return "0"
    if abs(exact.adjusted()) > MAX_EXPONENT:
        return str(exact)
    plain = format(exact, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def steps_field(value: Any, name: str) -> list[str]:
    """Returns the steps of a record: a list as it stands, or a text by `split_steps`; empty where there are none.

    Raises:
        BadRow: It is neither text nor a list of texts.
    """
    content = value.get(name) if isinstance(value, Mapping) else field(value, name)
    if content is None:
        return []
    if isinstance(content, str):
        return split_steps(content.rsplit(ANSWER_MARK, 1)[0])
    if not isinstance(content, list) or not all(isinstance(step, str) for step in content):
        raise BadRow(name, "should be text or a list of texts")
    return [step.strip() for step in content if step.strip()]


def split_steps(rationale: str) -> list[str]:
    """Splits a rationale into steps: nothing but ``<<...>>`` annotations one by one, anything else by lines."""
    if not ANNOTATION.sub("", rationale).strip():
        return ANNOTATION.findall(rationale)
    return [line.strip() for line in rationale.split("\n") if line.strip()]


def split_text_row(line: str) -> tuple[str, str, str]:
    """Splits ``question||steps #### answer`` into its three parts.

    Raises:
        BadRow: A separator is missing or doubled, or the question or the answer is empty.
    """
    parts = line.split("||")
    if len(parts) != 2:
        raise BadRow("question", f"should end at one '||', but the line has {len(parts) - 1}")
    question, solution = parts[0].strip(), parts[1]
    rationale, mark, _ = solution.rpartition(ANSWER_MARK)
    if not question:
        raise BadRow("question", "is empty")
    if not mark:
        raise BadRow("answer", f"has no '{ANSWER_MARK}' before it")
    answer = extract_answer(solution)
    if not answer:
        raise BadRow("answer", f"is empty after '{ANSWER_MARK}'")
    return question, rationale.strip(), answer


def question_hash(question: str) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of a question, white space normalised."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:16]
