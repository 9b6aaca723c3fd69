"""What stands between question and answer: latents, their trajectory and number, fillers, forks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import encode, pairs, read_pair, tiny_lm, tiny_reasoner

from lori_pl import LatentReasoner
from lori_pl.data.pairing import PairedBatch
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.models.checkpointing import checkpoint_layers
from lori_pl.models.hidden import LayerSelection, record_hidden, stack_layers
from lori_pl.models.thought import Projector, ThoughtSettings

KINDS = ("llama", "gpt2", "qwen2")


@pytest.mark.parametrize("reasoning", ["latent", "parallel", "pause"])
def test_trajectory_is_recorded_at_the_latents(reasoning):
    reasoner = tiny_reasoner(reasoning=reasoning)
    question, mask = encode(reasoner)
    state, trajectory = reasoner.think(question, mask, record=LayerSelection())
    assert trajectory.shape == (3, 2, 3, 32)
    torch.testing.assert_close(trajectory[:, -1, -1], state.hidden[:, 0])
    _, first = reasoner.think(question, mask, record=LayerSelection([1], embedding_layer=True))
    assert first.shape == (3, 2, 3, 32)
    torch.testing.assert_close(first[:, 1], trajectory[:, 0])
    if reasoning == "latent":
        # layer 0 is the latent itself: the projection of the last hidden state one step before
        torch.testing.assert_close(first[:, 0, 1], reasoner.thought.projector(trajectory[:, -1, 0]))
        bot = reasoner.read(reasoner.embed(question), mask)
        torch.testing.assert_close(first[:, 0, 0], reasoner.thought.projector(bot.hidden[:, 0]))
    elif reasoning == "parallel":
        # z_1 is the projection of <bot>'s state; the last of two passes starts from what the first gave
        bot = reasoner.read(reasoner.embed(question), mask)
        torch.testing.assert_close(first[:, 0, 0], reasoner.thought.projector(bot.hidden[:, 0]))
        torch.testing.assert_close(first[:, 0, 1], reasoner.thought.projector(trajectory[:, -1, 0]))
        assert not torch.allclose(first[:, 0, 2], reasoner.thought.projector(trajectory[:, -1, 1]), atol=1e-3)
    else:
        torch.testing.assert_close(first[0, 0], reasoner.thought.fillers)


def padded_answer(batch: PairedBatch) -> PairedBatch:
    """The batch with a shorter answer in its second row."""
    mask, targets = batch.answer_mask.clone(), batch.target_mask.clone()
    mask[1, -1] = targets[1, -1] = False
    answer = batch.answer.clone()
    answer[1, -1] = 0
    return replace(batch, answer=answer, answer_mask=mask, target_mask=targets)


@pytest.mark.parametrize("kind", [*KINDS, "gemma2"])
@pytest.mark.parametrize("reasoning", ["latent", "parallel", "pause", "none"])
def test_reading_all_together_is_reading_step_by_step(kind, reasoning):
    reasoner = tiny_reasoner(kind, reasoning)
    batch, layers = padded_answer(pairs(reasoner)), LayerSelection(embedding_layer=True)
    read = read_pair(reasoner, batch, layers, layers)
    state, trajectory = reasoner.think(batch.question, batch.question_mask, record=layers)
    for column in range(batch.answer.shape[1]):
        position = state.position
        with record_hidden(reasoner.lm, layers.resolve(2), True, lambda hidden: hidden) as records:
            state = reasoner.extend(state, reasoner.embed(batch.answer[:, [column]]))
        real = batch.answer_mask[:, column].bool()
        assert torch.equal(state.position, position + 1)
        if column == batch.anchor:
            torch.testing.assert_close(read.anchor, stack_layers(records)[:, :, 0], atol=1e-5, rtol=1e-5)
        if batch.anchor <= column < batch.answer.shape[1] - 1:
            predicting = read.hidden[:, column - batch.anchor]
            torch.testing.assert_close(predicting[real], state.hidden[real, 0], atol=1e-5, rtol=1e-5)
    if reasoning == "none":
        assert read.trajectory is None
    else:
        torch.testing.assert_close(read.trajectory, trajectory, atol=1e-5, rtol=1e-5)
    if reasoning in ("latent", "parallel"):
        assert (
            read.cache.get_seq_length() == state.cache.get_seq_length() - 1
        )  # nobody asks what follows the last token
    else:  # in one pass
        assert read.cache is None


@pytest.mark.parametrize("reasoning", ["latent", "parallel"])
def test_what_follows_a_latent_is_read_in_its_own_precision(reasoning, monkeypatch):
    reasoner = tiny_reasoner(reasoning=reasoning)
    kinds, plain = [], reasoner.run
    monkeypatch.setattr(reasoner, "run", lambda *args: kinds.append(args[0].dtype) or plain(*args))
    with torch.autocast("cpu", torch.bfloat16):
        read_pair(reasoner, pairs(reasoner))
    assert kinds[-1] == reasoner.embed(torch.tensor([[3]])).dtype == torch.float32


def test_latents_depend_on_the_question_and_pause_fillers_do_not():
    latent, pause = tiny_reasoner(reasoning="latent"), tiny_reasoner(reasoning="pause")
    selection = LayerSelection([1], embedding_layer=True)
    _, z = latent.think(*encode(latent), record=selection)
    assert not torch.allclose(z[0, 0], z[1, 0], atol=1e-3)
    _, fillers = pause.think(*encode(pause), record=selection)
    torch.testing.assert_close(fillers[0, 0], fillers[1, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projector", [True, False])
def test_parallel_latents_are_the_recurrent_ones_after_as_many_passes(kind, projector):
    recurrent = tiny_reasoner(kind, latents=3, projector=projector)
    question, mask = encode(recurrent)
    end, wanted = recurrent.think(question, mask, record=LayerSelection())
    for passes in (1, 2, 3, 5):
        parallel = tiny_reasoner(kind, "parallel", latents=3, projector=projector, passes=passes)
        parallel.thought.projector.load_state_dict(recurrent.thought.projector.state_dict())
        state, found = parallel.think(question, mask, record=LayerSelection())
        torch.testing.assert_close(found[:, :, :passes], wanted[:, :, :passes], atol=1e-5, rtol=1e-5)
        if passes < 3:
            assert not torch.allclose(found[:, :, passes:], wanted[:, :, passes:], atol=1e-3)
        else:
            torch.testing.assert_close(state.hidden, end.hidden, atol=1e-5, rtol=1e-5)
        assert state.mask.shape == end.mask.shape
        assert state.cache.get_seq_length() == question.shape[1] + 3


def test_the_placeholder_learns_only_where_there_is_one():
    reasoner = tiny_reasoner(reasoning="parallel", latents=3)
    state, _ = reasoner.think(*encode(reasoner))
    state.hidden.sum().backward()
    assert reasoner.thought.placeholder.grad.abs().sum() > 0
    assert not tiny_reasoner(reasoning="parallel", latents=1).thought.placeholder.requires_grad
    assert tiny_reasoner(reasoning="parallel", latents=1).think(*encode(reasoner))[0].hidden.isfinite().all()


def test_a_fork_grows_apart():
    reasoner = tiny_reasoner()
    state = reasoner.read(*(reasoner.embed(encode(reasoner)[0]), encode(reasoner)[1]))
    length, keys = state.cache.get_seq_length(), state.cache.layers[0].keys
    fork = reasoner.extend(state.fork(), state.hidden)
    assert fork.cache.get_seq_length() == length + 1
    assert state.cache.get_seq_length() == length
    assert state.cache.layers[0].keys is keys


def test_a_raw_hidden_state_can_be_the_latent():
    reasoner = tiny_reasoner(projector=False)
    assert not list(reasoner.thought.parameters())
    question, mask = encode(reasoner)
    _, first = reasoner.think(question, mask, record=LayerSelection([2], embedding_layer=True))
    torch.testing.assert_close(first[:, 0, 1:], first[:, 1, :-1])


def test_k_is_selectable_at_run_time():
    reasoner = tiny_reasoner(latents=3)
    question, mask = encode(reasoner)
    for k in (0, 1, 5):
        state, trajectory = reasoner.think(question, mask, k, LayerSelection())
        assert state.mask.shape[1] == question.shape[1] + k
        assert (trajectory is None) == (k == 0)
        assert reasoner.generate(question, mask, k, max_new_tokens=2).latents == k
    assert reasoner.generate(question, mask, max_new_tokens=2).latents == 3
    prefix = tiny_reasoner(reasoning="pause", latents=4)
    _, two = prefix.think(*encode(prefix), 2, LayerSelection())
    _, four = prefix.think(*encode(prefix), 4, LayerSelection())
    torch.testing.assert_close(two, four[:, :, :2])


def test_zero_latents_is_bot_eot_alone():
    reasoner = tiny_reasoner(latents=0)
    question, mask = encode(reasoner)
    generation = reasoner.generate(question, mask, max_new_tokens=4)
    suffix = torch.tensor(reasoner.encoder.suffix).expand(3, -1)
    state = reasoner.read(
        reasoner.embed(torch.cat([question, suffix], 1)), torch.cat([mask, torch.ones_like(suffix).bool()], 1)
    )
    assert generation.tokens[:, 0].tolist() == _allowed(reasoner, state.hidden).tolist()
    assert generation.passes.max() <= 4
    # a projector that no step uses would stall data parallelism
    assert not any(parameter.requires_grad for parameter in reasoner.thought.parameters())


def _allowed(reasoner, hidden):
    logits = reasoner.logits(hidden[:, -1])
    logits[:, reasoner.encoder.bot + reasoner.encoder.eot] = float("-inf")
    return logits.argmax(-1)


@pytest.mark.parametrize(
    ("reasoning", "latents", "message"),
    [
        ("latent", -1, "latents is -1: give 0 or more"),
        ("pause", -1, "latents is -1: give 0 or more"),
        ("pause", 4, r"latents is 4, but this reasoner \(pause\) can take at most 3"),
        ("none", 2, r"latents is 2, but this reasoner \(none\) can take at most 0"),
        ("words", 1, r"can take at most 0"),
    ],
)
def test_wrong_number_of_latents_is_refused(reasoning, latents, message):
    reasoner = tiny_reasoner(reasoning=reasoning)
    question, mask = encode(reasoner)
    with pytest.raises(LoriError, match=message):
        reasoner.think(question, mask, latents)
    with pytest.raises(LoriError, match=message):
        reasoner.generate(question, mask, latents)
    with pytest.raises(LoriError, match=message):
        reasoner.answer(["Bob has 7 coins ."], latents)


def test_construction_refuses_negative_latents_and_unknown_reasoning():
    with pytest.raises(LoriError, match="latents is -2"):
        tiny_reasoner(latents=-2)
    with pytest.raises(LoriError, match="reasoning is 'dream': give one of latent, parallel, pause, none, words"):
        LatentReasoner(tiny_lm(), load_tokenizer("synthetic", True), Template(), ThoughtSettings("dream"))
    with pytest.raises(LoriError, match="the tokenizer lacks <bot> and <eot>"):
        LatentReasoner(tiny_lm(), load_tokenizer("synthetic", False), Template(), ThoughtSettings("latent"))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_projector_starts_at_the_scale_of_the_embeddings(kind):
    reasoner = tiny_reasoner(kind)
    question, mask = encode(reasoner)
    embedded = reasoner.lm.get_input_embeddings()(torch.arange(len(reasoner.tokenizer)))
    expected = embedded.pow(2).mean().sqrt()
    torch.testing.assert_close(reasoner.thought.projector.norm.weight.mean(), expected, atol=1e-4, rtol=1e-3)
    z = reasoner.thought.projector(reasoner.read(reasoner.embed(question), mask).hidden)
    assert 0.8 < float(z.detach().pow(2).mean().sqrt() / expected.detach()) < 1.2
    unit = LatentReasoner(
        reasoner.lm, reasoner.tokenizer, Template(), ThoughtSettings("latent", 3, latent_scale="unit")
    )
    assert unit.thought.projector.norm.weight.eq(1).all()


def test_the_projector_is_linear_gelu_linear_layernorm():
    projector, hidden = Projector(8, embedding_rms=0.5), torch.randn(3, 1, 8)
    first, _, second = projector.layers
    torch.nn.init.normal_(projector.norm.bias)
    inner = hidden @ first.weight.T + first.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    outer = inner @ second.weight.T + second.bias
    centred = outer - outer.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(projector(hidden), scaled * 0.5 + projector.norm.bias)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_through_the_latents_are_those_of_finite_differences(kind, checkpointed):
    reasoner = tiny_reasoner(kind).double().train()
    if checkpointed:
        checkpoint_layers(reasoner.lm)
    question, mask = encode(reasoner)
    parameters = list(reasoner.parameters())

    def loss():
        return reasoner.think(question, mask)[0].hidden.pow(3).mean()

    torch.manual_seed(0)
    direction = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None)
    step, values = 1e-5, []  # LLaMA norms in fp32 whatever the type
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, d in zip(parameters, direction, strict=True):
                parameter += sign * step * d
            values.append(loss())
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), expected, atol=1e-6, rtol=1e-3)
