"""A teacher whose adapters stand apart from its base model: on the student's own base, or as a second copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from failing import fails, message
from tiny_world import LORI_TERMS, World, assert_same, checkpoint

import lori_pl
from lori_pl import LatentReasoner
from lori_pl.cli import main
from lori_pl.methods import LoRi
from lori_pl.models.teacher import SharedTeacher

BASE_MODEL = str(Path(lori_pl.__file__).parent / "assets" / "teacher")
FLAGS = ["--trainer.max_steps=4", "--model.schedule.decay=none", "--model.schedule.warmup=0", "--test_after_fit=false"]
FLAGS += ["--model.optimizer.class_path=torch.optim.AdamW", "--model.optimizer.init_args.lr=0.01"]
# the teacher's adapters lie on modules that the student's do not, and the other way round
TEACHER_LORA = {"rank": 3, "alpha": 6.0, "dropout": 0.0, "targets": ["q_proj", "down_proj"]}
STUDENT_LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.3, "targets": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """With the teacher in the folder ``teacher``."""
    world = World(tmp_path_factory.mktemp("adapters"))
    backbone = {"name": BASE_MODEL, "lora": TEACHER_LORA}
    assert world.fit("ExplicitCoT", "words", *FLAGS, backbone=backbone) == 0
    run = world.folder / "words"
    command = ["export", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert main([*command, "--folder", str(world.folder / "teacher"), "--apart"]) == 0
    return world


def arguments(world: World, **changes: Any) -> dict[str, Any]:
    backbone = {"name": BASE_MODEL, "lora": STUDENT_LORA}
    teacher = {"name": str(world.folder / "teacher")}
    return {"backbone": backbone, "teacher": teacher, "student_init": "base", **LORI_TERMS, **changes}


@pytest.fixture
def started(monkeypatch) -> list[LoRi]:
    """Every method that has begun to train."""
    seen: list[LoRi] = []
    original = LoRi.on_train_start

    def look(self):
        original(self)
        seen.append(self)

    monkeypatch.setattr(LoRi, "on_train_start", look)
    return seen


@pytest.mark.slow
def test_in_half_precision_the_adapters_are_as_exact_as_the_students_own(world, started):
    half = {"dtype": "bfloat16"}
    found = arguments(world)
    found["backbone"] |= half
    found["teacher"] |= half
    for shares in ("true", "false"):
        assert world.fit("LoRi", f"half-{shares}", *FLAGS, f"--model.share_base={shares}", **found) == 0
    batch = next(iter(started[0].data.train_dataloader())).teacher
    shared, apart = (method.teacher(batch) for method in started)
    assert isinstance(started[0].teacher, SharedTeacher)
    assert all(torch.equal(one, other) for one, other in zip(shared, apart, strict=True))


@pytest.mark.slow
def test_a_teacher_with_tokens_of_its_own_gets_a_copy(world, started, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(world.folder / "teacher", teacher)
    file = teacher / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["unheard"] = len(content["model"]["vocab"])
    file.write_text(json.dumps(content))
    found = arguments(world, teacher={"name": str(teacher)})
    assert world.fit("LoRi", "tokens", *FLAGS, **found) == 0
    assert not isinstance(started[0].teacher, SharedTeacher)


@pytest.mark.slow
def test_on_the_students_base_it_is_what_a_second_copy_is(world, started):
    """Also with the student's dropout on, and adapters on other modules."""
    for name, shares in (("shared", "true"), ("apart", "false")):
        assert world.fit("LoRi", name, *FLAGS, f"--model.share_base={shares}", **arguments(world)) == 0
    shared, apart = started
    assert isinstance(shared.teacher, SharedTeacher)
    assert not isinstance(apart.teacher, SharedTeacher)
    # the second copy is the base and the adapters; on the student's base only the adapters are new
    base = sum(parameter.numel() for parameter in LatentReasoner.from_pretrained(BASE_MODEL).parameters())
    count = [sum(parameter.numel() for parameter in method.parameters()) for method in (shared, apart)]
    assert count[1] - count[0] == base
    assert_same(*(checkpoint(world.folder / name)["state_dict"] for name in ("shared", "apart")))
    assert not any(".teacher." in key for key in checkpoint(world.folder / "shared")["state_dict"])
    # the teacher's adapters do something: the base model alone is another teacher
    batch = next(iter(shared.data.train_dataloader())).teacher
    with_adapters = shared.teacher(batch)[1]
    shared.teacher.adapter = None
    assert not torch.allclose(with_adapters, shared.teacher(batch)[1], atol=1e-3)
    # and nothing of them is in the student's folder, merged or apart
    merged = [LatentReasoner.from_pretrained(world.folder / name / "student") for name in ("shared", "apart")]
    assert_same(*(dict(student.state_dict()) for student in merged))
    for name in ("shared", "apart"):
        run = world.folder / name
        command = ["export", f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]
        assert main([*command, f"--folder={world.folder / name}-exported", "--apart"]) == 0
    exported = [LatentReasoner.from_pretrained(world.folder / f"{name}-exported") for name in ("shared", "apart")]
    assert_same(*(dict(student.state_dict()) for student in exported))


@pytest.mark.slow
def test_a_run_goes_on(world, started):
    flags = [*FLAGS, "--ckpt_path=last", "--trainer.max_steps=6"]
    assert world.fit("LoRi", "on", *FLAGS, **arguments(world)) == 0
    assert world.fit("LoRi", "on", *flags, **arguments(world)) == 0
    assert world.fit("LoRi", "whole", *FLAGS, "--trainer.max_steps=6", **arguments(world)) == 0
    assert_same(*(checkpoint(world.folder / name)["state_dict"] for name in ("on", "whole")))
    # on a copy of its own the teacher is the same, and so it is noted
    notes = [checkpoint(world.folder / "on")["lori_pl"]["teacher"]]
    assert world.fit("LoRi", "on", *flags, "--trainer.max_steps=7", "--model.share_base=false", **arguments(world)) == 0
    notes.append(checkpoint(world.folder / "on")["lori_pl"]["teacher"])
    assert [note["shares_base"] for note in notes] == [True, False]
    assert notes[0]["layers"] == notes[1]["layers"]


@pytest.mark.slow
@pytest.mark.parametrize(("side", "change"), [("backbone", {"lora": None}), ("teacher", {"dtype": "bfloat16"})])
def test_another_student_gets_a_copy(world, started, side, change):
    found = arguments(world)
    found[side] |= change
    assert world.fit("LoRi", f"copy-{side}", *FLAGS, **found) == 0
    assert not isinstance(started[0].teacher, SharedTeacher)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["base", "teacher"])
def test_a_teacher_that_does_not_say_its_type_and_attention_has_the_students(world, started, init):
    """As in every config of a real model: else a second copy of the base model would be loaded."""
    found = arguments(world, student_init=init)
    found["backbone"] |= {"dtype": "bfloat16", "attention": "sdpa"}
    if init == "teacher":
        found |= {"backbone": {**found["backbone"], "name": None}, "teacher": {"name": BASE_MODEL}}
    assert world.fit("LoRi", f"unsaid-{init}", *FLAGS, **found) == 0
    assert isinstance(started[0].teacher, SharedTeacher)
    assert started[0].teacher.lm.dtype == torch.bfloat16


@pytest.mark.slow
def test_a_cache_is_made_of_it(world):
    folder, found = world.folder / "cache", arguments(world)
    assert world.run("cache", f"--folder={folder}", method="LoRi", **found) == 0
    assert world.fit("LoRi", "cached", *FLAGS, f"--model.cache={folder}", **found) == 0


def test_damaged_adapters_are_one_line(world, capsys, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(world.folder / "teacher", teacher)
    (teacher / "adapter_model.safetensors").write_bytes(b"no tensors")
    found = arguments(world, teacher={"name": str(teacher)})
    fails(world, capsys, str(teacher), "damaged weights", "export", method="LoRi", root="damaged", **found)


@pytest.mark.slow
def test_a_student_starts_from_the_adapters_merged(world, started):
    """As from the same teacher's folder in which they are; with and without a second copy for the teacher."""
    run = world.folder / "words"
    merged = world.folder / "merged"
    command = ["export", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert main([*command, "--folder", str(merged)]) == 0
    found = arguments(world, student_init="teacher", backbone={"lora": STUDENT_LORA})
    cases = {"apart": found, "whole": found | {"teacher": {"name": str(merged)}}, "copy": found | {"share_base": False}}
    for name, each in cases.items():
        assert world.fit("LoRi", f"start-{name}", *FLAGS, **each) == 0
    assert [isinstance(method.teacher, SharedTeacher) for method in started] == [True, True, False]
    apart, whole, copy = (checkpoint(world.folder / f"start-{name}")["state_dict"] for name in cases)
    assert_same(apart, whole)
    for key, value in apart.items():
        torch.testing.assert_close(copy[key], value, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_what_a_student_on_adapters_may_be_besides(world, started, capsys):
    # in half precision merging rounds, and the teacher stays what it is
    found = arguments(world, student_init="teacher", backbone={"lora": STUDENT_LORA})
    half = found | {"backbone": {"lora": STUDENT_LORA, "dtype": "bfloat16"}}
    assert world.fit("LoRi", "start-half", *FLAGS, **half) == 0
    assert not isinstance(started[-1].teacher, SharedTeacher)
    # all of it may train, with a dropout of its own
    assert world.fit("LoRi", "start-full", *FLAGS, **(found | {"backbone": {"dropout": 0.25}})) == 0
    assert started[-1].student.lm.config.attention_dropout == 0.25
    assert all(parameter.requires_grad for parameter in started[-1].student.lm.parameters())
    # they lie on no model that has a name
    assert world.fit("LoRi", "start-unnamed", *FLAGS, **found) == 0
    command = ["export", f"--config={world.folder / 'start-unnamed' / 'config.yaml'}", "--apart"]
    command.append(f"--ckpt_path={world.folder / 'start-unnamed' / 'checkpoints' / 'last.ckpt'}")
    capsys.readouterr()
    assert main([*command, f"--folder={world.folder / 'no'}"]) == 2
    assert "merge them" in message(capsys)


def test_the_folder_says_what_it_lies_on(world):
    settings = json.loads((world.folder / "teacher" / "reasoner.json").read_text())
    assert settings["base"]["name"] == BASE_MODEL
    assert settings["base"]["lora"]["targets"] == TEACHER_LORA["targets"]
