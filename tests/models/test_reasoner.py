"""The student alone: batched equals alone, padding side, run-time K, text in and text out."""

from __future__ import annotations

import pytest
import torch
from tiny_models import QUESTIONS, encode, pairs, read_pair, tiny_reasoner

from lori_pl import Answer
from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.methods.losses import answer_cross_entropy, explicit_cross_entropy
from lori_pl.models.backbone import LoRA
from lori_pl.models.hidden import LayerSelection
from lori_pl.models.thought import MARKED

KINDS = ("llama", "gpt2", "qwen2")
REASONINGS = ("latent", "parallel", "pause", "none", "words")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reasoning", REASONINGS)
def test_batched_equals_alone_on_either_padding_side(kind, reasoning):
    reasoner = tiny_reasoner(kind, reasoning)
    alone = [reasoner.think(*encode(reasoner, (question,)))[0] for question in QUESTIONS]
    single = [reasoner.generate(*encode(reasoner, (question,)), max_new_tokens=6) for question in QUESTIONS]
    for left in (True, False):
        question, mask = encode(reasoner, left=left)
        assert not mask.all()
        state, _ = reasoner.think(question, mask)
        expected = torch.cat([one.hidden for one in alone])
        torch.testing.assert_close(state.hidden, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            reasoner.logits(state.hidden), reasoner.logits(expected), atol=1e-5, rtol=1e-5, msg="logits"
        )
        assert state.position.tolist() == [int(one.position) for one in alone]
        batched = reasoner.generate(question, mask, max_new_tokens=6)
        for row, one in enumerate(single):
            assert batched.tokens[row][batched.mask[row]].tolist() == one.tokens[0][one.mask[0]].tolist()
            assert batched.passes[row] == one.passes[0]


def test_the_task_loss_of_each_problem_is_its_own():
    reasoner = tiny_reasoner("llama")

    def losses(batch):
        return answer_cross_entropy(reasoner, read_pair(reasoner, batch).hidden, batch)

    alone = torch.cat([losses(_row(pairs(reasoner), row)) for row in range(3)])
    torch.testing.assert_close(losses(pairs(reasoner)), alone, atol=1e-5, rtol=1e-5)
    assert alone.unique().numel() == 3


def test_the_explicit_loss_of_each_problem_is_the_mean_over_its_rationale_and_answer():
    reasoner = tiny_reasoner("llama", "words")
    explicit = pairs(reasoner).explicit
    logits = reasoner.lm(input_ids=explicit.ids, attention_mask=explicit.mask.long()).logits.log_softmax(-1)
    expected = []
    for row in range(3):
        columns = [
            i % explicit.ids.shape[1] for i in explicit.target_index.tolist() if i // explicit.ids.shape[1] == row
        ]
        tokens = [-logits[row, column - 1, explicit.ids[row, column]] for column in columns]
        expected.append(torch.stack(tokens).mean())
    torch.testing.assert_close(explicit_cross_entropy(reasoner, explicit), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forcing_and_its_gradients_do_not_depend_on_the_batch(kind):
    reasoner = tiny_reasoner(kind).train()

    def loss_and_gradients(batch):
        read = read_pair(reasoner, batch, at_anchor=LayerSelection())
        loss = answer_cross_entropy(reasoner, read.hidden, batch).mean()
        gradients = torch.autograd.grad(loss, list(reasoner.parameters()), allow_unused=True)
        return loss, read.anchor, gradients

    whole_loss, whole_anchor, whole = loss_and_gradients(pairs(reasoner))
    parts = [loss_and_gradients(_row(pairs(reasoner), row)) for row in range(3)]
    torch.testing.assert_close(whole_loss, torch.stack([loss for loss, _, _ in parts]).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole_anchor, torch.cat([anchor for _, anchor, _ in parts]), atol=1e-5, rtol=1e-5)
    for i, gradient in enumerate(whole):
        if gradient is not None:
            mean = torch.stack([gradients[i] for _, _, gradients in parts]).mean(0)
            torch.testing.assert_close(gradient, mean, atol=1e-4, rtol=1e-3)


def _row(batch, row):
    import dataclasses

    keep = batch.question_mask[row]
    length = int(batch.answer_mask[row].sum())
    return dataclasses.replace(
        batch,
        question=batch.question[row : row + 1, keep],
        question_mask=batch.question_mask[row : row + 1, keep],
        answer=batch.answer[row : row + 1, :length],
        answer_mask=batch.answer_mask[row : row + 1, :length],
        target_mask=batch.target_mask[row : row + 1, :length],
    )


@pytest.mark.parametrize("reasoning", REASONINGS)
def test_answer_takes_text_and_gives_text(reasoning):
    reasoner = tiny_reasoner(reasoning=reasoning).train()
    answers = reasoner.answer(list(QUESTIONS), max_new_tokens=5, batch_size=2)
    assert reasoner.training
    assert [type(answer) for answer in answers] == [Answer] * 3
    assert {answer.latents for answer in answers} == {3 if reasoning in MARKED else 0}
    alone = [reasoner.answer([question], max_new_tokens=5)[0] for question in QUESTIONS]
    assert answers == alone
    generation = reasoner.eval().generate(*encode(reasoner), max_new_tokens=5)
    assert [answer.passes for answer in answers] == generation.passes.tolist()
    assert reasoner.answer([]) == []


def test_answer_runs_in_eval_mode_and_restores_the_mode_of_each_part():
    reasoner = tiny_reasoner(attention_dropout=0.9).train()
    reasoner.thought.eval()
    first, second = (reasoner.answer(list(QUESTIONS), max_new_tokens=5) for _ in range(2))
    assert first == second
    assert reasoner.lm.training
    assert not reasoner.thought.training


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ("Bob has 7 coins .", "takes a list of questions, not one string"),
        (["fine", "  "], "question 1 is '  ': give a text"),
        ([None], "question 0 is None: give a text"),
    ],
)
def test_answer_refuses_what_is_no_question(questions, message):
    with pytest.raises(LoriError, match=message):
        tiny_reasoner().answer(questions)


def test_other_arguments_are_checked():
    reasoner = tiny_reasoner()
    for keywords, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ):
        with pytest.raises(LoriError, match=message):
            reasoner.answer(["Bob has 7 coins ."], **keywords)


@pytest.mark.parametrize("reasoning", ["latent", "words"])
def test_the_answer_is_read_behind_prompt_and_template(reasoning):
    template = Template(answer_prompt="####", answer="it is {answer} now")
    reasoner = tiny_reasoner(reasoning=reasoning, template=template)
    generated = "<<4+3=7>> #### it is 7 now" if reasoning == "words" else "it is 7 now"
    ids = torch.tensor([reasoner.tokenizer(generated, add_special_tokens=False)["input_ids"] + [reasoner.encoder.end]])
    from lori_pl.models.generation import Generation

    generation = Generation(ids, torch.ones_like(ids).bool(), torch.tensor([9]), 0, torch.tensor([True]))
    (answer,) = reasoner.texts(generation)
    assert answer.text == "7"
    assert answer.passes == 9


def test_a_projector_in_fp32_serves_a_backbone_in_half_precision():
    reasoner = tiny_reasoner()
    reasoner.lm.to(torch.bfloat16)
    generation = reasoner.generate(*encode(reasoner), max_new_tokens=3)
    assert generation.tokens.shape[0] == 3


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_markers_under_lora_stand_at_the_place_and_scale_of_their_rows(kind):
    lora = LoRA(rank=2, alpha=2, dropout=0.0)
    reasoner = tiny_reasoner(kind, lora=lora)
    table = reasoner.lm.get_input_embeddings()
    ids = torch.tensor([[*reasoner.encoder.bot, 5, *reasoner.encoder.eot]])
    with torch.no_grad():
        reasoner.markers.copy_(table.weight[ids[0, [0, 2]]])
    torch.testing.assert_close(reasoner.embed(ids), table(ids))


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        reasoner = tiny_reasoner()
    assert reasoner.device.type == "meta"
    assert all(parameter.device.type == "meta" for parameter in reasoner.parameters())
