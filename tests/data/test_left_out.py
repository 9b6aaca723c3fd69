"""What the data module leaves out, and what it says of it."""

from __future__ import annotations

import json

import pytest

from lori_pl.data import datamodule
from lori_pl.data.datamodule import PairedDataModule, Reader
from lori_pl.data.sources import GSM8K, JSONL, GSMHard, Synthetic
from lori_pl.data.template import Template
from lori_pl.errors import LoriError

NONE = {"malformed rows": 0, "without rationale": 0, "too long": 0}


def jsonl(folder, *rows):
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def counts(source, **options):
    module = PairedDataModule(source, **options)
    module.setup("fit")
    split = module.splits["train"]
    return len(split.problems), split.counts


BARE = {"question": "Ann has 4 apples .", "answer": "4"}
WHOLE = {"question": "Ann has 4 apples . She buys 3 .", "rationale": "<<4+3=7>>", "answer": "7"}
TWO = {"question": "Ann has 4 . She buys 3 . She buys 1 .", "rationale": "<<4+3=7>> <<7+1=8>>", "answer": "8"}


def test_a_problem_without_a_rationale_is_left_out_where_training_needs_one(tmp_path):
    folder = str(jsonl(tmp_path, BARE, WHOLE, BARE))
    assert counts(JSONL(folder)) == (1, NONE | {"without rationale": 2})
    with pytest.raises(LoriError, match=r"train\.jsonl, line 1: no rationale"):
        counts(JSONL(folder, on_missing_rationale="error"))


def test_a_rationale_under_another_name_is_told(tmp_path):
    folder = str(jsonl(tmp_path, {"question": "a", "cot": "<<4+3=7>>", "answer": "7"}))
    words = "rationale_field is 'rationale', and the first such record has question, cot, answer: name the field"
    with pytest.raises(LoriError, match=words):
        counts(JSONL(folder))
    assert counts(JSONL(folder, rationale_field="cot"))[0] == 1
    # also of one file, whose other problems are of other splits
    rows = [{"question": f"{number} ?", "cot": "<<4+3=7>>", "answer": "7"} for number in range(40)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(LoriError, match=words):
        JSONL(str(tmp_path / "all.jsonl")).load("train")


def test_a_split_that_the_hash_leaves_empty_is_told(tmp_path):
    file = tmp_path / "few.jsonl"
    file.write_text(json.dumps(WHOLE) + "\n")
    (split,) = [split for split in ("train", "validation", "test") if JSONL(str(file)).in_split(problem(file), split)]
    words = "divides one file, and put all 1 of its problems into other splits: give more problems, or a folder"
    with pytest.raises(LoriError, match=words):
        JSONL(str(file)).load("train" if split != "train" else "test")


def problem(file):
    return JSONL(str(file)).read(file)[0]


@pytest.mark.parametrize("missing", ["validation.jsonl", "test.jsonl"])
def test_what_is_missing_is_told_before_anything_is_encoded(tmp_path, monkeypatch, missing):
    source = JSONL(str(jsonl(tmp_path, WHOLE)))
    (tmp_path / missing).unlink()
    module = PairedDataModule(source)
    monkeypatch.setattr(datamodule, "EncodedProblems", lambda *_: pytest.fail("something was encoded"))
    with pytest.raises(LoriError, match=f"expected {missing}"):
        module.setup("fit")


@pytest.mark.parametrize("on_missing", ["drop", "error"])
def test_answers_alone_are_enough_for_a_method_that_needs_no_rationale(tmp_path, on_missing):
    source = JSONL(str(jsonl(tmp_path, BARE, WHOLE, BARE)), on_missing_rationale=on_missing)
    assert counts(source, reader=Reader(needs_rationale=False)) == (3, NONE)


def test_a_problem_with_its_natural_steps_is_not_left_out(tmp_path):
    rows = [{"question": "a", "answer": "We add . #### 4"}, {"question": "b", "answer": "So <<1+1=2>>2 . #### 2"}]
    jsonl(tmp_path, *rows)
    # the source takes its validation problems from the training file by a hash, and these are none of them
    source = GSM8K(str(tmp_path), on_missing_rationale="natural")
    module = PairedDataModule(source)
    split = module.prepare(source, "train")
    assert (len(split.problems), split.counts) == (2, NONE)
    source = GSM8K(str(tmp_path))
    assert PairedDataModule(source).prepare(source, "train").counts == NONE | {"without rationale": 1}


def test_malformed_rows_are_counted_in_every_source(tmp_path):
    folder = str(jsonl(tmp_path, WHOLE, {"question": 3}, WHOLE))
    with pytest.raises(LoriError, match=r"train\.jsonl, line 2, .*--data\.on_bad_row skip"):
        counts(JSONL(folder))
    module = PairedDataModule(JSONL(folder), test_sources={"own": JSONL(folder)}, on_bad_row="skip")
    module.setup("fit")
    for split in (*module.splits.values(), module.tests["own"]):
        assert (len(split.problems), split.counts) == (2, NONE | {"malformed rows": 1})


def test_a_rationale_of_one_step_is_none_without_its_last_step(tmp_path):
    source = JSONL(str(jsonl(tmp_path, WHOLE, TWO)))
    assert counts(source) == (2, NONE)
    assert counts(source, template=Template(drop_last_step=True)) == (1, NONE | {"without rationale": 1})
    strict = JSONL(str(tmp_path), on_missing_rationale="error")
    assert counts(strict) == (2, NONE)
    with pytest.raises(LoriError, match=r"jsonl/train/0 has no rationale without its last step"):
        counts(strict, template=Template(drop_last_step=True))


def test_every_question_of_a_file_is_answered(tmp_path):
    """Limits of training and evaluation are not those of who asks."""
    file = tmp_path / "questions.txt"
    file.write_text("Ann has 4 apples . How many are there ?\n" * 9 + "Ann has 4 . " * 30 + "\n")
    module = PairedDataModule(Synthetic(), test_problems=3, max_length=40, predict_file=str(file))
    module.setup("predict")
    assert len(module.splits["predict"].problems) == 10
    assert sum(len(batch.index) for batch in module.predict_dataloader()) == 10


def test_predict_asks_for_the_first_test_set_alone():
    """The second one is not there."""
    tests = {"first": Synthetic(test=5), "second": GSMHard("nowhere")}
    module = PairedDataModule(source=Synthetic(train=10, validation=2), test_sources=tests)
    module.setup("predict")
    assert sum(len(batch.index) for batch in module.predict_dataloader()) == 5
    assert module.tests == {}


def test_held_out_questions_that_are_training_questions_are_told(tmp_path, caplog):
    made = [{"question": f"{k} and 1 ?", "rationale": f"<<{k}+1={k + 1}>>", "answer": str(k + 1)} for k in range(12)]
    for name, those in (("train", made[:8]), ("validation", made[6:10]), ("test", made[8:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, those)) + "\n")
    module = PairedDataModule(source=JSONL(str(tmp_path)), batch_size=2)
    with caplog.at_level("WARNING"):
        module.setup("fit")
        module.setup("fit")
    told = [record.getMessage() for record in caplog.records if "training questions too" in record.getMessage()]
    said = "2 of 4 questions are training questions too; accuracy there is not that of unseen problems"
    assert told == [f"validation: {said}"]


def test_words_that_the_tokenizer_does_not_know_are_told(tmp_path, caplog):
    """The embedded world's tokenizer knows that world's words alone."""
    known = {"question": "Ann has 4 apples . How many are there ?", "rationale": "<<4+1=5>>", "answer": "5"}
    foreign = {"question": "Ophelia owns 4 kumquats today", "rationale": "<<4+1=5>>", "answer": "five"}
    for row, said in ((known, []), (foreign, ["question", "answer"])):
        caplog.clear()
        PairedDataModule(JSONL(str(jsonl(tmp_path, row)))).prepare(JSONL(str(tmp_path)), "test")
        told = [record.getMessage() for record in caplog.records if "does not know" in record.getMessage()]
        assert [f" of the {what} tokens" in line for what, line in zip(said, told, strict=True)] == [True] * len(said)
    assert told[0].startswith("test: the tokenizer does not know 80 % of the question tokens")
