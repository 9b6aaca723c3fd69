"""The loss that validation shows is that of the stage that a staged method is in, or there is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from plain import batch_of, build
from torch.testing import assert_close

from lori_pl.data.template import Template
from lori_pl.methods import CODI, Coconut, ICoTSI, SIMCoTCoconut
from lori_pl.methods.stages import Stages
from lori_pl.models.backbone import Backbone

STAGES = Stages(steps=2)
COCONUT = {"stages": STAGES, "latents_a_step": 1, "latent_stages": 2, "first_stage": 0}
METHODS = {
    Coconut: COCONUT,
    SIMCoTCoconut: COCONUT,
    ICoTSI: {"stages": STAGES, "remove_all": 3, "smoothing": 0.5},
}


@pytest.fixture
def validated(monkeypatch):
    """Runs validation batch by batch, without generation, and gives what is logged."""

    def run(method, batches):
        logged = {}
        kind = type(method)
        problems = SimpleNamespace(problems=[])
        monkeypatch.setattr(kind, "data", SimpleNamespace(splits={"validation": problems}))
        monkeypatch.setattr(kind, "answer_batch", lambda self, batch: ([], 0.0))
        monkeypatch.setattr(kind, "judge", lambda self, answers, batch, split: torch.zeros(len(batch.index)).bool())
        monkeypatch.setattr(kind, "log", lambda self, name, value, **_: logged.update({name: value}))
        monkeypatch.setattr(kind, "log_dict", lambda self, values, **_: logged.update(values))
        method.eval()
        with torch.no_grad():
            for number, batch in enumerate(batches):
                method.validation_step(batch, number)
            method.on_validation_epoch_end()
        return logged

    return run


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("kind", METHODS)
def test_it_is_the_training_loss_of_the_stage(kind, stage, validated):
    """Of single problems, where a mean over the batch's tokens is theirs; iCoT-SI's without its random offset."""
    method = build(kind, **METHODS[kind])
    method.enter(stage)
    rows = range(5)
    batches = [batch_of(method, [*some], pieces=True, longer=True) for some in ([0, 1], [2, 3, 4])]
    found = validated(method, batches)["val/loss"]
    trained = build(kind, **METHODS[kind] | ({"smoothing": None} if kind is ICoTSI else {}))
    trained.enter(stage)
    parts = [trained.losses(batch_of(trained, [row], pieces=True, longer=True))[1]["task"] for row in rows]
    assert_close(found, torch.stack(parts).mean(), atol=1e-5, rtol=1e-5)
    method.enter((stage + 1) % 4)
    assert abs(validated(method, batches)["val/loss"] - found) > 1e-3


def test_codi_s_is_the_student_s_part_as_it_trains(validated):
    for peer_compat in (False, True):
        method = build(CODI, latents=2, peer_compat=peer_compat, template=Template(drop_last_step=peer_compat))
        batch = batch_of(method, [2], longer=True)
        assert_close(validated(method, [batch])["val/loss"], method.losses(batch)[1]["task"], atol=1e-5, rtol=1e-5)


def from_folder(kind, folder, **settings):
    """As `validate` has a student's folder."""
    method = kind(Backbone(), template=Template(), **METHODS[kind] | settings)
    method.folder, method.trains = str(folder), False
    method.configure_model()
    return method


@pytest.mark.parametrize("stage", range(4))
def test_a_student_s_folder_tells_coconut_s_stage(stage, tmp_path, validated):
    method = build(Coconut, **COCONUT)
    method.enter(stage)
    batch = batch_of(method, [0, 1, 2], pieces=True, longer=True)
    method.student.save_pretrained(tmp_path / "student")
    saved = from_folder(Coconut, tmp_path / "student", student_init="base")
    assert (saved.stage, saved.is_final) == (stage, stage == 3)
    assert_close(validated(saved, [batch]), validated(method, [batch]))


@pytest.mark.parametrize("peer_compat", [False, True])
@pytest.mark.parametrize("final", [False, True])
def test_a_student_s_folder_tells_icot_si_s_last_stage_alone(final, peer_compat, tmp_path, validated):
    method = build(ICoTSI, **METHODS[ICoTSI], peer_compat=peer_compat)
    method.enter(99 if final else 1)
    batch = batch_of(method, [0, 1, 2], pieces=True, longer=True)
    method.student.save_pretrained(tmp_path / "student")
    found = validated(from_folder(ICoTSI, tmp_path / "student", peer_compat=peer_compat), [batch])
    expected = validated(method, [batch])
    if not final:
        assert "val/loss" not in found
        del expected["val/loss"]
    assert_close(found, expected)
