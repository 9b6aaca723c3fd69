"""Bring-up of a causal language model: hub id, local folder, GGUF file, or a config alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lori_pl.errors import LoriError
from lori_pl.models.checkpointing import checkpoint_layers
from lori_pl.models.hidden import base_model

log = logging.getLogger(__name__)

DType = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass
class LoRA:
    """Low-rank adaptation of the backbone's linear layers, through PEFT (Hu et al., 2021).

    Args:
        rank: Rank of the update.
        alpha: Scale; the update is multiplied by ``alpha / rank``.
        dropout: Dropout on the adapter's input, in training.
        targets: Names of the modules to adapt, or ``all-linear``.
    """

    rank: int = 128
    alpha: float = 32.0
    dropout: float = 0.1
    targets: list[str] | str = "all-linear"


@dataclass
class Backbone:
    """Which causal language model, and how it is loaded.

    Args:
        name: Hub id, local folder or GGUF file; ``None`` builds random weights from ``config``.
        config: Keys of a transformers config (``model_type`` and sizes). With ``name`` they override its config.
        tokenizer: Tokenizer's hub id or folder, or ``synthetic``; ``None`` takes ``name``'s.
        revision: Revision of a hub repository; pin it for results.
        dtype: Type of the weights.
        attention: Attention implementation by transformers' name: ``sdpa``, ``eager``, ``flash_attention_2``, ...
        gradient_checkpointing: Recompute each layer in the backward pass; right with a KV cache.
        lora: Train LoRA adapters instead of all weights.
        dropout: Sets every dropout rate of the config; ``None`` keeps the model's own.
        trust_remote_code: Run code that comes with the model. Only for sources that you trust.
    """

    name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    revision: str | None = None
    dtype: DType = "float32"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    lora: LoRA | None = None
    dropout: float | None = None
    trust_remote_code: bool = False

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer comes from.

        Raises:
            LoriError: If neither ``tokenizer`` nor ``name`` is given.
        """
        name = self.tokenizer or self.name
        if name is None:
            raise LoriError("backbone has neither tokenizer nor name: set backbone.tokenizer (or 'synthetic')")
        return name


def _source(name: str) -> tuple[str, dict[str, Any]]:
    if name.endswith(".gguf"):
        path = Path(name)
        if not path.is_file():
            raise LoriError(f"backbone.name '{name}': no such GGUF file; give its full path")
        return str(path.parent), {"gguf_file": path.name}
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise LoriError(
            f"backbone.name '{name}' is a folder without config.json, no model; give a saved model's folder"
        )
    return name, {}


def load_config(backbone: Backbone, vocabulary: int | None = None) -> PretrainedConfig:
    """Makes the transformers config of a backbone.

    Args:
        backbone: What to load.
        vocabulary: Size of the tokenizer's vocabulary, for a model from a config alone.

    Raises:
        LoriError: If nothing is found under the name, or the config lacks ``model_type``.
    """
    changes = dict(backbone.config)
    if backbone.name is None:
        if "model_type" not in changes:
            raise LoriError("backbone has neither name nor config.model_type: say which model, e.g. model_type: llama")
        if vocabulary is not None:
            changes.setdefault("vocab_size", vocabulary)
        try:
            config = AutoConfig.for_model(changes.pop("model_type"), **changes)
        except (ValueError, TypeError) as error:
            raise LoriError(f"backbone.config is no config of transformers: {error}") from error
    else:
        folder, keywords = _source(backbone.name)
        try:
            config = AutoConfig.from_pretrained(
                folder,
                revision=backbone.revision or "main",
                trust_remote_code=backbone.trust_remote_code,
                **keywords,
                **changes,
            )
        except Exception as error:  # transformers raises anything from OSError to KeyError here
            raise LoriError(
                f"backbone.name '{backbone.name}': no model found ({str(error).splitlines()[0]}); "
                "give a local folder, a hub id that is downloaded or reachable, or a GGUF file"
            ) from error
    if backbone.dropout is not None:
        for key in [k for k in config.to_dict() if k.endswith(("dropout", "pdrop"))]:
            setattr(config, key, backbone.dropout)
    return config


def load_causal_lm(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Loads or builds a causal language model whose embeddings hold every id of the tokenizer.

    Args:
        backbone: What to load.
        tokenizer: Its tokenizer, markers added.

    Returns:
        The model in train mode, LoRA not yet applied.

    Raises:
        LoriError: If nothing loadable is found.
    """
    config = load_config(backbone, len(tokenizer))
    dtype = backbone.dtype if backbone.dtype == "auto" else getattr(torch, backbone.dtype)
    if backbone.name is None:
        model = AutoModelForCausalLM.from_config(
            config, dtype=None if dtype == "auto" else dtype, attn_implementation=backbone.attention
        )
    else:
        folder, keywords = _source(backbone.name)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                config=None if keywords else config,
                revision=backbone.revision or "main",
                dtype=dtype,
                attn_implementation=backbone.attention,
                trust_remote_code=backbone.trust_remote_code,
                **keywords,
            )
        except (OSError, ValueError, ImportError) as error:
            raise LoriError(
                f"backbone.name '{backbone.name}' cannot be loaded: {str(error).splitlines()[0]}"
            ) from error
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        grow_embeddings(model, len(tokenizer))
    # from_pretrained leaves eval mode, in which a student would train without its dropout
    return model.train()


def grow_embeddings(model: PreTrainedModel, size: int) -> None:
    """Resizes the embeddings to ``size`` rows (ties kept); a new row is the mean of the old ones."""
    old = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size, mean_resizing=False)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for weight in {id(w): w for w in (model.get_input_embeddings().weight, head.weight)}.values():
            if weight.device.type != "meta":
                weight[old:] = weight[:old].float().mean(0).to(weight.dtype)


def prepare_training(model: PreTrainedModel, backbone: Backbone) -> PreTrainedModel:
    """Applies LoRA and gradient checkpointing.

    Returns:
        The transformers model itself; with LoRA its linear layers hold adapters, and only those train.

    Raises:
        LoriError: If LoRA's targets are not in the model.
    """
    if backbone.lora is not None:
        lora = backbone.lora
        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        )
        try:
            wrapped = get_peft_model(model, settings)
        except ValueError as error:
            raise LoriError(f"backbone.lora.targets {lora.targets}: {str(error).splitlines()[0]}") from error
        model = wrapped.get_base_model()
        # a frozen base in half precision with fp32 adapters is PEFT's own default
    if backbone.gradient_checkpointing:
        checkpoint_layers(model)
    return model


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Applies the language-model head to chosen hidden states only.

    Args:
        model: The causal language model.
        hidden: (..., D) states after the final norm.

    Returns:
        (..., V) logits, with the scale or soft cap that the architecture puts on them.
    """
    logits: Tensor = model.get_output_embeddings()(hidden)
    config = model.config
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Runs a block with ``module`` in eval mode and without gradients, then restores its mode."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


__all__ = [
    "Backbone",
    "LoRA",
    "base_model",
    "frozen",
    "grow_embeddings",
    "head_logits",
    "load_causal_lm",
    "load_config",
    "prepare_training",
]
