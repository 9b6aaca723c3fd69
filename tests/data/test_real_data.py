"""Every row of the real files: counts, answers recovered from the full answer field, and the ties between data sets."""

import json
import re

import pytest

from lori_pl.data.answers import extract_answer, parse_number, same_answer
from lori_pl.data.sources import GSM8K, SVAMP, GSM8KAug, Multiplication, ProsQA, load_problems
from lori_pl.data.sources.equations import fraction_text, solve_equation
from lori_pl.data.sources.fields import question_hash
from lori_pl.data.sources.gsm8k import _validation_hashes
from lori_pl.data.sources.multiplication import multiplication_problem

FILES = {
    "gsm8k/train.jsonl": ("gsm8k", 7473),
    "gsm8k/test.jsonl": ("gsm8k", 1319),
    "gsm8k_aug/valid.txt": ("gsm8k_aug", 500),
    "gsm8k_aug/test.txt": ("gsm8k_aug", 1319),
    "multiplication/4x4_valid.txt": ("multiplication", 1000),
    "multiplication/4x4_test.txt": ("multiplication", 1000),
    "svamp/SVAMP.json": ("svamp", 1000),
    "prosqa/valid.json": ("prosqa", 300),
    "prosqa/test.json": ("prosqa", 500),
}


def raw_lines(file):
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_read(real_data, name):
    source, count = FILES[name]
    problems = load_problems(source, real_data / name)
    assert len(problems) == count
    assert len({problem.id for problem in problems}) == count
    for problem in problems:
        assert problem.question.strip()
        assert problem.answer
        assert same_answer(problem.answer, problem.answer)


@pytest.mark.parametrize("name", ["gsm8k/train.jsonl", "gsm8k/test.jsonl"])
def test_gsm8k_answers_are_recovered(real_data, name):
    rows = [json.loads(line) for line in raw_lines(real_data / name)]
    for row, problem in zip(rows, load_problems("gsm8k", real_data / name), strict=True):
        gold = row["answer"].split("\n#### ")[1].replace(",", "")
        assert problem.question == row["question"].strip()
        assert problem.answer == gold == extract_answer(row["answer"])
        assert parse_number(problem.answer) == int(gold)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".txt")])
def test_text_answers_are_recovered(real_data, name):
    source, _ = FILES[name]
    for line, problem in zip(raw_lines(real_data / name), load_problems(source, real_data / name), strict=True):
        gold = line.split(" #### ")[1]
        assert same_answer(extract_answer(line), problem.answer)
        assert same_answer(problem.answer, gold)
        assert problem.answer == gold.replace(",", "")


def test_svamp_answers_are_recovered_from_the_equations(real_data):
    file = real_data / "svamp/SVAMP.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    for row, problem in zip(rows, load_problems("svamp", file), strict=True):
        value, steps = solve_equation(row["Equation"])
        assert same_answer(problem.answer, str(row["Answer"]))
        if row["ID"] == "chal-680":  # 4 - 2 + 3, published with the answer 1
            assert (value, problem.answer, problem.steps) == (5, "1", [])
            continue
        assert same_answer(fraction_text(value), problem.answer)
        assert problem.steps == steps
        assert len(steps) == len(re.findall(r" [-+*/] ", row["Equation"]))
        if steps:
            assert same_answer(extract_answer(" ".join(steps)), problem.answer)
        assert "." not in problem.answer


@pytest.mark.parametrize("name", ["prosqa/valid.json", "prosqa/test.json"])
def test_prosqa_answers_are_recovered_as_text(real_data, name):
    rows = json.loads((real_data / name).read_text(encoding="utf-8"))
    for row, problem in zip(rows, load_problems("prosqa", real_data / name), strict=True):
        assert problem.steps == row["steps"]
        assert problem.answer == row["answer"] == extract_answer(row["answer"])
        assert extract_answer(f"{' '.join(row['steps'])} #### {row['answer']}") == row["answer"]
        wrong = row["answer"].replace(row["idx_to_symbol"][row["target"]], row["idx_to_symbol"][row["neg_target"]])
        assert not same_answer(wrong, row["answer"])


def test_gsm8k_annotations_are_gsm8k_aug(real_data):
    official, augmented = GSM8K(str(real_data / "gsm8k")), GSM8KAug(str(real_data / "gsm8k_aug"))
    for split, name, count in (("test", "test.txt", 1319), ("validation", "valid.txt", 500)):
        problems = {" ".join(problem.question.split()): problem for problem in official.load(split).problems}
        assert len(problems) == count
        for line, row in zip(raw_lines(real_data / "gsm8k_aug" / name), augmented.load(split).problems, strict=True):
            problem = problems.pop(" ".join(row.question.split()))
            assert (problem.steps, problem.answer) == (row.steps, row.answer)
            solution = line.split("||")[1]
            assert solution.replace(",", "") == f"{' '.join(problem.steps)} #### {problem.answer}"
        assert not problems


def test_gsm8k_training_leaves_validation_and_test_out(real_data):
    source = GSM8K(str(real_data / "gsm8k"), on_missing_rationale="natural")
    splits = {split: source.load(split) for split in ("train", "validation", "test")}
    assert [len(loaded.problems) for loaded in splits.values()] == [7473 - 500, 500, 1319]
    ids = [problem.id for loaded in splits.values() for problem in loaded.problems]
    assert len(set(ids)) == 7473 + 1319
    questions = {
        split: {question_hash(problem.question) for problem in loaded.problems} for split, loaded in splits.items()
    }
    assert not questions["train"] & (questions["validation"] | questions["test"])
    assert questions["validation"] == _validation_hashes()
    rows = [line.split("||")[0] for line in raw_lines(real_data / "gsm8k_aug/valid.txt")]
    assert {question_hash(question) for question in rows} == _validation_hashes()
    assert all(problem.steps for problem in splits["train"].problems)


def test_gsm8k_rows_without_annotations_are_counted(real_data):
    bare = sum("<<" not in json.loads(line)["answer"] for line in raw_lines(real_data / "gsm8k/train.jsonl"))
    folder = str(real_data / "gsm8k")
    kept = sum(not problem.steps for problem in GSM8K(folder).load("validation").problems)
    loaded = GSM8K(folder).load("train")
    assert (bare, loaded.missing_rationale) == (95, bare - kept)
    assert len(loaded.problems) == 7473 - 500 - loaded.missing_rationale
    assert GSM8K(folder, rationale="natural", on_missing_rationale="error").load("train").missing_rationale == 0


def test_gsm8k_natural_rationale_keeps_no_annotation(real_data):
    for problem in GSM8K(str(real_data / "gsm8k"), rationale="natural").load("test").problems:
        assert problem.steps
        assert not re.search(r"<<|>>|####", " ".join(problem.steps))


def test_the_multiplication_generator_writes_the_real_rows(real_data):
    for name in ("4x4_valid.txt", "4x4_test.txt"):
        for line in raw_lines(real_data / "multiplication" / name):
            first, second = (int(part.replace(" ", "")[::-1]) for part in line.split("||")[0].split("*"))
            problem = multiplication_problem(first, second, 4)
            assert f"{problem.question}||{' '.join(problem.steps)} #### {problem.answer}" == line


def test_splits_of_the_other_sources(real_data):
    for source, split, count in (
        (SVAMP(str(real_data / "svamp")), "test", 1000),
        (ProsQA(str(real_data / "prosqa")), "validation", 300),
        (ProsQA(str(real_data / "prosqa")), "test", 500),
        (Multiplication(str(real_data / "multiplication")), "validation", 1000),
        (Multiplication(str(real_data / "multiplication")), "test", 1000),
    ):
        loaded = source.load(split)
        assert (len(loaded.problems), loaded.bad_rows) == (count, 0)
        if source.name != "svamp":
            assert loaded.missing_rationale == 0
