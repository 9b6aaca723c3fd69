"""Gathers what a report is made of: groups of runs, claims about them, ablations, curves, and pictures found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lori_pl.errors import LoriError, one_line
from lori_pl.evaluation.claims import Claim, adjust, claim
from lori_pl.report.ablations import Ablation, ablations
from lori_pl.report.curves import read_curves
from lori_pl.report.files import ANALYSIS, BENCHMARK, Found, Timed, read_analysis, read_benchmark, spectra
from lori_pl.report.reading import in_order, is_run, read_results, read_runs
from lori_pl.report.records import Group, Run, Table
from lori_pl.report.sweep_files import cells_of
from lori_pl.run_files import CELLS, LOGS, RESULTS
from lori_pl.sweep.specification import SweepSpecification

MAIN = "lori"
"""The method that is compared with all others where nothing else is said."""

_FEW = 4


@dataclass
class Section:
    """A group with what is made of it.

    Args:
        group: The group.
        claims: Comparisons of its methods on the first test set, corrected together with those of the other groups.
        other_claims: The same on each further test set, by its name, corrected among themselves.
        ablations: What its sweep varied.
        curves: By ``validation`` and ``loss`` each method's learning curves, shape (2, n) each.
    """

    group: Group
    claims: list[Claim] = field(default_factory=list)
    other_claims: dict[str, list[Claim]] = field(default_factory=dict)
    ablations: list[Ablation] = field(default_factory=list)
    curves: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)


@dataclass
class Material:
    """All that a report is made of.

    Args:
        folders: The folders, as they were given.
        sections: The groups of runs.
        timings: Benchmarks: a title, and each student's time.
        spectra: The spectra that runs drew.
        analyses: The pictures of analyses.
        analysis_tables: Their tables.
        notes: What a reader must know of the whole.
    """

    folders: list[str]
    sections: list[Section] = field(default_factory=list)
    timings: dict[str, list[Timed]] = field(default_factory=dict)
    spectra: list[Found] = field(default_factory=list)
    analyses: list[Found] = field(default_factory=list)
    analysis_tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """The runs of all groups."""
        return [run for section in self.sections for run in section.group.runs]


def gather(
    folders: Sequence[str | Path],
    selection: Sequence[str | Path] = (),
    pairs: Sequence[tuple[str, str]] = (),
    sweeps: Sequence[SweepSpecification] = (),
) -> Material:
    """Reads folders and makes of them what a report shows.

    Args:
        folders: Folders of results, runs, analyses and benchmarks.
        selection: Folders of results on which settings were chosen: no claim is made of them.
        pairs: The pairs of methods to compare; by default `MAIN` with every other, or all where there are few.
        sweeps: Sweep files. Of their tables their own cells' rows are taken, in the files' order, the others named in a
            note. Their pairs are compared, too; those whose methods are missing are told in a note.

    Raises:
        LoriError: If a folder does not exist or holds nothing to report, a table or outcomes cannot be read, there is
            no method of a pair's name, or a sweep's config file is missing.
    """
    given = [(Path(folder), False) for folder in folders] + [(Path(folder), True) for folder in selection]
    material = Material([str(folder) for folder, _ in given])
    tables: dict[Path, tuple[Path, bool]] = {}
    runs: dict[Path, Path] = {}
    for folder, chosen in given:
        if not _sort(folder, chosen, material, tables, runs):
            raise LoriError(
                f"{folder} holds nothing to report: give folders with {RESULTS}, folders of runs, or those of "
                "`analyze` and `benchmark`"
            )
    at_hand: dict[str, Path] = {}
    for path in runs.values():
        at_hand.setdefault(path.name, path)
    named = set(at_hand.values())
    wanted = cells_of([sweep for sweep in sweeps if sweep.results.resolve() in tables])
    files = Counter(place for place, _ in {(sweep.results.resolve(), sweep.file) for sweep in sweeps})
    groups = [
        read_results(folder, at_hand, chosen, wanted.get(place), place in wanted and files[place] == 1)
        for place, (folder, chosen) in tables.items()
    ]
    for group, place in zip(groups, tables, strict=True):
        in_order(group, wanted.get(place, ()))
    taken = named - set(at_hand.values())
    loose = [path for path in runs.values() if path not in taken]
    groups += read_runs(loose, material.notes)
    if empty := [str(path) for path in loose if not any(run.folder == path for group in groups for run in group.runs)]:
        material.notes.append(f"Left out, since there is nothing of a run to read: {', '.join(empty)}.")
    material.sections = [Section(group) for group in groups if group.runs or group.notes]
    if not (material.sections or material.analyses or material.analysis_tables or material.timings):
        reason = f" ({one_line(material.notes[0])})" if material.notes else ""
        raise LoriError(f"nothing in {', '.join(material.folders)} can be shown{reason}")
    for section in material.sections:
        section.ablations = ablations(section.group)
        section.curves = _curves(section.group)
    planned = {id(group): _pairs_of(sweeps, place, tables) for group, place in zip(groups, tables, strict=False)}
    _claim(material, pairs, [planned.get(id(s.group), _pairs_of(sweeps, None, tables)) for s in material.sections])
    _check_seeds(material)
    material.spectra = spectra(material.runs, material.notes)
    return material


def _sort(
    folder: Path, chosen: bool, material: Material, tables: dict[Path, tuple[Path, bool]], runs: dict[Path, Path]
) -> bool:
    """Puts a folder where it belongs; whether it belongs anywhere."""
    if not folder.is_dir():
        raise LoriError(f"{folder}: no such folder; give folders of results, runs, analyses or benchmarks")
    known = False
    if (folder / RESULTS).exists():
        if tables.setdefault(folder.resolve(), (folder, chosen))[1] != chosen:
            raise LoriError(f"{folder} is given as results and as --selection: give it as one of the two")
        known = True
    elif not (folder / ANALYSIS).exists() and (is_run(folder) or (folder / "log.txt").exists()):
        runs[folder.resolve()] = folder
        known = True
    elif (folder / CELLS).is_dir():
        runs.update({path.resolve(): path for path in sorted((folder / CELLS).iterdir()) if is_run(path)})
        known = True
    for place in (folder, folder / "analysis"):
        if (place / ANALYSIS).is_file():
            pictures, told = read_analysis(place, material.notes)
            material.analyses += pictures
            material.analysis_tables += told
            known = True
    if (folder / BENCHMARK).is_file():
        for name, timed in read_benchmark(folder, material.notes).items():
            material.timings[f"{folder.name}: {name}"] = timed
        known = True
    return known


def _pairs_of(
    sweeps: Sequence[SweepSpecification], place: Path | None, tables: Container[Path]
) -> list[tuple[str, str]]:
    """What sweeps compare of a table: the pairs of its own, and of those whose table is not there."""
    own = [sweep for sweep in sweeps if (of := sweep.results.resolve()) == place or of not in tables]
    return [pair for sweep in own for pair in sweep.compare]


def _claim(material: Material, pairs: Sequence[tuple[str, str]], planned: Sequence[Sequence[tuple[str, str]]]) -> None:
    """Makes the claims: of each section the pairs that are asked for, and those that its sweeps plan."""
    of = [
        (section, own) for section, own in zip(material.sections, planned, strict=True) if not section.group.selection
    ]
    sections = [section for section, _ in of]
    for section, own in of:
        wanted = _each_once([*pairs, *own] or _default(section.group, section.group.notes))
        section.claims = _claims_on(section.group, None, wanted)
        further = {name: _claims_on(section.group, name, wanted) for name in section.group.further_sets}
        section.other_claims = {name: claims for name, claims in further.items() if claims}
    made = {frozenset((claim.first, claim.second)) for section in sections for claim in section.claims}
    named = {method for section in sections for method in section.group.methods}
    for first, second in pairs:
        if first == second:
            raise LoriError(f"--compare: {first} is compared with itself; give two methods")
        if missing := [method for method in (first, second) if method not in named]:
            there = ", ".join(sorted(named)) or "none"
            raise LoriError(
                f"--compare: there is no method '{missing[0]}' to make a claim of; there are {one_line(there)}"
            )
        if frozenset((first, second)) not in made:
            material.notes.append(
                f"{first} and {second} have no test problems and seed in common: they are not compared."
            )
    for first, second in dict.fromkeys(pair for _, own in of for pair in own):
        if frozenset((first, second)) not in made:
            material.notes.append(f"The sweep compares {first} and {second}, which are not both there.")
    # what a first test set says stays the same whatever else is tested: the further ones are a family of their own
    corrected = iter(adjust([claim for section in sections for claim in section.claims]))
    others = iter(adjust([each for section in sections for made in section.other_claims.values() for each in made]))
    for section in sections:
        section.claims = [next(corrected) for _ in section.claims]
        section.other_claims = {name: [next(others) for _ in made] for name, made in section.other_claims.items()}


def _claims_on(group: Group, on: str | None, wanted: Sequence[tuple[str, str]]) -> list[Claim]:
    """The claims about pairs on a test set, by default the first, uncorrected; none of pairs that are not there."""
    made = []
    for first, second in wanted:
        measured = group.comparable(first, second, on=on)
        if not {first, second} <= {method for method, _ in measured}:
            continue
        try:
            outcomes = group.outcomes if on is None else group.other_outcomes.get(on)
            made.append(found := claim(first, second, measured, outcomes))
            if len(found.differences) == 1 and found.one_pair is None:
                where = "" if on is None else f" on {on}"
                group.notes.append(
                    f"{first} and {second}{where}: a single seed, and no outcomes problem by problem of both, so that "
                    "their difference has no interval."
                )
        except LoriError as error:
            group.notes.append(f"{first} and {second}{'' if on is None else f' on {on}'}: {error}.")
    return made


def _each_once(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs in their order; one that is turned round makes the same claim."""
    found: dict[frozenset[str], tuple[str, str]] = {}
    for pair in pairs:
        found.setdefault(frozenset(pair), pair)
    return list(found.values())


def _default(group: Group, notes: list[str]) -> list[tuple[str, str]]:
    methods = list(group.methods)
    if MAIN in methods:
        return [(MAIN, other) for other in methods if other != MAIN]
    if len(methods) <= _FEW:
        return [(first, second) for place, first in enumerate(methods) for second in methods[place + 1 :]]
    count = len(methods) * (len(methods) - 1) // 2
    notes.append(
        f"{len(methods)} methods make {count} pairs, of which none is compared unasked: the more comparisons, the less "
        "each can show. The option --compare names those that matter."
    )
    return []


def _check_seeds(material: Material) -> None:
    """Settings that were chosen on the seeds of a claim make it look better than it is."""
    chosen = {seed for section in material.sections if section.group.selection for seed in section.group.seeds}
    for section in material.sections:
        shared = chosen & {seed for claim in section.claims for seed in claim.differences}
        if shared:
            section.group.notes.append(
                f"Settings were selected on seeds that the claims use too ({', '.join(map(str, sorted(shared)))}): "
                "these claims are not of new seeds."
            )


def _curves(group: Group) -> dict[str, dict[str, list[np.ndarray]]]:
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for run in group.runs:
        if run.folder is None:
            continue
        for what, curve in read_curves(run.folder / LOGS, group.notes).items():
            found.setdefault(what, {}).setdefault(run.method, []).append(curve)
    return found
