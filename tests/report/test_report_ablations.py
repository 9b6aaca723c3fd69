"""What a sweep varied: which runs make a series, and what its picture says."""

from __future__ import annotations

import pytest
from folders import answers, row

from lori_pl.evaluation.intervals import seed_interval
from lori_pl.evaluation.records import ResultTable
from lori_pl.report import album
from lori_pl.report.ablations import ablations
from lori_pl.report.material import Section, gather


def vary(tmp_path, cells):
    table = ResultTable(tmp_path / "results.csv")
    for place, (label, seed, axes) in enumerate(cells):
        table.append(row(label, seed, answers(0.5, place), f"c{place}", **axes))
    return ablations(gather([tmp_path]).sections[0].group)


def test_a_series_is_alike_in_all_but_one_value(tmp_path):
    cells = [(f"lori_{lr}", seed, {"model.lr": lr}) for lr in (0.01, 0.002) for seed in (0, 1)]
    cells += [(f"lori_{lr}_long", 0, {"model.lr": lr, "trainer.max_steps": 9}) for lr in (0.01, 0.1, 1)]
    cells += [("alone", 0, {"model.lr": 5, "model.latents": 3})]
    (found,) = vary(tmp_path, cells)
    assert (found.key, found.numeric) == ("model.lr", True)
    assert [(series.name, [point.value for point in series.points]) for series in found.series] == [
        ("lori", ["0.002", "0.01"]),
        ("lori_long", ["0.01", "0.1", "1"]),
    ]
    first = found.series[0].points[1]
    low, high = seed_interval([answers(0.5, 0).mean(), answers(0.5, 1).mean()])  # the first two cells
    assert first.accuracy.bounds == pytest.approx((max(low, 0), min(high, 1)))
    assert first.seeds == 2
    best = max(found.series[1].points, key=lambda point: point.validation)
    assert found.series[1].chosen is best


def test_tests_of_students_are_one_series_over_their_seeds(tmp_path):
    """Each seed's test takes the weights of its own run, and a run has no value of what its tests vary."""
    cells = [(f"lori_K{k}", s, {"model.latents": k}) for k in (3, 5) for s in (0, 1)]
    for k, s, tested in [(k, s, tested) for k in (3, 5) for s in (0, 1) for tested in (1, 3, 5)]:
        flags = {"model.latents": k, "ckpt_path": f"runs/K{k}_{s}/student", "latents": tested}
        cells.append((f"lori_K{k}[latents={tested}]", s, flags))
    by_key = {found.key: found for found in vary(tmp_path, cells)}
    assert by_key.keys() == {"model.latents", "latents"}
    tested = by_key["latents"].series
    assert [(each.name, [(point.value, point.seeds) for point in each.points]) for each in tested] == [
        (f"lori_K{k}", [("1", 2), ("3", 2), ("5", 2)]) for k in (3, 5)
    ]
    # the runs themselves, and their students at each number of latents
    assert [len(each.points) for each in by_key["model.latents"].series] == [2, 2, 2, 2]


def test_values_that_are_no_numbers(tmp_path):
    cells = [(f"lori[core={core}]", 0, {"model.core": core}) for core in ("full", "tucker", "1")]
    (found,) = vary(tmp_path, cells)
    assert not found.numeric
    assert [point.value for point in found.series[0].points] == ["full", "tucker", "1"]
    assert found.series[0].name == "lori"


def test_a_method_is_no_axis(tmp_path):
    assert vary(tmp_path, [("a", 0, {"config": "a.yaml"}), ("b", 0, {"config": "b.yaml"})]) == []


def vary_named(tmp_path, cells):
    """Variants: named sets of flags, of which the command has the flags, and the column the name."""
    table = ResultTable(tmp_path / "results.csv")
    for place, (label, seed, variant, flags, config) in enumerate(cells):
        axes = {"variant": variant, **{key: value for key, value in flags.items() if key == "data.train_problems"}}
        line = row(label, seed, answers(0.5, place), f"c{place}", **flags) | axes
        line["command"] = line["command"].replace("method/lori.yaml", config)
        table.append({key: value for key, value in line.items() if key not in flags or key in axes})
    return gather([tmp_path]).sections[0].group


def test_variants_are_choices_of_one_picture(tmp_path):
    flags = {"some": {"model.weights.mean": 5}, "none": {"model.weights.mean": 0, "model.optimizer.lr": 0.001}}
    cells = [(f"lori_{name}", seed, name, each, "lori.yaml") for name, each in flags.items() for seed in (0, 1)]
    group = vary_named(tmp_path, [*cells, ("codi", 0, "codi", {"model.weights.mean": 5}, "codi.yaml")])
    (found,) = ablations(group)
    assert (found.key, found.numeric) == ("variant", False)
    (series,) = found.series  # another config file makes another method
    assert [(point.value, point.seeds) for point in series.points] == [("some", 2), ("none", 2)]
    bounds = seed_interval([answers(0.5, 0).mean(), answers(0.5, 1).mean()])
    assert series.points[0].accuracy.bounds == pytest.approx((max(bounds[0], 0), min(bounds[1], 1)))
    (picture,) = album.of_section(Section(group, ablations=[found]), 1)["ablations"]
    assert "they may differ in several flags" in picture.note
    assert "All else alike" not in picture.note
    assert "some gives" in picture.alt


def test_variants_are_alike_in_all_else_that_was_varied(tmp_path):
    cells = [
        (f"lori_{name}_{n}", 0, name, {"model.weights.mean": mean, "data.train_problems": n}, "lori.yaml")
        for n in (2000, 8000)
        for name, mean in (("some", 5), ("more", 40))
    ]
    by_key = {found.key: found for found in ablations(vary_named(tmp_path, cells))}
    assert [[point.value for point in each.points] for each in by_key["variant"].series] == [["some", "more"]] * 2
    assert [each.name for each in by_key["variant"].series] == ["lori_2000", "lori_8000"]
    assert [len(each.points) for each in by_key["data.train_problems"].series] == [2, 2]


@pytest.mark.parametrize(
    ("value", "flags", "joins"),
    [
        (0, {"model.alignment": "null"}, True),
        (0, {"model.alignment": "other"}, False),
        pytest.param(0, {"model.alignment": "null", "model.core": "full"}, False, marks=pytest.mark.slow),
        pytest.param(4, {"model.alignment": "null"}, False, marks=pytest.mark.slow),
        pytest.param(1, {"model.alignment": "null"}, False, marks=pytest.mark.slow),
    ],
)
def test_none_of_something_joins_its_curve_with_what_is_turned_off_for_it(tmp_path, value, flags, joins):
    """Without latents there is nothing to align; a run that has some and is not aligned is another thing."""
    cells = [(f"lori_K{k}", 0, {"model.latents": k}) for k in (1, 3)]
    table = ResultTable(tmp_path / "results.csv")
    for place, (label, seed, axes) in enumerate([*cells, (f"lori_K{value}", 0, {"model.latents": value, **flags})]):
        line = row(label, seed, answers(0.5, place), f"c{place}", **axes)
        table.append({key: each for key, each in line.items() if key != "model.alignment"})
    group = gather([tmp_path]).sections[0].group
    (found,) = ablations(group)
    (series,) = found.series
    assert [point.value for point in series.points] == (["0", "1", "3"] if joins else ["1", "3"])
    (picture,) = album.of_section(Section(group, ablations=[found]), 1)["ablations"]
    assert ("The runs at 0 also have model.alignment=null." in picture.note) == joins
