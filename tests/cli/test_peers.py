"""Every peer through the command line: train, resume, test, export; LoRi's terms beside its own losses."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
from failing import fails
from tiny_world import BACKBONE, LORI_TERMS, SOURCE, assert_same, checkpoint
from torch.testing import assert_close

import lori_pl.methods
from lori_pl import LatentReasoner
from lori_pl.data import synthetic_problems
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.data.sources import Synthetic
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.methods import Coconut, ICoTSI
from lori_pl.models.teacher import FrozenTeacher

STAGES = {"stages": {"steps": 2}}
PEERS = {
    "CODI": {"latents": 2},
    "PCCoT": {"latents": 4, "passes": 2},
    "KaVa": {"latents": 4, "passes": 2},
    "SIMCoT": {"latents": 2},
    "Coconut": {**STAGES, "latents_a_step": 1, "latent_stages": 2},
    "SIMCoTCoconut": {**STAGES, "latents_a_step": 1, "latent_stages": 2},
    "ICoTSI": {**STAGES, "remove_all": 2, "smoothing": 1.0},
}
LATENT = [name for name in PEERS if name != "ICoTSI"]


def staged_or_slow(name):
    """One in the fast suite: that with stages and a decoder."""
    return name if name == "SIMCoTCoconut" else pytest.param(name, marks=pytest.mark.slow)


def arguments(name, teacher):
    if name == "ICoTSI":
        return {"backbone": {"name": teacher}, **PEERS[name]}
    return {"backbone": {}, "teacher": {"name": teacher}, **PEERS[name]}


@pytest.mark.resume
@pytest.mark.parametrize("name", [staged_or_slow(name) for name in PEERS])
def test_resumed_in_mid_stage_equals_uninterrupted(world, teacher, name):
    flags = ["--trainer.val_check_interval", "4", "--model.schedule.decay", "none", "--model.schedule.warmup", "0"]
    settings = arguments(name, teacher)
    assert world.fit(name, "whole", *flags, "--trainer.max_steps", "9", **settings) == 0
    # stages begin at steps 2 and 4: in the middle of one, and where one ends
    for last in ("3", "4", "9"):
        more = ["--ckpt_path", "last"] if last != "3" else []
        assert world.fit(name, "parts", *flags, *more, "--trainer.max_steps", last, **settings) == 0
    whole, parts = checkpoint(world.folder / "whole"), checkpoint(world.folder / "parts")
    assert whole["global_step"] == parts["global_step"] == 9
    assert_same(whole["state_dict"], parts["state_dict"])
    assert whole["lori_pl"] == parts["lori_pl"]
    summary = json.loads((world.folder / "whole" / "summary.json").read_text())
    (label,) = summary["methods"]
    assert label in ("codi", "pccot", "kava", "sim_cot_codi", "coconut", "sim_cot_coconut", "icot_si")
    # the student's folder is enough, and answers as the checkpoint that it came from
    student = LatentReasoner.from_pretrained(world.folder / "whole" / "student")
    questions = [problem.question for problem in synthetic_problems(3, 1, "test", min_steps=1, max_steps=2)]
    assert len(student.answer(questions, max_new_tokens=4)) == 3
    tested = ["--ckpt_path", str(world.folder / "whole" / "student")]
    assert world.run("test", *tested, method=name, root="tested", **settings) == 0
    best = str(world.folder / "whole" / "checkpoints" / "best.ckpt")
    assert world.run("test", "--ckpt_path", best, method=name, root="again", **settings) == 0
    for folder in ("tested", "again"):
        found = json.loads((world.folder / folder / "summary.json").read_text())["methods"][label]
        assert found["accuracy"] == summary["methods"][label]["accuracy"]
        assert found["passes"] == summary["methods"][label]["passes"]
    # an exported checkpoint is the student that the run left
    exported = str(world.folder / "exported")
    assert world.run("export", "--ckpt_path", best, "--folder", exported, method=name, **settings) == 0
    other = LatentReasoner.from_pretrained(exported)
    assert (other.settings, other.given) == (student.settings, student.given)
    assert_same(dict(other.state_dict()), dict(student.state_dict()))


@pytest.mark.parametrize("name", [staged_or_slow(name) for name in LATENT])
def test_lori_s_terms_join_every_latent_method(world, teacher, name):
    terms = [LORI_TERMS["alignment"], LORI_TERMS["anchor"]]
    settings = arguments(name, teacher) | {"terms": terms, "statistics_problems": 16}
    assert world.fit(name, "run", **settings) == 0
    (label,) = json.loads((world.folder / "run" / "summary.json").read_text())["methods"]
    assert label.startswith("lori_")
    saved = checkpoint(world.folder / "run")["state_dict"]
    assert any(key.startswith("terms.0.") for key in saved)


@pytest.mark.slow
@pytest.mark.parametrize("name", LATENT)
def test_lori_s_terms_are_the_same_from_a_cache(world, teacher, name, monkeypatch):
    terms = [LORI_TERMS["alignment"], LORI_TERMS["anchor"]]
    settings = arguments(name, teacher) | {"terms": terms, "statistics_problems": 16}
    cache, losses, kind = str(world.folder / "cache"), [], getattr(lori_pl.methods, name)
    original = kind.training_step

    def step(self, batch, batch_idx):
        losses.append((result := original(self, batch, batch_idx))["parts"])
        return result

    monkeypatch.setattr(kind, "training_step", step)
    # the last stage begins at step 4
    flags = ["--trainer.max_steps=5", "--trainer.val_check_interval=5", "--test_after_fit=false"]
    assert world.fit(name, "live", *flags, **settings) == 0
    assert world.run("cache", "--folder", cache, "--dtype", "float32", method=name, **settings) == 0
    monkeypatch.setattr(FrozenTeacher, "__init__", lambda *_: pytest.fail("the teacher was loaded"))
    assert world.fit(name, "cached", *flags, **settings, cache=cache) == 0
    assert len(losses) == 10
    for one, other in zip(losses[:5], losses[5:], strict=True):
        assert {"mean", "covariance", "anchor"} < one.keys() == other.keys()
        for part, value in one.items():
            assert_close(other[part], value, rtol=1e-4, atol=1e-6, msg=part)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in PEERS if name != "CODI"), "CODI"]
)
def test_under_lora_a_peer_is_trained_saved_and_loaded(world, name):
    """With LoRi's terms where it has latents. Of the shipped teacher: a student of another answers all alike."""
    shipped = str(Path(lori_pl.__file__).parent / "assets" / "teacher")
    settings = arguments(name, shipped) | {"max_new_tokens": 4}
    settings["backbone"] = settings["backbone"] | {"lora": {"rank": 2, "alpha": 4.0, "dropout": 0.1}}
    if name in LATENT:
        settings |= {"terms": [LORI_TERMS["alignment"], LORI_TERMS["anchor"]], "statistics_problems": 16}
    flags = ["--trainer.max_steps=8", "--trainer.val_check_interval=4", "--model.schedule.warmup=0"]
    flags += ["--model.optimizer.class_path=torch.optim.AdamW", "--model.optimizer.init_args.lr=0.003"]
    assert world.fit(name, "run", *flags, **settings) == 0
    state, run = checkpoint(world.folder / "run")["state_dict"], world.folder / "run"
    adapters = {key: value for key, value in state.items() if ".lora_" in key}
    assert all(value.any() for value in adapters.values())  # B starts at zero
    others = ("reasoner.thought.", "reasoner.markers", "terms.", "decoder.bridge.")
    assert all(key.startswith(others) for key in state.keys() - adapters.keys())
    assert any(key.startswith("decoder.lm.") for key in adapters) == name.startswith("SIMCoT")
    answers = []
    for path in (run / "checkpoints" / "best.ckpt", run / "student"):
        out = world.folder / f"{path.stem}.jsonl"
        given = [f"--ckpt_path={path}", f"--predictions={out}"]
        assert world.run("predict", *given, method=name, root="predicted", **settings) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        answers.append([(row["id"], row["prediction"], row["passes"], row["correct"]) for row in rows])
    assert answers[0] == answers[1]
    assert len({prediction for _, prediction, *_ in answers[0]}) > 1
    (found,) = json.loads((run / "summary.json").read_text())["methods"].values()
    assert found["accuracy"] == pytest.approx(sum(correct for *_, correct in answers[0]) / len(answers[0]))


def test_the_best_checkpoint_of_a_staged_method_is_one_of_its_last_stage(world, teacher):
    flags = ["--trainer.val_check_interval", "1", "--trainer.max_steps", "8"]
    assert world.fit("Coconut", "run", *flags, **arguments("Coconut", teacher)) == 0
    best = checkpoint(world.folder / "run", "best.ckpt")
    # stages of two steps: 1, 2 and the last, which begins at step 4
    assert best["lori_pl"]["stage"] == 2
    assert best["global_step"] > 4


@pytest.mark.slow
def test_the_best_checkpoint_is_one_of_the_last_stage_when_epochs_are_validated(world, teacher):
    settings = arguments("Coconut", teacher) | {"stages": {"epochs": 1}}
    flags = [
        "--trainer.val_check_interval",
        "1.0",
        "--trainer.check_val_every_n_epoch",
        "1",
        "--trainer.max_steps",
        "-1",
    ]
    assert world.fit("Coconut", "run", *flags, "--trainer.max_epochs", "4", **settings) == 0
    best = checkpoint(world.folder / "run", "best.ckpt")
    assert best["lori_pl"]["stage"] == 2
    assert best["global_step"] > 16


def test_a_run_that_ends_before_its_last_stage_is_warned_of(world, teacher, caplog):
    flags = ["--trainer.max_steps", "4", "--test_after_fit", "false"]
    assert world.fit("Coconut", "run", *flags, **arguments("Coconut", teacher)) == 0
    assert "training ends after 4 steps, before the last stage, which begins at step 4" in caplog.text


@pytest.mark.parametrize(
    ("name", "drops", "changes", "words"),
    [
        ("Coconut", False, {"latent_stages": 5}, "latent_stages is 5, but the longest rationale has 2 steps: 3 stages"),
        pytest.param(
            *("Coconut", True, {"latent_stages": 5}),
            "latent_stages is 5, but the longest rationale has 1 steps: 4 stages",
            marks=pytest.mark.slow,
        ),
        ("ICoTSI", False, {"remove_all": 400}, "remove_all is 400, but the longest rationale has {tokens} tokens: "),
        ("SIMCoT", False, {"latents": 1}, "{longer} of 64 training problems have more than 1 steps: their last"),
        pytest.param("SIMCoT", True, {"latents": 1}, "", marks=pytest.mark.slow),
        # c latents stand for one step
        (
            "SIMCoTCoconut",
            False,
            {"latents_a_step": 2, "latent_stages": 1},
            "{longer} of 64 training problems have more",
        ),
    ],
)
def test_stages_for_nothing_and_steps_without_a_place_are_told_of(world, teacher, caplog, name, drops, changes, words):
    caplog.set_level("INFO", logger="lori_pl")
    flags = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--test_after_fit", "false"]
    flags += ["--data.template.drop_last_step", str(drops).lower()]
    assert world.fit(name, "run", *flags, **(arguments(name, teacher) | changes)) == 0
    data = PairedDataModule(Synthetic(**SOURCE["init_args"]))
    data.setup("fit")
    split = data.splits["train"]
    longer, tokens = int((split.steps > 1).sum()), int(split.student.rationales.lengths.max())
    assert 0 < longer < 64
    assert words.format(longer=longer, tokens=tokens) in caplog.text
    assert ("training problems have more than" in caplog.text) == (name.startswith("SIMCoT") and not drops)


def test_another_student_of_the_same_weights_is_refused(world, teacher, capsys):
    flags = ["--trainer.max_steps", "2", "--test_after_fit", "false"]
    last = str(world.folder / "pccot" / "checkpoints" / "last.ckpt")
    settings = arguments("PCCoT", teacher)
    assert world.fit("PCCoT", "pccot", *flags, **settings) == 0
    capsys.readouterr()
    assert world.run("test", "--ckpt_path", last, method="PCCoT", root="tested", **settings | {"passes": 1}) == 2
    assert "made with model.passes 2, and this run has 1" in capsys.readouterr().err


def test_a_decoder_of_another_tokenizer_is_refused(world, teacher, capsys, tmp_path):
    other = tmp_path / "other"
    tokenizer = load_tokenizer("synthetic", False)
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens(["quokka"])
    extended.save_pretrained(other)
    settings = arguments("SIMCoT", teacher) | {"decoder": {**BACKBONE, "tokenizer": str(other)}}
    assert world.fit("SIMCoT", "run", **settings) == 2
    assert "has another tokenizer than the student" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_in_mid_stage_is_tested_as_it_stands(world, teacher, capsys):
    settings = arguments("Coconut", teacher) | {"latents_a_step": 2}
    flags = ["--trainer.max_steps", "3", "--test_after_fit", "false"]
    assert world.fit("Coconut", "run", *flags, **settings) == 0
    student = LatentReasoner.from_pretrained(world.folder / "run" / "student")
    assert (student.settings.then, student.thought.latents) == ("words", 4)
    last, folder = (str(world.folder / "run" / name) for name in ("checkpoints/last.ckpt", "student"))

    def run(command, path, root, *flags):
        return world.run(command, "--ckpt_path", path, *flags, method="Coconut", root=root, **settings)

    assert run("test", last, "tested") == 0
    summary = json.loads((world.folder / "tested" / "summary.json").read_text())
    assert summary["methods"]["coconut"]["passes"] > 4 + 1
    # latents come by whole steps while words follow
    assert run("test", folder, "three", "--latents", "3") == 2
    assert "takes its latents 2 a step" in capsys.readouterr().err
    assert run("validate", folder, "two", "--latents", "2") == 0
    assert re.search(r"val/loss\D*\d", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("KaVa", ["--model.peer_compat=true"], "'peer_compat' is not accepted"),
        ("PCCoT", ["--model.peer_compat=published"], "peer_compat.* Got value: published"),
        ("PCCoT", ["--model.peer_compat=true"], r"set data\.template\.drop_last_step"),
        ("Coconut", ["--model.peer_compat=true", "--model.stages.reset_optimizer=false"], "reset_optimizer is false"),
    ],
)
def test_a_published_form_that_is_none_is_refused(world, teacher, capsys, name, flags, words):
    fails(world, capsys, words, method=name, flags=flags, **arguments(name, teacher))


def record_moments(monkeypatch, kind):
    """How many weights have moments as each step begins, step by step."""
    seen = []
    original = kind.training_step

    def spy(self, batch, batch_idx):
        seen.append((len(self.optimizers(use_pl_optimizer=False).state), self.stage))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(kind, "training_step", spy)
    return seen


def test_the_optimiser_forgets_when_a_stage_begins(world, monkeypatch):
    seen = record_moments(monkeypatch, ICoTSI)
    settings = {"backbone": BACKBONE, **PEERS["ICoTSI"]}
    flags = ["--trainer.max_steps", "8", "--test_after_fit", "false"]
    assert world.fit("ICoTSI", "run", *flags, **settings) == 0
    assert [count > 0 for count, _ in seen] == [False, True, False, True, False, True, False, True]
    # the stage that begins is that of the step's loss
    assert [stage for _, stage in seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    seen.clear()
    kept = settings | {"stages": {"steps": 2, "reset_optimizer": False}}
    assert world.fit("ICoTSI", "kept", *flags, **kept) == 0
    assert [count > 0 for count, _ in seen] == [False] + [True] * 7


@pytest.mark.slow
def test_the_published_coconut_forgets_at_every_epoch_too(world, monkeypatch):
    seen = record_moments(monkeypatch, Coconut)
    settings = {"backbone": BACKBONE, "student_init": "base", **PEERS["Coconut"], "stages": {"steps": 6}}
    flags = ["--trainer.max_steps", "11", "--test_after_fit", "false", "--trainer.val_check_interval", "11"]
    assert world.fit("Coconut", "run", *flags, **settings, peer_compat=True) == 0
    # an epoch has eight steps
    assert [step for step, (count, _) in enumerate(seen) if not count] == [0, 6, 8]
    assert [stage for _, stage in seen] == [0] * 6 + [1] * 5
