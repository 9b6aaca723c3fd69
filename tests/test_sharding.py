"""Weights that the first process loaded, divided among two: the others never hold a whole model."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from forked import in_group
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from lori_pl.callbacks.same_start import SameStart
from lori_pl.errors import LoriError
from lori_pl.models.hidden import decoder_layers
from lori_pl.sharding import FSDP1Strategy, ShardedStrategy, loading, own_part, shard, whole

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 31}
KINDS = {
    "tied": ("llama", {**SIZES, "intermediate_size": 24, "tie_word_embeddings": True}),
    "untied": ("llama", {**SIZES, "intermediate_size": 24, "tie_word_embeddings": False}),
    "gpt2": ("gpt2", SIZES),
}


class KnownRank:
    """No cluster is there to ask for the rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    @property
    def is_global_zero(self) -> bool:
        return self.rank == 0


class OfRank(KnownRank, ShardedStrategy):
    """FSDP2's."""


class Pair(nn.Module):
    """A student, a frozen teacher, and what else a method has."""

    def __init__(self, kind: str, strategy: ShardedStrategy | None) -> None:
        super().__init__()
        name, sizes = KINDS[kind]
        with loading(strategy):
            config = AutoConfig.for_model(name, **sizes)
            self.student = AutoModelForCausalLM.from_config(config)
            self.teacher = AutoModelForCausalLM.from_config(config).requires_grad_(False)
        self.projector = nn.Linear(16, 16)
        self.register_buffer("fitted", torch.rand(3) > 0.5)
        self.register_buffer("empty", torch.zeros(0))

    def losses(self, ids):
        return self.student(ids).logits.square().mean() + self.projector(self.teacher(ids).logits[..., :16]).mean()


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"precision": "16-mixed", "accumulate_grad_batches": 1}, "16-mixed scales gradients.*take bf16-mixed"),
        (
            {"precision": "32-true", "accumulate_grad_batches": 2},
            "accumulate_grad_batches .* cpu_offload: take sharded",
        ),
    ],
)
def test_what_fsdp1_would_get_wrong_is_refused(trainer, said):
    strategy = FSDP1Strategy(cpu_offload=True)
    strategy.accelerator = SimpleNamespace(setup=lambda _trainer: None)
    with pytest.raises(LoriError, match=said):
        strategy.setup(SimpleNamespace(**trainer))


@pytest.mark.parametrize("kind", [ShardedStrategy, FSDP1Strategy])
def test_nothing_is_offloaded_where_it_lies_already(kind):
    strategy = kind(cpu_offload=True)
    strategy.parallel_devices = [CPU]
    strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)
    with pytest.raises(LoriError, match="cpu_offload is for GPUs"):
        strategy.setup_environment()


def make(kind: str, rank: int) -> Pair:
    torch.manual_seed(rank)  # so that another's weights would show
    return Pair(kind, OfRank(rank)).eval()


def divide(rank, kind):
    pair = make(kind, rank)
    before = sum(value.numel() for value in pair.parameters() if not value.is_meta)
    layers = [layer for model in (pair.student, pair.teacher) for layer in decoder_layers(model)]
    if rank:
        assert before == sum(value.numel() for value in pair.projector.parameters())
    mesh = init_device_mesh("cpu", (2,))
    shard(pair, [pair.student, pair.teacher], [pair.teacher], ("losses",), mesh, CPU, True, False)
    assert all(isinstance(value, DTensor) for value in pair.parameters())
    held = sum(own_part(value).numel() for value in pair.parameters())
    loss = pair.losses(torch.arange(6)[None])
    loss.backward()
    assert all(isinstance(value, DTensor) for layer in layers for value in layer.parameters())
    tied = pair.student.get_input_embeddings().weight is pair.student.get_output_embeddings().weight
    assert tied == (kind != "untied")
    assert all(not value.requires_grad for value in pair.teacher.parameters())
    state = {name: whole(value).detach().clone() for name, value in pair.named_parameters()}
    gradients = {name: whole(p.grad).clone() for name, p in pair.named_parameters() if p.grad is not None}
    buffers = {name: value.clone() for name, value in pair.named_buffers()}
    return {"loss": loss.detach(), "held": held, "state": state, "gradients": gradients, "buffers": buffers}


@pytest.mark.parametrize("kind", list(KINDS))
def test_everyone_computes_with_the_first_ones_weights(kind, tmp_path):
    both = in_group(divide, tmp_path, kind)
    torch.manual_seed(0)
    pair = Pair(kind, None).eval()
    loss = pair.losses(torch.arange(6)[None])
    loss.backward()
    total = sum(value.numel() for value in pair.parameters())
    for found in both:
        torch.testing.assert_close(found["loss"], loss.detach())
        assert found["state"].keys() == dict(pair.named_parameters()).keys()
        for name, value in pair.named_parameters():
            assert torch.equal(found["state"][name], value), name
            if value.requires_grad:
                torch.testing.assert_close(found["gradients"][name], value.grad)
        for name, value in pair.named_buffers():
            assert torch.equal(found["buffers"][name], value), name
        assert 0.45 * total < found["held"] < 0.55 * total


def in_halves(rank, reshard):
    """Two passes under autocast, as latents make them."""
    pair = make("tied", rank)
    mesh, models = init_device_mesh("cpu", (2,)), [pair.student, pair.teacher]
    shard(pair, models, [pair.teacher], ("losses",), mesh, CPU, reshard, False, torch.bfloat16)
    layers = [layer for model in models for layer in decoder_layers(model)]
    types, kept = set(), []
    for layer in layers:
        layer.mlp.up_proj.register_forward_pre_hook(lambda module, _: types.add(module.weight.dtype))
    shapes = {(24, 16), (16, 24)}

    def keep(tensor):
        if tuple(tensor.shape) in shapes or tuple(tensor.T.shape) in shapes:
            kept.append(tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = pair.losses(torch.arange(6)[None]) + pair.losses(torch.arange(3, 9)[None])
    loss.backward()
    assert types == {torch.bfloat16}
    # gate, up and down of the student's two layers: the gathered weights themselves, for both passes
    assert len({tensor.untyped_storage()._cdata for tensor in kept}) == 6
    assert len(kept) >= 12
    assert {value.dtype for value in pair.parameters()} == {torch.float32}
    gradients = {name: whole(p.grad).clone() for name, p in pair.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "gradients": gradients}


@pytest.mark.parametrize("reshard", [True, False])
def test_layers_are_gathered_in_halves(reshard, tmp_path):
    both = in_group(in_halves, tmp_path, reshard)
    torch.manual_seed(0)
    pair = Pair("tied", None).eval()
    with torch.autocast("cpu", torch.bfloat16):
        loss = pair.losses(torch.arange(6)[None]) + pair.losses(torch.arange(3, 9)[None])
    loss.backward()
    for found in both:
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=0.01, atol=1e-4)
        for name, value in pair.named_parameters():
            if value.requires_grad:
                gradient = found["gradients"][name]
                assert gradient.dtype == torch.float32
                torch.testing.assert_close(gradient, value.grad, rtol=0.1, atol=0.02 * float(value.grad.abs().max()))


def differ(rank, kinds, words):
    pair = make(kinds[rank], rank)
    divided = partial(shard, pair, [pair.student], [], (), init_device_mesh("cpu", (2,)), CPU, True, False)
    if rank:
        with pytest.raises(LoriError, match=words):
            divided()
        return "seen"
    with pytest.raises(RuntimeError):  # the other one is gone
        divided()
    return "alone"


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("tied", "gpt2"), r"the first process built .* this one .* one config"),
        (
            ("untied", "tied"),
            r"built student.lm_head.weight \[31, 16\] .*this one .*tied to student.model",
        ),
    ],
)
def test_processes_that_built_different_models_are_told(kinds, words, tmp_path):
    assert in_group(differ, tmp_path, kinds, words) == ["alone", "seen"]


def take_up(rank, folder, other):
    path = folder / "last.ckpt"
    SameStart(path).setup(None, None, "fit")
    SameStart(None).setup(None, None, "fit")
    SameStart([path, None][rank]).setup(None, None, "validate")
    mine = [path, folder / other if other else None][rank]
    with pytest.raises(LoriError, match=r"process 0 would go on from .*last.ckpt \(3 bytes.* process 1 from"):
        SameStart(mine).setup(None, None, "fit")
    return "seen"


@pytest.mark.parametrize("other", ["best.ckpt", "lost.ckpt", None])
def test_processes_that_see_different_checkpoints_are_told(other, tmp_path):
    (tmp_path / "last.ckpt").write_text("abc")
    (tmp_path / "best.ckpt").write_text("abcd")
    assert in_group(take_up, tmp_path, tmp_path, other) == ["seen", "seen"]
