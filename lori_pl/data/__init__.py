"""Problems, sources, the embedded world, pairing, and the LightningDataModule."""

from lori_pl.data.answers import extract_answer, same_answer
from lori_pl.data.problem import Problem
from lori_pl.data.sources import load_problems
from lori_pl.data.synthetic import synthetic_problems

__all__ = ["Problem", "extract_answer", "load_problems", "same_answer", "synthetic_problems"]
