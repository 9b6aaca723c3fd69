"""The plan of a training: a step without content has the sizes of a real one, and strategies add up."""

from __future__ import annotations

import csv
import importlib
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.cli import main
from lori_pl.commands.plan import batches_of, bytes_of, longest
from lori_pl.data import synthetic_problems
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.data.pairing import EncodedProblems, paired_batch
from lori_pl.data.sources import Synthetic
from lori_pl.errors import LoriError
from lori_pl.live_bytes import LiveBytes
from lori_pl.methods import CODI, ExplicitCoT, ICoTSI, LoRi, NoCoT, PCCoT, SIMCoT
from lori_pl.methods.stages import Stages
from lori_pl.models.backbone import Backbone, LoRA
from lori_pl.models.hidden import decoder_layers
from lori_pl.planning import Halved, Parts, StepCost, Weights, cost_of_answer, cost_of_step, hollow, weigh

BENCH = Path(__file__).parents[1] / "experiments/bench"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def method(kind: str):
    backbone = Backbone(tokenizer="synthetic", config=CONFIG)
    if kind in ("lori", "lori_lora", "learned"):
        if kind == "lori_lora":
            backbone = replace(backbone, lora=LoRA(rank=4, dropout=0.0))
        factors = "learned" if kind == "learned" else "shared"
        terms = [LowRankAlignment(rank_hidden=4, student_factors=factors), AnchorAlignment()]
        teacher = Backbone(tokenizer="synthetic", config=CONFIG)
        return LoRi(backbone, teacher=teacher, student_init="base", latents=3, terms=terms)
    if kind in ("codi", "sim_cot"):
        return {"codi": CODI, "sim_cot": SIMCoT}[kind](backbone, latents=3, student_init="base")
    if kind == "icot_si":
        return ICoTSI(backbone, stages=Stages(steps=2), remove_all=8, smoothing=None)
    if kind == "pccot":
        return PCCoT(backbone, latents=4, passes=2, student_init="base")
    return {"explicit": ExplicitCoT, "no_cot": NoCoT}[kind](backbone)


def batch_of(built):
    problems = synthetic_problems(6, 0, min_steps=1, max_steps=4)
    student = EncodedProblems(problems, built.student.encoder, steps=built.reads_pieces)
    steps = np.array([len(problem.steps) for problem in problems])
    return paired_batch(list(range(6)), steps, student, None, pieces=built.reads_pieces)


def second_step(built, live, batch, context=None):
    """The peak of a step behind another one, whose gradients are gone."""
    built.zero_grad()
    live.peak = live.now
    with context or nullcontext():
        loss, _ = built.step_losses(batch)
    loss.backward()
    return live.peak


@pytest.mark.parametrize(
    "kind",
    [
        "explicit",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("lori_lora", "sim_cot", "no_cot", "lori", "learned", "pccot", "codi", "icot_si")
        ),
    ],
)
def test_a_step_without_content_has_the_sizes_of_a_real_one(kind):
    real = method(kind)
    real.configure_model()
    for term in getattr(real, "active_terms", []):
        term.assume_fitted()
    real.train()
    batch = batch_of(real)
    planned = method(kind)
    mode = hollow(planned)
    found = cost_of_step(planned, mode, batch, "32-true")
    with LiveBytes() as live:
        loss, _ = real.losses(batch)
        activations = live.now
        loss.backward()
        del loss
        gradients = sum(p.grad.nbytes for p in real.parameters() if p.grad is not None)
        peak = second_step(real, live, batch)
    # a list of ids that becomes a tensor is made twice without content, and so is a batch that a method cuts anew
    near = 2**12 if real.reads_pieces else 16
    assert found.activations == pytest.approx(activations, abs=near)
    assert found.moving == pytest.approx(peak, abs=near)
    assert activations > 10**5
    assert found.gradients == gradients
    trained = [p for p in real.parameters() if p.requires_grad]
    assert found.student.trained == sum(p.nbytes for p in trained)
    assert found.student.trained_parameters == sum(p.numel() for p in trained)
    assert found.optimizer == pytest.approx(2 * found.student.trained, rel=0.02)  # and a step counter each
    assert (found.teacher.bytes > 0) == ("lori" in kind or kind == "learned")
    assert found.flops > 0
    assert weigh([real]).bytes == found.student.bytes + found.teacher.bytes


class Longest(PairedDataModule):
    """The longest batch over and over."""

    def train_dataloader(self):
        return DataLoader([longest(self, self.splits["train"])] * 6, batch_size=None)


class Watching(Callback):
    """Counts what is alive from a training's start to its end, weights and data apart."""

    def on_train_start(self, trainer, pl_module):
        self.live = LiveBytes()
        self.live.__enter__()

    def on_train_end(self, trainer, pl_module):
        self.live.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("kind", "accumulated"),
    [("explicit", 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("explicit", 1), ("lori_lora", 2)))],
)
def test_a_trainers_loop_has_the_planned_peak(kind, accumulated):
    """Batches that are accumulated run beside the gradients of those before; those of the step before are gone."""
    data = Longest(Synthetic(train=8, validation=2, test=2), batch_size=8, val_problems=2)
    trained, planned, watching = method(kind), method(kind), Watching()
    trainer = Trainer(
        max_steps=3,
        accumulate_grad_batches=accumulated,
        callbacks=[watching],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(trained, data)
    assert trainer.global_step == 3
    found, alone = (
        cost_of_step(planned, mode, longest(data, data.splits["train"]), "32-true", False, number)
        for mode in [hollow(planned)]
        for number in (accumulated, 1)
    )
    weights = found.student.bytes + found.teacher.bytes
    # and what Lightning keeps of a step
    assert watching.live.peak == pytest.approx(found.parts().total - weights, abs=2**13)
    if accumulated > 1:
        assert found.moving >= found.gradients + found.activations
        if kind == "explicit":
            assert found.moving > alone.moving + 2**15  # a gradient is beside the sum that it is added to
    assert replace(found, moving=alone.moving) == alone


def test_an_optimisers_step_on_a_gpu_holds_a_copy_of_what_trains():
    """AdamW for all weights together, as PyTorch chooses on a GPU: the real one, told to do so here, holds as much."""
    real = method("explicit")
    real.configure_model()
    trained = [p for p in real.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(trained, foreach=True)
    with LiveBytes() as live:
        optimizer.step()
        state = sum(value.nbytes for entry in optimizer.state.values() for value in entry.values())
        held = live.peak - state
    planned = method("explicit")
    mode = hollow(planned)
    on_gpu, here = (cost_of_step(planned, mode, batch_of(real), "32-true", on_gpu) for on_gpu in (True, False))
    assert on_gpu.stepping == pytest.approx(held, rel=0.01)
    assert on_gpu.stepping > 0.9 * on_gpu.student.trained > 2 * here.stepping
    assert on_gpu.moving == here.moving


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["explicit", "lori"])
def test_half_precision_is_cast_as_the_trainer_casts(kind):
    """Each weight once a step; where weights are sharded, once a pass, and kept for the backward pass."""
    trainer = Trainer(precision="bf16-mixed", accelerator="cpu", logger=False, enable_checkpointing=False)
    real = method(kind)
    real.configure_model()
    for term in getattr(real, "active_terms", []):
        term.assume_fitted()
    batch = batch_of(real)
    planned = method(kind)
    mode = hollow(planned)
    whole, half = (cost_of_step(planned, mode, batch, precision) for precision in ("32-true", "bf16-mixed"))
    with LiveBytes() as live:
        with trainer.precision_plugin.train_step_context():
            loss, _ = real.step_losses(batch)
        activations = live.now
        loss.backward()
        del loss
        peak = second_step(real, live, batch, trainer.precision_plugin.train_step_context())
    with LiveBytes() as live, trainer.precision_plugin.train_step_context():
        _loss, _ = real.losses(batch)
        anew = live.now
    assert half.cast_anew == pytest.approx(anew, rel=1e-4)
    assert whole.halved is None
    assert whole.cast_anew == whole.activations
    assert half.activations == pytest.approx(activations, rel=1e-4)
    assert half.moving == pytest.approx(peak, rel=1e-4)
    assert half.student == whole.student
    layers = sum(p.nbytes for layer in decoder_layers(real.student.lm) for p in layer.parameters() if p.ndim == 2)
    passes = 1 if kind == "explicit" else 4  # question, two latents, the third with the answer
    assert anew > passes * layers / 2
    assert anew - activations == pytest.approx((passes - 1) * layers / 2, rel=0.1, abs=100)
    # gathered in half, a layer's weights are kept by no pass
    whole_layers = sum(p.nbytes for lm in real.models()[0] for layer in decoder_layers(lm) for p in layer.parameters())
    assert half.halved.layers == whole_layers / 2
    assert anew - half.halved.activations == pytest.approx(passes * layers / 2, rel=0.1, abs=100)


def test_no_weight_is_read(monkeypatch, tmp_path):
    built = method("explicit")
    built.configure_model()
    built.student.save_pretrained(tmp_path / "teacher")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    planned = LoRi(Backbone(), teacher=Backbone(name=str(tmp_path / "teacher")), latents=3, anchor=AnchorAlignment())
    hollow(planned)
    plain = sum(p.numel() for p in built.student.lm.parameters())
    assert sum(p.numel() for p in planned.student.lm.parameters()) == plain + 2 * 32  # the markers' rows


def weights(trained: int, frozen: int = 0) -> Weights:
    return Weights(trained, frozen, trained // 4, frozen // 4)


def test_what_a_device_holds_under_each_strategy():
    """Hand-worked: 100 bytes of layers in 5, 20 apart, a teacher of 60, 120 of gradients, 240 of moments."""
    step = StepCost(
        weights(120), weights(0, 60), weights(20), weights(20), 120, 240, 1000, 1000, 1050, 10, 7, 120, True
    )
    assert step.parts().total == 120 + 60 + 240 + 1050
    assert step.parts(4, "ddp").total == 120 + 60 + 240 + 120 + 1050
    assert step.parts(4, "ddp") == Parts(180, 120, 240, 120, 1050 - 120)
    assert step.parts(4, "sharded") == Parts(45, 30, 60, 20 + 2 * 20 + 20 + 20, 1000 + 2)
    # a quarter of all, what is apart and two layers whole, their gradients whole, activations
    parts, host = (180 + 240 + 120 + 10) // 4, (180 + 240 + 120) // 4
    assert step.parts(4, "sharded").total == parts + 20 + 2 * 20 + 20 + 20 + 1000
    assert step.parts(4, "sharded", reshard_after_forward=False).total == parts + 20 + (180 - 20) + 20 + 20 + 1000
    # the parts are on the host, what is put together is not
    assert step.parts(4, "sharded", cpu_offload=True).total == 20 + 2 * 20 + 20 + 20 + 1000
    assert step.host(4) == host
    # layers gathered in halves: of a layer's gradients those and their sum's fp32; fewer activations
    half = replace(step, halved=Halved(10, 80, 10, 700))
    assert half.parts(4, "sharded").total == parts + 20 + 2 * 10 + 20 + 20 + 10 + 700
    assert half.parts(4, "sharded", reshard_after_forward=False).total == parts + 20 + 80 + 20 + 20 + 10 + 700
    assert half.parts(4, "ddp").total == step.parts(4, "ddp").total
    assert half.parts(4, "fsdp1").total == step.parts(4, "fsdp1").total
    stepping = replace(step, moving=50, activations=20)
    assert stepping.parts().total == 120 + 60 + 240 + 120 + 10


def test_the_older_sharding_has_gradients_of_frozen_weights():
    """Of a layer of 20 bytes 4 train, apart 2 of 20; five layers: all have a gradient in FSDP1's flat piece."""
    step = StepCost(
        weights(22, 98), weights(0, 60), weights(4, 16), weights(2, 18), 22, 44, 100, 100, 110, 0, 7, 120, True
    )
    common = 20 + 2 * 20 + 100
    assert step.parts(4, "sharded").total == (180 + 44 + 22) // 4 + common + 2 + 4
    assert step.parts(4, "fsdp1").total == (180 + 44 + 120) // 4 + common + 20 + 20
    assert step.host(4, "fsdp1") == (180 + 44 + 120) // 4
    frozen = replace(step, apart=weights(0, 20), flat_gradients=100)
    assert frozen.parts(4, "fsdp1").total == (180 + 44 + 100) // 4 + common + 20


@pytest.mark.parametrize("kind", ["explicit", pytest.param("lori_lora", marks=pytest.mark.slow)])
def test_strategies_of_a_real_step_stand_in_order(kind):
    planned = method(kind)
    mode = hollow(planned)
    built = method(kind)
    built.configure_model()
    step = cost_of_step(planned, mode, batch_of(built), "32-true")
    for name in ("sharded", "fsdp1"):
        offloaded, divided, held = (
            step.parts(4, name, **how).total for how in ({"cpu_offload": True}, {}, {"reshard_after_forward": False})
        )
        assert offloaded < divided < held
        assert divided - offloaded == step.host(4, name) + step.stepping // 4
    assert step.host(2) - 1 <= 2 * step.host(4) <= step.host(2)
    more = step.parts(4, "fsdp1").total - step.parts(4, "sharded").total
    own = [*built.student.parameters(), *(built.terms.parameters() if kind != "explicit" else [])]
    assert step.flat_gradients == sum(parameter.nbytes for parameter in own)
    if kind == "explicit":  # all trains: the same gradients, but for buffers, which count as what is apart
        assert step.flat_gradients == step.gradients
        assert 0 <= more <= sum(buffer.nbytes for buffer in built.buffers())
    else:
        assert more > (step.flat_gradients - step.gradients) // 4 > step.gradients


@pytest.mark.slow
def test_weights_of_two_types_in_a_layer_are_seen():
    backbone = Backbone(tokenizer="synthetic", config=CONFIG, lora=LoRA(rank=4), dtype="bfloat16")
    for dtype, same in (("bfloat16", False), ("float32", True)):
        planned = NoCoT(replace(backbone, dtype=dtype))
        mode = hollow(planned)
        built = NoCoT(replace(backbone, dtype=dtype))
        built.configure_model()
        assert cost_of_step(planned, mode, batch_of(built), "32-true").of_one_type == same


def test_live_bytes_forget_what_is_gone():
    with LiveBytes() as live:
        one = torch.zeros(100)
        view = one[:50]
        view += 1
        two = one + 1
        assert (live.now, live.peak) == (800, 800)
        del two
        assert (live.now, live.peak) == (400, 800)
        del one
        assert live.now == 400  # the view holds it
        del view
        assert live.now == 0


def test_an_answer(monkeypatch):
    planned = method("lori")
    mode = hollow(planned)
    built = method("lori")
    built.configure_model()
    batch = batch_of(built)
    short, long = (cost_of_answer(planned, mode, batch, tokens) for tokens in (1, 5))
    assert short.cache_bytes == 2 * 3 * 32 * 4  # keys and values of three layers
    assert long.length == short.length + 4
    assert long.flops > short.flops > 0


def test_sizes():
    sizes = {"80GB": 80 * 10**9, "1.5 GiB": 3 * 2**29, "700": 700, "2tb": 2 * 10**12}
    assert {text: bytes_of(text) for text in sizes} == sizes


@pytest.mark.parametrize("text", ["much", "GB", "-3GB", "80 GBs"])
def test_a_size_that_is_none(text):
    with pytest.raises(LoriError, match="give a number and a unit"):
        bytes_of(text)


RECIPE = [
    "--config=configs/method/lori.yaml",
    "--config=configs/data/synthetic.yaml",
    "--config=configs/experiment/embedded/quick.yaml",
    "--config=configs/experiment/embedded/with_teacher.yaml",
    "--config=configs/experiment/embedded/lori.yaml",
    "--data.source.train=500",
]


def test_the_command_says_what_fits(capsys):
    limit = 0.195
    assert main(["plan", "--devices", "4", "--memory", f"{limit}GB", *RECIPE]) == 0
    shown = capsys.readouterr().out
    assert "M parameters train" in shown
    for part in ("teacher", "gradients", "activations kept", "TFLOP a step", "keys and values", "bytes a problem"):
        assert part in shown
    cells = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines() if line.count("│") == 9]
    rows = {cell[1]: cell[8] for cell in cells}
    parts = {cell[1]: [float(size) for size in cell[2:7]] for cell in cells}
    size = {cell[1]: float(cell[7]) for cell in cells}
    options = {
        "sharded": ("reshard_after_forward: false", "cpu_offload: true"),
        "fsdp1": ("sharding_strategy: SHARD_GRAD_OP", "cpu_offload: true"),
    }
    divided = {f"{name}{option}" for name, more in options.items() for option in ("", *(f", {each}" for each in more))}
    assert rows.keys() == {"one device", "ddp", *divided}
    assert set(rows.values()) == {"yes", "no"}
    assert limit not in size.values()  # no answer hangs on what is rounded
    assert rows == {name: "yes" if each < limit else "no" for name, each in size.items()}
    for name, each in parts.items():
        assert sum(each) == pytest.approx(size[name], abs=0.003)
        assert (sum(each[:3]) == 0) == ("cpu_offload" in name)
        assert (each[3] == 0) == (name == "one device")
    assert re.search(r"keeps in the host's memory, GB a process: sharded \d+\.\d+, fsdp1 \d+\.\d+", shown)


@pytest.mark.slow
def test_the_command_leaves_out_what_is_refused_and_says_so(capsys):
    assert main(["plan", "--devices", "2", *RECIPE, "--trainer.accumulate_grad_batches=2"]) == 0
    shown = capsys.readouterr().out
    assert "sharded, cpu_offload: true" in shown
    assert "fsdp1, cpu_offload" not in shown
    assert "fsdp1 takes no cpu_offload where batches are accumulated" in shown
    assert re.search(r"GB a process: sharded \d+\.\d+\n", shown)


def recorded(name):
    with (BENCH / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["plan.csv", "plan_processes.csv"])
def test_recorded_allocations_are_within_a_fifth_of_what_was_planned(name):
    rows = recorded(name)
    for row in rows:
        ratio = float(row["planned_mb"]) / float(row["measured_mb"])
        assert ratio == pytest.approx(float(row["ratio"]), abs=0.001)
        assert ratio == pytest.approx(1, abs=0.2), row
    if name == "plan.csv":
        assert len({row["size"] for row in rows if int(row["size"].removesuffix("M")) >= 50}) == 3
        assert {row["accumulated"] for row in rows} == {"1", "2"}
    else:
        assert {row["strategy"] for row in rows} == {"ddp", "sharded", "fsdp1"}


def test_the_pages_tables_are_what_was_recorded(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.chdir(BENCH.parents[1])
    bench = importlib.import_module("plan_models")
    written = bench.PAGE.read_text(encoding="utf-8").partition(bench.BEGIN)[2].partition(bench.END)[0]
    assert written == bench.tables()
    models = [row["model"] for row in recorded("plan_models.csv")]
    assert sorted(models) == sorted(file.stem for file in bench.CONFIGS.glob("*.yaml"))
    assert all(f"| `{model}` | one device |" in written for model in models)


def test_how_many_batches_a_training_has():
    """500 problems in batches of 64."""
    data, split = SimpleNamespace(batch_size=64), SimpleNamespace(problems=[None] * 500)

    def count(devices=1, **trainer):
        return batches_of({"trainer": trainer}, data, split, devices)

    assert count(max_steps=600, max_epochs=None, accumulate_grad_batches=None) == 600
    assert count(devices=2, max_steps=600, max_epochs=-1, accumulate_grad_batches=3) == 3600
    # an epoch has whole steps: 7 of 64, 2 of 192, and with two devices one of 384
    assert count(max_steps=-1, max_epochs=3) == 3 * 7
    assert count(max_steps=-1, max_epochs=3, accumulate_grad_batches=3) == 3 * 6
    assert count(devices=2, max_steps=-1, max_epochs=3, accumulate_grad_batches=3) == 3 * 6
    assert count(max_steps=10, max_epochs=3) == 10
    assert count(max_steps=-1, max_epochs=-1) == 0


@pytest.mark.slow
def test_the_command_says_how_long_it_takes(capsys):
    """600 steps of 64 of 500 problems; two devices take twice the batches, twice as fast."""
    hours = []
    for flags in (
        ["--devices=1"],
        ["--devices=2"],
        ["--devices=1", "--trainer.max_steps=-1", "--trainer.max_epochs=3"],
    ):
        assert main(["plan", "--tflops", "0.000001", *RECIPE, *flags]) == 0
        found = re.search(
            r"([\d,]+) batches of ([\d.]+) TFLOP in the mean: ([\d.,]+) hours on (\d) x 1e-06", capsys.readouterr().out
        )
        batches, tflop, shown = int(found[1].replace(",", "")), float(found[2]), float(found[3].replace(",", ""))
        assert shown == pytest.approx(batches * tflop / 1e-6 / int(found[4]) / 3600, rel=0.01)
        hours.append((batches, shown))
    assert [batches for batches, _ in hours] == [600, 1200, 3 * 8]
    assert main(["plan", "--tflops=1", *RECIPE, "--trainer.max_steps=-1", "--model.schedule.decay=none"]) == 0
    assert "has no end" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--devices=0", "give 1 or more"), ("--memory=much", "give a number"), ("--tflops=0", "give a positive number")],
)
def test_bad_options(capsys, flag, words):
    assert main(["plan", flag, *RECIPE]) == 2
    assert words in capsys.readouterr().err
