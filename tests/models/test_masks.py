"""Our attention masks against those that transformers makes, and where it still has to make them."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_lm
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BloomConfig, DynamicCache, MistralConfig

from lori_pl.models.hidden import base_model
from lori_pl.models.masks import attention_mask

MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "granite", "cohere"])
def test_real_tokens_see_what_they_see_under_transformers_own_masks(kind, attention):
    lm = tiny_lm(kind)
    lm.set_attn_implementation(attention)
    torch.manual_seed(1)
    embedded = torch.randn(3, 7, lm.config.hidden_size)
    whole = torch.cat([MASK, torch.ones(3, 2).bool()], 1)
    position = (whole.long().cumsum(1) - 1).clamp_min(0)

    def run(prepare):
        cache, states = DynamicCache(config=lm.config), []
        for columns in (slice(0, 5), slice(5, 6), slice(6, 7)):
            mask = whole[:, : columns.stop]
            states.append(
                base_model(lm)(
                    inputs_embeds=embedded[:, columns],
                    attention_mask=prepare(mask, columns.stop - columns.start),
                    position_ids=position[:, columns],
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state
            )
        return torch.cat(states, 1)[whole]

    ours = run(lambda mask, queries: attention_mask(lm, mask, queries, embedded.dtype))
    assert_close(ours, run(lambda mask, queries: mask.long()), atol=1e-5, rtol=1e-5)
    assert ours.isfinite().all()


def test_their_form():
    lm = tiny_lm("llama")
    allowed = attention_mask(lm, MASK, 2, torch.float32)
    assert allowed.shape == (3, 1, 2, 5)
    # padding attends to itself alone, a real token to the real ones up to it
    assert allowed[0, 0].long().tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert allowed[1, 0].long().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]
    lm.set_attn_implementation("eager")
    added = attention_mask(lm, MASK, 2, torch.bfloat16)
    assert added.dtype == torch.bfloat16
    assert torch.equal(added == 0, allowed)
    assert added.min() == torch.finfo(torch.bfloat16).min


def test_what_transformers_has_to_make_is_left_to_it():
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    bloom = AutoModelForCausalLM.from_config(BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50))
    sliding = AutoModelForCausalLM.from_config(MistralConfig(**small, num_key_value_heads=2, sliding_window=8))
    flash = tiny_lm("llama")
    flash.config._attn_implementation_internal = "flash_attention_2"
    for lm in (bloom, sliding, flash, tiny_lm("gemma2")):
        assert torch.equal(attention_mask(lm, MASK, 5, torch.float32), MASK.long())
    wide = AutoModelForCausalLM.from_config(MistralConfig(**small, num_key_value_heads=2, sliding_window=None))
    assert attention_mask(wide, MASK, 5, torch.float32).dim() == 4
