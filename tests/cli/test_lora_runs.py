"""The README's path for a real model: LoRi with LoRA and trained marker rows, from a teacher's folder to an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import LORI_TERMS, World, assert_same, checkpoint

import lori_pl
from lori_pl import LatentReasoner
from lori_pl.cli import main
from lori_pl.data.synthetic import synthetic_problems
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.methods import LoRi
from lori_pl.models.backbone import Backbone, LoRA, load_causal_lm, prepare_training
from lori_pl.models.teacher import adapters

FLAGS = ["--trainer.val_check_interval=3", "--model.schedule.decay=none", "--model.schedule.warmup=0"]
FLAGS += ["--model.optimizer.class_path=torch.optim.AdamW", "--model.optimizer.init_args.lr=0.003"]
FLAGS += ["--model.max_new_tokens=4", "--data.source.test=64"]
# the shipped teacher: a student of a barely trained one would answer every question alike
ARGUMENTS: dict[str, Any] = {
    "backbone": {"lora": {"rank": 2, "alpha": 4.0, "dropout": 0.3}},
    "teacher": {"name": str(Path(lori_pl.__file__).parent / "assets" / "teacher")},
    **LORI_TERMS,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A whole run in the folder ``run``."""
    world = World(tmp_path_factory.mktemp("lora"))
    assert world.fit("LoRi", "run", *FLAGS, "--trainer.max_steps=11", **ARGUMENTS) == 0
    return world


def test_adapters_projector_and_marker_rows_train_and_nothing_else_is_kept(trained):
    state = checkpoint(trained.folder / "run")["state_dict"]
    kinds = ("reasoner.lm", "reasoner.thought.", "reasoner.markers", "terms.")
    assert {next(kind for kind in kinds if key.startswith(kind)) for key in state} == set(kinds)
    adapters = {key: value for key, value in state.items() if key.startswith("reasoner.lm")}
    assert all(".lora_" in key for key in adapters)
    assert all(value.any() for value in adapters.values())  # B starts at zero
    assert not torch.equal(*state["reasoner.markers"])  # both start from the mean of the teacher's rows


@pytest.mark.slow
def test_resumed_in_mid_epoch_equals_uninterrupted(trained):
    short = [*FLAGS, "--test_after_fit=false"]
    assert trained.fit("LoRi", "parts", *short, "--trainer.max_steps=6", **ARGUMENTS) == 0
    assert checkpoint(trained.folder / "parts")["global_step"] == 6
    assert trained.fit("LoRi", "parts", *short, "--trainer.max_steps=11", "--ckpt_path=last", **ARGUMENTS) == 0
    whole, parts = (checkpoint(trained.folder / name) for name in ("run", "parts"))
    assert whole["global_step"] == parts["global_step"] == 11
    assert_same(whole["state_dict"], parts["state_dict"])


def test_checkpoint_and_students_folder_answer_each_problem_alike(trained):
    run, answers = trained.folder / "run", []
    for path in (run / "checkpoints" / "best.ckpt", run / "student"):
        out = trained.folder / f"{path.stem}.jsonl"
        flags = [*FLAGS, f"--ckpt_path={path}", f"--predictions={out}"]
        assert trained.run("predict", *flags, method="LoRi", **ARGUMENTS) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        answers.append([(row["id"], row["prediction"], row["passes"]) for row in rows])
    assert answers[0] == answers[1]
    assert len({prediction for _, prediction, _ in answers[0]}) > 1


@pytest.mark.parametrize("flags", [[], ["--apart"]], ids=["merged", "apart"])
def test_an_exported_checkpoint_answers_as_the_student(trained, tmp_path, flags):
    run, out = trained.folder / "run", tmp_path / "out"
    command = ["export", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    assert main([*command, "--folder", str(out), *flags]) == 0
    assert (out / "model.safetensors").exists() == (not flags)
    student, exported = (LatentReasoner.from_pretrained(folder) for folder in (run / "student", out))
    assert (student.markers is None, exported.markers is None) == (True, not flags)
    questions = [problem.question for problem in synthetic_problems(64, 1, "test", min_steps=1, max_steps=2)]
    answers = student.answer(questions, max_new_tokens=4)
    assert len({answer.output for answer in answers}) > 1
    assert exported.answer(questions, max_new_tokens=4) == answers


@pytest.mark.slow
def test_the_shared_base_is_the_teacher_that_a_second_copy_is(trained, monkeypatch):
    """Also with dropout on, which the teacher must not see."""
    counts = []
    original = LoRi.on_train_start

    def count(self):
        original(self)
        counts.append((type(self.teacher).__name__, sum(p.numel() for p in self.parameters())))

    monkeypatch.setattr(LoRi, "on_train_start", count)
    steps = [*FLAGS, "--trainer.max_steps=4", "--test_after_fit=false"]
    for name, shares in (("shared", "true"), ("apart", "false")):
        assert trained.fit("LoRi", name, *steps, f"--model.share_base={shares}", **ARGUMENTS) == 0
    (shared, fewer), (apart, more) = counts
    assert (shared, apart) == ("SharedTeacher", "FrozenTeacher")
    teacher = LatentReasoner.from_pretrained(ARGUMENTS["teacher"]["name"])
    assert more - fewer == sum(parameter.numel() for parameter in teacher.parameters())
    assert_same(*(checkpoint(trained.folder / name)["state_dict"] for name in ("shared", "apart")))


@pytest.mark.slow
def test_the_shared_base_serves_only_who_started_from_it(trained):
    other = {"dtype": {"teacher": {**ARGUMENTS["teacher"], "dtype": "bfloat16"}}, "full": {"backbone": {}}}
    for name, changes in other.items():
        arguments = ARGUMENTS | changes
        assert trained.fit("LoRi", name, *FLAGS, "--trainer.max_steps=1", "--test_after_fit=false", **arguments) == 0


def test_other_adapters_leave_everything_as_it_was():
    torch.manual_seed(0)
    backbone = Backbone(name=ARGUMENTS["teacher"]["name"], lora=LoRA(2, 4.0, 0.5))
    tokenizer = load_tokenizer(backbone.tokenizer_name, False)
    lm = prepare_training(load_causal_lm(backbone, tokenizer), backbone)
    plain = load_causal_lm(backbone, tokenizer).eval()
    for parameter in lm.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    ids = torch.randint(0, 50, (2, 7))
    trains = [parameter.requires_grad for parameter in lm.parameters()]
    with torch.no_grad():
        before = lm.eval()(ids).logits
    lm.train()
    with adapters(lm, None):
        assert torch.equal(lm(ids).logits, plain(ids).logits)
    assert lm.training
    assert all(module.training for module in lm.modules())
    assert [parameter.requires_grad for parameter in lm.parameters()] == trains
    with torch.no_grad():
        assert torch.equal(lm.eval()(ids).logits, before)
    assert not torch.equal(before, plain(ids).logits)
    with pytest.raises(RuntimeError, match="stop"), adapters(lm, None):
        raise RuntimeError("stop")
    with torch.no_grad():
        assert torch.equal(lm(ids).logits, before)
