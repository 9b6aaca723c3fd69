"""Sharded training (FSDP2): each process holds a part of every weight, gradient and moment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.optim import Optimizer
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from lori_pl.models.hidden import decoder_layers
from lori_pl.sharding.parts import part_of, refuse_offload, whole
from lori_pl.sharding.sending import Sender
from lori_pl.sharding.single_files import SingleFiles, backend_for

SHARDED = "sharded"
"""The strategy's name for ``trainer.strategy``."""

HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""In what type a decoder layer's weights are gathered, by ``trainer.precision``: the one that autocast computes in."""


class ShardedStrategy(SingleFiles, ModelParallelStrategy):
    """Lightning's FSDP2 over all processes: data-parallel, with student, terms and teacher sharded.

    Under mixed precision a decoder layer is gathered in half precision, and its gradients are summed in fp32.
    Checkpoints are single files, as every strategy's are, so that a run may go on under another one.

    Args:
        reshard_after_forward: Give a decoder layer's weights back behind each pass and gather them again for the next,
            and for the backward pass. ``false`` holds them from a step's first pass to its backward: with K latents
            that is K gathers less, for the memory of all weights.
        cpu_offload: Keep this process's part of weights, gradients and moments in the host's memory, and take the
            optimiser's step there. With a GPU.
        process_group_backend: As in Lightning.
        timeout_minutes: How long a process waits for another.
    """

    def __init__(
        self,
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
        timeout_minutes: float = 30.0,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend_for(process_group_backend, cpu_offload),
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.options = {"reshard_after_forward": reshard_after_forward, "cpu_offload": cpu_offload}

    def setup_environment(self) -> None:
        """Takes every process for data: left to itself, Lightning would take those of a node for one model."""
        refuse_offload(self.options["cpu_offload"], self.root_device)
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Shards the method before Lightning makes its optimiser."""
        method: Any = self.lightning_module
        half = HALVES.get(trainer.precision)
        method.shard(self.device_mesh["data_parallel"], self.root_device, half=half, **self.options)
        super().setup(trainer)

    # ---- checkpoints: whole tensors, in the form that every strategy writes -----------------------------------------

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Before: what a checkpoint measured is then known where training starts."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As under every strategy."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains, put together; for the first process alone."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state, put together; for the first process alone."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return self._whole(plain.state_dict())

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        # one tensor after the other: no process but the first ever holds all
        keep = self.is_global_zero

        def kept(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            found = whole(value).detach()
            return found.cpu() if keep else found.new_empty(0)

        found: dict[str, Any] = tree_map(kept, dict(state))
        return found if keep else {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Gives each process its part."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {key: part_of(value, own.get(key)) for key, value in checkpoint["state_dict"].items()}
        self.load_state(state, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Gives each process its part."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {
                number: {name: part_of(value, weights[number]) for name, value in entries.items()}
                for number, entries in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


StrategyRegistry.register(SHARDED, ShardedStrategy, override=True)


def shard(
    module: nn.Module,
    models: list[PreTrainedModel],
    frozen: list[nn.Module],
    entries: tuple[str, ...],
    mesh: DeviceMesh,
    device: torch.device,
    reshard_after_forward: bool,
    cpu_offload: bool,
    half: torch.dtype | None = None,
) -> None:
    """Shards a module's weights, which are those of the first process: each decoder layer by itself, the rest together.

    Layer by layer, the first process sends the weights and each keeps its part.

    Args:
        module: The whole; on other processes than the first its models may be on the meta device.
        models: Its language models.
        frozen: Parts of it that never train, apart from their layers sharded each by itself.
        entries: Methods of ``module`` that compute with its weights, by name.
        mesh: The processes.
        device: This process's device.
        reshard_after_forward: As in `ShardedStrategy`.
        cpu_offload: As in `ShardedStrategy`.
        half: What decoder layers are gathered in; ``None`` for what they are in.

    Raises:
        LoriError: If another process built other weights than the first.
    """
    policy = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
    # the states between layers stay as they are: autocast has its say of each product
    precision = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False) if half else MixedPrecisionPolicy()
    sender = Sender(module, device)
    layers = [layer for model in models for layer in decoder_layers(model)]
    as_they_are = MixedPrecisionPolicy()
    for part, gathered in [*((layer, precision) for layer in layers), *((part, as_they_are) for part in frozen)]:
        sender.send(part)
        fully_shard(
            part, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=gathered, offload_policy=policy
        )
    sender.send(module)
    if module not in frozen:
        fully_shard(module, mesh=mesh, reshard_after_forward=False, offload_policy=policy)
    for name in entries:
        register_fsdp_forward_method(module, name)
