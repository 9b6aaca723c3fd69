"""The embedded world: right arithmetic, disjoint splits, one token a number, the same for the same seed."""

from __future__ import annotations

import random
import re
from collections import Counter
from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lori_pl.data import load_problems, synthetic_problems
from lori_pl.data.problem import Problem
from lori_pl.data.synthetic import (
    DISTRACTORS,
    NAMES,
    OBJECTS,
    QUESTION,
    SENTENCES,
    START,
    World,
    apply,
    skeleton_split,
)
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError

STEP = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>")


def skeleton(problem):
    first, *_ = parsed = [STEP.fullmatch(step).groups() for step in problem.steps]
    return int(first[0]), tuple((operator, int(operand)) for _, operator, operand, _ in parsed)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), operators=st.sampled_from(["+-", "+-*", "+-*/", "-+/"]), limit=st.integers(9, 99))
def test_every_step_is_right_chained_and_in_range(seed, operators, limit):
    for problem in synthetic_problems(20, seed, operators=operators, limit=limit, min_steps=1, max_steps=7):
        value = None
        for step in problem.steps:
            left, operator, operand, result = STEP.fullmatch(step).groups()
            assert value in (None, left)
            exact = {"+": 1, "-": -1}.get(operator)
            worked = (
                Fraction(left) + exact * int(operand)
                if exact
                else Fraction(left) * int(operand)
                if operator == "*"
                else Fraction(left) / int(operand)
            )
            assert worked == int(result)
            assert 0 <= int(result) <= limit
            value = result
        assert problem.answer == value


def test_splits_are_disjoint_by_arithmetic_skeleton():
    splits = {
        name: {skeleton(p) for p in synthetic_problems(4000, 3, name, min_steps=2, max_steps=3)}
        for name in ("train", "validation", "test")
    }
    assert not splits["train"] & splits["test"]
    assert not splits["train"] & splits["validation"]
    assert not splits["validation"] & splits["test"]
    for name, skeletons in splits.items():
        assert {skeleton_split(one) for one in skeletons} == {name}
    # the rule is one of the skeleton alone: other seeds and words change nothing
    again = {skeleton(p) for p in synthetic_problems(4000, 9, "train", min_steps=2, max_steps=3)}
    assert not again & splits["test"]


def test_deterministic_by_seed_and_prefix_stable():
    assert synthetic_problems(5, 1) == synthetic_problems(50, 1)[:5]
    assert synthetic_problems(5, 1) != synthetic_problems(5, 2)
    assert len({problem.id for problem in synthetic_problems(50, 1)}) == 50


def plain_stream(seed, split, world):
    """The world as first written, without tables: what a seed gives is to stay as it is."""
    rng = random.Random(f"lori_pl synthetic {seed} {split}")
    count = 0
    while True:
        length = rng.randint(world.min_steps, world.max_steps)
        chain = []
        while len(chain) < length:
            value = start = rng.randint(2, min(world.largest_start or world.largest_operand, world.limit))
            chain = []
            for _ in range(length):
                choices = {op: found for op in world.allowed(chain) if (found := world.operands(value, op))}
                if not choices:
                    break
                operator = rng.choice(list(choices))
                chain.append((operator, rng.choice(choices[operator])))
                value = apply(value, *chain[-1])
        if split is not None and skeleton_split((start, tuple(chain))) != split:
            continue
        name, pronoun = rng.choice(NAMES)
        thing = rng.choice(OBJECTS)
        other = rng.choice([n for n, _ in NAMES if n != name])
        sentences, steps, value = [START.format(who=name, n=start, object=thing)], [], start
        for operator, operand in chain:
            sentences.append(rng.choice(SENTENCES[operator]).format(who=pronoun, n=operand))
            result = apply(value, operator, operand)
            steps.append(f"<<{value}{operator}{operand}={result}>>")
            value = result
        for _ in range(world.distractors):
            text = rng.choice(DISTRACTORS).format(other=other, n=rng.randint(2, 24), object=thing)
            sentences.insert(rng.randint(1, len(sentences)), text)
        sentences.append(QUESTION.format(object=thing, who=name))
        yield Problem(f"synthetic/{split or 'all'}/{seed}/{count}", " ".join(sentences), steps, str(value))
        count += 1


@pytest.mark.parametrize("split", [None, "train", "test"])
@pytest.mark.parametrize(
    "world",
    [
        {},
        {"operators": "+-*/", "min_steps": 3, "max_steps": 6, "limit": 30, "largest_operand": 9},
        {"operators": "++-", "min_steps": 1, "max_steps": 1, "limit": 5, "distractors": 2},
        {"operators": "+-*/", "alternate": True, "limit": 30, "largest_start": 20, "largest_factor": 3},
        {"operators": "/*-+", "limit": 99, "largest_operand": 99, "largest_factor": 99},
    ],
)
def test_the_problems_of_a_seed_stay_the_same(world, split):
    expected = list(islice(plain_stream(7, split, World(**world)), 60))
    assert synthetic_problems(60, 7, split, **world) == expected


def test_lengths_are_drawn_evenly():
    counts = Counter(len(problem.steps) for problem in synthetic_problems(6000, 0, min_steps=2, max_steps=4))
    assert set(counts) == {2, 3, 4}
    assert min(counts.values()) > 1850


def test_one_token_a_word_number_and_symbol_and_nothing_unknown():
    tokenizer = load_tokenizer("synthetic", False)
    for problem in synthetic_problems(300, 5, distractors=2):
        text = f"{problem.question} {' '.join(problem.steps)} #### {problem.answer}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(re.findall(r"<<|>>|####|[-+*/=?.,]|\w+", text))


def test_distractors_change_no_answer():
    for problem in synthetic_problems(50, 2, distractors=3, min_steps=2, max_steps=2):
        numbers = re.findall(r"\d+", problem.question)
        assert len(numbers) == 1 + 2 + 3


def test_load_problems_by_name_and_split():
    problems = load_problems("synthetic", split="test", test=7, train=3)
    assert len(problems) == 7
    assert all(skeleton_split(skeleton(problem)) == "test" for problem in problems)


@pytest.mark.parametrize(
    "world",
    [
        {"min_steps": 0},
        {"min_steps": 5, "max_steps": 4},
        {"operators": "+*/"},
        {"operators": "+%"},
        {"limit": 100},
        {"limit": 4},
        {"largest_operand": 1},
        {"distractors": -1},
    ],
)
def test_a_world_out_of_range_is_an_error(world):
    with pytest.raises(LoriError, match="synthetic"):
        synthetic_problems(1, 0, **world)
