"""Rotations of both modes are recovered exactly, also from starts that mislead plain alternation."""

from __future__ import annotations

import pytest
import torch

from lori_pl.alignment.procrustes import mode_procrustes


def rotation(size, generator):
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def cross_moment(student, teacher):
    return torch.einsum("iab,icd->abcd", student, teacher)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["rotations", "signs"])
@pytest.mark.parametrize("decay", [0.0, -1.0], ids=["flat", "decaying"])
@pytest.mark.parametrize(
    ("layers", "hidden", "problems"), [(3, 5, 60), (5, 3, 60), (1, 4, 20), (4, 6, 7), (2, 2, 50), (2, 4, 3)]
)
def test_rotated_cores_are_brought_back(seed, kind, layers, hidden, problems, decay):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(problems, layers, hidden, generator=generator, dtype=torch.float64)
    teacher = teacher * torch.logspace(0, decay, layers).view(-1, 1) * torch.logspace(0, decay, hidden)
    if kind == "rotations":
        by_layer, by_hidden = rotation(layers, generator), rotation(hidden, generator)
    else:  # all that two HOSVDs of the same tensor can differ by
        by_layer = torch.diag(torch.randint(0, 2, (layers,), generator=generator) * 2.0 - 1).double()
        by_hidden = torch.diag(torch.randint(0, 2, (hidden,), generator=generator) * 2.0 - 1).double()
    student = by_layer @ teacher @ by_hidden.mT
    layer_rotation, hidden_rotation = mode_procrustes(cross_moment(student, teacher))
    assert torch.allclose(layer_rotation.mT @ layer_rotation, torch.eye(layers).double(), atol=1e-12)
    assert torch.allclose(hidden_rotation.mT @ hidden_rotation, torch.eye(hidden).double(), atol=1e-12)
    assert torch.allclose(layer_rotation.mT @ student @ hidden_rotation, teacher, atol=1e-6)


def test_unrelated_cores_still_give_rotations_and_never_less_overlap_than_before():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(30, 3, 4, generator=generator, dtype=torch.float64)
    teacher = torch.randn(30, 3, 4, generator=generator, dtype=torch.float64)
    cross = cross_moment(student, teacher)
    by_layer, by_hidden = mode_procrustes(cross)
    after = torch.einsum("abcd,ac,bd->", cross, by_layer, by_hidden)
    assert after > (student * teacher).sum()
    zero_layer, zero_hidden = mode_procrustes(torch.zeros_like(cross))
    assert zero_layer.isfinite().all()
    assert zero_hidden.isfinite().all()
