"""Folders of saved reasoners: a transformers model folder with a thought beside it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from lori_pl import __version__
from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.models.backbone import Backbone, LoRA, load_causal_lm, prepare_training
from lori_pl.models.reasoner import LatentReasoner

SETTINGS = "reasoner.json"
THOUGHT = "thought.safetensors"
ADAPTER = "adapter_model.safetensors"
CARD = """---
library_name: lori_pl
tags: [latent-reasoning, chain-of-thought]
---
# A {reasoning} reasoner

Made with lori_pl {version}. Base architecture: {architecture}, {parameters:,} parameters; latents: {latents}.

```python
from lori_pl import LatentReasoner

student = LatentReasoner.from_pretrained("{name}")
student.answer(["..."])
```
"""


def merged_state(lm: PreTrainedModel) -> dict[str, Tensor]:
    """State dict of a model with its LoRA adapters merged into the weights, under the base model's names."""
    state: dict[str, Tensor] = {}
    adapted = {name: module for name, module in lm.named_modules() if isinstance(module, LoraLayer)}
    for key, value in lm.state_dict().items():
        if ".lora_" in key:
            continue
        owner, _, leaf = key.partition(".base_layer.")
        if leaf == "weight" and owner in adapted:
            layer = adapted[owner]
            value = value + sum(layer.get_delta_weight(name).to(value.dtype) for name in layer.active_adapters)
        state[f"{owner}.{leaf}" if leaf else key] = value
    return state


def adapter_state(lm: PreTrainedModel) -> dict[str, Tensor]:
    """LoRA tensors under PEFT's names, so that PEFT can load them too."""
    return {
        "base_model.model." + key.replace(".default.", "."): value.detach().contiguous()
        for key, value in lm.state_dict().items()
        if ".lora_" in key
    }


def has_lora(lm: PreTrainedModel) -> bool:
    """Whether a model holds LoRA layers."""
    return any(isinstance(module, LoraLayer) for module in lm.modules())


def save_reasoner(reasoner: LatentReasoner, folder: Path, merge: bool = True, base: Backbone | None = None) -> None:
    """Writes a reasoner to a new folder, which appears under its name only when whole.

    Args:
        reasoner: What to save.
        folder: Where; must not exist.
        merge: Merge LoRA into the weights; otherwise only adapters are saved, and ``base`` names the model.
        base: The backbone that adapters belong to.

    Raises:
        LoriError: If the folder exists, or adapters are to be apart without a base to name.
    """
    if folder.exists():
        raise LoriError(f"{folder} exists already; remove it or give another folder")
    lm = reasoner.lm
    apart = has_lora(lm) and not merge
    if apart and (base is None or base.name is None):
        raise LoriError("saving adapters apart needs the name of the base model; merge them instead")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        settings: dict[str, Any] = {
            "format": 1,
            "version": __version__,
            "reasoning": reasoner.reasoning,
            "latents": reasoner.thought.latents,
            "latent_scale": reasoner.latent_scale,
            "template": asdict(reasoner.template),
        }
        thought = {f"thought.{k}": v.detach().contiguous() for k, v in reasoner.thought.state_dict().items()}
        state = adapter_state(lm) if apart else merged_state(lm)
        if reasoner.markers is not None:
            rows = reasoner.markers.detach()
            if apart:
                thought["markers"] = rows.contiguous()
            else:
                _write_markers(reasoner, state, rows)
        if apart:
            assert base is not None
            settings["base"] = asdict(base)
            save_file(state, part / ADAPTER)
            lm.peft_config["default"].save_pretrained(part)
        else:
            lm.save_pretrained(part, state_dict=state)
        save_file(thought, part / THOUGHT)
        reasoner.tokenizer.save_pretrained(part)
        (part / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (part / "README.md").write_text(
            CARD.format(
                reasoning=reasoner.reasoning,
                version=__version__,
                architecture=type(lm).__name__,
                parameters=sum(p.numel() for p in reasoner.parameters()),
                latents=reasoner.thought.latents,
                name=folder.name,
            ),
            encoding="utf-8",
        )
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_markers(reasoner: LatentReasoner, state: dict[str, Tensor], rows: Tensor) -> None:
    table = reasoner.lm.get_input_embeddings().weight
    index = torch.tensor(reasoner.encoder.bot + reasoner.encoder.eot, device=table.device)
    merged: dict[int, Tensor] = {}
    for key, value in state.items():
        if value.data_ptr() == table.data_ptr():
            if id(table) not in merged:
                merged[id(table)] = value.clone().index_copy(0, index, rows.to(value.dtype))
            state[key] = merged[id(table)]


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads what kind of reasoner a folder holds.

    Raises:
        LoriError: If it holds none.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise LoriError(f"{folder} is no saved reasoner (no {SETTINGS}); give a folder that `export` or `fit` wrote")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings["format"] != 1:
            raise LoriError(f"{path}: format {settings['format']} is newer than this lori_pl; update it")
        settings["template"] = Template(**settings["template"])
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LoriError(f"{path} is damaged ({error}); export the student again") from error
    return dict(settings)


def load_reasoner(folder: Path, device: str = "cpu", dtype: str = "float32") -> LatentReasoner:
    """Loads a folder written by :func:`save_reasoner`, in eval mode.

    Raises:
        LoriError: If the folder is no saved reasoner, or one of its files is damaged.
    """
    settings = read_settings(folder)
    if "base" in settings:
        base = dict(settings["base"])
        base["lora"] = LoRA(**base["lora"])
        backbone = Backbone(**base)
    else:
        backbone = Backbone(name=str(folder), dtype=dtype)  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = load_causal_lm(backbone, tokenizer)
    lm = prepare_training(lm, backbone)
    reasoner = LatentReasoner(
        lm,
        tokenizer,
        settings["template"],
        settings["reasoning"],
        settings["latents"],
        settings["latent_scale"],
    )
    try:
        thought = load_file(folder / THOUGHT)
        missing, unexpected = reasoner.load_state_dict(thought, strict=False)
        if "base" in settings:
            adapter = load_file(folder / ADAPTER)
            prefix = "base_model.model."
            renamed = {
                key.removeprefix(prefix)
                .replace(".lora_A.", ".lora_A.default.")
                .replace(".lora_B.", ".lora_B.default."): v
                for key, v in adapter.items()
            }
            unexpected = [*unexpected, *lm.load_state_dict(renamed, strict=False).unexpected_keys]
    except (OSError, SafetensorError, RuntimeError) as error:
        raise LoriError(
            f"{folder}: damaged weights ({str(error).splitlines()[0]}); export the student again"
        ) from error
    absent = [key for key in missing if key.startswith(("thought.", "markers")) and "base" in settings]
    if unexpected or absent:
        raise LoriError(f"{folder}: weights do not fit {SETTINGS}: {[*unexpected, *absent][:3]}")
    return reasoner.to(device).eval()
