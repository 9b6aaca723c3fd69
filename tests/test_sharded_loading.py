"""What the processes hold while the first one's weights are divided among them: no one a second model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from forked import in_group
from test_sharding import CPU, KnownRank, OfRank
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from lori_pl.sharding import FSDP1Strategy, loading, own_part, shard

pytestmark = pytest.mark.distributed

LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 8}


class OfRankByFSDP1(KnownRank, FSDP1Strategy):
    """FSDP1's."""

    root_device = CPU


class Students(nn.Module):
    """A student and a frozen teacher, as FSDP1 meets them in a method."""

    entries = ("losses",)

    def __init__(self, strategy: OfRank | OfRankByFSDP1) -> None:
        super().__init__()
        config = AutoConfig.for_model("llama", vocab_size=31, tie_word_embeddings=True, **LAYERS)
        with loading(strategy):
            self.student = AutoModelForCausalLM.from_config(config)
            self.teacher = AutoModelForCausalLM.from_config(config).requires_grad_(False)

    def models(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return [self.student, self.teacher], [self.teacher]

    def losses(self, ids: torch.Tensor) -> torch.Tensor:
        return self.student(ids).logits.square().mean() + self.teacher(ids).logits.square().mean()

    def take_equal_passes(self, device: torch.device) -> None:
        pass


def most_bytes(work: Callable[[], object]) -> int:
    """The most that the CPU's allocator had given out at once within ``work``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


def divide(rank, kind):
    strategy = {"sharded": OfRank, "fsdp1": OfRankByFSDP1}[kind](rank)
    torch.manual_seed(rank)
    made = []

    def load() -> None:
        method = Students(strategy)
        made.append(sum(value.nbytes for value in method.parameters() if not value.is_meta))
        if kind == "sharded":
            shard(method, *method.models(), method.entries, init_device_mesh("cpu", (2,)), CPU, True, False)
        else:
            strategy._wrapped(method)
        made.append(sum(own_part(value).nbytes for value in method.parameters()))
        made.append(method)

    most = most_bytes(load)
    loaded, held, method = made
    loss = method.losses(torch.arange(6)[None]).detach()
    return {"loaded": loaded, "held": held, "most": most, "loss": loss}


@pytest.mark.parametrize("kind", ["sharded", "fsdp1"])
def test_no_process_ever_holds_a_model_twice(kind, tmp_path):
    first, second = in_group(divide, tmp_path, kind)
    torch.manual_seed(0)
    method = Students(OfRank(0))
    total = sum(value.nbytes for value in method.parameters())
    for process in (first, second):
        torch.testing.assert_close(process["loss"], method.losses(torch.arange(6)[None]).detach())
        assert 0.45 * total < process["held"] < 0.55 * total
    assert first["loaded"] == total
    assert first["most"] < 1.25 * total
    # on the meta device, and from there a layer at a time
    assert second["loaded"] == 0
    assert second["most"] < 0.75 * total
