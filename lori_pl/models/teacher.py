"""The frozen teacher: an explicit-CoT model whose hidden states the student is aligned with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from lori_pl.data.pairing import ExplicitBatch
from lori_pl.models.backbone import frozen
from lori_pl.models.hidden import LayerSelection, base_model, record_hidden, stack_layers, take
from lori_pl.models.masks import attention_mask, positions
from lori_pl.models.trimming import last_mlp_at


def explicit_signals(lm: PreTrainedModel, batch: ExplicitBatch, selection: LayerSelection) -> tuple[Tensor, Tensor]:
    """Runs a model over explicit sequences and keeps its states where they are wanted.

    Args:
        lm: The causal language model.
        batch: Questions, rationales and answers.
        selection: The layers.

    Returns:
        The trajectory (B, L, R, D) at the rationale tokens (``batch.rationale_mask`` says which are real) and the
        anchor states (B, L, D).
    """
    columns = torch.cat([batch.anchor[:, None], batch.rationale_index], dim=1)
    # no state that is wanted sees what stands behind the last anchor
    ids, mask = batch.ids[:, : batch.anchored], batch.mask[:, : batch.anchored]
    layers = selection.resolve(lm.config.get_text_config().num_hidden_layers)
    # hooks see the hidden states of all tokens but keep copies of the chosen ones only
    first = torch.arange(len(columns), device=columns.device)[:, None] * mask.shape[1]
    kept = record_hidden(lm, layers, selection.final_norm, lambda hidden: take(hidden, columns))
    with kept as records, last_mlp_at(lm, (first + columns).flatten()):
        base_model(lm)(
            input_ids=ids,
            attention_mask=attention_mask(lm, mask, mask.shape[1], lm.dtype),
            position_ids=positions(mask),
            use_cache=False,
        )
    states = stack_layers(records)
    return states[:, :, 1:], states[:, :, 0]


class FrozenTeacher(nn.Module):
    """A language model that never trains: no gradients, always in eval mode, whatever the Trainer does.

    Args:
        lm: The causal language model.
        selection: The layers that make its trajectory.
    """

    def __init__(self, lm: PreTrainedModel, selection: LayerSelection) -> None:
        super().__init__()
        self.lm = lm.requires_grad_(False).eval()
        self.selection = selection
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: ExplicitBatch) -> tuple[Tensor, Tensor]:
        """Gives trajectory (B, L, R, D) and anchor states (B, L, D) of a batch; see :func:`explicit_signals`."""
        return explicit_signals(self.lm, batch, self.selection)


@contextmanager
def adapters(lm: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Runs a block with other LoRA adapters: eval mode, no gradients; then all is as before.

    Args:
        lm: The model.
        name: The adapters that are on; ``None`` for the base model alone.
    """
    layers = [module for module in lm.modules() if isinstance(module, LoraLayer)]
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    try:
        with frozen(lm):
            for layer in layers:
                # PEFT's own switches would also change what trains
                layer._disable_adapters = name is None
                if name is not None:
                    layer._active_adapter = [name]
            yield
    finally:
        for layer, (off, active) in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = off, active


class SharedTeacher(FrozenTeacher):
    """A teacher on a LoRA student's own base model: that model alone, or with frozen adapters of the teacher's.

    It gives what a second copy of the model would give, and takes no memory but for such adapters. The student's
    trained marker rows play no part: an explicit sequence has no marker.

    Args:
        lm: The student's language model; it stays the student's.
        selection: The layers that make the trajectory.
        adapter: Name of the teacher's adapters in it; ``None`` for a teacher that is the base model.
    """

    def __init__(self, lm: PreTrainedModel, selection: LayerSelection, adapter: str | None = None) -> None:
        nn.Module.__init__(self)
        # in a tuple: not a sub-module, its weights stand once
        self._student = (lm,)
        self.selection = selection
        self.adapter = adapter
        self.eval()

    @property
    def lm(self) -> PreTrainedModel:
        """The student's language model."""
        return self._student[0]

    @torch.no_grad()
    def forward(self, batch: ExplicitBatch) -> tuple[Tensor, Tensor]:
        """As `FrozenTeacher`'s."""
        with adapters(self.lm, self.adapter):
            return explicit_signals(self.lm, batch, self.selection)
