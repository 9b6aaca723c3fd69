"""SIM-CoT: an auxiliary decoder has to write each rationale step from the latents that stand for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lori_pl.alignment import Signals
from lori_pl.alignment.distributed import mean_across_ranks, sum_across_ranks
from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.moving import send
from lori_pl.data.pairing import PairedBatch, StepBatch, step_batch
from lori_pl.data.tokenizer import holds, load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.methods.coconut import Coconut
from lori_pl.methods.codi import CODI
from lori_pl.methods.latent import LatentMethod
from lori_pl.models.backbone import Backbone, load_causal_lm, prepare_training
from lori_pl.models.embeddings import head_logits
from lori_pl.models.hidden import base_model
from lori_pl.models.masks import attention_mask
from lori_pl.regions import region

log = logging.getLogger(__name__)


class StepDecoder(nn.Module):
    """A language model that reads the latents of one step and writes the step.

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
        """Cross-entropy of every real token (M,) of the steps, from the latents (N, c, D) that stand for them."""
        embedded = self.lm.get_input_embeddings()(steps.ids[:, :-1])
        first = self.bridge(latents.to(next(self.bridge.parameters(), latents).dtype)).to(embedded.dtype)
        before = steps.mask.new_ones(len(first), first.shape[1] - 1)
        inputs, mask = torch.cat([first, embedded], dim=1), torch.cat([before, steps.mask], dim=1)
        hidden = base_model(self.lm)(
            inputs_embeds=inputs,
            attention_mask=attention_mask(self.lm, mask, mask.shape[1], inputs.dtype),
            position_ids=torch.arange(mask.shape[1], device=mask.device).expand(mask.shape),
            use_cache=False,
        ).last_hidden_state
        # the last latent predicts a step's first token
        predicting = hidden[:, first.shape[1] - 1 :].flatten(0, 1)[steps.target_index]
        logits = head_logits(self.lm, predicting).float()
        return F.cross_entropy(logits, steps.ids.flatten()[steps.target_index], reduction="none")


class StepSupervision(LatentMethod):
    """What SIM-CoT adds to a method with recurrent latents: w_steps CE_steps, from a decoder that no student has.

    CE_steps is the mean over a step's tokens and an end token, over the steps that latents stand for, over problems.
    Where latents stand for the whole rationale and there are more steps than places, the last place has the rest.

    Args:
        backbone: The student's language model.
        decoder: The decoder's language model, of the same tokenizer; ``null`` for another copy of what the student
            starts from.
        w_steps: Weight of the steps' cross-entropy.
        settings: Those of the method.

    Raises:
        LoriError: If there are no latents, or the weight is negative.
    """

    reads_pieces = True

    def __init__(
        self, backbone: Backbone, decoder: Backbone | None = None, w_steps: float = 1.0, **settings: Any
    ) -> None:
        super().__init__(backbone, **settings)
        if self.latents == 0:
            raise LoriError("model.latents is 0, so there is nothing that a step could be written from; give 1 or more")
        if not w_steps >= 0:
            raise LoriError(f"model.w_steps is {w_steps}: give 0 or more")
        self.decoder_backbone = decoder
        self.w_steps = w_steps
        self.decoder: StepDecoder | None = None

    @property
    def places(self) -> tuple[int, bool]:
        """How many steps latents stand for now, and whether the last stands for all that follow."""
        return self.latents, True

    def on_train_start(self) -> None:
        """Says of how many problems the last place has several steps."""
        super().on_train_start()
        steps, most = self.data.splits["train"].student.step_count, self.most_places
        if more := int((steps > most).sum()):
            log.info(
                "%d of %d training problems have more than %d steps: their last latents stand for the rest",
                *(more, len(steps), most),
            )

    @property
    def most_places(self) -> int:
        """How many steps latents stand for at the end of the training."""
        return self.latents

    def configure_model(self) -> None:
        """Builds the student and, for training, the decoder."""
        super().configure_model()
        if self.decoder is not None or not self.trains or self.folder is not None:
            return
        tokenizer = self.student.tokenizer
        with self.loading():
            if self.decoder_backbone is None:
                lm = prepare_training(self.load_backbone(tokenizer), self.backbone)
            else:
                lm = prepare_training(self._load_decoder(self.decoder_backbone), self.decoder_backbone)
        self.decoder = StepDecoder(lm, self.student.hidden_size)

    def models(self) -> tuple[list[PreTrainedModel], list[nn.Module]]:
        """Also the decoder's, where it is built."""
        models, frozen_parts = super().models()
        return (models if self.decoder is None else [*models, self.decoder.lm]), frozen_parts

    def _load_decoder(self, backbone: Backbone) -> PreTrainedModel:
        tokenizer = self.student.tokenizer
        if named := backbone.tokenizer or backbone.name:
            theirs = load_tokenizer(named, False, backbone.revision)
            if not holds(tokenizer, theirs):
                raise LoriError(
                    f"model.decoder ({named}) has another tokenizer than the student, and is given the student's "
                    "tokens; take a model of the same family"
                )
        return load_causal_lm(backbone, tokenizer, "model.decoder")

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """The method's and, in training, a whole rationale behind a step's latents, the most that the decoder reads."""
        found = super().sequences(split)
        if split.name == "train" and self.decoder is not None:
            lengths = split.student.rationales.lengths + self.latents + 1
            found.append(("latents and rationale", self.decoder.lm, lengths))
        return found

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Leaves the decoder out where there is none to load it into: outside training."""
        if self.decoder is None:
            state_dict = {key: value for key, value in state_dict.items() if not key.startswith("decoder.")}
        return super().load_state_dict(state_dict, strict, assign)

    def optimizer_parts(self) -> dict[str, nn.Module]:
        """The decoder gets groups of its own."""
        assert self.decoder is not None
        return {**super().optimizer_parts(), "decoder": self.decoder}

    def own_losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor], Signals]:
        """The method's losses and the steps'."""
        assert self.decoder is not None
        assert batch.pieces is not None
        with self.collected_latents() as latents:
            total, parts, student = super().own_losses(batch)
        places, takes_rest = self.places
        if not places:  # before the first latents come, the decoder waits
            return total + self.waiting(total), parts, student
        steps = step_batch(batch.pieces, self.student.encoder, places, takes_rest)
        steps = send(steps, batch.question.device)
        grouped = torch.cat(latents, dim=1).unflatten(1, (places, -1))
        with region("steps"):
            parts["steps"] = self.weigh(self.decoder(grouped[steps.row, steps.number], steps), steps)
        return total + self.w_steps * parts["steps"], parts, student

    def waiting(self, like: Tensor) -> Tensor:
        """Zero, with a gradient of zero for the decoder, which writes an end token from nothing.

        It runs, for only so are its layers put together where they are divided.

        Args:
            like: A scalar on its device.
        """
        assert self.decoder is not None
        end = torch.full((1, 1), self.student.encoder.end, device=like.device)
        first = torch.zeros(1, dtype=torch.long, device=like.device)
        one = StepBatch(end, torch.ones_like(end, dtype=torch.bool), first, first, first, torch.ones_like(like)[None])
        return 0.0 * self.decoder(like.new_zeros(1, 1, self.student.hidden_size), one).sum()

    def weigh(self, losses: Tensor, steps: StepBatch) -> Tensor:
        """Makes one number of the cross-entropies (M,) of all tokens."""
        return (losses * steps.target_weight).sum()

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


class SIMCoT(StepSupervision, CODI):
    """SIM-CoT (InternLM/SIM-CoT, commit f3ae967) on CODI: latent z_i stands for step i.

    Args:
        backbone: The student's language model.
        peer_compat: As the published code: what it is on `CODI`, and CE_steps is of each latent the mean over the
            batch's tokens, and the mean over the latents that have a step.
        settings: As in `StepSupervision`, `CODI`, `LatentMethod` and `Distillation`.
    """

    name = "sim_cot_codi"

    def __init__(self, backbone: Backbone, peer_compat: bool = False, **settings: Any) -> None:
        super().__init__(backbone, peer_compat=peer_compat, **settings)

    def weigh(self, losses: Tensor, steps: StepBatch) -> Tensor:
        """Also as published: of each latent the mean over its tokens, and the mean over latents."""
        if not self.peer_compat:
            return super().weigh(losses, steps)
        return mean_by_place(losses, steps, self.latents, steps.number[steps.target_index // steps.ids.shape[1]])


class SIMCoTCoconut(StepSupervision, Coconut):
    """SIM-CoT (InternLM/SIM-CoT, commit f3ae967) on Coconut: c latents stand for a step, as many steps as a stage has.

    Args:
        backbone: The student's language model.
        peer_compat: As the published code: what it is on `Coconut`, and CE_steps is of each place the sum over its
            tokens, over the problems that have it, and the mean over places.
        settings: As in `StepSupervision`, `Coconut` and `Distillation`.
    """

    name = "sim_cot_coconut"

    def __init__(self, backbone: Backbone, peer_compat: bool = False, **settings: Any) -> None:
        super().__init__(backbone, peer_compat=peer_compat, **settings)

    @property
    def over_batch(self) -> list[str]:
        """Also the published sum."""
        return [*super().over_batch, *(["peer_compat sums CE_steps over the batch"] if self.peer_compat else [])]

    @property
    def most_places(self) -> int:
        """One a stage that brings latents."""
        return self.latent_stages

    @property
    def places(self) -> tuple[int, bool]:
        """The steps that this stage has taken away; all of them in the last."""
        return self.removed, self.is_final

    def weigh(self, losses: Tensor, steps: StepBatch) -> Tensor:
        """Also as published: of each place the sum over its tokens, over the problems that have it; their mean."""
        if not self.peer_compat:
            return super().weigh(losses, steps)
        return mean_by_place(losses, steps, self.removed, steps.number)


def mean_by_place(losses: Tensor, steps: StepBatch, places: int, counted: Tensor) -> Tensor:
    """Sums the cross-entropies of each place over a count, and takes the mean over the places that are counted.

    Args:
        losses: (M,) of all tokens.
        steps: Where they stand.
        places: How many places there are.
        counted: (n,) the places of what counts, such as tokens; over all processes, as the sums are.
    """
    place = steps.number[steps.target_index // steps.ids.shape[1]]
    sums, count = losses.new_zeros(2, places).unbind()
    sums = sums.index_add(0, place, losses)
    count = count.index_add(0, counted, torch.ones_like(counted, dtype=losses.dtype))
    return mean_across_ranks(sums, count).sum() / (sum_across_ranks(count) > 0).sum()
