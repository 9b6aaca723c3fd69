"""What is done with a finished run: its student tested, asked, exported and started from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from config_files import CONFIGS
from failing import fails
from tiny_world import BACKBONE, BASE, SOURCE, assert_same, checkpoint
from watching import weights_after

from lori_pl import LatentReasoner
from lori_pl.cli import main
from lori_pl.data.problem import problems_digest
from lori_pl.data.sources import Synthetic
from lori_pl.data.tokenizer import synthetic_tokenizer
from lori_pl.evaluation.records import read_outcomes
from lori_pl.methods import ExplicitCoT, LoRi, NoCoT, Pause
from lori_pl.models.teacher import FrozenTeacher


@pytest.mark.slow
def test_a_students_folder_is_enough_for_a_test(world, lori_args, teacher, tmp_path):
    """Neither the teacher nor a model config: the folder brings weights, tokenizer and template."""
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    assert world.fit("LoRi", "run", **(lori_args | {"teacher": {"name": str(copy)}})) == 0
    shutil.rmtree(copy)
    flags = ["--ckpt_path", str(world.folder / "run" / "student"), "--trainer.default_root_dir", str(tmp_path / "test")]
    base = world.config("base", BASE)
    assert main(["test", "--config", base, "--config", str(CONFIGS / "method/lori.yaml"), *flags]) == 0
    both = [read_outcomes(folder / "correct.npz") for folder in (world.folder / "run", tmp_path / "test")]
    assert both[0].ids == both[1].ids
    assert (both[0].bits["lori", 0] == both[1].bits["lori", 0]).all()
    summary = json.loads((world.folder / "run" / "summary.json").read_text())["methods"]["lori"]
    for k in (1, 2):
        share = both[0].bits["lori", 0][both[0].steps == k].mean()
        assert summary[f"accuracy_steps_{k}"] == pytest.approx(share)
        assert summary[f"n_steps_{k}"] == (both[0].steps == k).sum()


def test_the_student_is_there_before_a_test_can_fail(world, monkeypatch):
    monkeypatch.setattr(ExplicitCoT, "on_test_start", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.fit("ExplicitCoT", "run", backbone=BACKBONE)
    assert LatentReasoner.from_pretrained(world.folder / "run" / "student").reasoning == "words"


@pytest.mark.slow
def test_export_and_test_load_no_teacher(world, lori_args, monkeypatch):
    assert world.fit("LoRi", "run", **lori_args) == 0
    monkeypatch.setattr(FrozenTeacher, "__init__", lambda *_: pytest.fail("a teacher was loaded"))
    flags = ["--ckpt_path", str(world.folder / "run" / "checkpoints" / "last.ckpt")]
    assert world.run("test", *flags, method="LoRi", root="test", **lori_args) == 0
    flags += ["--folder", str(world.folder / "exported")]
    assert world.run("export", *flags, method="LoRi", **lori_args) == 0
    assert LatentReasoner.from_pretrained(world.folder / "exported").thought.latents == 3


def test_the_number_of_latents_can_be_chosen_for_a_test(world, lori_args, capsys):
    assert world.fit("LoRi", "run", **lori_args) == 0
    for i, name in enumerate(("student", "checkpoints/last.ckpt")):
        flags = ["--ckpt_path", str(world.folder / "run" / name), "--latents", "1"]
        assert world.run("test", *flags, method="LoRi", root=f"test{i}", **lori_args) == 0
        summary = json.loads((world.folder / f"test{i}" / "summary.json").read_text())
        trained = json.loads((world.folder / "run" / "summary.json").read_text())
        assert (summary["latents"], trained["latents"]) == (1, 3)
    assert world.fit("LoRi", "other", "--latents", "1", **lori_args) == 2
    assert "--model.latents" in capsys.readouterr().err


def test_test_takes_a_checkpoint_and_a_folder_and_they_agree(world, lori_args, monkeypatch):
    tested = weights_after("on_test_start", LoRi, monkeypatch)
    assert world.fit("LoRi", "run", "--seed_everything=3", **lori_args) == 0
    run = world.folder / "run"
    for name, path in (("ckpt", run / "checkpoints" / "best.ckpt"), ("folder", run / "student")):
        flags = ["--ckpt_path", str(path), "--seed_everything=5"]
        assert world.run("test", *flags, method="LoRi", root=name, **lori_args) == 0
    best = checkpoint(run, "best.ckpt")["state_dict"]
    assert any(not torch.equal(value, best[key]) for key, value in checkpoint(run)["state_dict"].items())
    # the accuracy of so short a run says little: the weights tell what was tested
    assert len(tested) == 3
    for weights in tested:
        reasoner = {key: value for key, value in weights.items() if key.startswith("reasoner.")}
        assert_same(reasoner, {key: value for key, value in best.items() if key.startswith("reasoner.")})
    summaries = [json.loads((world.folder / n / "summary.json").read_text()) for n in ("ckpt", "folder", "run")]
    accuracies = {summary["methods"]["lori"]["accuracy"] for summary in summaries}
    assert len(accuracies) == 1
    # whatever the test's own seed is, the row is that training's
    assert [summary["seed"] for summary in summaries] == [3, 3, 3]
    assert list(read_outcomes(world.folder / "folder" / "correct.npz").bits) == [("lori", 3)]


def test_predict_writes_json_lines_for_bare_questions(world, lori_args):
    assert world.fit("LoRi", "run", **lori_args) == 0
    questions = world.folder / "questions.jsonl"
    questions.write_text('{"question": "Ann has 4 apples .", "answer": "4"}\n{"question": " Bob has 2 pens .\\n"}\n')
    out = world.folder / "out.jsonl"
    flags = ["--ckpt_path", str(world.folder / "run" / "student"), "--predictions", str(out)]
    flags += ["--data.predict_file", str(questions)]
    assert world.run("predict", *flags, method="LoRi", **lori_args) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["gold"] for row in rows] == ["4", None]
    keys = {"id", "question", "prediction", "gold", "correct", "passes", "milliseconds"}
    assert all(set(row) == keys for row in rows)
    assert rows[1]["correct"] is None
    assert rows[1]["question"] == "Bob has 2 pens ."  # as training has it


@pytest.mark.slow
def test_a_chat_template_goes_all_the_way(world, lori_args, tmp_path, capsys):
    """Teacher, student, its folder and its answers: the question stands in a user's turn in all of them."""
    tokenizer = synthetic_tokenizer()
    tokenizer.chat_template = "apples {{ messages[0]['content'] }} pens"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    chat = ["--data.template.chat=true", "--test_after_fit=false"]
    backbone = BACKBONE | {"tokenizer": str(tmp_path / "tokenizer")}
    assert world.fit("ExplicitCoT", "words", *chat, backbone=backbone) == 0
    arguments = lori_args | {"teacher": {"name": str(world.folder / "words" / "student")}}
    assert world.fit("LoRi", "run", *chat, **arguments) == 0
    folder = world.folder / "run" / "student"
    student = LatentReasoner.from_pretrained(folder)
    words = student.tokenizer.convert_ids_to_tokens(student.encoder.questions(["Ann has 4 ."])[0])
    assert words == ["apples", "Ann", "has", "4", ".", "pens"]
    (tmp_path / "questions.txt").write_text("Ann has 4 .\n")
    flags = [f"--ckpt_path={folder}", f"--data.predict_file={tmp_path / 'questions.txt'}"]
    flags += [f"--predictions={tmp_path / 'out.jsonl'}", chat[0]]
    assert world.run("predict", *flags, method="LoRi", **arguments) == 0
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    capsys.readouterr()
    assert row["prediction"] == student.answer(["Ann has 4 ."], max_new_tokens=4)[0].text
    # without it the teacher would read other text
    fails(world, capsys, "another data.template", "chat", method="LoRi", root="plain", **arguments)


@pytest.mark.slow
def test_export_makes_the_folder_that_fit_made(world, lori_args):
    assert world.fit("LoRi", "run", **lori_args) == 0
    run = world.folder / "run"
    out = world.folder / "exported"
    ckpt = run / "checkpoints" / "best.ckpt"
    arguments = ["export", "--config", str(run / "config.yaml"), "--ckpt_path", str(ckpt), "--folder", str(out)]
    assert main(arguments) == 0
    assert (out / "reasoner.json").read_text() == (run / "student" / "reasoner.json").read_text()
    one, two = (LatentReasoner.from_pretrained(folder) for folder in (run / "student", out))
    assert_same(one.state_dict(), two.state_dict())
    questions = ["Ann has 4 apples . She finds 3 ."]
    assert one.answer(questions) == two.answer(questions)


@pytest.mark.parametrize("method", [NoCoT, Pause])
def test_students_start_from_the_teachers_weights(world, teacher, method, monkeypatch):
    seen = weights_after("on_fit_start", method, monkeypatch)
    assert world.fit(method.__name__, "run", backbone={"name": teacher}) == 0
    theirs = {f"reasoner.{key}": value for key, value in LatentReasoner.from_pretrained(teacher).state_dict().items()}
    compared = [key for key in theirs if key.startswith("reasoner.lm.")]
    assert len(compared) > 10
    for key in compared:
        # `<bot>` and `<eot>` have rows of their own behind the teacher's words
        assert torch.equal(seen[0][key][: len(theirs[key])], theirs[key]), key


def test_validate_reports(world, capsys):
    assert world.fit("ExplicitCoT", "run", backbone=BACKBONE) == 0
    flags = ["--ckpt_path", str(world.folder / "run" / "checkpoints" / "last.ckpt")]
    capsys.readouterr()
    assert world.run("validate", *flags, method="ExplicitCoT", root="validate", backbone=BACKBONE) == 0
    shown = capsys.readouterr().out
    assert "val/accuracy" in shown
    assert "val/loss" in shown


def test_one_test_reports_each_of_several_sets(world, capsys):
    sizes = {"short": 6, "long": 9}
    sources = {name: {**SOURCE, "init_args": {**SOURCE["init_args"], "test": n}} for name, n in sizes.items()}
    sources["long"]["init_args"] |= {"min_steps": 3, "max_steps": 3}
    sets = world.config("sets", {"data": {"test_sources": sources}})
    assert world.fit("NoCoT", "run", f"--config={sets}", backbone=BACKBONE) == 0
    shown = capsys.readouterr().out
    summary = json.loads((world.folder / "run" / "summary.json").read_text())
    for name, n in sizes.items():
        assert f"no_cot on {name}" in shown
        values = summary["test_sets"][name]
        file = "correct.npz" if name == next(iter(summary["test_sets"])) else f"correct_{name}.npz"
        outcomes = read_outcomes(world.folder / "run" / file)
        assert values["n"] == len(outcomes.ids) == n
        assert set(outcomes.steps.tolist()) == ({3} if name == "long" else {1, 2})
        assert outcomes.problems == problems_digest(Synthetic(**sources[name]["init_args"]).load("test").problems)


def test_a_run_that_is_not_tested_needs_no_test_problems(world, capsys):
    source = {**SOURCE, "init_args": {**SOURCE["init_args"], "test": 0}}
    flags = ["--config", world.config("untested", {"data": {"source": source}})]
    fails(world, capsys, "test split is empty", flags=flags, backbone=BACKBONE)
    assert world.fit("ExplicitCoT", "run", *flags, "--test_after_fit=false", backbone=BACKBONE) == 0
