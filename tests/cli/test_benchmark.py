"""`benchmark`: several students on the same problems, and what is bad input to it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from failing import message
from tiny_world import BASE, SOURCE

from lori_pl import LatentReasoner
from lori_pl.cli import main
from lori_pl.commands import benchmark
from lori_pl.commands.benchmark import drawn, named_students
from lori_pl.data.sources import Synthetic
from lori_pl.errors import LoriError
from lori_pl.evaluation.benchmark import PHASES, time_answers
from lori_pl.report.drawings import timings
from lori_pl.report.files import Timed


@pytest.fixture
def lori(world, lori_args):
    assert world.fit("LoRi", "lori", "--test_after_fit", "false", **lori_args) == 0
    return world.folder / "lori"


def bench(world, *students, out="bench", flags=()):
    data = world.config("data", {"data": BASE["data"]})
    common = ["--config", data, "--problems", "6", "--repeats", "2", "--max_new_tokens", "5"]
    return main(["benchmark", *map(str, students), "--out", str(world.folder / out), *common, *flags])


def test_students_side_by_side(world, lori, teacher, capsys):
    checkpoint = lori / "checkpoints" / "last.ckpt"
    assert bench(world, f"words={teacher}", lori, f"last={checkpoint}") == 0
    shown = capsys.readouterr().out
    result = json.loads((world.folder / "bench" / "benchmark.json").read_text())
    rows = result["sets"]["test"]
    assert list(rows) == ["words", "lori", "last"]
    for row in rows.values():
        assert list(row) == ["1", "4"]
        for size in row.values():
            assert size["n"] == 6
            assert sum(part["n"] for part in size["by_steps"].values()) == 6
            assert size["milliseconds"]["quartiles"][0] <= size["milliseconds"]["median"]
            assert len(size["repeats"]) == 2
    assert rows["words"]["1"]["phases"]["thought"] == 0
    assert rows["lori"]["1"]["phases"]["thought"] > 0
    assert rows["lori"]["1"]["passes"] == 3 + rows["lori"]["1"]["tokens"]
    assert rows["lori"]["4"]["accuracy"] == rows["lori"]["1"]["accuracy"]
    assert (world.folder / "bench" / "benchmark.png").stat().st_size > 5000
    assert "words" in shown
    assert bench(world, lori) == 2
    assert "benchmark.json exists already" in message(capsys)


def test_the_parts_add_up_to_the_whole_and_batches_change_no_answer(teacher):
    reasoner = LatentReasoner.from_pretrained(teacher)
    problems = Synthetic(train=1, validation=1, test=7, min_steps=1, max_steps=2, limit=20).load("test").problems
    alone, together = (time_answers(reasoner, problems, size, 5, repeats=3) for size in (1, 7))
    assert np.array_equal(alone.correct, together.correct)
    assert np.array_equal(alone.tokens, together.tokens)
    assert np.array_equal(alone.passes, together.passes)
    for timing in (alone, together):
        assert np.allclose(timing.total, sum(timing.milliseconds[phase] for phase in PHASES))
        assert (timing.milliseconds["prefill"] > 0).all()
        assert (timing.milliseconds["answer"] > 0).all()
    assert len(set(together.total.tolist())) == 1  # of a batch, each its share
    with pytest.raises(LoriError, match="at least one problem"):
        time_answers(reasoner, [], 1, 5)


def test_each_student_is_loaded_once_for_all_test_sets(world, teacher, monkeypatch, capsys):
    loaded, load = [], benchmark.load_student

    def note(path, device, dtype):
        loaded.append(path)
        return load(path, device, dtype)

    monkeypatch.setattr(benchmark, "load_student", note)
    more = [f"--data.test_sources.{name}={json.dumps(SOURCE)}" for name in ("one", "two")]
    assert bench(world, f"a={teacher}", f"b={teacher}", flags=[*more, "--repeats", "1", "--largest", "1"]) == 0
    assert len(loaded) == 2
    sets = json.loads((world.folder / "bench" / "benchmark.json").read_text())["sets"]
    assert {name: list(rows) for name, rows in sets.items()} == {"one": ["a", "b"], "two": ["a", "b"]}


def test_short_and_long_questions_are_answered_before_the_clock_counts(teacher, monkeypatch):
    reasoner = LatentReasoner.from_pretrained(teacher)
    problems = Synthetic(train=1, validation=1, test=7, min_steps=1, max_steps=4, limit=20).load("test").problems
    widths, generate = [], LatentReasoner.generate

    def note(self, ids, *arguments, **keywords):
        widths.append(ids.shape[1])
        return generate(self, ids, *arguments, **keywords)

    monkeypatch.setattr(LatentReasoner, "generate", note)
    time_answers(reasoner, problems, 1, 2, repeats=2)
    counted = widths[3:10]
    assert widths == [counted[0], counted[3], counted[6], *counted, *counted]
    assert counted == sorted(counted)
    assert counted[0] < counted[-1]


def test_names_are_taken_as_they_stand(teacher, tmp_path):
    """A sweep calls its runs so; matplotlib and rich have their own ideas of such names."""
    link = tmp_path / "lori[rank=8]_seed0"
    link.symlink_to(teacher)
    assert list(named_students([str(link), f"$_x={teacher}"])) == ["lori[rank=8]_seed0", "$_x"]
    row = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "milliseconds": {"median": 1.0, "quartiles": [0.5, 2.0]}}
    sets = {"$\\frac$": {"_old": {"1": row}, "a[/b]$\\frac$": {"1": row}}, "other": {"a[/b]$\\frac$": {"1": row}}}
    assert drawn(sets).startswith(b"\x89PNG")


def test_a_student_looks_alike_on_every_test_set(tmp_path):
    old, new = (Timed(name, (0.5, 0.4, 0.6), (1.0, 0.5, 2.0), None) for name in ("_old", "new"))
    figure = timings({"$x$": [old, new], "other": [new]})
    figure.savefig(tmp_path / "drawn.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _old", "new"]
    assert [axes.get_title() for axes in figure.axes] == [r"\$x\$", "other"]
    first, second = ([bar.lines[0].get_color() for bar in axes.containers] for axes in figure.axes)
    assert first[0] != first[1]
    assert second == first[1:]


def test_a_fault_of_the_machine_is_one_line(world, lori, capsys, monkeypatch):
    """As in a training: every command explains them."""

    def generate(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr(LatentReasoner, "generate", generate)
    assert bench(world, lori) == 2
    assert "out of memory (asked for 2.50 GiB): lower --largest or --max_new_tokens" in message(capsys)
    monkeypatch.setattr(LatentReasoner, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench(world, lori)


def test_bad_input(world, teacher, capsys):
    assert bench(world, world.folder) == 2
    assert "holds no student" in message(capsys)
    assert bench(world, teacher, teacher) == 2
    assert "two students are called 'run'" in message(capsys)
    assert bench(world, teacher, flags=["--device", "abacus"]) == 2
    assert "--device abacus is not to be had here" in message(capsys)
    assert bench(world, teacher, flags=["--repeats", "0"]) == 2
    assert "--repeats is 0" in message(capsys)
    (world.folder / "lonely.ckpt").write_bytes(b"")
    assert bench(world, world.folder / "lonely.ckpt") == 2
    assert "no config.yaml of its run" in message(capsys)
    assert not (world.folder / "bench").exists()
