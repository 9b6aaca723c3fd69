import pytest

from lori_pl.errors import LoriError
from lori_pl.sweep.fields import Interval
from lori_pl.sweep.specification import load_specification

FULL = """
name: rank
output: out/${name}
configs: [a.yaml, b.yaml]
fixed: {trainer.max_steps: 20, trainer.callbacks: null, model.template: "\\\\${data.k}"}
grid:
  model.rank: [4, 8]
  config: [c.yaml, [d.yaml, e.yaml], []]
search:
  trials: 3
  metric: accuracy_steps_3
  on_test: true
  seed: 5
  space:
    model.lr: {low: 1e-4, high: 1e-2, log: true}
    model.latents: {low: 2, high: 6}
    model.core: {choices: [joint, per_layer_mode]}
seeds: [3, 4]
label: "{method}_{model.rank}"
metrics: [accuracy_steps_3]
compare: [[lori, no_cot]]
"""


def _load(tmp_path, text, *overrides):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return load_specification(path, overrides)


def test_a_full_file_is_read_with_its_types(tmp_path):
    sweep = _load(tmp_path, FULL)
    assert (sweep.name, str(sweep.output), sweep.configs) == ("rank", "out/rank", ("a.yaml", "b.yaml"))
    assert sweep.fixed == {"trainer.max_steps": 20, "trainer.callbacks": None, "model.template": "${data.k}"}
    assert sweep.grid == {"model.rank": [4, 8], "config": ["c.yaml", ["d.yaml", "e.yaml"], []]}
    assert sweep.search is not None
    assert (sweep.search.trials, sweep.search.seed) == (3, 5)
    assert sweep.search.space == {
        "model.lr": Interval(1e-4, 1e-2, log=True, integer=False),
        "model.latents": Interval(2, 6, log=False, integer=True),
        "model.core": ["joint", "per_layer_mode"],
    }
    assert (sweep.seeds, sweep.label, sweep.metrics) == ((3, 4), "{method}_{model.rank}", ("accuracy_steps_3",))
    assert sweep.compare == (("lori", "no_cot"),)
    assert sweep.axes == ["model.rank", "config", "model.lr", "model.latents", "model.core"]


def test_all_but_the_configs_has_a_default(tmp_path):
    sweep = _load(tmp_path, "configs: [a.yaml]")
    assert (sweep.name, str(sweep.output), sweep.seeds) == ("file", "runs/sweeps/file", (0,))
    assert (sweep.fixed, sweep.grid, sweep.search, sweep.label, sweep.metrics, sweep.compare) == (
        {},
        {},
        None,
        None,
        (),
        (),
    )


def test_overrides_replace_fields_and_dotted_entries_before_interpolation(tmp_path):
    sweep = _load(
        tmp_path,
        FULL,
        *("name=other", "seeds=[7]", "fixed.trainer.max_steps=1e-3", "grid.model.rank=[2]", "search.trials=1"),
        *("search.space.model.lr={choices: [1]}", "fixed.new.key=a=b"),
    )
    assert (sweep.name, str(sweep.output), sweep.seeds) == ("other", "out/other", (7,))
    assert sweep.fixed["trainer.max_steps"] == 1e-3
    assert sweep.fixed["new.key"] == "a=b"
    assert sweep.grid["model.rank"] == [2]
    assert sweep.search is not None
    assert (sweep.search.trials, sweep.search.space["model.lr"]) == (1, [1])
    assert _load(tmp_path, "configs: [a]", "grid.model.rank=[2]").grid == {"model.rank": [2]}


@pytest.mark.parametrize("override", ["seeds", "model.rank=3", "fixed.=3", "=3"])
def test_an_override_of_no_field_is_refused(tmp_path, override):
    with pytest.raises(LoriError, match=r"expected FIELD=VALUE with a field of .*file\.yaml"):
        _load(tmp_path, FULL, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("configs: [a]\nseed: 3", r"file\.yaml, field 'seed': unknown field; known are name, output"),
        ("seeds: [1]", "field 'configs': missing"),
        ("configs: a.yaml", "field 'configs': expected a list of texts, got 'a.yaml'"),
        ("configs: [a]\nname: 3", "field 'name': expected text, got 3"),
        ("configs: [a]\nfixed: [3]", r"field 'fixed': expected a mapping, got \[3\]"),
        ("configs: [a]\nfixed: {--model.k: 3}", "field 'fixed.--model.k': expected a flag"),
        ("configs: [a]\nfixed: {3: 3}", "field 'fixed.3': expected a flag"),
        ("configs: [a]\nfixed: {config: b}", "field 'fixed.config': .* belongs under 'configs'"),
        ("configs: [a]\nfixed: {accuracy: 1}", "field 'fixed.accuracy': .*a column of the results"),
        ("configs: [a]\ngrid: {seed_everything: [1]}", "field 'grid.seed_everything': .*under 'seeds'"),
        ("configs: [a]\nfixed: {trainer.default_root_dir: x}", "set by the sweep itself: every cell gets a folder"),
        ("configs: [a]\ngrid: {k: 3}", "field 'grid.k': expected a list of at least one value, got 3"),
        ("configs: [a]\ngrid: {k: []}", "field 'grid.k': expected a list of at least one value"),
        ("configs: [a]\ngrid: {config: [3]}", "field 'grid.config': expected config files"),
        ("configs: [a]\ngrid: {k: [1]}\nfixed: {k: 1}", "field 'k': given more than once"),
        (
            "configs: [a]\nsearch: {trials: 0, space: {k: {low: 1, high: 2}}}",
            "field 'search.trials': expected a positive",
        ),
        ("configs: [a]\nsearch: {trials: 2, metric: accuracy, on_test: true}", "field 'search.space': missing"),
        ("configs: [a]\nsearch: {trails: 2}", "field 'search.trails': unknown field; known are trials, hours"),
        (
            "configs: [a]\nsearch: {trials: 2, metric: loss, hours: 0, space: {k: {choices: [1]}}}",
            "field 'search.hours': expected a",
        ),
        (
            "configs: [a]\nsearch: {trials: 2, metric: loss, space: {k: {choices: [1]}}}",
            "'search.metric': expected one",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 2, metric: v, sampler: best, space: {k: {choices: [1]}}}",
            "expected one of tpe, random",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 2, metric: v, storage: x.db, space: {k: {choices: [1]}}}",
            "expected a database's URL",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 2, metric: v, seed: x, space: {k: {choices: [1]}}}",
            "field 'search.seed': expected a whole",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 2, metric: v, space: {config: {choices: [b]}}}",
            "config files vary under 'grid' and 'variants'",
        ),
        ("configs: [a]\nvariants: {x: {config: 3}}", "field 'variants.x.config': expected a config file, or a list"),
        ("variants: {x: {k: 3}}", "field 'configs': missing"),
        ("configs: [a]\nfixed: {variant: x}", "field 'fixed.variant': no flag"),
        ("configs: [a]\ngrid: {variant: [x]}", "field 'grid.variant': no flag"),
        ("configs: [a]\nsearch: {trials: 2, space: {k: {choices: [1]}}}", "field 'search.metric': expected one of"),
        (
            "configs: [a]\nsearch: {trials: 2, metric: accuracy, on_test: 1, space: {k: {choices: [1]}}}",
            "field 'search.on_test': expected true or false, got 1",
        ),
        ("configs: [a]\nreuse: [nowhere]", "field 'reuse': nowhere holds no results.csv"),
        ("configs: [a]\ntests: {latents: 3}", "field 'tests.latents': expected a list of at least one value, got 3"),
        ("configs: [a]\ntests: {config: [b]}", "field 'tests.config': no flag"),
        ("configs: [a]\ntests: {k: [1]}\nfixed: {k: 1}", "field 'k': given more than once"),
        (
            "configs: [a]\nmetrics: [v]\ntests: {j: [1]}\nsearch: {trials: 2, metric: v, space: {k: {choices: [1]}}}",
            "field 'tests': the trials of a search are not tested again",
        ),
        ("configs: [a]\nvariants: [3]", r"field 'variants': expected a mapping"),
        ("configs: [a]\nvariants: {x: 3}", "field 'variants.x': expected a mapping"),
        ("configs: [a]\nvariants: {x: {--k: 3}}", "field 'variants.x.--k': expected a flag"),
        ("configs: [a]\nfixed: {k: 1}\nvariants: {x: {k: 3}}", "field 'k': given more than once"),
        ("configs: [a]\nseeds: 3", "field 'seeds': expected a list of whole numbers"),
        ("configs: [a]\nseeds: [true]", "field 'seeds': expected a list of whole numbers"),
        ("configs: [a]\nseeds: [1, 1]", "field 'seeds': a seed occurs twice"),
        ("configs: [a]\nmetrics: [status]", "field 'metrics': 'status' is a column of the sweep's own"),
        ("configs: [a]\ncompare: [[a, b, c]]", r"field 'compare': expected a list of pairs of labels"),
        ("configs: [a]\ncompare: [a, b]", r"field 'compare': expected a list of pairs of labels"),
        ("configs: [a]\ncompare: false", r"field 'compare': expected a list of pairs of labels"),
        ("configs: [a]\ncompare: [[a, a]]", r"field 'compare': 'a' is compared with itself"),
        ("configs: [a]\nmetrics: 0", r"field 'metrics': expected a list of texts, got 0"),
        ("configs: [a]\nsearch: {}", "field 'search.trials': expected a positive whole number"),
        ("configs: [a]\nrandom: {samples: 1}", "field 'random': unknown field; known are name"),
        ("configs: [a]\nmetrics: [v]\nsearch: {trials: 1, metric: v}", "field 'search.space': missing"),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 1, metric: v, space: {k: 3}}",
            r"field 'search.space.k': expected \{low, high, log\}",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 1, metric: v, space: {k: {choices: []}}}",
            "field 'search.space.k.choices'",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 1, metric: v, space: {k: {low: 2, high: 1}}}",
            r"low \(2\) must be less than high",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 1, metric: v, space: {k: {low: a, high: 1}}}",
            "field 'search.space.k.low': expected a finite n",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 1, metric: v, space: {k: {low: 0.0, high: .inf}}}",
            "expected a finite number, got inf",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 1, metric: v, space: {k: {low: 0, high: 1, log: true}}}",
            "needs a positive low, got 0",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 1, metric: v, space: {k: {low: 0, high: 1, log: 1}}}",
            "expected true or false, got 1",
        ),
        (
            "configs: [a]\nmetrics: [v]\nsearch: {trials: 1, metric: v, space: {config: {choices: [a]}}}",
            "config files vary under 'grid' and",
        ),
        ("configs: [a\nname: b", r"file\.yaml, line 2: this sweep file is no YAML"),
        ("configs: [a]\nconfigs: [b]", r"file\.yaml, line 2: this sweep file is no YAML \(.*configs"),
        ("configs: [a]\nname: ${nothing}", r"file\.yaml: .*nothing.*: correct the interpolation"),
        ("configs: [a]\nname: ???", r"file\.yaml: .*name.*: correct the interpolation"),
        ("- a", "a sweep file is a mapping of fields"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line_that_names_file_and_field(tmp_path, text, message):
    with pytest.raises(LoriError, match=message) as caught:
        _load(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "file.yaml" in str(caught.value)


SEARCH = "configs: [a]\nmetrics: [{metric}]\nsearch: {{trials: 2, metric: {metric}, space: {{k: {{choices: [1]}}}}}}"


@pytest.mark.parametrize("metric", ["accuracy", "low", "accuracy_steps_3", "test_sets.svamp.accuracy"])
def test_a_search_does_not_choose_on_the_test_set_unless_asked(tmp_path, metric):
    text = SEARCH.format(metric=metric)
    with pytest.raises(LoriError, match=rf"'search\.metric': '{metric}' is the test set's.*choose by 'validation'"):
        _load(tmp_path, text)
    assert _load(tmp_path, text, "search.on_test=true").search.on_test


@pytest.mark.parametrize("metric", ["validation", "loss", "seconds_of_training"])
def test_what_the_training_says_of_itself_may_be_chosen_by(tmp_path, metric):
    search = _load(tmp_path, SEARCH.format(metric=metric)).search
    assert (search.metric, search.on_test) == (metric, False)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(LoriError, match=r"none\.yaml: cannot read this sweep file \(No such file"):
        load_specification(tmp_path / "none.yaml")
