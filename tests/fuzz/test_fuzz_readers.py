"""Answers, and readers of caches, checkpoints and folders: whatever the bytes, a right result or one clear error.

A few hundred inputs each in the fast suite, 10,000 in the slow one.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any

import fuzzing
import pytest
import torch
from fuzzing import JSON, MANY, altered, explore, is_clear
from hypothesis import assume
from hypothesis import strategies as st

from lori_pl.cache.manifest import FORMAT, Manifest, read_manifest, read_plan
from lori_pl.cache.shards import map_shard, write_sealed
from lori_pl.checkpoint_files import CheckpointFiles, newest_sound, read_checkpoint
from lori_pl.data import extract_answer, same_answer
from lori_pl.data.answers import parse_number
from lori_pl.errors import LoriError
from lori_pl.models.saving import SETTINGS, read_settings

pytestmark = pytest.mark.fuzz
# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [300, MANY])
def test_any_text_has_an_answer(count):
    pieces = st.sampled_from(
        ["####", " ", "\n", "$", "%", "1,000", "-", ".", "/", "e", "1", "half", "**", "\u2212", "€"]
    )
    texts = st.text(max_size=60) | st.lists(pieces | st.text(max_size=3), max_size=20).map("".join)

    def check(text: str) -> None:
        answer = extract_answer(text)
        assert answer == answer.strip()
        assert same_answer(answer, answer)
        assert extract_answer(f"#### {answer}") == answer or not parse_number(answer)

    explore(count, texts, check)


@st.composite
def written_number(draw: st.DrawFn) -> tuple[str, Fraction, bool]:
    """A number as people write it, its value by decimal arithmetic, and whether it is of per cent."""
    digits, places = draw(st.integers(0, 10**18)), draw(st.integers(0, 6))
    value = Decimal(digits).scaleb(-places)
    text = f"{value:,f}" if draw(st.booleans()) else f"{value:f}"
    if draw(st.booleans()):
        value, text = -value, f"-{text}"
    exact = Fraction(value)
    match kind := draw(st.sampled_from(["plain", "plain", "money", "exponent", "fraction", "emphasis", "percent"])):
        case "money":
            text = text.replace("-", "-$") if text.startswith("-") else f"${text}"
        case "exponent":
            power = draw(st.integers(-20, 20))
            text, exact = f"{text}e{power}", exact * Fraction(10) ** power
        case "fraction":
            below = draw(st.integers(1, 10**6))
            text, exact = f"{text}/{below}", exact / below
        case "emphasis":
            text = f"**{text}**"
        case "percent":
            text, exact = text + draw(st.sampled_from(["%", " %", " percent"])), exact / 100
    return text, exact, kind == "percent"


def equal(one: tuple[str, Fraction, bool], other: tuple[str, Fraction, bool]) -> bool:
    """By the rule: of one that is of per cent and one that is not, the former's count may be meant too."""
    (_, value, percent), (_, other_value, other_percent) = one, other
    if percent == other_percent:
        return value == other_value
    hundredth, plain = (value, other_value) if percent else (other_value, value)
    return plain in (hundredth, 100 * hundredth)


@pytest.mark.parametrize("count", [300, MANY])
def test_numbers_are_read_as_decimal_arithmetic_has_them(count):
    words = st.sampled_from(["", "So the answer is 7, or 3.\n", "<<2+3=5>> ", "x = 4 #### 9\n"])

    def check(drawn: tuple[tuple[str, Fraction, bool], tuple[str, Fraction, bool], str, str]) -> None:
        number, other, before, after = drawn
        text, value, percent = number
        answer = extract_answer(f"{before}#### {text}{after}")
        assert parse_number(answer) == value, (text, answer)
        assert same_answer(answer, text)
        assert same_answer(text, other[0]) == equal(number, other)
        if percent:  # two that are drawn are hardly ever a hundredfold of each other
            assert same_answer(text, text.removesuffix("percent").rstrip("% "))
            assert same_answer(text, f"{value.numerator}/{value.denominator}")

    number = written_number()
    explore(count, st.tuples(number, number, words, st.sampled_from(["", ".", "\n", " \n#", "\nand so on"])), check)


@pytest.mark.parametrize("count", [300, MANY])
def test_the_last_number_of_a_text_is_read_as_decimal_arithmetic_has_it(count):
    """Where no mark says which."""
    before = st.sampled_from(
        ["", "So it is ", "He has 7, or 3. In all ", "x = ", "5 + 4 = ", "half of 12% (", "No. 4:\n"]
    )
    after = st.sampled_from(
        ["", ".", ", he says.", "\n", " apples", " in all.", ")", "!", "? Yes", "; no more", " a day"]
    )

    def check(drawn: tuple[str, tuple[str, Fraction, bool], str]) -> None:
        lead, (text, value, _), rest = drawn
        answer = extract_answer(f"{lead}{text}{rest}")
        assert parse_number(answer) == value, (drawn, answer)
        assert same_answer(answer, text)

    explore(count, st.tuples(before, written_number(), after), check)


def test_what_has_no_end_is_found(monkeypatch):
    monkeypatch.setattr(fuzzing, "SECONDS", 0.2)

    def check(drawn: int) -> None:
        while drawn:
            with suppress(Exception):  # as a reader that takes any error for one of the file
                time.sleep(60)

    with pytest.raises(fuzzing.Hangs, match=r"no end after 0\.2 s with 7"):
        explore(1, st.just(7), check)


# ---- caches, checkpoints, folders ------------------------------------------------------------------------------------


def manifest() -> dict[str, Any]:
    entry = {"file": "shard-00000-0f.safetensors", "problems": 3, "bytes": 100, "checksum": "0f"}
    made = Manifest(
        identity={"teacher": {"weights": "ab"}, "data": {}, "statistics": {"problems": 3}, "terms": {"mean": {}}},
        rows="ab",
        problems=3,
        shape={"layers": 2, "hidden": 8},
        dtype="float16",
        shard_problems=3,
    )
    return json.loads(made.as_json()) | {"shards": [entry], "state": entry | {"file": "state.safetensors"}}


@st.composite
def changed_manifest(draw: st.DrawFn) -> bytes:
    content = manifest()
    for _ in range(draw(st.integers(1, 2))):
        holder = draw(st.sampled_from([content, content["shape"], content["identity"], *content["shards"]]))
        name = draw(st.sampled_from(sorted(holder)) | st.text(max_size=5))
        if draw(st.booleans()):
            holder.pop(name, None)
        else:
            value: Any = draw(JSON | st.sampled_from(["../x", "/etc/passwd", "a/b", "..", ".", ""]))
            holder[name] = value
        if not all(isinstance(content.get(key), kind) for key, kind in {"shape": dict, "identity": dict}.items()):
            break
        if not isinstance(content.get("shards"), list) or not all(isinstance(e, dict) for e in content["shards"]):
            break
    text = json.dumps(content).encode("utf-8", errors="surrogatepass")
    return text if draw(st.integers(0, 4)) else draw(altered(text))


@pytest.mark.parametrize("count", [300, MANY])
def test_manifests(count, tmp_path):
    def check(content: bytes) -> None:
        for name, read in (("manifest.json", read_manifest), ("plan.json", read_plan)):
            (tmp_path / name).write_bytes(content)
            try:
                found = read(tmp_path)
            except LoriError as error:
                is_clear(error)
                continue
            if not isinstance(found, Manifest):
                continue
            assert found.format == FORMAT
            assert found.state is not None
            for entry in (found.state, *found.shards):
                # no file outside the folder is ever read
                assert (tmp_path / entry.file).resolve().parent == tmp_path.resolve()
            assert isinstance(found.identity["terms"], dict)
            assert found.shape["layers"] >= 0

    explore(count, changed_manifest() | st.binary(max_size=100), check)


def test_a_manifest_that_is_whole_is_read(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest()))
    assert read_manifest(tmp_path).shards[0].problems == 3


@pytest.mark.parametrize("count", [100, MANY])
def test_checkpoints(count, tmp_path):
    path = tmp_path / "last.ckpt"
    saved = {"global_step": 5, "state_dict": {"w": torch.arange(6.0)}, "lori_pl": {"method": "lori"}}
    CheckpointFiles().save_checkpoint(saved, path)
    whole = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = newest_sound(tmp_path)
        except LoriError as error:
            is_clear(error)
        else:
            assert found == path
            read = read_checkpoint(path)
            assert read["global_step"] == 5
            assert torch.equal(read["state_dict"]["w"], torch.arange(6.0))
        try:
            assert isinstance(read_checkpoint(path), dict)
        except LoriError as error:
            is_clear(error)

    explore(count, altered(whole) | st.binary(max_size=100), check)


@pytest.mark.parametrize("count", [100, MANY])
def test_shards(count, tmp_path):
    whole = write_sealed(
        tmp_path, "shard-00000", {"key": torch.zeros(2, 16, dtype=torch.uint8), "mean/m": torch.ones(2, 3)}
    )
    content, path = whole.read_bytes(), tmp_path / "shard"

    def check(changed: bytes) -> None:
        path.write_bytes(changed)
        try:
            tensors = map_shard(path)
        except LoriError as error:
            is_clear(error)
            return
        for tensor in tensors.values():
            tensor.sum()  # all of it is within the file

    explore(count, altered(content) | st.binary(max_size=60), check)


@pytest.mark.parametrize("count", [100, MANY])
def test_saved_reasoners(count, tmp_path):
    path = tmp_path / SETTINGS
    names = ["format", "reasoning", "latents", "template", "base", "projector", "passes", "then", "latent_scale"]

    def check(content: Any) -> None:
        plain = content if isinstance(content, bytes) else json.dumps(content).encode("utf-8", errors="surrogatepass")
        path.write_bytes(plain)
        try:
            found = read_settings(tmp_path)
        except LoriError as error:
            is_clear(error)
            return
        assume(found)
        assert isinstance(found["latents"], int)
        assert found["format"] == 1

    base = {"format": 1, "reasoning": "latent", "latents": 3, "template": {}}
    changes = st.dictionaries(st.sampled_from(names), JSON, max_size=2).map(lambda new: {**base, **new})
    explore(count, changes | JSON | st.binary(max_size=60), check)
