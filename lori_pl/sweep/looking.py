"""Looking at a sweep without running anything: its cells, and how far it is."""

from __future__ import annotations

from statistics import fmean

from lori_pl.evaluation.intervals import seed_interval
from lori_pl.sweep.cells import grid_points, uncalled
from lori_pl.sweep.display import best_of, duration, short, shown
from lori_pl.sweep.runner import Sweep


def show_plan(sweep: Sweep, only: int | None = None) -> None:
    """Print every cell with its status and command; nothing is run or written.

    Args:
        sweep: The sweep.
        only: Number of the one cell to show.

    Raises:
        LoriError: There is no such cell.
    """
    search = sweep.specification.search
    if search is not None:
        points = len(grid_points(sweep.specification))
        keys = ", ".join(search.space)
        sweep.say(
            f"{points} searches of {search.trials} trials each over {keys}, {len(sweep.specification.seeds)} seeds a "
            f"trial, by {search.sampler} for the best {search.metric}"
        )
        if sweep.is_begun:
            sweep.studies(looks=True)
    results = sweep.results()
    for cell in sweep.selected(only):
        state = sweep.status(cell, results)
        if state == "to run" and (found := sweep.runner.rows.recorded(cell)) is not None:
            state = f"in {found[0]}"
        sweep.say(f"[{cell.number}/{sweep.total}] {cell.id}  {state}  {cell.description()}")
        sweep.say(f"    {shown(sweep.runner.command(cell))}")
    if line := uncalled(sweep.specification, sweep.cells):
        sweep.say(line)


def show_status(sweep: Sweep) -> None:
    """Print how far a sweep is, what is at work, the time left and the best so far; nothing is run."""
    studies = sweep.studies(looks=True) if sweep.is_begun else []
    results = sweep.results()
    at_work = [cell for cell in sweep.cells if sweep.status(cell, results) != "ok" and sweep.runner.is_at_work(cell)]
    busy = {cell.id for cell in at_work}
    states = ["at work" if cell.id in busy else sweep.status(cell, results) for cell in sweep.cells]
    waiting = [cell for cell, state in zip(sweep.cells, states, strict=True) if state not in ("ok", "failed")]
    further = 0
    if sweep.specification.search is not None:
        open_cells, further = sweep.still_open(studies)
        waiting = [cell for cell in waiting if cell.id in open_cells]
    left = sweep.seconds_left(waiting, results, len(at_work), further)
    eta = "" if left is None else f", about {duration(left)} left"
    sweep.say(
        f"sweep {sweep.specification.name}: {states.count('ok')} of {len(sweep.cells) + further} cells done, "
        f"{states.count('failed')} failed, {len(at_work)} at work{eta}"
    )
    for cell in at_work:
        sweep.say(f"  at work: {sweep.title(cell)}")
    for cell, state in zip(sweep.cells, states, strict=True):
        if state == "failed":
            sweep.say(f"  failed: {sweep.title(cell)}: {results[cell.id]['reason']}")
    for study in studies:
        sweep.say(best_of(study))
    # tests of students choose nothing
    runs = [results[cell.id] for cell in sweep.cells if cell.id in results and cell.test is None]
    if not studies and (line := _best_label(runs)):
        sweep.say(line)


def _best_label(rows: list[dict[str, str]]) -> str:
    """The best by validation, where the rows have it."""
    done = [row for row in rows if row["status"] == "ok"]
    column = "validation" if done and all(row.get("validation") for row in done) else "accuracy"
    by_label: dict[str, list[dict[str, str]]] = {}
    for row in done:
        by_label.setdefault(row["method"], []).append(row)
    if not by_label:
        return ""
    means = {name: fmean(float(row[column]) for row in those) for name, those in by_label.items()}
    label = max(means, key=lambda name: means[name])
    those = by_label[label]
    interval = ""
    if (bounds := seed_interval([float(row[column]) for row in those])) is not None:
        interval = f" (95 % interval over seeds {max(bounds[0], 0.0):.4g} to {min(bounds[1], 1.0):.4g})"
    elif column == "accuracy" and len(those) == 1 and those[0].get("low"):
        interval = f" (95 % interval over problems {short(those[0]['low'])} to {short(those[0]['high'])})"
    named = "test accuracy" if column == "accuracy" else column
    return f"best: {label}, {named} {means[label]:.4g}{interval} over {len(those)} seed{'s' * (len(those) > 1)}"
