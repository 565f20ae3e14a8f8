"""bundle.json and engine.json as files: written last, and checked when they are read.

What is read is checked field by field (records.py), and its fields against one another and against
the spec.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from m2kit import contract
from m2kit.build import Build
from m2kit.contract import ONNXRUNTIME, PLAN_SUFFIX, PORTABLE, REFERENCE_FILE, WEIGHTS_FILE
from m2kit.errors import FolderError, SpecError
from m2kit.folders import sha256_of_file, sha256_of_json
from m2kit.manifest import BUNDLE, ENGINE, SCHEMA, FileEntry, GraphEntry, Manifest, manifest_name
from m2kit.precision import AUTO
from m2kit.records import BadRecord, read_json, read_record

REMAKE = {
    BUNDLE: "export it again with `m2kit export`",
    ENGINE: "build it again with `m2kit build-engine`",
}
_SPECIAL_NAMES = (".", "..", *map(manifest_name, (BUNDLE, ENGINE)))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into its folder; do it last."""
    path = folder / manifest_name(manifest.kind)
    path.write_text(manifest_text(manifest), encoding="utf-8")


def manifest_text(manifest: Manifest) -> str:
    """What the manifest's file holds."""
    return json.dumps(manifest.to_json(), indent=1, sort_keys=True) + "\n"


def files_table(folder: Path) -> dict[str, FileEntry]:
    """Size and sha256 of every file in a folder."""
    return {
        path.name: FileEntry(sha256_of_file(path), path.stat().st_size)
        for path in sorted(folder.iterdir())
    }


def kind_of_folder(folder: Path) -> str | None:
    """ "bundle", "engine", or None for anything else."""
    for kind in (BUNDLE, ENGINE):
        if (folder / manifest_name(kind)).is_file():
            return kind
    return None


def read_manifest(folder: Path, kind: str) -> Manifest:
    """The manifest of a bundle or engine folder: schema, digest and every field checked, files not.

    Raises:
        FolderError: No such folder, the other kind, unreadable, another schema, changed, or its
            content cannot be.
    """
    path = folder / manifest_name(kind)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise FolderError(f"{folder}: expected {_article(kind)} folder, found {found}")
    if not path.is_file():
        other = kind_of_folder(folder)
        found = _article(other) if other else f"no {path.name}"
        raise FolderError(f"{folder}: expected {_article(kind)} folder, found {found}")
    try:
        value = read_json(path)
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise FolderError(
                f"{path} has schema version {schema!r:.40}, this m2kit reads version {SCHEMA}; "
                f"{REMAKE[kind]} or install the m2kit that wrote it"
            )
        digest = value.pop("digest", None)
        if digest != sha256_of_json(value):
            raise FolderError(f"{path} was changed after it was written; {REMAKE[kind]}")
        del value["schema"]
        manifest = read_record(Manifest, value)
        if manifest.kind != kind:
            raise BadRecord(f"kind: expected {kind}, found {manifest.kind}")
        problem = next(_contradictions(manifest), None)
        if problem is not None:
            raise BadRecord(problem)
    except (BadRecord, SpecError) as error:
        raise FolderError(f"{path}: {error}; {REMAKE[kind]}") from error
    order = sorted(manifest.lowerings, key=(PORTABLE, ONNXRUNTIME).index)  # JSON is sorted
    return replace(manifest, lowerings={name: manifest.lowerings[name] for name in order})


def _article(kind: str) -> str:
    return f"an {kind}" if kind == ENGINE else f"a {kind}"


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What the fields of a manifest say against one another."""
    spec, names = manifest.spec, contract.graph_names(manifest.spec)
    if (manifest.sampling is None) != (spec.transformer is None):
        yield "sampling: expected for a model with a transformer, and for no other"
    if manifest.sampling and len(manifest.sampling.guidance) != spec.sub_tokens:
        yield f"sampling.guidance: expected {spec.sub_tokens} values, one for each sub-token"
    if (manifest.build is None) != (manifest.kind == BUNDLE):
        yield "build: expected for an engine, and for no bundle"
    if PORTABLE not in manifest.lowerings:
        yield f"lowerings: expected {PORTABLE} among them"
        return
    portable, fused = set(manifest.lowerings[PORTABLE]), set(manifest.fused)
    steps = set(names) & set(contract.STEP_GRAPHS)
    quantized = manifest.precision.quantized and fused
    if portable != (set(names) - steps if quantized else set(names)):
        found = ", ".join(sorted(portable))
        yield f"lowerings.portable: expected the graphs {', '.join(names)}, found {found}"
        return
    if fused and fused != steps:
        yield f"lowerings.{ONNXRUNTIME}: expected {sorted(steps)}, found {sorted(fused)}"
        return
    if manifest.kind == BUNDLE and manifest.precision.quantized:
        yield f"precision: a bundle is float32 or float16, found {manifest.precision.value}"
    for field in (manifest.maxima, manifest.moved_to_float):
        if set(field) - set(names):
            yield f"maxima, moved_to_float: expected graphs, found {sorted(field)[:3]}"
    if set(manifest.maxima) != set(names):
        yield f"maxima: expected the graphs {', '.join(names)}"
    for lowering, graph, entry in manifest.entries():
        yield from _entry_contradictions(manifest, lowering, graph, entry)
    yield from _file_contradictions(manifest)
    if manifest.build is not None:
        yield from _build_contradictions(manifest, manifest.build)


def _entry_contradictions(
    manifest: Manifest, lowering: str, graph: str, entry: GraphEntry
) -> Iterator[str]:
    where = f"lowerings.{lowering}.{graph}"
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
    suffix = PLAN_SUFFIX if manifest.has_plans else ".onnx"
    for file in files:
        if not file.endswith(suffix):
            yield f"lowerings: expected files ending in {suffix}, found {file}"
    for name, entry in manifest.files.items():
        if not _is_plain(name):
            yield f"files: {name!r:.60} is not a plain file name"
        if not entry.bytes and name.endswith(suffix):
            yield f"files.{name}.bytes: is 0"
    needed = [REFERENCE_FILE] if manifest.has_plans else [REFERENCE_FILE, WEIGHTS_FILE]
    for name in needed:
        if name not in manifest.files:
            yield f"files: {name} is missing"


def _build_contradictions(manifest: Manifest, build: Build) -> Iterator[str]:
    spec, graphs = manifest.spec, set(contract.graph_names(manifest.spec))
    strides = spec.tokenizer.strides
    for size in build.image_sizes or ():
        if len(size) != len(strides) or any(n % s for n, s in zip(size, strides, strict=True)):
            yield f"build.image_sizes: {list(size)} are no multiples of {list(strides)}"
            return
    if build.options.precision not in (AUTO, manifest.precision):
        yield f"build.options.precision: the engine is {manifest.precision.value}"
    if (build.quantization is not None) != manifest.precision.quantized:
        yield "build.quantization: expected for int8 and int4, and for nothing else"
    if build.weight_bytes is not None and set(build.weight_bytes.graphs) != graphs:
        yield f"build.weight_bytes.graphs: expected {', '.join(sorted(graphs))}"
    if build.target.gpu is not None and not build.target.compute_capabilities:
        yield "build.target.compute_capabilities: expected that of the GPU"
    if not _is_plain(build.bundle):
        yield f"build.bundle: {build.bundle!r:.60} is not a folder's name"
    if build.rows is not None and build.rows % 2:
        yield f"build.rows: expected an even number, found {build.rows}"
    if manifest.has_plans:
        yield from _plan_contradictions(manifest, build)
    elif build.rows is not None or build.image_sizes is not None:
        yield "build.rows, build.image_sizes: expected of plans alone"


def _plan_contradictions(manifest: Manifest, build: Build) -> Iterator[str]:
    """Plans are of fixed shapes: each of them is listed under the name it is opened by."""
    spec = manifest.spec
    if set(build.plans) != set(contract.graph_names(spec)):
        yield "build.plans: expected one for each graph"
        return
    if not build.image_sizes or build.rows != 2 * (build.options.batch or 0):
        yield "build.rows, build.image_sizes: expected twice the batch, and sizes"
        return
    for graph, entry in manifest.lowerings[PORTABLE].items():
        own = graph in contract.tokenizer_graphs(spec)
        sizes = build.image_sizes if own else (None,)
        names = [contract.plan_file(graph, size) for size in sizes]
        if entry.file != names[0]:
            yield f"lowerings.portable.{graph}.file: expected {names[0]}, found {entry.file}"
        for name in names:
            if name not in manifest.files:
                yield f"files: {name} is missing"


def _is_plain(name: str) -> bool:
    return name not in _SPECIAL_NAMES and not {"/", "\\", "\0"} & set(name) and name.isprintable()
