"""Where a run computes: devices, how they share the work, and in which precision. None of it is
part of what is trained: a run may go on elsewhere.

So far one process on a CPU is all that was run: several, sharded weights, a GPU, fp16 and
torch.compile are written and were never tried.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.strategies.strategy import Strategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from m2kit.errors import InputError
from m2kit.training.models.tokenizer import ResBlock
from m2kit.training.models.transformer import Block
from m2kit.training.recipes.batches import Division
from m2kit.training.recipes.phase import Phase

Precision = Literal["fp32", "bf16", "fp16", "fp64"]
_PRECISIONS: dict[str, Any] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "fp64": "64-true",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a run computes.

    Attributes:
        accelerator: auto takes a GPU where there is one.
        devices: Processes of this machine, one a device; 0 is one for every GPU, or one.
        nodes: Machines; each runs the command, started by torchrun.
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
        gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        return torch.cuda.device_count() if gpu else 1

    def fabric(self) -> Fabric:
        """Lightning's view of it, not launched yet.

        Raises:
            InputError: It is not there.
        """
        processes = self.devices_here * self.nodes
        strategy: Strategy | str = "auto"
        if self.strategy == "sharded":
            strategy = ModelParallelStrategy(
                _shard, data_parallel_size=processes, save_distributed_checkpoint=False
            )
        elif processes > 1:
            strategy = DDPStrategy(broadcast_buffers=False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="lightning")
                return Fabric(
                    accelerator=self.accelerator,
                    devices=self.devices_here,
                    num_nodes=self.nodes,
                    strategy=strategy,
                    precision=_PRECISIONS[self.precision],
                )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"this machine cannot train so: {str(error).splitlines()[0]}",
                option="--accelerator, --devices",
            ) from error

    def division(self, batch: int, fabric: Fabric) -> Division:
        """How a batch is divided among the processes."""
        return Division(batch, self.accumulate, fabric.global_rank, fabric.world_size)


def place(fabric: Fabric, phase: Phase[Any], *, compiled: bool) -> None:
    """Put a phase where it is trained: its network, its average, and a new optimizer."""
    network = torch.compile(phase.network) if compiled else phase.network
    phase.forward = fabric.setup_module(network)  # type: ignore[arg-type]
    phase.autocast = fabric.autocast
    if isinstance(fabric.strategy, ModelParallelStrategy):
        _shard(phase.ema.module, fabric.strategy.device_mesh)
    phase.ema.to(device=fabric.device, dtype=next(phase.network.parameters()).dtype)
    phase.optimizer = fabric.setup_optimizers(phase.make_optimizer(phase.network))


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Divide the weights of a network among processes: each block is gathered when it computes."""
    for part in module.modules():
        if isinstance(part, (ResBlock, Block)):
            fully_shard(part, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module
