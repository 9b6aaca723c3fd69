"""Digests that tell one model, or one tokenizer, from another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lori_pl.data.tokenizer import words_and_rules
from lori_pl.errors import LoriError, one_line
from lori_pl.files import checksum, file_checksum
from lori_pl.models.backbone import Backbone
from lori_pl.models.hidden import LayerSelection, decoder_layers
from lori_pl.models.saving import ADAPTER, SETTINGS, adapted_base

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def model_files(backbone: Backbone) -> list[Path]:
    """The files of weights, and the config, that a backbone is loaded from; nothing is downloaded.

    Raises:
        LoriError: If it has no name, or its files are not on this machine.
    """
    if backbone.name is None:
        raise LoriError("model.teacher has no name: random weights are no teacher that a cache could be told by")
    path = Path(backbone.name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        try:
            patterns, revision = [*_WEIGHTS, "config.json"], backbone.revision or "main"
            found = snapshot_download(backbone.name, revision=revision, allow_patterns=patterns, local_files_only=True)
            path = Path(found)
        except Exception as error:  # the hub raises errors of many types
            raise LoriError(
                f"model.teacher.name '{backbone.name}': not on this machine ({one_line(error)}); give its folder, or "
                "download it first"
            ) from error
    if (base := adapted_base(backbone)) is not None:
        return [path / ADAPTER, path / SETTINGS, *model_files(base)]
    weights = sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
    if not weights:
        raise LoriError(f"model.teacher.name '{backbone.name}' holds no weights; give a saved model's folder")
    return [*weights, path / "config.json"]


def weights_digest(backbone: Backbone) -> str:
    """Digest of the content of the `model_files`; reads them once, about a second a gigabyte.

    Raises:
        LoriError: As `model_files`.
    """
    return checksum("".join(f"{file.suffix}:{file_checksum(file)};" for file in model_files(backbone)).encode())


def layers_digest(lm: PreTrainedModel) -> str | None:
    """Digest of what does not train in a model's decoder layers, by the sums of its bits; ``None`` on the meta device.

    Unlike `weights_digest` it is of the weights that were loaded, in their type, and takes one pass over them.

    Args:
        lm: The causal language model.
    """
    found = []
    for number, layer in enumerate(decoder_layers(lm)):
        frozen = [parameter for parameter in layer.parameters() if not parameter.requires_grad]
        if any(parameter.is_meta for parameter in frozen):
            return None
        # without names: adapters have another one on a student's own base
        found += sorted((number, list(p.shape), str(p.dtype), _sum_of_bits(p)) for p in frozen)
    return checksum(json.dumps(found).encode())


def _sum_of_bits(tensor: Tensor) -> int:
    content = tensor.detach().contiguous().flatten().view(torch.uint8)
    whole = len(content) // 8 * 8
    words = content[:whole]
    if words.storage_offset() % 8:
        words = words.clone()
    # eight bytes at a time: 11 GB/s on one core, where numbers of four bytes, widened, came to 1
    return int(words.view(torch.int64).sum()) + int(content[whole:].sum())


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of vocabulary and rules, latent markers apart."""
    return checksum(json.dumps(words_and_rules(tokenizer), sort_keys=True).encode())


def teacher_identity(
    backbone: Backbone, tokenizer: PreTrainedTokenizerBase, selection: LayerSelection, precision: str
) -> dict[str, Any]:
    """What a teacher's hidden states depend on, as plain values.

    Args:
        backbone: The teacher.
        tokenizer: Its tokenizer.
        selection: The layers that make its trajectory.
        precision: The Trainer's precision, under which it runs.

    Raises:
        LoriError: As `model_files`.
    """
    return {
        "weights": weights_digest(backbone),
        "config": backbone.config,
        "tokenizer": tokenizer_digest(tokenizer),
        "dtype": backbone.dtype or "float32",
        "precision": precision,
        "selection": asdict(selection),
    }
