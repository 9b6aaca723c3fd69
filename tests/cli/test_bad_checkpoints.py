"""Checkpoints, student folders and output folders that are not what a command needs: one line, and nothing lost."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from failing import fails, message
from tiny_world import BACKBONE, BASE, SOURCE

from lori_pl import LatentReasoner
from lori_pl.callbacks.finite_loss import FiniteLoss
from lori_pl.checkpoint_files import read_checkpoint
from lori_pl.cli import main
from lori_pl.commands.lightning import LoriCLI
from lori_pl.data.tokenizer import synthetic_tokenizer
from lori_pl.errors import LoriError
from lori_pl.methods import ExplicitCoT

pytestmark = pytest.mark.faults


def test_a_folder_that_is_no_model(world, capsys, lori_args):
    folder = world.folder / "empty"
    folder.mkdir()
    words = (
        f"folder '{folder}' holds no model and no tokenizer",
        "give the folder of a saved model",
        "model.backbone.name",
    )
    fails(world, capsys, *words, backbone={"name": str(folder)})
    fails(world, capsys, *words, method="LoRi", **(lori_args | {"teacher": {"name": str(folder)}}))
    # one that has a tokenizer alone: the option is named that names it
    synthetic_tokenizer().save_pretrained(folder)
    words = ("name '.*' is a folder without config.json, no model", "give a saved model's folder")
    fails(world, capsys, f"model.backbone.{words[0]}", words[1], backbone={"name": str(folder)})
    teacher = lori_args | {"teacher": {"name": str(folder)}}
    fails(world, capsys, f"model.teacher.{words[0]}", words[1], method="LoRi", **teacher)
    teacher |= {"student_init": "base", "backbone": BACKBONE}
    fails(world, capsys, f"model.teacher.{words[0]}", words[1], method="LoRi", **teacher)


def test_an_output_folder_that_holds_another_run(world, capsys):
    assert world.fit("ExplicitCoT", "run", backbone=BACKBONE) == 0
    before = (world.folder / "run" / "summary.json").read_bytes()
    fails(world, capsys, "holds another run", "--ckpt_path last", backbone=BACKBONE)
    assert (world.folder / "run" / "summary.json").read_bytes() == before
    student = ["--ckpt_path", str(world.folder / "run" / "student")]
    assert world.run("test", *student, method="ExplicitCoT", root="run", backbone=BACKBONE) == 0
    assert (world.folder / "run" / "test" / "summary.json").is_file()
    fails(world, capsys, "run/test holds another run", command="test", flags=student, backbone=BACKBONE)


def test_an_output_folder_that_cannot_be_made(world, capsys):
    (world.folder / "file").write_text("")
    fails(world, capsys, "file/run cannot be written", "give another folder", root="file/run", backbone=BACKBONE)


@pytest.mark.slow
def test_a_checkpoint_of_one_run_does_not_open_the_folder_of_another(world, capsys):
    for root in ("one", "other"):
        assert world.fit("ExplicitCoT", root, "--test_after_fit=false", backbone=BACKBONE) == 0
    kept = {path: path.read_bytes() for path in (world.folder / "other").rglob("*") if path.is_file()}
    flags = ["--ckpt_path", str(world.folder / "one" / "checkpoints" / "last.ckpt"), "--trainer.max_steps=6"]
    fails(world, capsys, "other holds another run", "default_root_dir", flags=flags, root="other", backbone=BACKBONE)
    assert {path: path.read_bytes() for path in kept} == kept
    flags.append("--test_after_fit=false")
    assert world.fit("ExplicitCoT", "third", *flags, backbone=BACKBONE) == 0
    # anywhere in its own folder
    file = world.folder / "one" / "mine.ckpt"
    (world.folder / "one" / "checkpoints" / "last.ckpt").rename(file)
    own = ["--ckpt_path", str(file), *flags[2:]]
    assert world.fit("ExplicitCoT", "one", *own, backbone=BACKBONE) == 0


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_untrained_weights_are_refused(world, capsys, command):
    fails(world, capsys, "needs trained weights", command=command, backbone=BACKBONE)


def test_a_checkpoint_that_is_not_there(world, capsys):
    fails(world, capsys, "no such file or folder", flags=["--ckpt_path", "nowhere.ckpt"], backbone=BACKBONE)
    fails(world, capsys, "nothing to go on with", flags=["--ckpt_path", "last"], backbone=BACKBONE)


def test_which_file_of_a_run_is_meant(world, capsys):
    assert world.fit("NoCoT", "run", "--test_after_fit=false", backbone=BACKBONE) == 0
    run = str(world.folder / "run")
    words = (
        r"is a run's folder: give one of what is in it \(\S*run/student, \S*run/checkpoints/best.ckpt, \S*last.ckpt\)"
    )
    fails(world, capsys, words, command="test", method="NoCoT", flags=["--ckpt_path", run], backbone=BACKBONE)
    words = r"is a run's folder: give one of what is in it \(\S*run/checkpoints/best.ckpt, \S*last.ckpt\)"
    fails(world, capsys, words, method="NoCoT", root="more", flags=["--ckpt_path", run], backbone=BACKBONE)
    words = "--ckpt_path last: `predict` takes a checkpoint's file, such as RUN/checkpoints/best.ckpt, or a student's"
    fails(world, capsys, words, command="predict", method="NoCoT", flags=["--ckpt_path=last"], backbone=BACKBONE)
    for path, said in (
        (run, "is a run's folder"),
        (f"{run}/student", "is a folder, and `export` makes one of a check"),
    ):
        made = str(world.folder / "made")
        assert main(["export", "--config", f"{run}/config.yaml", "--ckpt_path", path, "--folder", made]) == 2
        assert said in message(capsys)


def test_fit_goes_on_from_checkpoints_only(world, capsys, teacher):
    fails(world, capsys, "best.ckpt does not exist", flags=["--ckpt_path", "best"], backbone=BACKBONE)
    fails(world, capsys, "student's folder", "backbone.name", flags=["--ckpt_path", teacher], backbone=BACKBONE)


def test_a_student_of_other_text(world, capsys, teacher):
    flags = ["--ckpt_path", teacher, "--data.template.answer_prompt", "="]
    fails(world, capsys, "another data.template", "answer_prompt", command="test", flags=flags, backbone=BACKBONE)


@pytest.mark.slow
def test_a_student_brings_its_own_text(world, capsys):
    """Any test set then does, without a training source; the text of rationales matters to none that writes none."""
    own = ["--data.template.answer_prompt", "'='", "--data.template.question", "{question} ?"]
    assert world.fit("NoCoT", "asked", *own, backbone=BACKBONE) == 0
    student = str(world.folder / "asked" / "student")
    alone = world.config("alone", {"data": {"test_sources": {"other": SOURCE}}, "trainer": BASE["trainer"]})
    flags = [f"--config={alone}", f"--config={world.method('NoCoT', backbone=BACKBONE)}", f"--ckpt_path={student}"]
    found = []
    for name, more in (("free", []), ("given", [*own, "--data.template.step_separator", " ; "])):
        root = world.folder / name
        assert main(["test", *flags, *more, f"--trainer.default_root_dir={root}"]) == 0
        found.append(json.loads((root / "summary.json").read_text())["test_sets"]["other"])
    for entry in found:
        entry.pop("milliseconds")
    assert found[0] == found[1]
    said = json.loads((world.folder / "asked" / "summary.json").read_text())["test_sets"]["test"]
    assert {**said, "milliseconds": 0} == {**found[0], "milliseconds": 0}
    fails(
        world,
        capsys,
        "data.test_sources",
        command="test",
        method="NoCoT",
        backbone=BACKBONE,
        flags=["--ckpt_path", student, "--data.template.answer_prompt", "'='"],
    )


@pytest.mark.slow
def test_a_teacher_without_rationales_or_of_another_template(world, capsys, lori_args, teacher):
    assert world.fit("NoCoT", "direct", backbone={"name": teacher}) == 0
    arguments = lori_args | {"teacher": {"name": str(world.folder / "direct" / "student")}}
    fails(world, capsys, "reasons by 'none'", "explicit-CoT", method="LoRi", **arguments)
    for flags in (["--data.template.answer_prompt", "="], ["--data.template.drop_last_step", "true"]):
        fails(world, capsys, "teacher.name", "another data.template", method="LoRi", flags=flags, **lori_args)


def test_weights_that_are_no_numbers_are_not_saved():
    module = torch.nn.Linear(2, 2)
    trainer = type("Trainer", (), {"global_step": 7})
    FiniteLoss().on_save_checkpoint(trainer, module, {})
    with torch.no_grad():
        module.bias[1] = float("nan")
    with pytest.raises(LoriError, match=r"'bias' is not finite after step 7; the last checkpoint .* is kept"):
        FiniteLoss().on_save_checkpoint(trainer, module, {})


def flip(path: Path) -> None:
    """Changes one byte of the largest tensor, which torch reads without a word."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 0x20
    path.write_bytes(content)
    read_checkpoint(path)


def test_a_flipped_byte_in_a_checkpoint_that_is_named(world, capsys):
    assert world.fit("ExplicitCoT", "run", "--test_after_fit=false", backbone=BACKBONE) == 0
    path = world.folder / "run" / "checkpoints" / "best.ckpt"
    flip(path)
    words = ("best.ckpt is damaged .* another checksum", "give another one")
    for name in ("best", str(path)):
        fails(world, capsys, *words, flags=["--ckpt_path", name], backbone=BACKBONE)
    fails(world, capsys, *words, command="test", flags=["--ckpt_path", str(path)], root="test", backbone=BACKBONE)
    folder = world.folder / "student"
    config = str(world.folder / "run" / "config.yaml")
    assert main(["export", "--config", config, "--ckpt_path", str(path), "--folder", str(folder)]) == 2
    assert re.search(words[0], message(capsys))
    assert not folder.exists()


def test_a_flipped_byte_in_the_best_checkpoint_of_a_training(world, capsys, monkeypatch):
    def damaged(self, best):
        flip(Path(best))
        return trained(self, best)

    trained = LoriCLI.trained_method
    monkeypatch.setattr(LoriCLI, "trained_method", damaged)
    fails(world, capsys, "best.ckpt is damaged .* another checksum", backbone=BACKBONE)
    assert not (world.folder / "run" / "student").exists()


def test_a_folder_without_a_student(world, capsys):
    flags = ["--ckpt_path", str(world.folder)]
    fails(world, capsys, "no saved reasoner", command="test", flags=flags, backbone=BACKBONE)


def test_a_checkpoint_of_another_method_or_model(world, capsys, lori_args):
    assert world.fit("ExplicitCoT", "cot", backbone=BACKBONE) == 0
    ckpt = ["--ckpt_path", str(world.folder / "cot" / "checkpoints" / "last.ckpt")]
    words = (
        "checkpoint .*cot/checkpoints/last.ckpt was made by explicit_cot, not by lori",
        "give the config of its own",
    )
    fails(world, capsys, *words, method="LoRi", flags=ckpt, **lori_args)
    other = {"tokenizer": "synthetic", "config": {**BACKBONE["config"], "hidden_size": 16}}
    words = ("checkpoint .*cot/checkpoints/last.ckpt is of another model", "resume with its own config")
    fails(world, capsys, *words, flags=ckpt, root="other", backbone=other)
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
        pytest.param("model.alignment.layer_scale", "none", "LowRankAlignment.layer_scale rms", marks=pytest.mark.slow),
        pytest.param("model.layers.final_norm", "false", "model.layers.final_norm True", marks=pytest.mark.slow),
    ],
)
def test_training_on_with_an_alignment_that_was_measured_otherwise(world, capsys, lori_args, flag, value, name):
    assert world.fit("LoRi", "run", "--test_after_fit=false", **lori_args) == 0
    capsys.readouterr()
    flags = [f"--{flag}={value}", "--ckpt_path=last", "--trainer.max_steps=6"]
    fails(world, capsys, f"measured with {name}, and this run has", method="LoRi", flags=flags, **lori_args)


def test_a_file_that_is_no_checkpoint(world, capsys):
    torch.save([1, 2], world.folder / "list.pt")
    flags = ["--ckpt_path", str(world.folder / "list.pt")]
    fails(world, capsys, "is no checkpoint, it holds a list", command="test", flags=flags, backbone=BACKBONE)


@pytest.mark.slow
def test_a_checkpoint_of_another_student(world, capsys, lori_args):
    assert world.fit("LoRi", "run", **lori_args) == 0
    made = ["--ckpt_path", str(world.folder / "run" / "checkpoints" / "last.ckpt")]
    capsys.readouterr()
    for flags, words in (
        (["--model.latents", "2"], ("last.ckpt was made with model.latents 3", "this run has 2")),
        (["--data.template.answer_prompt", "="], ("last.ckpt was trained with another data.template", "answer_prompt")),
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
