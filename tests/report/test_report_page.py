"""The page and its pictures: whole, escaped, without anything from outside, and legible in both themes."""

from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from folders import EVIL, answers, row, sweep, whole_report
from folders import everything as all_folders
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lori_pl.errors import LoriError
from lori_pl.evaluation.intervals import seed_interval
from lori_pl.evaluation.records import ResultTable
from lori_pl.report import drawings, page, tables
from lori_pl.report.curves import read_curves
from lori_pl.report.material import gather
from lori_pl.report.pictures import COLOURS, DARK, INK, LIGHT, look, picture, plain, shortened

VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}


class Page(HTMLParser):
    """All elements with their attributes, the text, and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text, self._open = "", []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def everything():
    return all_folders()


@pytest.fixture(scope="module")
def report():
    return whole_report()


@pytest.fixture(scope="module")
def read(report) -> Page:
    return Page(report.html)


def test_nothing_leads_outside(report, read):
    ids = {attributes["id"] for _, attributes in read.elements if "id" in attributes}
    for tag, attributes in read.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                assert value.startswith("data:") or (value[0] == "#" and value[1:] in ids), (tag, name, value[:80])
    assert "url(" not in report.html
    assert "@import" not in report.html
    (policy,) = [each["content"] for each in read.of("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_nothing_in_the_pictures_leads_outside(report):
    drawn = [each.svg.decode() for each in report.pictures if each.svg]
    assert len(drawn) > 10
    for svg in drawn:
        for name, value in re.findall(r'(href|src|url)\s*[=(]\s*"?([^")]*)', svg):
            assert value.startswith("#"), (name, value)
        assert {tag.partition("}")[2] for tag in (each.tag for each in ElementTree.fromstring(svg).iter())} <= {
            *("svg", "style", "defs", "g", "path", "use", "clipPath", "rect"),
        }


def test_names_from_data_are_text(report, read):
    assert EVIL in read.text
    assert "<script" not in report.html
    assert any(EVIL in each["alt"] for each in read.of("img"))
    assert f"lori − {EVIL}" in read.text
    assert f"note: {EVIL}" in read.text  # a config
    assert f"killed {EVIL}" in read.text  # a reason
    assert "no_cot $x$ _a" in read.text


def test_every_picture_has_words_and_opens(report, read):
    shown = read.of("img")
    assert len(shown) == len(report.pictures)
    assert all(each["alt"].strip() for each in shown)
    assert len({each.name for each in report.pictures}) == len(report.pictures)
    for each in report.pictures:
        assert re.fullmatch(r"[a-z0-9_]+", each.name)
        assert Image.open(io.BytesIO(each.png)).format == "PNG"
        content = base64.b64decode(each.uri.partition("base64,")[2])
        assert content == (each.svg or each.png)


def test_the_page_has_all_its_parts(report, read, everything):
    for part in ("Methods", "Claims", "Ablations", "Learning curves", "Runs without a result", "Spectra", "Analyses"):
        assert part in read.text
    for name in (
        "accuracy",
        "accuracy_by_steps",
        "accuracy_against_latency",
        "difference_by_steps",
        "validation",
        "loss",
    ):
        assert any(each.name == f"1_{name}" for each in report.pictures), name
    assert any(each.name.startswith("1_ablation_model_lr") for each in report.pictures)
    assert any(each.name.startswith("latency_1") for each in report.pictures)
    assert len(read.of("details")) >= len(everything.runs)
    assert "/chosen (selection)" in read.text
    assert "abc1234" in read.text
    assert "--seed_everything=4" in read.text


def test_the_numbers_of_the_page_are_those_of_the_claims(read, everything):
    for claim in everything.sections[0].claims:
        low, high = claim.effect.bounds
        assert f"{100 * claim.effect.mean:+.1f}" in read.text
        assert f"{100 * low:+.1f} to {100 * high:+.1f}" in read.text
        assert claim.verdict in read.text


def test_the_validation_has_its_interval_over_seeds(tmp_path):
    table = tables.methods(gather([sweep(tmp_path, {"lori": 0.6}, 3)]).sections[0])
    values = [answers(0.6, seed)[:30].mean() for seed in range(3)]
    low, high = (f"{100 * bound:.1f}" for bound in seed_interval(values))
    assert table.rows[0][table.heads.index("validation")] == f"{100 * np.mean(values):.1f} ({low} to {high})"


def test_one_seed_is_said_to_be_a_lead(tmp_path, monkeypatch):
    chapters = ("results", "claims", "ablations", "learning")
    monkeypatch.setattr(page.album, "of_section", lambda *_: {chapter: [] for chapter in chapters})
    text = Page(page.compose(gather([sweep(tmp_path, {"lori": 0.9, "no_cot": 0.3}, 1)]), "t").html).text
    assert "One seed a method: leads, no claims." in text
    assert "a lead, no claim: one seed" in text
    assert "p, Holm" not in text.partition("How to read")[0].replace("Holm's", "")


@pytest.fixture
def small(report) -> page.Report:
    """A report with one picture that was drawn and one that was found."""
    drawn = next(each for each in report.pictures if each.svg is not None)
    return page.Report(
        report.html, report.markdown, [drawn, next(each for each in report.pictures if each.svg is None)]
    )


def test_the_folder_is_whole_and_taken_again(small, tmp_path):
    folder = tmp_path / "new" / "report"
    for _ in range(2):
        page.write(small, folder)
        assert sorted(path.name for path in folder.iterdir()) == ["pictures", "report.html", "tables.md", "tensorboard"]
        assert (folder / "report.html").read_text(encoding="utf-8") == small.html
        assert {path.stem for path in (folder / "pictures").iterdir()} == {each.name for each in small.pictures}
    assert os.listdir(folder.parent) == ["report"]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == sorted(f"report/{each.name}" for each in small.pictures)
    (logged,) = events.Images(f"report/{small.pictures[0].name}")
    shown = Image.open(io.BytesIO(logged.encoded_image_string)).convert("RGB")
    assert np.array_equal(np.asarray(shown), small.pictures[0].pixels)


def test_a_folder_of_something_else_is_left_alone(tmp_path, small):
    (tmp_path / "a").mkdir()
    page.check_folder(tmp_path / "a")
    (tmp_path / "a" / "thesis.md").write_text("mine")
    with pytest.raises(LoriError, match=r"holds 'thesis\.md', which is no part of a report"):
        page.write(small, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "report.html").write_text("<html>mine</html>")
    with pytest.raises(LoriError, match="something that is not a report"):
        page.check_folder(tmp_path / "b")
    with pytest.raises(LoriError, match="is a file"):
        page.check_folder(tmp_path / "b" / "report.html")
    (tmp_path / "c" / "tensorboard").mkdir(parents=True)
    with pytest.raises(LoriError, match="something that is not a report"):
        page.check_folder(tmp_path / "c")


def test_a_report_that_fails_leaves_the_old_one(small, tmp_path, monkeypatch):
    page.write(small, tmp_path / "report")
    before = (tmp_path / "report" / "report.html").read_bytes()
    monkeypatch.setattr(page, "log", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(LoriError, match=r"cannot be written .*No space left"):
        page.write(small, tmp_path / "report")
    assert (tmp_path / "report" / "report.html").read_bytes() == before
    assert os.listdir(tmp_path) == ["report"]


NAMES = [
    *("a$b$", "$\\frac$", r"\$", "_hidden", "<b>&\"'-->", "日本語 𝕏", "]]>", "{{ 7 * 7 }}", "%s{x}", "\t", "&lt;"),
    *("long " * 1000, "word" * 1000),
]


def test_any_name_can_be_drawn_and_shown(tmp_path):
    table = ResultTable(tmp_path / "results.csv")
    for place, name in enumerate(NAMES):
        known = row(name, 0, answers(0.5, place), f"c{place}")
        table.append({key: value for key, value in known.items() if "steps" not in key})
    made = page.compose(gather([tmp_path], pairs=[("_hidden", "]]>")]), "t")
    assert all(ElementTree.fromstring(each.svg).tag.endswith("svg") for each in made.pictures)
    text = " ".join(Page(made.html).text.split())
    for name in NAMES:
        assert " ".join(name.split())[:200] in text


def test_names_that_shorten_to_the_same_are_told_apart():
    names = [f"{'a' * 30}{i}{'b' * 30}" for i in range(3)]
    assert len(set(shortened(names))) == 3
    assert plain("_x") == " _x"
    assert plain("$x$") == r"\$x\$"
    assert len(plain("x" * 100)) == 25


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", [LIGHT, DARK])
def test_colours_stand_out_in_both_themes(background, report):
    """Graphics by 3 to 1 and text by 4.5 to 1, as WCAG 2.2 asks for."""
    assert min(contrast(colour, background) for colour in COLOURS) >= 3
    themes = dict(
        zip((LIGHT, DARK), re.findall(r"color:(#\w{6});--paper", report.pictures[0].svg.decode()), strict=True)
    )
    assert contrast(themes[background], background) >= 7
    styles = [re.findall(r"--(back|ink|faint|accent|warn):(#\w{6})", part) for part in report.html.split(":root{")[1:3]]
    (style,) = [dict(found) for found in styles if dict(found)["back"] == background]
    assert min(contrast(style[name], background) for name in ("ink", "faint", "accent", "warn")) >= 4.5


def test_looks_differ():
    assert len({tuple(map(str, look(place).values())) for place in range(64)}) == 64


def test_the_users_own_style_changes_nothing():
    def draw():
        figure = Figure()
        figure.subplots().plot([1, 2], color=INK)
        return figure

    plainly = picture("a", "b", "c", draw)
    with matplotlib.rc_context({"figure.facecolor": "black", "text.color": "red", "svg.fonttype": "none"}):
        again = picture("a", "b", "c", draw)
    assert plainly.svg == again.svg
    assert INK not in plainly.svg.decode().replace(f"color:{INK}", "")


def test_learning_curves_are_those_of_the_log(everything, tmp_path):
    curves = everything.sections[0].curves
    (loss,) = curves["loss"]["lori"]
    assert loss[0].tolist() == list(range(0, 100, 10))
    assert loss[1] == pytest.approx(3.0 / (loss[0] + 1))
    (accuracy,) = curves["validation"]["lori"]
    assert accuracy[1] == pytest.approx(accuracy[0] / 200)
    notes: list[str] = []
    assert read_curves(tmp_path / "nowhere", notes) == {}
    assert notes == []


def drawn(axes, count):
    """Abscissas rounded to steps, means, and the intervals' ends of each errorbar, in the order of drawing."""
    found = []
    for container in axes.containers:
        (point, _, bars) = container.lines
        ends = [tuple(np.asarray(bar.get_segments())[0, :, 1]) for bar in bars]
        found.append((round(float(point.get_xdata()[0])), float(point.get_ydata()[0]), *ends))
    return [found[i : i + count] for i in range(0, len(found), count)]


def test_drawn_points_are_the_means_and_their_intervals(everything):
    section = everything.sections[0]
    methods = section.group.methods
    axes = drawings.by_steps(methods).axes[0]
    for runs, points in zip(methods.values(), drawn(axes, 3), strict=True):
        for (x, y, *ends), k in zip(points, (2, 3, 4), strict=True):
            values = [100 * run.by_steps[k] for run in runs]
            assert (x, y) == (k, pytest.approx(np.mean(values)))
            if (bounds := seed_interval(values)) is not None:
                assert ends == [pytest.approx((max(bounds[0], 0), min(bounds[1], 100)))]
    axes = drawings.effects(section.claims).axes[0]
    for claim, points in zip(section.claims, drawn(axes, 3), strict=True):
        for (x, y, *ends), (k, effect) in zip(points, sorted(claim.by_steps.items()), strict=True):
            assert (x, y) == (k, pytest.approx(100 * effect.mean))
            assert ends == ([] if effect.bounds is None else [pytest.approx([100 * b for b in effect.bounds])])
    for line in axes.get_lines():
        assert list(line.get_xdata()) == sorted(line.get_xdata())
