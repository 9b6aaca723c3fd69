"""Layer selection, the frozen teacher, and that hooks keep nothing else."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from tiny_models import pairs, read_pair, tiny_lm, tiny_reasoner
from torch import nn

from lori_pl.errors import LoriError
from lori_pl.models.hidden import LayerSelection, decoder_layers, record_hidden, stack_layers, take
from lori_pl.models.teacher import FrozenTeacher, explicit_signals

KINDS = ("llama", "gpt2", "qwen2", "gemma2")


@pytest.fixture
def batch():
    return pairs(tiny_reasoner(reasoning="words")).explicit


@pytest.mark.parametrize(
    ("selection", "resolved"),
    [
        (LayerSelection(), [1, 2, 3, 4]),
        (LayerSelection(embedding_layer=True), [0, 1, 2, 3, 4]),
        (LayerSelection([4, 1]), [1, 4]),
        (LayerSelection([-1]), [4]),
        (LayerSelection([-4, 3], embedding_layer=True), [0, 1, 3]),
    ],
)
def test_layers_are_resolved(selection, resolved):
    assert selection.resolve(4) == resolved


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([5], r"layers.layers \[5\]: \[5\] are out of range; the model has layers 1 to 4 \(or -1 to -4\)"),
        ([1, -5], r"\[-5\] are out of range"),
        ([0, 1], r"\[0\] are out of range; .*layers.embedding_layer adds layer 0"),
        ([2, -3], r"\[2\] are named twice"),
        ([], "none is named"),
        ("last", "layers.layers 'last': give 'all' or a list of layer numbers"),
    ],
)
def test_wrong_layers_are_one_line(layers, message):
    with pytest.raises(LoriError, match=message) as error:
        LayerSelection(layers).resolve(4)
    assert "\n" not in str(error.value)


def test_a_model_without_a_stack_of_layers_is_refused():
    lm = tiny_lm()
    lm.config.num_hidden_layers = 7
    with pytest.raises(LoriError, match="LlamaForCausalLM has no list of 7 decoder layers"):
        decoder_layers(lm)


def hidden_states(lm, batch):
    """What transformers returns: embeddings, then each layer; the last after the final norm."""
    mask = batch.mask.long()
    with torch.no_grad():
        return lm(
            input_ids=batch.ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            output_hidden_states=True,
        ).hidden_states


def before_final_norm(lm, batch):
    caught = []
    handle = decoder_layers(lm)[-1].register_forward_hook(
        lambda _module, _args, output: caught.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    hidden_states(lm, batch)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "selection",
    [
        LayerSelection(),
        LayerSelection([1]),
        LayerSelection([-1]),
        LayerSelection([-2], embedding_layer=True),
        LayerSelection(final_norm=False, embedding_layer=True),
    ],
)
def test_trajectory_and_anchor_are_slices_of_the_hidden_states(kind, selection, batch):
    lm = tiny_lm(kind, markers=False)
    states = list(hidden_states(lm, batch))
    if not selection.final_norm:
        states[-1] = before_final_norm(lm, batch)
        assert not torch.allclose(states[-1], hidden_states(lm, batch)[-1], atol=1e-2)
    trajectory, anchor = FrozenTeacher(lm, selection)(batch)
    layers = selection.resolve(2)
    assert trajectory.shape == (3, len(layers), batch.rationale_index.shape[1], 32)
    assert anchor.shape == (3, len(layers), 32)
    for row in range(3):
        columns = batch.rationale_index[row][batch.rationale_mask[row]]
        for place, layer in enumerate(layers):
            got = trajectory[row, place][batch.rationale_mask[row]]
            torch.testing.assert_close(got, states[layer][row, columns])
            torch.testing.assert_close(anchor[row, place], states[layer][row, batch.anchor[row]])


def test_the_teacher_never_trains_and_has_no_gradients(batch):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = FrozenTeacher(tiny_lm("gpt2", markers=False, resid_pdrop=0.5).train(), LayerSelection())
            self.other = nn.Linear(2, 2)

    module = Module()
    assert not module.teacher.training
    for call in (module.train, module.teacher.train, lambda: module.teacher.train(True), module.eval, module.train):
        call()
        assert not any(part.training for part in module.teacher.modules())
    assert module.other.training
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    trajectory, anchor = module.teacher(batch)
    assert not trajectory.requires_grad
    assert not anchor.requires_grad
    again, _ = module.teacher(batch)
    assert torch.equal(trajectory, again)  # no dropout


def test_the_students_own_signals_carry_gradients(batch):
    lm = tiny_lm(markers=False)
    trajectory, anchor = explicit_signals(lm, batch, LayerSelection())
    (trajectory.sum() + anchor.sum()).backward()
    assert lm.model.layers[0].mlp.up_proj.weight.grad.norm() > 0


def test_padding_and_other_rows_change_no_trajectory(batch):
    teacher = FrozenTeacher(tiny_lm(markers=False), LayerSelection())
    trajectory, anchor = teacher(batch)
    other = batch.ids.clone()
    other[~batch.mask] = 17
    other[2] = 9
    import dataclasses

    changed, changed_anchor = teacher(dataclasses.replace(batch, ids=other))
    torch.testing.assert_close(changed[:2], trajectory[:2])
    torch.testing.assert_close(changed_anchor[:2], anchor[:2])


def test_the_teacher_reads_no_further_than_the_last_anchor(batch):
    lm = tiny_lm(markers=False)
    widths = []
    decoder_layers(lm)[0].register_forward_pre_hook(
        lambda _module, args, keywords: widths.append((args[0] if args else keywords["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    trajectory, anchor = FrozenTeacher(lm, LayerSelection())(batch)
    assert widths == [int(batch.anchor.max()) + 1]
    assert widths[0] < batch.ids.shape[1]
    whole = replace(batch, anchored=batch.ids.shape[1])
    further, at_anchor = FrozenTeacher(lm, LayerSelection())(whole)
    torch.testing.assert_close(trajectory, further)
    torch.testing.assert_close(anchor, at_anchor)


def test_hooks_keep_only_the_chosen_tokens(batch):
    lm = tiny_lm(markers=False)
    gc.collect()
    gc.freeze()
    try:
        trajectory, anchor = FrozenTeacher(lm, LayerSelection())(batch)
        gc.collect()
        alive = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.dtype == torch.float32]
    finally:
        gc.unfreeze()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    for result in (trajectory, anchor):
        storages.pop(result.untyped_storage().data_ptr(), None)
    whole = batch.ids.numel() * 32 * 4
    assert all(size < whole for size in storages.values())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_layers(lm))
    assert not lm.base_model._forward_hooks


def test_hooks_go_when_the_pass_fails():
    lm = tiny_lm(markers=False)
    with pytest.raises(ZeroDivisionError), record_hidden(lm, [0, 1, 2], True, lambda hidden: hidden / 0):
        raise ZeroDivisionError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.modules())


def test_the_anchor_of_the_student_is_a_slice_of_its_hidden_states():
    reasoner = tiny_reasoner()
    data = pairs(reasoner)
    with torch.no_grad(), record_hidden(reasoner.lm, [1, 2], True, lambda hidden: hidden) as whole:
        anchor = read_pair(reasoner, data, at_anchor=LayerSelection()).anchor
    for layer in (1, 2):  # in the last pass, behind the last latent
        torch.testing.assert_close(anchor[:, layer - 1], whole[layer][-1][:, 1 + data.anchor])


def test_take_and_stack():
    hidden = torch.arange(24.0).view(2, 4, 3)
    taken = take(hidden, torch.tensor([[0, 3], [2, 2]]))
    assert taken.tolist() == [[[0, 1, 2], [9, 10, 11]], [[18, 19, 20], [18, 19, 20]]]
    stacked = stack_layers({2: [hidden, hidden[:, :1]], 1: [-hidden, -hidden[:, :1]]})
    assert stacked.shape == (2, 2, 5, 3)
    assert torch.equal(stacked[:, 1, :4], hidden)
    assert torch.equal(stacked[:, 0, 4:], -hidden[:, :1])


def test_an_empty_rationale_gives_an_empty_trajectory():
    from lori_pl.data.pairing import EncodedProblems, explicit_batch
    from lori_pl.data.problem import Problem

    reasoner = tiny_reasoner(reasoning="words")
    problems = [Problem("a", "Bob has 7 coins .", [], "7"), Problem("b", "Ann has 2 pens .", ["<<2+0=2>>"], "2")]
    data = EncodedProblems(problems, reasoner.encoder)
    teacher = FrozenTeacher(reasoner.lm, LayerSelection())
    trajectory, anchor = teacher(explicit_batch([0], data))
    assert trajectory.shape == (1, 2, 0, 32)
    both = explicit_batch([0, 1], data)
    torch.testing.assert_close(teacher(both)[1][:1], anchor, atol=1e-5, rtol=1e-5)
    assert not both.rationale_mask[0].any()
