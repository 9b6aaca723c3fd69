"""Two processes of a run that have unequal work: no one waits for ever, and the results are those of one process."""

from __future__ import annotations

import json

import pytest
from test_processes import DIVIDING, ONE_AND_MORE, SGD, assert_equal_runs, train_in_two
from watching import UNEVEN, answers, processes

from lori_pl.data import synthetic_problems

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STRATEGIES = ["ddp", *DIVIDING]


def bare_source(folder) -> str:
    """Problems of which four in five have a rationale without a letter or digit."""
    for name, count in (("train", 64), ("validation", 16), ("test", 17)):
        rows = []
        for i, problem in enumerate(synthetic_problems(count, 0, name, min_steps=1, max_steps=2)):
            steps = problem.steps if i % 5 == 0 else ["="]
            rows.append(json.dumps({"question": problem.question, "rationale": steps, "answer": problem.answer}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return json.dumps({"class_path": "lori_pl.data.sources.JSONL", "init_args": {"path": str(folder)}})


@pytest.mark.parametrize("scope", ["problem", "batch"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batches_without_a_rationale_token(world, lori_args, strategy, scope):
    flags = [*SGD, "--data.source", bare_source(world.folder), "--data.rationale_tokens=no_delimiters"]
    flags += ["--data.bucket_by_length=false", f"--model.alignment.scope={scope}"]
    assert world.fit("LoRi", "one", *flags, **lori_args) == 0
    train_in_two(world, "LoRi", *flags, strategy=strategy, **lori_args)
    assert_equal_runs(world)
    first, second = (process["rationales"] for process in processes(world.folder / "two"))
    has_some = {(any(first[step]), any(second[step])) for step in first}
    assert {(False, False), (True, False), (False, True)} <= has_some


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_of_very_different_lengths(world, lori_args, strategy):
    """One process answers the problems of even number, the other the rest; one process alone takes each by itself."""
    flags = [*SGD, *UNEVEN, *ONE_AND_MORE, "--model.max_new_tokens=12", "--trainer.val_check_interval=5"]
    assert world.fit("LoRi", "one", *flags, "--data.eval_batch_size=1", **lori_args) == 0
    train_in_two(world, "LoRi", *flags, "--data.eval_batch_size=8", strategy=strategy, **lori_args)
    assert_equal_runs(world)
    one, two = (answers(world.folder / name) for name in ("one", "two"))
    assert {len(tokens) for tokens in one.values()} == {1, 12}
    assert len(one) == 16 * 2 + 17  # validations behind the fifth and the tenth step, and the test
    assert two == one
    passes = [
        json.loads((world.folder / name / "summary.json").read_text())["methods"]["lori"]["passes"]
        for name in ("one", "two")
    ]
    assert passes[0] == pytest.approx(passes[1])
