"""Means over the tokens of a batch, as published: two processes with unequal numbers of them equal one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from forked import in_group
from plain import batch_of, build
from torch.testing import assert_close

from lori_pl.data.template import Template
from lori_pl.methods import CODI, Coconut, ICoTSI, PCCoT, SIMCoT, SIMCoTCoconut
from lori_pl.methods.stages import Stages

SHARES = ([0, 2], [1, 3])  # problems of three steps, and of two
WITHOUT_LAST = {"template": Template(drop_last_step=True), "peer_compat": True}
STAGED = {"stages": Stages(steps=2), "peer_compat": True}
COCONUT = {**STAGED, "latents_a_step": 1, "latent_stages": 3}
CASES = {
    "codi": (CODI, {**WITHOUT_LAST, "latents": 2}, None),
    "pccot": (PCCoT, {**WITHOUT_LAST, "latents": 3, "passes": 2}, None),
    "sim_cot": (SIMCoT, {**WITHOUT_LAST, "latents": 3}, None),
    "coconut": (Coconut, COCONUT, 0),
    "coconut, last stage": (Coconut, COCONUT, 3),
    "sim_cot_coconut": (SIMCoTCoconut, COCONUT, 2),
    "icot_si": (ICoTSI, {**STAGED, "remove_all": 9, "smoothing": 1.0}, 3),
    "icot_si, last stage": (ICoTSI, {**STAGED, "remove_all": 9}, 9),
}


def losses(rows):
    """Each case's loss and the gradient of the embeddings."""
    found = {}
    for name, (kind, settings, stage) in CASES.items():
        method = build(kind, **settings)
        if stage is not None:
            method.enter(stage)
        total, _ = method.losses(batch_of(method, rows, pieces=True, longer=True))
        table = method.student.lm.get_input_embeddings().weight
        found[name] = (total.detach(), torch.autograd.grad(total, [table])[0])
    return found


def work(rank):
    return losses(SHARES[rank])


@pytest.mark.distributed
@pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")
def test_two_processes_equal_one(tmp_path):
    one, two = in_group(work, tmp_path)
    for name, whole in losses([0, 1, 2, 3]).items():
        for part, first, second in zip(whole, one[name], two[name], strict=True):
            # as DDP takes the mean over processes
            assert_close(
                (first + second) / 2, part, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
