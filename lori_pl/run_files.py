"""Names of what a run leaves in its folder."""

from __future__ import annotations

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
LOGS = "tensorboard"
OUTCOMES = "correct.npz"
"""Of the first test set; others have their name in it."""
STUDENT = "student"
"""The best student, exported."""
SUMMARY = "summary.json"
"""The figures of a tested run, written last."""
