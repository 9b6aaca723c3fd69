"""`report` by the command line, of a run that the command line made, and its refusals."""

from __future__ import annotations

from pathlib import Path

from lori_pl.cli import main
from lori_pl.evaluation.records import ResultTable
from lori_pl.sweep.cells import expand
from lori_pl.sweep.specification import load_specification


def message(capsys) -> str:
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def results(folder, methods=("lori", "no_cot"), seeds=3):
    table = ResultTable(folder / "results.csv", ["status"])
    for place, method in enumerate(methods):
        for seed in range(seeds):
            accuracy = 0.5 + 0.01 * seed * (place + 1) - 0.1 * place
            table.append({"method": method, "seed": seed, "accuracy": accuracy, "n": 100, "status": "ok"})
    return str(folder)


def test_a_run_is_reported(teacher, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["report", str(Path(teacher).parent), "--folder", str(out), "--title", "Mine"]) == 0
    shown = capsys.readouterr().out
    assert f"{out}/report.html, 5 pictures" in shown
    html = (out / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(out), "--folder", str(tmp_path / "again")]) == 2
    assert "holds nothing to report" in message(capsys)
    assert "<title>Mine</title>" in html
    assert "class_path: lori_pl.methods.ExplicitCoT" in html
    names = {path.stem for path in (out / "pictures").iterdir()}
    parts = ("accuracy", "accuracy_by_steps", "accuracy_against_latency", "validation", "loss")
    assert names == {f"1_{name}" for name in parts}


def test_claims_by_flag_and_by_sweep_file(tmp_path, capsys):
    folder, out = results(tmp_path / "a", ("a", "b", "c")), str(tmp_path / "out")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("configs: [x.yaml]\ncompare: [[a, c], [a, z]]\n")
    assert main(["report", folder, "--folder", out, "--compare", "a", "b", "--sweep", str(sweep)]) == 0
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "a − b" in html
    assert "a − c" in html
    assert "b − c" not in html
    assert "note: The sweep compares a and z, which are not both there." in capsys.readouterr().out


def test_the_sweep_file_beside_the_results_names_the_claims(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("trainer: {}\n")  # no sweep, but YAML beside the results
    file = tmp_path / "s.yaml"
    file.write_text(
        "configs: [x.yaml]\nresults: a\ngrid: {model.k: [1, 2, 3]}\nlabel: k{model.k}\ncompare: [[k3, k1]]\n"
    )
    first, second, third = expand(load_specification(file))
    table = ResultTable(tmp_path / "a" / "results.csv", ["cell", "status"])
    for cell, name in (("gone", "k1"), (third.id, "k3"), (first.id, "k1"), (second.id, "k2")):
        table.append({"method": name, "seed": 0, "accuracy": 0.5, "n": 100, "status": "ok", "cell": cell})
    assert main(["report", "a", "--folder", "out"]) == 0
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "k3 − k1" in html
    assert "k3 − k2" not in html
    assert html.index(">k1<") < html.index(">k2<") < html.index(">k3<")
    printed = capsys.readouterr().out
    assert "note: cells and comparisons are those of s.yaml; --sweep or --compare takes others" in printed
    assert main(["report", "a", "--folder", "other", "--compare", "k3", "k2"]) == 0
    assert "s.yaml" not in capsys.readouterr().out
    assert "k3 − k1" not in (tmp_path / "other" / "report.html").read_text(encoding="utf-8")


def test_what_lies_beside_one_folder_says_nothing_of_another(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("trainer: {}\n")
    results(tmp_path / "plain" / "out", ("lori", "codi"))
    (tmp_path / "s.yaml").write_text("configs: [x.yaml]\nresults: a\ngrid: {model.k: [1, 2]}\ncompare: [[m1, m2]]\n")
    search = "{trials: 2, metric: validation, space: {model.k: {choices: [1, 2]}}}"
    (tmp_path / "t.yaml").write_text(
        f"configs: [x.yaml]\nresults: found\nmetrics: [validation]\nsearch: {search}\ncompare: [[codi, lori]]\n"
    )
    (tmp_path / "odd.yaml").write_text('{2020-01-01: 1, results: "a\\0"}')
    results(tmp_path / "found", ("lori", "codi"))
    (first, second) = expand(load_specification("s.yaml"))
    table = ResultTable(tmp_path / "a" / "results.csv", ["cell", "status"])
    for cell, name in ((first.id, "m1"), (second.id, "m2")):
        for _ in range(2):  # a cell that was run again
            table.append({"method": name, "seed": 0, "accuracy": 0.5, "n": 100, "status": "ok", "cell": cell})
    assert main(["report", "a/", "plain/out", "found", "--folder", "out"]) == 0
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert [pair in html for pair in ("m1 − m2", "lori − codi", "codi − lori")] == [True] * 3
    assert "are not both there" not in html


def test_of_two_files_with_one_table_a_name_may_have_two_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("trainer: {}\n")
    table = ResultTable(tmp_path / "a" / "results.csv", ["cell", "status", "command"])
    for k in (1, 2):
        text = f"configs: [x.yaml]\nresults: a\nlabel: lori\nfixed: {{model.k: {k}}}\n"
        (tmp_path / f"s{k}.yaml").write_text(text)
        (cell,) = expand(load_specification(f"s{k}.yaml"))
        command = f"python -m lori_pl fit --model.k={k} --seed_everything=0"
        row = {"method": "lori", "seed": k, "accuracy": 0.5, "n": 100, "status": "ok", "cell": cell.id}
        table.append(row | {"command": command})
    for flags in ([], ["--sweep", "s1.yaml", "--sweep", "s2.yaml"]):
        assert main(["report", "a", "--folder", f"out{len(flags)}", *flags]) == 0
        html = (tmp_path / f"out{len(flags)}" / "report.html").read_text(encoding="utf-8")
        assert "lori (k=1)" in html
        assert "lori (k=2)" in html


def test_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = results(tmp_path / "a")
    for arguments, said in (
        ([], "no folder is given"),
        (["nowhere"], "nowhere: no such folder"),
        ([str(tmp_path)], "holds nothing to report"),
        ([folder, "--folder", folder], "holds 'results.csv', which is no part of a report"),
        ([folder, "--compare", "lori", "x"], "there is no method 'x'"),
        ([folder, "--compare", "lori", "lori"], "--compare: lori is compared with itself"),
        ([folder, "--compare", "lori"], "argument --compare: expected 2 arguments"),
        ([folder, "--colour", "red"], "unrecognized arguments: --colour red"),
        ([folder, "--sweep", "gone.yaml"], "gone.yaml: cannot read this sweep file"),
        ([folder, "--selection", "gone"], "gone: no such folder"),
    ):
        assert main(["report", *arguments]) == 2
        assert said in message(capsys)
    assert not (tmp_path / "runs").exists()


def test_text_from_data_prints_as_it_is(tmp_path, capsys):
    folder = results(tmp_path / "a", ("[red]x[/red]", "b", "c", "d", "e"))
    with (tmp_path / "a" / "results.csv").open("a") as file:
        file.write("[red]x[/red],[bold]1[/bold],0.5,100,,,,,ok\n")
    assert main(["report", folder, "--folder", str(tmp_path / "out")]) == 0
    assert "the seed '[bold]1[/bold]' is no whole number" in capsys.readouterr().out
