"""What tells one model's weights from another's."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_lm

from lori_pl.models.hidden import decoder_layers
from lori_pl.models.identity import layers_digest


def test_the_least_bit_of_any_frozen_weight_counts_and_nothing_that_trains():
    model = tiny_lm().requires_grad_(False)
    before = layers_digest(model)
    assert layers_digest(model) == before
    for parameter in decoder_layers(model)[1].parameters():
        bits = parameter.data.view(torch.int32).view(-1)
        bits[-1] ^= 1
        assert layers_digest(model) != before
        parameter.requires_grad_(True)
        bits[-1] ^= 1
        without = layers_digest(model)
        bits[-1] ^= 1
        assert layers_digest(model) == without
        parameter.requires_grad_(False)
        bits[-1] ^= 1
    assert layers_digest(model) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_counts(dtype):
    model = tiny_lm().requires_grad_(False)
    assert layers_digest(model) != layers_digest(model.to(dtype))


def test_a_process_without_weights_has_no_digest():
    assert layers_digest(tiny_lm().requires_grad_(False).to("meta")) is None
