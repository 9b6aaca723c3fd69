"""What every data source has: files, splits, options, bad rows; and the sources of one's own data, JSONL and hub."""

import json
import sys

import pytest
from source_files import JANET, error, write_lines, write_list

from lori_pl.data.sources import (
    GSM8K,
    JSONL,
    SOURCES,
    SVAMP,
    GSM8KAug,
    Hub,
    ProsQA,
    RowSource,
    load_problems,
)

# rows


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"question": "q"}', ["field 'answer'", "is missing"]),
        ('{"question": "q", "answer": "seven"}', ["field 'answer'", "no '####'"]),
        ('{"question": "q", "answer": "seven ####"}', ["field 'answer'", "empty after '####'"]),
        ('{"question": "", "answer": "#### 7"}', ["field 'question'", "is empty"]),
        ('{"question": 7, "answer": "#### 7"}', ["field 'question'", "should be text", "int"]),
        ('{"question": "q", "answer": ', ["the row is not valid JSON"]),
        ('{"question": NaN, "answer": "#### 7"}', ["not valid JSON", "NaN"]),
        ('{"question": 1e99999999999999999999, "answer": "#### 7"}', ["not valid JSON", "out of range"]),
        ('{"question": ' + "[" * 100_000, ["not valid JSON"]),
        ('"text"', ["the row should be a JSON object", "str"]),
    ],
)
def test_bad_row(tmp_path, row, words):
    good = json.dumps(JANET)
    file = tmp_path / "test.jsonl"
    file.write_text(f"{good}\n\n{row}\n{good}\n", encoding="utf-8")
    message = error(lambda: GSM8K(str(tmp_path)).load("test"), file, "line 3", "--data.on_bad_row skip", *words)
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


# files and splits


def test_missing_files(tmp_path):
    error(lambda: GSM8K(str(tmp_path)).load("train"), "no train file", tmp_path, "train.jsonl")
    error(lambda: GSM8K(str(tmp_path / "none")).load("test"), "no folder", tmp_path / "none", "test.jsonl")
    for source in (JSONL, SVAMP):  # these take a file as well
        error(lambda source=source: source(str(tmp_path / "none")).load("test"), "no file or folder", tmp_path / "none")
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
    error(lambda: load_problems("gsm8k", None), "no path given", "file", "split")
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
    assert loaded.missing_rationale == 1
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
    error(lambda: Hub("owner/name", revision="1").load("train"), "not installed", ".[hub]")
    error(lambda: Hub(revision="1"), "no data set", "owner/name")
