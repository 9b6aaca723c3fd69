"""KaVa: the latents' keys and values follow those of the teacher's most telling rationale tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lori_pl.alignment.distributed import batch_deviation
from lori_pl.alignment.precision import autocast_off
from lori_pl.data.pairing import PairedBatch
from lori_pl.errors import LoriError, check_choice
from lori_pl.methods.joint import WordsPass
from lori_pl.methods.latent import StudentPass
from lori_pl.methods.pccot import PCCoT
from lori_pl.models.attention import AttentionInputs
from lori_pl.models.backbone import Backbone
from lori_pl.models.masks import slides

Distance = Literal["smooth_l1", "l1", "mse"]
_DISTANCES: dict[Distance, Callable[..., Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "l1": F.l1_loss,
    "mse": F.mse_loss,
}


class KaVa(PCCoT):
    r"""KaVa (Kuzina et al., 2025, arXiv 2510.02312; there is no official code, so this is a reconstruction).

    PCCoT's losses, and a2 (L_K + L_V) / 2: in every layer and key-value head the i-th latent's key (value) follows that
    of the i-th of the M = K rationale tokens that `select_tokens` keeps, in their order. The distance is the mean over
    entries, heads and latents that have a token, then over problems, divided by the deviation of what is followed in
    that layer; then the mean over layers.

    Args:
        backbone: The language model.
        latents: K, and as many tokens are kept.
        passes: T.
        gamma: Weight a1 of the distance at the anchor: 10 for 0.5 B and 1 B parameters, 20 for 3 B.
        w_cache: Weight a2 of the distance of keys and values: 1, and 2 for 3 B.
        importance: lambda, the share of importance in a token's score; the rest is that it says something new.
        cache_distance: ``smooth_l1``, ``l1`` or ``mse``.
        settings: As in `LatentMethod` and `Distillation`.

    Raises:
        LoriError: If the share is none, the weight is negative, the distance is unknown, or there are no latents.
    """

    name = "kava"
    reads_attention = True

    def __init__(
        self,
        backbone: Backbone,
        latents: int = 24,
        passes: int = 3,
        gamma: float = 10.0,
        w_cache: float = 1.0,
        importance: float = 0.1,
        cache_distance: Distance = "smooth_l1",
        **settings: Any,
    ) -> None:
        check_choice("model.cache_distance", cache_distance, Distance)
        # there is no published code to be like
        super().__init__(backbone, latents, passes, gamma, peer_compat=False, **settings)
        if not 0 <= importance <= 1:
            raise LoriError(f"model.importance is {importance}: give a share, 0 to 1")
        if latents == 0:
            raise LoriError("model.latents is 0, so no keys and values could follow the teacher's; give 1 or more")
        if not w_cache >= 0:
            raise LoriError(f"model.w_cache is {w_cache}: give 0 or more")
        self.w_cache = w_cache
        self.importance = importance
        self.cache_distance: Distance = cache_distance

    def configure_model(self) -> None:
        """Builds the student.

        Raises:
            LoriError: If its cache forgets, so that latents do not stay where they were put.
        """
        super().configure_model()
        if slides(self.student.lm.config.get_text_config()):
            raise LoriError("KaVa reads the cache, and this model's forgets (sliding window): take another model")

    def further_losses(
        self, batch: PairedBatch, student: StudentPass, words: WordsPass
    ) -> dict[str, tuple[float, Tensor]]:
        """The distances of keys and values."""
        rationale, asking = self._tokens(batch, words)
        latents = slice(batch.question.shape[1], batch.question.shape[1] + self.latents)
        own: dict[str, list[Tensor]] = {"keys": [], "values": []}
        targets: dict[str, list[Tensor]] = {"keys": [], "values": []}
        assert student.cache is not None
        for layer, read in zip(student.cache.layers, words.attention, strict=True):
            with autocast_off(rationale.device):
                columns, real = select_tokens(read, rationale, asking, self.latents, self.importance)
            for name, mine, theirs in (("keys", layer.keys, read.key), ("values", layer.values, read.value)):
                index = columns[..., None].expand(-1, -1, -1, theirs.shape[-1])
                own[name].append(mine[:, :, latents])
                targets[name].append(theirs.detach().gather(2, index))
        return {name: (self.w_cache / 2, self._distance(own[name], targets[name], real)) for name in own}

    def _tokens(self, batch: PairedBatch, words: WordsPass) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Which keys (B, S) are of rationale tokens; which queries (B, A) are of answer tokens, and if there is one."""
        explicit, read = batch.explicit, words.attention[0]
        keys, queries = read.key.shape[2], read.query.shape[2]
        column = torch.arange(keys, device=explicit.mask.device)
        begin = words.first + keys - queries
        behind = explicit.anchor - explicit.begin + 1  # of all tokens behind the question, the answer's first
        rationale = (column >= begin) & (column < begin + behind[:, None] - len(self.student.encoder.prompt))
        asking = behind[:, None] + column[: batch.answer.shape[1] - batch.anchor - 1]
        end = (explicit.mask.sum(1) - explicit.begin)[:, None] - 1
        return rationale, ((words.first + asking).clamp_max(queries - 1), asking < end)

    def _distance(self, own: list[Tensor], targets: list[Tensor], real: Tensor) -> Tensor:
        """Distance of (B, G, K, d) of each layer, where (B, K) has a token, over the targets' deviation."""
        followed = torch.stack(targets, dim=1).float()  # (B, L, G, K, d)
        distance = _DISTANCES[self.cache_distance](torch.stack(own, dim=1).float(), followed, reduction="none")
        by_token = distance.mean((2, 4)).transpose(1, 2)  # (B, K, L)
        weight = real / real.sum(1, keepdim=True).clamp_min(1)
        by_layer = (by_token * weight[..., None]).sum(1).mean(0)  # no product of matrices: autocast would halve it
        rows = followed.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)  # (B K, L, G d)
        return (by_layer / batch_deviation(rows, real.flatten())).mean()


@torch.no_grad()
def select_tokens(
    read: AttentionInputs, rationale: Tensor, asking: tuple[Tensor, Tensor], count: int, importance: float
) -> tuple[Tensor, Tensor]:
    r"""Picks the rationale tokens whose keys and values are followed: R-KV's rule, for each key-value head.

        score = lambda I + (1 - lambda) R
        I = softmax over rationale tokens of q_a . k, mean over answer tokens a and the queries that share the head
        R = softmax over rationale tokens of minus the mean cosine of k with the other rationale tokens' keys

    Args:
        read: What attention read in this layer.
        rationale: (B, S) true at the keys of rationale tokens.
        asking: (B, A) columns of the answer tokens, and (B, A) true where there is one.
        count: How many to pick.
        importance: lambda.

    Returns:
        Columns (B, G, count) in rising order, 0 where a rationale has fewer tokens, and (B, count) true where it has
        one.
    """
    heads, outside = read.key.shape[1], ~rationale[:, None]
    lowest = torch.finfo(torch.float32).min
    index, asked = asking
    query = read.query.gather(2, index[:, None, :, None].expand(-1, read.query.shape[1], -1, read.query.shape[3]))
    query, key = query.float().unflatten(1, (heads, -1)), read.key.float()
    products = torch.einsum("bgnad,bgtd->bgnat", query, key) * read.scaling
    attended = products.masked_fill(outside[:, :, None, None], lowest).softmax(-1)
    weight = asked / asked.sum(1, keepdim=True).clamp_min(1)
    attended = torch.einsum("bgnat,ba->bgt", attended, weight) / query.shape[2]
    unit = F.normalize(key, dim=-1).masked_fill(outside[..., None], 0.0)
    others = (rationale.sum(1) - 1).clamp_min(1)[:, None, None]
    # the cosines with all, less the one with itself
    cosine = (torch.einsum("bgtd,bgd->bgt", unit, unit.sum(2)) - 1) / others
    novelty = (-cosine).masked_fill(outside, lowest).softmax(-1)
    score = (importance * attended + (1 - importance) * novelty).masked_fill(outside, -1.0)
    beyond = score.shape[-1]
    score = F.pad(score, (0, count), value=-2.0)
    real = torch.arange(count, device=score.device) < rationale.sum(1, keepdim=True)
    best = score.topk(count, dim=-1).indices.masked_fill(~real[:, None], beyond)
    return best.sort(-1).values.masked_fill(~real[:, None], 0), real
