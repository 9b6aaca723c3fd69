"""One LightningModule a method."""

from lori_pl.methods.base import Method
from lori_pl.methods.explicit_cot import ExplicitCoT
from lori_pl.methods.lori import LoRi
from lori_pl.methods.no_cot import NoCoT
from lori_pl.methods.pause import Pause

__all__ = ["ExplicitCoT", "LoRi", "Method", "NoCoT", "Pause"]
