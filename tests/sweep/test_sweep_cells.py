import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lori_pl.errors import LoriError
from lori_pl.sweep.cells import expand, flag_text
from lori_pl.sweep.specification import load_specification


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Expands a sweep file's text; the configs base.yaml, lori.yaml and other/lori.yaml exist."""
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    for name in ("base", "lori", "other/lori"):
        Path(f"{name}.yaml").write_text(f"model: {{name: {name}}}  # comment\n")

    def expanded(text, *overrides):
        Path("sweep.yaml").write_text(text)
        return expand(load_specification("sweep.yaml", overrides))

    return expanded


def test_cells_are_the_product_with_the_first_seeds_table_first(cells):
    found = cells("configs: [base.yaml]\ngrid: {m.a: [1, 2], m.b: [x, y]}\nseeds: [5, 3]")
    assert [(c.seed, c.point["m.a"], c.point["m.b"]) for c in found] == [
        *[(5, 1, "x"), (5, 1, "y"), (5, 2, "x"), (5, 2, "y")],
        *[(3, 1, "x"), (3, 1, "y"), (3, 2, "x"), (3, 2, "y")],
    ]
    assert [cell.number for cell in found] == list(range(1, 9))
    assert len({cell.id for cell in found}) == 8


def test_variants_are_sets_of_flags_under_a_name(cells):
    text = "configs: [base.yaml]\ngrid: {model.rank: [4, 8]}"
    found = cells(text + "\nvariants: {plain: {}, low.1: {model.weights.mean: 0.1, model.kind: x}}")
    by_name = {(cell.point["variant"], cell.point["model.rank"]): cell for cell in found}
    assert {name for name, _ in by_name} == {"plain", "low.1"}
    for (name, rank), cell in by_name.items():
        line = cell.command(Path("out"))
        assert ("--model.weights.mean=0.1" in line) == ("--model.kind=x" in line) == (name == "low.1")
        assert f"--model.rank={rank}" in line
        assert not any(part.startswith("--variant") for part in line)
        assert cell.columns()["variant"] == name
        assert cell.label("{method}_{variant}", "s", "lori") == f"lori_{name}"
    plain = cells(text)
    # a variant without flags is the run that is there already
    assert {cell.id for cell in plain} < {cell.id for cell in found}


def test_a_variant_may_bring_config_files_behind_the_others(cells):
    listed = cells("configs: [base.yaml]\ngrid: {config: [[lori.yaml, other/lori.yaml], other/lori.yaml]}")
    two = "two: {config: [lori.yaml, other/lori.yaml]}"
    named = cells(f"configs: [base.yaml]\nvariants: {{{two}, one: {{config: other/lori.yaml, m.k: 1}}}}")
    assert [cell.configs for cell in named] == [
        ("base.yaml", "lori.yaml", "other/lori.yaml"),
        ("base.yaml", "other/lori.yaml"),
    ]
    # the name does not matter: it is the run that is there already
    assert named[0].id == listed[0].id
    assert named[1].id != listed[1].id
    assert "--m.k=1" in named[1].command(Path("out"))
    assert not any(part.startswith("--config=[") for part in named[0].command(Path("out")))
    both = cells(f"grid: {{config: [base.yaml]}}\nvariants: {{{two}}}")
    assert both[0].id == listed[0].id


def test_tests_of_a_student_follow_its_run(cells):
    text = "configs: [base.yaml]\nfixed: {m.f: 3}\ngrid: {model.latents: [4, 8]}\nseeds: [5]"
    plain = cells(text)
    found = cells(text + "\ntests: {latents: [1, 8, 1], other: [x]}")
    assert [cell.number for cell in found] == list(range(1, 7))
    assert [cell.id for cell in found if cell.test is None] == [cell.id for cell in plain]
    assert [cell.test for cell in found[:3]] == [None, {"latents": 1, "other": "x"}, {"latents": 8, "other": "x"}]
    assert [cell.of for cell in found] == [None, plain[0].id, plain[0].id, None, plain[1].id, plain[1].id]
    assert len({cell.id for cell in found}) == 6
    test = found[5]
    assert test.command(Path("out/cells") / test.id) == [
        *(sys.executable, "-m", "lori_pl", "test", "--config=base.yaml", "--seed_everything=5"),
        *("--m.f=3", "--model.latents=8", f"--ckpt_path=out/cells/{plain[1].id}/student", "--latents=8", "--other=x"),
        f"--trainer.default_root_dir=out/cells/{test.id}",
    ]
    assert test.columns() == {"model.latents": "8", "latents": "8", "other": "x"}
    assert test.label("{method}_K{model.latents}", "s", "lori") == "lori_K8[latents=8,other=x]"
    assert test.label(None, "s", "lori") == "lori[latents=8][latents=8,other=x]"
    assert test.description() == "model.latents=8 latents=8 other=x seed=5"
    with pytest.raises(LoriError, match=r"unknown placeholder \{latents\}"):
        cells(text + "\ntests: {latents: [1]}", "label='{method}_{model.latents}_{latents}'")


def test_a_point_that_occurs_twice_is_one_cell(cells):
    assert [cell.point for cell in cells("configs: [base.yaml]\ngrid: {m.a: [1, 2, 1]}")] == [{"m.a": 1}, {"m.a": 2}]


def test_the_command_is_the_real_command_line(cells):
    (cell,) = cells(
        "configs: [base.yaml]\nfixed: {t.s: 20, t.c: null, t.b: true, t.l: [1, a]}\n"
        "grid: {config: [[lori.yaml]], m.t: [-x y]}\nseeds: [7]"
    )
    assert cell.command(Path("out/cells/x")) == [
        *(sys.executable, "-m", "lori_pl", "fit", "--config=base.yaml", "--config=lori.yaml", "--seed_everything=7"),
        *("--t.s=20", "--t.c=null", "--t.b=true", '--t.l=[1, "a"]', "--m.t=-x y"),
        "--trainer.default_root_dir=out/cells/x",
    ]


def test_the_id_depends_on_all_that_defines_the_run_and_on_nothing_else(cells):
    text = "name: a\nconfigs: [base.yaml]\nfixed: {m.s: 1}\ngrid: {m.a: [2]}\nseeds: [0]"

    def ids(*overrides):
        return [cell.id for cell in cells(text, *overrides)]

    first = ids()
    assert ids("name=b", "output=c", "label=x", "metrics=[low]") == first
    assert ids("fixed={m.s: 1, m.a: 2}", "grid={}") == first
    Path("base.yaml").rename("renamed.yaml")
    assert ids("configs=[renamed.yaml]") == first
    changed = [
        *(ids("configs=[renamed.yaml]", change) for change in ("fixed.m.s=2", "fixed.m.s='1'", "grid.m.a=[3]")),
        *(ids("configs=[renamed.yaml]", change) for change in ("seeds=[1]", "fixed.m.n=1", "grid.m.a=[2.0]")),
        *(ids(f"configs={files}") for files in ("[renamed.yaml,lori.yaml]", "[lori.yaml,renamed.yaml]", "[lori.yaml]")),
    ]
    Path("renamed.yaml").write_text("# another comment\nmodel:\n  name: base\n")
    assert ids("configs=[renamed.yaml]") == first
    Path("renamed.yaml").write_text("model: {name: other}")
    changed.append(ids("configs=[renamed.yaml]"))
    everything = [first, *changed]
    assert len({tuple(found) for found in everything}) == len(everything)


def test_a_sweep_that_grows_keeps_its_cells(cells):
    text = "configs: [base.yaml]\ngrid: {m.a: [3, 1, 2]}\nseeds: [0]"
    before = [cell.id for cell in cells(text)]
    assert [cell.id for cell in cells(text, "grid.m.a=[3,1,2,7]")[:3]] == before
    assert set(before) < {cell.id for cell in cells(text, "seeds=[4,0]")}


def test_labels_name_method_and_varied_values(cells):
    def labels(*overrides):
        text = "name: s\nconfigs: [base.yaml]\nfixed: {m.x: [1]}"
        return [cell.label(_label(overrides), "s", "lori") for cell in cells(text, *overrides)]

    def _label(overrides):
        return next((o[7:-1] for o in overrides if o.startswith("label=")), None)

    assert labels() == ["lori"]
    assert labels("grid.model.rank_d=[4,8]", "seeds=[0]") == ["lori[rank_d=4]", "lori[rank_d=8]"]
    assert labels("grid.a.rank=[4]", "grid.b.rank=[5]") == ["lori[a.rank=4,b.rank=5]"]
    assert labels("grid.config=[lori.yaml,[base.yaml,lori.yaml],[]]", "label='{config}'") == [
        *("lori", "base+lori", "none"),
    ]
    assert labels("grid.m.k=[4]", "label='{name}:{method}:{m.k}:{m.x}'") == ["s:lori:4:[1]"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["label='{m.z}'"], r"field 'label': unknown placeholder \{m.z\}; known are m.a, method, name"),
        (["label='{method}'"], r"'\{method\}' gives cells 1 and 2 the same name; add a varied value, such as \{m.a\}"),
        (["grid={config: [lori.yaml, other/lori.yaml]}", "label='{config}'"], "gives cells 1 and 2 the same name"),
        (["configs=[none.yaml]"], r"none\.yaml: cannot read this config of sweep\.yaml \(No such file"),
        (["configs=[broken.yaml]"], r"broken\.yaml, line 1: this config of sweep\.yaml is no YAML"),
        (["configs=[other]"], "other: cannot read this config of sweep.yaml"),
    ],
)
def test_bad_labels_and_configs_are_refused(cells, overrides, message):
    Path("broken.yaml").write_text("a: ]")
    with pytest.raises(LoriError, match=message):
        cells("configs: [base.yaml]\ngrid: {m.a: [1, 2]}", *overrides)


def test_a_cell_on_several_machines_is_refused_before_anything_runs(cells):
    Path("two.yaml").write_text("trainer: {num_nodes: 2}")
    text = "configs: [base.yaml, two.yaml]\nseeds: [0]"
    with pytest.raises(
        LoriError, match=r"sweep\.yaml, config two\.yaml: trainer\.num_nodes is 2, but a sweep runs each"
    ):
        cells(text)
    with pytest.raises(LoriError, match=r"field 'trainer\.num_nodes': trainer\.num_nodes is 4"):
        cells("configs: [base.yaml]\ngrid: {trainer.num_nodes: [1, 4]}")
    # what comes later wins
    assert len(cells(text, "fixed.trainer.num_nodes=1")) == 1


def test_the_method_alone_may_name_cells_of_different_configs(cells):
    assert len(cells("configs: [base.yaml]\ngrid: {config: [lori.yaml, []]}\nlabel: '{method}'")) == 2


# --- values on the command line ---------------------------------------------------------------------------------------


def _parsed(value, annotation, mode):
    parser = ArgumentParser(parser_mode=mode, exit_on_error=False)
    parser.add_argument("--k", type=annotation)
    return parser.parse_args([f"--k={flag_text(value)}"]).k


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab1-: #'\"\\,]}é\u3042😀")


@pytest.mark.parametrize("mode", ["yaml", "omegaconf"])
@given(value=st.lists(scalars, max_size=3) | st.dictionaries(st.text("ab.", min_size=1), scalars, max_size=3))
@settings(max_examples=40, deadline=None)
def test_lists_and_mappings_reach_the_command_line_as_they_are(mode, value):
    received = _parsed(value, Any, mode)
    assert received == value
    assert [type(item) for item in received] == [type(item) for item in value]


@pytest.mark.parametrize("mode", ["yaml", "omegaconf"])
@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        *[(True, bool), (None, int | None), (-3, int), (1e-05, float), (1e22, float), (math.inf, float)],
        *[("null", str), ("1e-3", str), ("-x: y", str), ("", str), ("a b", str), ("1", str)],
        *[(["1", "null", "1e-3", "a,b"], list[str]), ([1e-05, -math.inf], list[float])],
        ({"class_path": "a.B", "init_args": {"k": None, "l": [1, 2]}}, dict[str, Any]),
    ],
)
def test_typed_values_reach_the_command_line_as_they_are(mode, value, annotation):
    received = _parsed(value, annotation, mode)
    assert received == value
    assert type(received) is type(value)


def test_not_a_number_reaches_the_command_line():
    assert math.isnan(_parsed(math.nan, float, "yaml"))
