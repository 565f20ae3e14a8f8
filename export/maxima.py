"""Absolute maxima of every float value inside the graphs, over the reference's inputs.

They decide later which nodes cannot be turned into half precision. Each graph is run with one more
output that holds the maxima of all its values, so that no intermediate array is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.contract import INTER_STEP, INTRA_STEP, PORTABLE, GraphIO, TensorSpec
from m2kit.export.writer import PROBE, GraphWriter
from m2kit.manifest import Manifest
from m2kit.runtime.backend import Opening, Step, Steps, WatchedStep
from m2kit.runtime.ort.backend import OnnxRuntimeBackend


class ProbeBackend(OnnxRuntimeBackend):
    """The exported graphs, watched: `maxima` grows with everything that is run."""

    def __init__(
        self, folder: Path, manifest: Manifest, writers: Mapping[str, GraphWriter]
    ) -> None:
        """Write the probe graphs into `folder`; `close` removes them."""
        super().__init__(folder, manifest, Opening(lowering=PORTABLE))
        self._paths = {graph: folder / f"probe_{graph}.onnx" for graph in writers}
        self._names = {g: writer.save_probe(self._paths[g]) for g, writer in writers.items()}
        self._maxima = {g: np.zeros(len(names), np.float32) for g, names in self._names.items()}

    def path(self, graph: str) -> Path:
        """The probe of a graph."""
        return self._paths[graph]

    def options(self) -> Any:
        """Nodes run in the order they are written, so that a maximum is taken at once."""
        options = super().options()
        options.execution_order = self.ort.ExecutionOrder.PRIORITY_BASED
        return options

    def io(self, graph: str) -> GraphIO:
        """The graph's own inputs and outputs, and the probe's."""
        io = super().io(graph)
        probe = TensorSpec(PROBE, "float32", (len(self._names[graph]),))
        return GraphIO(io.inputs, (*io.outputs, probe))

    def run(self, graph: str, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run a graph and note its maxima."""
        outputs = super().run(graph, feeds)
        np.maximum(self._maxima[graph], outputs.pop(PROBE), out=self._maxima[graph])
        return outputs

    def open_steps(self, rows: int) -> Steps:
        """Step graphs that note their maxima at every run."""
        steps = super().open_steps(rows)
        return Steps(
            inter=_watched(steps.inter, self._maxima[INTER_STEP]),
            intra=_watched(steps.intra, self._maxima[INTRA_STEP]),
        )

    def maxima(self) -> dict[str, dict[str, float]]:
        """graph -> value name -> absolute maximum so far, to four digits."""
        return {
            graph: {
                name: float(f"{value:.4g}")
                for name, value in zip(names, self._maxima[graph], strict=True)
            }
            for graph, names in self._names.items()
        }

    def __enter__(self) -> ProbeBackend:
        """The backend itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Drop the sessions and remove the probe graphs."""
        super().close()
        for path in self._paths.values():
            path.unlink()


def _watched(step: Step, maxima: npt.NDArray[np.float32]) -> WatchedStep:
    """The step, whose every run adds to the maxima."""

    def run(position: int) -> None:
        step.run(position)
        np.maximum(maxima, step.outputs[PROBE], out=maxima)

    return WatchedStep(step, run)
