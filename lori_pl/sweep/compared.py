"""The differences that a sweep file asks for, from the outcomes that its cells left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lori_pl.errors import LoriError
from lori_pl.evaluation.claims import Claim, Measured, adjust, claim, in_words
from lori_pl.evaluation.records import read_outcomes
from lori_pl.run_files import OUTCOMES, further_outcomes
from lori_pl.sweep.specification import SweepSpecification


def comparisons(sweep: SweepSpecification, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each pair of the file's ``compare``: the difference of what was recorded, its interval and its test.

    p-values are corrected for all pairs on a test set (Holm). Those on further test sets follow, and say which.

    Args:
        sweep: The sweep.
        rows: The rows of its cells that ended well.
    """
    if not sweep.compare:
        return []
    first = sweep.results / OUTCOMES
    lines = _compared(sweep, first, rows) if first.exists() else []
    for name, path in further_outcomes(sweep.results).items():
        # the rows' digests are of the first set's problems
        lines += [f"on {name}: {line}" for line in _compared(sweep, path, [{**row, "problems": ""} for row in rows])]
    return lines


def _compared(sweep: SweepSpecification, path: Path, rows: Sequence[Mapping[str, str]]) -> list[str]:
    outcomes = read_outcomes(path)
    # the file may hold those of cells that the sweep no longer has, also under a name that it has;
    # rows and files of earlier versions do not say which problems they are of
    alike = [row for row in rows if not outcomes.problems or row.get("problems", "") in ("", outcomes.problems)]
    done = {(row["method"], int(row["seed"])) for row in alike}
    outcomes = replace(outcomes, bits={key: bits for key, bits in outcomes.bits.items() if key in done}, steps=None)
    apart = {row["method"] for row in rows} - {method for method, _ in outcomes.bits}
    measured = {key: Measured(float(bits.mean()), {}) for key, bits in outcomes.bits.items()}
    made: list[Claim | str] = []
    for pair in sweep.compare:
        try:
            if others := apart.intersection(pair):
                none = "whose test problems are others, or which left none"
                raise LoriError(f"{path} has no outcomes of '{min(others)}', {none}")
            made.append(claim(*pair, measured, outcomes))
        except LoriError as error:
            made.append(f"{pair[0]} - {pair[1]}: {error}")
    adjusted = iter(adjust([each for each in made if isinstance(each, Claim)]))
    return [each if isinstance(each, str) else in_words(next(adjusted)) for each in made]
