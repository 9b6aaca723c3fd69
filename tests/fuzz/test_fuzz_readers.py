"""Readers of files that others made: whatever the bytes, a right result or one clear error.

A few hundred inputs each in the fast suite, 10,000 in the slow one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lori_pl.cache.manifest import FORMAT, Manifest, read_manifest, read_plan
from lori_pl.cache.shards import map_shard, write_sealed
from lori_pl.checkpoint_files import CheckpointFiles, newest_sound, read_checkpoint
from lori_pl.data import extract_answer, load_problems, same_answer
from lori_pl.data.answers import parse_number
from lori_pl.errors import LoriError
from lori_pl.models.saving import SETTINGS, read_settings

pytestmark = pytest.mark.fuzz
MANY = pytest.param(10_000, marks=pytest.mark.slow)


def explore(count: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Checks a property on so many inputs."""
    every = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    settings(max_examples=count, deadline=None, database=None, suppress_health_check=every)(given(strategy)(check))()


def is_clear(error: LoriError) -> None:
    """An error is one line."""
    if "\n" in str(error) or not str(error):
        pytest.fail(f"an error of several lines, or none: {error}")


def altered(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with some bytes changed, cut off, or put in."""
    place = st.integers(0, len(content))
    change = st.tuples(st.sampled_from(["flip", "cut", "insert", "drop"]), place, st.binary(min_size=1, max_size=8))

    def apply(changes: list[tuple[str, int, bytes]]) -> bytes:
        found = content
        for kind, where, new in changes:
            if kind == "flip":
                found = found[:where] + new + found[where + len(new) :]
            elif kind == "cut":
                found = found[:where]
            elif kind == "insert":
                found = found[:where] + new + found[where:]
            else:
                found = found[:where] + found[where + len(new) :]
        return found

    return st.lists(change, min_size=1, max_size=3).map(apply)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)

# ---- data ------------------------------------------------------------------------------------------------------------

FIELDS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "How many?", "answer": "He has <<2+3=5>>5.\n#### 5"},
    "gsm8k_aug": {"question": "How many?", "cot": "<<2+3=5>>", "answer": "5"},
    "gsm_hard": {"input": "How many?", "code": "def solution():\n    return 5", "target": 5.0},
    "svamp": {
        "ID": "chal-1",
        "Body": "Ann has 2.",
        "Question": "How many?",
        "Equation": "( 2.0 + 3.0 )",
        "Answer": 5.0,
    },
    "multiarith": {"iIndex": 1, "sQuestion": "How many?", "lSolutions": [5.0], "lEquations": ["X=2+3"]},
    "prosqa": {"question": "Is it a or b?", "steps": ["It is a."], "answer": "It is a."},
    "jsonl": {"question": "How many?", "rationale": "<<2+3=5>>", "answer": "5"},
}
WHOLE = {"svamp", "multiarith", "prosqa"}  # one JSON list rather than lines


@st.composite
def data_file(draw: st.DrawFn, source: str) -> bytes:
    """Rows of a source of which some fields are missing or something else; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row = dict(FIELDS[source])
        for name in draw(st.lists(st.sampled_from(sorted(row)), max_size=2)):
            if draw(st.booleans()):
                row.pop(name, None)
            else:
                row[name] = draw(JSON)
        rows.append(row if draw(st.integers(0, 9)) else draw(JSON))
    text = json.dumps(rows) if source in WHOLE else "\n".join(json.dumps(row) for row in rows)
    content = text.encode("utf-8", errors="surrogatepass")
    return content if draw(st.integers(0, 4)) else draw(altered(content))


@pytest.mark.parametrize("count", [60, MANY])
@pytest.mark.parametrize("source", sorted(FIELDS))
def test_data(source, count, tmp_path):
    path = tmp_path / ("rows.json" if source in WHOLE else "rows.jsonl")

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            problems = load_problems(source, path)
        except LoriError as error:
            is_clear(error)
            return
        for problem in problems:
            assert problem.id
            assert problem.question.strip()
            assert problem.answer.strip()
            assert all(isinstance(step, str) for step in problem.steps)

    explore(count, data_file(source), check)


@pytest.mark.parametrize("count", [200, MANY])
def test_text_data(count, tmp_path):
    path = tmp_path / "train.txt"
    line = st.text(alphabet="How many 2+3=5<>|#.,-\t\x0b\u2028é", max_size=40)

    def check(lines: list[str]) -> None:
        path.write_text("\n".join(lines), encoding="utf-8")
        try:
            problems = load_problems("gsm8k_aug", path)
        except LoriError as error:
            is_clear(error)
            return
        assert all(problem.answer.strip() for problem in problems)

    explore(count, st.lists(line | st.just("How many?||<<2+3=5>> #### 5"), min_size=1, max_size=3), check)


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
def written_number(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A number as people write it, and its value by decimal arithmetic."""
    digits, places = draw(st.integers(0, 10**18)), draw(st.integers(0, 6))
    value = Decimal(digits).scaleb(-places)
    text = f"{value:,f}" if draw(st.booleans()) else f"{value:f}"
    if draw(st.booleans()):
        value, text = -value, f"-{text}"
    exact = Fraction(value)
    match draw(st.sampled_from(["plain", "plain", "money", "exponent", "fraction", "emphasis"])):
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
    return text, exact


@pytest.mark.parametrize("count", [300, MANY])
def test_numbers_are_read_as_decimal_arithmetic_has_them(count):
    words = st.sampled_from(["", "So the answer is 7, or 3.\n", "<<2+3=5>> ", "x = 4 #### 9\n"])

    def check(drawn: tuple[tuple[str, Fraction], tuple[str, Fraction], str, str]) -> None:
        (text, value), (other_text, other), before, after = drawn
        answer = extract_answer(f"{before}#### {text}{after}")
        assert parse_number(answer) == value, (text, answer)
        assert same_answer(answer, text)
        assert same_answer(text, other_text) == (value == other)

    number = written_number()
    explore(count, st.tuples(number, number, words, st.sampled_from(["", ".", "\n", " \n#", "\nand so on"])), check)


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


@pytest.mark.parametrize("count", [200, MANY])
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


@pytest.mark.parametrize("count", [200, MANY])
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


@pytest.mark.parametrize("count", [200, MANY])
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
