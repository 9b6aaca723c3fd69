"""One LightningModule a method."""

from lori_pl.methods.base import Method
from lori_pl.methods.coconut import Coconut
from lori_pl.methods.codi import CODI
from lori_pl.methods.explicit_cot import ExplicitCoT
from lori_pl.methods.icot_si import ICoTSI
from lori_pl.methods.kava import KaVa
from lori_pl.methods.lori import LoRi
from lori_pl.methods.no_cot import NoCoT
from lori_pl.methods.pause import Pause
from lori_pl.methods.pccot import PCCoT
from lori_pl.methods.sim_cot import SIMCoT, SIMCoTCoconut

__all__ = [
    "CODI",
    "Coconut",
    "ExplicitCoT",
    "ICoTSI",
    "KaVa",
    "LoRi",
    "Method",
    "NoCoT",
    "PCCoT",
    "Pause",
    "SIMCoT",
    "SIMCoTCoconut",
]
