"""Sharded training by PyTorch's older FSDP, for clusters that are set up for it; see `fsdp2` for the newer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.strategy import _ForwardRedirection
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffload, ShardingStrategy
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.optim import Optimizer
from torchmetrics import Metric

from lori_pl.errors import LoriError
from lori_pl.models.hidden import decoder_layers
from lori_pl.sharding.parts import keep_shape, refuse_offload, whole_shape
from lori_pl.sharding.sending import Sender
from lori_pl.sharding.single_files import SingleFiles, backend_for

FSDP1 = "fsdp1"
"""The strategy's name for ``trainer.strategy``."""

_WRAPPED = "_fsdp_wrapped_module."
_ROOT = "fsdp1_root"


class FSDP1Strategy(SingleFiles, DDPStrategy):
    """PyTorch's FullyShardedDataParallel over all processes: each decoder layer by itself, and the rest together.

    Prefer `lori_pl.sharding.ShardedStrategy` (FSDP2), which PyTorch develops further. All weights of a layer must be of
    one type. Checkpoints are single files, as every strategy's are, so that a run may go on under another one.

    Args:
        sharding_strategy: ``FULL_SHARD`` gives a decoder layer's weights back behind each pass and gathers them again
            for the next; ``SHARD_GRAD_OP`` holds them from a step's first pass to its backward.
        cpu_offload: Keep this process's part in the host's memory, and take the optimiser's step there. With a GPU.
        process_group_backend: As in Lightning.
        timeout_minutes: How long a process waits for another.
    """

    def __init__(
        self,
        sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP"] = "FULL_SHARD",
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
        timeout_minutes: float = 30.0,
    ) -> None:
        super().__init__(
            process_group_backend=backend_for(process_group_backend, cpu_offload),
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.sharding_strategy = ShardingStrategy[sharding_strategy]
        self.cpu_offload = cpu_offload
        self._forward_redirection = _Redirection()

    # ---- set-up -----------------------------------------------------------------------------------------------------

    @property
    def root(self) -> Any:
        """The wrapped method; ``None`` before it is wrapped."""
        return root_of(self.lightning_module)

    def setup_environment(self) -> None:
        """Checks what needs a GPU before the processes look for one another."""
        refuse_offload(self.cpu_offload, self.root_device)
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Shards the method before Lightning makes its optimiser."""
        assert self.accelerator is not None
        if trainer.precision == "16-mixed":
            raise LoriError(
                "trainer.precision 16-mixed scales gradients, and under fsdp1 each process would scale its own: take "
                "bf16-mixed"
            )
        if self.cpu_offload and trainer.accumulate_grad_batches > 1:
            raise LoriError(
                "trainer.accumulate_grad_batches above 1 loses gradients with fsdp1's cpu_offload: take sharded, or "
                "set one of them back"
            )
        self.accelerator.setup(trainer)
        method: Any = self.lightning_module
        self.precision_plugin.convert_module(method)
        self.model = root = self.root or self._wrapped(method)
        self._forward_redirection = root.redirection
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        # the norm is of all parts
        precision: Any = self.precision_plugin
        precision.clip_grad_by_norm = self._clip
        if trainer.state.fn == TrainerFn.FITTING:
            _optimizers_to_device(self.optimizers, self.root_device)

    def _wrapped(self, method: Any) -> FSDP:
        models, frozen = method.models()
        wrap = partial(
            FSDP,
            sharding_strategy=self.sharding_strategy,
            cpu_offload=CPUOffload(offload_params=self.cpu_offload),
            device_id=self.root_device,
            use_orig_params=True,
        )
        sender = Sender(method, self.root_device)
        for model in models:
            layers = decoder_layers(model)
            for index, layer in enumerate(layers):
                sender.send(layer)
                keep_shape(layer)
                layers[index] = self._of_one_type(wrap, layer, f"layer {index + 1} of {type(model).__name__}")
        sender.send(method)
        keep_shape(method)
        for name, part in list(method.named_children()):
            if any(part is other for other in frozen):
                setattr(method, name, self._of_one_type(wrap, part, f"the {name}"))
        root = self._of_one_type(wrap, method, "what is in no layer")
        vars(method)[_ROOT] = root
        root.redirection = self._forward_redirection
        for name in method.entries:
            vars(method)[name] = partial(self._forward_redirection.enter, root, method, getattr(method, name))
        method.take_equal_passes(self.root_device)
        # FSDP moved the weights, and neither what has none nor what the method knows of its device
        for metric in (part for part in method.modules() if isinstance(part, Metric)):
            metric.to(self.root_device)
        method._device = self.root_device
        return root

    @staticmethod
    def _of_one_type(wrap: Any, part: nn.Module, what: str) -> FSDP:
        try:
            wrapped: FSDP = wrap(part)
        except ValueError as error:
            if "uniform dtype" not in str(error):
                raise
            raise LoriError(
                f"under fsdp1 all weights of {what} must be of one type: set backbone.dtype to that of the adapters, "
                "markers and terms (float32), or take trainer.strategy sharded"
            ) from error
        return wrapped

    def _clip(self, optimizer: Optimizer, clip_val: float) -> None:
        if clip_val > 0:
            self.root.clip_grad_norm_(clip_val)

    def teardown(self) -> None:
        """Leaves the weights where they are."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    # ---- checkpoints: whole tensors, in the form that every strategy writes -----------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains, put together unit by unit; for the first process alone."""
        method: Any = self.lightning_module
        if self.root is None:
            plain: dict[str, Any] = method.state_dict()
            return plain
        state = {name: buffer.detach().cpu() for name, buffer in _buffers(method)}
        for weights in self._units(writeback=False):
            state |= {name: weight.detach().cpu().clone() for name, weight in weights}
        return method.lean(state) if self.is_global_zero else {}

    def _units(self, writeback: bool) -> Iterator[list[tuple[str, nn.Parameter]]]:
        """Gives, one FSDP unit after the other, what trains in it, whole; empty on other processes without writing."""
        method, root = self.lightning_module, self.root
        assert method is not None
        names = _names(method)
        for unit in FSDP.fsdp_modules(root):
            inner = {id(weight) for part in FSDP.fsdp_modules(unit) if part is not unit for weight in part.parameters()}
            own = {id(weight) for weight in unit.parameters() if weight.requires_grad} - inner
            if not own:
                continue
            with FSDP.summon_full_params(unit, recurse=False, writeback=writeback, rank0_only=not writeback):
                here = writeback or self.is_global_zero
                found = [(name, weight) for name, weight in names if id(weight) in own]
                yield found if here else []

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state, put together; for the first process alone."""
        plain: Any = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        weights = [weight for group in plain.param_groups for weight in group["params"]]
        # a process that has nothing of a weight has no state for it either
        known: list[Any] = [None] * self.world_size
        dist.all_gather_object(known, [_described(weight, plain.state.get(weight, {})) for weight in weights])
        sizes = _sizes(weights)
        state: dict[int, dict[str, Any]] = {}
        for number, weight in enumerate(weights):
            names = {name: kind for process in reversed(known) for name, kind in process[number].items()}
            own = plain.state.get(weight, {})
            for name, kind in names.items():
                value = _joined(own.get(name), weight, sizes[number], kind) if isinstance(kind, torch.dtype) else kind
                state.setdefault(number, {})[name] = value
        return {"state": state, "param_groups": plain.state_dict()["param_groups"]} if self.is_global_zero else {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads what trains: before it is wrapped as ever, behind that unit by unit."""
        method, state = self.lightning_module, checkpoint["state_dict"]
        assert method is not None
        if self.root is None:
            self.load_state(state, strict)
            return
        with torch.no_grad():
            for weights in self._units(writeback=True):
                for name, weight in weights:
                    weight.copy_(state[name])
            for name, buffer in _buffers(method):
                if name in state:
                    buffer.copy_(state[name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Gives each process its part."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            sizes = _sizes(weights)
            state = {
                number: {name: _own(value, weight, sizes[number]) for name, value in saved["state"][number].items()}
                for number, weight in enumerate(weights)
                if number in saved["state"] and weight.numel()  # the optimiser does not count steps for an empty part
            }
            optimizer.load_state_dict({**saved, "state": state})


class _Redirection(_ForwardRedirection):
    """Leads a method's call through the wrapper's forward, where weights stand as a whole, unless it is in there."""

    def __init__(self) -> None:
        self.within = False

    def __call__(self, wrapper_module: nn.Module, original_module: Any, method_name: str, *args: Any, **kw: Any) -> Any:
        """As Lightning calls it for a step."""
        return self.enter(wrapper_module, original_module, getattr(original_module, method_name), *args, **kw)

    def enter(self, wrapper: nn.Module, method: nn.Module, call: Any, *args: Any, **keywords: Any) -> Any:
        """Calls ``call``, a bound method of ``method``."""
        if self.within:
            return call(*args, **keywords)
        original = method.forward
        method.forward = call
        self.within = True
        try:
            return wrapper(*args, **keywords)
        finally:
            self.within = False
            method.forward = original


def root_of(module: nn.Module | None) -> Any:
    """The wrapper that `FSDP1Strategy` put around a module; ``None`` if it did not."""
    return None if module is None else vars(module).get(_ROOT)


@contextmanager
def summoned(module: nn.Module) -> Iterator[None]:
    """Within the block what is in no layer stands as a whole, and what is set there is kept in every process's part."""
    with FSDP.summon_full_params(root_of(module), recurse=False, writeback=True):
        yield


def _described(weight: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """By name: the type of what is divided as the weight is, and all else as it is."""

    def kind(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.dtype if value.shape == weight.shape else value.cpu()

    return {name: kind(value) for name, value in state.items()} if weight.numel() else {}


def _sizes(weights: Sequence[Tensor]) -> list[list[int]]:
    """How much of each weight each process has; the parts of a weight follow one another as the processes do."""
    here: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(here, [weight.numel() for weight in weights])
    return [list(parts) for parts in zip(*here, strict=True)]


def _joined(part: Tensor | None, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Puts the processes' parts of a tensor together, on the host."""
    own = torch.zeros(max(sizes), dtype=dtype, device=weight.device)
    if part is not None:
        own[: part.numel()] = part.flatten()
    parts = [torch.empty_like(own) for _ in sizes]
    dist.all_gather(parts, own)
    return torch.cat([p[:n] for p, n in zip(parts, sizes, strict=True)]).cpu().view(whole_shape(weight))


def _own(value: Any, weight: Tensor, sizes: Sequence[int]) -> Any:
    """This process's part of a whole tensor of an optimiser's state; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != whole_shape(weight):
        return value
    first = sum(sizes[: dist.get_rank()])
    return value.flatten()[first : first + weight.numel()].view(weight.shape).clone()


def _names(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name.replace(_WRAPPED, ""), weight) for name, weight in module.named_parameters(remove_duplicate=False)]


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Named buffers that a checkpoint holds."""
    for path, part in module.named_modules(remove_duplicate=False):
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield f"{path}.{name}".replace(_WRAPPED, "").removeprefix("."), buffer


StrategyRegistry.register(FSDP1, FSDP1Strategy, override=True)
