"""The two step graphs on TensorRT: one block of memory, one CUDA graph each, the KV cache committed
by one strided copy on the GPU.

A launch queues the copy of the inputs, the plan, and the copy of the logits; only the intra step,
whose logits are read, waits for the stream. The hidden state never leaves the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping

from m2kit import contract
from m2kit.errors import BackendError
from m2kit.runtime.backend import POSITION_INPUTS, Steps
from m2kit.runtime.cuda import CacheLayout, Gpu, Memory, size_bytes
from m2kit.runtime.trt.plan import OpenedPlan


class StepGraphs:
    """Both step graphs over one block of memory, for as many rows as the engine has.

    Attributes:
        lease: Of the steps that may run; None where none may.
        graphs: Graph -> what runs it.
    """

    def __init__(self, gpu: Gpu, plans: Mapping[str, OpenedPlan]) -> None:
        """Allocate, bind, warm up and record."""
        self.gpu, self._plans = gpu, plans
        self.lease: object = None
        caches = {graph: _layout(plan) for graph, plan in plans.items()}
        self.memory = self._allocate(caches)
        try:
            self.graphs = {
                graph: _StepGraph(gpu, self.memory, graph, plan, caches[graph])
                for graph, plan in plans.items()
            }
        except BackendError:
            self.close()
            raise

    def open(self, rows: int) -> Steps:
        """Steps of `rows` rows, the only ones that may run from now on."""
        self.lease = object()
        return Steps(*(TensorRTStep(self, graph, rows) for graph in contract.STEP_GRAPHS))

    def _allocate(self, caches: Mapping[str, CacheLayout]) -> Memory:
        """What the host writes, then what it reads, then what stays on the GPU; one scratch."""
        inter, intra = contract.STEP_GRAPHS
        shared: dict[str, tuple[tuple[int, ...], str]] = {}
        for graph, plan in self._plans.items():
            for tensor in plan.io.inputs:
                if not contract.is_past(tensor.name) and tensor.name != contract.HIDDEN:
                    shared[f"{graph}/{tensor.name}"] = plan.tensors[tensor.name]
        for tensor in self._plans[intra].io.outputs:
            if tensor.name != contract.PRESENT:
                shared[f"{intra}/{tensor.name}"] = self._plans[intra].tensors[tensor.name]
        private = {contract.HIDDEN: size_bytes(*self._plans[inter].tensors[contract.HIDDEN])}
        for graph, cache in caches.items():
            private[f"{graph}/{contract.PRESENT}"] = cache.present_bytes
            private[f"{graph}/cache"] = cache.bytes
        private["scratch"] = max(plan.scratch_bytes for plan in self._plans.values())
        return Memory(self.gpu, shared, private)

    def close(self) -> None:
        """Release plans and memory."""
        self.lease = None
        for plan in self._plans.values():
            plan.close()
        self.memory.free()


def _layout(plan: OpenedPlan) -> CacheLayout:
    """Of the past.* tensors of a plan."""
    names = tuple(t.name for t in plan.io.inputs if contract.is_past(t.name))
    return CacheLayout.of(names, *plan.tensors[names[0]])


class _StepGraph:
    """One step graph, bound, warmed up and recorded.

    Attributes:
        launch: Queues its inputs, the plan and its outputs.
        recorded: "yes", or why it is not replayed as a CUDA graph.
        commits: For each position, what queues the copy of the new rows into the cache.
    """

    def __init__(
        self, gpu: Gpu, memory: Memory, graph: str, plan: OpenedPlan, cache: CacheLayout
    ) -> None:
        """Bind, warm up and record."""
        self.plan, at = plan, memory.addresses
        addresses = cache.addresses(at[f"{graph}/cache"])
        for name in plan.tensors:
            if name not in addresses:
                addresses[name] = at[name if name == contract.HIDDEN else f"{graph}/{name}"]
        plan.bind(gpu, memory, addresses, prefix=f"{graph}/")
        self.launch = plan.queue
        self.recorded = self._record(gpu)
        self.commits = gpu.strided_copies(addresses[contract.PRESENT], at[f"{graph}/cache"], cache)

    def _record(self, gpu: Gpu) -> str:
        self.plan.queue()  # TensorRT allocates what it still needs in the first run
        gpu.synchronize()
        capturable = getattr(self.plan.context, "is_stream_capturable", None)  # TensorRT-RTX
        if capturable is not None and not capturable(gpu.stream):
            return "no: the plan cannot be captured on this stream"
        try:
            self.launch = gpu.capture(self.plan.queue)
        except BackendError as error:
            return f"no: {error}"
        return "yes"


class TensorRTStep:
    """One step graph. Inputs may be written again once the next intra run has returned."""

    def __init__(self, graphs: StepGraphs, graph: str, rows: int) -> None:
        """Views of one graph's buffers."""
        step = graphs.graphs[graph]
        self._graphs, self._lease, self._step = graphs, graphs.lease, step
        written = dict(step.plan.inputs)
        self._position = written.pop(POSITION_INPUTS[graph])
        self.inputs = {name: array[:rows] for name, array in written.items()}
        self.outputs = {name: array[:rows] for name, array in step.plan.outputs.items()}
        self._padding = [(a[rows:], a[rows - 1 : rows]) for a in written.values() if rows < len(a)]

    def reset(self) -> None:
        """Begin a new sequence; rows written before are masked, so nothing is cleared.

        Raises:
            BackendError: Another generation has begun on this engine since.
        """
        if self._graphs.lease is not self._lease:
            raise BackendError(
                "another generation has begun on this engine, or it was closed; a TensorRT engine "
                "holds one generation at a time: finish it before the next, or open it twice"
            )

    def run(self, position: int) -> None:
        """Compute one position; it sees the positions committed before it.

        Raises:
            BackendError: Another generation has begun on this engine since, or CUDA failed.
        """
        if self._graphs.lease is not self._lease:
            self.reset()
        self._position[0] = position
        for padding, last in self._padding:
            padding[:] = last
        self._step.launch()
        if self.outputs:  # logits, which are read
            self._graphs.gpu.synchronize()

    def commit(self, position: int) -> None:
        """Append what the last run computed to the cache, at `position`: one copy on the GPU."""
        self._step.commits[position]()
