"""The time that one job may take."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Timer


class JobTimer(Timer):
    """A `Timer` of the time since this process began to train, whatever a run that it goes on with had taken.

    Lightning's counts both, so that a run that ended by ``max_time`` would never train again.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leaves the time of earlier jobs out."""
