"""A training step never waits for what the device computes: on the meta device, reading a value is an error.

Copies to the device are no part of it: Coconut, iCoT-SI and SIM-CoT cut their sequences on the host.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from test_every_method import AT_BOTH_ENDS, build, make

from lori_pl.alignment import AnchorAlignment, LowRankAlignment, anchor, core_statistics, low_rank, subspace
from lori_pl.data.template import Template
from lori_pl.methods import CODI, Coconut, ExplicitCoT, ICoTSI, LoRi, PCCoT, SIMCoT, SIMCoTCoconut
from lori_pl.methods.joint import JointMethod
from lori_pl.methods.measuring import measure
from lori_pl.models.backbone import Backbone

META = torch.device("meta")


@pytest.fixture
def no_autocast(monkeypatch):
    """Autocast does not know the meta device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    for module in (anchor, core_statistics, low_rank, subspace):
        if hasattr(module, "autocast_off"):
            monkeypatch.setattr(module, "autocast_off", lambda *_: nullcontext())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "stage"), AT_BOTH_ENDS)
def test_no_step_waits(kind, stage, attention):
    method = build(kind, stage)
    batch = move_data_to_device(make(method, [0, 1, 2]), META)
    method.to(META)
    method.student.lm.set_attn_implementation(attention)
    total, parts = method.losses(batch)
    total.backward()
    assert total.is_meta
    assert all(part.is_meta for part in parts.values())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(
    ("kind", "stage"),
    [c for c in AT_BOTH_ENDS if c.values[0] in (CODI, PCCoT, SIMCoT, Coconut, SIMCoTCoconut, ICoTSI)],
)
def test_no_step_as_published_waits(kind, stage):
    drop = {"template": Template(drop_last_step=True)} if issubclass(kind, JointMethod) else {}
    method = build(kind, stage, peer_compat=True, **drop)
    batch = move_data_to_device(make(method, [0, 1, 2], longer=True), META)
    total, _ = method.to(META).losses(batch)
    total.backward()
    assert total.is_meta


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("factors", ["shared", "learned"])
def test_no_step_of_lori_waits_for_its_teacher_or_its_statistics(cached, factors, tmp_path):
    build(ExplicitCoT).student.save_pretrained(tmp_path / "teacher")
    terms = {"alignment": LowRankAlignment(rank_hidden=4, student_factors=factors), "anchor": AnchorAlignment()}
    method = LoRi(Backbone(), teacher=Backbone(name=str(tmp_path / "teacher")), latents=3, **terms)
    method.configure_model()
    batch = make(method, [0, 1, 2])
    measure(method.named_terms, lambda _: [method.observed(batch, wants_student=True)])
    if cached:
        known = method.teacher_signals(batch)
        batch.statistics = {
            f"{name}/{key}": value
            for name, term in method.named_terms.items()
            for key, value in term.pack(term.teacher_statistics(known)).items()
        }
        method.teacher = None
    batch = move_data_to_device(batch, META)
    method.to(META)
    total, parts = method.losses(batch)
    total.backward()
    assert parts.keys() == {"task", "mean", "covariance", "anchor"}
    assert total.is_meta


def test_what_waits_would_be_found():
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.ones(2, device=META).all())
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(2, device=META)[torch.ones(2, device=META, dtype=torch.bool)]
