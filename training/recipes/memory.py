"""What a training step needs in the memory of a device, found without that memory.

Weights, gradients, optimizer state and averages are counted. Activations are measured: the losses
of a recipe and their gradients are computed on tensors that have shapes and no values (torch's
FakeTensor), and every storage counts from the operator that makes it to its last use. What
operators use inside themselves, such as the workspaces of convolutions, is not seen, nor what the
allocator, CUDA and Python hold; nor the optimizer's step, at which activations are gone.

Computed on a GPU, bf16 follows CUDA's rules of autocast, by which GroupNorm and squares are
float32; it was compared with measured memory on a CPU and on one GPU (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from m2kit.training.models.tokenizer import ResBlock
from m2kit.training.models.transformer import Block
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.phase import Phase, Recipe

_LATE = 2**62  # a step at which every phase has begun
_GATHERED_AT_ONCE = 2  # blocks: one computes, the next one is on its way
_FLOAT32_ON_GPUS = (functional.group_norm, Tensor.square)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one device, at the peak of a step.

    Attributes:
        weights_bytes: Of all networks, those that are not trained among them.
        gradients_bytes: Of what is trained.
        optimizer_bytes: Adam's two moments of each.
        averages_bytes: The moving average of each network.
        exchange_bytes: DDP's buckets, a second copy of the gradients; of sharded networks the
            blocks that are whole while they compute, and their gradients.
        activations_bytes: All else, with the pictures.
    """

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    averages_bytes: int
    exchange_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return sum(getattr(self, field.name) for field in fields(self))


class LiveBytes(TorchDispatchMode):
    """Counts bytes of tensors from the operator that makes them until nothing refers to them.

    Args:
        known: Tensors that are not to be counted, nor views of them.

    Attributes:
        now: Bytes.
        peak: The most there were.
    """

    now: int
    peak: int

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._counted: dict[int, Any] = {id(storage): storage for storage in self._known}

    def __torch_dispatch__(
        self, operator: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute as if nothing were there, and count what was made."""
        made = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._counted:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._counted[key]

        self._counted[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _AsOnGpu(TorchFunctionMode):
    """CUDA's autocast computes some functions in float32 that a CPU's leaves in half."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _FLOAT32_ON_GPUS:
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


def step_memory(
    recipe: Recipe,
    fixed: Sequence[nn.Module],
    part: Sequence[Tensor],
    machine: Machine,
    *,
    processes: int,
    on_gpu: bool,
) -> Memory:
    """Of a step of a recipe whose networks are on the meta device.

    Args:
        recipe: It is of no use afterwards.
        fixed: The networks that it needs and does not train.
        part: A part of a process's batch, on the meta device.
        machine: Its strategy, its precision, and the parts of a batch.
        processes: Over all nodes.
        on_gpu: The devices are GPUs.
    """
    double = machine.precision == "fp64"
    networks = [phase.network for phase in recipe.phases]
    averages = [phase.averaged for phase in recipe.phases]
    with FakeTensorMode():
        for module in (*networks, *averages, *fixed, recipe.statistics):
            _lose_values(module, double=double)
        held = [tensor for module in (*networks, *fixed) for tensor in _tensors(module)]
        trained = [p for network in networks for p in network.parameters() if p.requires_grad]
        activations = _activations(recipe, part, held, trained, machine, on_gpu=on_gpu)
    shares = processes if machine.strategy == "sharded" else 1
    whole = sum(map(_size, (tensor for module in fixed for tensor in _tensors(module))))
    divided = [tensor for network in networks for tensor in _tensors(network)]
    gradients = sum(map(_size, trained))
    pictures = sum(map(_size, part)) * (2 if double else 1)
    waiting = (machine.accumulate - 1) * pictures * len(networks)  # and their reconstructions
    if machine.strategy == "sharded":
        exchange = 2 * max(map(_gathered, recipe.phases))
    else:
        exchange = gradients if processes > 1 else 0
    return Memory(
        weights_bytes=whole + sum(map(_size, divided)) // shares,
        gradients_bytes=gradients // shares,
        optimizer_bytes=2 * gradients // shares + 4 * len(trained),  # and numbers of steps
        averages_bytes=sum(_size(t) for module in averages for t in _tensors(module)) // shares,
        exchange_bytes=exchange,
        activations_bytes=activations + waiting,
    )


def _activations(
    recipe: Recipe,
    part: Sequence[Tensor],
    held: Sequence[Tensor],
    trained: Sequence[nn.Parameter],
    machine: Machine,
    *,
    on_gpu: bool,
) -> int:
    """Peak bytes of what a step of all phases makes, but for the gradients of weights."""

    @contextlib.contextmanager
    def autocast() -> Iterator[None]:
        mixed = machine.precision in ("bf16", "fp16")
        rules = _AsOnGpu() if mixed and on_gpu else contextlib.nullcontext()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed), rules:
            yield

    def forward_of(phase: Phase[Any]) -> Callable[..., Any]:
        def forward(*inputs: Tensor) -> Any:
            with autocast():
                outputs = phase.network(*inputs)
            return tree_map(lambda t: t.float() if t.dtype == torch.bfloat16 else t, outputs)

        return forward

    def drop(weight: Tensor) -> None:
        weight.grad = None

    for weight in trained:
        weight.register_post_accumulate_grad_hook(drop)  # type: ignore[no-untyped-call]
    live = LiveBytes(held)
    with live:
        batch = [_valueless(tensor, double=machine.precision == "fp64") for tensor in part]
        for phase in recipe.phases:
            phase.forward, phase.autocast = forward_of(phase), autocast
            phase.network.train()
            phase.losses(_LATE, batch)["loss"].backward()  # type: ignore[no-untyped-call]
    return live.peak


def _lose_values(module: nn.Module, *, double: bool) -> None:
    """Put tensors of the same sizes in place of a module's."""
    for part in module.modules():
        for name, tensor in [*part.named_parameters(recurse=False)]:
            fake = _valueless(tensor, double=double)
            setattr(part, name, nn.Parameter(fake, requires_grad=tensor.requires_grad))
        for name, buffer in [*part.named_buffers(recurse=False)]:
            setattr(part, name, _valueless(buffer, double=double))


def _valueless(tensor: Tensor, *, double: bool) -> Tensor:
    wide = double and tensor.is_floating_point()
    return torch.empty(tensor.shape, dtype=torch.float64 if wide else tensor.dtype)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _gathered(phase: Phase[Any]) -> int:
    """Bytes of a sharded network's weights that are whole at once."""
    parts = [m for m in phase.network.modules() if isinstance(m, (ResBlock, Block))]
    sizes = [sum(map(_size, part.parameters())) for part in parts]
    rest = sum(map(_size, phase.network.parameters())) - sum(sizes)
    return rest + _GATHERED_AT_ONCE * max(sizes, default=0)
