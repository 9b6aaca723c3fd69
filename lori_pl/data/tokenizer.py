"""Tokenizers: the embedded word-level ones, and any of transformers, with the latent markers added."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lori_pl.data.synthetic import VALUES, vocabulary
from lori_pl.errors import LoriError, one_line

BEGIN_OF_THOUGHT = "<bot>"
END_OF_THOUGHT = "<eot>"
SYNTHETIC = "synthetic"
DIGITS = "digits"


def synthetic_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the word-level tokenizer of the embedded world: one token a number (0 to 99), word or symbol.

    Returns:
        A Hugging Face fast tokenizer with ``<pad>``, ``<eos>`` and ``<unk>``; the same on every call.
    """
    return _word_level([*(str(value) for value in range(VALUES)), *vocabulary()])


def digits_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the tokenizer of `sources.Multiplication`, as the synthetic one is built: one token a digit or symbol."""
    return _word_level([*"0123456789*+()", "####"])


def _word_level(known: Sequence[str]) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *known]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"<<|>>|####|[-+*/%=?.,]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


_FIELDS = "model.backbone.name or tokenizer, model.teacher.name"
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
_EMBEDDED = {SYNTHETIC: synthetic_tokenizer, DIGITS: digits_tokenizer}


def read_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Reads a tokenizer as it is, and makes sure that it has an end token and a padding token.

    Args:
        name: ``synthetic`` or ``digits`` (embedded), a hub id, a local folder, or a GGUF file.
        revision: Revision of a hub repository.

    Returns:
        The tokenizer; the end token pads where it has no padding token of its own.

    Raises:
        LoriError: If no tokenizer can be loaded from ``name``, or it has no end token.
    """
    try:
        tokenizer = _EMBEDDED[name]() if name in _EMBEDDED else _from_files(name, revision)
    except Exception as error:  # transformers raises anything from OSError to KeyError here
        # a hub id has one slash at the most, and what stands before it is no folder here
        is_path = name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf")
        is_path = is_path or ("/" in name and os.path.isdir(name.partition("/")[0]))
        if is_path and not os.path.exists(name):
            raise LoriError(
                f"no file or folder '{name}', where a model and its tokenizer should be; correct the path "
                f"({_FIELDS}), or train or fetch that model first"
            ) from error
        if os.path.isdir(name) and not any((Path(name) / file).is_file() for file in _FILES):
            raise LoriError(
                f"folder '{name}' holds no model and no tokenizer; give the folder of a saved model ({_FIELDS})"
            ) from error
        kind = "folder" if os.path.isdir(name) else "hub id or folder"
        raise LoriError(
            f"no tokenizer found at {kind} '{name}' ({type(error).__name__}: {one_line(error)}); "
            f"give a folder with tokenizer.json, a hub id that is downloaded, 'synthetic' or 'digits' ({_FIELDS})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise LoriError(
            f"tokenizer '{name}' ({_FIELDS}) has no end token, which marks where an answer ends; set its eos_token"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_files(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    settings = Path(name) / "tokenizer_config.json"
    if settings.is_file():
        kind = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")
        if kind == "TokenizersBackend":
            # tokenizer.json says all; AutoTokenizer may prefer the class of the model beside it (Qwen2's)
            return PreTrainedTokenizerFast.from_pretrained(name)
    folder, keywords = name, {}
    if name.endswith(".gguf"):
        folder, keywords = str(Path(name).parent), {"gguf_file": Path(name).name}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, revision=revision or "main", **keywords)
    return tokenizer


@lru_cache(maxsize=8)
def load_tokenizer(name: str, markers: bool, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer and makes sure of what the method needs of it; the same object on every call.

    Args:
        name: ``synthetic`` or ``digits`` (embedded), a hub id, a local folder, or a GGUF file.
        markers: Whether ``<bot>`` and ``<eot>`` are added where absent (latent methods).
        revision: Revision of a hub repository.

    Returns:
        The tokenizer, with a padding token (the end token where it has none of its own).

    Raises:
        LoriError: If no tokenizer can be loaded from ``name``, or it has no end token.
    """
    tokenizer = read_tokenizer(name, revision)
    if markers:
        present = tokenizer.get_vocab()
        absent = [token for token in (BEGIN_OF_THOUGHT, END_OF_THOUGHT) if token not in present]
        if absent:
            tokenizer.add_special_tokens({"additional_special_tokens": absent}, replace_extra_special_tokens=False)
    return tokenizer


def cuts_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words between spaces are tokenized apart, by the embedded world's own rules: then each is needed once."""
    if not tokenizer.is_fast:
        return False
    cuts, ours = tokenizer.backend_tokenizer, synthetic_tokenizer().backend_tokenizer
    return (
        cuts.normalizer is None
        and cuts.pre_tokenizer is not None
        and cuts.pre_tokenizer.__getstate__() == ours.pre_tokenizer.__getstate__()
        # a token of two words, or one that takes the space beside it
        and not any(" " in t.content or t.lstrip or t.rstrip for t in cuts.get_added_tokens_decoder().values())
    )


def holds(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has every token of another, under the same id."""
    return bool(other.get_vocab().items() <= tokenizer.get_vocab().items())


def words_and_rules(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """How a tokenizer cuts text: its vocabulary apart from the markers, its rules and its merges."""
    words = {w: i for w, i in tokenizer.get_vocab().items() if w not in (BEGIN_OF_THOUGHT, END_OF_THOUGHT)}
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    rules = [backend.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")]
    return [words, rules, backend.get("model", {}).get("merges")]


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, chat: bool = False) -> bool:
    """Whether two tokenizers cut text alike: equal vocabularies apart from the markers, and equal rules.

    Args:
        one: A tokenizer.
        other: Another.
        chat: Whether they must also write a chat alike: equal chat templates, start and end tokens.
    """

    def cut(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
        return type(tokenizer).__name__ if not tokenizer.is_fast else "fast", words_and_rules(tokenizer)

    def turns(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
        return tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token

    return cut(one) == cut(other) and (not chat or turns(one) == turns(other))
