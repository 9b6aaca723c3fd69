"""Streaming factors equal the SVD of the whole tensor, whatever the order, the batches and the offset."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lori_pl.alignment import TrajectoryScale, TuckerFactors, tucker
from lori_pl.errors import LoriError

LAYERS, HIDDEN = 4, 7


def trajectories(problems=6, tokens=5, layers=LAYERS, hidden=HIDDEN, seed=0):
    """Trajectories (B, L, T, D) with distinct mode spectra and layer norms, and masks; NaN where masked out."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(problems, layers, tokens, hidden, generator=generator)
    values = values * torch.linspace(0.2, 3, hidden) * torch.logspace(0, 1, layers).view(-1, 1, 1)
    values = torch.einsum("bltd,lm->bmtd", values, torch.randn(layers, layers, generator=generator)) + 2.0
    mask = torch.rand(problems, tokens, generator=generator) < 0.7
    mask[:, 0] = True
    return torch.where(mask[:, None, :, None], values, float("nan")), mask


def kept_tokens(hidden, mask):
    """(N, L, D) in fp64."""
    return hidden.transpose(1, 2)[mask].double()


def fit(batches, layer_scale="rms"):
    layers, hidden = batches[0][0].shape[1], batches[0][0].shape[3]
    scale = TrajectoryScale(layers, hidden, layer_scale)
    for batch in batches:
        scale.update(*batch)
    factors = TuckerFactors(scale)
    for batch in batches:
        factors.update(*batch)
    return scale, factors


def test_scale_is_mean_and_rms_of_the_centred_tokens():
    hidden, mask = trajectories()
    tokens = kept_tokens(hidden, mask)
    scale, _ = fit([(hidden, mask)])
    assert torch.allclose(scale.mean, tokens.mean(0))
    assert torch.allclose(scale.rms, (tokens - tokens.mean(0)).square().mean((0, 2)).sqrt())
    assert torch.equal(fit([(hidden, mask)], "none")[0].scale, torch.ones(LAYERS, dtype=torch.float64))


@pytest.mark.parametrize("layer_scale", ["rms", "none"])
def test_factors_equal_the_svd_of_the_unfolded_whole(layer_scale):
    hidden, mask = trajectories()
    scale, streaming = fit([(hidden, mask)], layer_scale)
    tokens = kept_tokens(hidden, mask)
    normalised = (tokens - tokens.mean(0)) / scale.scale.view(1, -1, 1)
    found = streaming.factors(3, 5)
    for factor, spectrum, unfolded in (
        (found.layer, found.layer_spectrum, normalised.transpose(0, 1).flatten(1)),
        (found.hidden, found.hidden_spectrum, normalised.permute(2, 0, 1).flatten(1)),
    ):
        left, values, _ = torch.linalg.svd(unfolded, full_matrices=False)
        rank = factor.shape[1]
        assert torch.allclose(spectrum, values.square())
        assert torch.allclose((left[:, :rank].mT @ factor).abs(), torch.eye(rank).double(), atol=1e-9)
        assert (factor.gather(0, factor.abs().argmax(0, keepdim=True)) > 0).all()  # deterministic signs
    core = torch.einsum("nld,lk,dr->nkr", normalised, found.layer, found.hidden)
    share = float(core.square().sum() / normalised.square().sum())
    # what both keep lies between what neither loses twice and what the poorer keeps
    assert found.layer_energy + found.hidden_energy - 1 <= share <= min(found.layer_energy, found.hidden_energy)
    assert streaming.energy.item() == pytest.approx(normalised.square().sum().item())


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(1, 5), seed=st.integers(0, 1000), problem_order=st.permutations(range(6)))
def test_neither_the_order_nor_the_cut_into_batches_matters(cut, seed, problem_order):
    hidden, mask = trajectories(seed=seed)
    _, whole = fit([(hidden, mask)])
    expected = whole.factors(2, 3)

    order = torch.tensor(problem_order)
    token_order = torch.randperm(hidden.shape[2], generator=torch.Generator().manual_seed(seed))
    hidden, mask = hidden[order][:, :, token_order], mask[order][:, token_order]
    halves = [(hidden[:cut], mask[:cut]), (hidden[cut:], mask[cut:])]
    _, parts = fit(halves)
    found = parts.factors(2, 3)
    assert parts.count == whole.count
    assert torch.allclose(found.hidden_spectrum, expected.hidden_spectrum)
    assert torch.allclose(found.layer, expected.layer, atol=1e-7)
    assert torch.allclose(found.hidden, expected.hidden, atol=1e-7)


def test_chunks_of_any_size_give_the_same(monkeypatch):
    batch = trajectories()
    _, whole = fit([batch])
    monkeypatch.setattr(tucker, "_CHUNK_ELEMENTS", 1)
    _, chunked = fit([batch])
    assert torch.allclose(whole.hidden_gram, chunked.hidden_gram, rtol=1e-10)
    assert torch.allclose(whole.layer_gram, chunked.layer_gram, rtol=1e-10)


def test_a_mean_a_thousand_times_the_deviation_costs_no_precision():
    torch.manual_seed(0)
    exact = (1000.0 + torch.randn(20, LAYERS, 30, HIDDEN)).float()
    _, streaming = fit([(part, None) for part in exact.split(3)])
    tokens = exact.double().transpose(1, 2).flatten(0, 1)
    centred = tokens - tokens.mean(0)
    normalised = centred / centred.square().mean((0, 2)).sqrt().view(1, -1, 1)
    reference = torch.einsum("nld,nle->de", normalised, normalised)
    assert (streaming.hidden_gram - reference).abs().max() < 1e-9 * reference.abs().max()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_a_layer_that_never_varies_gives_zero_not_nan(value, rounding):
    hidden, mask = trajectories(problems=40)
    hidden[:, 1] = value * (1 + rounding * torch.randn(40, 5, HIDDEN))
    scale, streaming = fit([(hidden[:13], mask[:13]), (hidden[13:], mask[13:])])
    assert scale.rms[1] == 0
    assert scale.scale[1].item() == pytest.approx(value or 1.0)
    factors = streaming.factors(LAYERS, 2)
    assert factors.layer.isfinite().all()
    assert factors.layer_spectrum[-1] < 1e-12 * factors.layer_spectrum[0]
    assert (
        streaming.factors(1 - 1e-12, 1 - 1e-12).layer.shape[1] == LAYERS - 1
    )  # all energy without the empty direction


def test_a_share_of_the_energy_takes_the_fewest_columns_that_keep_it():
    _, streaming = fit([trajectories()])
    share = 0.8
    found = streaming.factors(LAYERS, share)
    rank = found.hidden.shape[1]
    assert found.hidden_energy >= share > streaming.factors(LAYERS, rank - 1).hidden_energy
    assert found.truncated(2, 1).layer.shape == (LAYERS, 2)
    assert found.truncated(2, 1).hidden_energy < share


def test_state_dicts_continue_where_they_stopped():
    hidden, mask = trajectories()
    scale, factors = fit([(hidden, mask)])
    restored_scale = TrajectoryScale(LAYERS, HIDDEN)
    restored_scale.load_state_dict(scale.state_dict())
    assert torch.equal(restored_scale.rms, scale.rms)
    restored = TuckerFactors(restored_scale)
    restored.load_state_dict(factors.state_dict())
    restored.update(hidden, mask)
    assert restored.count == 2 * factors.count  # and the source was not written to
    assert torch.allclose(restored.hidden_gram, 2 * factors.hidden_gram)


def test_a_whole_number_counts_columns_however_it_is_written():
    """jsonargparse makes 1.0 of 1 where typing remembers the union as `float | int`, as of another import."""
    _, streaming = fit([trajectories()])
    assert streaming.factors(1.0, 3.0).layer.shape[1] == 1
    assert streaming.factors(1.0, 3.0).hidden.shape[1] == 3


@pytest.mark.parametrize(
    ("layers", "hidden", "message"),
    [
        (5, 2, "rank_layers=5 does not fit the layers mode of dimension 4"),
        (4, 8, "rank_hidden=8 does not fit the hidden mode of dimension 7"),
        (0, 2, "rank_layers=0 .*between 1 and 4"),
        (4, 0.0, r"rank_hidden=0 .*between 1 and 7"),
        (4, 32.0, "rank_hidden=32 does not fit the hidden mode"),
        (4, 2.5, r"rank_hidden=2\.5: give a whole number of columns, or a share of the energy between 0 and 1"),
        (4, -0.5, "a share of the energy between 0 and 1"),
    ],
)
def test_impossible_ranks_are_refused(layers, hidden, message):
    _, streaming = fit([trajectories()])
    with pytest.raises(LoriError, match=message):
        streaming.factors(layers, hidden)


def test_bad_input_is_refused():
    hidden, mask = trajectories()
    scale, _ = fit([(hidden, mask)])
    with pytest.raises(LoriError, match="no rationale token"):
        TuckerFactors(TrajectoryScale(LAYERS, HIDDEN))
    with pytest.raises(LoriError, match="no rationale token"):
        TuckerFactors(scale).factors(1, 1)
    with pytest.raises(LoriError, match=r"trajectories have shape .*4 layers, tokens, 7"):
        scale.update(hidden[:, :3], mask)
    with pytest.raises(LoriError, match=r"token mask has shape \(6, 4\)"):
        scale.update(hidden, mask[:, :4])
    scale.update(torch.full((1, LAYERS, 1, HIDDEN), float("inf")))
    with pytest.raises(LoriError, match="not finite"):
        scale.rms


@pytest.mark.parametrize("seed", range(4))
def test_signs_do_not_depend_on_rounding_where_entries_tie(seed):
    # two layers of unit root mean square: both columns of U_L have entries of equal size
    hidden, mask = trajectories(layers=2, seed=seed)
    _, whole = fit([(hidden, mask)])
    _, parts = fit([(row, keep) for row, keep in zip(hidden.flip(0).split(1), mask.flip(0).split(1), strict=True)])
    layer = parts.factors(2, 1).layer
    assert torch.allclose(layer.abs(), torch.full((2, 2), 0.5**0.5).double(), atol=1e-6)
    assert (layer[0] > 0).all()
    assert torch.allclose(layer, whole.factors(2, 1).layer, atol=1e-9)
