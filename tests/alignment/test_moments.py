"""Moments over tokens: closed forms, invariances, edge cases; pooled over a batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lori_pl.alignment import Moments, batch_moments, trajectory_moments
from lori_pl.errors import LoriError


def example(seed, problems=3, layers=2, tokens=5, hidden=4):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(problems, layers, tokens, hidden, generator=generator, dtype=torch.float64)
    mask = torch.rand(problems, tokens, generator=generator) < 0.6
    mask[:, 0] = True
    return values, mask


def test_closed_form():
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [99.0, 99.0]]])  # (1, 3, 2)
    mask = torch.tensor([[1, 1, 0]])
    mean, second = trajectory_moments(hidden, mask)
    assert torch.equal(mean, torch.tensor([[2.0, 1.0]]))
    assert torch.equal(second, torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]))
    raw = trajectory_moments(hidden, mask, "raw_moment").second
    assert torch.equal(raw, torch.tensor([[[5.0, 3.0], [3.0, 2.0]]]))
    assert trajectory_moments(hidden, mask, "none").second is None


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), second_order=st.sampled_from(["covariance", "raw_moment"]))
def test_equal_to_the_definition_whatever_the_order_length_and_padding(seed, second_order):
    hidden, mask = example(seed)
    mean, second = trajectory_moments(hidden, mask, second_order)
    assert mean.shape == (3, 2, 4)
    assert second.shape == (3, 2, 4, 4)
    for row in range(3):
        for layer in range(2):
            tokens = hidden[row, layer][mask[row]]
            assert torch.allclose(mean[row, layer], tokens.mean(0))
            about = tokens - tokens.mean(0) if second_order == "covariance" else tokens
            assert torch.allclose(second[row, layer], about.mT @ about / len(tokens))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(hidden.shape[2], generator=generator)
    repeats = 3
    changed = [
        (hidden[:, :, order], mask[:, order]),
        (hidden.repeat_interleave(repeats, 2), mask.repeat_interleave(repeats, 1)),
        (hidden.repeat(1, 1, repeats, 1), mask.repeat(1, repeats)),
        (torch.cat([torch.full_like(hidden, float("nan")), hidden], 2), torch.cat([torch.zeros_like(mask), mask], 1)),
        (hidden.flip(0), mask.flip(0)),
    ]
    for position, (values, keep) in enumerate(changed):
        again = trajectory_moments(values, keep, second_order)
        if position == 4:
            again = Moments(again.mean.flip(0), again.second.flip(0))
        assert torch.allclose(again.mean, mean, atol=1e-12)
        assert torch.allclose(again.second, second, atol=1e-12)


def test_three_dimensions_equal_four_and_no_mask_counts_all():
    hidden, mask = example(0)
    whole = trajectory_moments(hidden, mask)
    one = trajectory_moments(hidden[:, 1], mask)
    assert torch.equal(one.mean, whole.mean[:, 1])
    assert torch.equal(one.second, whole.second[:, 1])
    everything = trajectory_moments(hidden, torch.ones_like(mask))
    assert torch.allclose(trajectory_moments(hidden).second, everything.second)


def test_one_token_has_itself_as_mean_and_exactly_no_covariance():
    hidden = torch.randn(2, 3, 1, 5) * 1e3
    mean, second = trajectory_moments(hidden)
    assert torch.equal(mean, hidden.squeeze(2))
    assert torch.count_nonzero(second) == 0


@pytest.mark.parametrize("second_order", ["covariance", "raw_moment"])
@pytest.mark.parametrize("tokens", [0, 3])
def test_an_empty_mask_gives_zeros_with_a_gradient_path(second_order, tokens):
    hidden = torch.full((2, 1, tokens, 4), float("nan"), requires_grad=True)
    mean, second = trajectory_moments(hidden, torch.zeros(2, tokens), second_order)
    assert torch.count_nonzero(mean) == torch.count_nonzero(second) == 0
    (mean.sum() + second.sum()).backward()
    assert torch.count_nonzero(hidden.grad) == 0
    assert trajectory_moments(hidden[:, :, :0]).mean.isfinite().all()


def test_gradients_equal_finite_differences_also_for_fewer_tokens_than_entries():
    hidden, mask = example(3, tokens=2, hidden=5)
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: tuple(trajectory_moments(values, mask)), hidden)
    assert torch.autograd.gradcheck(lambda values: tuple(batch_moments(trajectory_moments(values, mask))), hidden)


def test_computed_in_fp32_under_bf16_autocast():
    hidden = (torch.randn(2, 3, 4) + 100).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mean, second = trajectory_moments(hidden)
        pooled = batch_moments(Moments(mean, second))
    assert {mean.dtype, second.dtype, pooled.mean.dtype, pooled.second.dtype} == {torch.float32}
    assert torch.allclose(second, trajectory_moments(hidden.double()).second.float(), atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), second_order=st.sampled_from(["covariance", "raw_moment"]))
def test_batch_moments_are_those_of_all_tokens_each_problem_weighing_the_same(seed, second_order):
    hidden, mask = example(seed, problems=4)
    mask[2] = False  # a problem without rationale
    moments = trajectory_moments(hidden, mask, second_order)
    mean, second = batch_moments(moments, mask.any(1), second_order)
    assert mean.shape == (1, 2, 4)
    assert second.shape == (1, 2, 4, 4)
    weight = (mask / mask.sum(1, keepdim=True).clamp_min(1)).double() / 3
    expected = torch.einsum("bt,bltd->ld", weight, hidden)
    about = hidden - expected.unsqueeze(1) if second_order == "covariance" else hidden
    assert torch.allclose(mean[0], expected)
    assert torch.allclose(second[0], torch.einsum("bt,bltd,blte->lde", weight, about, about))


def test_batch_moments_without_weight_are_zero_and_without_second_order_none():
    hidden, mask = example(1)
    moments = trajectory_moments(hidden, mask)
    mean, second = batch_moments(moments, torch.zeros(3))
    assert torch.count_nonzero(mean) == torch.count_nonzero(second) == 0
    assert batch_moments(Moments(moments.mean, None)).second is None


def test_bad_shapes_are_refused():
    with pytest.raises(LoriError, match=r"hidden has shape \(3, 4\)"):
        trajectory_moments(torch.zeros(3, 4))
    with pytest.raises(LoriError, match=r"mask has shape \(2, 5\).*need \(2, 3\)"):
        trajectory_moments(torch.zeros(2, 1, 3, 4), torch.zeros(2, 5))
