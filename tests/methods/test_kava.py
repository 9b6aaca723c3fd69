"""KaVa against its formula, the tokens that it keeps, and its limit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from plain import GPT2, TINY, batch_of, joint_losses, together
from plain import build as plain_build
from torch.testing import assert_close

from lori_pl.errors import LoriError
from lori_pl.methods import KaVa, PCCoT
from lori_pl.methods.kava import select_tokens
from lori_pl.models.attention import AttentionInputs, recorded_attention

GQA = {**TINY, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


def build(kind=KaVa, **settings):
    return plain_build(kind, **settings)


def teacher(method, batch, row):
    """By layer: kept columns (G, M), keys and values (G, M, d) there, by transformers' own attention weights."""
    lm, explicit = method.student.lm, batch.explicit
    ids = explicit.ids[row][explicit.mask[row]]
    prompt = method.student.tokenizer.convert_tokens_to_ids("####")
    first = int(batch.question_mask[row].sum()) - 1
    rationale = torch.arange(first, ids.tolist().index(prompt))
    answers = torch.arange(int(explicit.anchor[row]) + 1, len(ids) - 1)
    assert len(answers) == int(batch.answer_mask[row].sum()) - batch.anchor - 2
    kind = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    output = lm(input_ids=ids[None], output_attentions=True, use_cache=True)
    lm.set_attn_implementation(kind)
    found = []
    for weights, layer in zip(output.attentions, output.past_key_values.layers, strict=True):
        keys, values = layer.keys[0], layer.values[0]
        asked = weights[0][:, answers][:, :, rationale]
        importance = (asked / asked.sum(-1, keepdim=True)).mean(1).unflatten(0, (len(keys), -1)).mean(1)
        kept = []
        for head in range(len(keys)):
            cosines = F.cosine_similarity(keys[head, rationale][:, None], keys[head, rationale][None], dim=-1)
            apart = (cosines.sum(1) - cosines.diagonal()) / (len(rationale) - 1)
            score = method.importance * importance[head] + (1 - method.importance) * (-apart).softmax(0)
            best = score.topk(min(method.latents, len(rationale))).indices
            kept.append(rationale[best.sort().values])
        columns = torch.stack(kept)
        taken = [torch.stack([part[g, columns[g]] for g in range(len(keys))]).detach() for part in (keys, values)]
        found.append((columns, *taken))
    return found


def latents(method, batch, row):
    """By layer: the latents' keys and values (G, K, d) in the last pass."""
    lm = method.student.lm
    question = lm.get_input_embeddings().weight[batch.question[row][batch.question_mask[row]]]
    sequence = torch.cat([question, together(method, question)])
    cache = lm(inputs_embeds=sequence[None], use_cache=True).past_key_values
    return [(layer.keys[0][:, len(question) :], layer.values[0][:, len(question) :]) for layer in cache.layers]


@pytest.mark.parametrize("config", [TINY, GQA, GPT2], ids=["llama", "gqa", "gpt2"])
@pytest.mark.parametrize(("count", "importance"), [(1, 0.1), (4, 0.9), (24, 0.1)])
def test_the_loss_and_its_gradients_are_those_of_the_formula(config, count, importance):
    method = build(config=config, latents=count, passes=2, gamma=1.5, w_cache=3.0, importance=importance)
    batch = batch_of(method, [0, 1, 2, 3], longer=True)
    total, parts = method.losses(batch)
    expected = joint_losses(method, batch, 1)
    followed = [(latents(method, batch, row), teacher(method, batch, row)) for row in range(4)]
    for number, name in ((0, "keys"), (1, "values")):
        layers = []
        for layer in range(2):
            problems, entries = [], []
            for own, theirs in followed:
                target = theirs[layer][number + 1]
                mine = own[layer][number][:, : target.shape[1]]
                problems.append(F.smooth_l1_loss(mine, target))
                entries.append(target.flatten())
            layers.append(torch.stack(problems).mean() / torch.cat(entries).std())
        expected[name] = torch.stack(layers).mean()
    for name, value in expected.items():
        assert_close(parts[name], value, atol=1e-5, rtol=1e-4, msg=name)
    weights = {"task": 1.0, "distillation": 1.5, "teacher": 1.0, "keys": 1.5, "values": 1.5}
    whole = sum(weight * expected[name] for name, weight in weights.items())
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    found, wanted = (torch.autograd.grad(loss, trained) for loss in (total, whole))
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_without_the_cache_s_distance_it_is_pccot():
    method, pccot = (build(kind, latents=4, gamma=2.0) for kind in (KaVa, PCCoT))
    method.w_cache = 0.0
    batch = batch_of(method, [0, 1])
    assert_close(method.losses(batch)[0], pccot.losses(batch)[0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_recording_changes_nothing_and_ends(attention):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    lm = build(config=GQA, attention=attention, latents=2).student.lm.eval()
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = lm(input_ids=ids).logits
    with recorded_attention(lm) as found:
        assert torch.equal(lm(input_ids=ids).logits, plain)
    assert [read.query.shape for read in found] == [(1, 4, 4, 8)] * 2
    assert [read.key.shape for read in found] == [(1, 2, 4, 8)] * 2
    with pytest.raises(ZeroDivisionError), recorded_attention(lm):
        _ = 1 / 0
    assert before == ALL_ATTENTION_FUNCTIONS._local_mapping
    lm(input_ids=ids)
    assert len(found) == 2


def test_an_attention_that_somebody_set_is_there_again(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    lm = build(config=GQA, attention="sdpa", latents=2).student.lm.eval()
    theirs, calls = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def own(*arguments, **keywords):
        calls.append(1)
        return theirs(*arguments, **keywords)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", own)
    with recorded_attention(lm) as outer:
        with recorded_attention(lm) as inner:
            lm(input_ids=torch.tensor([[5, 6, 7, 8]]))
        lm(input_ids=torch.tensor([[5, 6, 7, 8]]))
    assert (len(inner), len(outer), len(calls)) == (2, 4, 4)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own


def test_the_token_that_is_asked_for_and_the_one_that_is_new_are_kept():
    """Three rationale tokens behind one of the question: two alike, of which the answer looks at one, and another."""
    key = torch.tensor([[9.0, 0.0], [1.0, 0.0], [1.01, 0.0], [0.0, 1.0], [0.0, 5.0]])[None, None]
    query = torch.zeros(1, 1, 5, 2)
    query[0, 0, 4] = torch.tensor([50.0, 0.0])
    read = AttentionInputs(query, key, key, 1.0)
    rationale = torch.tensor([[False, True, True, True, False]])
    asking = (torch.tensor([[4]]), torch.tensor([[True]]))
    kept = {share: select_tokens(read, rationale, asking, 1, share)[0].tolist() for share in (0.0, 1.0)}
    assert kept == {0.0: [[[3]]], 1.0: [[[2]]]}
    columns, real = select_tokens(read, rationale, asking, 5, 0.1)
    assert columns.tolist() == [[[1, 2, 3, 0, 0]]]
    assert real.tolist() == [[True, True, True, False, False]]
    # nothing to choose from is no error, and counts for nothing
    _, none = select_tokens(read, torch.zeros_like(rationale), asking, 2, 0.1)
    assert not none.any()
    distance = build(latents=2)._distance([torch.randn(1, 1, 2, 2)], [torch.randn(1, 1, 2, 2)], none)
    assert distance == 0


def test_a_token_s_likeness_is_the_mean_over_the_other_tokens():
    """Not over all: with three tokens that would be two thirds of it, and another token would be kept."""
    angle = torch.tensor([0.0, 0.4, 2.0])
    key = torch.stack([angle.cos(), angle.sin()], dim=1)[None, None]
    query = torch.tensor([1.6, -0.7]).expand(1, 1, 3, 2)
    read = AttentionInputs(query, key, key, 1.0)
    asking = (torch.tensor([[2]]), torch.tensor([[True]]))
    cosines = torch.cos(angle[:, None] - angle[None])
    attended = (key[0, 0] @ query[0, 0, 0]).softmax(0)
    over_all = []
    for share in torch.linspace(0.0, 1.0, 41).tolist():
        scores = [share * attended + (1 - share) * (-(cosines.sum(1) - 1) / n).softmax(0) for n in (2, 3)]
        (columns,), _ = select_tokens(read, torch.ones(1, 3, dtype=torch.bool), asking, 1, share)
        assert columns.item() == scores[0].argmax()
        over_all.append(scores[1].argmax() != scores[0].argmax())
    assert any(over_all)


def test_the_choice_is_made_in_full_precision_under_autocast():
    method = build(latents=4, passes=2)
    batch = batch_of(method, [0, 1, 2, 3])
    plain = method.losses(batch)[1]["keys"]
    chosen = []
    original = torch.Tensor.topk

    def spy(self, *args, **keywords):
        chosen.append(self.dtype)
        return original(self, *args, **keywords)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(torch.Tensor, "topk", spy)
        mixed = method.losses(batch)[1]["keys"]
    assert chosen == [torch.float32] * 2
    assert_close(mixed, plain, atol=0.02, rtol=0.02)


def test_the_distance_is_made_in_full_precision_under_autocast():
    method = build(latents=4, passes=2)
    own, targets = torch.randn(2, 3, 2, 4, 8).unbind(0), torch.randn(2, 3, 2, 4, 8).unbind(0)
    real = torch.tensor([[True] * 4, [True] * 3 + [False], [True] * 2 + [False] * 2])
    plain = method._distance(own, targets, real)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method._distance(own, targets, real), plain)


def test_models_whose_cache_forgets_are_refused():
    config = {**TINY, "model_type": "mistral", "sliding_window": 8, "num_key_value_heads": 2}
    with pytest.raises(LoriError, match="sliding window"):
        build(config=config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance": 1.5}, "importance is 1.5"),
        ({"latents": 0}, "latents is 0"),
        ({"w_cache": -1.0}, "model.w_cache is -1.0: give 0 or more"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(LoriError, match=message):
        build(**settings)
