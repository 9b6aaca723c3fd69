"""Tokenizers: the embedded word-level one, and any of transformers, with the latent markers added."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lori_pl.data.synthetic import VALUES, vocabulary
from lori_pl.errors import LoriError

BEGIN_OF_THOUGHT = "<bot>"
END_OF_THOUGHT = "<eot>"
SYNTHETIC = "synthetic"


def synthetic_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the word-level tokenizer of the embedded world: one token a number (0 to 99), word or symbol.

    Returns:
        A Hugging Face fast tokenizer with ``<pad>``, ``<eos>`` and ``<unk>``; the same on every call.
    """
    words = ["<pad>", "<eos>", "<unk>", *[str(value) for value in range(VALUES)], *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"<<|>>|####|[-+*/=?.,]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


@lru_cache(maxsize=8)
def load_tokenizer(name: str, markers: bool, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer and makes sure of what the method needs of it.

    Args:
        name: ``synthetic`` (embedded), a hub id, a local folder, or a GGUF file.
        markers: Whether ``<bot>`` and ``<eot>`` are added where absent (latent methods).
        revision: Revision of a hub repository.

    Returns:
        The tokenizer, with a padding token (the end token where it has none of its own).

    Raises:
        LoriError: If no tokenizer can be loaded from ``name``, or it has no end token.
    """
    if name == SYNTHETIC:
        tokenizer: PreTrainedTokenizerBase = synthetic_tokenizer()
    else:
        folder, keywords = name, {}
        if name.endswith(".gguf"):
            folder, keywords = str(Path(name).parent), {"gguf_file": Path(name).name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision or "main", **keywords)
        except Exception as error:  # transformers raises anything from OSError to KeyError here
            kind = "folder" if os.path.isdir(name) else "hub id or folder"
            raise LoriError(
                f"no tokenizer found at {kind} '{name}' ({type(error).__name__}: {str(error).splitlines()[0]}); "
                "give a folder with tokenizer.json, a hub id that is downloaded, or 'synthetic'"
            ) from error
    if tokenizer.eos_token_id is None:
        raise LoriError(f"tokenizer '{name}' has no end token, which marks where an answer ends; set its eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if markers:
        present = tokenizer.get_vocab()
        absent = [token for token in (BEGIN_OF_THOUGHT, END_OF_THOUGHT) if token not in present]
        if absent:
            tokenizer.add_special_tokens({"additional_special_tokens": absent}, replace_extra_special_tokens=False)
    return tokenizer
