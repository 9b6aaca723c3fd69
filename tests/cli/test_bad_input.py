"""Every error that a user can trigger at the command line is one line that names cause, place and remedy."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from failing import fails, message
from tiny_world import BACKBONE, SOURCE
from transformers import AutoConfig

from lori_pl import LatentReasoner
from lori_pl.cli import main
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.data.sources import Synthetic
from lori_pl.data.tokenizer import synthetic_tokenizer
from lori_pl.methods import base
from lori_pl.methods.teachers import check_model
from lori_pl.models import backbone as backbone_module
from lori_pl.models.backbone import Backbone


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


def test_a_tokenizer_without_an_end(world, capsys):
    tokenizer = synthetic_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(world.folder / "endless")
    backbone = BACKBONE | {"tokenizer": str(world.folder / "endless")}
    fails(world, capsys, "endless' .*tokenizer.* has no end token", "set its eos_token", backbone=backbone)


def test_a_solution_without_an_answer(world, capsys):
    for name in ("train", "test"):
        (world.folder / f"{name}.jsonl").write_text('{"question": "a", "answer": "x"}\n')
    source = {"class_path": "lori_pl.data.sources.GSM8K", "init_args": {"path": str(world.folder)}}
    flags = ["--config", world.config("d", {"data": {"source": source}})]
    fails(world, capsys, r"train\.jsonl", "line 1", "answer", "####", "skip", flags=flags, backbone=BACKBONE)


def test_empty_split(world, capsys):
    fails(world, capsys, "validation split is empty", flags=["--data.source.validation", "0"], backbone=BACKBONE)


def test_too_long_problems(world, capsys):
    fails(world, capsys, "no problem left", "max_length", flags=["--data.max_length", "5"], backbone=BACKBONE)
    flags = ["--data.max_length", "12", "--data.on_too_long", "error"]
    fails(world, capsys, "more than data.max_length", "on_too_long to drop", flags=flags, backbone=BACKBONE)


@pytest.mark.slow
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


def test_a_test_question_beyond_the_models_positions_is_named_before_the_training(world, capsys, monkeypatch):
    """And before any is answered, where a student is tested by itself."""
    rows = [{"question": "Ann has 4 . " * words, "rationale": "<<4+1=5>>", "answer": "5"} for words in (1, 40)]
    (world.folder / "long").mkdir()
    (world.folder / "long" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"class_path": "lori_pl.data.sources.JSONL", "init_args": {"path": str(world.folder / "long")}}
    config = world.config("long", {"data": {"test_sources": {"long": source}}})
    assert world.fit("NoCoT", "trained", "--test_after_fit=false", backbone=BACKBONE) == 0
    capsys.readouterr()
    monkeypatch.setattr(LatentReasoner, "generate", lambda *_, **__: pytest.fail("one was answered"))
    said = r"question \S+ takes \d+ positions, and the model has 128"
    fails(world, capsys, said, method="NoCoT", flags=["--config", config], backbone=BACKBONE)
    flags = ["--config", config, "--ckpt_path", str(world.folder / "trained" / "student")]
    fails(world, capsys, said, command="test", method="NoCoT", flags=flags, backbone=BACKBONE)


@pytest.mark.parametrize("command", ["fit", "plan"])
@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_precision_that_rounds_what_is_measured(world, capsys, lori_args, command, precision):
    flags = [f"--trainer.precision={precision}"]
    said = f"trainer.precision {precision} rounds .* take {precision[:-5]}-mixed"
    fails(world, capsys, said, command=command, method="LoRi", flags=flags, **lori_args)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model.optimizer.lr=-0.1", "model.optimizer: Invalid learning rate: -0.1; correct its init_args"),
        ("--model.optimizer.weight_decay=-1", "model.optimizer: Invalid weight_decay value: -1"),
        ("--model.weights.mean=-1", "the loss 'mean' of LowRankAlignment has weight -1.0: give 0 or more"),
        ("--model.alignment.w_covariance=-0.5", "the loss 'covariance' of LowRankAlignment has weight -0.5"),
        ("--seed_everything=-1", r"seed_everything is -1: give a number from 0 to 2\^32 - 1"),
        ("--seed_everything=true", "seed_everything is true: give"),
        ("--seed_everything=false", "seed_everything is false: give"),
        ("--data.num_workers=-1", "data.num_workers is -1: give 0 or more"),
        ("--data.template.answer_prompt=####", "template.answer_prompt is null, and takes str: .* quote it twice"),
    ],
)
def test_numbers_and_texts_that_no_run_can_take(world, capsys, lori_args, flag, said, monkeypatch):
    for module in (backbone_module, base):
        monkeypatch.setattr(module, "load_causal_lm", lambda *_, **__: pytest.fail("a model was loaded"))
    fails(world, capsys, said, method="LoRi", flags=[flag], **lori_args)


@pytest.mark.parametrize("flag", ["--trainer.max_step=5", "--data.batch_siz=2"])
def test_no_flag_is_abbreviated(world, capsys, flag):
    fails(world, capsys, f"nrecognized.*{flag.partition('=')[0]}", flags=[flag], backbone=BACKBONE)


def test_a_flag_that_there_is_not_has_no_place_in_a_file(world, capsys, lori_args):
    """Nor has a class that a flag names."""
    for flag, word in (("--model.wieghts.mean=3", "wieghts"), ("--data.source.class_path=JSONLL", "JSONLL")):
        assert world.run("fit", flag, method="LoRi", root="run", **lori_args) == 2
        said = message(capsys)
        assert word in said
        assert ", line " not in said


def test_a_teacher_that_is_not_there(world, capsys, lori_args):
    """Only where the student starts from it is there another way."""
    alone = {"student_init": "teacher", "backbone": BACKBONE}
    fails(
        world, capsys, "the student starts from its weights: .* set model.student_init to base", method="CODI", **alone
    )
    terms = {name: value for name, value in lori_args.items() if name != "teacher"}
    fails(world, capsys, r"the terms compare with one: give .* as model.teacher.name$", method="LoRi", **terms)


@pytest.mark.parametrize("field", ["gradient_checkpointing", "compile"])
def test_what_a_frozen_teacher_has_no_use_for(world, capsys, lori_args, field):
    flags = [f"--model.teacher.{field}=true"]
    fails(world, capsys, f"model.teacher.{field} is set, but a frozen", method="LoRi", flags=flags, **lori_args)


def test_fewer_problems_than_a_batch(world, capsys):
    fails(world, capsys, "do not fill one step", flags=["--data.batch_size", "100"], backbone=BACKBONE)


def test_rank_above_dimension(world, capsys, lori_args):
    flags = ["--model.alignment.rank_hidden", "33"]
    fails(world, capsys, "rank_hidden=33", "choose a rank between 1 and 32", method="LoRi", flags=flags, **lori_args)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.alignment.rank_hidden", "33"], "rank_hidden=33"),
        (["--model.layers.layers", "[3]"], r"model.layers.layers \[3\]"),
        (["--model.student_layers.layers", "[1]"], "needs equal trajectories"),
        (["--data.template.answer_prompt", "'##'"], r"was trained with another data.template \(answer_prompt\)"),
    ],
)
def test_what_does_not_go_together_is_told_before_the_data_is_read(world, capsys, lori_args, flags, words, monkeypatch):
    for name in ("setup", "setup_train"):
        monkeypatch.setattr(PairedDataModule, name, lambda *_, **__: pytest.fail("the data was read first"))
    fails(world, capsys, words, method="LoRi", flags=flags, **lori_args)
    folder = world.folder / "cache"
    flags = [*flags, f"--folder={folder}"]
    fails(world, capsys, words, command="cache", method="LoRi", flags=flags, **lori_args)
    assert not folder.exists()


def test_layers_out_of_range(world, capsys, lori_args, monkeypatch):
    monkeypatch.setattr(backbone_module, "_load_weights", lambda *_: pytest.fail("weights were read first"))
    words = r"\.layers \[1, 3\]: \[3\] are out of range; the model has layers 1 to 2 \(or -1 to -2\)"
    for option in ("layers", "student_layers"):
        flags = [f"--model.{option}.layers", "[1, 3]"]
        fails(world, capsys, f"model.{option}{words}", method="LoRi", flags=flags, **lori_args)


def test_other_shapes_under_shared(world, capsys, lori_args):
    small = {"tokenizer": "synthetic", "config": {**BACKBONE["config"], "hidden_size": 16}}
    arguments = lori_args | {"backbone": small, "student_init": "base", "anchor": None}
    fails(world, capsys, "32", "16", "learned", method="LoRi", **arguments)


def test_a_student_of_another_shape_than_the_teacher_that_it_starts_from(world, capsys, lori_args):
    check_model(Backbone(config=BACKBONE["config"]), Backbone(**lori_args["teacher"]))
    small = {"config": {**BACKBONE["config"], "hidden_size": 16}}
    words = "config.hidden_size is 16, but the student starts from the teacher's weights, where it is 32"
    fails(world, capsys, words, "student_init to base", method="LoRi", **(lori_args | {"backbone": small}))
    settings = {key: value for key, value in small["config"].items() if key != "model_type"}
    AutoConfig.for_model(BACKBONE["config"]["model_type"], **settings).save_pretrained(world.folder / "other")
    named = {"name": str(world.folder / "other"), "tokenizer": "synthetic"}
    words = f"model.backbone.name '{named['name']}': its config's hidden_size is 16, but the student starts"
    fails(world, capsys, words, "set model.backbone.name to null", method="LoRi", **(lori_args | {"backbone": named}))


def test_negative_latents(world, capsys, lori_args):
    words = ("model.latents is -1", "give 0 or more")
    fails(world, capsys, *words, method="LoRi", **(lori_args | {"latents": -1}))
    fails(world, capsys, *words, method="Pause", latents=-1, backbone=BACKBONE)


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


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("latents", "model.latents is null, and takes int: give one, or leave it out for 5"),
        ("alignment.init_args.rank_hidden", "model.alignment.rank_hidden is null, and takes int | float"),
        ("schedule.warmup", "model.schedule.warmup is null"),
        ("optimizer.init_args.lr", "model.optimizer.lr is null"),
        ("terms.0.init_args.w_anchor", r"model.terms\[0\].w_anchor is null"),
    ],
)
def test_null_where_there_is_no_null(world, capsys, lori_args, field, said):
    """The parser takes it; rank_hidden null would come to light when the teacher has been measured."""
    anchor = {"class_path": "lori_pl.alignment.AnchorAlignment", "init_args": {}}
    arguments = json.loads(json.dumps({**lori_args, "anchor": None, "terms": [anchor], "schedule": {}}))
    arguments["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
    *path, last = field.split(".")
    node = arguments
    for key in path:
        node = node[int(key)] if key.isdigit() else node.setdefault(key, {})
    node[last] = None
    fails(world, capsys, said, method="LoRi", **arguments)


def test_null_in_the_data(world, capsys):
    config = world.config("null", {"data": {"source": SOURCE, "template": {"question": None}}})
    fails(world, capsys, "data.template.question is null, and takes str", flags=["--config", config], backbone=BACKBONE)


def test_no_data(world, capsys):
    """The embedded world's problems are taken by nobody who did not ask for them."""
    model = {"class_path": "lori_pl.methods.ExplicitCoT", "init_args": {"backbone": BACKBONE}}
    config = world.config("alone", {"model": model})
    assert main(["fit", "--config", config, f"--trainer.default_root_dir={world.folder / 'run'}"]) == 2
    assert "data.source is not set: add --config configs/data/NAME.yaml" in message(capsys)


@pytest.mark.parametrize("flag", ["--optimizer=Adam", "--lr_scheduler=StepLR"])
def test_no_optimizer_beside_the_methods(world, capsys, flag):
    fails(world, capsys, f"argument {flag.partition('=')[0]}: invalid NoneType", flags=[flag], backbone=BACKBONE)


def test_the_config_of_a_run_of_an_earlier_version(world):
    """It has what LightningCLI had put there."""
    old = world.config("old", {"optimizer": None, "lr_scheduler": None})
    assert world.run("preview", "--config", old, method="ExplicitCoT", backbone=BACKBONE) == 0


@pytest.mark.parametrize(("name", "said"), [("LBFGS", "per-parameter options"), ("Muon", "only supports 2D")])
def test_an_optimiser_that_does_not_take_what_trains_is_one_line(world, capsys, name, said):
    flags = [f"--model.optimizer=torch.optim.{name}"]
    fails(world, capsys, f"model.optimizer: .*{said}.*; take another, or train less", flags=flags, backbone=BACKBONE)


def test_a_function_that_stands_for_a_class(world, monkeypatch):
    (world.folder / "ideas_here.py").write_text(
        "from lori_pl.data.sources import Synthetic\n\n\n"
        "def source(train: int = 9) -> Synthetic:\n    return Synthetic(train=train, min_steps=1, max_steps=2)\n"
    )
    monkeypatch.syspath_prepend(world.folder)
    source = world.config(
        "source", {"data": {"source": {"class_path": "ideas_here.source", "init_args": {"train": 9}}}}
    )
    assert world.run("preview", "--config", source, method="ExplicitCoT", backbone=BACKBONE) == 0


def test_help_says_what_ckpt_path_takes(capsys):
    for command, words in (("fit", "`auto`"), ("test", "student's folder")):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert words in shown.partition("--ckpt_path CKPT_PATH")[2]
        assert "hpc" not in shown
        assert "--optimizer" not in shown


def test_a_wrong_class_is_told_with_the_file_that_names_it(world, capsys):
    """Not with the last one that has its key; and with the help of what could have been given."""
    first, last = (
        world.config(name, {"model": {"class_path": f"lori_pl.methods.{method}", "init_args": {"latents": 3}}})
        for name, method in (("first", "NoSuch"), ("last", "LoRi"))
    )
    assert main(["fit", "--config", first, "--config", world.config("between", {"model": {"init_args": {}}})]) == 2
    assert re.search(r"NoSuch' \(\S*first.yaml, line 2\); see `python -m lori_pl fit --help`", message(capsys))
    alignment = {"model": {"init_args": {"alignment": {"class_path": "lori_pl.alignment.NoSuch"}}}}
    assert main(["fit", "--config", last, "--config", world.config("wrong", alignment)]) == 2
    assert re.search(r"NoSuch' \(\S*wrong.yaml, line \d\); see .*--model.help=lori_pl.methods.LoRi`", message(capsys))


def test_no_backbone(world, capsys):
    fails(world, capsys, "neither name nor tokenizer", backbone={})


def larger_tokenizer(world) -> str:
    tokenizer = synthetic_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(world.folder / "tokenizer")
    return str(world.folder / "tokenizer")


@pytest.mark.slow
def test_the_teachers_weights_need_the_teachers_tokenizer(world, capsys, lori_args):
    made = {"backbone": {"tokenizer": larger_tokenizer(world)}, "teacher": {**BACKBONE}}
    assert world.fit("LoRi", "more", **(lori_args | made)) == 0  # more words than the teacher's, the same ids
    other = {"backbone": {"tokenizer": "synthetic"}, "teacher": BACKBONE | {"tokenizer": larger_tokenizer(world)}}
    fails(world, capsys, "another tokenizer", "student_init to base", method="LoRi", **(lori_args | other))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("schedule.warmup", "-1"),
        ("schedule.warmup", "50.5"),
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


@pytest.mark.parametrize("strategy", ["fsdp", {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}])
def test_lightnings_own_fsdp(world, capsys, strategy):
    flags = ["--config", world.config("strategy", {"trainer": {"strategy": strategy, "devices": 2}})]
    fails(world, capsys, "trainer.strategy fsdp", "take sharded", flags=flags, backbone=BACKBONE)


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("strategy", "ddpp", r"strategy ddpp.*there is no such strategy; auto, ddp, sharded and fsdp1"),
        pytest.param(
            "accelerator",
            "gpu",
            "accelerator gpu.*No supported gpu backend found.*configs/trainer/cpu.yaml",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_no_trainer_can_be_made(world, capsys, flag, value, words):
    fails(world, capsys, words, flags=[f"--trainer.{flag}={value}"], backbone=BACKBONE)


def test_row_of_a_preview(world, capsys):
    fails(world, capsys, "--row: invalid int value", command="preview", flags=["--row=first"], backbone=BACKBONE)
    fails(world, capsys, "--row: expected one argument", command="preview", flags=["--row"], backbone=BACKBONE)
    fails(world, capsys, "has rows 0 to 63", command="preview", flags=["--row=64"], backbone=BACKBONE)


@pytest.mark.slow
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


def test_two_losses_of_one_name(world, capsys, lori_args):
    arguments = lori_args | {"terms": [{"class_path": "lori_pl.alignment.AnchorAlignment"}]}
    fails(world, capsys, "named 'anchor'", method="LoRi", **arguments)


def test_a_weight_of_no_loss(world, capsys, lori_args):
    fails(world, capsys, "typo", "anchor", method="LoRi", **(lori_args | {"weights": {"typo": 1.0}}))


def test_a_schedule_without_an_end(world, capsys):
    fails(world, capsys, "max_steps or max_epochs", flags=["--trainer.max_steps", "-1"], backbone=BACKBONE)


@pytest.mark.slow
def test_the_module_runs_as_a_process_and_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "lori_pl", "fit", "--config", "none.yaml"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error:")
    assert "Traceback" not in done.stderr
