"""What the fields of a manifest say against one another, and against the spec.

A manifest's types are checked when it is read (records.py); this is the rest: whoever forges one
makes its digest right too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from m2kit import contract
from m2kit.build import Build
from m2kit.config import ModelSpec
from m2kit.contract import PLAN_SUFFIX, PORTABLE, REFERENCE_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from m2kit.manifest import GraphEntry, Manifest

_SPECIAL_NAMES = (".", "..", "bundle.json", "engine.json")


def contradictions(manifest: Manifest) -> Iterator[str]:
    """What the fields of a manifest say against one another."""
    spec, names = manifest.spec, contract.graph_names(manifest.spec)
    if (manifest.sampling is None) != (spec.transformer is None):
        yield "sampling: expected for a model with a transformer, and for no other"
    if manifest.sampling and len(manifest.sampling.guidance) != spec.sub_tokens:
        yield f"sampling.guidance: expected {spec.sub_tokens} values, one for each sub-token"
    if (manifest.build is None) != (manifest.kind == "bundle"):
        yield "build: expected for an engine, and for no bundle"
    if PORTABLE not in manifest.lowerings:
        yield f"lowerings: expected {PORTABLE} among them"
        return
    held = {graph for _, graph, _ in manifest.entries()}
    if held != set(names):
        yield f"lowerings: expected the graphs {', '.join(names)}, found {', '.join(sorted(held))}"
        return
    for lowering, graph, entry in manifest.entries():
        yield from _entry_contradictions(manifest, lowering, graph, entry)
    yield from _file_contradictions(manifest)
    if manifest.build is not None:
        yield from _build_contradictions(spec, manifest.build)


def _entry_contradictions(
    manifest: Manifest, lowering: str, graph: str, entry: GraphEntry
) -> Iterator[str]:
    where = f"lowerings.{lowering}.{graph}"
    if lowering != PORTABLE and graph not in contract.STEP_GRAPHS:
        yield f"{where}: only step graphs have that lowering"
        return
    io = contract.graph_io(manifest.spec, graph, lowering)
    if (entry.inputs, entry.outputs) != (io.inputs, io.outputs):
        yield f"{where}: its inputs and outputs are not those of the spec"
    if entry.compute != manifest.precision.compute:
        yield f"{where}.compute: expected {manifest.precision.compute}, found {entry.compute}"
    if entry.file not in manifest.files:
        yield f"{where}.file: {entry.file} is not listed in files"


def _file_contradictions(manifest: Manifest) -> Iterator[str]:
    files = [entry.file for _, _, entry in manifest.entries()]
    if len(set(files)) < len(files):
        yield "lowerings: two graphs share a file"
    if len({file.endswith(PLAN_SUFFIX) for file in files}) > 1:
        yield "lowerings: expected plans or ONNX graphs alone, found both"
    for name in manifest.files:
        if not _is_plain(name):
            yield f"files: {name!r:.60} is not a plain file name"
    needed = [REFERENCE_FILE] if manifest.has_plans else [REFERENCE_FILE, WEIGHTS_FILE]
    for name in needed:
        if name not in manifest.files:
            yield f"files: {name} is missing"


def _build_contradictions(spec: ModelSpec, build: Build) -> Iterator[str]:
    if build.rows is not None and build.rows % 2:
        yield f"build.rows: expected an even number, found {build.rows}"
    strides = spec.tokenizer.strides
    for size in build.image_sizes or ():
        if len(size) != len(strides) or any(n % s for n, s in zip(size, strides, strict=True)):
            yield f"build.image_sizes: {list(size)} are no multiples of {list(strides)}"
    if not _is_plain(build.bundle):
        yield f"build.bundle: {build.bundle!r:.60} is not a folder's name"


def _is_plain(name: str) -> bool:
    return name not in _SPECIAL_NAMES and not {"/", "\\", "\0"} & set(name) and name.isprintable()
