"""bundle.json and engine.json as files: written last, and checked when they are read.

What is read is checked field by field (records.py), and its fields against one another and against
the spec.
"""

from __future__ import annotations

import functools
import json
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from m2kit import contract
from m2kit.build import Build
from m2kit.contract import ONNXRUNTIME, PLAN_SUFFIX, PORTABLE, REFERENCE_FILE, WEIGHTS_FILE
from m2kit.errors import FolderError, SpecError
from m2kit.families.sizes import fits
from m2kit.hashes import sha256_of_file, sha256_of_json
from m2kit.manifest import BUNDLE, ENGINE, SCHEMA, FileEntry, Manifest, manifest_name
from m2kit.outputs import check_new_folder, is_leftover, new_folder
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


def new_model_folder(destination: Path, kind: str) -> AbstractContextManager[Path]:
    """A temporary folder that becomes a bundle or an engine when the block ends without an error.

    Raises:
        FolderError: The destination cannot be written, or `check_replaceable` refuses it.
    """
    return new_folder(destination, functools.partial(check_replaceable, kind=kind))


def check_model_folder(destination: Path, kind: str) -> None:
    """Refuse what `new_model_folder` would, before any work is spent on it.

    Raises:
        FolderError: As `new_model_folder`.
    """
    check_new_folder(destination, functools.partial(check_replaceable, kind=kind))


def check_replaceable(folder: Path, kind: str) -> None:
    """Refuse to replace what is not a folder of this kind that m2kit wrote, of any schema, with
    nothing in it but what its manifest lists.

    Raises:
        FolderError: It is something else, or holds files of others.
    """
    name, cure = manifest_name(kind), "or choose another output"
    what = f"{folder} exists and will not be replaced"
    if not (folder / name).is_file():
        raise FolderError(f"{what}: it holds no {name}; remove it {cure}", option="-o")
    try:
        value, entries = read_json(folder / name), sorted(folder.iterdir())
        digest = value.pop("digest") if isinstance(value, dict) else None
        if digest != sha256_of_json(value) or not isinstance(value["files"], dict):
            raise BadRecord("not as m2kit wrote it")
    except (BadRecord, KeyError, OSError) as error:
        raise FolderError(
            f"{what}: its {name} is not m2kit's; remove it {cure}", option="-o"
        ) from error
    own = {name, *value["files"]}
    strangers = [
        path.name
        for path in entries
        if path.is_dir() or not (path.name in own or is_leftover(path.name))
    ]
    if strangers:
        shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        raise FolderError(
            f"{what}: {name} does not list {shown}; move that away {cure}", option="-o"
        )


def files_table(folder: Path) -> dict[str, FileEntry]:
    """Size and sha256 of every file in a folder."""
    return {
        path.name: FileEntry(sha256_of_file(path), path.stat().st_size)
        for path in sorted(folder.iterdir())
    }


def kind_of_folder(folder: Path) -> str | None:
    """ "bundle", "engine", or None for anything else."""
    kinds = (kind for kind in (BUNDLE, ENGINE) if (folder / manifest_name(kind)).is_file())
    return next(kinds, None)


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
        _refuse_contradictions(manifest)
    except (BadRecord, SpecError) as error:
        raise FolderError(f"{path}: {error}; {REMAKE[kind]}") from error
    order = sorted(manifest.lowerings, key=(PORTABLE, ONNXRUNTIME).index)  # JSON is sorted
    return replace(manifest, lowerings={name: manifest.lowerings[name] for name in order})


def _article(kind: str) -> str:
    return f"an {kind}" if kind == ENGINE else f"a {kind}"


def _refuse_contradictions(manifest: Manifest) -> None:
    """Hold the fields of a manifest against one another and against the spec."""
    spec, precision = manifest.spec, manifest.precision
    graphs = set(contract.graph_names(spec))
    expected = ", ".join(contract.graph_names(spec))
    if (manifest.sampling is None) != (spec.transformer is None):
        raise BadRecord("sampling: expected for a model with a transformer, and for no other")
    if manifest.sampling and len(manifest.sampling.guidance) != spec.sub_tokens:
        raise BadRecord(f"sampling.guidance: expected {spec.sub_tokens} values, one a sub-token")
    if (manifest.build is None) != (manifest.kind == BUNDLE):
        raise BadRecord("build: expected for an engine, and for no bundle")
    if PORTABLE not in manifest.lowerings:
        raise BadRecord(f"lowerings: expected {PORTABLE} among them")
    portable, fused = set(manifest.lowerings[PORTABLE]), set(manifest.fused)
    steps = graphs & set(contract.STEP_GRAPHS)
    if portable != (graphs - steps if precision.quantized and fused else graphs):
        found = ", ".join(sorted(portable))
        raise BadRecord(f"lowerings.portable: expected the graphs {expected}, found {found}")
    if fused and fused != steps:
        raise BadRecord(f"lowerings.{ONNXRUNTIME}: expected {sorted(steps)}, found {sorted(fused)}")
    if manifest.kind == BUNDLE and precision.quantized:
        raise BadRecord(f"precision: a bundle is float32 or float16, found {precision.value}")
    moved = sorted(set(manifest.moved_to_float) - graphs)
    if moved:
        raise BadRecord(f"moved_to_float: expected graphs, found {moved[:3]}")
    if set(manifest.maxima) != graphs:
        raise BadRecord(f"maxima: expected the graphs {expected}")
    _check_entries(manifest)
    _check_files(manifest)
    if manifest.build is not None:
        _check_build(manifest, manifest.build)


def _check_entries(manifest: Manifest) -> None:
    compute = manifest.precision.compute
    for lowering, graph, entry in manifest.entries():
        where = f"lowerings.{lowering}.{graph}"
        io = contract.graph_io(manifest.spec, graph, lowering)
        if (entry.inputs, entry.outputs) != (io.inputs, io.outputs):
            raise BadRecord(f"{where}: its inputs and outputs are not those of the spec")
        if entry.compute != compute:
            raise BadRecord(f"{where}.compute: expected {compute}, found {entry.compute}")
        if entry.file not in manifest.files:
            raise BadRecord(f"{where}.file: {entry.file} is not listed in files")


def _check_files(manifest: Manifest) -> None:
    files = [entry.file for _, _, entry in manifest.entries()]
    if len(set(files)) < len(files):
        raise BadRecord("lowerings: two graphs share a file")
    suffix = PLAN_SUFFIX if manifest.has_plans else ".onnx"
    for file in files:
        if not file.endswith(suffix):
            raise BadRecord(f"lowerings: expected files ending in {suffix}, found {file}")
    for name, entry in manifest.files.items():
        if not _is_plain(name):
            raise BadRecord(f"files: {name!r:.60} is not a plain file name")
        if not entry.bytes and name.endswith(suffix):
            raise BadRecord(f"files.{name}.bytes: is 0")
    needed = [REFERENCE_FILE] if manifest.has_plans else [REFERENCE_FILE, WEIGHTS_FILE]
    for name in needed:
        if name not in manifest.files:
            raise BadRecord(f"files: {name} is missing")


def _check_build(manifest: Manifest, build: Build) -> None:
    spec, graphs = manifest.spec, set(contract.graph_names(manifest.spec))
    for size in build.image_sizes or ():
        if not fits(spec.tokenizer, size):
            raise BadRecord(f"build.image_sizes: the model takes none of {list(size)}")
    if build.options.precision not in (AUTO, manifest.precision):
        raise BadRecord(f"build.options.precision: the engine is {manifest.precision.value}")
    if (build.quantization is not None) != manifest.precision.quantized:
        raise BadRecord("build.quantization: expected for int8 and int4, and for nothing else")
    if build.weight_bytes is not None and set(build.weight_bytes.graphs) != graphs:
        raise BadRecord(f"build.weight_bytes.graphs: expected {', '.join(sorted(graphs))}")
    if build.target.gpu is not None and not build.target.compute_capabilities:
        raise BadRecord("build.target.compute_capabilities: expected that of the GPU")
    if not _is_plain(build.bundle):
        raise BadRecord(f"build.bundle: {build.bundle!r:.60} is not a folder's name")
    if build.rows is not None and build.rows % 2:
        raise BadRecord(f"build.rows: expected an even number, found {build.rows}")
    if manifest.has_plans:
        _check_plans(manifest, build)
    elif build.rows is not None or build.image_sizes is not None:
        raise BadRecord("build.rows, build.image_sizes: expected of plans alone")


def _check_plans(manifest: Manifest, build: Build) -> None:
    """Plans are of fixed shapes: each of them is listed under the name it is opened by."""
    spec = manifest.spec
    if set(build.plans) != set(contract.graph_names(spec)):
        raise BadRecord("build.plans: expected one for each graph")
    if not build.image_sizes or build.rows != 2 * (build.options.batch or 0):
        raise BadRecord("build.rows, build.image_sizes: expected twice the batch, and sizes")
    for graph, entry in manifest.lowerings[PORTABLE].items():
        where, own = f"lowerings.portable.{graph}.file", graph in contract.tokenizer_graphs(spec)
        sizes = build.image_sizes if own else (None,)
        names = [contract.plan_file(graph, size) for size in sizes]
        if entry.file != names[0]:
            raise BadRecord(f"{where}: expected {names[0]}, found {entry.file}")
        for name in names:
            if name not in manifest.files:
                raise BadRecord(f"files: {name} is missing")


def _is_plain(name: str) -> bool:
    return name not in _SPECIAL_NAMES and not {"/", "\\", "\0"} & set(name) and name.isprintable()
