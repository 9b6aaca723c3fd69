"""Prompt templates: data, not code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from lori_pl.data.problem import Problem
from lori_pl.data.tokenizer import BEGIN_OF_THOUGHT, END_OF_THOUGHT, cuts_at_spaces
from lori_pl.errors import LoriError

RationaleTokens = Literal["all", "no_delimiters", "step_results", "before_results"]
# the word behind the last '=', or without one the last word; without closing brackets, commas and full stops
_RESULT = re.compile(r"=\s*([^=\s<>]+?)[.,;:]*(?=[\s<>]|$)[^=]*$")
_LAST_WORD = re.compile(r"((?:[0-9] )+[0-9]|[^\s<>()]+?)[\s.,;:<>()]*$")


@dataclass
class Template:
    r"""How a problem becomes text. The four parts are tokenized apart, so their boundaries are token boundaries.

    Args:
        question: Text around ``{question}``.
        rationale: Text around ``{rationale}``.
        step_separator: What joins the steps of a rationale.
        answer_prompt: The mark between thought and answer; its last token predicts the answer's first (the anchor).
        answer: Text around ``{answer}``.
        chat: Whether the question is put through the tokenizer's chat template, as a user's turn.
        system: System message of the chat template, if any.
        drop_last_step: Leave the last step, which gives the answer away, out of every rationale (as CODI does). The
            teacher has to be trained so: its folder says it, and another setting is refused. A training problem of one
            step then has no rationale.
    """

    question: str = "{question}"
    rationale: str = "{rationale}"
    step_separator: str = " "
    answer_prompt: str = "####"
    answer: str = "{answer}"
    chat: bool = False
    system: str | None = None
    drop_last_step: bool = False

    def __post_init__(self) -> None:
        """Checks that each part is a text and holds its place-holder."""
        for name in ("question", "rationale", "step_separator", "answer_prompt", "answer"):
            if not isinstance(getattr(self, name), str):
                raise LoriError(
                    f"template.{name} is {getattr(self, name)!r}: give a text (a flag is read as YAML, where # begins "
                    f"a comment, so quote it twice: --data.template.{name} '\"####\"')"
                )
        for name in ("question", "rationale", "answer"):
            if f"{{{name}}}" not in getattr(self, name):
                raise LoriError(f"template.{name} is {getattr(self, name)!r}: it must contain {{{name}}}")
        if self.system is not None and not self.chat:
            raise LoriError("template.system is set but template.chat is false: only a chat template has a system turn")
        if not self.answer_prompt.strip():
            raise LoriError("template.answer_prompt is empty: give a mark such as '####', where the answer begins")

    def question_text(self, question: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """Renders a question, through the chat template where ``chat`` is set.

        Raises:
            LoriError: If ``chat`` is set and the tokenizer has no chat template.
        """
        text = self.question.replace("{question}", question)
        if not self.chat:
            return text
        if not tokenizer.chat_template:
            raise LoriError(
                "template.chat is true but the tokenizer has no chat template; set data.template.chat to false"
            )
        turns = [{"role": "system", "content": self.system}] if self.system else []
        turns.append({"role": "user", "content": text})
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def kept(self, steps: Sequence[str]) -> Sequence[str]:
        """Gives the steps that are written."""
        return steps[:-1] if self.drop_last_step else steps

    def rationale_text(self, steps: Sequence[str]) -> str:
        """Renders a rationale; an empty one gives the empty string."""
        steps = self.kept(steps)
        return self.rationale.replace("{rationale}", self.step_separator.join(steps)) if steps else ""

    def answer_text(self, answer: str) -> str:
        """Renders an answer."""
        return self.answer.replace("{answer}", answer)


@dataclass
class Encoder:
    """Turns problems into token ids: one place for training, evaluation and a loaded student.

    Args:
        tokenizer: The tokenizer.
        template: The template.
        markers: Whether the student's question ends in ``<bot>`` and its answer begins with ``<eot>``.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    markers: bool
    prompt: list[int] = field(init=False)
    start: list[int] = field(init=False)
    bot: list[int] = field(init=False)
    eot: list[int] = field(init=False)
    _apart: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Encodes the fixed parts once."""
        self._apart = cuts_at_spaces(self.tokenizer)
        self.prompt = self._ids([self.template.answer_prompt])[0]
        if not self.prompt:
            raise LoriError(f"template.answer_prompt {self.template.answer_prompt!r} has no tokens in this tokenizer")
        # a chat template writes its own start token
        start = [] if self.template.chat else self.tokenizer("x", add_special_tokens=True)["input_ids"]
        plain = self._ids(["x"])[0]
        self.start = start[: start.index(plain[0])] if plain and start and plain[0] in start else []
        ids = [self.tokenizer.convert_tokens_to_ids(t) for t in (BEGIN_OF_THOUGHT, END_OF_THOUGHT)]
        if self.markers and (None in ids or self.tokenizer.unk_token_id in ids):
            raise LoriError(f"the tokenizer lacks {BEGIN_OF_THOUGHT} and {END_OF_THOUGHT}: load it with load_tokenizer")
        self.bot, self.eot = ([ids[0]], [ids[1]]) if self.markers else ([], [])

    @property
    def end(self) -> int:
        """Id of the token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad(self) -> int:
        """Id of the padding token."""
        return int(self.tokenizer.pad_token_id)

    @property
    def suffix(self) -> list[int]:
        """What stands between thought and answer: ``<eot>`` (latent methods) and the answer prompt."""
        return self.eot + self.prompt

    def questions(self, questions: Sequence[str]) -> list[list[int]]:
        """Encodes questions, start token included, ``<bot>`` not."""
        texts = [self.template.question_text(question, self.tokenizer) for question in questions]
        return [self.start + ids for ids in self._ids(texts)]

    def rationales(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Encodes rationales."""
        return self._ids([self.template.rationale_text(problem.steps) for problem in problems])

    def selected(self, problems: Sequence[Problem], tokens: RationaleTokens) -> list[list[int]]:
        """Picks the rationale tokens that make a trajectory.

        Args:
            problems: The problems.
            tokens: ``all``; ``no_delimiters``, those with a letter or digit in them; ``step_results``, those of the
                result of each step: the word behind its last ``=``, or its last word without one;
                ``before_results``, the tokens before those, whose states predict them.

        Returns:
            Positions in each rationale, as :meth:`rationales` encodes it.

        Raises:
            LoriError: If the tokenizer cannot say where in the text its tokens stand.
        """
        self._check_fast(f"rationale_tokens '{tokens}'", "use 'all'")
        if not problems:
            return []
        texts = [self.template.rationale_text(problem.steps) for problem in problems]
        # all places are those in one text, the rationales with a space between them
        starts = _starts(texts)
        low, high = self._spans(texts)
        if tokens == "all":
            chosen = np.ones(len(low), dtype=bool)
        elif tokens == "no_delimiters":
            before = np.cumsum([False, *map(str.isalnum, " ".join(texts))])
            chosen = before[high] > before[low]
        else:
            first, behind = self._results(problems, starts)
            chosen = first[np.searchsorted(behind, low, side="right")] < high
        rows = np.searchsorted(starts, low, side="right") - 1
        if tokens == "before_results":
            chosen = np.append(chosen, False)[1:] & (np.append(rows, -1)[1:] == rows)
        columns = (np.arange(len(rows)) - np.searchsorted(rows, rows))[chosen].tolist()
        ends = np.searchsorted(rows[chosen], np.arange(len(texts)), side="right").tolist()
        return [columns[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    def step_starts(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Finds where the steps begin.

        Returns:
            Positions in each rationale, as :meth:`rationales` encodes it, of the first token of each step.

        Raises:
            LoriError: If the tokenizer cannot say where in the text its tokens stand.
        """
        self._check_fast("a method that reads the steps", "take the fast one of the same model")
        if not problems:
            return []
        texts = [self.template.rationale_text(problem.steps) for problem in problems]
        starts = _starts(texts)
        low, high = self._spans(texts)
        first = np.searchsorted(np.searchsorted(starts, low, side="right") - 1, np.arange(len(texts)))
        prefix, between = self.template.rationale.index("{rationale}"), len(self.template.step_separator)
        found = []
        for problem, start, token in zip(problems, (starts + prefix).tolist(), first.tolist(), strict=True):
            lengths = [len(step) + between for step in self.template.kept(problem.steps)]
            places = start + np.cumsum([0, *lengths])[:-1]
            found.append((np.searchsorted(high, places, side="right") - token).tolist())
        return found

    def _check_fast(self, what: str, remedy: str) -> None:
        if not self.tokenizer.is_fast:
            raise LoriError(f"{what} needs a fast tokenizer, and {type(self.tokenizer).__name__} is none; {remedy}")

    def answers(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Encodes answers, end token included."""
        end = self.end
        return [[*ids, end] for ids in self._ids([self.template.answer_text(p.answer) for p in problems])]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._apart:
            known = self._known(texts, "input_ids")
            return [known[text] for text in texts]
        known = self._known((word for text in texts for word in text.split(" ")), "input_ids")
        return [[i for word in text.split(" ") for i in known[word]] for text in texts]

    def _spans(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        pieces = " ".join(texts).split(" ") if self._apart else texts
        known = self._known(pieces, "offset_mapping")
        spans = {piece: np.array(pairs, dtype=np.int64).reshape(-1, 2) for piece, pairs in known.items()}
        parts = [spans[piece] for piece in pieces]
        low, high = (np.concatenate(parts) + np.repeat(_starts(pieces), [len(part) for part in parts])[:, None]).T
        return low, high

    def _results(self, problems: Sequence[Problem], starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = []
        prefix = self.template.rationale.index("{rationale}")
        for problem, start in zip(problems, (starts + prefix).tolist(), strict=True):
            for step in self.template.kept(problem.steps):
                if found := _result(step):
                    places.append((start + found[0], start + found[1]))
                start += len(step) + len(self.template.step_separator)
        beyond = np.iinfo(np.int64).max
        low, high = np.array([*places, (beyond, beyond)]).T
        return low, high

    def _known(self, texts: Iterable[str], what: str) -> dict[str, Any]:
        different = list(dict.fromkeys(texts))
        if not different:
            return {}
        encoded = self.tokenizer(
            different,
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=what == "offset_mapping",
        )
        return dict(zip(different, encoded[what], strict=True))


def _starts(texts: Sequence[str]) -> np.ndarray:
    # where each stands in " ".join(texts)
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1
    return np.cumsum(lengths) - lengths


@lru_cache(maxsize=1 << 16)
def _result(step: str) -> tuple[int, int] | None:
    match = _RESULT.search(step) or _LAST_WORD.search(step)
    return match.span(1) if match else None
