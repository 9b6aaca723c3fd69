"""Folders of saved reasoners: a transformers model folder with a thought beside it."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lori_pl import __version__
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import read_tokenizer
from lori_pl.errors import LoriError, one_line
from lori_pl.files import replace_folder
from lori_pl.models.backbone import (
    SOURCE,
    Backbone,
    DType,
    LoRA,
    hollow_stays,
    load_causal_lm,
    lora_config,
    prepare_training,
    quiet_progress,
)
from lori_pl.models.embeddings import hold_tokens
from lori_pl.models.reasoner import LatentReasoner
from lori_pl.models.thought import Reasoning, ThoughtSettings

OWN_ADAPTERS = "default"
"""PEFT's name for the adapters that train."""
SETTINGS = "reasoner.json"
THOUGHT = "thought.safetensors"
ADAPTER = "adapter_model.safetensors"
_KINDS: dict[Reasoning, str] = {
    "words": "a model that reasons in words",
    "none": "a model that answers at once",
    "pause": "a student that answers behind pause tokens",
    "latent": "a student that reasons in latents, one after the other",
    "parallel": "a student that reasons in latents, updated together",
}
CARD = """---
library_name: lori_pl
tags: [latent-reasoning, chain-of-thought]
---
# {name}: {kind}

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
        # a layer may have adapters of a teacher's alone
        if leaf == "weight" and owner in adapted and OWN_ADAPTERS in adapted[owner].lora_A:
            value = _with_adapters(adapted[owner], value)
        state[f"{owner}.{leaf}" if leaf else key] = value
    return state


def _with_adapters(layer: Any, weight: Tensor) -> Tensor:
    # in fp32: a small update would be lost in the rounding of half precision
    return (weight.float() + layer.get_delta_weight(OWN_ADAPTERS).float()).to(weight.dtype)


def adapter_state(lm: PreTrainedModel) -> dict[str, Tensor]:
    """LoRA tensors under PEFT's names, so that PEFT can load them too."""
    state = lm.state_dict()
    return {name: state[key].detach().contiguous() for name, key in _adapter_names(lm, OWN_ADAPTERS).items()}


def _adapter_names(lm: PreTrainedModel, adapters: str) -> dict[str, str]:
    """PEFT's names of a model's adapters, and what they are called in the model."""
    part = f".{adapters}."
    keys = [key for key in lm.state_dict() if ".lora_" in key and part in key]
    return {f"base_model.model.{key.replace(part, '.')}": key for key in keys}


def has_lora(lm: PreTrainedModel) -> bool:
    """Whether a model holds LoRA layers."""
    return any(isinstance(module, LoraLayer) for module in lm.modules())


def _base_of(lm: PreTrainedModel, base: Backbone | None) -> dict[str, Any]:
    """What the folder says of the model that adapters belong to; a local one by its full path."""
    source = vars(lm).get(SOURCE, base)
    if source is None or source.name is None:
        raise LoriError("saving adapters apart needs the name of the base model, and this one has none; merge them")
    name = str(Path(source.name).resolve()) if Path(source.name).exists() else source.name
    plain = replace(source, name=name, tokenizer=None, attention=None, gradient_checkpointing=False, compile=False)
    written = asdict(plain)
    del written["trust_remote_code"]  # who loads the folder says whom to trust
    return written


def save_reasoner(
    reasoner: LatentReasoner, folder: Path, merge: bool = True, base: Backbone | None = None, seed: int | None = None
) -> None:
    """Writes a reasoner to a new folder, which appears under its name only when whole.

    Args:
        reasoner: What to save.
        folder: Where; must not exist.
        merge: Merge LoRA into the weights; otherwise only adapters are saved, beside the base model's name.
        base: The backbone that adapters belong to, for a model that :func:`load_causal_lm` did not load.
        seed: The training's seed, which a test of the folder reports.

    Raises:
        LoriError: If the folder exists, or adapters are to be apart from a base model that has no name.
    """
    if folder.exists():
        raise LoriError(f"{folder} exists already; remove it or give another folder")
    lm = reasoner.lm
    apart = has_lora(lm) and not merge
    settings: dict[str, Any] = {
        "format": 1,
        "version": __version__,
        **asdict(replace(reasoner.settings, latents=reasoner.thought.latents)),
        "template": asdict(reasoner.template),
    }
    if seed is not None:
        settings["seed"] = seed
    if apart:
        settings["base"] = _base_of(lm, base)

    def write(part: Path) -> None:
        part.mkdir()
        thought = {f"thought.{k}": v.detach().contiguous() for k, v in reasoner.thought.state_dict().items()}
        if apart:
            if reasoner.markers is not None:
                thought["markers"] = reasoner.markers.detach().contiguous()
            save_file(adapter_state(lm), part / ADAPTER)
            lm.peft_config[OWN_ADAPTERS].save_pretrained(part)
        else:
            with quiet_progress():
                lm.save_pretrained(part, state_dict=_with_markers(reasoner, merged_state(lm)))
        save_file(thought, part / THOUGHT)
        reasoner.tokenizer.save_pretrained(part)
        (part / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (part / "README.md").write_text(_card(reasoner, folder.name), encoding="utf-8")
        readable = (part / SETTINGS).stat().st_mode
        for file in part.rglob("*"):
            if file.is_file():
                file.chmod(readable)  # safetensors makes files that only their owner can read

    replace_folder(folder, write)


def _card(reasoner: LatentReasoner, name: str) -> str:
    return CARD.format(
        kind=_KINDS[reasoner.reasoning],
        version=__version__,
        architecture=type(reasoner.lm).__name__,
        parameters=sum(p.numel() for name, p in reasoner.named_parameters() if ".lora_" not in name),
        latents=reasoner.thought.latents,
        name=name,
    )


def _with_markers(reasoner: LatentReasoner, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Writes the markers' trained rows into the embedding table, and into the head that is tied to it."""
    if reasoner.markers is None:
        return state
    table = reasoner.lm.get_input_embeddings().weight
    index = torch.tensor(reasoner.encoder.bot + reasoner.encoder.eot, device=table.device)
    written = table.detach().index_copy(0, index, reasoner.markers.detach().to(table.dtype))
    return {key: written if value.data_ptr() == table.data_ptr() else value for key, value in state.items()}


def adapted_base(backbone: Backbone) -> Backbone | None:
    """The base model, with its LoRA, of a folder that keeps adapters apart; ``None`` for any other backbone.

    Raises:
        LoriError: If the folder's settings are damaged.
    """
    folder = Path(backbone.name or "")
    if backbone.name is None or not (folder / SETTINGS).is_file():
        return None
    base: Backbone | None = read_settings(folder).get("base")
    if base is None:
        return None
    return replace(
        base,
        config={**base.config, **backbone.config},
        dtype=backbone.dtype,
        attention=backbone.attention,
        trust_remote_code=backbone.trust_remote_code,
    )


def load_adapted(folder: Path, base: Backbone) -> PreTrainedModel:
    """Loads a base model and a folder's adapters on it.

    Raises:
        LoriError: If the base does not load, or the adapters are damaged or do not fit.
    """
    lm = prepare_training(load_causal_lm(base, read_tokenizer(str(folder)), f"the base of {folder}: backbone"), base)
    _read_adapters(lm, folder, OWN_ADAPTERS)
    return lm


def load_merged(folder: Path, base: Backbone, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Loads a base model with a folder's adapters merged into its weights, in train mode; all of it trains.

    Args:
        folder: What keeps the adapters.
        base: Their base model, with its LoRA, as `adapted_base` gives it.
        tokenizer: Whose ids the embeddings have to hold.

    Raises:
        LoriError: As `load_adapted`.
    """
    with torch.random.fork_rng(devices=[]):  # what the adapters would start from is drawn in vain
        lm = load_adapted(folder, base)
    for name, layer in list(lm.named_modules()):
        if isinstance(layer, LoraLayer):
            plain = layer.get_base_layer()
            with torch.no_grad():
                plain.weight.copy_(_with_adapters(layer, plain.weight))
            lm.set_submodule(name, plain)
    del lm.peft_config
    hold_tokens(lm, tokenizer, str(folder))
    # a model of no other name: adapters that a student puts on it have no base to be kept apart from
    vars(lm)[SOURCE] = replace(base, name=None, lora=None)
    return lm.requires_grad_(True).train()


def add_adapters(lm: PreTrainedModel, folder: Path, lora: LoRA, name: str) -> None:
    """Adds a folder's LoRA adapters to a model of the same base with adapters of its own; frozen, and not in use.

    Raises:
        LoriError: If the folder's adapters are damaged or do not fit.
    """
    trains = {parameter: parameter.requires_grad for parameter in lm.parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(lora_config(lm, lora), lm, name)
    for parameter in lm.parameters():
        if parameter not in trains:
            # as the student's own: a base in half precision has adapters in fp32
            parameter.data = parameter.data.float()
        parameter.requires_grad_(trains.get(parameter, False))
    _read_adapters(lm, folder, name)
    for module in lm.modules():
        if isinstance(module, LoraLayer):
            module._active_adapter = [OWN_ADAPTERS]


def _read_adapters(lm: PreTrainedModel, folder: Path, name: str) -> None:
    names = _adapter_names(lm, name)
    try:
        saved = {names.get(key, key): value for key, value in load_file(folder / ADAPTER).items()}
        wrong = _load_into(lm, saved, tuple(names.values()))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise LoriError(f"{folder}: damaged weights ({one_line(error)}); export it again") from error
    if wrong:
        raise LoriError(f"{folder}: the weights do not fit {SETTINGS}, e.g. {wrong[0]}; export it again")


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads what kind of reasoner a folder holds; a base model there is one that is not trusted to run its code.

    Raises:
        LoriError: If it holds none.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise LoriError(f"{folder} is no saved reasoner (no {SETTINGS}); give a folder that `export` or `fit` wrote")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings["format"] != 1:
            raise LoriError(f"format {settings['format']!r} is unknown to this lori_pl; update it")
        settings["template"] = Template(**settings["template"])
        if "base" in settings:
            # what would run code that comes from elsewhere is the caller's to say, not the folder's
            lora, plain = LoRA(**settings["base"]["lora"]), {"trust_remote_code": False, "attention": None}
            settings["base"] = Backbone(**{**settings["base"], "lora": lora, **plain})
        # a folder of an older version has fewer
        named = {field.name: settings[field.name] for field in fields(ThoughtSettings) if field.name in settings}
        settings["thought"] = ThoughtSettings(**named)
        if not {"reasoning", "latents"} <= named.keys():
            raise KeyError("reasoning and latents")
    except LoriError as error:
        raise LoriError(f"{path}: {error}, or export the student again") from error
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LoriError(f"{path} is damaged ({one_line(error)}); export the student again") from error
    return dict(settings)


def load_reasoner(
    folder: Path, device: str = "cpu", dtype: DType = "float32", trust_remote_code: bool = False
) -> LatentReasoner:
    """Loads a folder written by :func:`save_reasoner`, in eval mode.

    Where the default device is ``meta``, what it gives has no weights.

    Args:
        folder: The folder.
        device: Where the reasoner goes.
        dtype: Type of the weights.
        trust_remote_code: Run code that comes with the model, or with the base model that the folder names.

    Raises:
        LoriError: If the folder is no saved reasoner, or one of its files is missing or damaged.
    """
    settings = read_settings(folder)
    base: Backbone | None = settings.get("base")
    tokenizer = read_tokenizer(str(folder))
    if base is None:
        own = Backbone(name=str(folder), dtype=dtype, trust_remote_code=trust_remote_code)
        lm = load_causal_lm(own, tokenizer)
    else:
        lm = load_adapted(folder, replace(base, dtype=dtype, trust_remote_code=trust_remote_code))
    reasoner = LatentReasoner(lm, tokenizer, settings["template"], settings["thought"])
    try:
        wrong = _load_into(reasoner, load_file(folder / THOUGHT), ("thought.", "markers"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise LoriError(f"{folder}: damaged weights ({one_line(error)}); export the student again") from error
    if wrong:
        raise LoriError(f"{folder}: the weights do not fit {SETTINGS}, e.g. {wrong[0]}; export the student again")
    hollow = torch.get_default_device().type == "meta"
    return (reasoner if hollow else reasoner.to(device)).eval()


def _load_into(module: nn.Module, state: dict[str, Tensor], expected: tuple[str, ...]) -> list[str]:
    """Loads part of a module's state; gives the names that are unexpected, or expected but missing."""
    with hollow_stays():  # where a model has no weights yet, they come later
        missing, unexpected = module.load_state_dict(state, strict=False)
    return [*unexpected, *(key for key in missing if key.startswith(expected))]
