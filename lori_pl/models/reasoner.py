"""The student: a causal language model that thinks in K latent steps and then answers in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lori_pl.data.answers import extract_answer
from lori_pl.data.pairing import pad_questions
from lori_pl.data.template import Encoder, Template
from lori_pl.errors import LoriError
from lori_pl.models.backbone import DType, frozen
from lori_pl.models.embeddings import head_logits
from lori_pl.models.generation import Generation, Stopwatch, generate
from lori_pl.models.hidden import LayerSelection, base_model, stack_layers
from lori_pl.models.masks import attention_mask, positions
from lori_pl.models.pair_reading import read_pair, recorded
from lori_pl.models.state import DecodingState, Reading
from lori_pl.models.thought import MARKED, Reasoning, ThoughtSettings
from lori_pl.models.trimming import last_mlp_at


@dataclass(frozen=True)
class Answer:
    """One answered question.

    Args:
        text: The extracted answer.
        latents: Latent steps taken.
        output: All that was generated, as text.
        passes: Sequential backbone calls until the end token, the prompt counted as one.
    """

    text: str
    latents: int
    output: str
    passes: int


class LatentReasoner(nn.Module):
    """A causal LM with a thought between question and answer. Usable without Lightning.

    Sequence: question, ``<bot>``, z_1..z_K, ``<eot>``, answer prompt, answer. Every pass has an explicit mask and
    position ids, so a batch gives what each problem gives alone, whatever the padding side.

    Args:
        lm: The causal language model.
        tokenizer: Its tokenizer, with the markers where ``reasoning`` needs them.
        template: How problems become text.
        thought: What stands between question and answer.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        thought: ThoughtSettings | None = None,
    ) -> None:
        super().__init__()
        self.settings = thought or ThoughtSettings()
        self.positions = 0
        """How many positions its passes had so far: tokens of question, words and answer, latents, padding."""
        self.most: Callable[[int], int] | None = None
        """The most of a count over the processes, where all must make as many passes, as with sharded weights."""
        self.lm = lm
        self.tokenizer = tokenizer
        self.template = template
        self.encoder = Encoder(tokenizer, template, markers=self.has_markers)
        embeddings = lm.get_input_embeddings()
        table = embeddings.weight
        hidden = table.shape[1]
        # Gemma's embedding module multiplies what it looks up
        self.embed_scale = float(getattr(embeddings, "scalar_embed_scale", getattr(embeddings, "embed_scale", 1.0)))
        rms = 1.0
        if table.device.type != "meta":
            rms = self.embed_scale * float(table.detach().float().pow(2).mean().sqrt())
        self.thought = self.settings.build(hidden, rms)
        self.marker_ids: Tensor
        ids = torch.tensor(self.encoder.bot + self.encoder.eot, dtype=torch.long)
        self.register_buffer("marker_ids", ids, persistent=False)
        self.markers: nn.Parameter | None = None
        if self.has_markers and not table.requires_grad:
            # LoRA freezes the table: the new rows train apart from it
            rows = table[self.encoder.bot + self.encoder.eot].detach().float().clone()
            self.markers = nn.Parameter(rows)

    @property
    def reasoning(self) -> Reasoning:
        """How it reasons: the kind of its thought, or ``words``."""
        return self.settings.reasoning

    @property
    def has_markers(self) -> bool:
        """Whether ``<bot>`` and ``<eot>`` surround the thought."""
        return self.reasoning in MARKED

    @property
    def given(self) -> list[int]:
        """Tokens that are read behind the thought, before the model writes its first."""
        if self.reasoning == "words":
            return []
        return self.encoder.eot if self.settings.then == "words" else self.encoder.suffix

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return int(self.lm.config.get_text_config().num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Hidden size D."""
        return int(self.lm.get_input_embeddings().weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.lm.get_input_embeddings().weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """Embeds token ids (B, T) to (B, T, D); under LoRA the markers' rows are the trained ones."""
        embedded: Tensor = self.lm.get_input_embeddings()(ids)
        if self.markers is not None:
            rows = (self.markers * self.embed_scale).to(embedded.dtype)
            for row, token in zip(rows, self.encoder.bot + self.encoder.eot, strict=True):
                embedded = torch.where((ids == token)[..., None], row, embedded)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """Language-model head on chosen hidden states (..., D); a tied head shares the markers' trained rows."""
        tied = self.lm.get_output_embeddings().weight is self.lm.get_input_embeddings().weight
        if self.markers is None or not tied:
            return head_logits(self.lm, hidden)
        return head_logits(self.lm, hidden, (self.marker_ids, self.markers))

    def run(
        self, inputs: Tensor, mask: Tensor, position: Tensor, cache: Cache | None, read: Tensor | None = None
    ) -> Tensor:
        """One backbone pass without the head.

        Args:
            inputs: (B, n, D) input embeddings.
            mask: (B, S + n) true at real tokens, those in the cache first.
            position: (B, n) position ids.
            cache: Keys and values of the S tokens before, extended in place; ``None`` to keep none.
            read: (N,) numbers, in the flattened (B, n), of the tokens whose last hidden state is wanted; ``None`` for
                all.

        Returns:
            (B, n, D) last hidden states, after the final norm; without meaning at tokens that are not wanted.
        """
        self.positions += inputs.shape[0] * inputs.shape[1]
        inputs = inputs.to(self.lm.dtype) if not torch.is_autocast_enabled(inputs.device.type) else inputs
        with last_mlp_at(self.lm, read):
            output = base_model(self.lm)(
                inputs_embeds=inputs,
                attention_mask=attention_mask(self.lm, mask, inputs.shape[1], inputs.dtype),
                position_ids=position,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def read(self, inputs: Tensor, mask: Tensor) -> DecodingState:
        """Reads embeddings (B, Q, D) into a new KV cache; ``mask`` (B, Q) says where padding is, on either side.

        Only a model with a sliding window needs it on the left, as batches have it: such a window counts columns.
        """
        return self.read_to(inputs, mask)[0]

    def read_to(self, inputs: Tensor, mask: Tensor, before: int = 0) -> tuple[DecodingState, Tensor]:
        """As :meth:`read`, and also gives the last hidden state (B, 1, D) of a token some places before the last."""
        mask = mask.bool()
        position = positions(mask)
        cache = DynamicCache(config=self.lm.config)
        columns = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, columns, 0).amax(1)
        rows = torch.arange(mask.shape[0], device=mask.device)
        wanted = [rows * mask.shape[1] + last - back for back in sorted({0, before})]
        hidden = self.run(inputs, mask, position, cache, torch.cat(wanted))
        state = DecodingState(cache, mask, position[rows, last], hidden[rows, last][:, None])
        return state, hidden[rows, last - before][:, None]

    def extend(self, state: DecodingState, inputs: Tensor) -> DecodingState:
        """Appends embeddings (B, n, D) of real tokens to a state; its cache is extended in place."""
        return self.append(state, inputs)[0]

    def append(self, state: DecodingState, inputs: Tensor) -> tuple[DecodingState, Tensor]:
        """As :meth:`extend`, and also gives the last hidden states of all that was read, what was held first."""
        inputs, _ = state.release(inputs)
        batch, n = inputs.shape[:2]
        mask = torch.cat([state.mask, state.mask.new_ones(batch, n)], dim=1)
        position = state.position[:, None] + torch.arange(1, n + 1, device=inputs.device)
        hidden = self.run(inputs, mask, position, state.cache)
        return DecodingState(state.cache, mask, position[:, -1], hidden[:, -1:]), hidden

    def settle(self, state: DecodingState) -> DecodingState:
        """Reads what a state holds, where nothing is to follow it yet."""
        return state if state.held is None else self.extend(state, state.held[:, :0])

    def think(
        self, question: Tensor, question_mask: Tensor, latents: int | None = None, record: LayerSelection | None = None
    ) -> tuple[DecodingState, Tensor | None]:
        """Reads the question once and takes K latent steps.

        Args:
            question: (B, Q) ids, ending in ``<bot>`` where the reasoner has markers.
            question_mask: (B, Q) true at real tokens.
            latents: K; ``None`` for the reasoner's own.
            record: Layers whose hidden states at the latents are wanted.

        Returns:
            The state at the last latent, and the trajectory (B, L, K, D) if ``record`` is given.

        Raises:
            LoriError: If K is negative, or more than the reasoner can take.
        """
        latents = self.thought.count(latents)
        state = self.read(self.embed(question), question_mask)
        with recorded(self, record if latents else None, lambda hidden: hidden) as found:
            state = self.settle(self.thought.extend(self, state, latents))
        return state, None if found is None else stack_layers(found)[:, :, -latents:]

    def read_pair(
        self,
        question: Tensor,
        question_mask: Tensor,
        answer: Tensor,
        answer_mask: Tensor,
        anchor: int,
        trajectory: LayerSelection | None = None,
        at_anchor: LayerSelection | None = None,
        columns: Tensor | None = None,
        state: DecodingState | None = None,
    ) -> Reading:
        """Reads the question, thinks, and reads the answer part under teacher forcing.

        The last latent goes in with the answer, which does not depend on what it gives; without latents all goes in
        at once.

        Args:
            question: (B, Q) ids, ending in ``<bot>`` where the reasoner has markers.
            question_mask: (B, Q) true at real tokens.
            answer: (B, A) ids of ``<eot>``, answer prompt, answer and end, padded on the right.
            answer_mask: (B, A) true at real tokens.
            anchor: Column that predicts the answer's first token.
            trajectory: Layers whose hidden states at the latents are wanted.
            at_anchor: Layers whose hidden states at the anchor are wanted.
            columns: (B, 1) where the anchor of each row is, if it is not ``anchor``.
            state: The question, where it was read already; its cache is extended in place.
        """
        wanted = (trajectory if self.thought.latents else None, at_anchor)
        return read_pair(self, question, question_mask, answer, answer_mask, anchor, *wanted, columns, state)

    def generate(
        self,
        question: Tensor,
        question_mask: Tensor,
        latents: int | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> Generation:
        """Thinks, then generates the answer: batched, KV-cached, greedy at ``temperature`` 0, else sampled.

        Args:
            question: (B, Q) ids, ending in ``<bot>`` where the reasoner has markers.
            question_mask: (B, Q) true at real tokens.
            latents: K at run time; ``None`` for the reasoner's own.
            max_new_tokens: Most tokens to generate; fewer where the model's positions end.
            temperature: 0 for greedy.
            generator: Random numbers for sampling.
            stopwatch: Takes the time of prefill, thought and answer.

        Returns:
            Tokens, their mask and the passes of each row.

        Raises:
            LoriError: If an argument is out of range, or a question leaves no position for an answer.
        """
        return generate(self, question, question_mask, latents, max_new_tokens, temperature, generator, stopwatch)

    def answer(
        self,
        questions: Sequence[str],
        latents: int | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 32,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[Answer]:
        """Answers questions given as text.

        Args:
            questions: The questions.
            latents: K at run time; ``None`` for the reasoner's own.
            max_new_tokens: Most tokens to generate for one answer.
            batch_size: Questions at a time.
            temperature: 0 for greedy.
            generator: Random numbers for sampling.

        Returns:
            One answer a question, in order.

        Raises:
            LoriError: If ``questions`` is a single string, one of them is empty, no text or too long for the model, or
                another argument is out of range.
        """
        if isinstance(questions, str):
            raise LoriError("answer() takes a list of questions, not one string: write [question]")
        if bad := [i for i, question in enumerate(questions) if not isinstance(question, str) or not question.strip()]:
            raise LoriError(f"question {bad[0]} is {questions[bad[0]]!r}: give a text that is not empty")
        if batch_size < 1:
            raise LoriError(f"batch_size is {batch_size}: give 1 or more")
        answers: list[Answer] = []
        with frozen(self):
            for start in range(0, len(questions), batch_size):
                encoded = self.encoder.questions(questions[start : start + batch_size])
                ids, mask = (t.to(self.device) for t in pad_questions(encoded, self.encoder))
                answers += self.texts(self.generate(ids, mask, latents, max_new_tokens, temperature, generator))
        return answers

    def texts(self, generation: Generation) -> list[Answer]:
        """Decodes a generation and extracts the answers."""
        rows = [row[keep].tolist() for row, keep in zip(generation.tokens.cpu(), generation.mask.cpu(), strict=True)]
        outputs = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            Answer(self._extract(text), generation.latents, text, passes)
            for text, passes in zip(outputs, generation.passes.tolist(), strict=True)
        ]

    def _extract(self, output: str) -> str:
        mark = self.template.answer_prompt
        # a tokenizer may write the mark with other spaces than the template
        marks = (mark, self.tokenizer.decode(self.encoder.prompt))
        before, after = (part.strip() for part in self.template.answer.split("{answer}", 1))
        if self.given[-len(self.encoder.prompt) :] == self.encoder.prompt:  # it was read, not written
            output = f"{mark} {output}"
        if after:
            output = output.strip().removesuffix(after)
        return extract_answer(output, marks=(*marks, before) if before else marks)

    def save_pretrained(self, folder: str | Path, merge: bool = True) -> None:
        """Saves to a new folder: safetensors, config, tokenizer, card.

        Args:
            folder: A folder that does not exist yet; it appears only when whole.
            merge: Merge LoRA into the weights; otherwise adapters are kept apart, beside the base model's name.

        Raises:
            LoriError: If the folder exists, or adapters are to be kept apart from a model that has no name.
        """
        from lori_pl.models.saving import save_reasoner

        save_reasoner(self, Path(folder), merge)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str = "cpu", dtype: DType = "float32", trust_remote_code: bool = False
    ) -> LatentReasoner:
        """Loads a folder that :meth:`save_pretrained` wrote, in eval mode.

        Args:
            folder: The folder.
            device: Where the reasoner goes.
            dtype: Type of the weights.
            trust_remote_code: Run code that comes with the model. Only for sources that you trust.

        Raises:
            LoriError: If the folder is no saved reasoner.
        """
        from lori_pl.models.saving import load_reasoner

        return load_reasoner(Path(folder), device, dtype, trust_remote_code)
