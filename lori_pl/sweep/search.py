"""The trials of a search: Optuna proposes points, and any number of workers share them through its storage."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lori_pl.errors import LoriError, one_line
from lori_pl.files import FolderBusy, lock_folder, replace_file
from lori_pl.sweep.cells import CellMaker, flag_text, rounded
from lori_pl.sweep.fields import Interval
from lori_pl.sweep.specification import Search, SweepSpecification

if TYPE_CHECKING:
    import optuna

JOURNAL = "search.journal"
MARK = "search.folder"

_FOLDER = "folder"


@dataclass(frozen=True)
class Proposal:
    """A trial at work.

    Args:
        number: Its number, from 0.
        point: The values that were drawn, by key.
        lock: Descriptor of the lock that this process holds on it.
    """

    number: int
    point: dict[str, Any]
    lock: int


@dataclass(frozen=True)
class Finished:
    """A trial that has ended, or is at work.

    Args:
        number: Its number, from 0.
        point: The values that were drawn.
        value: The metric; ``None`` of one that failed or is at work.
        state: Optuna's name of its state, in lower case.
    """

    number: int
    point: dict[str, Any]
    value: float | None
    state: str


class Study:
    """The trials at one point of a sweep's grid.

    A trial belongs to who holds its lock: one that is at work by Optuna's storage and whose lock is free was left by
    a worker that ended, and the next to ask takes it over. A database may be shared by sweeps whose folders are not:
    there a trial has the mark of its folder, and is left to the workers of that.

    Args:
        sweep: The sweep, with a search.
        point: The point of the grid.
        looks: Whether it is only looked at: a study that is not there has no trials then, and is not made.

    Raises:
        LoriError: If the storage cannot be opened; from every method, if it fails.
    """

    def __init__(self, sweep: SweepSpecification, point: dict[str, Any], looks: bool = False) -> None:
        assert sweep.search is not None
        self.search: Search = sweep.search
        self.point = point
        self.output = sweep.output
        maker = CellMaker(sweep)
        cells = [maker.make(0, point, seed).id for seed in sweep.seeds]
        space = {key: str(value) for key, value in self.search.space.items()}
        defined = json.dumps([cells, self.search.metric, self.search.direction, space])
        self.name = f"{sweep.name}-{hashlib.sha256(defined.encode()).hexdigest()[:12]}"
        self.study = self._open(looks)

    def _open(self, looks: bool) -> optuna.Study | None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        with self._storage_errors():
            if self.search.storage is None:
                # Optuna's lock on it is a link, which is to lead to it from everywhere
                journal = (self.output / JOURNAL).resolve()
                if looks and not journal.exists():
                    return None
                journal.parent.mkdir(parents=True, exist_ok=True)
                storage: Any = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
            else:
                storage = self.search.storage
            if looks:
                with suppress(KeyError):
                    return optuna.load_study(study_name=self.name, storage=storage)
                return None
            return optuna.create_study(
                storage=storage, study_name=self.name, direction=self.search.direction, load_if_exists=True
            )

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except (LoriError, KeyError):
            raise
        except Exception as error:  # of the file system, the database's driver, or SQLAlchemy
            place = self.search.storage or str(self.output / JOURNAL)
            shown, reason = (re.sub(r"(://[^:@/]*):[^@/]*@", r"\1:*@", text) for text in (place, one_line(error)))
            raise LoriError(f"the search's storage {shown} failed ({reason}); mend it, and start again") from error

    @property
    def made(self) -> optuna.Study:
        """The study, which is there."""
        assert self.study is not None
        return self.study

    @contextmanager
    def proposal(self) -> Iterator[Proposal | None]:
        """A trial for this process: one that another left, or a new one; ``None`` where the budget is used up."""
        with ExitStack() as held:
            yield self._claim(held)

    def _mark(self) -> str:
        """What tells the sweep's folder from others that share its database, wherever it is mounted."""
        place = self.output / MARK
        if not place.exists():
            replace_file(place, lambda file: file.write(uuid.uuid4().hex.encode()))
        return place.read_text(encoding="utf-8")

    def _claim(self, held: ExitStack) -> Proposal | None:
        import optuna

        # one worker at a time: a trial that has no lock yet is nobody else's to take over
        with lock_folder(self.output / "locks" / self.name, "", wait=True), self._storage_errors():
            here = self._mark()
            for number in self._at_work(here):
                with suppress(FolderBusy):
                    lock = held.enter_context(self._lock(number))
                    if number in self._at_work(here):  # nobody ended it meanwhile
                        return Proposal(number, self._point(self._take_over(number)), lock)
            if len(self.made.get_trials(deepcopy=False)) >= self.search.trials:
                return None
            self.made.sampler = self._sampler(len(self.made.get_trials(deepcopy=False)))
            trial = self.made.ask()
            if trial.number >= self.search.trials:  # another folder's worker was faster
                self.made.tell(trial, state=optuna.trial.TrialState.FAIL)
                return None
            trial.set_user_attr(_FOLDER, here)
            lock = held.enter_context(self._lock(trial.number))
            return Proposal(trial.number, self._point(trial), lock)

    def end(self, number: int, value: float | None) -> None:
        """Notes a trial's value; ``None`` for one that failed."""
        import optuna

        with self._storage_errors():
            if value is None:
                self.made.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
            else:
                self.made.tell(number, value, skip_if_finished=True)

    def trials(self) -> list[Finished]:
        """All trials so far, in order."""
        found: list[Finished] = []
        if self.study is None:
            return found
        with self._storage_errors():
            trials = self.study.get_trials(deepcopy=False)[: self.search.trials]
        for trial in trials:
            if trial.params.keys() == self.search.space.keys():
                point = {key: self._value(key, trial.params[key]) for key in self.search.space}
                value = trial.value if trial.state.name == "COMPLETE" else None
                found.append(Finished(trial.number, point, value, trial.state.name.lower()))
        return found

    def best(self) -> Finished | None:
        """The best of the trials that have a value."""
        known = [trial for trial in self.trials() if trial.value is not None]
        sign = 1 if self.search.direction == "maximize" else -1
        return max(known, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def _at_work(self, folder: str) -> list[int]:
        import optuna

        states = (optuna.trial.TrialState.RUNNING,)
        trials = self.made.get_trials(deepcopy=False, states=states)
        alone = self.search.storage is None  # the journal lies in the folder
        return [trial.number for trial in trials if alone or trial.user_attrs.get(_FOLDER) == folder]

    def _take_over(self, number: int) -> optuna.Trial:
        import optuna

        self.made.sampler = self._sampler(number)  # for what was not drawn yet
        return optuna.Trial(self.made, self.made.get_trials(deepcopy=False)[number]._trial_id)

    def _lock(self, number: int) -> Any:
        return lock_folder(self.output / "locks" / f"{self.name}-{number}", "another worker has this trial")

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Draws one trial, which has seeds of its own whoever asks for it."""
        import optuna

        seed = int(hashlib.sha256(json.dumps([self.search.seed, number]).encode()).hexdigest()[:8], 16)
        match self.search.sampler:
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "qmc":
                # a sequence, of which every worker takes the next point; what it cannot draw is drawn at random
                others = optuna.samplers.RandomSampler(seed=seed)
                return optuna.samplers.QMCSampler(seed=self.search.seed, scramble=True, independent_sampler=others)
            case _:
                return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _point(self, trial: optuna.Trial) -> dict[str, Any]:
        for key, space in self.search.space.items():
            if isinstance(space, list):
                trial.suggest_categorical(key, [flag_text(value) for value in space])
            elif space.integer:
                trial.suggest_int(key, int(space.low), int(space.high), log=space.log)
            else:
                trial.suggest_float(key, space.low, space.high, log=space.log)
        return {key: self._value(key, trial.params[key]) for key in self.search.space}

    def _value(self, key: str, drawn: Any) -> Any:
        space = self.search.space[key]
        if isinstance(space, list):
            return next(value for value in space if flag_text(value) == drawn)
        assert isinstance(space, Interval)
        return int(drawn) if space.integer else rounded(drawn)
