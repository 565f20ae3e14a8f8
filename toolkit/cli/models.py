"""A model as a user names it, be it a checkpoint, a bundle or an engine, opened alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import m2kit
from m2kit.cli.checkpoints import read_named
from m2kit.cli.options import warn_of_quality
from m2kit.cli.reporting import manifest_of
from m2kit.errors import InputError, require
from m2kit.manifest import BUNDLE, Manifest
from m2kit.precision import Precision
from m2kit.records import JsonObject

if TYPE_CHECKING:
    from m2kit.runtime.engine import Engine
    from m2kit.training.checkpoints.hub import HubFile
    from m2kit.training.checkpoints.reading import Checkpoint


def is_token_file(target: Path | HubFile) -> TypeGuard[Path]:
    """Whether it is a file that is no checkpoint, but by its name tokens."""
    return isinstance(target, Path) and target.suffix == ".npz" and target.is_file()


def model_at(
    target: Path | HubFile, reading: JsonObject, *, what: str
) -> Manifest | Checkpoint | None:
    """The checkpoint, or the manifest of a bundle or engine; None where nothing of these is there.

    Args:
        target: What the user named.
        reading: The values of `checkpoint_options`.
        what: What needs torch to read a checkpoint, as the start of a sentence.

    Raises:
        InputError: Options that say how to read a checkpoint, and it is none.
    """
    if not isinstance(target, Path) or (target.is_file() and not is_token_file(target)):
        require("torch", extra="export", what=what)
        return read_named(target, **reading)
    given = [f"--{n}".replace("overrides", "spec") for n, value in reading.items() if value]
    if given:
        raise InputError(f"{' and '.join(given)} say how to read a checkpoint file")
    return manifest_of(target) if target.is_dir() else None


def open_model(
    target: Path | HubFile, model: Manifest | Checkpoint, provider: str | None = None
) -> Engine:
    """What `model_at` found, opened: a checkpoint by PyTorch, a half bundle in emulation.

    Args:
        target: What the user named.
        model: What it is.
        provider: Where an engine of ONNX Runtime runs.

    Raises:
        InputError: A provider for what is no engine.
    """
    from m2kit.runtime.engine import Engine
    from m2kit.runtime.opening import open_bundle

    if isinstance(model, Manifest):
        assert isinstance(target, Path)  # a manifest is of a folder
        if model.kind != BUNDLE:
            engine = m2kit.open_engine(target, provider=provider)
            warn_of_quality(target, engine)
            return engine
    if provider is not None:
        raise InputError(f"{target} is no engine, which alone runs elsewhere", option="--provider")
    if isinstance(model, Manifest):
        assert isinstance(target, Path)
        if model.precision is Precision.FLOAT32:
            return open_bundle(target)
        require("onnx_ir", extra="build", what="emulating half precision")
        from m2kit.engines.emulation import open_emulated

        return open_emulated(target)
    from m2kit.training.checkpoints.reading import model_from_checkpoint
    from m2kit.training.torch_backend import TorchBackend

    in_torch = model_from_checkpoint(model)
    return Engine(in_torch.spec, TorchBackend(in_torch), defaults=model.sampling)
