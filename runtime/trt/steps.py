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
from m2kit.runtime.cuda import Gpu
from m2kit.runtime.step_memory import StepMemory
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
        scratch = max(plan.scratch_bytes for plan in plans.values())
        self._memory = StepMemory(gpu, {g: (p.io, p.tensors) for g, p in plans.items()}, scratch)
        try:
            self.graphs = {
                graph: _StepGraph(gpu, self._memory, graph, plan) for graph, plan in plans.items()
            }
        except BackendError:
            self.close()
            raise

    def open(self, rows: int) -> Steps:
        """Steps of `rows` rows, the only ones that may run from now on."""
        self.lease = object()
        inter, intra = (TensorRTStep(self, graph, rows) for graph in contract.STEP_GRAPHS)
        return Steps(inter, intra)

    def close(self) -> None:
        """Release plans and memory."""
        self.lease = None
        for plan in self._plans.values():
            plan.close()
        self._memory.memory.free()


class _StepGraph:
    """One step graph, bound, warmed up and recorded.

    Attributes:
        launch: Queues its inputs, the plan and its outputs.
        recorded: "yes", or why it is not replayed as a CUDA graph.
        commits: For each position, what queues the copy of the new rows into the cache.
    """

    def __init__(self, gpu: Gpu, memory: StepMemory, graph: str, plan: OpenedPlan) -> None:
        """Bind, warm up and record."""
        self.plan = plan
        scratch = memory.memory.addresses["scratch"]
        plan.bind(gpu, memory.host(graph), memory.addresses(graph), scratch)
        self.launch = plan.queue
        self.recorded = self._record(gpu)
        self.commits = memory.commits(graph)

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
        written = dict(step.plan.host.inputs)
        self._position = written.pop(POSITION_INPUTS[graph])
        self.inputs = {name: array[:rows] for name, array in written.items()}
        self.outputs = {name: array[:rows] for name, array in step.plan.host.outputs.items()}
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
