"""Where a run computes: devices, how they share the work, and in which precision. None of it is
part of what is trained: a run may go on elsewhere.

So far processes on one CPU were run, and one GPU: several GPUs and machines are written and were
never tried.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.strategies.strategy import Strategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from m2kit.errors import InputError
from m2kit.training.models.tokenizer import ResBlock
from m2kit.training.models.transformer import Block
from m2kit.training.recipes.division import Division
from m2kit.training.recipes.phase import Phase
from m2kit.training.recipes.processes import (
    end_with_starter,
    silent_lightning,
    started_by_torchrun,
)

Precision = Literal["fp32", "bf16", "fp16", "fp64"]
_PRECISIONS: dict[str, Any] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "fp64": "32-true",  # Lightning's own makes float32 of all that a network gives
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a run computes.

    Attributes:
        accelerator: auto takes a GPU where there is one.
        devices: Processes of this machine, one a device; 0 is what torchrun has started, or one
            for every GPU, or one.
        nodes: Machines; on each of them torchrun starts the command.
        strategy: ddp holds everything on every device, sharded a part of the weights, of their
            averages and of the optimizers' state on each.
        precision: bf16 and fp16 are mixed: weights, averages and losses stay float32.
        accumulate: Parts that a process divides its share of a batch into, to need less memory.
        workers: Processes that read pictures, for each device.
        compile: Compile the networks with torch.compile.
        save_every: Steps between two saves of resume.ckpt; None is whenever held-out images are
            measured.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 0
    nodes: int = 1
    strategy: Literal["ddp", "sharded"] = "ddp"
    precision: Precision = "fp32"
    accumulate: int = 1
    workers: int = 0
    compile: bool = False
    save_every: int | None = None

    @property
    def devices_here(self) -> int:
        """Processes of this machine."""
        if self.devices:
            return self.devices
        started = started_by_torchrun()
        return started[1] if started else max(1, self._gpus())

    def _gpus(self) -> int:
        """GPUs that it may use."""
        return 0 if self.accelerator == "cpu" else torch.cuda.device_count()

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and averages."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def fabric(self) -> Fabric:
        """Lightning's view of it, not launched yet.

        Raises:
            InputError: It is not there.
        """
        self._check()
        end_with_starter()
        processes = self.devices_here * self.nodes
        strategy: Strategy | str = "auto"
        if self.strategy == "sharded":
            strategy = ModelParallelStrategy(
                _shard,
                data_parallel_size=processes,
                tensor_parallel_size=1,
                save_distributed_checkpoint=False,
            )
        elif processes > 1:
            strategy = DDPStrategy(broadcast_buffers=False)
        try:
            with warnings.catch_warnings(), silent_lightning():
                warnings.filterwarnings("ignore", module="lightning")
                return Fabric(
                    accelerator=self.accelerator,
                    devices=self.devices_here,
                    num_nodes=self.nodes,
                    strategy=strategy,
                    precision=_PRECISIONS[self.precision],
                    # else Lightning takes a cluster's scheduler for what has started the command
                    plugins=None if started_by_torchrun() else LightningEnvironment(),
                )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"this machine cannot train so: {str(error).splitlines()[0]}",
                option="--accelerator, --devices",
            ) from error

    def _check(self) -> None:
        """Refuse devices and machines that are not there, and a compiler that does not work."""
        gpus, here = self._gpus(), self.devices_here
        if self.accelerator == "cuda" and not gpus:
            raise InputError(
                f"expected a GPU that PyTorch {torch.__version__} can use, found none; train on "
                "the CPU, or see what `m2kit doctor` says",
                option="--accelerator",
            )
        if gpus and here > gpus:
            raise InputError(
                f"{here} devices were asked for, and this machine has {gpus} GPUs; ask for fewer, "
                "or train on the CPU",
                option="--devices, --accelerator",
            )
        started = started_by_torchrun()
        if started and started != (self.nodes, here):
            raise InputError(
                f"torchrun has started {started[1]} processes on each of {started[0]} machines, "
                f"and the command asks for {here} on {self.nodes}; ask both for the same",
                option="--nodes, --devices",
            )
        if self.nodes > 1 and not started:
            raise InputError(
                f"{self.nodes} machines were asked for, and this one knows of no other; start the "
                "run by torchrun on each of them, as docs/training.md says",
                option="--nodes",
            )
        if self.compile and not gpus:  # of a GPU `place` checks it: no process has its own yet
            _check_compiler(torch.device("cpu"))

    def division(self, batch: int, fabric: Fabric) -> Division:
        """How a batch is divided among the processes."""
        return Division(batch, self.accumulate, fabric.global_rank, fabric.world_size)


def place(fabric: Fabric, phase: Phase[Any], machine: Machine) -> None:
    """Put a phase where it is trained: its network, its average, and a new optimizer."""
    for network in (phase.network, phase.averaged):
        network.to(dtype=machine.dtype)
    if machine.compile:
        if fabric.device.type != "cpu":
            _check_compiler(fabric.device)
        _compile(phase.network)
    with warnings.catch_warnings():
        # its successor, of another meaning, is not in every torch
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
        phase.forward = fabric.setup_module(phase.network)
    phase.autocast = fabric.autocast
    phase.ema.to(device=fabric.device)
    if isinstance(fabric.strategy, ModelParallelStrategy):
        _shard(phase.averaged, fabric.strategy.device_mesh)
    phase.optimizer = fabric.setup_optimizers(phase.make_optimizer(phase.network))


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except RuntimeError as error:
        raise InputError(
            f"torch.compile does not work here: {' '.join(str(error).splitlines()[:2])}",
            option="--compile",
        ) from error


def _compile(network: nn.Module) -> None:
    """Let torch compile the blocks of a network, or where it has none the network, when they first
    compute; names of weights stay as they are."""
    for part in _blocks(network) or [network]:
        part.forward = torch.compile(part.forward)


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Divide the weights of a network among processes: each block is gathered when it computes.

    The network itself is divided again after it has computed, too: while it is whole, its
    parameters are others, of which Phase.judge would let the gradients pass.
    """
    for part in (*_blocks(module), module):
        fully_shard(part, mesh=mesh["data_parallel"], reshard_after_forward=True)
    return module


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The parts that a network mostly consists of."""
    return [part for part in network.modules() if isinstance(part, (ResBlock, Block))]
