"""A request for pictures in the shape of OpenAI's images API, and what is answered.

Facts from the API's description (platform.openai.com/docs/api-reference/images, 2026): fields,
event names, errors. m2kit adds its own fields; a prompt is a class, by name or number.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from m2kit.class_names import class_ids, class_labels
from m2kit.errors import InputError
from m2kit.records import BadRecord, JsonObject, Pattern, Range, read_record
from m2kit.runtime.drawing import IMAGES_OF_A_CLASS
from m2kit.runtime.saving import picture_bytes
from m2kit.runtime.serving.batching import Wanted
from m2kit.sampling import Sampling

MOST_PICTURES = 64  # of a request
MOST_PARTIALS = 3
_IGNORED = {"model", "quality", "background", "style", "user", "moderation"}
_OWN = ("guidance", "temperature", "top_k", "top_p")
Numbers = float | tuple[float, ...]
Wholes = int | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What POST /v1/images/generations takes; null is a field that is not given.

    Attributes:
        prompt: A class, by name or number.
        n: Pictures.
        size: "auto", or the model's own, as "256x256".
        response_format: Pictures are answered as they are: there are no addresses.
        output_format: Of the pictures.
        stream: Answer by server-sent events, as pictures are made.
        partial_images: Pictures of what is drawn so far, of each; with `stream`.
        seed: With class and number it decides a picture.
        first_image: Place in its class of the first picture.
        guidance: Guidance scale, one or one for each sub-token; None is the model's own.
        temperature: Likewise.
        top_k: Likewise.
        top_p: Likewise.
        greedy: Take the likeliest token at every place.
    """

    prompt: Annotated[str, Pattern(r"[^\x00-\x1f\x7f]{1,1000}", "a class, by name or number")]
    n: Annotated[int, Range(1, MOST_PICTURES)] = 1
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    stream: bool = False
    partial_images: Annotated[int, Range(0, MOST_PARTIALS)] = 0
    seed: Annotated[int, Range(0, 2**64 - 1)] = 0
    first_image: Annotated[int, Range(0, IMAGES_OF_A_CLASS - 1)] = 0
    guidance: Numbers | None = None
    temperature: Numbers | None = None
    top_k: Wholes | None = None
    top_p: Numbers | None = None
    greedy: bool = False

    @property
    def sampling(self) -> Sampling:
        """How its pictures are drawn.

        Raises:
            InputError: An option out of range.
        """
        return Sampling(
            seed=self.seed, greedy=self.greedy, **{name: getattr(self, name) for name in _OWN}
        )


def request_of(body: Any, sizes: Sequence[str]) -> GenerationRequest:
    """The request in a JSON body.

    Args:
        body: What was sent.
        sizes: What `size` may be beside auto.

    Raises:
        InputError: A field that is missing, unknown, or of a wrong type or value.
    """
    if not isinstance(body, Mapping):
        raise InputError(f'expected a JSON object such as {{"prompt": "0"}}, found {body!r:.60}')
    fields = {n: v for n, v in body.items() if v is not None and n not in _IGNORED}
    try:
        request = read_record(GenerationRequest, fields)
    except BadRecord as error:
        raise InputError(str(error)) from error
    if request.size not in ("auto", *sizes):
        raise InputError(f"size must be auto or {' or '.join(sizes)}, found {request.size!r:.40}")
    if request.first_image + request.n > IMAGES_OF_A_CLASS:
        raise InputError(
            f"expected first_image + n of {IMAGES_OF_A_CLASS} at most, the images of a class, "
            f"found {request.first_image} + {request.n}"
        )
    if request.partial_images and not request.stream:
        raise InputError('partial_images are sent with stream alone; say "stream": true')
    return request


def wanted_by(request: GenerationRequest, classes: int, names: Sequence[str]) -> tuple[Wanted, ...]:
    """The pictures of a request, numbered as `m2kit generate` numbers them.

    Args:
        request: For them.
        classes: Classes of the model.
        names: Theirs, if they are known.

    Raises:
        InputError: A prompt that is no class of the model or several, or an option out of range.
    """
    try:
        found = class_ids([request.prompt.strip()], classes, names)
    except InputError:
        if any(class_labels(classes, names)):
            raise  # with the nearest names
        found = []
    if len(found) != 1 or not 0 <= found[0] < classes:
        raise InputError(
            f"prompt must be one class of 0..{classes - 1}, by name or number, as GET /v1/classes "
            f"lists them, found {request.prompt!r:.60}"
        )
    first = found[0] * IMAGES_OF_A_CLASS + request.first_image
    return tuple(Wanted(found[0], first + i, request.sampling) for i in range(request.n))


@dataclass(frozen=True, slots=True)
class Answer:
    """How the pictures of a request are answered.

    Attributes:
        request: For them.
        created: Seconds since 1970, when it was taken.
        size: Of a picture, as "256x256".
        positions: That a picture takes.
    """

    request: GenerationRequest
    created: int
    size: str
    positions: int

    def encoded(self, pixels: npt.NDArray[np.uint8], notes: JsonObject | None = None) -> str:
        """A picture (H, W, 3) uint8 as base64 of its file."""
        content = picture_bytes(pixels, f".{self.request.output_format}", notes)
        return base64.b64encode(content).decode("ascii")

    def whole(self, pictures: Sequence[str]) -> JsonObject:
        """All finished pictures at once."""
        return {
            "created": self.created,
            "background": "opaque",
            "data": [{"b64_json": picture} for picture in pictures],
            "output_format": self.request.output_format,
            "quality": "high",
            "size": self.size,
            "usage": self._usage(len(pictures)),
        }

    def event(self, picture: str, index: int, partial: int | None) -> JsonObject:
        """One picture of so many, as an event of a stream; `partial` is None of the finished."""
        what = "completed" if partial is None else "partial_image"
        value: JsonObject = {
            "type": f"image_generation.{what}",
            "b64_json": picture,
            "background": "opaque",
            "created_at": self.created,
            "output_format": self.request.output_format,
            "quality": "high",
            "size": self.size,
            "index": index,
        }
        if partial is not None:
            return value | {"partial_image_index": partial}
        return value | {"usage": self._usage(1)}

    def _usage(self, pictures: int) -> JsonObject:
        drawn = pictures * self.positions
        return {
            "input_tokens": 1,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 1},
            "output_tokens": drawn,
            "total_tokens": 1 + drawn,
        }
