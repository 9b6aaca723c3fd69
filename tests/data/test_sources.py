"""Each data source on small files: formats, splits, what is counted, and every message a user can bring about."""

import json
import random
import re
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lori_pl.data.answers import same_answer
from lori_pl.data.sources import (
    GSM8K,
    JSONL,
    SOURCES,
    SVAMP,
    GSM8KAug,
    GSMHard,
    Hub,
    MultiArith,
    Multiplication,
    ProsQA,
    RowSource,
    load_problems,
)
from lori_pl.data.sources.equations import MAX_LENGTH, fraction_text, solve_equation
from lori_pl.data.sources.fields import question_hash
from lori_pl.data.sources.multiplication import multiplication_problem
from lori_pl.errors import LoriError

JANET = {
    "question": "Janet has 16 eggs.  What does she earn?",
    "answer": "She sells 16 - 7 = <<16-7=9>>9 eggs.\nShe earns 9 * 2,000 = $<<9*2000=18000>>18,000.\n#### 18,000",
}
BARE = {"question": "How old is Ann?", "answer": "Ann is 7.\nShe said so.\n#### 7"}


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def write_list(file, rows):
    file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return file


def error(action, *words):
    """Runs `action`, which must raise a LoriError of one line that has all the words."""
    with pytest.raises(LoriError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message


# GSM8K


def test_gsm8k_equations(tmp_path):
    file = write_lines(tmp_path / "test.jsonl", [JANET, BARE])
    janet, bare = GSM8K(str(tmp_path)).load("test").problems
    assert (janet.id, janet.question) == ("gsm8k/test/0", JANET["question"])
    assert janet.steps == ["<<16-7=9>>", "<<9*2000=18000>>"]
    assert janet.answer == "18000"
    assert (bare.id, bare.steps, bare.answer) == ("gsm8k/test/1", [], "7")  # evaluation needs no rationale
    assert GSM8K().read(file) == [janet, bare] == load_problems("gsm8k", file)
    assert load_problems("gsm8k", tmp_path, "test") == [janet, bare]


def test_gsm8k_natural(tmp_path):
    write_lines(tmp_path / "train.jsonl", [JANET, BARE])
    loaded = GSM8K(str(tmp_path), rationale="natural").load("train")
    assert loaded.problems[0].steps == ["She sells 16 - 7 = 9 eggs.", "She earns 9 * 2,000 = $18,000."]
    assert loaded.missing_rationale == 0
    error(lambda: GSM8K(rationale="prose"), "rationale", "prose", "equations, natural")


def test_gsm8k_missing_rationale(tmp_path):
    file = write_lines(tmp_path / "train.jsonl", [JANET, BARE])
    loaded = GSM8K(str(tmp_path)).load("train")
    assert [problem.id for problem in loaded.problems] == ["gsm8k/train/0"]
    assert (loaded.missing_rationale, loaded.bad_rows, loaded.files) == (1, 0, [file])
    loaded = GSM8K(str(tmp_path), on_missing_rationale="natural").load("train")
    assert [problem.steps for problem in loaded.problems] == [
        ["<<16-7=9>>", "<<9*2000=18000>>"],
        ["Ann is 7.", "She said so."],
    ]
    assert loaded.missing_rationale == 1
    error(lambda: GSM8K(str(tmp_path), on_missing_rationale="error").load("train"), file, "line 2", "to drop")
    write_lines(file, [{"question": "q", "answer": "#### 7"}])
    error(lambda: GSM8K(str(tmp_path), on_missing_rationale="natural").load("train"), file, "line 1", "either")
    error(lambda: GSM8K(str(tmp_path)).load("train"), "train split is empty", "1 problems without a rationale")


def test_gsm8k_validation_is_taken_out_of_training(tmp_path, monkeypatch):
    rows = [{"question": f"What is {n}?", "answer": f"<<{n}={n}>>{n} #### {n}"} for n in range(4)]
    held = frozenset({question_hash("What is  2?"), question_hash(" What\nis 0?")})
    monkeypatch.setattr("lori_pl.data.sources.gsm8k._validation_hashes", lambda: held)
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "test.jsonl", rows)
    source = GSM8K(str(tmp_path))
    assert [problem.answer for problem in source.load("train").problems] == ["1", "3"]
    assert [problem.id for problem in source.load("validation").problems] == ["gsm8k/train/0", "gsm8k/train/2"]
    assert len(source.load("test").problems) == 4


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"question": "q"}', ["field 'answer'", "is missing"]),
        ('{"question": "q", "answer": "seven"}', ["field 'answer'", "no '####'"]),
        ('{"question": "q", "answer": "seven ####"}', ["field 'answer'", "empty after '####'"]),
        ('{"question": "", "answer": "#### 7"}', ["field 'question'", "is empty"]),
        ('{"question": 7, "answer": "#### 7"}', ["field 'question'", "should be text", "int"]),
        ('{"question": "q", "answer": ', ["field 'row'", "not valid JSON"]),
        ('{"question": NaN, "answer": "#### 7"}', ["not valid JSON", "NaN"]),
        ('{"question": 1e99999999999999999999, "answer": "#### 7"}', ["not valid JSON", "out of range"]),
        ('{"question": ' + "[" * 100_000, ["not valid JSON"]),
        ('"text"', ["field 'row'", "JSON object", "str"]),
    ],
)
def test_bad_row(tmp_path, row, words):
    good = json.dumps(JANET)
    file = tmp_path / "test.jsonl"
    file.write_text(f"{good}\n\n{row}\n{good}\n", encoding="utf-8")
    message = error(lambda: GSM8K(str(tmp_path)).load("test"), file, "line 3", "set on_bad_row to skip", *words)
    assert len(message) < 500
    loaded = GSM8K(str(tmp_path), on_bad_row="skip").load("test")
    assert loaded.bad_rows == 1
    assert [problem.id for problem in loaded.problems] == ["gsm8k/test/0", "gsm8k/test/3"]
    assert len(GSM8K(on_bad_row="skip").read(file)) == 2


def test_encoding(tmp_path):
    file = tmp_path / "test.jsonl"
    row = {"question": "caf\u00e9 \u2028 Ann\u2019s?", "answer": "<<1+1=2>> #### 2"}
    file.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(row, ensure_ascii=False)}\r\n\r\n".encode())
    assert [problem.question for problem in GSM8K().read(file)] == [row["question"]]
    file.write_bytes(b'{"question": "caf\xe9"}')
    error(lambda: GSM8K().read(file), file, "byte 17", "UTF-8")


# files and splits


def test_missing_files(tmp_path):
    error(lambda: GSM8K(str(tmp_path)).load("train"), "no train file", tmp_path, "train.jsonl")
    error(lambda: GSM8K(str(tmp_path / "none")).load("test"), "no folder", tmp_path / "none", "test.jsonl")
    error(lambda: GSM8K().load("test"), "no path given")
    error(lambda: GSM8K(str(tmp_path)).load("dev"), "no split 'dev'", "train, validation, test")
    error(lambda: GSM8K().read(tmp_path / "none.jsonl"), "no file", tmp_path / "none.jsonl")
    error(lambda: GSM8K().read(tmp_path), tmp_path, "is a folder", "split")
    file = write_lines(tmp_path / "test.jsonl", [])
    error(lambda: GSM8K().read(file), file, "no problem")
    error(lambda: GSM8K(str(tmp_path)).load("test"), "test split is empty", file)
    error(lambda: GSM8K(str(file)).load("test"), file, "is a file", "folder", "test.jsonl")


def test_options(tmp_path):
    error(lambda: ProsQA(on_bad_row="ignore"), "on_bad_row", "ignore", "error, skip")
    error(lambda: ProsQA(on_missing_rationale="keep"), "on_missing_rationale", "keep", "drop, natural, error")
    error(lambda: load_problems("gsm9k", tmp_path), "gsm9k", "gsm8k, gsm8k_aug, gsm_hard")
    error(lambda: load_problems("synthetic", "some.txt"), "synthetic", "path")
    error(lambda: load_problems("synthetic"), "reads no files", "split")
    error(lambda: load_problems("prosqa", tmp_path, "test", colour=1), "prosqa", "colour")


def test_names():
    names = "synthetic gsm8k gsm8k_aug gsm_hard svamp multiarith prosqa multiplication jsonl hub"
    assert set(names.split()) <= set(SOURCES)
    for name, source in SOURCES.items():
        assert source.name == name


def test_a_source_of_ones_own(tmp_path):
    class Shouted(RowSource):
        name = "shouted"
        file_names = {"test": ("shouted.json",)}

        def parse(self, value, problem_id):
            return GSM8K().parse({key: text.lower() for key, text in value.items()}, problem_id)

    write_list(tmp_path / "shouted.json", [{"question": "WHAT?", "answer": "#### SEVEN"}])
    (problem,) = Shouted(str(tmp_path)).load("test").problems
    assert (problem.id, problem.question, problem.answer) == ("shouted/shouted/0", "what?", "seven")


# GSM8K-Aug


def test_gsm8k_aug_text(tmp_path):
    (tmp_path / "train.txt").write_text("A, b?||<<16-3=13>> <<13*2=26>> #### 26\nC?|| #### 1,000\n", encoding="utf-8")
    (tmp_path / "valid.txt").write_text("C?||#### 1/2", encoding="utf-8")
    loaded = GSM8KAug(str(tmp_path)).load("train")
    (problem,) = loaded.problems
    assert (problem.id, problem.question, problem.answer) == ("gsm8k_aug/train/0", "A, b?", "26")
    assert problem.steps == ["<<16-3=13>>", "<<13*2=26>>"]
    assert loaded.missing_rationale == 1
    (problem,) = GSM8KAug(str(tmp_path)).load("validation").problems
    assert (problem.steps, problem.answer) == ([], "1/2")
    natural = GSM8KAug(str(tmp_path), on_missing_rationale="natural")
    error(lambda: natural.load("train"), "train.txt", "line 2", "gsm8k_aug has no natural-language steps")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("q #### 1", ["field 'question'", "||"]),
        ("q||a||b #### 1", ["field 'question'", "has 2"]),
        ("||a #### 1", ["field 'question'", "empty"]),
        ("q||a 1", ["field 'answer'", "####"]),
        ("q||a ####", ["field 'answer'", "empty"]),
    ],
)
def test_gsm8k_aug_bad_text(tmp_path, line, words):
    (tmp_path / "test.txt").write_text(f"q||<<1+1=2>> #### 2\n{line}\n", encoding="utf-8")
    error(lambda: GSM8KAug(str(tmp_path)).load("test"), "test.txt", "line 2", *words)


@pytest.mark.parametrize("write", [write_lines, write_list])
def test_gsm8k_aug_json(tmp_path, write):
    rows = [
        {"question": "a", "steps": ["<<1+1=2>>", "<<2*2=4>>"], "answer": "4"},
        {"question": "b", "cot": "<<1+1=2>> <<2*2=4>>", "answer": "1,000"},
        {"question": "c", "cot": "One and 1.5 make 2.5. Twice that is 5.", "answer": 5.0},
        {"question": "d", "answer": 6},
    ]
    write(tmp_path / "test.json", rows)
    problems = GSM8KAug(str(tmp_path)).load("test").problems
    assert [problem.steps for problem in problems] == [
        ["<<1+1=2>>", "<<2*2=4>>"],
        ["<<1+1=2>>", "<<2*2=4>>"],
        ["One and 1.5 make 2.5.", "Twice that is 5."],
        [],
    ]
    assert [problem.answer for problem in problems] == ["4", "1000", "5", "6"]


def test_json_list_errors(tmp_path):
    write_list(
        tmp_path / "test.json", [{"question": "a", "steps": ["x"], "answer": "4"}, {"question": "a", "steps": [4]}]
    )
    source = GSM8KAug(str(tmp_path))
    error(lambda: source.load("test"), "test.json", "record 2", "field 'answer'", "is missing", "question, steps")
    write_list(tmp_path / "test.json", [{"question": "a", "steps": [4], "answer": "4"}])
    error(lambda: source.load("test"), "record 1", "field 'steps'", "list of texts")
    (tmp_path / "test.json").write_text('[{"question": ', encoding="utf-8")
    error(lambda: source.load("test"), "test.json", "not valid JSON")


# GSM-Hard


def test_gsm_hard(tmp_path):
    targets = ["-9.0", "15", "1.5e10", "0.25", "3.3333333333333335", '"1/3"', "-0.0", "1E-7", "1e999"]
    lines = [f'{{"input": "q", "code": "def solution(): pass", "target": {target}}}' for target in targets]
    file = tmp_path / "gsmhardv2.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    for path in (tmp_path, file):
        loaded = GSMHard(str(path)).load("test")
        answers = [problem.answer for problem in loaded.problems]
        assert answers == ["-9", "15", "15000000000", "0.25", "3.3333333333333335", "1/3", "0", "0.0000001", "1E+999"]
        assert loaded.problems[0].steps == []
    for split in ("train", "validation"):
        error(lambda split=split: GSMHard(str(tmp_path)).load(split), "evaluation only", f"no {split} split")
        error(lambda split=split: GSMHard(str(file)).load(split), "evaluation only")
    for target in ("true", "null", "[1]"):
        file.write_text(f'{{"input": "q", "target": {target}}}', encoding="utf-8")
        error(lambda: GSMHard(str(tmp_path)).load("test"), "line 1", "field 'target'", "number or text")


# SVAMP, MultiArith and their equations


def svamp_row(equation, answer):
    return {"ID": "chal-1", "Body": "He had 8. ", "Question": "How many now?", "Equation": equation, "Answer": answer}


def test_svamp(tmp_path):
    rows = [
        svamp_row("( ( 8.0 + 4.0 ) * 3.0 )", 36.0),
        svamp_row("( 8.0 - ( 3.0 / 2.0 ) )", "6.5"),
        svamp_row("145.0", "145.0"),
        svamp_row("( ( 4.0 - 2.0 ) + 3.0 )", 1.0),  # as published: the answer stands, its contradiction is no rationale
    ]
    file = write_list(tmp_path / "SVAMP.json", rows)
    problems = SVAMP(str(tmp_path)).load("test").problems
    assert problems == SVAMP(str(file)).load("test").problems == SVAMP().read(file)
    assert problems[0].question == "He had 8. How many now?"
    assert [problem.steps for problem in problems] == [
        ["<<8+4=12>>", "<<12*3=36>>"],
        ["<<3/2=1.5>>", "<<8-1.5=6.5>>"],
        [],
        [],
    ]
    assert [problem.answer for problem in problems] == ["36", "6.5", "145", "1"]
    error(lambda: SVAMP(str(tmp_path)).load("train"), "evaluation only")
    error(lambda: SVAMP(str(tmp_path)).load("validation"), "evaluation only")
    write_list(file, [svamp_row("( 8.0 / 0.0 )", 1.0)])
    error(lambda: SVAMP(str(tmp_path)).load("test"), file, "record 1", "field 'Equation'", "divides by zero")


def test_svamp_with_a_split_of_ones_own(tmp_path):
    write_list(tmp_path / "SVAMP.json", [svamp_row("( 1.0 + 1.0 )", 2.0)] * 2)
    write_list(tmp_path / "train.json", [svamp_row("( 1.0 + 1.0 )", 2.0)])
    assert len(SVAMP(str(tmp_path)).load("train").problems) == 1
    error(lambda: SVAMP(str(tmp_path)).load("test"), "train.json", "no test.json")
    write_list(tmp_path / "test.json", [svamp_row("( 2.0 + 1.0 )", 3.0)])
    assert [problem.answer for problem in SVAMP(str(tmp_path)).load("test").problems] == ["3"]


def test_multiarith(tmp_path):
    row = {"sQuestion": " Debby had 32. ", "lEquations": ["X=((32.0+42.0)-35.0)"], "lSolutions": [39.0], "iIndex": 0}
    file = write_list(
        tmp_path / "MultiArith.json", [row, row | {"lEquations": ["(7.0 + 3.0) / 4.0 = x"], "lSolutions": [2.5]}]
    )
    for path in (tmp_path, file):
        first, second = MultiArith(str(path)).load("test").problems
        assert (first.question, first.answer, first.steps) == ("Debby had 32.", "39", ["<<32+42=74>>", "<<74-35=39>>"])
        assert (second.answer, second.steps) == ("2.5", ["<<7+3=10>>", "<<10/4=2.5>>"])
    error(lambda: MultiArith(str(tmp_path)).load("train"), "evaluation only")
    for change, word in [
        ({"lSolutions": [1, 2]}, "list of one"),
        ({"lSolutions": 1}, "list of one"),
        ({"lSolutions": [None]}, "number or text"),
        ({"lEquations": ["3+4"]}, "X=..."),
        ({"lEquations": [3]}, "one text"),
        ({"lEquations": ["X=3+y"]}, "unexpected 'y'"),
    ]:
        write_list(file, [row | change])
        error(lambda: MultiArith(str(tmp_path)).load("test"), "record 1", f"field '{next(iter(change))}'", word)


@pytest.mark.parametrize(
    ("expression", "value", "steps"),
    [
        ("7", 7, []),
        ("2+3*4", 14, ["<<3*4=12>>", "<<2+12=14>>"]),
        ("10-4-3", 3, ["<<10-4=6>>", "<<6-3=3>>"]),
        ("(1+2)*(3+4)", 21, ["<<1+2=3>>", "<<3+4=7>>", "<<3*7=21>>"]),
        ("1/3", Fraction(1, 3), ["<<1/3=1/3>>"]),
        ("6/(1/3)", 18, ["<<1/3=1/3>>", "<<6/(1/3)=18>>"]),
        ("5-(2-4)", 7, ["<<2-4=-2>>", "<<5-(-2)=7>>"]),
        ("-3+5", 2, ["<<-3+5=2>>"]),
        ("2*-3", -6, ["<<2*(-3)=-6>>"]),
        ("0.1+0.2", Fraction(3, 10), ["<<0.1+0.2=0.3>>"]),
        ("1/8", Fraction(1, 8), ["<<1/8=0.125>>"]),
        ("(" * 100 + "1" + ")" * 100, 1, []),
    ],
)
def test_equation(expression, value, steps):
    assert solve_equation(expression) == (value, steps)


@pytest.mark.parametrize(
    ("expression", "word"),
    [
        ("", "ends"),
        ("3+", "ends"),
        ("3 4", "unexpected '4'"),
        ("3(4)", "unexpected '('"),
        ("+3", "unexpected '+'"),
        ("()", "unexpected ')'"),
        ("(3", "unclosed"),
        ("3)", "unopened"),
        ("3/(2-2)", "zero"),
        ("2**3", "unexpected '*'"),
        ("__import__('os')", "unexpected"),
        ("1+" * MAX_LENGTH + "1", "longer"),
    ],
)
def test_bad_equation(expression, word):
    with pytest.raises(ValueError, match=re.escape(word)):
        solve_equation(expression)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_equation_agrees_with_python(seed, depth):
    generator = random.Random(seed)

    def expression(level):
        if level == 0:
            return str(generator.randint(1, 9))
        return f"( {expression(level - 1)} {generator.choice('+-*/')} {expression(0)} )"

    text = expression(depth)
    exact = eval("".join(f"Fraction({part})" if part.isdigit() else part for part in text.split()))
    value, steps = solve_equation(text)
    assert value == exact
    assert len(steps) == depth
    assert steps[-1].endswith(f"={fraction_text(exact)}>>")
    for step in steps:
        left, right = step[2:-2].split("=")
        assert solve_equation(left)[0] == solve_equation(right)[0]


@settings(deadline=None, max_examples=40)
@given(st.fractions(max_denominator=10**4))
def test_fraction_text_is_exact(value):
    assert Fraction(fraction_text(value)) == value
    assert same_answer(fraction_text(value), f"{value.numerator}/{value.denominator}")


# ProsQA


def test_prosqa(tmp_path):
    row = {
        "question": "Is Tom a lempus?",
        "answer": "Tom is a lempus.",
        "steps": ["Tom is a terpus. ", "So."],
        "edges": [[0, 2]],
    }
    write_list(tmp_path / "valid.json", [row])
    write_list(tmp_path / "prosqa_train.json", [row, row | {"steps": []}])
    (problem,) = ProsQA(str(tmp_path)).load("validation").problems
    assert (problem.id, problem.answer, problem.steps) == ("prosqa/valid/0", row["answer"], ["Tom is a terpus.", "So."])
    assert ProsQA(str(tmp_path)).load("train").missing_rationale == 1
    error(lambda: ProsQA(str(tmp_path)).load("test"), "no test file", "test.json or prosqa_test.json")


# multiplication


def test_multiplication_by_hand():
    problem = multiplication_problem(2365, 4347, 4)
    assert problem.question == "5 6 3 2 * 7 4 3 4"
    assert problem.steps == [
        "5 5 5 6 1",
        "+ 0 0 6 4 9 0 ( 5 5 1 1 1 1 )",
        "+ 0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 )",
        "+ 0 0 0 0 6 4 9 0",
    ]
    assert problem.answer == "5 5 6 0 8 2 0 1"
    assert multiplication_problem(7, 8, 1).steps == ["6 5"]
    assert multiplication_problem(12, 34, 2).steps == ["8 4 0", "+ 0 6 3 0"]


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 20))
def test_multiplication_is_right(data, digits):
    numbers = st.integers(10 ** (digits - 1), 10**digits - 1)
    first, second = data.draw(numbers), data.draw(numbers)
    problem = multiplication_problem(first, second, digits)

    def number(text):
        return int(text.replace(" ", "")[::-1])

    assert number(problem.answer) == first * second
    partial = 0
    for place, step in enumerate(problem.steps):
        product, _, total = step.removeprefix("+ ").rstrip(" )").partition(" ( ")
        partial += number(product)
        assert number(product) == first * int(str(second)[::-1][place]) * 10**place
        assert not total or number(total) == partial
    assert partial == first * second


def operands(problem):
    return frozenset(int(part.replace(" ", "")[::-1]) for part in problem.question.split("*"))


def test_multiplication_splits_are_disjoint_and_deterministic():
    sizes = {"train_size": 3000, "validation_size": 500, "test_size": 500}
    source = Multiplication(digits=2, **sizes)
    splits = {split: source.load(split).problems for split in ("train", "validation", "test")}
    assert [len(problems) for problems in splits.values()] == [3000, 500, 500]
    pairs = [operands(problem) for problems in splits.values() for problem in problems]
    assert len(set(pairs)) == 4000
    assert splits["test"][3].id == "multiplication/test/3"
    assert source.load("test").files == []
    again = Multiplication(digits=2, **sizes | {"train_size": 10})
    assert again.load("test").problems == splits["test"]
    assert again.load("validation").problems == splits["validation"]
    assert again.load("train").problems == splits["train"][:10]
    assert Multiplication(digits=2, **sizes, seed=1).load("test").problems != splits["test"]
    assert load_problems("multiplication", None, "test", digits=2, **sizes) == splits["test"]


def test_multiplication_files(tmp_path):
    line = "2 1 * 4 3||8 4 0 + 0 6 3 0 #### 8 0 4 0"
    (tmp_path / "2x2_train.txt").write_text(f"{line}\n", encoding="utf-8")
    (problem,) = Multiplication(str(tmp_path)).load("train").problems
    assert (problem.id, problem.question, problem.answer) == ("multiplication/2x2_train/0", "2 1 * 4 3", "8 0 4 0")
    assert problem.steps == ["8 4 0", "+ 0 6 3 0"]
    (tmp_path / "3x3_train.txt").write_text(f"{line}\n", encoding="utf-8")
    error(lambda: Multiplication(str(tmp_path)).load("train"), "2x2_train.txt, 3x3_train.txt", "train.txt")
    (tmp_path / "train.txt").write_text(f"{line}\n{line}\n", encoding="utf-8")
    assert len(Multiplication(str(tmp_path)).load("train").problems) == 2
    error(lambda: Multiplication(str(tmp_path)).load("test"), "no test file", "test.txt")
    (tmp_path / "train.txt").write_text("12 * 34||8 #### 8\n", encoding="utf-8")
    error(lambda: Multiplication(str(tmp_path)).load("train"), "line 1", "field 'question'", "digits apart")


def test_multiplication_errors():
    error(lambda: Multiplication(digits=0), "digits is 0")
    error(lambda: Multiplication(test_size=-1), "test_size is -1")
    error(lambda: Multiplication(digits=1, train_size=40, validation_size=5, test_size=1), "46 problems", "45 pairs")
    full = Multiplication(digits=1, train_size=40, validation_size=5, test_size=0)
    assert len(full.load("train").problems) == 40
    error(lambda: full.load("test"), "test split is empty", "test_size")
    error(lambda: full.load("dev"), "no split 'dev'")


# JSONL


def test_jsonl_fields(tmp_path):
    rows = [
        {"q": "a", "why": "one\n\ntwo\n", "out": "7"},
        {"q": "b", "why": ["one", " "], "out": 7.5},
        {"q": "c", "why": "<<1+1=2>><<2+2=4>>", "out": "$1,000."},
        {"q": "d", "why": None, "out": "yes"},
        {"q": "e", "out": "May 5"},
    ]
    write_lines(tmp_path / "dev" / "data.jsonl", rows)
    write_lines(tmp_path / "data.jsonl", rows)
    options = {"question_field": "q", "rationale_field": "why", "answer_field": "out"}
    source = JSONL(str(tmp_path), train_file="data.jsonl", validation_file="dev/data.jsonl", **options)
    loaded = source.load("validation")
    assert [problem.steps for problem in loaded.problems] == [
        ["one", "two"],
        ["one"],
        ["<<1+1=2>>", "<<2+2=4>>"],
        [],
        [],
    ]
    assert [problem.answer for problem in loaded.problems] == ["7", "7.5", "1000", "yes", "May 5"]
    assert loaded.problems[0].id == "jsonl/dev/data/0"
    assert source.load("train").problems[0].id == "jsonl/data/0"
    assert source.load("train").missing_rationale == 2
    error(lambda: source.load("test"), "no test file", "test.jsonl")
    error(lambda: JSONL(str(tmp_path), train_file="data.jsonl").load("train"), "field 'question'", "has q, why, out")


def test_jsonl_reads_rationale_and_answer_from_one_field(tmp_path):
    write_lines(tmp_path / "train.jsonl", [JANET])
    (problem,) = JSONL(str(tmp_path), rationale_field="answer").load("train").problems
    assert problem.steps == JANET["answer"].split("\n")[:2]
    assert problem.answer == "18000"


def test_jsonl_divides_one_file(tmp_path):
    rows = [{"question": f"question {n % 500}", "rationale": "r", "answer": n} for n in range(1000)]
    file = write_lines(tmp_path / "all.jsonl", rows)
    source = JSONL(str(file))
    splits = {split: source.load(split).problems for split in ("train", "validation", "test")}
    questions = {split: {problem.question for problem in problems} for split, problems in splits.items()}
    assert sum(map(len, splits.values())) == 1000
    assert len(set.union(*questions.values())) == sum(map(len, questions.values())) == 500
    assert 350 < len(questions["train"]) < 450
    assert min(len(questions["validation"]), len(questions["test"])) > 25
    write_lines(file, rows[::-1])
    assert {problem.question for problem in source.load("test").problems} == questions["test"]
    assert len(load_problems("jsonl", file)) == 1000


# hub


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra lori_pl[hub] is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


def test_hub(datasets, tmp_path):
    folder = tmp_path / "data"
    write_lines(
        folder / "train.jsonl",
        [{"question": "a", "cot": "<<1+1=2>>", "answer": 2.0}, {"question": "b", "cot": None, "answer": 3.5}],
    )
    write_lines(folder / "test.jsonl", [{"question": "c", "cot": "x", "answer": 1.0}])
    source = Hub(str(folder), revision="4fd88d4", validation_split="", rationale_field="cot")
    loaded = source.load("train")
    (problem,) = loaded.problems
    assert (problem.id, problem.question, problem.answer, problem.steps) == ("hub/train/0", "a", "2", ["<<1+1=2>>"])
    assert (loaded.missing_rationale, loaded.files) == (1, [])
    assert load_problems("hub", folder, "test", revision="4fd88d4")[0].answer == "1"
    error(lambda: source.load("validation"), "no validation split", "validation_split")
    error(lambda: Hub(str(folder), revision="1", train_split="big").load("train"), "'big'", folder, "split's name")
    error(lambda: Hub(str(folder), revision="1", answer_field="out").load("train"), "[train], record 1", "field 'out'")
    error(lambda: Hub(str(folder / "none"), revision="1").load("train"), "cannot load", folder / "none", "check path")
    error(lambda: source.read("train.jsonl"), "read by split")


@pytest.mark.parametrize("revision", ["", "main", "refs/convert/parquet"])
def test_hub_wants_a_pinned_revision(revision):
    error(lambda: Hub("owner/name", revision=revision), "owner/name", "does not pin", "commit")
    error(lambda: load_problems("hub", "owner/name", "train", revision=revision), "does not pin")


def test_hub_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    error(lambda: Hub("owner/name", revision="1").load("train"), "not installed", "lori_pl[hub]")
    error(lambda: Hub(revision="1"), "no data set", "owner/name")
