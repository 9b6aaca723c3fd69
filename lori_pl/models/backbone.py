"""Bring-up of a causal language model: hub id, local folder, GGUF file, or a config alone."""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as hub_logging

from lori_pl.errors import LoriError, one_line
from lori_pl.models.checkpointing import checkpoint_layers
from lori_pl.models.compiling import compile_layers
from lori_pl.models.embeddings import hold_tokens

DType = Literal["float32", "bfloat16", "float16", "auto"]
# the attribute under which a model remembers the backbone that it was loaded from
SOURCE = "lori_source"


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
        tokenizer: Tokenizer's hub id or folder, ``synthetic`` or ``digits``; ``None`` takes ``name``'s.
        revision: Revision of a hub repository; pin it for results.
        dtype: Type of the weights; ``None`` for a teacher takes the student's, else ``float32``.
        attention: Attention implementation by transformers' name: ``sdpa``, ``eager``, ``flash_attention_2``, ...;
            ``None`` for a teacher takes the student's, else ``sdpa`` where the model has it, or ``eager``.
        gradient_checkpointing: Recompute each layer in the backward pass; right with a KV cache.
        compile: Compile the decoder layers for training (torch.compile): worth its minute of compilation where starting
            kernels costs more than they do, as with latents on a GPU.
        lora: Train LoRA adapters instead of all weights.
        dropout: Sets every dropout rate of the config; ``None`` keeps the model's own.
        trust_remote_code: Run code that comes with the model. Only for sources that you trust.
    """

    name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    revision: str | None = None
    dtype: DType | None = None
    attention: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
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
            raise LoriError(
                "backbone has neither tokenizer nor name: set backbone.tokenizer (a name, 'synthetic' or 'digits')"
            )
        return name


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Keeps transformers' progress bars out of logs: within the block they show on a terminal only."""
    shown = hub_logging.is_progress_bar_enabled() and not sys.stdout.isatty()
    if shown:
        hub_logging.disable_progress_bar()
    try:
        # the GGUF reader's bar asks nobody; loggers keep the stream that they were given
        with redirect_stderr(io.StringIO()) if shown else nullcontext():
            yield
    finally:
        if shown:
            hub_logging.enable_progress_bar()


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Silences transformers' table of weights that do not fit: they become an error of one line."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)


@contextmanager
def hollow_stays() -> Iterator[None]:
    """Within the block torch says nothing of weights that are loaded into a model on the meta device, and lost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* to a meta parameter in the current model")
        yield


def _source(name: str, place: str) -> tuple[str, dict[str, Any]]:
    if name.endswith(".gguf"):
        path = Path(name)
        if not path.is_file():
            raise LoriError(f"{place}.name '{name}': no such GGUF file; give its full path")
        return str(path.parent), {"gguf_file": path.name}
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        if (Path(name) / "adapter_config.json").is_file():
            raise LoriError(
                f"{place}.name '{name}' holds LoRA adapters apart from their base model; export it merged, or use "
                "LatentReasoner.from_pretrained"
            )
        raise LoriError(f"{place}.name '{name}' is a folder without config.json, no model; give a saved model's folder")
    return name, {}


def load_config(backbone: Backbone, vocabulary: int | None = None, place: str = "backbone") -> PretrainedConfig:
    """Makes the transformers config of a backbone.

    Args:
        backbone: What to load.
        vocabulary: Size of the tokenizer's vocabulary, for a model from a config alone.
        place: The option that describes it, for messages.

    Raises:
        LoriError: If nothing is found under the name, the config lacks ``model_type``, or a key or value of
            ``config`` is none of that model type.
    """
    changes = dict(backbone.config)
    if backbone.name is None:
        config = _new_config(changes, vocabulary, place)
    else:
        folder, keywords = _source(backbone.name, place)
        try:
            config = AutoConfig.from_pretrained(
                folder,
                revision=backbone.revision or "main",
                trust_remote_code=backbone.trust_remote_code,
                **keywords,
                **changes,
            )
        except Exception as error:  # transformers raises anything from OSError to KeyError here
            remedy = _remedy(error, backbone, place) or (
                "no model found; give a local folder, a hub id that is downloaded or reachable, or a GGUF file"
            )
            raise LoriError(f"{place}.name '{backbone.name}': {remedy} ({one_line(error)})") from error
        # transformers drops keys that it does not know without a word
        if unknown := [key for key in changes if not hasattr(config, key)]:
            raise LoriError(f"{place}.config: {unknown} are no keys of {type(config).__name__}; see `config.json`")
    if backbone.dropout is not None:
        for key in [k for k in config.to_dict() if k.endswith(("dropout", "pdrop", "dropout_prob"))]:
            setattr(config, key, backbone.dropout)
    kernel = getattr(config, "_attn_implementation", None)
    if "/" in str(kernel) and backbone.attention is None and not backbone.trust_remote_code:
        raise LoriError(
            f"{place}: the model's config asks for the attention '{one_line(str(kernel))}', which is code from the "
            f"hub; give {place}.attention, such as sdpa, or set {place}.trust_remote_code if you trust that"
        )
    return config


def _remedy(error: Exception, backbone: Backbone, place: str) -> str:
    if "trust_remote_code" in str(error):
        option = place.rpartition(": ")[2]
        return f"it comes with code of its own; set {option}.trust_remote_code if you trust that"
    if re.search(r"attention implementation|attn_implementation|FlashAttention|flash_attn", str(error)):
        return f"{place}.attention '{backbone.attention}' does not serve it, try eager"
    return ""


def _new_config(changes: dict[str, Any], vocabulary: int | None, place: str) -> PretrainedConfig:
    if "model_type" not in changes:
        raise LoriError(f"{place} has neither name nor config.model_type: say which model, e.g. model_type: llama")
    kind = changes.pop("model_type")
    given = list(changes)
    if kind not in CONFIG_MAPPING:
        raise LoriError(f"{place}.config.model_type '{kind}' is unknown to transformers; give one such as llama")
    if vocabulary is not None:
        # the architecture's own ids may lie beyond this vocabulary
        changes = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None, **changes}
    try:
        config, plain = AutoConfig.for_model(kind, **changes), AutoConfig.for_model(kind)
    except Exception as error:  # validation errors of transformers have types of their own
        raise LoriError(f"{place}.config is no config of '{kind}': {one_line(error)}") from error
    # a key that nobody consumes stays as an attribute
    if unknown := [key for key in given if hasattr(config, key) and not hasattr(plain, key)]:
        raise LoriError(f"{place}.config: {unknown} are no keys of {type(config).__name__}; mind the spelling")
    return config


def load_causal_lm(backbone: Backbone, tokenizer: PreTrainedTokenizerBase, place: str = "backbone") -> PreTrainedModel:
    """Loads or builds a causal language model whose embeddings hold every id of the tokenizer.

    Args:
        backbone: What to load.
        tokenizer: Its tokenizer, markers added.
        place: The option that describes it, for messages.

    Returns:
        The model in train mode, LoRA not yet applied.

    Raises:
        LoriError: If nothing loadable is found, or weights are missing, damaged, or of another shape.
    """
    config = load_config(backbone, len(tokenizer), place)
    dtype = "auto" if backbone.dtype == "auto" else getattr(torch, backbone.dtype or "float32")
    try:
        if backbone.name is None or torch.get_default_device().type == "meta":  # sizes alone
            own = getattr(config, "dtype", None) if dtype == "auto" else dtype
            trust: dict[str, Any] = {"trust_remote_code": True} if backbone.trust_remote_code else {}
            model = AutoModelForCausalLM.from_config(config, dtype=own, attn_implementation=backbone.attention, **trust)
            # transformers' own generate() should stop where ours does
            for settings in (model.config, model.generation_config):
                settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            model.generation_config.pad_token_id = tokenizer.pad_token_id
        else:
            model = _load_weights(backbone, config, dtype, place)
    except LoriError:
        raise
    except Exception as error:  # OSError, SafetensorError, RuntimeError, ValueError, ImportError, ...
        field = "config" if backbone.name is None else f"name '{backbone.name}'"
        remedy = _remedy(error, backbone, place) or "the model cannot be built"
        raise LoriError(f"{place}.{field}: {remedy} ({one_line(error)})") from error
    hold_tokens(model, tokenizer, backbone.name, backbone.revision)
    vars(model)[SOURCE] = backbone
    # from_pretrained leaves eval mode, in which a student would train without its dropout
    return model.train()


def _load_weights(backbone: Backbone, config: PretrainedConfig, dtype: Any, place: str) -> PreTrainedModel:
    folder, keywords = _source(str(backbone.name), place)
    if keywords and (packed := getattr(transformers, "GgufConfig", None)) is not None:
        # blocks that stay packed neither train nor save
        keywords["quantization_config"] = packed(dequantize=True)
    with quiet_progress(), _no_load_report():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            revision=backbone.revision or "main",
            dtype=dtype,
            attn_implementation=backbone.attention,
            trust_remote_code=backbone.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report has them
            **keywords,
        )
    wrong = {"missing": sorted(report["missing_keys"])}
    wrong["of another shape"] = sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    for kind, names in wrong.items():
        if names:
            raise LoriError(
                f"{place}.name '{backbone.name}': {len(names)} weights are {kind}, e.g. {names[0]}; the model is "
                f"incomplete, or {place}.config does not fit it"
            )
    has_quantizer = getattr(model, "hf_quantizer", None) is not None
    return _without_quantizer(model, backbone.attention) if keywords and has_quantizer else model


def _without_quantizer(model: PreTrainedModel, attention: str | None) -> PreTrainedModel:
    """Rebuilds a model that was read from a GGUF file, which transformers would refuse to save."""
    settings = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(
            type(model.config).from_dict(settings), dtype=model.dtype, attn_implementation=attention
        )
    plain.load_state_dict(model.state_dict(), strict=True, assign=True)
    # buffers that no state dict holds (rotary frequencies) are still on the meta device
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        plain.get_submodule(owner)._buffers[leaf] = buffer
    plain.requires_grad_(True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def lora_config(model: PreTrainedModel, lora: LoRA) -> LoraConfig:
    """PEFT's settings of adapters for a model."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's transposed linear
        task_type="CAUSAL_LM",
    )


def prepare_training(model: PreTrainedModel, backbone: Backbone) -> PreTrainedModel:
    """Applies LoRA, gradient checkpointing and compilation.

    Returns:
        The transformers model itself; with LoRA its linear layers hold adapters, and only those train.

    Raises:
        LoriError: If LoRA's targets are not in the model, or are its embeddings or head; if layers are to be both
            compiled and recomputed, or cannot be compiled.
    """
    if backbone.compile and backbone.gradient_checkpointing:
        raise LoriError("backbone.compile and backbone.gradient_checkpointing exclude each other: leave one out")
    if backbone.lora is not None:
        lora = backbone.lora
        settings = lora_config(model, lora)
        try:
            # a frozen base in half precision with fp32 adapters is PEFT's own default
            wrapped = get_peft_model(model, settings)
        except ValueError as error:
            raise LoriError(f"backbone.lora (rank {lora.rank}, targets {lora.targets}): {one_line(error)}") from error
        model = wrapped.get_base_model()
        if any(isinstance(m, LoraLayer) for m in (model.get_input_embeddings(), model.get_output_embeddings())):
            raise LoriError(
                f"backbone.lora.targets {lora.targets} name the embeddings or the head, which may be tied; leave them "
                "out (the markers' rows train without)"
            )
        vars(model)[SOURCE] = replace(vars(model).get(SOURCE, backbone), lora=lora)
    if backbone.gradient_checkpointing:
        checkpoint_layers(model)
    if backbone.compile:
        compile_layers(model)
    return model


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Runs a block with ``module`` in eval mode and without gradients, then restores the mode of each of its parts."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
