"""The schedule in closed form, which group a parameter lands in, and what a resumed optimiser takes from the flags."""

from __future__ import annotations

import math
import re
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.errors import LoriError
from lori_pl.methods import LoRi, Method, Pause
from lori_pl.methods.optimization import Schedule, apply_changes, parameter_groups, settings
from lori_pl.models.backbone import Backbone, LoRA

# GPT-2 has norms and biases
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
WITHOUT_DECAY = r"(\.bias|norm\.weight|ln_\w+\.weight|_factor\.parametrizations\.weight\.original|markers|fillers)$"


# ---- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay", "values"),
    [
        ("cosine", {0: 1.0, 25: (2 + math.sqrt(2)) / 4, 50: 0.5, 75: (2 - math.sqrt(2)) / 4, 100: 0.0}),
        ("linear", {0: 1.0, 25: 0.75, 99: 0.01, 100: 0.0}),
        ("late", {0: 1.0, 60: 1.0, 70: 0.75, 90: 0.25, 100: 0.0}),
        ("none", {0: 1.0, 50: 1.0, 100: 1.0}),
    ],
)
def test_decays_have_their_closed_form(decay, values):
    schedule = Schedule(warmup=0, decay=decay, decay_share=0.4)
    assert {step: schedule.factor(step, 100) for step in values} == pytest.approx(values, abs=1e-12)
    assert schedule.factor(101, 100) == schedule.factor(100, 100)


@pytest.mark.parametrize("warmup", [4, 4.0, 0.1])
@pytest.mark.parametrize("decay", ["cosine", "linear", "late", "none"])
def test_warmup_rises_in_equal_steps_to_the_decay(warmup, decay):
    schedule, plain = Schedule(warmup, decay), Schedule(0, decay)
    rises = [schedule.factor(step, 40) / plain.factor(step, 40) for step in range(7)]
    assert rises == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


def test_a_whole_number_is_steps_and_a_share_is_of_all_steps():
    assert [Schedule(1, "none").factor(0, total) for total in (10, 1000)] == [0.5, 0.5]
    assert [Schedule(0.1, "none").factor(0, total) for total in (10, 90)] == [0.5, 0.1]
    assert Schedule(0.0, "none").factor(0, 10) == 1.0


@pytest.mark.parametrize("decay", ["cosine", "linear", "late", "none"])
def test_the_factor_stays_between_nothing_and_all(decay):
    for warmup in (0, 3, 200, 0.5):
        factors = [Schedule(warmup, decay)(total)(step) for total in (1, 30) for step in range(total + 1)]
        assert all(0 <= factor <= 1 for factor in factors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({"warmup": value}, "schedule.warmup is .*number of steps") for value in (-1, -0.1, 1.5, math.inf, math.nan)),
        *(({"decay_share": value}, r"schedule.decay_share is .*\(0, 1\]") for value in (0.0, 1.1, math.nan)),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(LoriError, match=message):
        Schedule(**arguments)


@pytest.mark.parametrize("decay", ["cosine", "linear", "late"])
def test_a_decay_needs_an_end(decay):
    with pytest.raises(LoriError, match="training has no end"):
        Schedule(decay=decay)(math.inf)
    assert [Schedule(1, "none")(math.inf)(step) for step in (0, 1, 10**6)] == [0.5, 1.0, 1.0]


def test_a_warm_up_over_a_share_needs_an_end():
    with pytest.raises(LoriError, match=r"schedule.warmup is 0.1, a share .* give a number of steps"):
        Schedule(0.1, "none")(math.inf)
    assert Schedule(0.0, "none")(math.inf)(0) == 1.0


# ---- groups ----------------------------------------------------------------------------------------------------------


def groups_of(method: Method) -> dict[str, dict[str, Any]]:
    method.configure_model()
    method.trainer = SimpleNamespace(estimated_stepping_batches=10)
    groups = method.configure_optimizers()["optimizer"].param_groups
    assert len({group["name"] for group in groups}) == len(groups)
    return {group["name"]: group for group in groups}


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", ["lori", "pause"])
def test_every_trainable_parameter_is_in_the_group_that_its_name_says(kind, lora):
    backbone = Backbone(tokenizer="synthetic", config=GPT2, lora=lora)
    optimizer = partial(torch.optim.AdamW, weight_decay=0.1)
    method: Method = Pause(backbone, optimizer=optimizer)
    if kind == "lori":
        terms = {"alignment": LowRankAlignment(rank_hidden=4, student_factors="learned"), "anchor": AnchorAlignment()}
        method = LoRi(
            backbone,
            teacher=Backbone(tokenizer="synthetic", config=GPT2),
            student_init="base",
            **terms,
            optimizer=optimizer,
        )
    groups = groups_of(method)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    members = {name: [names[id(parameter)] for parameter in group["params"]] for name, group in groups.items()}
    trained = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    assert sorted(chain(*members.values())) == sorted(trained)
    assert not any(name.startswith("teacher.") for name in trained)
    for group, inside in members.items():
        part, _, decay = group.partition("/")
        assert groups[group]["weight_decay"] == (0.1 if decay == "decay" else 0.0)
        for name in inside:
            assert (decay == "no_decay") == bool(re.search(WITHOUT_DECAY, name)), name
            owner = {"reasoner.thought": "thought", "terms.0": "alignment"}
            assert part == owner.get(".".join(name.split(".")[:2]), "backbone"), name
    expected = {"backbone/decay", "thought/no_decay"}
    expected |= {"thought/decay", "alignment/no_decay"} if kind == "lori" else set()
    assert set(groups) == expected | {"backbone/no_decay"}
    assert ("reasoner.markers" in members["backbone/no_decay"]) == (lora is not None)
    if kind == "lori":
        assert method.teacher is not None
        assert len(members["alignment/no_decay"]) == 2
    else:
        assert members["thought/no_decay"] == ["reasoner.thought.fillers"]


def test_a_module_without_anything_to_train_is_refused():
    with pytest.raises(LoriError, match="every parameter is frozen"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), {})


# ---- what the flags change on resume ---------------------------------------------------------------------------------


def optimizer_of(rate: float, **changes: Any) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=rate, **changes)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(0, "linear")(10))


@pytest.fixture
def resumed():
    """An optimiser and its schedule after four of ten steps, as a checkpoint restored them; and its settings then."""
    optimizer, scheduler = optimizer_of(1.0, weight_decay=0.1)
    before = settings(optimizer)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler, before


def test_what_was_changed_is_set_and_the_rate_follows_at_once(resumed):
    optimizer, scheduler, before = resumed
    wanted = settings(optimizer_of(0.5, weight_decay=0.3, betas=(0.8, 0.9))[0])
    apply_changes(optimizer, scheduler, wanted, before)
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["initial_lr"]) == (0.3, (0.8, 0.9), 0.5)
    assert group["lr"] == pytest.approx(0.5 * 0.6)
    optimizer.step()
    scheduler.step()
    assert group["lr"] == pytest.approx(0.5 * 0.5)


def test_what_was_not_changed_stays_as_it_was_restored(resumed):
    optimizer, scheduler, before = resumed
    optimizer.param_groups[0]["weight_decay"] = 0.7  # as an optimiser may that keeps state there
    apply_changes(optimizer, scheduler, settings(optimizer_of(1.0, weight_decay=0.1)[0]), before)
    assert optimizer.param_groups[0]["weight_decay"] == 0.7
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.6)


def test_a_checkpoint_that_does_not_say_its_settings_changes_nothing(resumed):
    optimizer, scheduler, _ = resumed
    apply_changes(optimizer, scheduler, settings(optimizer_of(0.5)[0]), [])
    assert optimizer.param_groups[0]["initial_lr"] == 1.0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.6)
