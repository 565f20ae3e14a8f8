"""The memory of both step graphs on a GPU, the same for TensorRT and for ONNX Runtime: one block
with what the host writes, what it reads, and what never leaves the GPU: the hidden state between
the graphs, the KV caches, and the new rows that a commit copies into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from m2kit import contract
from m2kit.contract import GraphIO
from m2kit.runtime.backend import Buffers
from m2kit.runtime.cuda import CacheLayout, Gpu, Memory, size_bytes

Tensors = Mapping[str, tuple[tuple[int, ...], str]]  # name -> (shape, dtype)


class StepMemory:
    """The block, and where each tensor of each graph lies in it.

    Attributes:
        memory: The block.
    """

    def __init__(
        self, gpu: Gpu, graphs: Mapping[str, tuple[GraphIO, Tensors]], scratch_bytes: int = 0
    ) -> None:
        """Allocate, zeroed, for what inter and intra step take and give; `scratch_bytes` more are
        at the address "scratch"."""
        inter, intra = contract.STEP_GRAPHS
        self._gpu, self._graphs = gpu, graphs
        self._caches: dict[str, CacheLayout] = {}
        shared: dict[str, tuple[tuple[int, ...], str]] = {}
        for graph, (io, tensors) in graphs.items():
            past = tuple(t.name for t in io.inputs if contract.is_past(t.name))
            self._caches[graph] = CacheLayout.of(past, *tensors[past[0]])
            for tensor in io.inputs:
                if tensor.name not in (*past, contract.HIDDEN):
                    shared[f"{graph}/{tensor.name}"] = tensors[tensor.name]
        io, tensors = graphs[intra]
        for tensor in io.outputs:
            if tensor.name != contract.PRESENT:
                shared[f"{intra}/{tensor.name}"] = tensors[tensor.name]
        private = {contract.HIDDEN: size_bytes(*graphs[inter][1][contract.HIDDEN])}
        for graph, cache in self._caches.items():
            private[f"{graph}/{contract.PRESENT}"] = cache.present_bytes
            private[f"{graph}/cache"] = cache.bytes
        self.memory = Memory(gpu, shared, private | {"scratch": scratch_bytes})

    def addresses(self, graph: str) -> dict[str, int]:
        """Tensor of a graph -> its address on the GPU."""
        at = self.memory.addresses
        addresses = self._caches[graph].addresses(at[f"{graph}/cache"])
        for name in self._graphs[graph][1]:
            if name not in addresses:
                addresses[name] = at[name if name == contract.HIDDEN else f"{graph}/{name}"]
        return addresses

    def host(self, graph: str) -> HostSide:
        """What the host sees of a graph."""
        io, _ = self._graphs[graph]
        return HostSide(self.memory, io, f"{graph}/")

    def commits(self, graph: str) -> list[Callable[[], None]]:
        """For each position, what queues the copy of the new rows into the cache."""
        at = self.memory.addresses
        new, cache = at[f"{graph}/{contract.PRESENT}"], at[f"{graph}/cache"]
        return self._gpu.strided_copies(new, cache, self._caches[graph])


class HostSide:
    """What the host writes and reads of one graph: each part is copied as a whole.

    Attributes:
        inputs: Name -> the array it writes.
        outputs: Name -> the array it reads.
    """

    def __init__(self, memory: Memory, io: GraphIO, prefix: str = "") -> None:
        """Of what has its places in `memory` under prefix + name."""
        self._memory = memory
        self._places = [
            [prefix + tensor.name for tensor in part if prefix + tensor.name in memory.arrays]
            for part in (io.inputs, io.outputs)
        ]
        self.inputs, self.outputs = (self._arrays(part, prefix) for part in self._places)

    def _arrays(self, places: list[str], prefix: str) -> Buffers:
        return {place.removeprefix(prefix): self._memory.arrays[place] for place in places}

    def upload(self) -> None:
        """Queue the copy of the inputs."""
        written, _ = self._places
        self._memory.upload(written[0], written[-1])

    def download(self) -> None:
        """Queue the copy of the outputs, if it reads any."""
        _, read = self._places
        if read:
            self._memory.download(read[0], read[-1])
