"""The examples of docs/extend.md, run as they stand: a source, a term and a method from outside the package."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from lori_pl import LatentReasoner
from lori_pl.cli import main
from lori_pl.errors import LoriError
from lori_pl.evaluation.records import read_outcomes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(ideas/[^`\n]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The files of the page in a folder of their own, beside the project's configs; its modules are forgotten after."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "ideas"]:
        del sys.modules[name]


def run(command: list[str]) -> Path | None:
    """Runs a command line of the page in process; gives the run's folder, if it has one."""
    assert command[:3] == ["python", "-m", "lori_pl"]
    arguments = command[3:]
    if arguments[0] != "fit":
        assert main(arguments) == 0
        return None
    root = Path(arguments[arguments.index("--trainer.default_root_dir") + 1])
    logger = [
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.save_dir={root}",
        "--trainer.logger.name=log",
        "--trainer.logger.version=",
    ]
    assert main([*arguments, *logger, "--trainer.enable_progress_bar=false"]) == 0
    return root


def logged(root: Path, name: str) -> list[float]:
    """The values of one logged number, in order."""
    with (root / "log" / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_the_page_is_complete():
    assert sorted(FILES) == [
        "ideas/method.yaml",
        "ideas/methods.py",
        "ideas/problems/test.txt",
        "ideas/problems/train.txt",
        "ideas/problems/validation.txt",
        "ideas/source.yaml",
        "ideas/sources.py",
        "ideas/term.yaml",
        "ideas/terms.py",
        "ideas/tiny.yaml",
    ]
    named = {name for command in COMMANDS for name in command if name.startswith("ideas/")}
    assert named == {name for name in FILES if name.endswith(".yaml")}


def test_source_term_and_method_from_outside_the_package(project, capsys):
    runs = {root.name: root for command in COMMANDS if (root := run(command)) is not None}
    assert list(runs) == ["teacher", "cosine", "two_tasks"]

    shown = capsys.readouterr().out
    assert "problem lines/train/0" in shown  # preview shows the source's problem
    for root in runs.values():
        assert read_outcomes(root / "correct.npz").ids == ["lines/test/0", "lines/test/1"]

    cosine = logged(runs["cosine"], "train/cosine")
    assert len(cosine) == 2
    assert all(0 < value < 2 for value in cosine)
    totals, tasks = logged(runs["cosine"], "train/loss"), logged(runs["cosine"], "train/task")
    for total, task, value in zip(totals, tasks, cosine, strict=True):
        assert total == pytest.approx(task + 0.2 * value, rel=1e-4)  # the weight of term.yaml

    rationale = logged(runs["two_tasks"], "train/rationale")
    totals, tasks = logged(runs["two_tasks"], "train/loss"), logged(runs["two_tasks"], "train/task")
    for total, task, value in zip(totals, tasks, rationale, strict=True):
        assert total == pytest.approx(task + 0.3 * value, rel=1e-4)  # the weight of method.yaml
    summary = json.loads((runs["two_tasks"] / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["methods"]) == ["two_tasks"]

    student = LatentReasoner.from_pretrained(runs["two_tasks"] / "student")
    assert student.reasoning == "none"
    assert len(student.answer(["Ann has 4 apples . How many apples does Ann have ?"], max_new_tokens=2)) == 1


def test_a_bad_row_of_the_example_is_named_by_file_and_line(project):
    from ideas.sources import Lines

    file = project / "ideas" / "problems" / "train.txt"
    file.write_text(file.read_text(encoding="utf-8") + "no separator here\n", encoding="utf-8")
    with pytest.raises(LoriError, match=r"train\.txt, line 5, the row should have two '\|', but has 0; correct"):
        Lines(str(project / "ideas" / "problems")).load("train")
    skipping = Lines(str(project / "ideas" / "problems"), on_bad_row="skip").load("train")
    assert (len(skipping.problems), skipping.bad_rows) == (4, 1)
