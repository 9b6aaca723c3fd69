"""Sources of data: whatever the bytes, rows or arguments, right problems or one clear error.

A few hundred inputs each in the fast suite, 10,000 in the slow one.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fuzzing import JSON, MANY, altered, explore, is_clear
from hypothesis import strategies as st

from lori_pl.data import Problem, load_problems
from lori_pl.data.questions import read_questions
from lori_pl.data.sources import Hub, Multiplication, Synthetic
from lori_pl.data.sources.multiplication import multiplication_problem
from lori_pl.errors import LoriError

pytestmark = pytest.mark.fuzz

FIELDS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "How many?", "answer": "He has <<2+3=5>>5.\n#### 5"},
    "gsm8k_aug": {"question": "How many?", "cot": "<<2+3=5>>", "answer": "5"},
    "gsm_hard": {"input": "How many?", "code": "def solution():\n    return 5", "target": 5.0},
    "svamp": {
        "ID": "chal-1",
        "Body": "Ann has 2.",
        "Question": "How many?",
        "Equation": "( 2.0 + 3.0 )",
        "Answer": 5.0,
    },
    "multiarith": {"iIndex": 1, "sQuestion": "How many?", "lSolutions": [5.0], "lEquations": ["X=2+3"]},
    "prosqa": {"question": "Is it a or b?", "steps": ["It is a."], "answer": "It is a."},
    "jsonl": {"question": "How many?", "rationale": "<<2+3=5>>", "answer": "5"},
}
WHOLE = {"svamp", "multiarith", "prosqa"}  # one JSON list rather than lines


@st.composite
def data_file(draw: st.DrawFn, source: str) -> bytes:
    """Rows of a source of which some fields are missing or something else; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row = dict(FIELDS[source])
        for name in draw(st.lists(st.sampled_from(sorted(row)), max_size=2)):
            if draw(st.booleans()):
                row.pop(name, None)
            else:
                row[name] = draw(JSON | st.text(alphabet=" \n\t\u2028", max_size=2))
        rows.append(row if draw(st.integers(0, 9)) else draw(JSON))
    text = json.dumps(rows) if source in WHOLE else "\n".join(json.dumps(row) for row in rows)
    content = text.encode("utf-8", errors="surrogatepass")
    return content if draw(st.integers(0, 4)) else draw(altered(content))


def is_right(problem: Problem) -> None:
    """A problem that can be trained on, or tested with."""
    assert problem.id
    assert problem.question.strip()
    assert problem.answer.strip()
    assert all(isinstance(step, str) and step.strip() for step in problem.steps)


def read(source: str, path: Path, **options: Any) -> list[Problem] | None:
    """The problems of a file, or ``None`` where there was one clear error."""
    try:
        problems = load_problems(source, path, **options)
    except LoriError as error:
        is_clear(error)
        return None
    for problem in problems:
        is_right(problem)
    return problems


def reads_what_is_good(source: str, path: Path, content: bytes) -> None:
    """Strictly, a file is read whole or refused; with bad rows skipped, it is its good rows, each as it is alone."""
    path.write_bytes(content)
    strict, lenient = read(source, path), read(source, path, on_bad_row="skip")
    if strict is not None:
        assert lenient == strict
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        assert lenient is None
        return
    if path.suffix != ".txt" and text.lstrip().startswith("["):
        return
    alone = []
    for line in text.split("\n"):
        path.write_text(line, encoding="utf-8")
        alone += read(source, path) or []
    assert [without_id(problem) for problem in lenient or []] == [without_id(problem) for problem in alone]


def without_id(problem: Problem) -> tuple[str, list[str], str]:
    return problem.question, problem.steps, problem.answer


@pytest.mark.parametrize("count", [100, MANY])
@pytest.mark.parametrize("source", sorted(FIELDS))
def test_json(source, count, tmp_path):
    path = tmp_path / ("rows.json" if source in WHOLE else "rows.jsonl")
    explore(count, data_file(source), lambda content: reads_what_is_good(source, path, content))


LINES = {
    "gsm8k_aug": ("How many 2+3=5<>|#.,-\t\x0b\u2028é", "How many?||<<2+3=5>> #### 5"),
    "multiplication": ("0123 *+()|#\t٣", "5 6 * 7 4||5 6 0 + 0 0 ( 5 ) #### 5 5 5"),
}


@pytest.mark.parametrize("count", [100, MANY])
@pytest.mark.parametrize("source", sorted(LINES))
def test_text(source, count, tmp_path):
    path, (alphabet, good) = tmp_path / "train.txt", LINES[source]
    lines = st.lists(st.text(alphabet=alphabet, max_size=40) | st.just(good), min_size=1, max_size=3)
    content = lines.map(lambda found: "\n".join(found).encode()).flatmap(lambda text: st.just(text) | altered(text))
    explore(count, content, lambda found: reads_what_is_good(source, path, found))


@pytest.mark.parametrize("count", [100, MANY])
@pytest.mark.parametrize("source", ["gsm8k_aug", "jsonl"])
def test_what_was_written_is_read(source, count, tmp_path):
    """Any characters of a question are its own, those among them that some call the end of a line."""
    is_text = source == "gsm8k_aug"
    path = tmp_path / ("train.txt" if is_text else "rows.jsonl")
    odd = st.characters(codec="utf-8", exclude_characters="\n|#") | st.sampled_from(
        "\r\x0b\x0c\x1c\x85\u2028\u2029\ufeff\0"
    )
    questions = st.lists(st.text(alphabet=odd, max_size=8), min_size=1, max_size=3)

    def check(asked: list[str]) -> None:
        rows = [{"question": text, "rationale": ["<<2+3=5>>"], "answer": "5"} for text in asked]
        lines = [
            f"{text}||<<2+3=5>> #### 5" if is_text else json.dumps(row) for text, row in zip(asked, rows, strict=True)
        ]
        path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
        found = read(source, path)
        if is_text:
            asked = [asked[0].removeprefix("\ufeff"), *asked[1:]]
        if all(text.strip() for text in asked):
            assert [without_id(problem) for problem in found or []] == [(q.strip(), ["<<2+3=5>>"], "5") for q in asked]
        else:
            assert found is None

    explore(count, questions, check)


@pytest.mark.parametrize("count", [100, MANY])
def test_one_file_is_divided(count, tmp_path):
    """Each problem of a file stands in one split, and equal questions in the same."""
    path = tmp_path / "rows.jsonl"
    row = st.fixed_dictionaries(
        {"question": st.text(max_size=3), "rationale": st.just("<<2+3=5>>"), "answer": st.integers(0, 9)}
    )

    def check(rows: list[dict[str, Any]]) -> None:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        whole = read("jsonl", path, on_bad_row="skip")
        parts = {split: read("jsonl", path, on_bad_row="skip", split=split) or [] for split in SPLITS}
        assert sorted(problem.id.rsplit("/", 1)[-1] for part in parts.values() for problem in part) == sorted(
            problem.id.rsplit("/", 1)[-1] for problem in whole or []
        )
        asked = [{" ".join(problem.question.split()) for problem in part} for part in parts.values()]
        assert sum(map(len, asked)) == len(set().union(*asked))

    explore(count, st.lists(row, min_size=1, max_size=8), check)


SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("count", [100, MANY])
def test_a_data_set_of_the_hub(count, monkeypatch):
    """What the library gives is any row of Python's own values."""
    rows: list[Any] = []
    library = ModuleType("datasets")
    library.load_dataset = lambda *_, **__: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "datasets", library)
    value = JSON | st.binary(max_size=3) | st.decimals() | st.datetimes() | st.lists(st.just("<<2+3=5>>"), max_size=2)
    row = st.dictionaries(st.sampled_from(["question", "rationale", "answer", "id"]), value) | JSON
    good = {"question": "How many?", "rationale": ["<<2+3=5>>"], "answer": "5"}
    changed = st.dictionaries(st.sampled_from(sorted(good)), value, max_size=1).map(lambda new: {**good, **new})

    def check(found: list[Any]) -> None:
        rows[:] = found
        for policy in ("error", "skip"):
            try:
                loaded = Hub("owner/name", revision="0" * 40, on_bad_row=policy).load("test")
            except LoriError as error:
                is_clear(error)
                continue
            for problem in loaded.problems:
                is_right(problem)
            assert len(loaded.problems) + loaded.bad_rows == len(rows)
            assert policy == "skip" or not loaded.bad_rows

    explore(count, st.lists(st.just(good) | st.just(good) | changed | row, max_size=2), check)


@pytest.mark.parametrize("count", [100, MANY])
@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.txt"])
def test_questions(name, count, tmp_path):
    path = tmp_path / name
    good = st.fixed_dictionaries(
        {"question": st.just("How many?") | st.text(max_size=5)},
        optional={"answer": st.integers() | st.just("so #### 5"), "id": st.text(max_size=3) | st.integers()},
    )
    changed = st.dictionaries(st.sampled_from(["question", "answer", "id"]), JSON, max_size=2)
    rows = st.lists(good | good | good | changed.map(lambda new: {"question": "How many?", **new}) | JSON, max_size=3)
    lines = rows.map(lambda found: "\n".join(map(json.dumps, found)).encode())
    whole = rows.map(lambda found: json.dumps(found).encode())
    content = (lines | whole).flatmap(lambda text: st.just(text) | altered(text))

    def check(found: bytes) -> None:
        path.write_bytes(found)
        try:
            questions = read_questions(path)
        except LoriError as error:
            is_clear(error)
            return
        assert questions
        assert all(problem.question == problem.question.strip() != "" for problem in questions)
        assert all(problem.id and not problem.steps for problem in questions)

    explore(count, content | st.binary(max_size=60), check)


@pytest.mark.parametrize("count", [100, MANY])
def test_generated_products(count):
    """Any arguments: as many products as were asked for, none in two splits, or one clear error."""
    size = st.integers(-1, 30)
    arguments = {"digits": st.integers(-1, 3), "seed": st.integers()}
    arguments |= {f"{split}_size": size for split in SPLITS}

    def check(given: dict[str, Any]) -> None:
        try:
            source = Multiplication(**given)
        except LoriError as error:
            is_clear(error)
            return
        pairs: set[tuple[int, ...]] = set()
        for split in SPLITS:
            if not given[f"{split}_size"]:
                continue
            problems = source.load(split).problems
            assert len(problems) == given[f"{split}_size"]
            for problem in problems:
                one, other = (int(number.replace(" ", "")[::-1]) for number in problem.question.split("*"))
                assert int(problem.answer.replace(" ", "")[::-1]) == one * other
                expected = multiplication_problem(one, other, given["digits"], problem.id)
                assert problem == expected
                pair = (min(one, other), max(one, other))
                assert pair not in pairs
                pairs.add(pair)

    explore(count, st.fixed_dictionaries(arguments), check)


@pytest.mark.parametrize("count", [60, MANY])
def test_generated_worlds(count):
    """Any arguments: problems whose every step is right, or one clear error."""
    small = st.integers(-1, 120)
    optional = {
        "operators": st.text(alphabet="+-*/|x", max_size=4),
        "limit": small,
        "largest_operand": small,
        "largest_factor": st.integers(-1, 15),
        "largest_start": st.none() | small,
        "smallest_mark": small,
        "largest_mark": small,
        "alternate": st.booleans(),
        "dated": st.booleans(),
        "distractors": st.integers(-1, 3),
        "min_steps": st.integers(-1, 4),
        "max_steps": st.integers(-1, 14),
    }
    chosen = st.fixed_dictionaries({"seed": st.integers(0, 10**6)}, optional=optional)

    def check(given: dict[str, Any]) -> None:
        try:
            problems = Synthetic(train=3, validation=1, test=1, **given).load("train").problems
        except LoriError as error:
            is_clear(error)
            return
        assert len(problems) == 3
        for problem in problems:
            is_right(problem)
            for step in problem.steps:
                formula, result = step.removeprefix("<<").removesuffix(">>").split("=")
                assert eval(formula) == int(result)
            assert problem.answer == result

    explore(count, chosen, check)
