"""The tables and the picture of all methods, made from recorded results."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest
from scipy import stats

SCRIPT = Path(__file__).parents[2] / "experiments" / "figures" / "methods.py"
RIGHT = {"lori": (80, 90, 88), "no_cot": (40, 44, 41), "codi": (50, 75, 52), "pccot_equal_passes": (60, 61, 62)}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def write(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def row(method: str, seed: int, right: int, **values) -> dict:
    found = {"method": method, "seed": seed, "accuracy": right / 100, "status": "ok", "commit": "abc", "passes": 9}
    return found | {"accuracy_steps_3": 0.9, "accuracy_steps_4": 0.7} | values


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three seeds of four methods; one row of an attempt before, and one that failed."""
    rows = [row("lori", 0, 1), row("lori", 5, 1, status="failed")]
    rows += [row(method, seed, value) for method, values in RIGHT.items() for seed, value in enumerate(values)]
    for found in rows:
        if found["method"] == "lori" and found["status"] == "ok":
            found["accuracy_steps_4"] = 0.6 + 0.1 * found["seed"]
    write(tmp_path / "results.csv", rows)
    cost = {"milliseconds": 1.5, "problems_seen": 12800, "training_tflop": 30.04, "teacher_tflop": 7.0}
    cost |= {"measuring_tflop": 5.1, "measuring_seconds": 20.4}
    write(tmp_path / "costs" / "results.csv", [row("lori", 0, 0, **cost, training_seconds=61.2, peak_memory_mib=900.4)])
    return tmp_path


def test_the_tables_have_accuracy_and_costs_of_whole_trainings(folder, tmp_path, monkeypatch, capsys):
    run(monkeypatch, folder, tmp_path / "picture.png")
    shown = capsys.readouterr().out.splitlines()
    # mean 86, sd 5.29, t of two degrees of freedom 4.303
    assert "| LoRi | 86.0 (72.9 to 99.1) | 80.0 90.0 88.0 | 9.0 | 1.50 | 306 |" in shown
    assert "| PCCoT, 7 passes | 61.0 (58.5 to 63.5) | 60.0 61.0 62.0 | 9.0 |  |  |" in shown
    # of four steps 60, 70 and 80; the others 70 each
    assert "| LoRi | 90.0 (all alike) | 70.0 (45.2 to 94.8) |" in shown
    assert "| No-CoT | +0.0 | +0.0 (-24.8 to +24.8) |" in shown
    # ten times the tenth, and once what is measured before it
    assert "| LoRi | 128,000 | 306 | 75 | 632 | 900 | 1.50 |" in shown


def test_without_costs_there_is_no_table_of_them(folder, tmp_path, monkeypatch, capsys):
    (folder / "costs" / "results.csv").unlink()
    run(monkeypatch, folder, tmp_path / "picture.png")
    assert "problems seen" not in capsys.readouterr().out
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_claims_are_corrected_together(folder, tmp_path, monkeypatch, capsys):
    run(monkeypatch, folder, tmp_path / "picture.png")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- LoRi less")]
    assert len(shown) == 2  # not PCCoT's variant
    p = sorted(stats.ttest_rel(RIGHT["lori"], RIGHT[name]).pvalue for name in ("no_cot", "codi"))
    assert f"p {p[0]:.2g}, Holm {2 * p[0]:.2g}: points to lori, but no claim: 3 seeds" in shown[0]
    assert "LoRi less CODI: +27.0" in shown[1]
    assert f"p {p[1]:.2g}, Holm {p[1]:.2g}" in shown[1]


def test_the_tables_are_written_into_the_pages(folder, tmp_path, monkeypatch, capsys):
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    markers = [f"<!-- {name}:methods -->" for name in ("results", "steps", "costs", "claims", "effects")]
    blocks = [f"{marker}\n\nold\nlines\n\nAfter.\n\n" for marker in markers]
    first.write_text(f"Before.\n\n{blocks[0]}")
    second.write_text("".join(blocks[1:]))
    run(monkeypatch, folder, tmp_path / "picture.png", first, second)
    shown, written = capsys.readouterr().out, first.read_text() + second.read_text()
    assert "old" not in written
    assert written.count("After.") == 5
    assert [line for line in written.splitlines() if line.startswith(("|", "- "))] == [
        line for line in shown.splitlines() if line.startswith(("|", "- "))
    ]
    run(monkeypatch, folder, tmp_path / "picture.png", first, second)
    assert first.read_text() + second.read_text() == written


@pytest.mark.parametrize(("wrong", "marker"), [("", "steps"), ("<!-- results:methods -->\n\n", "results")])
def test_pages_without_a_marker_or_with_two_stay_as_they_were(folder, tmp_path, monkeypatch, wrong, marker):
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    first.write_text("<!-- results:methods -->\n\nold\n\nAfter.\n")
    second.write_text(wrong)
    with pytest.raises(SystemExit, match=f"second.md: `<!-- {marker}:methods -->` and an empty line must stand there"):
        run(monkeypatch, folder, tmp_path / "picture.png", first, second)
    assert "old" in first.read_text()
    assert second.read_text() == wrong


def test_without_results_it_says_so(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"results\.csv has no finished run"):
        run(monkeypatch, tmp_path)
