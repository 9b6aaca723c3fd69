"""CODI's step here against a step that does what the published code does, equal in loss.

The published step (github.com/zhenyi4/codi, commit 4fd88d4) runs ten model passes: the teacher twice, once without
gradients for the states that the student follows and once with them for its own loss, so that the question is read
three times, with all hidden states kept and the language-model head on every token. Run in the root of the repository:
``python experiments/bench/codi.py --shape llama``. The last line is the bar's row as JSON.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from common import backbone, bucketed, encoder, in_turns, median, parser, problems, report, stepper
from torch import Tensor
from transformers import DynamicCache

from lori_pl.data.pairing import PairedBatch
from lori_pl.data.template import Template
from lori_pl.methods import CODI
from lori_pl.methods.joint import anchor_distance

BATCHES = 6


class PublishedStep(CODI):
    """The same loss by way of the published step."""

    def losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Ten passes."""
        student, lm, explicit = self.student, self.student.lm, batch.explicit
        words = {
            "input_ids": explicit.ids,
            "attention_mask": explicit.mask.long(),
            "position_ids": (explicit.mask.long().cumsum(1) - 1).clamp_min(0),
            "output_hidden_states": True,
            "use_cache": False,
        }
        rows = torch.arange(len(batch.index))
        with torch.no_grad():
            target = torch.stack([h[rows, explicit.anchor] for h in lm(**words).hidden_states], 1)
        teacher = self._cross_entropy(lm(**words).logits[:, :-1], explicit.ids[:, 1:], self._predicted(batch)[:, 1:])

        mask, cache = batch.question_mask, DynamicCache(config=lm.config)
        position = (mask.long().cumsum(1) - 1).clamp_min(0)
        last = self._read(student.embed(batch.question), mask, position, cache)
        for _ in range(self.latents):
            mask, position = F.pad(mask, (0, 1), value=True), position[:, -1:] + 1
            last = self._read(student.thought.projector(last.hidden_states[-1][:, -1:]), mask, position, cache)
        mask = torch.cat([mask, batch.answer_mask], 1)
        position = position[:, -1:] + batch.answer_mask.long().cumsum(1)
        answer = self._read(student.embed(batch.answer), mask, position, cache)
        task = self._cross_entropy(answer.logits[:, :-1], batch.answer[:, 1:], batch.target_mask[:, 1:])
        anchor = torch.stack([hidden[:, batch.anchor] for hidden in answer.hidden_states], 1)
        distillation = anchor_distance(anchor[:, 1:], target[:, 1:])
        parts = {"task": task, "distillation": distillation, "teacher": teacher}
        return task + self.gamma * distillation + teacher, parts

    def _read(self, inputs: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache) -> Any:
        return self.student.lm(
            inputs_embeds=inputs,
            attention_mask=mask.long(),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )

    @staticmethod
    def _predicted(batch: PairedBatch) -> Tensor:
        flags = torch.zeros_like(batch.explicit.mask)
        flags.view(-1)[batch.explicit.target_index] = True
        return flags

    @staticmethod
    def _cross_entropy(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * counted
        return (losses.sum(1) / counted.sum(1)).mean()


def build(kind: type[CODI], shape: str, latents: int) -> CODI:
    torch.manual_seed(0)
    method = kind(backbone(shape), student_init="base", latents=latents, template=Template())
    method.configure_model()
    return method


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--latents", type=int, default=6, help="K")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    batches = bucketed(problems(2048, encoder()), arguments.batch, BATCHES)
    methods = {"ours": build(CODI, arguments.shape, arguments.latents)}
    methods["published"] = build(PublishedStep, arguments.shape, arguments.latents)
    losses = [torch.stack([method.losses(batch)[0] for batch in batches]) for method in methods.values()]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    steps = {name: stepper(method) for name, method in methods.items()}

    def task(name: str) -> None:
        for batch in batches:
            steps[name](batch)

    times = in_turns([lambda n=n: task(n) for n in steps], arguments.rounds)
    milliseconds = {name: 1000 * median(found) / BATCHES for name, found in zip(steps, times, strict=True)}
    for name, value in milliseconds.items():
        print(f"{name:12} {value:8.1f} ms a step")
    ratio = median([a / b for a, b in zip(*times, strict=True)])
    report(f"codi_yardstick_{arguments.shape}", ratio, 0.55, arguments.record, milliseconds=milliseconds)


if __name__ == "__main__":
    main()
