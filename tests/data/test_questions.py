"""Files of questions: every form that is read, and the message of every fault."""

from __future__ import annotations

import pytest
from source_files import error, write_lines, write_list

from lori_pl.data.problem import Problem
from lori_pl.data.questions import read_questions

RECORDS = [
    {"question": " How many? ", "answer": "48/2=24, and 24+48=72. #### 72", "id": "natalia"},
    {"question": "Who?\u2028Ann?"},
]
PROBLEMS = [Problem("natalia", "How many?", [], "72"), Problem("2", "Who?\u2028Ann?", [], "")]


@pytest.mark.parametrize("write", [write_lines, write_list])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "JSONL", "JSON", "ndjson"])
def test_records_of_json(tmp_path, write, suffix):
    assert read_questions(write(tmp_path / f"questions.{suffix}", RECORDS)) == PROBLEMS


@pytest.mark.parametrize("name", ["questions.txt", "questions"])
def test_plain_text_is_a_question_a_line(tmp_path, name):
    file = tmp_path / name
    file.write_bytes('\ufeff How many? \r\n\r\n{"question": 3}\n'.encode())
    assert read_questions(file) == [Problem("1", "How many?", [], ""), Problem("3", '{"question": 3}', [], "")]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("72", "72"), ("a\n#### 1,080", "1080"), ("$18.", "18"), (72, "72"), (51.0, "51"), (None, ""), ("", "")],
)
def test_gold_answers_are_those_of_the_sources(tmp_path, answer, gold):
    (problem,) = read_questions(write_lines(tmp_path / "q.jsonl", [{"question": "a", "answer": answer, "id": None}]))
    assert (problem.id, problem.answer) == ("1", gold)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("q.jsonl", '{"question": "a"}\n\n{"question"\n', ["line 3", "not valid JSON", "correct the row"]),
        ("q.json", '[{"question": "a"}', ["not valid JSON", "correct the file"]),
        ("q.json", '[{"question": "a"}, {"text": "b"}]', ["record 2", "'question' is missing", "the row has text"]),
        ("q.jsonl", '{"question": " "}', ["line 1", "'question' is empty"]),
        ("q.jsonl", '{"question": 3}', ["line 1", "'question' should be text", "int"]),
        ("q.jsonl", '"a"', ["line 1", "should be a JSON object", "str"]),
        ("q.jsonl", '{"question": "a", "answer": "so ####"}', ["line 1", "'answer' holds no answer"]),
        ("q.jsonl", '{"question": "a", "answer": [1]}', ["line 1", "'answer' should be a number or text", "list"]),
        ("q.jsonl", "\n \n", ["is empty", "one question a line"]),
        ("q.json", "[]", ["is empty"]),
        ("q.txt", "", ["is empty"]),
    ],
)
def test_faults(tmp_path, name, content, words):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    error(lambda: read_questions(file), file, *words)


def test_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "q.txt"
    error(lambda: read_questions(file), file, "cannot be read", "check the path")
    file.write_bytes(b"How many \xff?")
    error(lambda: read_questions(file), file, "not UTF-8")
