import os
import stat
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lori_pl.data.problem import Problem, problems_digest
from lori_pl.data.synthetic import synthetic_problems
from lori_pl.errors import LoriError
from lori_pl.evaluation import records
from lori_pl.evaluation.records import (
    RESULT_COLUMNS,
    ResultTable,
    git_commit,
    read_outcomes,
    read_rows,
    write_outcomes,
    write_rows,
)

IDS = ["gsm8k/test/0", "gsm8k/test/1", "ü/2"]


# --- outcomes ---------------------------------------------------------------------------------------------------------


def test_outcomes_come_back_for_every_method_and_seed(tmp_path):
    path = tmp_path / "results" / "correct.npz"
    write_outcomes(path, IDS, [True, False, True], "lori", 0)
    write_outcomes(path, IDS, np.array([0, 0, 1]), "lori", 1)
    write_outcomes(path, IDS, [False] * 3, "lori[rank=8/16]", 0)
    outcomes = read_outcomes(path)
    assert outcomes.ids == IDS
    assert {key: bits.tolist() for key, bits in outcomes.bits.items()} == {
        ("lori", 0): [True, False, True],
        ("lori", 1): [False, False, True],
        ("lori[rank=8/16]", 0): [False, False, False],
    }
    assert all(bits.dtype == bool for bits in outcomes.bits.values())
    assert [file.name for file in path.parent.iterdir()] == ["correct.npz"]
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays.files == ["ids", "lori/0", "lori/1", "lori[rank=8/16]/0"]


def test_outcomes_in_another_order_are_sorted_by_id(tmp_path):
    path = tmp_path / "correct.npz"
    write_outcomes(path, ["a", "b", "c"], [1, 0, 0], "first", 0)
    write_outcomes(path, ["c", "a", "b"], [1, 0, 0], "second", 0)
    assert read_outcomes(path).bits["second", 0].tolist() == [False, False, True]


def test_the_same_method_and_seed_replaces(tmp_path):
    path = tmp_path / "correct.npz"
    write_outcomes(path, ["a"], [1], "lori", 0)
    write_outcomes(path, ["a"], [0], "lori", 0)
    assert read_outcomes(path).bits["lori", 0].tolist() == [False]


@pytest.mark.parametrize(
    ("ids", "bits", "message"),
    [
        (["a", "b"], [1], "2 ids but 1 outcomes"),
        (["a", "a"], [1, 0], "'a' occurs twice"),
        (["a", "x"], [1, 0], "'b' is in one only|'x' is in one only"),
        (["a", "b"], [1, 7], "other than 0 and 1"),
    ],
)
def test_write_outcomes_refuses_and_keeps_the_file(tmp_path, ids, bits, message):
    path = tmp_path / "correct.npz"
    write_outcomes(path, ["a", "b"], [1, 0], "lori", 0)
    before = path.read_bytes()
    with pytest.raises(LoriError, match=message):
        write_outcomes(path, ids, bits, "lori", 1)
    assert path.read_bytes() == before


def test_numbers_of_steps_stay_with_their_problems(tmp_path):
    path = tmp_path / "correct.npz"
    write_outcomes(path, ["a", "b"], [1, 0], "old", 0)
    assert read_outcomes(path).steps is None
    write_outcomes(path, ["b", "a"], [1, 0], "new", 0, steps=[5, 4])
    write_outcomes(path, ["b", "a"], [1, 0], "old", 1)
    found = read_outcomes(path)
    assert found.steps.tolist() == [4, 5]
    assert list(found.bits) == [("old", 0), ("new", 0), ("old", 1)]
    with pytest.raises(LoriError, match="other numbers of steps"):
        write_outcomes(path, ["a", "b"], [1, 0], "new", 1, steps=[5, 4])
    with pytest.raises(LoriError, match="2 ids but numbers of steps"):
        write_outcomes(path, ["a", "b"], [1, 0], "new", 1, steps=[5])
    np.savez(path, ids=np.array(["a"]), steps=np.array([1, 2]))
    with pytest.raises(LoriError, match="numbers of steps of shape"):
        read_outcomes(path)


def test_two_worlds_share_ids_and_numbers_of_steps_but_no_digest():
    easy, hard = (synthetic_problems(20, 0, "test", max_steps=4, distractors=n) for n in (0, 1))
    assert [problem.id for problem in easy] == [problem.id for problem in hard]
    assert len({problems_digest(easy), problems_digest(hard), problems_digest(easy[1:])}) == 3
    assert problems_digest(easy[::-1]) == problems_digest(easy)
    one = Problem("a", "1 ?", ["<<1+1=2>>"], "2")
    assert problems_digest([one]) == problems_digest([replace(one, steps=[])])
    for changed in (replace(one, id="b"), replace(one, question="2 ?"), replace(one, answer="3")):
        assert problems_digest([one]) != problems_digest([changed])


def test_outcomes_of_another_world_are_not_merged(tmp_path):
    path = tmp_path / "correct.npz"
    write_outcomes(path, ["a", "b"], [1, 0], "lori", 0, steps=[4, 4], problems="easy")
    before = path.read_bytes()
    with pytest.raises(LoriError, match=r"lori/1 has as many of the same ids, but with other questions or answers"):
        write_outcomes(path, ["a", "b"], [1, 0], "lori", 1, steps=[4, 4], problems="hard")
    assert path.read_bytes() == before
    write_outcomes(path, ["b", "a"], [1, 0], "lori", 1, steps=[4, 4], problems="easy")
    assert read_outcomes(path).problems == "easy"
    assert read_outcomes(path).bits["lori", 1].tolist() == [False, True]


def test_a_file_without_a_digest_takes_the_first_that_comes_and_keeps_it(tmp_path):
    path = tmp_path / "correct.npz"
    write_outcomes(path, ["a", "b"], [1, 0], "old", 0)
    assert read_outcomes(path).problems is None
    write_outcomes(path, ["a", "b"], [1, 0], "new", 0, problems="easy")
    write_outcomes(path, ["a", "b"], [1, 0], "old", 1)
    assert read_outcomes(path).problems == "easy"
    with pytest.raises(LoriError, match="other questions or answers"):
        write_outcomes(path, ["a", "b"], [1, 0], "new", 1, problems="hard")
    assert list(read_outcomes(path).bits) == [("old", 0), ("new", 0), ("old", 1)]


def test_a_crash_while_outcomes_are_written_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "correct.npz"
    write_outcomes(path, ["a"], [1], "lori", 0)

    def crash(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(records.np, "savez_compressed", crash)
    with pytest.raises(KeyboardInterrupt):
        write_outcomes(path, ["a"], [0], "lori", 1)
    assert list(read_outcomes(path).bits) == [("lori", 0)]
    assert [file.name for file in tmp_path.iterdir()] == ["correct.npz"]


def test_read_outcomes_refuses_what_is_none(tmp_path):
    path = tmp_path / "correct.npz"
    with pytest.raises(LoriError, match="no such file"):
        read_outcomes(path)
    for content in (b"", b"text", b"PK\x03\x04broken"):
        path.write_bytes(content)
        with pytest.raises(LoriError, match="not a file of outcomes"):
            read_outcomes(path)
    np.savez(path, ids=np.array(["a"]), other=np.array([True]))
    with pytest.raises(LoriError, match="not a file of outcomes"):
        read_outcomes(path)
    np.savez(path, ids=np.array(["a"]), **{"lori/0": np.array([True, False])})
    with pytest.raises(LoriError, match="2 outcomes for 1 ids"):
        read_outcomes(path)


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_outcomes_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("correct.npz", ids=np.array([_Bomb()], dtype=object))
    with pytest.raises(LoriError, match="not a file of outcomes"):
        read_outcomes("correct.npz")
    assert not (tmp_path / "unpickled").exists()


# --- result table -----------------------------------------------------------------------------------------------------


def _row(**values):
    return {"method": "lori", "seed": 0, "accuracy": 0.5, "n": 10} | values


def test_rows_come_back_in_order_under_the_header(tmp_path):
    path = tmp_path / "a" / "results.csv"
    table = ResultTable(path)
    assert table.rows() == []
    table.append(_row(command="python -m lori_pl fit --a='x, \"y\"'", commit=None))
    table.append(_row(seed=1, accuracy=np.float64(0.1) + 0.2, passes=6))
    lines = path.read_text().splitlines()
    assert lines[0] == "method,seed,accuracy,n,passes,milliseconds,commit,command"
    assert len(lines) == 3
    first, second = table.rows()
    assert first["command"] == "python -m lori_pl fit --a='x, \"y\"'"
    assert first["commit"] == ""
    assert float(second["accuracy"]) == 0.1 + 0.2
    assert second["passes"] == "6"


def test_every_row_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor)), fsync(descriptor)))
    path = tmp_path / "results.csv"
    for seed in range(3):
        ResultTable(path).append(_row(seed=seed))
        files = [status.st_size for status in synced if stat.S_ISREG(status.st_mode)]
        assert files[-1] == path.stat().st_size
        assert len(ResultTable(path).rows()) == seed + 1
    assert len(files) == 3


def unseen(monkeypatch, path):
    """For this process the file is not there when it first looks, as for a client of NFS that looked before it was."""
    looks = []
    exists = type(path).exists

    def looked(self, **options):
        looks.append(self)
        return exists(self, **options) and not (self == path and looks.count(path) == 1)

    monkeypatch.setattr(type(path), "exists", looked)


def test_the_first_row_of_another_machine_is_kept_though_this_one_does_not_see_it(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    ResultTable(path, ["status"]).append(_row(status="ok"))
    unseen(monkeypatch, path)
    ResultTable(path, ["other"]).append(_row(seed=1, rank=8))
    rows = ResultTable(path).rows()
    assert [(row["seed"], row["status"], row["rank"]) for row in rows] == [("0", "ok", ""), ("1", "", "8")]
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_the_first_outcomes_of_another_machine_are_kept_though_this_one_does_not_see_them(tmp_path, monkeypatch):
    path = tmp_path / "correct.npz"
    write_outcomes(path, ["a", "b"], [1, 0], "lori", 0)
    unseen(monkeypatch, path)
    write_outcomes(path, ["b", "a"], [1, 0], "lori", 1)
    found = {key: bits.tolist() for key, bits in read_outcomes(path).bits.items()}
    assert found == {("lori", 0): [True, False], ("lori", 1): [False, True]}


def test_a_table_that_a_spreadsheet_saved_is_read(tmp_path):
    """With a byte order mark, and lines that end as on Windows."""
    path = tmp_path / "results.csv"
    ResultTable(path).append(_row())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    before = ResultTable(path).rows()
    ResultTable(path).append(_row(seed=1))
    assert [row["seed"] for row in ResultTable(path).rows()] == ["0", "1"]
    assert ResultTable(path).rows()[0] == before[0]


def test_a_known_header_is_appended_to_without_a_rewrite(tmp_path):
    path = tmp_path / "results.csv"
    table = ResultTable(path, ["status"])
    table.append(_row(status="ok"))
    inode = path.stat().st_ino
    table.append(_row())
    assert path.stat().st_ino == inode


def test_a_new_column_extends_the_header_of_all_rows(tmp_path):
    table = ResultTable(tmp_path / "results.csv", ["status"])
    table.append(_row(status="ok"))
    table.append(_row(rank=8))
    table.append(_row(status="failed"))
    assert list(table.rows()[0]) == [*RESULT_COLUMNS, "status", "rank"]
    assert [(row["status"], row["rank"]) for row in table.rows()] == [("ok", ""), ("", "8"), ("failed", "")]


def test_a_crash_while_the_header_grows_keeps_the_old_file(tmp_path, monkeypatch):
    table = ResultTable(tmp_path / "results.csv")
    table.append(_row())
    before = table.path.read_bytes()

    def crash(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(LoriError, match=r"cannot be written \(disk full\)"):
        table.append(_row(rank=8))
    assert table.path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


@given(cut=st.integers(0, 350))
@settings(max_examples=40, deadline=None)
def test_a_file_cut_anywhere_loses_only_the_cut_row(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "results.csv"
    table = ResultTable(path)
    table.append(_row(command='a, "b"'))
    one = path.read_bytes()
    table.append(_row(seed=1, command='c, "d"' + 150 * "x"))
    whole = path.read_bytes()
    keep = max(len(whole) - cut, 0)
    path.write_bytes(whole[:keep])
    expected = 2 if keep == len(whole) else 1 if keep >= len(one) else 0
    assert len(table.rows()) == expected
    table.append(_row(seed=2))
    # what was cut off may have been a whole line, written by hand
    moved, behind = path.with_name("results.csv.cut"), whole[:keep].rpartition(b"\n")[2]
    assert (moved.read_bytes() if moved.exists() else b"") == (behind + b"\n" if behind else b"")
    assert [row["seed"] for row in table.rows()] == [*["0", "1"][:expected], "2"]
    assert path.read_bytes().endswith(b"\n")


@given(values=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_text_stays_one_line_and_comes_back(tmp_path_factory, values):
    table = ResultTable(tmp_path_factory.mktemp("text") / "results.csv")
    for value in values:
        table.append(_row(command=value))
    assert [row["command"] for row in table.rows()] == [" ".join(v.replace("\0", " ").splitlines()) for v in values]
    assert table.path.read_bytes().count(b"\n") == len(values) + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "line 1: not a result table, column 'method' is missing"),
        (",".join(RESULT_COLUMNS).encode() + b"\nlori,0\n", "line 2: 2 fields where the header has 8"),
        (b"\xff\xfe\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_table_is_refused_and_kept(tmp_path, content, message):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(LoriError, match=message):
        ResultTable(path).rows()
    with pytest.raises(LoriError, match=message):
        ResultTable(path).append(_row())
    assert path.read_bytes() == content


# --- commit -----------------------------------------------------------------------------------------------------------


def _git(folder, *arguments):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "table.csv"
    rows = [{"name": 'a "b", c', "value": 0.1}, {"value": "2\n3", "name": ""}]
    write_rows(path, rows)
    assert path.read_text() == 'name,value\n"a ""b"", c",0.1\n,"2\n3"\n'
    assert read_rows(path) == [{"name": 'a "b", c', "value": "0.1"}, {"name": "", "value": "2\n3"}]
    assert read_rows(tmp_path / "none.csv") == []
    with pytest.raises(KeyError):
        write_rows(path, [*rows, {"name": "no value"}])
    assert path.read_text().count("\n") == 4
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]


def test_git_commit_names_the_commit_and_whether_the_code_differs(tmp_path):
    package, configs, results = tmp_path / "package", tmp_path / "configs", tmp_path / "results.csv"
    package.mkdir()
    configs.mkdir()
    (package / "a.py").write_text("1")
    assert git_commit([package, configs]) == "unknown"
    _git(tmp_path, "init", "-q")
    assert git_commit([package, configs]) == "unknown"
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "first")
    commit = _git(tmp_path, "rev-parse", "--short", "HEAD").strip()
    assert git_commit([package, configs]) == commit
    results.write_text("a row that the sweep itself wrote")
    assert git_commit([package, configs]) == commit
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "rows")
    assert git_commit([package, configs]) == commit
    (configs / "new.yaml").write_text("a: 1")
    assert git_commit([package, configs]) == f"{commit}+dirty"
    (configs / "new.yaml").unlink()
    (package / "a.py").write_text("2")
    assert git_commit([package, configs]) == f"{commit}+dirty"


def test_code_installed_inside_another_checkout_is_unknown(tmp_path):
    _git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    (tmp_path / ".gitignore").write_text(".venv")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "first")
    package = tmp_path / ".venv" / "package"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1")
    assert git_commit([package]) == "unknown"


def test_git_commit_without_git_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == "unknown"


def test_a_last_line_without_an_end_is_told_once(tmp_path, caplog):
    path = tmp_path / "results.csv"
    for seed in range(2):
        ResultTable(path).append({"method": "lori", "seed": seed, "accuracy": 0.5})
    path.write_bytes(path.read_bytes()[:-1])  # as some editors leave it
    for _ in range(2):
        assert len(ResultTable(path).rows()) == 1
    (told,) = caplog.messages
    assert told.startswith(f"{path}: the last line has no line end")
