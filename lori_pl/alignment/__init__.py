"""Alignment of a student's latent trajectory with a teacher's rationale: statistics, factors and loss terms.

Depends on torch alone; knows neither Lightning nor models nor methods.
"""

from __future__ import annotations

from lori_pl.alignment.anchor import AnchorAlignment
from lori_pl.alignment.low_rank import LowRankAlignment
from lori_pl.alignment.moments import Moments, batch_moments, trajectory_moments
from lori_pl.alignment.stepwise import StepwiseAlignment
from lori_pl.alignment.stiefel import StiefelWeight, orthonormality_error, stiefel_parameters
from lori_pl.alignment.terms import Signals, Term, TrajectoryShape
from lori_pl.alignment.tucker import Factors, TrajectoryScale, TuckerFactors

__all__ = [
    "AnchorAlignment",
    "Factors",
    "LowRankAlignment",
    "Moments",
    "Signals",
    "StepwiseAlignment",
    "StiefelWeight",
    "Term",
    "TrajectoryScale",
    "TrajectoryShape",
    "TuckerFactors",
    "batch_moments",
    "orthonormality_error",
    "stiefel_parameters",
    "trajectory_moments",
]
