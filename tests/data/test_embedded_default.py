"""The embedded default is one world: the code's defaults, the config, and what the shipped teacher has learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from lori_pl import LatentReasoner
from lori_pl.data import same_answer, synthetic_problems
from lori_pl.data.sources import Synthetic
from lori_pl.data.synthetic import World
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "lori_pl" / "assets" / "teacher"


def config(name):
    return yaml.safe_load((ROOT / "configs" / name).read_text())


def test_the_config_is_what_the_code_gives_without_one():
    data = config("data/synthetic.yaml")["data"]
    given = data["source"]["init_args"]
    source = Synthetic()
    assert source.world == dataclasses.asdict(World())
    assert Synthetic(**given).world == source.world
    assert (given["train"], given["validation"], given["test"]) == tuple(source.sizes.values())
    assert Template(**data["template"]) == Template()


def test_the_shipped_teacher_is_of_the_configs_shape_and_words():
    teacher = LatentReasoner.from_pretrained(TEACHER)
    shape = config("model/tiny.yaml")["model"]["init_args"]["backbone"]["config"]
    assert {key: getattr(teacher.lm.config, key) for key in shape} == shape
    assert teacher.template == Template()
    assert teacher.tokenizer.get_vocab() == load_tokenizer("synthetic", False).get_vocab()


def test_the_shipped_teacher_solves_test_problems_of_the_embedded_world():
    problems = synthetic_problems(128, 5, "test")
    answers = LatentReasoner.from_pretrained(TEACHER).answer([p.question for p in problems], max_new_tokens=64)
    right = [same_answer(answer.text, problem.answer) for answer, problem in zip(answers, problems, strict=True)]
    assert sum(right) >= 122
    # it reasons in words: its rationale is the one that the grammar writes
    assert answers[0].output.replace(" ", "").startswith("".join(problems[0].steps))
