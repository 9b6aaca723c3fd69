"""The published data sets on small files: what each format becomes, its splits, and what is wrong with a bad row."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import BARE, JANET, error, write_lines, write_list

from lori_pl.data.sources import (
    GSM8K,
    SVAMP,
    GSM8KAug,
    GSMHard,
    MultiArith,
    Multiplication,
    ProsQA,
    load_problems,
)
from lori_pl.data.sources.fields import question_hash
from lori_pl.data.sources.multiplication import multiplication_problem

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
    assert (loaded.missing_rationale, loaded.bad_rows) == (1, 0)
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


# SVAMP and MultiArith


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


def test_multiplication_is_generated_beside_files_without_their_pairs(tmp_path):
    held_out = Multiplication(digits=2, train_size=10, validation_size=1500, test_size=1500, seed=3)
    for name, split in (("valid", "validation"), ("test", "test")):
        problems = held_out.load(split).problems
        lines = [f"{p.question}||{' '.join(p.steps)} #### {p.answer}" for p in problems]
        (tmp_path / f"2x2_{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = Multiplication(str(tmp_path), digits=2, train_size=1000, generate_train=True)
    splits = {split: source.load(split).problems for split in ("train", "validation", "test")}
    assert [len(problems) for problems in splits.values()] == [1000, 1500, 1500]
    assert [p.answer for p in splits["test"]] == [p.answer for p in held_out.load("test").problems]
    pairs = [operands(problem) for problems in splits.values() for problem in problems]
    assert len(set(pairs)) == 4000
    assert source.load("train").problems == splits["train"]
    # 90 numbers make 4,095 pairs
    more = Multiplication(str(tmp_path), digits=2, train_size=1096, generate_train=True)
    error(lambda: more.load("train"), "1096 training problems", "1095 pairs", "train_size")
    other = Multiplication(str(tmp_path), digits=3, train_size=10, generate_train=True)
    error(lambda: other.load("train"), "no product of 3-digit numbers", "set digits")


def test_multiplication_errors():
    error(lambda: Multiplication(digits=0), "digits is 0")
    error(lambda: Multiplication(test_size=-1), "test_size is -1")
    error(lambda: Multiplication(digits=1, train_size=40, validation_size=5, test_size=1), "46 problems", "45 pairs")
    full = Multiplication(digits=1, train_size=40, validation_size=5, test_size=0)
    assert len(full.load("train").problems) == 40
    error(lambda: full.load("test"), "test split is empty", "test_size")
    error(lambda: full.load("dev"), "no split 'dev'")
