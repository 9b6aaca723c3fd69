"""Every error that a user can trigger at the command line is one line that names cause, place and remedy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import BACKBONE, SOURCE

from lori_pl import LatentReasoner
from lori_pl.callbacks.finite_loss import FiniteLoss
from lori_pl.cli import main
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.data.sources import Synthetic
from lori_pl.data.tokenizer import synthetic_tokenizer
from lori_pl.errors import LoriError
from lori_pl.methods import ExplicitCoT


def message(capsys) -> str:
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def fails(world, capsys, *pattern: str, method="ExplicitCoT", command="fit", flags=(), root="run", **arguments) -> None:
    assert world.run(command, *flags, method=method, root=root, **arguments) == 2
    text = message(capsys)
    for part in pattern:
        assert re.search(part, text), text


def test_no_command_and_unknown_command(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["fitt"]) == 2
    assert "no command 'fitt'" in message(capsys)


def test_missing_data_folder(world, capsys):
    source = {"class_path": "lori_pl.data.sources.GSM8K", "init_args": {"path": str(world.folder / "none")}}
    flags = ["--config", world.config("d", {"data": {"source": source}})]
    fails(world, capsys, "gsm8k: no folder", "none", flags=flags, backbone=BACKBONE)


def test_malformed_row_names_file_line_and_field(world, capsys):
    for name in ("train", "test"):
        (world.folder / f"{name}.jsonl").write_text('{"question": "a", "answer": "x #### 1"}\n{"question": 3}\n')
    source = {"class_path": "lori_pl.data.sources.GSM8K", "init_args": {"path": str(world.folder)}}
    flags = ["--config", world.config("d", {"data": {"source": source}})]
    fails(world, capsys, r"train\.jsonl", "line 2", "question", "skip", flags=flags, backbone=BACKBONE)


def test_malformed_rows_are_left_out_where_that_is_asked_for(world, capsys):
    row = {"question": "Ann has 4 .", "rationale": "<<4+3=7>>", "answer": "7"}
    for name in ("train", "validation", "test"):
        (world.folder / f"{name}.jsonl").write_text("3\n" + "\n".join([json.dumps(row)] * 20))
    source = {"class_path": "lori_pl.data.sources.JSONL", "init_args": {"path": str(world.folder)}}
    flags = ["--config", world.config("d", {"data": {"source": source}})]
    fails(world, capsys, r"train\.jsonl", "line 1", "--data.on_bad_row skip", flags=flags, backbone=BACKBONE)
    assert world.run("preview", *flags, "--data.on_bad_row", "skip", method="ExplicitCoT", backbone=BACKBONE) == 0
    assert "1 malformed rows" in capsys.readouterr().out


def test_no_rationale_where_training_needs_one(world, capsys):
    row = '{"question": "a b", "answer": "1"}\n'
    for name in ("train", "validation", "test"):
        (world.folder / f"{name}.jsonl").write_text(row * 20)
    source = {
        "class_path": "lori_pl.data.sources.JSONL",
        "init_args": {"path": str(world.folder), "on_missing_rationale": "error"},
    }
    flags = ["--config", world.config("d", {"data": {"source": source}})]
    fails(world, capsys, "no rationale", r"train\.jsonl", flags=flags, backbone=BACKBONE)


def test_empty_split(world, capsys):
    fails(world, capsys, "validation split is empty", flags=["--data.source.validation", "0"], backbone=BACKBONE)


def test_too_long_problems(world, capsys):
    fails(world, capsys, "no problem left", "max_length", flags=["--data.max_length", "5"], backbone=BACKBONE)
    flags = ["--data.max_length", "12", "--data.on_too_long", "error"]
    fails(world, capsys, "more than data.max_length", "on_too_long to drop", flags=flags, backbone=BACKBONE)


def test_more_positions_than_the_model_has(world, capsys, lori_args):
    """Only what a method reads has to fit: Pause reads no rationale."""
    data = PairedDataModule(Synthetic(**SOURCE["init_args"]))
    data.setup("fit")
    longest = int(data.splits["train"].student.lengths().max())
    config = {"max_position_embeddings": longest - 1}
    backbone = BACKBONE | {"config": BACKBONE["config"] | config}
    numbers = f"take {longest} positions, but the model has {longest - 1}; lower --data.max_length to "
    fails(world, capsys, rf"train problem \S+: question, rationale, .* {numbers}\d+ or", backbone=backbone)
    teacher = {"teacher": lori_args["teacher"] | {"config": config}}
    fails(world, capsys, f"the teacher's question, .* {numbers}", method="LoRi", **(lori_args | teacher))
    fails(world, capsys, "question, 100 latents, .* the model has", method="Pause", latents=100, backbone=backbone)
    assert world.fit("Pause", "fits", "--test_after_fit", "false", backbone=backbone) == 0


def test_fewer_problems_than_a_batch(world, capsys):
    fails(world, capsys, "do not fill one batch", flags=["--data.batch_size", "100"], backbone=BACKBONE)


def test_rank_above_dimension(world, capsys, lori_args):
    flags = ["--model.alignment.rank_hidden", "33"]
    fails(world, capsys, "rank_hidden", "33", "32", method="LoRi", flags=flags, **lori_args)


def test_layers_out_of_range(world, capsys, lori_args):
    fails(world, capsys, "layers 1 to 2", method="LoRi", flags=["--model.layers.layers", "[1, 3]"], **lori_args)


def test_other_shapes_under_shared(world, capsys, lori_args):
    small = {"tokenizer": "synthetic", "config": {**BACKBONE["config"], "hidden_size": 16}}
    arguments = lori_args | {"backbone": small, "student_init": "base", "anchor": None}
    fails(world, capsys, "32", "16", "learned", method="LoRi", **arguments)


def test_negative_latents(world, capsys, lori_args):
    fails(world, capsys, "latents is -1", method="LoRi", **(lori_args | {"latents": -1}))


def test_no_latents_is_bot_and_eot_alone(world, lori_args):
    assert world.fit("LoRi", "run", **(lori_args | {"latents": 0, "alignment": None})) == 0
    (answer,) = LatentReasoner.from_pretrained(world.folder / "run" / "student").answer(["Ann has 4 apples ."])
    assert answer.latents == 0


def test_no_latents_leave_no_trajectory(world, capsys, lori_args):
    fails(world, capsys, "no trajectory", "model.alignment: null", method="LoRi", **(lori_args | {"latents": 0}))


def test_no_teacher(world, capsys, lori_args):
    fails(world, capsys, "model.teacher is not set", method="LoRi", **(lori_args | {"teacher": None}))


def test_unknown_keys(world, capsys):
    fails(
        world,
        capsys,
        "batch_sise",
        flags=["--config", world.config("d", {"data": {"batch_sise": 1}})],
        backbone=BACKBONE,
    )
    fails(world, capsys, "latentss", method="LoRi", backbone=BACKBONE, latentss=3)


def test_unknown_method(world, capsys):
    fails(world, capsys, "NoSuch", method="NoSuch", backbone=BACKBONE)


def test_no_method(world, capsys):
    assert main(["fit", "--config", world.config("base", {"data": {"source": SOURCE}})]) == 2
    assert "no method is chosen" in message(capsys)


def test_no_backbone(world, capsys):
    fails(world, capsys, "neither name nor tokenizer", backbone={})


def test_a_folder_that_is_no_model(world, capsys):
    fails(world, capsys, "no model|no tokenizer", backbone={"name": str(world.folder)})


def test_an_output_folder_that_holds_another_run(world, capsys):
    assert world.fit("ExplicitCoT", "run", backbone=BACKBONE) == 0
    before = (world.folder / "run" / "summary.json").read_bytes()
    fails(world, capsys, "holds another run", "--ckpt_path last", backbone=BACKBONE)
    assert (world.folder / "run" / "summary.json").read_bytes() == before
    student = ["--ckpt_path", str(world.folder / "run" / "student")]
    assert world.run("test", *student, method="ExplicitCoT", root="run", backbone=BACKBONE) == 0
    assert (world.folder / "run" / "test" / "summary.json").is_file()
    fails(world, capsys, "run/test holds another run", command="test", flags=student, backbone=BACKBONE)


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_untrained_weights_are_refused(world, capsys, command):
    fails(world, capsys, "needs trained weights", command=command, backbone=BACKBONE)


def test_a_checkpoint_that_is_not_there(world, capsys):
    fails(world, capsys, "no such file or folder", flags=["--ckpt_path", "nowhere.ckpt"], backbone=BACKBONE)
    fails(world, capsys, "nothing to go on with", flags=["--ckpt_path", "last"], backbone=BACKBONE)


def test_fit_goes_on_from_checkpoints_only(world, capsys, teacher):
    fails(world, capsys, "best.ckpt does not exist", flags=["--ckpt_path", "best"], backbone=BACKBONE)
    fails(world, capsys, "student's folder", "backbone.name", flags=["--ckpt_path", teacher], backbone=BACKBONE)


def test_a_student_of_other_text(world, capsys, teacher):
    flags = ["--ckpt_path", teacher, "--data.template.answer_prompt", "="]
    fails(world, capsys, "another data.template", "answer_prompt", command="test", flags=flags, backbone=BACKBONE)


def larger_tokenizer(world) -> str:
    tokenizer = synthetic_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(world.folder / "tokenizer")
    return str(world.folder / "tokenizer")


def test_a_teacher_without_rationales_or_of_another_template(world, capsys, lori_args, teacher):
    assert world.fit("NoCoT", "direct", backbone={"name": teacher}) == 0
    arguments = lori_args | {"teacher": {"name": str(world.folder / "direct" / "student")}}
    fails(world, capsys, "reasons by 'none'", "explicit-CoT", method="LoRi", **arguments)
    for flags in (["--data.template.answer_prompt", "="], ["--data.template.drop_last_step", "true"]):
        fails(world, capsys, "teacher.name", "another data.template", method="LoRi", flags=flags, **lori_args)


def test_the_teachers_weights_need_the_teachers_tokenizer(world, capsys, lori_args):
    made = {"backbone": {"tokenizer": larger_tokenizer(world)}, "teacher": {**BACKBONE}}
    assert world.fit("LoRi", "more", **(lori_args | made)) == 0  # more words than the teacher's, the same ids
    other = {"backbone": {"tokenizer": "synthetic"}, "teacher": BACKBONE | {"tokenizer": larger_tokenizer(world)}}
    fails(world, capsys, "another tokenizer", "student_init to base", method="LoRi", **(lori_args | other))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("schedule.warmup", "-1"),
        ("schedule.warmup", "50.0"),
        ("schedule.decay_share", "0"),
        ("max_new_tokens", "0"),
        ("statistics_problems", "0"),
    ],
)
def test_numbers_out_of_range(world, capsys, lori_args, flag, value):
    pattern = rf"{flag if '.' in flag else f'model.{flag}'} is {re.escape(value)}"
    fails(world, capsys, pattern, "give", method="LoRi", flags=[f"--model.{flag}={value}"], **lori_args)


def test_processes_that_take_the_model_with_them(world, capsys):
    flags = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2"]
    fails(world, capsys, "trainer.strategy ddp_fork", "use ddp", flags=flags, backbone=BACKBONE)


def test_weights_that_are_no_numbers_are_not_saved():
    module = torch.nn.Linear(2, 2)
    trainer = type("Trainer", (), {"global_step": 7})
    FiniteLoss().on_save_checkpoint(trainer, module, {})
    with torch.no_grad():
        module.bias[1] = float("nan")
    with pytest.raises(LoriError, match=r"'bias' is not finite after step 7; the last checkpoint .* is kept"):
        FiniteLoss().on_save_checkpoint(trainer, module, {})


def test_row_of_a_preview(world, capsys):
    fails(world, capsys, "--row: invalid int value", command="preview", flags=["--row=first"], backbone=BACKBONE)
    fails(world, capsys, "--row: expected one argument", command="preview", flags=["--row"], backbone=BACKBONE)
    fails(world, capsys, "has rows 0 to 63", command="preview", flags=["--row=64"], backbone=BACKBONE)


def test_a_folder_without_a_student(world, capsys):
    flags = ["--ckpt_path", str(world.folder)]
    fails(world, capsys, "no saved reasoner", command="test", flags=flags, backbone=BACKBONE)


def test_a_checkpoint_of_another_method_or_model(world, capsys, lori_args):
    assert world.fit("ExplicitCoT", "cot", backbone=BACKBONE) == 0
    ckpt = ["--ckpt_path", str(world.folder / "cot" / "checkpoints" / "last.ckpt")]
    fails(world, capsys, "made by explicit_cot, not by lori", method="LoRi", flags=ckpt, **lori_args)
    other = {"tokenizer": "synthetic", "config": {**BACKBONE["config"], "hidden_size": 16}}
    fails(world, capsys, "another model", flags=ckpt, root="other", backbone=other)
    folder = ["--ckpt_path", str(world.folder / "cot" / "student")]
    fails(world, capsys, "'words'", "'latent'", method="LoRi", command="test", flags=folder, root="folder", **lori_args)


def test_a_damaged_checkpoint(world, capsys):
    (world.folder / "bad.ckpt").write_bytes(b"no checkpoint")
    flags = ["--ckpt_path", str(world.folder / "bad.ckpt")]
    fails(world, capsys, "no readable checkpoint", flags=flags, backbone=BACKBONE)


@pytest.mark.parametrize(
    ("flag", "value", "name"),
    [
        ("data.rationale_tokens", "step_results", "data.rationale_tokens all"),
        ("model.alignment.layer_scale", "none", "LowRankAlignment.layer_scale rms"),
        ("model.layers.final_norm", "false", "model.layers.final_norm True"),
    ],
)
def test_training_on_with_an_alignment_that_was_measured_otherwise(world, capsys, lori_args, flag, value, name):
    assert world.fit("LoRi", "run", "--test_after_fit=false", **lori_args) == 0
    capsys.readouterr()
    flags = [f"--{flag}={value}", "--ckpt_path=last", "--trainer.max_steps=6"]
    fails(world, capsys, f"measured with {name}, and this run has", method="LoRi", flags=flags, **lori_args)


def test_no_rationale_is_measured_without_an_alignment(world, lori_args):
    """So other rationale tokens are no reason to refuse."""
    arguments = lori_args | {"alignment": None}
    assert world.fit("LoRi", "run", "--test_after_fit=false", **arguments) == 0
    flags = ["--data.rationale_tokens=step_results", "--ckpt_path=last", "--trainer.max_steps=6"]
    assert world.fit("LoRi", "run", "--test_after_fit=false", *flags, **arguments) == 0


def test_a_question_beyond_the_models_positions_is_named_before_any_is_answered(world, capsys, monkeypatch):
    assert world.fit("NoCoT", "run", "--test_after_fit=false", backbone=BACKBONE) == 0
    monkeypatch.setattr(LatentReasoner, "generate", lambda *_, **__: pytest.fail("one was answered"))
    (world.folder / "q.txt").write_text("Ann has 4 .\n" + "Ann has 4 . " * 40 + "\n")
    flags = ["--ckpt_path", str(world.folder / "run" / "student"), "--data.predict_file", str(world.folder / "q.txt")]
    capsys.readouterr()
    fails(
        world,
        capsys,
        "question 2 takes 161 positions, and the model has 128",
        command="predict",
        method="NoCoT",
        flags=flags,
        backbone=BACKBONE,
    )


def test_a_file_that_is_no_checkpoint(world, capsys):
    torch.save([1, 2], world.folder / "list.pt")
    flags = ["--ckpt_path", str(world.folder / "list.pt")]
    fails(world, capsys, "is no checkpoint, it holds a list", command="test", flags=flags, backbone=BACKBONE)


def test_a_checkpoint_of_another_student(world, capsys, lori_args):
    assert world.fit("LoRi", "run", **lori_args) == 0
    made = ["--ckpt_path", str(world.folder / "run" / "checkpoints" / "last.ckpt")]
    capsys.readouterr()
    for flags, words in (
        (["--model.latents", "2"], ("model.latents 3", "this run has 2")),
        (["--data.template.answer_prompt", "="], ("another data.template", "answer_prompt")),
    ):
        fails(world, capsys, *words, method="LoRi", command="test", flags=[*made, *flags], root="t", **lori_args)


def test_a_teacher_that_nothing_says_was_trained_without_last_steps(world, capsys, lori_args, teacher):
    (Path(teacher) / "reasoner.json").rename(world.folder / "reasoner.json")
    try:
        flags = ["--data.template.drop_last_step", "true", "--data.source.min_steps", "2"]
        fails(world, capsys, "nothing says that the teacher", "drop_last_step", method="LoRi", flags=flags, **lori_args)
    finally:
        (world.folder / "reasoner.json").rename(Path(teacher) / "reasoner.json")


def test_predictions_are_not_overwritten(world, capsys, monkeypatch):
    assert world.fit("ExplicitCoT", "cot", backbone=BACKBONE) == 0
    monkeypatch.setattr(LatentReasoner, "from_pretrained", lambda *_: pytest.fail("a model was loaded first"))
    out = world.folder / "out.jsonl"
    out.write_text("mine")
    flags = ["--ckpt_path", str(world.folder / "cot" / "student"), "--predictions", str(out)]
    fails(world, capsys, "exists already", command="predict", flags=flags, backbone=BACKBONE)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(("device", "steps"), [("cpu", [0, 1, 2]), ("cuda", [0, 1, 2, 3])])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(world, capsys, monkeypatch, device, steps):
    """At once on the CPU; on an accelerator, which nobody waits for, when the next checkpoint is due."""
    original, look = ExplicitCoT.task_loss, FiniteLoss.on_train_batch_end
    seen = []

    def poisoned(self, batch):
        loss = original(self, batch)
        if not self.training:
            return loss
        seen.append(self.trainer.global_step)
        return loss * float("nan") if seen[-1] == 2 else loss

    def there(self, trainer, module, *batch):
        look(self, trainer, SimpleNamespace(device=torch.device(device)), *batch)

    monkeypatch.setattr(ExplicitCoT, "task_loss", poisoned)
    monkeypatch.setattr(FiniteLoss, "on_train_batch_end", there)
    fails(world, capsys, "'task' is not finite at step 3", "learning rate", backbone=BACKBONE)
    assert seen == steps
    saved = torch.load(world.folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values() if value.is_floating_point())


def test_two_losses_of_one_name(world, capsys, lori_args):
    arguments = lori_args | {"terms": [{"class_path": "lori_pl.alignment.AnchorAlignment"}]}
    fails(world, capsys, "named 'anchor'", method="LoRi", **arguments)


def test_a_weight_of_no_loss(world, capsys, lori_args):
    fails(world, capsys, "typo", "anchor", method="LoRi", **(lori_args | {"weights": {"typo": 1.0}}))


def test_a_schedule_without_an_end(world, capsys):
    fails(world, capsys, "max_steps or max_epochs", flags=["--trainer.max_steps", "-1"], backbone=BACKBONE)


def test_the_module_runs_as_a_process_and_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "lori_pl", "fit", "--config", "none.yaml"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error:")
    assert "Traceback" not in done.stderr
