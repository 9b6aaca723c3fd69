"""The quickstart: what it compares, prints and leaves, in process and on a tiny recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_world import BACKBONE, BASE

import lori_pl.sweep.runner as runner
from lori_pl import LatentReasoner
from lori_pl.cli import main
from lori_pl.files import lock_folder
from lori_pl.sweep.cells import expand
from lori_pl.sweep.child import ChildResult
from lori_pl.sweep.specification import load_specification


@pytest.fixture
def recipe(world, lori_args, monkeypatch, tmp_path) -> Path:
    """A sweep file of two methods whose runs are carried out in process."""
    monkeypatch.chdir(tmp_path)
    grid = [[world.method("ExplicitCoT", backbone=BACKBONE)]]
    shutil.copy(grid[0][0], "cot.yaml")
    grid = [["cot.yaml"], [world.method("LoRi", **lori_args)]]
    base = world.config("base", BASE)
    content = {"output": "out", "label": "{method}", "configs": [base], "grid": {"config": grid}}
    Path("recipe.yaml").write_text(yaml.safe_dump(content))

    def run_child(command, log, keep_open=()):
        log.write_text("")
        return ChildResult(main(command[3:]), 1.0, 1.0)

    monkeypatch.setattr(runner, "run_child", run_child)
    return Path("recipe.yaml")


def test_it_compares_the_methods_and_keeps_the_student(recipe, capsys, monkeypatch):
    assert main(["quickstart", str(recipe)]) == 0
    shown = capsys.readouterr().out
    for part in ("always the most frequent answer", "out/student", "out/summary.json", "tensorboard --logdir out"):
        assert part in shown
    methods = json.loads(Path("out/summary.json").read_text())["methods"]
    assert list(methods) == ["explicit_cot", "lori"]
    for values in methods.values():
        assert {"accuracy", "low", "high", "n", "passes", "milliseconds"} <= set(values)
    assert LatentReasoner.from_pretrained("out/student").reasoning == "latent"

    monkeypatch.setattr(runner, "run_child", lambda *_, **__: pytest.fail("what is done is done again"))
    assert main(["quickstart", str(recipe)]) == 0
    summary = next(Path("out/cells").glob("*/summary.json"))
    summary.write_text("{")
    capsys.readouterr()
    assert main(["quickstart", str(recipe)]) == 2
    assert "summary.json cannot be read" in (said := capsys.readouterr().err)
    assert str(summary.parent) in said
    shutil.rmtree("out/cells")
    assert main(["quickstart", str(recipe)]) == 2
    assert "is gone" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "said"), [({"seeds": [0, 1]}, "has several seeds, a search or tests"), ({}, None)])
def test_two_runs_of_a_method_are_refused(recipe, capsys, monkeypatch, more, said):
    content = yaml.safe_load(recipe.read_text()) | more
    if said is None:
        content["grid"] = {"config": [content["grid"]["config"][0]], "model.optimizer.lr": [0.1, 0.2]}
        content["label"] = "{method}_{model.optimizer.lr}"
        summary = json.dumps({"methods": {"explicit_cot": {"accuracy": 0.5}}})

        def run(command, log, keep_open=()):
            (log.parent / "summary.json").write_text(summary)
            return ChildResult(0, 1.0, 1.0)

        monkeypatch.setattr(runner, "run_child", run)
    recipe.write_text(yaml.safe_dump(content))
    assert main(["quickstart", str(recipe)]) == 2
    assert (said or "has two runs of explicit_cot") in capsys.readouterr().err
    assert not Path("out/student").exists()


def test_options_that_no_run_takes_are_told_before_anything_runs(recipe, capsys, monkeypatch):
    monkeypatch.setattr(runner, "run_child", lambda *_, **__: pytest.fail("nothing is run"))
    content = yaml.safe_load(recipe.read_text()) | {"fixed": {"model.latentz": 3}}
    recipe.write_text(yaml.safe_dump(content))
    assert main(["quickstart", str(recipe)]) == 2
    assert "recipe.yaml, cell 1 (config=cot seed=0): " in (told := capsys.readouterr().err)
    assert "latentz" in told


def test_a_run_that_fails_or_is_stopped_ends_it(recipe, capsys, monkeypatch):
    monkeypatch.setattr(runner, "run_child", lambda *_, **__: ChildResult(2, 1.0, 1.0))
    assert main(["quickstart", str(recipe)]) == 2
    assert "2 runs failed; their log.txt lie under out" in capsys.readouterr().err

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_child", stop)
    assert main(["quickstart", str(recipe)]) == 130
    assert not Path("out/summary.json").exists()


@pytest.mark.slow
def test_a_second_one_at_once_says_so(recipe, capsys):
    cell = expand(load_specification(recipe))[0]
    with lock_folder(Path("out/locks") / cell.id, ""):
        assert main(["quickstart", str(recipe)]) == 2
    assert "1 runs are at work in another process" in capsys.readouterr().err
    assert not Path("out/summary.json").exists()
    assert main(["quickstart", str(recipe)]) == 0


def test_without_its_recipe_it_says_where_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart"]) == 2
    assert "experiments/quickstart.yaml: no such file" in capsys.readouterr().err
