"""Any ONNX file as a feature network, of pictures or of clips. What it takes is declared in a JSON
file beside it, of the same name (clip.onnx, clip.json):

    {"size": [224, 224], "resize": "PIL bicubic float", "range": [-1, 1]}

"range" is what black and full are to the network; or else "mean" and "std", three grey levels each
(0..255). "pooled", "spatial" and "logits" name outputs; without "pooled" the first one is it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from m2kit.errors import InputError
from m2kit.hashes import sha256_of_file
from m2kit.host import available_cores
from m2kit.records import BadRecord, Range, read_json, read_record
from m2kit.runtime.ort.library import load_onnxruntime, path_text
from m2kit.runtime.pictures import MOST_SIDE
from m2kit.training.evaluation.input_rule import InputRule, ranged
from m2kit.training.evaluation.picture_features import Features, checked
from m2kit.training.evaluation.protocol import printable

_FLOATS = "tensor(float)", "tensor(float16)", "tensor(double)"
_Side = Annotated[int, Range(1, MOST_SIDE)]


@dataclass(frozen=True, slots=True)
class _Declaration:
    """The JSON file beside an ONNX file."""

    size: tuple[_Side, _Side]
    resize: str
    range: tuple[float, float] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    pooled: str | None = None
    spatial: str | None = None
    logits: str | None = None

    def rule(self) -> InputRule:
        """For pictures."""
        if self.range is not None and self.mean is None and self.std is None:
            return ranged(self.size, self.resize, *self.range)
        if self.range is None and self.mean is not None and self.std is not None:
            return InputRule(self.size, self.resize, self.mean, self.std)
        raise InputError('expected either "range", or "mean" and "std"')


@dataclass(frozen=True, slots=True)
class _OnnxNetwork:
    """The FeatureNetwork of an ONNX session."""

    name: str
    dimensions: int
    sha256: str
    rule: InputRule
    session: Any
    outputs: dict[str, str]  # name in Features -> output
    batch: int | None  # pictures or clips that the file takes at once; None is any number

    def __call__(self, images: Tensor) -> Features:
        """As the protocol says."""
        given = self.rule(images.cpu())
        at_once = self.batch or len(given)
        starts = range(0, len(given), at_once)
        parts = [self._run(given[start : start + at_once]) for start in starts]
        joined = {name: torch.cat([part[name] for part in parts]) for name in self.outputs}
        return checked(self.name, joined)

    def _run(self, given: Tensor) -> dict[str, Tensor]:
        """Of at most a batch, which is filled up with grey where the file wants so many."""
        count = len(given)
        if self.batch:
            given = torch.cat([given, given.new_zeros(self.batch - count, *given.shape[1:])])
        feed = {self.session.get_inputs()[0].name: given.numpy()}
        try:
            found = self.session.run(list(self.outputs.values()), feed)
        except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
            raise InputError(
                f"{self.name} does not run on {len(given)} pictures: {_first_line(error)}; "
                "export it for any number of them, or for one"
            ) from error
        if any(part.shape[:1] != (len(given),) or part.ndim < 2 for part in found):
            shapes = ", ".join(str(part.shape) for part in found)
            raise InputError(
                f"{self.name}: expected outputs of (B, D) for B = {len(given)}, found {shapes:.200}"
            )
        parts = zip(self.outputs, map(torch.from_numpy, found), strict=True)
        return {name: part[:count].flatten(1) for name, part in parts}


def onnx_features(
    path: Path, rule: InputRule | None = None, frames: int | None = None
) -> _OnnxNetwork:
    """The network of an ONNX file, which runs on the CPU; it must hold its weights.

    Args:
        path: The file; its one input is (B, 3, H, W) float32, or (B, 3, T, H, W).
        rule: In place of the one that the JSON file beside it declares.
        frames: T; None is a network of pictures.

    Raises:
        InputError: A file is missing, is no such network, or no JSON file as above.
        Unavailable: Its features of grey are not finite.
        BackendError: onnxruntime is not installed.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: expected an ONNX file of a feature network")
    declared = _declared(path, rule)
    ort = load_onnxruntime("a feature network in an ONNX file")
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cores()
    try:
        session = ort.InferenceSession(path_text(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes and plain RuntimeErrors
        raise InputError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error
    own_rule = rule or declared.rule()
    extent = own_rule.size if frames is None else (frames, *own_rule.size)
    batch = _batch(path, session, extent)
    outputs = _outputs(path, session, declared)
    network = _OnnxNetwork(
        f"onnx:{printable(path.stem)}", 0, sha256_of_file(path), own_rule, session, outputs, batch
    )
    dimensions = network(torch.full((1, 3, *extent), 0.5)).pooled.shape[1]
    return _OnnxNetwork(network.name, dimensions, network.sha256, own_rule, session, outputs, batch)


def _declared(path: Path, rule: InputRule | None) -> _Declaration:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        if rule is not None:
            return _Declaration(rule.size, rule.resize)
        raise InputError(
            f"{beside} is missing: it says what {path.name} takes, such as "
            '{"size": [224, 224], "resize": "bilinear, antialias", "range": [0, 1]}'
        )
    try:
        declared = read_record(_Declaration, read_json(beside))
        declared.rule()
    except (BadRecord, InputError) as error:
        raise InputError(f"{beside}: {error}") from error
    return declared


def _batch(path: Path, session: Any, extent: tuple[int, ...]) -> int | None:
    """Pictures or clips, (*extent), that the file takes at once, None where it takes any number."""
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    expected = (3, *extent)
    fits = len(shape) == 1 + len(expected) and all(
        not isinstance(found, int) or found == wanted
        for found, wanted in zip(shape[1:], expected, strict=True)
    )
    if not fits or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{one.type} {one.shape}" for one in inputs)
        raise InputError(
            f"{path}: expected one input, tensor(float) of (B, {', '.join(map(str, expected))}); "
            f"found {found:.200}"
        )
    return shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None


def _outputs(path: Path, session: Any, declared: _Declaration) -> dict[str, str]:
    there = {output.name: output.type for output in session.get_outputs()}
    named = {name: getattr(declared, name) for name in ("pooled", "spatial", "logits")}
    named["pooled"] = named["pooled"] or next(iter(there))
    found = {name: output for name, output in named.items() if output}
    for output in found.values():
        if output not in there:
            raise InputError(f"{path} has no output {output}; it has {', '.join(there):.200}")
        if there[output] not in _FLOATS:
            raise InputError(
                f"{path}: expected floats of its output {output}, found {there[output]}"
            )
    return found


def _first_line(error: Exception) -> str:
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0]:.200}"
