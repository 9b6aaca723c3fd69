"""What a training needs, without running it: one step with tensors that have sizes and types and no content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lori_pl.arithmetic import Arithmetic
from lori_pl.data.pairing import PairedBatch
from lori_pl.live_bytes import LiveBytes
from lori_pl.methods.base import Method
from lori_pl.methods.optimization import forward_context
from lori_pl.models.hidden import decoder_layers
from lori_pl.sharding.fsdp2 import HALVES

Strategy = Literal["single", "ddp", "sharded", "fsdp1"]


@dataclass(frozen=True)
class Weights:
    """Bytes of a module's weights and buffers.

    Args:
        trained: Of what trains.
        frozen: Of what does not, buffers included.
        trained_parameters: Number of parameters that train.
        frozen_parameters: Number of those that do not.
    """

    trained: int
    frozen: int
    trained_parameters: int
    frozen_parameters: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.trained + self.frozen


def weigh(modules: Iterable[nn.Module]) -> Weights:
    """Adds up the weights of modules, shared ones once."""
    seen: dict[int, Tensor] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            seen.setdefault(id(tensor), tensor)
    trained = [tensor for tensor in seen.values() if tensor.requires_grad]
    frozen = [tensor for tensor in seen.values() if not tensor.requires_grad]
    return Weights(
        sum(tensor.nbytes for tensor in trained),
        sum(tensor.nbytes for tensor in frozen),
        sum(tensor.numel() for tensor in trained),
        sum(tensor.numel() for tensor in frozen if isinstance(tensor, nn.Parameter)),
    )


@dataclass(frozen=True)
class Halved:
    """What differs where decoder layers are gathered in half precision, which mixed precision does under ``sharded``.

    Args:
        layer: Bytes of the largest layer as it is gathered.
        layers: Those of all layers.
        gradients: Most bytes of a layer's gradients, beside the fp32 in which they are summed over processes.
        activations: Bytes that the forward pass keeps, of layers no copy of a weight among them.
    """

    layer: int
    layers: int
    gradients: int
    activations: int


@dataclass(frozen=True)
class Parts:
    """What a process's device holds at the peak, in bytes.

    Args:
        weights: Weights and buffers, those of a live teacher included; where they are divided, the process's part.
        gradients: Their gradients; or the part.
        optimizer: The optimiser's state; or the part.
        together: Buffers in which gradients are summed; or weights and gradients that are put together for a pass.
        passing: Activations, and what a pass or the optimiser's step makes and drops again.
    """

    weights: int
    gradients: int
    optimizer: int
    together: int
    passing: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.together + self.passing


@dataclass(frozen=True)
class StepCost:
    """What one batch's forward, backward and optimiser step take on one process that holds everything.

    Args:
        student: The student's weights, terms included.
        teacher: A live teacher's.
        layer: The largest decoder layer's, and the most that trains in one.
        apart: The weights that are in no decoder layer (embeddings, head, projector, terms).
        gradients: Bytes of the gradients.
        optimizer: Bytes of the optimiser's state.
        activations: Bytes that the forward pass keeps for the backward pass.
        cast_anew: The same where each pass casts the weights anew, as under autocast where they are sharded.
        moving: Peak of forward and backward pass together: activations, which go, gradients, which come, and what a
            pass makes and drops again; where batches are accumulated, those of the second.
        stepping: What the optimiser's step makes and drops again.
        flops: Floating-point operations of forward and backward, a multiplication and an addition as two.
        flat_gradients: Bytes of the gradients under FSDP1: of all weights of a layer in which any trains.
        of_one_type: Whether the weights of each layer, and those in none, are of one type, as FSDP1 asks.
        halved: What differs where layers are gathered in half precision; ``None`` where they are not.
    """

    student: Weights
    teacher: Weights
    layer: Weights
    apart: Weights
    gradients: int
    optimizer: int
    activations: int
    cast_anew: int
    moving: int
    stepping: int
    flops: int
    flat_gradients: int
    of_one_type: bool
    halved: Halved | None = None

    def parts(
        self,
        processes: int = 1,
        strategy: Strategy = "single",
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
    ) -> Parts:
        """What each process's device holds at the peak, its batch being that of the step.

        ``ddp`` adds the buffers in which gradients are summed. ``sharded`` and ``fsdp1`` hold a part of weights,
        gradients and moments (with ``cpu_offload`` in the host's memory, see `host`), and whole what is put together:
        the weights that are in no decoder layer, and a layer with the one that is gathered ahead, or all of them; and
        the gradients of the former and of one layer, under ``fsdp1`` those of frozen weights, too.
        """
        weights = self.student.bytes + self.teacher.bytes
        if strategy in ("single", "ddp"):
            buffers = self.gradients if strategy == "ddp" else 0
            passing = max(self.moving - self.gradients, self.stepping)
            return Parts(weights, self.gradients, self.optimizer, buffers, passing)
        gathered = self.halved if strategy == "sharded" else None
        if gathered is None:
            gathered = Halved(self.layer.bytes, weights - self.apart.bytes, 0, self.cast_anew)
        whole = self.apart.bytes + (2 * gathered.layer if reshard_after_forward else gathered.layers)
        for unit in (self.apart, self.layer):
            whole += unit.bytes if strategy == "fsdp1" and unit.trained else unit.trained
        whole += gathered.gradients
        passing = gathered.activations + max(self.moving - self.activations - self.gradients, 0)
        if cpu_offload:
            return Parts(0, 0, 0, whole, passing)
        return Parts(*self._divided(processes, strategy), whole, passing + self.stepping // processes)

    def _divided(self, processes: int, strategy: Strategy) -> tuple[int, int, int]:
        gradients = self.flat_gradients if strategy == "fsdp1" else self.gradients
        weights = self.student.bytes + self.teacher.bytes
        return weights // processes, gradients // processes, self.optimizer // processes

    def host(self, processes: int, strategy: Strategy = "sharded") -> int:
        """Bytes of a process's part of weights, gradients and moments: in the host's memory, with ``cpu_offload``."""
        return sum(self._divided(processes, strategy))


def hollow(method: Method) -> FakeTensorMode:
    """Builds a method's models without reading or making a single weight.

    Returns:
        The mode under which its tensors are to be used: they have sizes and types, and no content.
    """
    terms = getattr(method, "active_terms", [])
    for term in terms:
        term.to("meta")
    with torch.device("meta"):
        method.configure_model()
    for term in terms:
        term.assume_fitted()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        method.to_empty(device="cpu")
        for model in method.models()[0]:
            model.tie_weights()  # each module got a weight of its own
    return mode


@contextmanager
def _in_half(layers: list[nn.Module], half: torch.dtype) -> Iterator[None]:
    """Runs a block with the layers' weights in another type; then they are as before."""
    weights = [weight for layer in layers for weight in layer.parameters() if weight.is_floating_point()]
    before = [weight.dtype for weight in weights]
    for weight in weights:
        weight.data = weight.data.to(half)
    try:
        yield
    finally:
        for weight, dtype in zip(weights, before, strict=True):
            weight.data = weight.data.to(dtype)


def flops_of_step(method: Method, mode: FakeTensorMode, batch: PairedBatch, precision: str) -> int:
    """Floating-point operations of a batch's forward and backward pass, a multiplication and an addition as two.

    Args:
        method: As `hollow` left it.
        mode: What `hollow` gave.
        batch: A batch of the sizes that are asked about.
        precision: The Trainer's.
    """
    fake = _to_fake(batch, mode)
    method.train()
    with mode:
        with Arithmetic().counting() as counted, forward_context(precision, "cpu"):
            loss, _ = method.step_losses(fake)
            loss.backward()
        method.zero_grad(set_to_none=True)
    return counted.total


def cost_of_step(
    method: Method,
    mode: FakeTensorMode,
    batch: PairedBatch,
    precision: str,
    on_gpu: bool = True,
    accumulated: int = 1,
) -> StepCost:
    """Goes through one training step of a hollow method.

    A step's gradients are dropped behind it, so its first batch meets none; the further ones that are accumulated run
    beside them.

    Args:
        method: As `hollow` left it.
        mode: What `hollow` gave.
        batch: A batch of the sizes that are asked about.
        precision: The Trainer's.
        on_gpu: Take the optimiser's step as PyTorch does on a GPU where it may choose: for all weights together, which
            holds what it computes of them all at once.
        accumulated: How many batches a step has, as ``trainer.accumulate_grad_batches``.
    """
    flops = flops_of_step(method, mode, batch, precision)
    teacher: nn.Module | None = getattr(method, "teacher", None)
    models = method.models()[0]
    layers = [layer for model in models for layer in decoder_layers(model)]
    inside = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    own = [module for name, module in method.named_children() if name != "teacher"]
    fake = _to_fake(batch, mode)
    method.train()
    cast_anew: int | None = None
    halved: Halved | None = None
    if precision in HALVES:
        with mode, LiveBytes() as live, forward_context(precision, "cpu"):
            loss, _ = method.losses(fake)
            cast_anew = live.now
            del loss
        with mode, _in_half(layers, HALVES[precision]):
            gathered = [weigh([layer]) for layer in layers]
            with LiveBytes() as live, forward_context(precision, "cpu"):
                loss, _ = method.losses(fake)
                kept = live.now
                del loss
        sizes = [layer.bytes for layer in gathered]
        halved = Halved(max(sizes), sum(sizes), max(layer.trained for layer in gathered), kept)
    with mode, LiveBytes() as live:
        with forward_context(precision, "cpu"):
            loss, _ = method.step_losses(fake)
        activations = live.now
        loss.backward()
        del loss
        gradients = sum(p.grad.nbytes for p in method.parameters() if p.grad is not None)
        moving = live.peak
        if accumulated > 1:
            with forward_context(precision, "cpu"):
                loss, _ = method.step_losses(fake)
            loss.backward()
            del loss
            moving = max(moving, live.peak)
        before = live.peak = live.now
        optimizer = method.optimizer([p for p in method.parameters() if p.requires_grad])
        if on_gpu and not isinstance(optimizer, torch.optim.Adafactor):
            for group in optimizer.param_groups:
                if group.get("foreach", False) is None and not group.get("fused") and not group.get("differentiable"):
                    group["foreach"] = True
        optimizer.step()
        moments = [value for entry in optimizer.state.values() for value in entry.values()]
        state = sum(value.nbytes for value in moments if isinstance(value, Tensor))
        stepping = max(live.peak - before - state, 0)
    apart = nn.Module()
    held = [tensor for module in own for tensor in (*module.parameters(), *module.buffers())]
    unique = {id(tensor): tensor for tensor in held if id(tensor) not in inside}
    for number, tensor in enumerate(unique.values()):
        if isinstance(tensor, nn.Parameter):
            apart.register_parameter(f"w{number}", tensor)
        else:
            apart.register_buffer(f"w{number}", tensor)
    units = [*layers, apart]
    flat = [sum(p.nbytes for p in unit.parameters()) for unit in units if weigh([unit]).trained]
    return StepCost(
        student=weigh(own),
        teacher=weigh([teacher] if teacher is not None else []),
        layer=_largest([weigh([layer]) for layer in layers]),
        apart=weigh([apart]),
        gradients=gradients,
        optimizer=state,
        activations=activations,
        cast_anew=activations if cast_anew is None else cast_anew,
        moving=moving,
        stepping=stepping,
        flops=flops,
        flat_gradients=sum(flat),
        of_one_type=all(len({p.dtype for p in unit.parameters()}) < 2 for unit in units),
        halved=halved,
    )


def _largest(layers: list[Weights]) -> Weights:
    most, whole = max(layers, key=lambda layer: layer.trained), max(layers, key=lambda layer: layer.bytes)
    return replace(most, frozen=whole.bytes - most.trained)


@dataclass(frozen=True)
class AnswerCost:
    """What one answer takes.

    Args:
        tokens: Tokens that are generated.
        length: Tokens in the cache at the end.
        flops: Floating-point operations of question, thought and answer.
        cache_bytes: Bytes of keys and values a token.
    """

    tokens: int
    length: int
    flops: int
    cache_bytes: int


@torch.no_grad()
def cost_of_answer(method: Method, mode: FakeTensorMode, batch: PairedBatch, tokens: int) -> AnswerCost:
    """Goes through an answer to the batch's first question with a hollow method.

    Args:
        method: As `hollow` left it.
        mode: What `hollow` gave.
        batch: A batch.
        tokens: Tokens that the answer has.
    """
    student = method.student.eval()
    question, mask = (mode.from_tensor(part[:1]) for part in (batch.question, batch.question_mask))
    with mode, Arithmetic().counting() as counted:
        state, _ = student.think(question, mask)
        given = question.new_zeros(1, len(student.given))
        if student.given:
            state = student.extend(state, student.embed(given))
        for step in range(tokens):
            student.logits(state.hidden[:, -1])
            if step + 1 < tokens:
                state = student.extend(state, student.embed(question[:, :1]))
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in state.cache.layers)
        length = state.mask.shape[1]
    return AnswerCost(tokens, length, counted.total, held // length)


def _to_fake(batch: PairedBatch, mode: FakeTensorMode) -> PairedBatch:
    """The batch with tensors of the mode, but for the numbers of its rows, which the host reads."""
    return replace(batch.each(mode.from_tensor), index=batch.index)
