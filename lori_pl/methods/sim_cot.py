"""SIM-CoT: an auxiliary decoder has to write each rationale step from one latent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from lori_pl.alignment import Signals
from lori_pl.data.pairing import PairedBatch, StepBatch, step_batch
from lori_pl.errors import LoriError
from lori_pl.methods.codi import CODI
from lori_pl.models.backbone import Backbone, load_causal_lm, prepare_training
from lori_pl.models.embeddings import head_logits
from lori_pl.models.hidden import base_model


class StepDecoder(nn.Module):
    """A language model that reads one latent and writes the step that it stands for.

    Args:
        lm: The language model.
        latent: Size of a latent; where it is not the model's hidden size, a linear map comes between.
    """

    def __init__(self, lm: PreTrainedModel, latent: int) -> None:
        super().__init__()
        self.lm = lm
        hidden = int(lm.get_input_embeddings().weight.shape[1])
        self.bridge = nn.Identity() if hidden == latent else nn.Linear(latent, hidden)

    def forward(self, latents: Tensor, steps: StepBatch) -> Tensor:
        """Cross-entropy of the steps, weighted as they say, from the latents (N, D) that stand for them."""
        embedded = self.lm.get_input_embeddings()(steps.ids[:, :-1])
        first = self.bridge(latents).to(embedded.dtype)[:, None]
        # the latent stands where a step's first token would, so a column predicts the token of its own number
        hidden = base_model(self.lm)(
            inputs_embeds=torch.cat([first, embedded], dim=1), attention_mask=steps.mask.long(), use_cache=False
        ).last_hidden_state
        logits = head_logits(self.lm, hidden.flatten(0, 1)[steps.target_index]).float()
        losses = F.cross_entropy(logits, steps.ids.flatten()[steps.target_index], reduction="none")
        return (losses * steps.target_weight).sum()


class SIMCoT(CODI):
    """SIM-CoT (InternLM/SIM-CoT, commit f3ae967) on CODI: CODI's loss plus the steps' cross-entropy.

    L = CE_student + gamma L_KD + CE_teacher + w_steps CE_steps: from latent z_i, as it goes into the student, a decoder
    of its own writes step i; CE_steps is the mean over a step's tokens, over the latents that have a step, then over
    problems. Where there are more steps than latents, the last latent stands for the rest. The decoder is part of no
    student.

    Args:
        backbone: The student's language model.
        decoder: The decoder's language model, of the same tokenizer; ``null`` for another copy of what the student
            starts from.
        w_steps: Weight of the steps' cross-entropy.
        settings: As in `CODI`, `LatentMethod` and `Distillation`.

    Raises:
        LoriError: If there are no latents.
    """

    name = "sim_cot_codi"
    reads_pieces = True

    def __init__(
        self, backbone: Backbone, decoder: Backbone | None = None, w_steps: float = 1.0, **settings: Any
    ) -> None:
        super().__init__(backbone, **settings)
        if self.latents == 0:
            raise LoriError("model.latents is 0, so there is nothing that a step could be written from; give 1 or more")
        self.decoder_backbone = decoder
        self.w_steps = w_steps
        self.decoder: StepDecoder | None = None

    def configure_model(self) -> None:
        """Builds the student and, for training, the decoder."""
        super().configure_model()
        if self.decoder is not None or not self.trains or self.folder is not None:
            return
        tokenizer = self.student.tokenizer
        if self.decoder_backbone is None:
            lm = prepare_training(self.load_backbone(tokenizer), self.backbone)
        else:
            lm = prepare_training(load_causal_lm(self.decoder_backbone, tokenizer), self.decoder_backbone)
        self.decoder = StepDecoder(lm, self.student.hidden_size)

    def optimizer_parts(self) -> dict[str, nn.Module]:
        """The decoder gets groups of its own."""
        assert self.decoder is not None
        return {**super().optimizer_parts(), "decoder": self.decoder}

    def own_losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor], Signals]:
        """CODI's losses and the steps'."""
        assert self.decoder is not None
        assert batch.pieces is not None
        with self.collected_latents() as latents:
            total, parts, student = super().own_losses(batch)
        steps = step_batch(batch.pieces, self.student.encoder, self.latents)
        steps = move_data_to_device(steps, batch.question.device)
        parts["steps"] = self.decoder(torch.cat(latents, dim=1)[steps.row, steps.number], steps)
        return total + self.w_steps * parts["steps"], parts, student

    @contextmanager
    def collected_latents(self) -> Iterator[list[Tensor]]:
        """Collects the latents (B, 1, D) of the block, as they go into the student."""
        found: list[Tensor] = []
        projector: Any = self.student.thought.projector
        handle = projector.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        try:
            yield found
        finally:
            handle.remove()
