"""Second moments of what a model's matmuls are given: X^T X over the rows that they read while the
exact model draws images of its own classes. No data set is needed, and the inputs are those that
drawing gives, with the model's own guidance and filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from m2kit import contract
from m2kit.config import TransformerSpec
from m2kit.contract import GraphIO, TensorSpec
from m2kit.manifest import Manifest
from m2kit.progress import Begin
from m2kit.runtime.backend import Step, Steps, WatchedStep
from m2kit.runtime.engine import Engine
from m2kit.runtime.ort.backend import OnnxRuntimeBackend
from m2kit.runtime.ort.library import path_text
from m2kit.sampling import Sampling

Read = tuple[str, str]  # a graph, and a value in it
_ROWS_TOGETHER = 256  # are added by one product
_IMAGES_AT_ONCE = 8  # keys and values of AR-L are 1.5 GB then
_ROWS_FOR_EACH = 4  # of the numbers in a row: emoji has KL 4.0e-3 with 3, 3.4e-3 with 6 and with 12
_SEED = 0


def images_needed(spec: TransformerSpec, rows_of_an_image: int) -> int:
    """Images that give every matmul of a transformer rows enough."""
    wanted = _ROWS_FOR_EACH * max(spec.width, spec.ffn_width)
    return -(-wanted // (rows_of_an_image * spec.positions))


def draw_moments(
    bundle: Path, source: Manifest, wanted: Mapping[Read, int], begin: Begin, stage: str
) -> dict[Read, npt.NDArray[np.float32]]:
    """Draw images of any classes with a bundle, and sum up what is read.

    Args:
        bundle: A float32 bundle with step graphs.
        source: Its manifest.
        wanted: What is read by a matmul -> numbers in a row of it, of the lowering that is run.
        begin: Called with the stage, which advances by a position of an image.
        stage: Its name.

    Returns:
        What is read -> (numbers, numbers) float32, X^T X of its rows X. The same each time, on one
        kind of machine and as many threads.
    """
    backend = _MomentsBackend(bundle, source, wanted)
    with Engine(source.spec, backend, defaults=source.sampling) as engine:
        spec, sampling = engine.transformer, Sampling(seed=_SEED)
        _, resolved = engine.check_draw([0], sampling)
        count = images_needed(spec, 2 if resolved.guided else 1)
        classes = np.random.Generator(np.random.Philox(_SEED)).integers(0, spec.classes, count)
        advance = begin(stage, count * spec.positions)
        for numbers in np.array_split(np.arange(count), -(-count // _IMAGES_AT_ONCE)):
            for _ in engine.generate(classes[numbers], sampling, image_numbers=numbers):
                advance(len(numbers))
    return {read: moments.total() for read, moments in backend.moments.items()}


class _Moments:
    """X^T X of rows that come a few at a time."""

    def __init__(self, size: int) -> None:
        self._sum = np.zeros((size, size), np.float32)
        self._rows = np.empty((_ROWS_TOGETHER, size), np.float32)
        self._held = 0

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Add rows (n, size)."""
        while len(rows):
            part, rows = np.split(rows, [_ROWS_TOGETHER - self._held])
            self._rows[self._held : self._held + len(part)] = part
            self._held += len(part)
            if self._held == _ROWS_TOGETHER:
                self._flush()

    def total(self) -> npt.NDArray[np.float32]:
        """(size, size) float32, of all rows so far."""
        self._flush()
        return self._sum

    def _flush(self) -> None:
        held = self._rows[: self._held]
        self._sum += held.T @ held
        self._held = 0


class _MomentsBackend(OnnxRuntimeBackend):
    """A bundle whose step graphs also give what some matmuls read; `moments` grows with each run.

    Attributes:
        moments: What is read -> of its rows.
    """

    def __init__(self, folder: Path, manifest: Manifest, wanted: Mapping[Read, int]) -> None:
        super().__init__(folder, manifest)
        self._sizes = wanted
        self.moments = {read: _Moments(size) for read, size in wanted.items()}

    def source(self, graph: str) -> str | bytes:
        """The graph with more outputs, over the folder's weights."""
        names = self._names(graph)
        if not names:
            return super().source(graph)
        model = ir.load(self.path(graph))
        for node in model.graph:
            model.graph.outputs.extend(value for value in node.outputs if value.name in names)
        data: bytes = ir.to_proto(model).SerializeToString()
        return data

    def options(self) -> Any:
        """With the folder where the weights of a graph in memory lie."""
        options = super().options()
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", path_text(self._folder)
        )
        return options

    def io(self, graph: str) -> GraphIO:
        """The graph's own inputs and outputs, and what is read."""
        io, names = super().io(graph), self._names(graph)
        if not names:
            return io
        read = tuple(
            TensorSpec(
                o.name, "float32", ("R", *[1] * (len(o.shape) - 2), self._sizes[graph, o.name])
            )
            for o in self.session(graph).get_outputs()
            if o.name in names
        )
        return GraphIO(io.inputs, (*io.outputs, *read))

    def open_steps(self, rows: int) -> Steps:
        """Step graphs that add to the moments at every run."""
        steps = super().open_steps(rows)
        return Steps(
            self._watched(steps.inter, contract.INTER_STEP),
            self._watched(steps.intra, contract.INTRA_STEP),
        )

    def _names(self, graph: str) -> set[str]:
        return {name for owner, name in self.moments if owner == graph}

    def _watched(self, step: Step, graph: str) -> WatchedStep:
        names = sorted(self._names(graph))
        read = [(self.moments[graph, name], step.outputs[name]) for name in names]

        def run(position: int) -> None:
            step.run(position)
            for moments, values in read:
                moments.add(values.reshape(-1, values.shape[-1]))

        return WatchedStep(step, run)
