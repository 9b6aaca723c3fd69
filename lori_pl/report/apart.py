"""Which runs of one name are seeds of one setting, and names for those that are not."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lori_pl.evaluation.records import Outcomes
from lori_pl.report.records import Group, Run, clean

_OF_A_RUN = ("seed_everything", "trainer.default_root_dir", "ckpt_path")
_TRAINER = ("max_steps", "max_epochs", "precision", "accumulate_grad_batches", "gradient_clip_val", "overfit_batches")
_OF_TRAINING = ("model", "data", *(f"trainer.{key}" for key in _TRAINER))
_OF_A_MACHINE = ("data.num_workers", "data.predict_file", "data.eval_batch_size", "model.init_args.cache")
_SHOWN, _LENGTH = 3, 60

Settings = Mapping[str, str | tuple[str, ...]]
"""What was set, by key."""


def options(command: str) -> dict[str, str | tuple[str, ...]] | None:
    """The flags of a recorded command line by key, config files as a tuple under ``config``; ``None`` if it is none.

    The seed, the run's folder and the weights that a test takes, which every run has for itself, are left out.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    found: dict[str, str | tuple[str, ...]] = {}
    configs: list[str] = []
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = words[place + 1] if place + 1 < len(words) else ""
            value = "" if following.startswith("--") else following
        if key == "config":
            configs.append(value)
        elif key not in _OF_A_RUN:
            found[key] = value
    return {**found, "config": tuple(configs)} if found or configs else None


def tell_apart(group: Group, named: bool = False) -> None:
    """Gives runs that share a name and are not seeds of one setting names of their own; outcomes follow them.

    Args:
        group: The group.
        named: Whether the names are those of a sweep file's cells, which it gives to seeds of one setting alone.

    Settings are the options of the recorded command, or where there is none what ``config.yaml`` says of model, data
    and training; runs of which neither is known count as alike.
    """
    before = {id(run): run.method for run in group.runs}
    if not named:
        _by_settings(group)
    _by_folder(group)
    renamed = {(before[id(run)], run.seed): run.method for run in group.measured if run.method != before[id(run)]}
    if renamed:
        group.outcomes = None if group.outcomes is None else _named(group.outcomes, renamed)
        group.other_outcomes = {name: _named(found, renamed) for name, found in group.other_outcomes.items()}


def _by_settings(group: Group) -> None:
    for method, runs in group.methods.items():
        known = [(run, settings) for run in runs if (settings := _settings(run)) is not None]
        kinds: list[Settings] = []
        for _, settings in known:
            if settings not in kinds:
                kinds.append(settings)
        if len(kinds) < 2:
            continue
        keys = [key for key in dict.fromkeys(key for kind in kinds for key in kind) if _differs(key, kinds)]
        names = [_name(kind, keys, kinds) for kind in kinds]
        if len(set(names)) < len(kinds):
            names = [f"settings {place}" for place in range(1, len(kinds) + 1)]
        for run, settings in known:
            run.method = f"{method} ({names[kinds.index(settings)]})"
        shown = ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
        group.notes.append(
            f"Runs of {method} were made with different settings ({clean(shown, 300)}): they are no seeds of one "
            "method, and each setting has a name of its own. A sweep's label tells its cells apart."
        )


def _by_folder(group: Group) -> None:
    counts = Counter((run.method, run.seed) for run in group.measured)
    twice = {method for (method, _), count in counts.items() if count > 1}
    for method in twice:
        those = [run for run in group.runs if run.method == method]
        for run, name in zip(those, _folder_names(those), strict=True):
            run.method = f"{method} ({name})"
    if twice:
        group.notes.append(
            f"Several runs share name and seed ({', '.join(sorted(twice))}): each stands for itself, under the name of "
            "its folder. A sweep's label tells its cells apart."
        )


def _folder_names(runs: Sequence[Run]) -> list[str]:
    """The ends of the runs' folders, as long as it takes to tell those apart."""
    parts = [run.folder.absolute().parts if run.folder else (run.cell or "no cell",) for run in runs]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _settings(run: Run) -> Settings | None:
    found = options(run.command)
    if found is not None:  # a checkout is nothing that was set
        return {**found, "config": tuple(Path(file).name for file in found["config"])}
    if run.config is None:
        return None
    try:
        values = yaml.safe_load(run.config)
        flat = _flat(values) if isinstance(values, dict) else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    chosen = {key: value for key, value in flat.items() if key not in _OF_A_MACHINE and _begins(key, _OF_TRAINING)}
    return chosen or None


def _flat(values: Mapping[Any, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: str(value)}
    return found


def _begins(key: str, beginnings: Sequence[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in beginnings)


def _differs(key: str, kinds: Sequence[Settings]) -> bool:
    return len({kind.get(key) for kind in kinds}) > 1


def _name(kind: Settings, keys: Sequence[str], kinds: Sequence[Settings]) -> str:
    """What sets a setting apart, in short; its number where that is long."""
    parts = []
    for key in keys:
        value = kind.get(key)
        if isinstance(value, tuple):
            common = set.intersection(*(set(each.get(key) or ()) for each in kinds))
            value = "+".join(Path(file).stem for file in value if file not in common) or "none"
        last = key.rpartition(".")[2]
        parts.append(f"no {last}" if value is None else f"{last}={value}")
    name = clean(", ".join(parts))
    return name if len(parts) <= _SHOWN and len(name) <= _LENGTH else f"settings {kinds.index(kind) + 1}"


def _named(outcomes: Outcomes, renamed: Mapping[tuple[str, int], str]) -> Outcomes:
    bits = {(renamed.get(key, key[0]), key[1]): answers for key, answers in outcomes.bits.items()}
    return replace(outcomes, bits=bits)
