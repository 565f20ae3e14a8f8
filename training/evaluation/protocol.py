"""What a number is of: the protocol that a model was measured by, and results that carry it.

Two numbers compare only where everything but the model was alike: data to the last pixel, crop,
rounding, feature network, counts and seeds, and which of a file's weights were taken. These fields
make the protocol's id; names of data do not, as another folder's name is no other data. What
describes the model that was measured, its precision, backend and sampling among it, is told beside
them and may differ: an int8 engine is put beside a float32 one.

The named protocols are those of published numbers; an option that says otherwise changes the id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from m2kit.errors import InputError
from m2kit.hashes import sha256_of_json
from m2kit.manifest import Name, Sha256
from m2kit.records import (
    BadRecord,
    Count,
    JsonObject,
    Pattern,
    Range,
    Text,
    checked_fields,
    read_json,
    read_record,
    to_json,
)
from m2kit.runtime.images import Rounding
from m2kit.sampling import OFF, ResolvedSampling, SamplingDefaults

Task = Literal["reconstruction", "generation"]
Split = Literal["all", "train", "held-out"]
ProtocolName = Literal["adm", "open-magvit2", "open-magvit2-video", "pytorch-fid", "clean"]
FeaturesOf = Literal["float", "uint8", "uint8, originals too"]
Size = Annotated[tuple[int, ...], Range(2, 2)]
Extent = Annotated[tuple[int, ...], Range(2, 3)]
Short = Annotated[str, Pattern(r"[^\x00-\x1f\x7f-\x9f]{0,400}", "text without control characters")]
Metric = Annotated[str, Pattern("[a-z0-9_]{1,40}", "the name of a metric")]
Reason = Annotated[str, Pattern(r"[^\x00-\x1f\x7f-\x9f]{1,4000}", "text, one line")]
ALL: Final = "all"
TRAIN: Final = "train"
HELD_OUT: Final = "held-out"
_DIGITS = 10  # of the hash in an id
_LETTERS = 200  # of a name
_TOLD = (  # beside the id: the model, and names of what a sha256 tells apart
    *("model", "model_sha256", "precision", "backend", "sampling"),
    *("data", "reference"),
)


@dataclass(frozen=True, slots=True)
class Named:
    """What a named protocol says; a command's options say otherwise.

    Attributes:
        network: Feature network.
        resize: How pictures are scaled for it; None is the network's own way.
        features_of: What it sees of reconstructions, as they are or of 8 bits a colour; of
            originals, what their file has, or what the same rule makes of it.
        uint8: How floats become 8 bits.
        per_class: Generated images of each class; 0 where none are generated.
        source: Whose it is.
        clips: Whether it is of clips, and not of pictures.
    """

    network: str
    resize: str | None
    features_of: FeaturesOf
    uint8: Rounding
    per_class: int
    source: str
    clips: bool = False


PROTOCOLS: dict[str, Named] = {
    "adm": Named(
        "inception-tf", None, "uint8", "truncate", 50, "openai/guided-diffusion, evaluator.py"
    ),
    "open-magvit2": Named(
        "inception-pytorch-fid", None, "float", "truncate", 50, "SEED-Voken, evaluation_image.py"
    ),
    "pytorch-fid": Named(
        "inception-pytorch-fid", None, "uint8", "truncate", 50, "mseitzer/pytorch-fid"
    ),
    "clean": Named(
        "inception-tf", "PIL bicubic float", "uint8", "truncate", 50, "GaParmar/clean-fid"
    ),
    "open-magvit2-video": Named(
        *("i3d", None, "uint8, originals too", "truncate", 0),
        source="SEED-Voken, evaluation_video.py",
        clips=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Network:
    """A network whose outputs are compared.

    Attributes:
        name: Of the network and its weights.
        sha256: Of the weights file.
        size: Height and width that pictures are scaled to; None leaves them as they are.
        resize: How.
        values: What range it takes.
    """

    name: Name
    sha256: Sha256
    size: Size | None = None
    resize: Short = ""
    values: Short = ""


@dataclass(frozen=True, slots=True)
class Drawn(SamplingDefaults):
    """How images were drawn, one value per sub-token, but for the seed."""

    greedy: bool

    @classmethod
    def by(cls, sampling: ResolvedSampling) -> Drawn:
        """What a sampling tells."""
        return cls(**{name: getattr(sampling, name) for name in OFF}, greedy=sampling.greedy)


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a model was measured, and which.

    Attributes:
        name: The named protocol it began from.
        task: What was measured.
        data: Title of the data set.
        data_sha256: Of the measured pixels: of originals, cropped, in order, with their sizes; of
            labels and names of groups alone, where no pixel of them was measured.
        split: Which half of the data.
        images: Pictures that were measured: originals, or generated ones; or clips.
        unread: Pictures of the data that could not be read, and are left out; or films, of both
            halves.
        crop: "centre", or "none": whole pictures, framed in mid-grey up to what the model takes,
            one by one, and cut back.
        resize: How pictures were scaled before they were cropped.
        size: Height and width of a crop, of clips behind their frames; None is each picture's own.
        uint8: How floats become 8 bits a colour, of originals and of what a model makes.
        features_of: What the feature network sees of what a model makes; of originals, what their
            file has, or what became of it by the rule for 8 bits.
        weights: Which weights of its file the tokenizer has: "ema", "live", or "stored" in an AR
            file; "unknown" of samples that do not tell.
        network: The feature network; None where there was none.
        perceptual: The network of LPIPS; None where there was none.
        classifier: What judged classes; None where nothing did.
        reference: What pictures were compared with.
        reference_sha256: Of a file of statistics; None where they are of the data.
        per_class: Generated images of each class; None of reconstructions.
        seed: They were drawn with; None where nothing was drawn, or samples do not tell.
        model: What was measured: a file's or folder's name.
        model_sha256: Of a checkpoint; of a folder, of its files' hashes.
        precision: What it computes in.
        backend: What computed.
        sampling: How was drawn, every value filled in; None of reconstructions.
        training_sha256: Of the training pictures that copies were looked for among, where these are
            none of the measured ones; else None.
        classes: That images were drawn of, where these are not those of the data; else None.
        clip: Which frames of which films; None of pictures.
        short: Films of the data, of both halves, that have fewer frames than a clip, and are left
            out; None of pictures.
    """

    name: ProtocolName
    task: Task
    data: Short
    data_sha256: Sha256
    split: Split
    images: Count
    unread: Count
    crop: Literal["centre", "none"]
    resize: Short
    size: Extent | None
    uint8: Rounding
    features_of: FeaturesOf
    weights: Text
    network: Network | None
    perceptual: Network | None
    classifier: Short | None
    reference: Short
    reference_sha256: Sha256 | None
    per_class: Count | None
    seed: Count | None
    model: Name
    model_sha256: Sha256
    precision: Text
    backend: Short
    sampling: Drawn | None
    training_sha256: Sha256 | None = None
    classes: tuple[Count, ...] | None = None
    clip: Short | None = None
    short: Count | None = None

    def __post_init__(self) -> None:
        """Refuse, before anything is measured, what a result could not be read with."""
        checked_fields(self, "protocol", InputError)

    @property
    def words(self) -> str:
        """What was measured."""
        return "images" if self.clip is None else "clips"

    @property
    def compared(self) -> JsonObject:
        """The fields that must be alike for numbers to compare, as JSON values."""
        return {name: v for name, v in to_json(self).items() if name not in _TOLD}

    @property
    def id(self) -> str:
        """The name and the first digits of the sha256 of what must be alike."""
        return f"{self.name}-{sha256_of_json(self.compared)[:_DIGITS]}"


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured.

    Attributes:
        protocol: How.
        metrics: Name -> value; None where it could not be computed.
        reasons: Name -> why, of those.
        images: Pictures that were measured.
    """

    protocol: Protocol
    metrics: dict[Metric, float | None]
    reasons: dict[Metric, Reason]
    images: Count

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        missing = {name for name, value in self.metrics.items() if value is None}
        if odd := sorted(missing ^ set(self.reasons)):
            raise InputError(f"reasons: expected one for each metric without a value; see {odd[0]}")
        if self.images != self.protocol.images:
            raise InputError(f"images: expected {self.protocol.images}, found {self.images}")

    def to_json(self) -> JsonObject:
        """As a result.json has it."""
        protocol = {"id": self.protocol.id} | to_json(self.protocol)
        return {
            "protocol": protocol,
            "metrics": dict(self.metrics),
            "reasons": dict(self.reasons),
            "images": self.images,
        }


def printable(name: str) -> str:
    """A file's name as a protocol has it: cut, and escaped where it has odd characters."""
    return (name if name.isprintable() else ascii(name)[1:-1])[:_LETTERS]


def result_from_json(value: Any) -> Result:
    """A result that `Result.to_json` wrote.

    Raises:
        BadRecord: A field is not what it should be, or the protocol's id is another's.
    """
    if not isinstance(value, dict) or not isinstance(value.get("protocol"), dict):
        raise BadRecord("protocol: expected an object with the fields of a protocol")
    told = dict(value["protocol"])
    found = told.pop("id", None)
    result = read_record(Result, {**value, "protocol": told})
    if found != result.protocol.id:
        raise BadRecord(
            f"protocol.id: expected {result.protocol.id}, which its fields make, found "
            f"{found!r:.60}; it was changed since it was measured"
        )
    return result


def read_result(path: Path) -> Result:
    """A result.json.

    Raises:
        InputError: It cannot be read, or a field is not what it should be; the message names it.
    """
    try:
        return result_from_json(read_json(path))
    except OSError as error:
        raise InputError(f"{path}: cannot read this result: {error.strerror}") from error
    except BadRecord as error:
        raise InputError(f"{path}: expected a result of `m2kit evaluate`: {error}") from error


def check_same_protocol(results: Mapping[str, Result]) -> None:
    """Refuse to put numbers of different protocols beside one another.

    Args:
        results: By what they are called.

    Raises:
        InputError: A protocol differs; the message names the fields, and what they are.
    """
    (first, one), *others = results.items()
    expected = one.protocol.compared
    for name, other in others:
        found = other.protocol.compared
        odd = [field for field in expected | found if expected.get(field) != found.get(field)]
        if odd:
            differ = "; ".join(_difference(f, expected.get(f), found.get(f)) for f in odd)
            raise InputError(
                f"{first} ({one.protocol.id}) and {name} ({other.protocol.id}) were measured by "
                f"different protocols, so their numbers do not compare: {differ}; measure both "
                "alike"
            )


def _difference(field: str, one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        odd = next(name for name in one | other if one.get(name) != other.get(name))
        return _difference(f"{field}.{odd}", one.get(odd), other.get(odd))
    shown = ("none" if value is None else f"{value!s:.60}" for value in (one, other))
    return f"{field} is " + " and ".join(shown)


def model_labels(results: Sequence[Result]) -> list[str]:
    """What to call each result's model: its name, and whatever else of it differs among them."""
    told = []
    for protocol in (result.protocol for result in results):
        own = {"precision": protocol.precision, "backend": protocol.backend}
        drawn = {} if protocol.sampling is None else to_json(protocol.sampling)
        told.append({"": protocol.model} | own | drawn)
    odd = [name for name in told[0] if len({str(each.get(name)) for each in told}) > 1]
    labels = [
        ", ".join([each[""], *(f"{name} {each.get(name)}" for name in odd if name)])
        for each in told
    ]
    if len(set(labels)) == len(labels):
        return labels
    hashes = (result.protocol.model_sha256[:_DIGITS] for result in results)
    return [f"{label} ({short})" for label, short in zip(labels, hashes, strict=True)]


assert set(_TOLD) <= {field.name for field in fields(Protocol)}
