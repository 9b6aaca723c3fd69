"""The tables of a report as plain text cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lori_pl.evaluation.claims import Claim, Effect, p_text, span
from lori_pl.report.drawings import accuracy, at_steps
from lori_pl.report.material import Section
from lori_pl.report.records import Estimate, Run, Table, estimate


def methods(section: Section) -> Table:
    """Accuracy with its interval, each seed, by number of steps, further test sets, validation, passes, milliseconds.

    The methods stand in the order of their runs; in a selection, by validation.
    """
    found = section.group.methods
    if section.group.selection:
        found = dict(sorted(found.items(), key=lambda item: -(_mean(item[1], lambda run: run.validation) or 0)))
    all_runs = section.group.measured
    steps = sorted({k for run in all_runs for k in run.by_steps})
    sets = section.group.further_sets
    validated = any(run.validation is not None for run in all_runs)
    several = any(len(runs) > 1 for runs in found.values())
    heads = ["method", "accuracy", "95 % interval", "over", "seeds", *(["each seed"] if several else [])]
    heads += [f"{k} steps" for k in steps] + sets + (["validation"] if validated else []) + ["passes", "ms", "n"]
    rows = []
    for name, runs in found.items():
        overall = accuracy(runs)
        row = [name, percent(overall.mean), interval(overall), overall.unit, str(len(runs))]
        if several:
            row.append(" ".join(percent(run.accuracy) for run in sorted(runs, key=lambda run: run.seed)))
        known = {k for run in runs for k in run.by_steps}
        row += [with_interval(at_steps(runs, k), overall.unit) if k in known else "" for k in steps]
        row += [_on_set(runs, other) for other in sets]
        row += [_validation(runs)] if validated else []
        row += [plain(_mean(runs, lambda run: run.passes), 1), plain(_mean(runs, lambda run: run.milliseconds), 2)]
        row.append("/".join(sorted({"" if run.n is None else f"{run.n:,}" for run in runs})))
        rows.append(row)
    return Table(heads, rows)


def claims(section: Section) -> Table:
    """What the seeds say of each pair, and for one seed what the problems say of that pair of models."""
    return _claims(section.claims)


def other_claims(section: Section) -> Table | None:
    """The same on the further test sets; ``None`` where there are none."""
    made = [(name, claim) for name, claims in section.other_claims.items() for claim in claims]
    if not made:
        return None
    table = _claims([claim for _, claim in made])
    rows = [[row[0], name, *row[1:]] for (name, _), row in zip(made, table.rows, strict=True)]
    return Table([table.heads[0], "test set", *table.heads[1:]], rows)


def _claims(claims: Sequence[Claim]) -> Table:
    rows = []
    for each in claims:
        pair = each.one_pair
        bounds, unit = (each.effect.bounds, "seeds") if pair is None else (pair.bounds, "problems")
        rows.append(
            [
                f"{each.first} − {each.second}",
                points(each.effect.mean),
                "none" if bounds is None else span(bounds),
                "" if bounds is None else unit,
                str(len(each.differences)),
                " ".join(f"{points(value)}" for value in each.differences.values()),
                p_text(each.p),
                p_text(each.adjusted),
                "" if pair is None else f"{p_text(pair.p)} ({pair.only_first} : {pair.only_second})",
                each.verdict,
            ]
        )
    heads = ["pair", "difference", "95 % interval", "over", "seeds", "each seed"]
    table = Table([*heads, "p", "p, Holm", "McNemar's p", "what it says"], rows)
    return _without_empty(table, ("p", "p, Holm", "McNemar's p"))


def effects(section: Section) -> Table | None:
    """The differences by number of steps; ``None`` where no pair has accuracies by steps."""
    steps = sorted({k for each in section.claims for k in each.by_steps})
    if not steps:
        return None
    rows = [
        [f"{each.first} − {each.second}", *(effect_at(each, k) for k in steps)]
        for each in section.claims
        if each.by_steps
    ]
    return Table(["pair", *[f"{k} steps" for k in steps]], rows)


def failures(section: Section) -> Table | None:
    """The runs without a result and why; ``None`` where there are none."""
    rows = [
        [run.method, str(run.seed), run.status, run.reason or "no reason is recorded", run.cell]
        for run in section.group.runs
        if run.status != "ok"
    ]
    return Table(["method", "seed", "status", "reason", "cell"], rows) if rows else None


def percent(value: float | None) -> str:
    """A fraction in percent, or nothing."""
    return "" if value is None else f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of fractions in points, with its sign."""
    return f"{100 * value:+.1f}"


def plain(value: float | None, digits: int) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def interval(found: Estimate) -> str:
    """An interval in percent."""
    return "none" if found.bounds is None else f"{percent(found.bounds[0])} to {percent(found.bounds[1])}"


def with_interval(found: Estimate, unit: str = "") -> str:
    """A mean in percent, with its interval where there is one, and what that is over where it is not ``unit``."""
    text = percent(found.mean)
    over = "" if found.unit in ("", unit) or not unit else f", over {found.unit}"
    return text if found.bounds is None else f"{text} ({percent(found.bounds[0])} to {percent(found.bounds[1])}{over})"


def effect_at(each: Claim, steps: int) -> str:
    """A claim's difference at a number of steps in points, with its interval where there is one; or nothing."""
    effect: Effect | None = each.by_steps.get(steps)
    if effect is None:
        return ""
    bounds = "" if effect.bounds is None else f" ({span(effect.bounds)})"
    return points(effect.mean) + bounds


def _on_set(runs: Sequence[Run], name: str) -> str:
    """A method's accuracy on a further test set, with its interval as on the first."""
    those = [run for run in runs if name in run.other_sets]
    if not those:
        return ""
    return with_interval(estimate([run.other_sets[name] for run in those], those[0].other_counts.get(name)))


def _validation(runs: Sequence[Run]) -> str:
    """The mean accuracy on the validation problems, with its interval over seeds: of one their number is not known."""
    values = [run.validation for run in runs if run.validation is not None]
    return with_interval(estimate(values)) if values else ""


def _mean(runs: Sequence[Run], of: Callable[[Run], float | None]) -> float | None:
    values = [value for run in runs if (value := of(run)) is not None]
    return sum(values) / len(values) if values else None


def _without_empty(table: Table, names: Sequence[str]) -> Table:
    keep = [
        place for place, head in enumerate(table.heads) if head not in names or any(row[place] for row in table.rows)
    ]
    return Table([table.heads[k] for k in keep], [[row[k] for k in keep] for row in table.rows])
