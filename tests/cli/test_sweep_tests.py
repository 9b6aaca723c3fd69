"""A sweep whose cells are real runs: options that none takes, and tests of students at further numbers of latents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from failing import message
from tiny_world import BASE

from lori_pl.cli import main
from lori_pl.evaluation.records import ResultTable, read_outcomes
from lori_pl.sweep import runner


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"variants": {"good": {}, "bad": {"model.latenst": 2}}}, r"cell 2 \(variant=bad seed=0\): .*latenst"),
        ({"tests": {"latents": [1], "latent": [2]}}, r"cell 2 \(.*\): unrecognized arguments: --latent"),
        *(
            pytest.param({"fixed": fixed}, words, marks=pytest.mark.slow)
            for fixed, words in (
                ({"data.source": None}, "cell 1 .*: data.source is not set"),
                ({"trainer.val_check_interval": 3, "trainer.accumulate_grad_batches": 2}, "cell 1 .*multiple of"),
                ({"model.teacher": None}, "cell 1 .*: model.teacher is not set"),
            )
        ),
        (
            {"search": {"trials": 2, "metric": "validation", "space": {"model.wieghts": {"choices": [1]}}}},
            "cell 1 .*wieghts",
        ),
    ],
)
def test_options_that_no_run_takes_are_told_before_the_first(world, capsys, lori_args, monkeypatch, field, words):
    monkeypatch.chdir(world.folder)
    monkeypatch.setattr(runner, "run_child", lambda *_, **__: pytest.fail("a cell was run"))
    configs = [world.config("base", BASE), world.method("LoRi", **lori_args)]
    sweep = {"configs": configs, "output": "out", "seeds": [0, 1], "metrics": ["validation"], **field}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    for flags in (["--dry_run"], []):
        assert main(["sweep", "sweep.yaml", *flags]) == 2
        assert re.search(f"sweep.yaml, {words}", message(capsys))
    assert not Path("out/results.csv").exists()


@pytest.mark.slow
def test_a_student_is_tested_at_other_numbers_of_latents(world, lori_args, monkeypatch):
    monkeypatch.chdir(world.folder)
    sweep = {
        "configs": [world.config("base", BASE), world.method("LoRi", **lori_args)],
        "output": "out",
        "grid": {"model.latents": [2]},
        "label": "{method}_K{model.latents}",
        "tests": {"latents": [1, 2, -1]},
        "metrics": ["validation"],
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", "sweep.yaml"]) == 1
    trained, one, two, bad = ResultTable("out/results.csv").rows()
    assert [row["method"] for row in (trained, one, two)] == ["lori_K2", "lori_K2[latents=1]", "lori_K2[latents=2]"]
    # at the number of its training the student answers as at its run's end
    assert (two["accuracy"], two["passes"]) == (trained["accuracy"], trained["passes"])
    bits = read_outcomes("out/correct.npz").bits
    assert bits["lori_K2[latents=2]", 0].tolist() == bits["lori_K2", 0].tolist()
    assert one["passes"] != trained["passes"]
    assert (trained["validation"] != "", one["validation"]) == (True, "")
    assert bad["status"] == "failed"
    assert "latents is -1: give 0 or more" in bad["reason"]
    # what they ran on was noted before they trained or tested, and is what they reported
    for row in (trained, one):
        assert Path(f"out/cells/{row['cell']}/machine.txt").read_text() == row["machine"] + "\n"
    # a sweep that takes the run's row over tests the student where it lies
    again = {**sweep, "output": "more", "reuse": ["out"], "tests": {"latents": [1, 3]}}
    Path("more.yaml").write_text(yaml.safe_dump(again))
    assert main(["sweep", "more.yaml"]) == 0
    taken, same, other = ResultTable("more/results.csv").rows()
    assert (taken, same["command"], same["accuracy"]) == (trained, one["command"], one["accuracy"])
    assert f"--ckpt_path=out/cells/{trained['cell']}/student" in other["command"]
    # the recorded command repeats the test
    command = one["command"].replace(f"out/cells/{one['cell']}", "again").split()[3:]
    assert main(command) == 0
