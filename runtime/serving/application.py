"""The web application of an engine: routes, and what a client may be told.

An answer names no path of the host and holds no traceback: what the client did wrong is one line,
and so is what went wrong here, of which the log has the rest.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from m2kit.class_names import class_labels, names_in_notes
from m2kit.errors import InputError, M2KitError
from m2kit.records import BadRecord, JsonObject, read_record
from m2kit.runtime.drawing import notes_of_drawing
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import images_from_pixels, uint8_from_images
from m2kit.runtime.picture_folder import picture_notes
from m2kit.runtime.picture_set import middle_square
from m2kit.runtime.pictures import read_picture
from m2kit.runtime.saving import picture_bytes
from m2kit.runtime.serving.batching import Batcher, Drawing, Made, QueueFull
from m2kit.runtime.serving.generation import Answer, request_of, wanted_by
from m2kit.runtime.serving.limits import JSON_BYTES, Limits
from m2kit.runtime.serving.metrics import CONTENT_TYPE, Latencies, metrics_text
from m2kit.runtime.serving.refusals import Refused, broken, no_such_route, refused_by

_MOST_PIXELS = 2**24  # of a picture file: 16 bits of four channels take 0.3 GB to read
_MOST_FOUND = 50  # classes of a search
_QUIET_SECONDS = 15.0  # after which a stream that waits says so; proxies end one that is silent
_MOST_TIMES = 4  # the model's own size that what is encoded or decoded may have
_BYTES_OF_ID = 32  # in JSON, at most, with all around it
_GENERATIONS = "/v1/images/generations"


class Service:
    """The routes of an engine.

    Attributes:
        engine: Opened.
        batcher: That draws with it.
        limits: Of requests.
    """

    def __init__(self, engine: Engine, batch: int, limits: Limits) -> None:
        """Begin to serve."""
        self.engine, self.limits = engine, limits
        spec = engine.transformer
        notes = engine.info.training if engine.info else {}
        self.names = names_in_notes(notes, spec.classes)
        self.labels = class_labels(spec.classes, self.names)
        self.size: tuple[int, ...] = engine.spec.size_of_grid(spec.grid)
        self.name = engine.info.name if engine.info else "model"
        self._latencies, self._queue_full = Latencies(), 0
        self._reading = asyncio.Semaphore()  # a large picture at a time, which takes much memory
        _warm_up(engine)
        self.batcher = Batcher(engine, batch, limits.waiting)

    def close(self, timeout_s: float = 0.0) -> bool:
        """Take nothing more; whether what was accepted was done in so many seconds. What was not is
        answered with an error."""
        return self.batcher.close(timeout_s)

    def application(self, drain_s: float = 30.0) -> Starlette:
        """The application, which at its end gives accepted requests so many seconds."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self.close, drain_s)

        routes = [
            Route("/", self.page),
            Route(_GENERATIONS, self._guarded(self.generations), methods=["POST"]),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/classes", self._guarded(self.classes)),
            Route("/v1/tokens", self._guarded(self.tokens), methods=["POST"]),
            Route("/v1/decode", self._guarded(self.decode), methods=["POST"]),
            Route("/healthz", self.health),
            Route("/metrics", self._guarded(self.metrics)),
        ]
        return Starlette(
            routes=routes,
            lifespan=lifespan,
            exception_handlers={HTTPException: no_such_route, Exception: broken},
        )

    async def page(self, _: Request) -> Response:
        """GET /: the page."""
        text = files("m2kit.runtime.serving").joinpath("page.html").read_text(encoding="utf-8")
        script = text.partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        policy = (
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
            "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        return HTMLResponse(
            text, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"}
        )

    async def generations(self, request: Request) -> Response:
        """POST /v1/images/generations: pictures, at once or as a stream of events."""
        height, width = self.size
        wanted = request_of(await self.limits.json(request), (f"{width}x{height}",))
        pictures = wanted_by(wanted, self.engine.transformer.classes, self.names)
        notes = notes_of_drawing(self.engine, wanted.sampling)
        answer = Answer(
            wanted, int(time.time()), f"{width}x{height}", self.engine.transformer.positions
        )
        made: asyncio.Queue[Made | M2KitError] = asyncio.Queue()
        put, loop = made.put_nowait, asyncio.get_running_loop()
        drawing = self.batcher.draw(
            pictures, wanted.partial_images, lambda one: _call_soon(loop, put, one)
        )

        def encoded(one: Made) -> str:
            told = picture_notes(
                notes, pictures[one.picture].class_id, pictures[one.picture].number
            )
            return answer.encoded(one.pixels, told if one.partial is None else None)

        def ended() -> None:
            drawing.cancel()  # where the client left before the end
            self._latencies.add(time.monotonic() - drawing.taken_at)

        if wanted.stream:
            return _Stream(_events(drawing, made, answer, encoded), ended)
        try:
            finished = await _unless_gone(request, _finished(drawing, made, encoded))
        finally:
            ended()
        return JSONResponse(answer.whole(finished))

    async def models(self, _: Request) -> Response:
        """GET /v1/models: the one there is."""
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "m2kit"}
        spec = self.engine.transformer
        own = {
            "classes": spec.classes,
            "size": list(self.size),
            "grid": list(spec.grid),
            "sub_tokens": spec.sub_tokens,
            "defaults": _defaults(self.engine),
        }
        return JSONResponse({"object": "list", "data": [model | {"m2kit": own}]})

    async def classes(self, request: Request) -> Response:
        """GET /v1/classes?q=TEXT: classes whose names hold a text, or of that number."""
        text = request.query_params.get("q", "").strip().lower()[:200]
        found = [
            {"id": class_id, "name": label}
            for class_id, label in enumerate(self.labels)
            if text in label.lower() or text == str(class_id)
        ]
        return JSONResponse({"object": "list", "data": found[:_MOST_FOUND], "found": len(found)})

    async def tokens(self, request: Request) -> Response:
        """POST /v1/tokens: a picture file to its tokens; ?resize=N scales it first, 0 does not."""
        most = _MOST_TIMES * math.prod(self.size)
        own = str(min(self.size))
        side = _whole(request.query_params.get("resize", own), "resize", math.isqrt(most))
        body = await self.limits.picture(request)

        def read() -> Any:
            picture = read_picture(io.BytesIO(body), name="the picture", most_pixels=_MOST_PIXELS)
            if side:
                picture = middle_square(picture, side, "the picture")
            elif picture.width * picture.height > most:
                raise InputError(
                    f"expected a picture of {most:,} pixels at most, found {picture.width} x "
                    f"{picture.height}; ?resize=N scales it"
                )
            return images_from_pixels(np.asarray(picture)[None])

        async with self._reading:
            images = await asyncio.to_thread(read)
        tokens = await self._job(request, lambda: self.engine.encode(images))
        return JSONResponse({"tokens": tokens[0].tolist(), "shape": list(tokens.shape[1:])})

    async def decode(self, request: Request) -> Response:
        """POST /v1/decode: {"tokens": (h, w, K) ids} to a PNG."""
        spec = self.engine.transformer
        most = _MOST_TIMES * math.prod(spec.grid)
        body = await self.limits.json(request, JSON_BYTES + _BYTES_OF_ID * most * spec.sub_tokens)
        tokens = _tokens_of(body, most)
        images = await self._job(request, lambda: self.engine.decode(tokens[None]))
        pixels = uint8_from_images(images)[0]
        content = await asyncio.to_thread(picture_bytes, pixels, ".png")
        return Response(content, media_type="image/png")

    async def health(self, _: Request) -> Response:
        """GET /healthz: whether it draws."""
        alive = self.batcher.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def metrics(self, _: Request) -> Response:
        """GET /metrics."""
        counts, batcher = self.batcher.counts, self.batcher
        text = metrics_text(
            {
                "m2kit_waiting_pictures": (batcher.waiting, "Pictures that wait for a batch"),
                "m2kit_batch_pictures": (batcher.in_batch, "Pictures of the batch being drawn"),
            },
            {
                "m2kit_positions_total": (counts.positions, "Positions drawn, over pictures"),
                "m2kit_pictures_total": (counts.pictures, "Finished pictures"),
                "m2kit_stopped_pictures_total": (counts.stopped, "Pictures that ended unfinished"),
                "m2kit_batches_total": (counts.batches, "Batches begun"),
                "m2kit_batch_pictures_total": (counts.batch_sizes, "Pictures of all batches"),
                "m2kit_batch_seconds_total": (counts.seconds, "Seconds that batches took"),
                "m2kit_queue_full_total": (self._queue_full, "Requests refused as too many wait"),
            },
            {"m2kit_request_seconds": (self._latencies, "Seconds of requests for pictures")},
        )
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A handler behind the API key, whose errors are answers."""

        async def guarded(request: Request) -> Response:
            try:
                self.limits.admit(request)
                return await handler(request)
            except Refused as refused:
                return refused.response()
            except QueueFull as error:
                return self._full(error).response()
            except M2KitError as error:
                return refused_by(error).response()
            except ClientDisconnect:
                return Response(status_code=499)

        return guarded

    async def _job(self, request: Request, job: Callable[[], Any]) -> Any:
        return await _unless_gone(request, asyncio.wrap_future(self.batcher.do(job)))

    def _full(self, error: QueueFull) -> Refused:
        self._queue_full += 1
        counts = self.batcher.counts
        seconds = str(max(1, round(counts.seconds / max(1, counts.batches))))  # of a batch
        return Refused(429, str(error), "rate_limit_error", retry_after=seconds)


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of some work, which ends when the client does."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()


async def _finished(
    drawing: Drawing, made: asyncio.Queue[Made | M2KitError], encoded: Callable[[Made], str]
) -> list[str]:
    pictures: dict[int, str] = {}
    while len(pictures) < len(drawing.wanted):
        one = await made.get()
        if isinstance(one, M2KitError):
            raise one
        pictures[one.picture] = await asyncio.to_thread(encoded, one)
    return [pictures[place] for place in range(len(drawing.wanted))]


async def _events(
    drawing: Drawing,
    made: asyncio.Queue[Made | M2KitError],
    answer: Answer,
    encoded: Callable[[Made], str],
) -> AsyncIterator[str]:
    left = len(drawing.wanted)
    while left:
        try:
            one = await asyncio.wait_for(made.get(), _QUIET_SECONDS)
        except asyncio.TimeoutError:
            yield ": waiting\n\n"
            continue
        if isinstance(one, M2KitError):
            yield _event("error", {"type": "error", "error": refused_by(one).to_json()})
            return
        picture = await asyncio.to_thread(encoded, one)
        value = answer.event(picture, one.picture, one.partial)
        yield _event(value["type"], value)
        left -= one.partial is None


class _Stream(StreamingResponse):
    """Server-sent events that proxies hand on as they come, and what is done at their end, even if
    the client left before the first."""

    def __init__(self, events: AsyncIterator[str], ended: Callable[[], None]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def _call_soon(loop: asyncio.AbstractEventLoop, put: Callable[[Any], None], one: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who would read
        loop.call_soon_threadsafe(put, one)


def _event(name: str, value: JsonObject) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"


def _warm_up(engine: Engine) -> None:
    """Open every graph: the first client need not wait, and the engine's folder may be replaced."""
    engine.encode(engine.decode(engine.sample([0])))


def _whole(text: str, name: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) > most:
        raise InputError(f"{name} must be a whole number in 0..{most}, found {text!r:.40}")
    return int(text)


@dataclass(frozen=True, slots=True)
class _ToDecode:
    """What POST /v1/decode takes: (h, w, K) ids."""

    tokens: tuple[tuple[tuple[int, ...], ...], ...]


def _tokens_of(body: Any, most: int) -> npt.NDArray[np.int64]:
    """The tokens (h, w, K) of a JSON body, of so many positions at most."""
    try:
        tokens = np.array(read_record(_ToDecode, body).tokens, np.int64)
    except BadRecord as error:
        raise InputError(str(error)) from error
    except ValueError as error:
        raise InputError("tokens must be (h, w, K) whole numbers, all rows alike") from error
    if not tokens.size or math.prod(tokens.shape[:2]) > most:
        raise InputError(
            f"tokens must be (h, w, K) whole numbers of 1 to {most:,} positions, found "
            f"{list(tokens.shape)}"
        )
    return tokens


def _defaults(engine: Engine) -> JsonObject:
    _, resolved = engine.check_draw([0], None)
    return {
        name: list(getattr(resolved, name))
        for name in ("guidance", "temperature", "top_k", "top_p")
    }
