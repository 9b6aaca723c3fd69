"""Generating answers against the same number of bare cached passes of the backbone and its head.

Run in the root of the repository: ``python experiments/bench/generation.py --batch 32``. Every row writes as many
tokens, so that both do the same passes. The last line is the bar's row as JSON.
"""

from __future__ import annotations

import torch
from common import VOCABULARY, bucketed, encoder, in_turns, lori, median, parser, problems, report
from transformers import DynamicCache

from lori_pl.models.hidden import base_model

LATENTS, TOKENS, BATCHES = 6, 24, 4


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    torch.set_num_threads(arguments.threads)
    batches = bucketed(problems(1024, encoder()), arguments.batch, BATCHES)
    reasoner = lori(arguments.shape, LATENTS, batches, cached=True).student.eval()
    lm, suffix = reasoner.lm, len(reasoner.encoder.suffix)
    # a row never ends by itself
    plain = reasoner.logits

    def endless(hidden: torch.Tensor) -> torch.Tensor:
        logits = plain(hidden)
        logits[..., reasoner.encoder.end] = float("-inf")
        return logits

    reasoner.logits = endless  # type: ignore[method-assign]

    def ours() -> None:
        for batch in batches:
            made = reasoner.generate(batch.question, batch.question_mask, max_new_tokens=TOKENS)
            assert int(made.passes[0]) == LATENTS + TOKENS

    @torch.no_grad()
    def bare() -> None:
        for batch in batches:
            rows, width = batch.question.shape
            mask = batch.question_mask.long()
            cache = DynamicCache(config=lm.config)
            widths = [width, *[1] * (LATENTS - 1), 1 + suffix, *[1] * (TOKENS - 1)]
            token = torch.randint(400, VOCABULARY, (rows, 1))
            for number, size in enumerate(widths):
                ids = batch.question if number == 0 else token.expand(rows, size)
                mask = mask if number == 0 else torch.cat([mask, mask.new_ones(rows, size)], 1)
                position = (mask.cumsum(1) - 1).clamp_min(0)[:, -size:]
                hidden = base_model(lm)(
                    input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
                ).last_hidden_state
                if number >= LATENTS:
                    token = lm.get_output_embeddings()(hidden[:, -1]).argmax(-1, keepdim=True)

    generated, passes = in_turns([ours, bare], arguments.rounds)
    ratio = median([a / b for a, b in zip(generated, passes, strict=True)])
    milliseconds = {"generation": 1000 * median(generated) / BATCHES, "bare": 1000 * median(passes) / BATCHES}
    report("generation_over_bare", ratio, 1.15, arguments.record, milliseconds=milliseconds)


if __name__ == "__main__":
    main()
