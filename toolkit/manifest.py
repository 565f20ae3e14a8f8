"""bundle.json and engine.json: what a folder holds, where it came from, and whether it is intact.

Both files are one record, `Manifest`. It names every file with size and sha256, and carries a
digest of itself, so any change to any byte of the folder is found. It is a border: whoever forges
it makes its digest right too. So what is read is checked field by field, against itself and against
the spec; file names are plain names of regular files inside the folder; and graphs are held against
what they are recorded to take and give, before any of them is opened.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from m2kit.build import Build
from m2kit.config import ModelSpec
from m2kit.contract import ONNXRUNTIME, PORTABLE, TensorSpec
from m2kit.hashes import sha256_of_json
from m2kit.parity_report import ParityReport
from m2kit.precision import Precision
from m2kit.records import Count, JsonObject, Pattern, Text, to_json
from m2kit.sampling import SamplingDefaults

SCHEMA = 2
BUNDLE = "bundle"
ENGINE = "engine"
FileName = Annotated[str, Pattern(r"[A-Za-z0-9._-]{1,200}", "a plain file name")]
Sha256 = Annotated[str, Pattern(r"[0-9a-f]{64}", "a sha256")]
Kind = Annotated[str, Pattern(f"{BUNDLE}|{ENGINE}", f"{BUNDLE} or {ENGINE}")]
Lowering = Annotated[str, Pattern(f"{PORTABLE}|{ONNXRUNTIME}", f"{PORTABLE} or {ONNXRUNTIME}")]
Name = Annotated[str, Pattern(r"[^\x00-\x1f\x7f-\x9f]{1,255}", "a name without control characters")]


def manifest_name(kind: str) -> str:
    """File name of the manifest of a bundle or an engine."""
    return f"{kind}.json"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and hash of a file."""

    sha256: Sha256
    bytes: Count


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One graph in one lowering.

    Attributes:
        file: Its file; of a tokenizer graph's plans the one for the model's own image size.
        compute: Its compute type.
        ops: Operator -> number of nodes.
        inputs: Its contract's, in order.
        outputs: Likewise.
    """

    file: FileName
    compute: Literal["float32", "float16"]
    ops: dict[str, Count]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model came from.

    Attributes:
        checkpoint_sha256: Of the file.
        checkpoint_bytes: Its size.
        dtypes: Of its tensors.
        weights: "ema", "live" or "stored": which of them were taken.
        same_as: Published models of exactly this spec.
        assumed: Fields of the spec that nothing told, with the values taken.
        preset: The published model the user named.
        tokenizer_sha256: Of the file that replaced the tokenizer.
        tokenizer_weights: Which of its weights were taken.
    """

    checkpoint_sha256: Sha256
    checkpoint_bytes: Count
    dtypes: tuple[Text, ...]
    weights: Text
    same_as: tuple[Text, ...]
    assumed: dict[str, int | float | Text | tuple[int, ...]]
    preset: Text | None = None
    tokenizer_sha256: Sha256 | None = None
    tokenizer_weights: Text | None = None

    @property
    def weights_taken(self) -> dict[str, str]:
        """Which weights a model was made of."""
        taken = {"weights": self.weights, "tokenizer_weights": self.tokenizer_weights}
        return {name: which for name, which in taken.items() if which is not None}

    @property
    def tokenizer_file(self) -> tuple[str, str]:
        """Sha256 of the file that the tokenizer is from, and which of its weights were taken."""
        if self.tokenizer_sha256 is None:
            return self.checkpoint_sha256, self.weights
        return self.tokenizer_sha256, self.tokenizer_weights or self.weights


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of bundle.json or engine.json.

    Attributes:
        kind: "bundle" or "engine".
        name: The model's name, from the checkpoint's file name.
        spec: The architecture.
        precision: What the graphs compute in; int8 or int4: what the steps' weights are stored in.
        sampling: The model's own guidance, temperature, top_k and top_p; None for a tokenizer.
        lowerings: lowering -> graph -> entry.
        files: File name -> size and hash, of every file but the manifest itself.
        source: Where the model came from.
        versions: Versions of the tools that made it.
        parity: What was compared with what, and the result.
        maxima: graph -> value -> largest absolute value over the reference's inputs.
        moved_to_float: graph -> node -> the value that keeps it float32 in half precision.
        training: What the checkpoint says about its own training (may be empty).
        build: How an engine was built; None for a bundle.
    """

    kind: Kind
    name: Name
    spec: ModelSpec
    precision: Precision
    sampling: SamplingDefaults | None
    lowerings: dict[Lowering, dict[str, GraphEntry]]
    files: dict[str, FileEntry]
    source: Source
    versions: dict[str, Text]
    parity: ParityReport
    maxima: dict[str, dict[str, float]] = field(default_factory=dict)
    moved_to_float: dict[str, dict[str, float]] = field(default_factory=dict)
    training: JsonObject = field(default_factory=dict)
    build: Build | None = None

    def to_json(self) -> JsonObject:
        """The manifest as JSON, with schema version and digest."""
        value = to_json(self) | {"schema": SCHEMA}
        return value | {"digest": sha256_of_json(value)}

    @property
    def built(self) -> Build:
        """How this engine was built."""
        assert self.build is not None, "a bundle has no build"
        return self.build

    @property
    def has_plans(self) -> bool:
        """Whether its graphs are TensorRT plans; opening holds that against the backend."""
        return self.build is not None and bool(self.build.plans)

    @property
    def fused(self) -> dict[str, GraphEntry]:
        """The graphs of the onnxruntime lowering."""
        return self.lowerings.get(ONNXRUNTIME, {})

    def entries(self) -> Iterator[tuple[str, str, GraphEntry]]:
        """Lowering, graph and entry of every graph."""
        for lowering, graphs in self.lowerings.items():
            for graph, entry in graphs.items():
                yield lowering, graph, entry

    def graph_file(self, lowering: str, graph: str) -> str:
        """File name of one graph."""
        return self.lowerings[lowering][graph].file

    def rebuild_command(self, folder: Path, image_sizes: tuple[tuple[int, ...], ...] = ()) -> str:
        """The command that builds this engine again, for more image sizes where they are given."""
        build, engine = self.built, folder.resolve().name
        options = replace(build.options, image_sizes=(*build.options.image_sizes, *image_sizes))
        words = ["m2kit", "build-engine", build.bundle, "-o", engine, "--backend", build.backend]
        return shlex.join(words + options.words())
