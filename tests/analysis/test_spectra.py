"""Spectra from streamed Gram matrices against the singular values of explicit matrices."""

from __future__ import annotations

import math

import pytest
import torch

from lori_pl.analysis import spectra
from lori_pl.analysis.spectra import GROUPS, Spectrum, permuted_entries, trajectory_spectra
from lori_pl.errors import LoriError

LAYERS, HIDDEN = 3, 5


def trajectories(longest: int, problems: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States with layers of different size and mean, NaN where there is no token."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(problems, LAYERS, longest, HIDDEN, generator=generator)
    hidden = hidden * torch.tensor([1.0, 10.0, 0.1])[:, None, None] + torch.arange(5.0)
    lengths = torch.randint(1, longest + 1, (problems,), generator=generator)
    lengths[0] = longest
    mask = torch.arange(longest)[None] < lengths[:, None]
    return torch.where(mask[:, None, :, None], hidden, torch.nan), mask


def explicit(hidden: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Each problem's centred, scaled tokens (T, L, D)."""
    tokens = hidden.double().transpose(1, 2)
    every = tokens[mask]
    mean = every.mean(0)
    scale = (every - mean).square().mean((0, 2)).sqrt()[:, None]
    return [(row[keep] - mean) / scale for row, keep in zip(tokens, mask, strict=True)]


def singular(matrix: torch.Tensor, count: int) -> torch.Tensor:
    values = torch.linalg.svdvals(matrix).square()
    return torch.cat([values, values.new_zeros(max(0, count - len(values)))])[:count]


@pytest.mark.parametrize("longest", [4, 19])
def test_spectra_are_those_of_the_unfolded_tensor(longest):
    hidden, mask = trajectories(longest)
    found = trajectory_spectra(lambda: [(hidden[:3], mask[:3]), (hidden[3:], mask[3:])])
    rows = explicit(hidden, mask)
    tokens = torch.cat(rows)
    assert found.tokens == len(tokens)
    assert found.longest == longest
    layer = tokens.permute(1, 0, 2).flatten(1)
    flat = tokens.flatten(0, 1).T
    padded = torch.zeros(len(rows), longest, LAYERS, HIDDEN, dtype=torch.float64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    position = padded.transpose(0, 1).flatten(1)
    for name, matrix in (("layer", layer), ("hidden", flat), ("position", position)):
        torch.testing.assert_close(found.modes[name].values, singular(matrix, len(matrix)), atol=1e-9, rtol=1e-9)
    for each, states in zip(found.by_layer, tokens.unbind(1), strict=True):
        torch.testing.assert_close(each.values, singular(states, HIDDEN), atol=1e-9, rtol=1e-9)
    groups = min(longest, GROUPS)
    parts: list[list[torch.Tensor]] = [[] for _ in range(groups)]
    for row in rows:
        for place, token in enumerate(row):
            parts[place if longest <= GROUPS else int(groups * place / len(row))].append(token)
    assert len(found.by_position) == groups
    for each, part in zip(found.by_position, parts, strict=True):
        states = torch.stack(part)
        about = (states - states.mean(0)).flatten(0, 1)
        torch.testing.assert_close(each.values, singular(about, HIDDEN), atol=1e-9, rtol=1e-9)


def test_a_rotation_changes_no_spectrum_and_a_repeated_set_no_share():
    hidden, mask = trajectories(6)
    rotation = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1)))[0]
    first = trajectory_spectra(lambda: [(hidden, mask)])
    rotated = trajectory_spectra(lambda: [(hidden @ rotation, mask)])
    twice = trajectory_spectra(lambda: [(hidden, mask)] * 2)
    for mode, spectrum in first.modes.items():
        torch.testing.assert_close(rotated.modes[mode].values, spectrum.values, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(twice.modes[mode].shares, spectrum.shares)


def test_ranks_in_closed_form():
    def of(*sigma: float) -> Spectrum:
        return Spectrum(torch.tensor(sigma, dtype=torch.float64).square())

    alike = of(2, 2, 2, 0)
    assert alike.effective_rank == pytest.approx(3)
    assert alike.stable_rank == pytest.approx(3)
    assert alike.rank_for(0.6) == 2
    assert alike.rank_for(1.0) == 3
    # Roy and Vetterli's entropy is of the singular values themselves, not of their squares
    two = of(2, 1)
    assert two.effective_rank == pytest.approx(math.exp(2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3)))
    assert two.stable_rank == pytest.approx(5 / 4)
    assert two.shares.tolist() == pytest.approx([0.8, 0.2])
    none = of(0, 0)
    assert (none.effective_rank, none.stable_rank, none.rank_for(0.9)) == (0, 0, 0)
    assert none.shares.tolist() == [0, 0]


def test_permuted_entries_keep_each_entrys_values_and_lose_what_they_share():
    factor = torch.randn(400, 1, 1, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 2, 1)
    signs = torch.randn(1, LAYERS, 1, HIDDEN, generator=torch.Generator().manual_seed(1)).sign()
    hidden = factor * signs + 3.0
    mask = torch.ones(400, 2, dtype=torch.bool)
    mask[::3, 1] = False
    before = trajectory_spectra(lambda: [(hidden, mask)])
    # one direction a layer, and the layers go together
    assert [each.effective_rank for each in before.by_layer] == pytest.approx([1] * LAYERS, abs=0.01)
    after = trajectory_spectra(lambda: permuted_entries([(hidden, mask)], 0))
    assert min(each.effective_rank for each in after.by_layer) > HIDDEN - 0.1
    assert after.modes["layer"].effective_rank > LAYERS - 0.1
    ((mixed, kept),) = permuted_entries([(hidden, mask)], 0)
    ((again, _),) = permuted_entries([(hidden, mask)], 0)
    assert torch.equal(mixed, again)
    assert torch.equal(kept, mask)
    old, new = (states.transpose(1, 2)[mask].sort(0).values for states in (hidden, mixed))
    assert torch.equal(old, new)
    assert torch.equal(mixed.transpose(1, 2)[~mask], hidden.transpose(1, 2)[~mask])


def test_permuted_entries_are_the_same_whatever_the_batches(monkeypatch):
    """Of one problem at a time, a permutation would keep what the problem's tokens have in common."""
    generator = torch.Generator().manual_seed(0)
    # each problem has a place of its own along one direction, and its tokens are near it
    place = torch.randn(300, 1, 1, 1, generator=generator) * torch.ones(1, LAYERS, 4, HIDDEN)
    hidden = place + 0.1 * torch.randn(300, LAYERS, 4, HIDDEN, generator=generator)
    mask = torch.ones(300, 4, dtype=torch.bool)
    mask[::2, 3] = False
    alone = [(hidden[i : i + 1], mask[i : i + 1]) for i in range(300)]
    one = [states for states, _ in permuted_entries([(hidden, mask)], 0)]
    many = [states for states, _ in permuted_entries(alone, 0)]
    assert torch.equal(torch.cat(many), torch.cat(one))
    found = trajectory_spectra(lambda: permuted_entries(alone, 0))
    assert min(each.effective_rank for each in found.by_layer) > HIDDEN - 0.1
    # memory comes first: of states so large each batch is permuted by itself
    monkeypatch.setattr(spectra, "_POOL_ELEMENTS", LAYERS * HIDDEN)
    by_itself = trajectory_spectra(lambda: permuted_entries(alone, 0))
    assert max(each.effective_rank for each in by_itself.by_layer) < 2


def test_nothing_to_measure():
    hidden, mask = trajectories(3)
    for batches in ([], [(hidden, torch.zeros_like(mask))]):
        with pytest.raises(LoriError, match="no token whose states"):
            trajectory_spectra(lambda batches=batches: batches)
