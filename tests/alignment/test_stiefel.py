"""The Stiefel weight stays orthonormal where torch's own parametrizations fail: weight decay, bf16, large d."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lori_pl.alignment import StiefelWeight, orthonormality_error, stiefel_parameters
from lori_pl.alignment.stiefel import orthonormal_columns
from lori_pl.errors import LoriError


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("dim", "rank"), [(6, 1), (8, 8), (64, 16), (576, 32), (4096, 64)])
def test_weight_stays_orthonormal_under_adamw_with_weight_decay(dim, rank, autocast):
    torch.manual_seed(0)
    stiefel = StiefelWeight(dim, rank)
    start = stiefel.weight.detach().clone()
    optimizer = torch.optim.AdamW(stiefel.parameters(), lr=0.05, weight_decay=0.5)
    direction = torch.randn(4, dim)
    for _ in range(2 if dim == 4096 else 10):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            weight = stiefel.weight
            assert weight.dtype == torch.float32
            loss = (direction @ weight).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert orthonormality_error(stiefel.weight) < 5e-6
    assert dim == rank or (stiefel.weight - start).abs().max() > 1e-3  # it was trained, too


def test_weight_decay_alone_changes_nothing_but_the_hidden_scale():
    stiefel = StiefelWeight(32, 4)
    start = stiefel.weight.detach().clone()
    (original,) = stiefel_parameters(stiefel)
    with torch.no_grad():
        original *= 1e-15
    assert torch.allclose(stiefel.weight, start, atol=1e-6)


@pytest.mark.parametrize(("dim", "rank"), [(5, 1), (7, 3), (4, 4)])
def test_gradient_equals_finite_differences(dim, rank):
    torch.manual_seed(1)
    matrix = torch.randn(dim, rank, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthonormal_columns, matrix)
    at_orthonormal_point = orthonormal_columns(matrix).detach().requires_grad_()  # all singular values coincide
    assert torch.autograd.gradcheck(orthonormal_columns, at_orthonormal_point)


def test_gradient_in_fp32_equals_fp64_at_full_size():
    torch.manual_seed(2)
    matrix, cotangent = torch.randn(4096, 64), torch.randn(4096, 64)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = matrix.detach().clone().to(dtype).requires_grad_()
        orthonormal_columns(leaf).backward(cotangent.to(dtype))
        gradients.append(leaf.grad.double())
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[1].abs().max()


def test_orthonormal_value_is_assigned_exactly_and_rank_may_change_with_the_parameter_kept():
    torch.manual_seed(3)
    stiefel = StiefelWeight(10, 3)
    (before,) = stiefel.parameters()
    value = orthonormal_columns(torch.randn(10, 3))
    value[:, 1] *= -1  # any signs
    stiefel.weight = value
    assert torch.allclose(stiefel.weight, value, atol=1e-6)
    wider = orthonormal_columns(torch.randn(10, 6, dtype=torch.float64))
    stiefel.assign(wider)
    assert torch.allclose(stiefel.weight, wider.float(), atol=1e-6)
    assert stiefel.rank == 6
    (after,) = stiefel.parameters()
    assert after is before


def test_an_assigned_value_of_any_memory_layout_equals_its_reloaded_checkpoint_bit_for_bit():
    torch.manual_seed(4)
    first, second = StiefelWeight(64, 16), StiefelWeight(64, 16)
    first.assign(orthonormal_columns(torch.randn(64, 16)).mT.contiguous().mT)
    assert all(tensor.is_contiguous() for tensor in first.state_dict().values())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.weight, second.weight)


def test_half_precision_parameter_still_gives_an_orthonormal_fp32_weight():
    stiefel = StiefelWeight(64, 8).to(torch.bfloat16)
    assert stiefel.weight.dtype == torch.float32
    assert orthonormality_error(stiefel.weight) < 5e-6
    stiefel.assign(torch.eye(64, 8))
    assert torch.allclose(stiefel.weight, torch.eye(64, 8))


def test_state_holds_one_tensor_of_the_weights_shape_and_copies_are_independent():
    stiefel = StiefelWeight(40, 2)
    assert [tuple(tensor.shape) for tensor in stiefel.state_dict().values()] == [(40, 2)]
    other = StiefelWeight(40, 2)
    other.load_state_dict(stiefel.state_dict())
    assert torch.equal(other.weight, stiefel.weight)
    twin = copy.deepcopy(stiefel)
    twin.assign(torch.eye(40, 2))
    assert not torch.allclose(stiefel.weight, torch.eye(40, 2))


def test_stiefel_parameters_are_those_and_no_others():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
            self.inner = nn.ModuleList([StiefelWeight(5, 2), StiefelWeight(6, 1)])

    found = stiefel_parameters(Model())
    assert sorted(tuple(parameter.shape) for parameter in found) == [(5, 2), (6, 1)]
    assert all(isinstance(parameter, nn.Parameter) for parameter in found)


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        stiefel = StiefelWeight(4096, 64)
    assert stiefel.weight.is_meta
    assert stiefel.weight.shape == (4096, 64)


@pytest.mark.parametrize(("dim", "rank"), [(4, 5), (4, 0), (3, -1)])
def test_impossible_rank_is_refused(dim, rank):
    with pytest.raises(LoriError, match=rf"{rank} orthonormal columns do not exist in dimension {dim}"):
        StiefelWeight(dim, rank)


@pytest.mark.parametrize("value", [torch.ones(4, 2), torch.full((4, 2), float("nan")), torch.zeros(4, 2)])
def test_assigning_columns_that_are_not_orthonormal_is_refused(value):
    with pytest.raises(LoriError, match="no orthonormal columns"):
        StiefelWeight(4, 2).weight = value


@pytest.mark.parametrize("shape", [(5, 2), (4, 5)])
def test_assigning_another_shape_is_refused(shape):
    with pytest.raises(LoriError, match="4 rows"):
        StiefelWeight(4, 2).assign(torch.eye(*shape))


@pytest.mark.parametrize("rank", [2, 3])
def test_assign_keeps_the_node_to_which_ddp_hooks_its_sum(rank):
    stiefel = StiefelWeight(4, 2)
    (original,) = stiefel_parameters(stiefel)
    node = original.expand_as(original).grad_fn.next_functions[0][0]
    stiefel.assign(torch.eye(4, rank))
    assert original.expand_as(original).grad_fn.next_functions[0][0] is node
    assert torch.equal(stiefel.weight, torch.eye(4, rank))
