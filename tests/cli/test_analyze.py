"""`analyze`: numbers and pictures of trained students of every kind, and what is bad input to it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from failing import message
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_world import BACKBONE, BASE, LORI_TERMS, World

from lori_pl import LatentReasoner
from lori_pl.analysis.right_wrong import effective_rank
from lori_pl.cli import main
from lori_pl.models.thought import ThoughtSettings

# right_wrong.png stands there where enough problems are answered right, which a tiny student may or may not do
PICTURES = {"spectra", "energy", "effective_rank", "angles", "captured_energy"}
LATENT_PICTURES = {"lens", "agreement", "agreement_by_layer", "interventions"}


def analyze(world, method, place, *flags, out="analysis", data=None, **arguments):
    """Runs `analyze` with the config of a method."""
    files = [world.config("base", {**BASE, **(data or {})}), world.method(method, **arguments)]
    common = ["--ckpt_path", str(place), "--folder", str(world.folder / out), "--top_k", "3"]
    return main(["analyze", *(f"--config={file}" for file in files), *common, *flags])


def read(world, out="analysis") -> dict[str, Any]:
    return json.loads((world.folder / out / "analysis.json").read_text())


@pytest.fixture(scope="module")
def lori(tmp_path_factory, teacher):
    """The folder of a LoRi run, tested at its end."""
    made = World(tmp_path_factory.mktemp("lori"))
    assert made.fit("LoRi", "lori", **lori_of(teacher)) == 0
    return made.folder / "lori"


def lori_of(teacher) -> dict[str, Any]:
    # untrained models write on and on
    return {"backbone": {}, "teacher": {"name": teacher}, "max_new_tokens": 4, **LORI_TERMS}


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [n for each in value for n in numbers(each)] if isinstance(value, list) else [value]


def test_a_checkpoint_of_lori(world, teacher, lori, capsys):
    best = lori / "checkpoints" / "best.ckpt"
    assert (
        main(
            [
                *("analyze", "--config", str(lori / "config.yaml"), "--ckpt_path", str(best)),
                *("--folder", str(world.folder / "analysis"), "--rank", "3", "--seed", "4"),
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    found = read(world)
    folder = world.folder / "analysis"
    # the accuracy is that of the run's own test, and so is that of a projection on everything
    summary = json.loads((lori / "summary.json").read_text())["test_sets"]["test"]
    assert found["problems"] == summary["n"] == 16
    assert found["accuracy"]["value"] == pytest.approx(summary["accuracy"])
    changed = {(each["intervention"], each["latent"]): each for each in found["latents"]["interventions"]}
    assert changed["none", "all"]["accuracy"] == changed["rank 32", "all"]["accuracy"] == found["accuracy"]["value"]
    assert {latent for name, latent in changed if name == "drop"} == {1, 2, 3, "all"}
    assert "answers_of_the_other_problem" in changed["swap", "all"]
    assert (found["method"], found["seed"], found["teacher"]) == ("lori", 4, teacher)
    assert found["config"]["model"]["class_path"] == "lori_pl.methods.LoRi"
    assert found["commit"]
    kept = {each["title"]: each for each in found["tables"]}
    assert all(title in " ".join(shown.split()) for title in kept)
    assert [row[0] for row in list(kept.values())[-1]["rows"]] == ["z1", "z2", "z3", "all"]
    states = found["rank"]["states"]
    assert {name for name in states if name.count("/") == 1} == {
        *("teacher/rationale", "teacher/question", "student/latents", "student/rationale", "student/question")
    }
    assert {"teacher/rationale/shuffled", "teacher/rationale/permuted", "student/latents/permuted"} <= set(states)
    assert states["student/latents"]["tokens"] == 16 * 3
    assert states["student/latents"]["longest"] == 3
    for each in states.values():
        assert [each["modes"][mode]["dimension"] for mode in ("layer", "hidden")] == [2, 32]
        assert sum(each["modes"]["hidden"]["energy_shares"]) == pytest.approx(1, abs=1e-4)
        assert len(each["by_layer"]) == 2
        for part in [*each["by_layer"], *each["by_position"]]:
            assert len(part["energy_shares"]) == 32
            assert sum(part["energy_shares"]) == pytest.approx(1, abs=1e-4)
    angles = found["rank"]["principal_angles"]["hidden"]
    # the student shares the teacher's factors, which were fitted on rationales like these
    assert angles["teacher/rationale | learned/shared subspace"]["ranks"] == [3, 4]
    assert len(angles["student/latents | learned/shared subspace"]["angles"]) == 3
    captured = found["rank"]["captured_energy"]["student/latents | student/latents"]
    assert captured[-1] == pytest.approx(1, abs=1e-5)
    assert found["latents"]["agreement"]["results_of_several_tokens"] == 0
    assert len(found["latents"]["lens"]["examples"]) == 3
    assert {n for n in numbers(found) if isinstance(n, float) and not math.isfinite(n)} == set()
    pictures = {file.stem for file in folder.glob("*.png")}
    assert pictures - {"right_wrong"} == PICTURES | LATENT_PICTURES
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.glob("*.png"))
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {tag.removeprefix("analysis/") for tag in events.Tags()["images"]} == pictures
    assert "student: latents" in shown
    assert "the other problem's answer:" in shown
    assert "without a change" in shown
    # a second run into it is refused before anything is read
    assert analyze(world, "LoRi", "nowhere.ckpt", **lori_of(teacher)) == 2
    assert "analysis holds something already" in message(capsys)
    # and one that cannot be made
    assert main(["analyze", "--ckpt_path", "nowhere.ckpt", "--folder", str(folder / "analysis.json" / "x")]) == 2
    assert "analysis.json/x cannot be made" in message(capsys)


@pytest.mark.slow
def test_models_run_at_the_precision_of_the_config_and_measures_in_full(world, lori, monkeypatch):
    seen, run = set(), LatentReasoner.run
    monkeypatch.setattr(
        LatentReasoner, "run", lambda self, *args: seen.add(torch.is_autocast_enabled("cpu")) or run(self, *args)
    )
    common = ["--config", str(lori / "config.yaml"), "--ckpt_path", str(lori / "student"), "--problems", "4"]
    flags = ["--trainer.precision", "bf16-mixed", "--device", "cpu"]
    assert main(["analyze", *common, *flags, "--folder", str(world.folder / "analysis")]) == 0
    assert seen == {True}
    tokens = [torch.randn(3, 2, 8) for _ in range(4)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = effective_rank(tokens)
    assert inside == effective_rank(tokens)


@pytest.mark.slow
def test_a_folder_without_latents_has_the_rank_part_and_a_line(world, teacher, capsys):
    place, backbone = world.folder / "student", {"name": teacher}
    words = LatentReasoner.from_pretrained(teacher)
    LatentReasoner(words.lm, words.tokenizer, words.template, ThoughtSettings("none", 0)).save_pretrained(place)
    (world.folder / "analysis").mkdir()
    flags = ("--split", "validation", "--problems", "8")
    flags = (*flags, "--teacher", teacher)
    assert analyze(world, "NoCoT", place, *flags, backbone=backbone, max_new_tokens=4) == 0
    line = "latents: none to look into, the student reasons by 'none' with 0"
    assert line in " ".join(capsys.readouterr().out.split())
    found = read(world)
    assert found["latents"] == {"left_out": [line]}
    assert (found["split"], found["problems"]) == ("validation", 8)
    assert found["rank"]["reasoning"] == {"teacher": "teacher/rationale", "student": "student/question"}
    assert {file.stem for file in (world.folder / "analysis").glob("*.png")} - {"right_wrong"} == PICTURES


@pytest.mark.slow
def test_a_student_that_reasons_in_words(world, teacher):
    arguments = {"backbone": {"name": teacher}, "max_new_tokens": 4}
    assert analyze(world, "ExplicitCoT", teacher, "--problems", "4", "--split", "train", **arguments) == 0
    found = read(world)
    assert found["rank"]["reasoning"] == {"student": "student/rationale"}
    assert "student/rationale/shuffled" in found["rank"]["states"]
    assert "reasons by 'words'" in found["latents"]["left_out"][0]


GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OTHERS = {
    "Pause": {"latents": 2},
    "PCCoT": {"latents": 4, "passes": 2},
    "KaVa": {"latents": 4, "passes": 2},
    "CODI": {"latents": 2},
    "SIMCoT": {"latents": 2},
    "SIMCoTCoconut": {"stages": {"steps": 2}, "latents_a_step": 1, "latent_stages": 2},
    "Coconut": {"stages": {"steps": 2}, "latents_a_step": 1, "latent_stages": 2},
    "LoRi": LORI_TERMS,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "config"), [*((method, None) for method in OTHERS), ("LoRi", GPT2), ("PCCoT", GPT2)]
)
def test_other_latents(world, teacher, method, config):
    """A folder and a checkpoint answer as the run's own test, and a projection on everything changes nothing."""
    if config is not None:
        assert world.fit("ExplicitCoT", "teacher", backbone={"tokenizer": "synthetic", "config": config}) == 0
        teacher = str(world.folder / "teacher" / "student")
    of_teacher = (
        {"backbone": {"name": teacher}} if method == "Pause" else {"backbone": {}, "teacher": {"name": teacher}}
    )
    arguments = {**of_teacher, **OTHERS[method], "max_new_tokens": 4}
    assert world.fit(method, "run", "--trainer.max_steps", "6", **arguments) == 0
    summary = json.loads((world.folder / "run" / "summary.json").read_text())["test_sets"]["test"]
    for place in ("student", "checkpoints/best.ckpt"):
        out = place.replace("/", "_")
        assert analyze(world, method, world.folder / "run" / place, out=out, **arguments) == 0
        found = read(world, out)
        assert found["accuracy"]["value"] == pytest.approx(summary["accuracy"])
        changed = {(each["intervention"], each["latent"]): each for each in found["latents"]["interventions"]}
        assert changed["none", "all"]["accuracy"] == changed["rank 32", "all"]["accuracy"] == found["accuracy"]["value"]
        assert {n for n in numbers(found) if isinstance(n, float) and not math.isfinite(n)} == set()


@pytest.mark.slow
def test_a_student_whose_words_were_taken_away(world, teacher):
    """iCoT-SI's last stage answers at once."""
    arguments = {"backbone": {"name": teacher}, "stages": {"steps": 1}, "remove_all": 2, "max_new_tokens": 4}
    assert world.fit("ICoTSI", "run", "--trainer.max_steps", "6", **arguments) == 0
    summary = json.loads((world.folder / "run" / "summary.json").read_text())["test_sets"]["test"]
    for place in ("student", "checkpoints/best.ckpt"):
        out = place.replace("/", "_")
        assert analyze(world, "ICoTSI", world.folder / "run" / place, out=out, **arguments) == 0
        found = read(world, out)
        assert found["accuracy"]["value"] == pytest.approx(summary["accuracy"])
        assert "reasons by 'none'" in found["latents"]["left_out"][0]


@pytest.mark.slow
def test_adapters_and_learned_factors_of_a_checkpoint(world, teacher):
    """The student's trained factors have a side of their own, and its teacher is loaded apart from its base."""
    arguments = lori_of(teacher)
    alignment = arguments["alignment"]
    own = {**alignment["init_args"], "student_factors": "learned", "rank_layers": 1}
    arguments |= {"alignment": {**alignment, "init_args": own}, "backbone": {"lora": {"rank": 2}}}
    assert world.fit("LoRi", "run", **arguments) == 0
    place = world.folder / "run" / "checkpoints" / "best.ckpt"
    assert analyze(world, "LoRi", place, **arguments) == 0
    found = read(world)
    summary = json.loads((world.folder / "run" / "summary.json").read_text())["test_sets"]["test"]
    assert found["accuracy"]["value"] == pytest.approx(summary["accuracy"])
    for mode in ("hidden", "layer"):
        pairs = found["rank"]["principal_angles"][mode]
        assert "learned/teacher's side | learned/student's side" in pairs
        assert "student/latents | learned/student's side" in pairs
    # the folder of the same student has no alignment
    assert analyze(world, "LoRi", world.folder / "run" / "student", out="folder", **arguments) == 0
    alone = read(world, "folder")
    assert not any("learned" in pair for pair in alone["rank"]["principal_angles"]["hidden"])
    assert alone["accuracy"]["value"] == found["accuracy"]["value"]


@pytest.mark.slow
def test_problems_without_rationales_leave_out_what_needs_them(world, teacher, lori, capsys):
    (world.folder / "own").mkdir()
    (world.folder / "own" / "test.jsonl").write_text(
        "".join(f'{{"question": "Ann has {n} apples .", "answer": "{n}"}}\n' for n in range(3, 9)), encoding="utf-8"
    )
    source = {"class_path": "lori_pl.data.sources.JSONL", "init_args": {"path": str(world.folder / "own")}}
    data = {"data": {**BASE["data"], "test_sources": {"own": source}}}
    capsys.readouterr()
    assert analyze(world, "LoRi", lori / "student", "--latents", "2", data=data, **lori_of(teacher)) == 0
    shown = capsys.readouterr().out
    assert "teacher/rationale: the problems have no rationale" in shown
    assert "agreement: the problems have no rationale" in shown
    found = read(world)
    assert (found["split"], found["problems"], found["latents_taken"]) == ("own", 6, 2)
    assert "teacher/question" in found["rank"]["states"]
    assert "agreement" not in found["latents"]


@pytest.mark.slow
def test_products_in_digits_whose_answers_are_text(world, capsys):
    sizes = {"digits": 2, "train_size": 32, "validation_size": 8, "test_size": 16}
    source = {"class_path": "lori_pl.data.sources.Multiplication", "init_args": sizes}
    data = {"data": {**BASE["data"], "source": source}}
    base = {**BASE, **data}
    backbone = {**BACKBONE, "tokenizer": "digits"}
    files = [world.config("base", base), world.method("ExplicitCoT", backbone=backbone)]
    folder = str(world.folder / "words")
    assert main(["fit", *(f"--config={file}" for file in files), "--trainer.default_root_dir", folder]) == 0
    arguments = lori_of(f"{folder}/student")
    files = [world.config("base", base), world.method("LoRi", **arguments)]
    run = world.folder / "run"
    assert main(["fit", *(f"--config={file}" for file in files), "--trainer.default_root_dir", str(run)]) == 0
    assert analyze(world, "LoRi", run / "student", data=data, **arguments) == 0
    found = read(world)
    assert found["problems"] == 16
    assert {"teacher/rationale", "student/latents"} <= set(found["rank"]["states"])
    assert found["latents"]["agreement"]["problems"][0] == 16


def test_bad_input(world, teacher, capsys):
    def refuses(text, *flags, place=teacher):
        assert analyze(world, "ExplicitCoT", place, *flags, backbone={"name": teacher}) == 2
        assert text in message(capsys)
        assert not (world.folder / "analysis").exists()

    refuses("--problems is 3: give 4 or more", "--problems", "3")
    refuses("--top_k is 0: give 1 or more", "--top_k", "0")
    refuses("--rank is 0: give 1 or more", "--rank", "0")
    refuses("--rank is 32, but the student's hidden states have 32 entries", "--rank", "32")
    refuses("--top_k is 1000, but the student's vocabulary has ", "--top_k", "1000")
    refuses("no such file or folder", place="nowhere.ckpt")
    refuses("--split tests: give one of train, validation, test", "--split", "tests")
    refuses("--device quantum is not to be had here", "--device", "quantum")
    refuses("no tokenizer found at hub id or folder 'nowhere'", "--teacher", "nowhere")
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    assert main(["analyze", "--folder", str(world.folder / "analysis")]) == 2
    assert "--ckpt_path" in message(capsys)
