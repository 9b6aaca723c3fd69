"""Pairing: masks, anchors, targets and rationale indices of both sequences, by hand and by property."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device

from lori_pl.data.moving import pins
from lori_pl.data.pairing import EncodedProblems, Ragged, explicit_batch, pad, pad_questions, paired_batch, step_batch
from lori_pl.data.problem import Problem
from lori_pl.data.synthetic import synthetic_problems
from lori_pl.data.template import Encoder, Template
from lori_pl.data.tokenizer import load_tokenizer

MARKED, PLAIN = load_tokenizer("synthetic", True), load_tokenizer("synthetic", False)
PROBLEMS = [
    Problem("a", "Bob has 7 coins .", ["<<7+1=8>>", "<<8*2=16>>"], "16"),
    Problem("b", "Ann has 2 .", ["<<2-1=1>>"], "1"),
    Problem("c", "How many ?", [], "3"),
]
STEPS = np.array([2, 1, 0])


def encoded(tokens="all", tokenizer=MARKED, markers=True, problems=PROBLEMS, template=None):
    return EncodedProblems(problems, Encoder(tokenizer, template or Template(), markers), tokens)


def batch_of(rows=(0, 1, 2), tokens="all"):
    return paired_batch(rows, STEPS, encoded(tokens), None)


def text(ids, tokenizer=MARKED):
    return " ".join(tokenizer.convert_ids_to_tokens(torch.as_tensor(ids).tolist()))


def test_ragged():
    ragged = Ragged([[1, 2], [], [3]])
    assert len(ragged) == 3
    assert [ragged[i].tolist() for i in range(3)] == [[1, 2], [], [3]]
    assert ragged.lengths.tolist() == [2, 0, 1]
    assert len(Ragged([])) == 0


def test_pad():
    ids, mask = pad([[1, 2, 3], [], [4]], 9, left=False)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    ids, mask = pad([[1, 2, 3], [4]], 9, left=True)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]


def test_the_explicit_sequence_by_hand():
    batch = batch_of().explicit
    rows = [text(batch.ids[i][batch.mask[i]]) for i in range(3)]
    assert rows == [
        "Bob has 7 coins . << 7 + 1 = 8 >> << 8 * 2 = 16 >> #### 16 <eos>",
        "Ann has 2 . << 2 - 1 = 1 >> #### 1 <eos>",
        "How many ? #### 3 <eos>",
    ]
    assert batch.mask.sum(1).tolist() == [22, 14, 6]
    # padding stands on the right, and only there
    assert batch.mask.tolist() == [[i < n for i in range(22)] for n in (22, 14, 6)]
    assert (batch.ids[~batch.mask] == MARKED.pad_token_id).all()
    assert batch.anchor.tolist() == [5 + 14, 4 + 7, 3]
    assert text(batch.ids[torch.arange(3), batch.anchor]) == "#### #### ####"
    assert text(batch.ids[torch.arange(3), batch.anchor + 1]) == "16 1 3"


def test_what_is_predicted_and_what_it_weighs():
    batch = batch_of().explicit
    width = batch.ids.shape[1]
    places = [[int(i) % width for i in batch.target_index if int(i) // width == row] for row in range(3)]
    # rationale, answer prompt, answer, end: all but the question
    assert places == [list(range(5, 22)), list(range(4, 14)), list(range(3, 6))]
    weights = batch.target_weight
    assert weights.shape == batch.target_index.shape
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    for row, count in enumerate((17, 10, 3)):
        own = weights[batch.target_index // width == row]
        torch.testing.assert_close(own, torch.full((count,), 1 / (3 * count)))
    assert (batch.target_index > 0).all()


def test_a_problem_without_steps_has_no_row_among_those_of_steps():
    def pieces(*rows):
        data = EncodedProblems(PROBLEMS, Encoder(MARKED, Template(), True), "all", steps=True)
        return paired_batch(rows, STEPS, data, None, pieces=True).pieces

    encoder = Encoder(MARKED, Template(), True)
    steps = step_batch(pieces(0, 1, 2), encoder, most=1, takes_rest=False)
    rows = [text(row[mask]) for row, mask in zip(steps.ids, steps.mask, strict=True)]
    assert rows == ["<< 7 + 1 = 8 >> <eos>", "<< 2 - 1 = 1 >> <eos>"]
    assert (steps.row.tolist(), steps.number.tolist()) == ([0, 1], [0, 0])
    none = step_batch(pieces(2), encoder, most=1)
    assert (len(none.row), none.row.dtype) == (0, torch.long)


def test_the_student_sequence_by_hand():
    batch = batch_of()
    assert [text(batch.question[i][batch.question_mask[i]]) for i in range(3)] == [
        "Bob has 7 coins . <bot>",
        "Ann has 2 . <bot>",
        "How many ? <bot>",
    ]
    # padding stands on the left, so that all latents follow in one column
    assert batch.question_mask.tolist() == [[i >= 6 - n for i in range(6)] for n in (6, 5, 4)]
    assert [text(batch.answer[i][batch.answer_mask[i]]) for i in range(3)] == [
        "<eot> #### 16 <eos>",
        "<eot> #### 1 <eos>",
        "<eot> #### 3 <eos>",
    ]
    assert batch.anchor == 1
    assert batch.target_mask.tolist() == [[False, False, True, True]] * 3
    assert (batch.index.tolist(), batch.steps.tolist()) == ([0, 1, 2], [2, 1, 0])
    assert batch.teacher is batch.explicit


def test_no_student_without_markers_has_any():
    batch = paired_batch([0, 1], STEPS, encoded(tokenizer=PLAIN, markers=False), None)
    assert text(batch.question[0], PLAIN) == "Bob has 7 coins ."
    assert text(batch.answer[0], PLAIN) == "#### 16 <eos>"
    assert batch.anchor == 0
    assert batch.target_mask.tolist() == [[False, True, True]] * 2


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("all", ["<< 7 + 1 = 8 >> << 8 * 2 = 16 >>", "<< 2 - 1 = 1 >>", ""]),
        ("no_delimiters", ["7 1 8 8 2 16", "2 1 1", ""]),
        ("step_results", ["8 16", "1", ""]),
        ("before_results", ["= =", "=", ""]),
    ],
)
def test_rationale_indices_point_at_the_rationale(tokens, expected):
    batch = batch_of(tokens=tokens).explicit
    for row in range(3):
        columns = batch.rationale_index[row][batch.rationale_mask[row]]
        assert text(batch.ids[row, columns]) == expected[row]
    # what is no rationale points at column 0
    assert (batch.rationale_index[~batch.rationale_mask] == 0).all()
    counts = [len(row.split()) for row in expected]
    assert batch.rationale_mask.tolist() == [[i < n for i in range(max(counts))] for n in counts]


@pytest.mark.parametrize("tokens", ["all", "no_delimiters", "step_results", "before_results"])
def test_an_empty_rationale_alone(tokens):
    batch = batch_of((2,), tokens)
    assert batch.explicit.rationale_index.shape == (1, 0)
    assert batch.explicit.rationale_mask.shape == (1, 0)
    assert text(batch.explicit.ids[0]) == "How many ? #### 3 <eos>"
    assert batch.explicit.anchor.tolist() == [3]
    torch.testing.assert_close(batch.explicit.target_weight.sum(), torch.tensor(1.0))


def test_two_tokenizers_see_the_same_problem():
    tokenizer = byte_tokenizer(pad=True)
    teacher = EncodedProblems(PROBLEMS, Encoder(tokenizer, Template(), False), "step_results")
    batch = paired_batch([0, 1], STEPS, encoded("step_results"), teacher)
    assert batch.teacher is not batch.explicit
    got = [tokenizer.decode(batch.teacher.ids[i][batch.teacher.mask[i]]) for i in range(2)]
    assert got == [
        "<s>Bob has 7 coins .<<7+1=8>> <<8*2=16>>####16</s>",
        "<s>Ann has 2 .<<2-1=1>>####1</s>",
    ]
    for i, answer in enumerate(("16", "1")):
        anchor = int(batch.teacher.anchor[i])
        assert tokenizer.decode(batch.teacher.ids[i, : anchor + 1]).endswith("####")
        assert (
            tokenizer.decode(batch.teacher.ids[i, anchor + 1 :][batch.teacher.mask[i, anchor + 1 :]]) == f"{answer}</s>"
        )
    results = [tokenizer.decode(batch.teacher.ids[0, c]) for c in batch.teacher.rationale_index[0]]
    assert "8" in results[0]
    assert "16" in "".join(results[1:])
    # the start token is no target
    assert 0 not in batch.teacher.ids.flatten()[batch.teacher.target_index].tolist()
    # the student's own explicit sequence stays in its own tokenizer
    assert text(batch.explicit.ids[1][batch.explicit.mask[1]]) == "Ann has 2 . << 2 - 1 = 1 >> #### 1 <eos>"


def test_a_chat_template_goes_before_the_thought(tmp_path):
    byte_tokenizer(chat=True).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), True)
    data = encoded(tokenizer=tokenizer, template=Template(chat=True, answer_prompt="The answer is: "))
    batch = paired_batch([0, 1], STEPS, data, None)
    assert tokenizer.decode(batch.question[1][batch.question_mask[1]]) == "<s>[user]Ann has 2 .</s>[assistant]<bot>"
    assert tokenizer.decode(batch.answer[0][batch.answer_mask[0]]) == "<eot>The answer is: 16</s>"
    assert tokenizer.decode(batch.answer[0, : batch.anchor + 1]) == "<eot>The answer is: "
    assert batch.anchor == len(data.encoder.prompt)
    whole = tokenizer.decode(batch.explicit.ids[1][batch.explicit.mask[1]])
    assert whole == "<s>[user]Ann has 2 .</s>[assistant]<<2-1=1>>The answer is: 1</s>"
    # here the end token pads: the masks alone tell them apart
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    ends = (batch.answer == tokenizer.eos_token_id) & batch.target_mask
    assert ends.sum(1).tolist() == [1, 1]


def test_lengths_are_those_of_the_explicit_sequences():
    data = encoded()
    assert data.lengths().tolist() == [22, 14, 6]
    batch = explicit_batch([0, 1, 2], data)
    assert batch.mask.sum(1).tolist() == data.lengths().tolist()


def test_questions_pad_on_either_side():
    made = encoded().encoder
    questions = made.questions([problem.question for problem in PROBLEMS])
    left, left_mask = pad_questions(questions, made)
    right, right_mask = pad_questions(questions, made, left=False)
    for row in range(3):
        assert left[row][left_mask[row]].tolist() == right[row][right_mask[row]].tolist()
    assert left_mask[:, -1].all()
    assert right_mask[:, 0].all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    tokens=st.sampled_from(["all", "no_delimiters", "step_results", "before_results"]),
)
def test_a_batch_is_its_rows(seed, rows, tokens):
    problems = synthetic_problems(8, seed, min_steps=1, max_steps=6)
    data = encoded(tokens, problems=problems)
    steps = np.array([len(problem.steps) for problem in problems])
    batch = paired_batch(rows, steps, data, None)
    assert batch.index.tolist() == rows
    assert batch.steps.tolist() == steps[rows].tolist()
    torch.testing.assert_close(batch.explicit.target_weight.sum(), torch.tensor(1.0))
    width = batch.explicit.ids.shape[1]
    for place, row in enumerate(rows):
        alone = paired_batch([row], steps, data, None)
        for name in ("question", "answer"):
            whole, mask = getattr(batch, name)[place], getattr(batch, f"{name}_mask")[place]
            assert whole[mask].tolist() == getattr(alone, name)[0].tolist()
        explicit, single = batch.explicit, alone.explicit
        assert explicit.ids[place][explicit.mask[place]].tolist() == single.ids[0].tolist()
        assert explicit.anchor[place] == single.anchor[0]
        own = explicit.rationale_index[place][explicit.rationale_mask[place]]
        assert own.tolist() == single.rationale_index[0].tolist()
        # padding enters nothing: neither targets nor rationale
        targets = explicit.target_index[explicit.target_index // width == place] % width
        assert targets.tolist() == single.target_index.tolist()
        assert explicit.mask[place, targets].all()
        assert explicit.mask[place, own].all()
        # target, rationale and anchor agree: the answer's first token comes next
        answer = problems[row].answer
        assert text(explicit.ids[place, int(explicit.anchor[place]) + 1][None]) == answer
        assert text(batch.answer[place, batch.anchor + 1][None]) == answer


def test_a_batch_moves_as_a_whole_and_what_stands_twice_moves_once():
    problems = EncodedProblems(PROBLEMS, Encoder(MARKED, Template(), True), steps=True)
    batch = paired_batch([0, 1], STEPS, problems, None, pieces=True)
    batch.statistics = {"anchor/states": torch.ones(2, 3)}
    seen = []
    moved = batch.each(lambda tensor: seen.append(tensor) or tensor.clone())
    assert len(seen) == len({id(tensor) for tensor in seen})
    assert moved.teacher is moved.explicit is not batch.explicit
    assert moved.pieces is batch.pieces
    assert (moved.anchor, moved.explicit.written) == (batch.anchor, batch.explicit.written)
    for name in ("index", "question", "answer_mask"):
        assert getattr(moved, name) is not getattr(batch, name)
        assert torch.equal(getattr(moved, name), getattr(batch, name))
    # as Lightning does it
    there = move_data_to_device(batch, torch.device("meta"))
    assert there.teacher is there.explicit
    assert there.question.is_meta
    assert there.explicit.anchor.is_meta
    assert there.statistics["anchor/states"].is_meta


def test_only_a_gpu_pins():
    assert not pins(None)
    for kind, pinned in (("cpu", False), ("cuda", True), ("mps", False)):
        trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(kind)))
        assert pins(trainer) is pinned
