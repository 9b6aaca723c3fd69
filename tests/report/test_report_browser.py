"""The report in a real browser: all of it loads, nothing is asked of a network, no script errs, and it fits a phone."""

from __future__ import annotations

import pytest
from browser import Browser, find
from folders import whole_report

from lori_pl.report import page

pytestmark = pytest.mark.skipif(find() is None, reason="no chromium on this machine (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def browser():
    with Browser(find()) as found:
        yield found


@pytest.fixture(scope="module")
def report():
    return whole_report()


@pytest.fixture(scope="module")
def file(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / page.PAGE
    path.write_text(report.html, encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_loads_whole(browser, file, report, width, scheme):
    browser.faults.clear()
    browser.requested.clear()
    browser.open(file, width, scheme=scheme)
    assert browser.value("document.images.length") == len(report.pictures)
    assert browser.value("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert browser.value("document.scripts.length") == 0
    # as wide as the window, whatever tables and names are in it
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.value("Math.max(...[...document.querySelectorAll('figure')].map(f => f.offsetWidth))") <= width
    backgrounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 25, 31)"}
    assert browser.value("getComputedStyle(document.body).backgroundColor") == backgrounds[scheme]
    assert browser.faults == []
    assert [url for url in browser.requested if not url.startswith(("data:", file.resolve().as_uri()))] == []


def test_the_browser_would_tell_of_faults(browser, tmp_path):
    """A page with what the report must not have: a script that errs, a missing picture, one from a network."""
    path = tmp_path / "bad.html"
    path.write_text("<script>undefined.x</script><img src='gone.png'><img src='http://127.0.0.1:9/x.png'>")
    browser.faults.clear()
    browser.requested.clear()
    browser.open(path, 390)
    assert any(fault.startswith("script error") for fault in browser.faults)
    assert any(fault.startswith("loading failed") for fault in browser.faults)
    assert "http://127.0.0.1:9/x.png" in browser.requested


def test_the_pictures_follow_the_theme(browser, report, tmp_path):
    """The drawn ink of one picture, rendered by the browser: dark on white, light on dark."""
    picture = next(each for each in report.pictures if each.svg)
    (tmp_path / "one.html").write_text(
        f"<meta charset='utf-8'><style>body{{margin:0}}</style><img src='{picture.uri}'>"
    )
    script = """(() => { const c = document.createElement('canvas'), i = document.images[0];
        c.width = i.naturalWidth; c.height = i.naturalHeight; const d = c.getContext('2d'); d.drawImage(i, 0, 0);
        const p = d.getImageData(0, 0, c.width, c.height).data, g = [];
        for (let k = 0; k < p.length; k += 4)
            if (p[k + 3] > 250 && Math.abs(p[k] - p[k + 1]) < 15 && Math.abs(p[k + 1] - p[k + 2]) < 15) g.push(p[k]);
        g.sort((a, b) => a - b); return g[Math.floor(g.length / 2)]; })()"""
    shades = {}
    for scheme in ("light", "dark"):
        browser.open(tmp_path / "one.html", 800, scheme=scheme)
        shades[scheme] = browser.value(script)
    assert shades["light"] < 80
    assert shades["dark"] > 180


def test_a_columns_head_stands_over_its_cells(browser, file):
    browser.open(file, 1280)
    script = """[...document.querySelectorAll('table')].flatMap(table => {
        const side = cell => getComputedStyle(cell).textAlign, rows = [...table.tBodies[0].rows];
        return [...table.tHead.rows[0].cells].flatMap((head, k) => rows.filter(
            row => row.cells[k] && side(row.cells[k]) !== side(head)).map(() => head.innerText)); })"""
    assert browser.value(script) == []
    assert browser.value("document.querySelectorAll('td.text').length") > 0
