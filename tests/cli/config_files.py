"""The files under configs/, and what a parsed command line says about student and data."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lori_pl.commands.lightning import LoriCLI
from lori_pl.models.backbone import Backbone, LoRA

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
README = CONFIGS / "README.md"
LORI, EXPLICIT, TINY = "method/lori.yaml", "method/explicit_cot.yaml", "model/tiny.yaml"

Parse = Callable[..., Namespace]


def names(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob(pattern))


HUB_MODELS = [name for name in names("model/*.yaml") if name != TINY]
TEMPLATED = [name for name in names("data/*.yaml") if name not in ("data/synthetic.yaml", "data/svamp.yaml")]


def backbone_of(config: Namespace) -> Backbone:
    values = config.model.init_args.backbone.as_dict()
    return Backbone(**{**values, "lora": LoRA(**values["lora"]) if values["lora"] else None})


def build(node: Namespace) -> Any:
    module, _, name = node.class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**node.init_args.as_dict())


class ParsingOnly(LoriCLI):
    """The command line without what comes after parsing: no file is read, no model built."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def after_instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass
