"""On a GPU: the CPU's numbers, steps that do not wait, the planned memory, flash attention."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from plain import batch_of, build
from test_every_method import METHODS, make
from test_every_method import build as build_method

from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.data.template import Template
from lori_pl.methods import CODI, ExplicitCoT, LoRi
from lori_pl.methods.measuring import measure
from lori_pl.models.backbone import Backbone, LoRA
from lori_pl.models.reasoner import LatentReasoner
from lori_pl.planning import cost_of_step, hollow

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WIDE = {
    "model_type": "llama",
    "hidden_size": 640,
    "intermediate_size": 2560,
    "num_hidden_layers": 10,
    "num_attention_heads": 10,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "vocab_size": 4000,
}


@pytest.fixture(autouse=True)
def exact():
    """Products in fp32, not TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def waiting_is_an_error():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def lori(folder: Path, **settings) -> LoRi:
    """A LoRi student whose terms were measured."""
    build(ExplicitCoT).student.save_pretrained(folder / "teacher")
    terms = {"alignment": LowRankAlignment(rank_hidden=4, **settings), "anchor": AnchorAlignment()}
    method = LoRi(Backbone(), teacher=Backbone(name=str(folder / "teacher")), latents=3, template=Template(), **terms)
    method.configure_model()
    measure(method.named_terms, lambda _: [method.observed(batch_of(method, [0, 1, 2, 3]), wants_student=True)])
    return method


def losses_and_gradients(method, batch):
    method.zero_grad()
    total, parts = method.losses(batch)
    total.backward()
    return parts, {name: p.grad.cpu() for name, p in method.named_parameters() if p.grad is not None}


def assert_as_on_the_cpu(method, batch):
    parts, gradients = losses_and_gradients(method, batch)
    method.to(DEVICE)
    there, its_gradients = losses_and_gradients(method, move_data_to_device(batch, DEVICE))
    assert parts.keys() == there.keys()
    for name, part in parts.items():
        torch.testing.assert_close(there[name].cpu(), part, atol=1e-5, rtol=1e-4, msg=name)
    assert gradients.keys() == its_gradients.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(its_gradients[name], gradient, atol=1e-3 * scale + 1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", METHODS)
def test_losses_and_gradients_are_the_cpus(kind):
    method = build_method(kind, None)
    assert_as_on_the_cpu(method, make(method, [0, 1, 2]))


@pytest.mark.parametrize("factors", ["shared", "learned"])
def test_those_of_lori_too(factors, tmp_path):
    method = lori(tmp_path, student_factors=factors)
    assert_as_on_the_cpu(method, batch_of(method, [0, 1, 2]))


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, targets=["q_proj"], dropout=0.0)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", [ExplicitCoT, CODI])
def test_a_step_does_not_wait(kind, lora, waiting_is_an_error):
    method = build(kind, lora=lora).to(DEVICE)
    batch = move_data_to_device(batch_of(method, [0, 1, 2]), DEVICE)
    method.losses(batch)[0].backward()
    waiting_is_an_error()
    method.losses(batch)[0].backward()


def test_nor_does_one_of_lori(tmp_path, waiting_is_an_error):
    method = lori(tmp_path).to(DEVICE)
    batch = move_data_to_device(batch_of(method, [0, 1, 2]), DEVICE)
    method.losses(batch)[0].backward()
    waiting_is_an_error()
    method.losses(batch)[0].backward()


def test_answers_are_the_cpus(tmp_path):
    build(CODI).student.save_pretrained(tmp_path / "student")
    questions = ["Ann has 4 apples .", "Bob has 7 coins . He finds 5 more . How many coins does Bob have ?"]
    here, there = (
        [answer.output for answer in LatentReasoner.from_pretrained(tmp_path / "student", device).answer(questions)]
        for device in ("cpu", DEVICE.type)
    )
    assert here == there


@pytest.mark.parametrize("lora", [None, LoRA(rank=16, dropout=0.0)], ids=["full", "lora"])
@pytest.mark.parametrize("foreach", [None, False], ids=["all weights at once", "one weight at a time"])
def test_the_peak_is_the_planned_one(lora, foreach):
    """Within a fifth, of a model of 53 million parameters."""

    def method():
        optimizer = partial(torch.optim.AdamW, foreach=foreach)
        return ExplicitCoT(Backbone(tokenizer="synthetic", config=WIDE, lora=lora), optimizer=optimizer)

    built, planned = method(), method()
    built.configure_model()
    batch = batch_of(built, list(range(8)))
    predicted = cost_of_step(planned, hollow(planned), batch, "32-true").parts().total
    built.to(DEVICE).train()
    optimizer = built.optimizer([p for p in built.parameters() if p.requires_grad])
    batch = move_data_to_device(batch, DEVICE)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        built.losses(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.cuda.max_memory_allocated() == pytest.approx(predicted, rel=0.2)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed")
@pytest.mark.parametrize("kind", [ExplicitCoT, CODI])
def test_flash_attention_gives_sdpas_losses(kind):
    method = build(kind).to(DEVICE, torch.bfloat16)
    batch = move_data_to_device(batch_of(method, [0, 1, 2]), DEVICE)
    with torch.no_grad():
        plain, _ = method.losses(batch)
        method.student.lm.set_attn_implementation("flash_attention_2")
        flash, _ = method.losses(batch)
    torch.testing.assert_close(flash, plain, atol=0.05, rtol=0.05)
