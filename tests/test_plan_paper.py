"""The paper's cells: every one is planned, and its page says what was recorded."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest
import yaml

from lori_pl import methods
from lori_pl.methods.stages import Stages
from lori_pl.models.backbone import Backbone
from lori_pl.planning import Weights
from lori_pl.sweep.cells import expand
from lori_pl.sweep.specification import load_specification

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments/bench"))
    monkeypatch.chdir(ROOT)
    return importlib.import_module("plan_paper")


def config_of(name):
    return yaml.safe_load(Path(name).read_text(encoding="utf-8"))


def test_the_page_has_what_was_recorded(script):
    page = script.PAGE.read_text(encoding="utf-8")
    assert page.partition(script.BEGIN)[2].partition(script.END)[0] == script.tables()
    assert sorted(script.MODELS) == sorted(file.stem for file in script.SWEEPS.glob("*.yaml"))


def test_the_sweep_files_say_what_each_cell_needs(script):
    for model in script.MODELS:
        text = (script.SWEEPS / f"{model}.yaml").read_text(encoding="utf-8")
        assert text == script.annotated(model)
        assert text.count(" hours a seed\n") == len(script.cells(model))


def test_every_cell_is_planned_as_its_configs_set_it(script):
    with script.TABLE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cells = [(model, cell) for model in script.MODELS for cell in script.cells(model)]
    assert [row["model"] for row in rows] == [model for model, _ in cells]
    for row, (_, cell) in zip(rows, cells, strict=True):
        data, trainer, method = {}, {}, ""
        for given in map(config_of, cell.configs):
            data |= given.get("data") or {}
            trainer |= given.get("trainer") or {}
            method = (given.get("model") or {}).get("class_path", method)
        assert row["method"] == getattr(methods, method.rpartition(".")[2]).name
        assert row["test_sets"].split() == list(data["test_sources"])
        values = (data["batch_size"], trainer["accumulate_grad_batches"], trainer["max_epochs"])
        assert (row["batch"], row["accumulated"], row["epochs"]) == tuple(map(str, values))


def test_the_teacher_is_what_the_first_cell_leaves(script):
    for model in script.MODELS:
        sweep = load_specification(script.SWEEPS / f"{model}.yaml")
        first = expand(sweep)[0]
        assert (first.number, first.seed, first.point["config"]) == (1, 0, ["configs/method/explicit_cot.yaml"])
        link = sweep.output / "by_name" / f"{first.label(sweep.label, sweep.name, 'explicit_cot')}_seed{first.seed}"
        teacher = config_of(f"configs/experiment/paper/{model}.yaml")["model"]["init_args"]["teacher"]
        assert teacher["name"] == f"{link}/student"


def test_a_straight_line_goes_on_through_every_number(script):
    """Two layers, four, and so ten: four times the difference beyond two."""
    weights, more = Weights(10, 20, 5, 7), Weights(14, 26, 7, 10)
    assert script.carried(weights, more, 4) == Weights(26, 44, 13, 19)
    assert script.carried((script.Cost((), 1.0), True, None), (script.Cost((), 1.5), True, None), 4) == (
        script.Cost((), 3.0),
        True,
        None,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args", "ignore:.*gradient_checkpointing")
def test_two_layers_and_four_say_what_six_take(script, monkeypatch):
    monkeypatch.setitem(script.SIZES, "gpt2", {"model_type": "gpt2", "n_embd": 64, "n_head": 4})
    (cell,) = [cell for cell in script.cells("gpt2") if "configs/method/no_cot.yaml" in cell.configs]
    two, four, six = (script.go_through(script.parsed(cell, "gpt2", layers)) for layers in (2, 4, 6))
    carried = script.carried(two, four, 2)
    assert carried.operations == pytest.approx(six.operations, rel=1e-3)
    assert carried.steps[0].parts().total == pytest.approx(six.steps[0].parts().total, rel=1e-3)
    assert six.operations > 1.05 * four.operations
    assert six.steps[0].parts().total > 1.05 * four.steps[0].parts().total


def test_epochs_are_spent_in_the_stages_that_they_are_in(script):
    """Coconut's three stages and thirteen epochs behind them; of iCoT-SI's forty eight an epoch, by the middle one."""
    backbone = Backbone(tokenizer="synthetic", config={"model_type": "gpt2"})
    coconut = methods.Coconut(backbone, stages=Stages(epochs=3), student_init="base")
    assert script.epochs_of_stages(coconut, 22) == {0: 3, 1: 3, 2: 3, 3: 13}
    icot_si = methods.ICoTSI(backbone, stages=Stages(epochs=0.125))
    assert script.epochs_of_stages(icot_si, 10) == {4: 1, 12: 1, 20: 1, 28: 1, 36: 1, 40: 5}
    assert script.epochs_of_stages(methods.NoCoT(backbone), 10) == {0: 10}
