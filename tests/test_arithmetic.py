"""Operations are counted on the CPU as on a GPU, attention among them, and by region."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from lori_pl.arithmetic import Arithmetic
from lori_pl.regions import profiled, region


def attention(kind, query, key, value):
    if kind == "fused":
        return F.scaled_dot_product_attention(query, key, value)
    return (query @ key.mT).softmax(-1) @ value


@pytest.mark.parametrize("width", [1, 5])
def test_fused_attention_counts_what_its_products_do(width):
    query, key, value = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (width, 7, 7))
    forward, whole = {}, {}
    for kind in ("fused", "plain"):
        with Arithmetic().counting() as counted:
            out = attention(kind, query, key, value)
            forward[kind] = counted.total
            out.sum().backward()
            whole[kind] = counted.total
    scores = 2 * 2 * 3 * width * 7 * 8
    assert forward["fused"] == forward["plain"] == 2 * scores
    assert whole["plain"] == 6 * scores
    assert whole["fused"] == 7 * scores  # the scores are computed anew


def test_a_product_and_its_gradients():
    weight, entries = torch.randn(4, 6, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    with Arithmetic().counting() as counted:
        out = entries @ weight
        assert counted.total == 2 * 5 * 4 * 6
        out.sum().backward()
    assert counted.total == 3 * 2 * 5 * 4 * 6
    torch.ones(3, 3) @ torch.ones(3, 3)
    assert counted.total == 3 * 2 * 5 * 4 * 6  # nothing behind the block


def test_regions_are_counted_apart_and_another_profile_still_sees_them():
    seen, arithmetic = [], Arithmetic()

    def other(name):
        seen.append(name)
        return torch.no_grad()

    def fail(square):
        with region("answer"):
            square @ square
            raise ValueError("from within")

    square = torch.ones(3, 3)
    with profiled(other):
        with arithmetic.counting():
            square @ square
            for _ in range(2):
                with region("teacher"):
                    square @ square
            with pytest.raises(ValueError, match="from within"):
                fail(square)
        with region("teacher"):
            square @ square
    assert arithmetic.regions == {"teacher": 2 * 54, "answer": 54}
    assert arithmetic.total == 4 * 54
    assert seen == ["lori_pl/teacher", "lori_pl/teacher", "lori_pl/answer", "lori_pl/teacher"]


def test_profiles_may_end_in_any_order():
    seen = []

    def profile(kind):
        return lambda name: seen.append((kind, name)) or torch.no_grad()

    first, second = profiled(profile("first")), profiled(profile("second"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with region("answer"):
        pass
    second.__exit__(None, None, None)
    with region("answer"):
        pass
    assert seen == [("second", "lori_pl/answer")]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_counts_as_pytorchs_own_counter_does(kind, mode):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}
    config = AutoConfig.for_model(kind, **sizes, attn_implementation="eager")
    lm = AutoModelForCausalLM.from_config(config)
    ids = torch.arange(10).view(2, 5)

    def run(counter):
        with counter, mode():
            logits = lm(ids).logits
            if mode is torch.enable_grad:
                logits.sum().backward()

    ours, theirs = Arithmetic(), FlopCounterMode(display=False)
    run(ours)
    run(theirs)
    assert ours.total == theirs.get_total_flops() > 0
