"""Requests for pictures that share batches: whoever waits when a batch begins is drawn in it,
whatever options it has, and its rows leave the batch when nobody wants them any more.

One thread owns the engine. Between two positions it also does one piece of what else is asked of
it, encoding and decoding, so that this need not wait for a whole batch, nor batches for all of it.
A picture depends on its class, number and options alone, not on what it shares a batch with.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from m2kit.errors import BackendError, M2KitError
from m2kit.runtime.drawing import filled
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import uint8_from_images
from m2kit.sampling import Sampling

LOG = logging.getLogger("m2kit.serve")
MOST_JOBS = 32  # that wait; each may hold a picture
Result = TypeVar("Result")


class QueueFull(M2KitError):
    """More waits than may."""


class ServerClosing(M2KitError):
    """Nothing more is taken."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A picture to be drawn.

    Attributes:
        class_id: Its class.
        number: Of the picture, which with the seed decides it.
        sampling: How.
    """

    class_id: int
    number: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Made:
    """A picture of a request.

    Attributes:
        picture: Its place in the request.
        partial: Which of the partial pictures it is, from 0; None is the finished one.
        pixels: (H, W, 3) uint8.
    """

    picture: int
    partial: int | None
    pixels: npt.NDArray[np.uint8]


class Drawing:
    """A request that was taken.

    Attributes:
        wanted: Its pictures.
        partials: Partial pictures of each.
    """

    def __init__(
        self, wanted: Sequence[Wanted], partials: int, put: Callable[[Made | M2KitError], None]
    ) -> None:
        """Of so many pictures; `put` is called in the engine's thread, with each picture as it is
        made, or once with the error that ends the request."""
        self.wanted, self.partials, self._put = tuple(wanted), partials, put
        self._gone = False
        self.taken_at = time.monotonic()

    @property
    def gone(self) -> bool:
        """Nobody wants it any more."""
        return self._gone

    def cancel(self) -> None:
        """Let its rows stop at the next position; nothing more is put."""
        self._gone = True

    def put(self, made: Made | M2KitError) -> None:
        """Hand over a picture or an error, if anybody wants it."""
        if not self._gone:
            self._put(made)
        if isinstance(made, M2KitError):
            self._gone = True


@dataclass(slots=True)
class Counts:
    """What was done since the start, for /metrics.

    Attributes:
        positions: Positions drawn, summed over pictures.
        pictures: Finished.
        stopped: That left a batch or the queue before they were finished: nobody waited for them
            any more, drawing failed, or the server ended.
        batches: Begun.
        batch_sizes: Pictures of all batches.
        seconds: That batches took.
    """

    positions: int = 0
    pictures: int = 0
    stopped: int = 0
    batches: int = 0
    batch_sizes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Row:
    """A picture of a batch."""

    drawing: Drawing
    place: int
    partials: dict[int, int]  # last position before a partial picture -> which

    @property
    def wanted(self) -> Wanted:
        return self.drawing.wanted[self.place]


@dataclass(slots=True)
class _Waiting:
    """A request of which pictures wait."""

    drawing: Drawing
    taken: int = 0  # pictures that are in a batch, or were

    @property
    def left(self) -> int:
        return len(self.drawing.wanted) - self.taken


class Batcher:
    """Draws requests in batches, in a thread of its own, until it is closed.

    Attributes:
        engine: That draws; nobody else uses it meanwhile.
        batch: Pictures of a batch, at most.
        most_waiting: Pictures that may wait.
        counts: What was done.
    """

    def __init__(self, engine: Engine, batch: int, most_waiting: int) -> None:
        """Begin."""
        self.engine, self.batch, self.most_waiting = engine, batch, most_waiting
        self.counts = Counts()
        self._changed = threading.Condition()  # its lock guards the four below
        self._requests: deque[_Waiting] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._rows: list[_Row] = []  # of the batch that is being drawn, without those stopped
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="m2kit-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures that are in no batch yet."""
        with self._changed:
            return self._count_waiting()

    @property
    def in_batch(self) -> int:
        """Pictures of the batch that is being drawn."""
        return len(self._rows)

    @property
    def alive(self) -> bool:
        """Whether the thread that draws is there."""
        return self._thread.is_alive()

    def draw(
        self, wanted: Sequence[Wanted], partials: int, put: Callable[[Made | M2KitError], None]
    ) -> Drawing:
        """Take a request: while none waits one of any size, else if all of it may wait, too.

        Args:
            wanted: Pictures that the engine can draw.
            partials: Partial pictures of each.
            put: As for `Drawing`.

        Raises:
            QueueFull: Too many pictures wait.
            ServerClosing: It is being closed.
        """
        drawing = Drawing(wanted, partials, put)
        with self._changed:
            self._check_open()
            waiting = self._count_waiting()
            if waiting and waiting + len(wanted) > self.most_waiting:
                raise QueueFull(
                    f"{waiting} pictures wait, of {self.most_waiting} that may; ask again later, "
                    "or for fewer"
                )
            self._requests.append(_Waiting(drawing))
            self._changed.notify()
        return drawing

    def do(self, job: Callable[[], Result]) -> Future[Result]:
        """Have something else done with the engine: the first that waits before each position.

        Raises:
            QueueFull: Too much of it waits.
            ServerClosing: It is being closed.
        """
        future: Future[Result] = Future()
        with self._changed:
            self._check_open()
            self._jobs = deque(one for one in self._jobs if not one[1].cancelled())
            if len(self._jobs) >= MOST_JOBS:
                raise QueueFull(f"{MOST_JOBS} pictures wait to be encoded or decoded; ask later")
            self._jobs.append((job, future))
            self._changed.notify()
        return future

    def close(self, timeout_s: float = 0.0) -> bool:
        """Take nothing more, and wait until all that was taken is done; whether it was in time.

        What was not is told a ServerClosing and stops at the next position.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        with self._changed:
            unfinished = [one.drawing for one in self._requests]
            unfinished += [row.drawing for row in self._rows]
        for drawing in unfinished:
            drawing.put(ServerClosing("the server stopped before this was drawn; ask again later"))
        self._thread.join()
        return False

    def _check_open(self) -> None:
        if self._closing:
            raise ServerClosing("the server is stopping; ask again later")

    def _count_waiting(self) -> int:
        """Pictures that wait; those that nobody wants any more are forgotten."""
        left: deque[_Waiting] = deque()
        for one in self._requests:
            if one.drawing.gone:
                self.counts.stopped += one.left
            else:
                left.append(one)
        self._requests = left
        return sum(one.left for one in left)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._requests or self._jobs or self._closing):
                    self._changed.wait()
                if self._closing and not self._requests and not self._jobs:
                    return
            self._do_a_job()
            if self._next_batch():
                self._draw()

    def _do_a_job(self) -> None:
        with self._changed:
            if not self._jobs:
                return
            job, future = self._jobs.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except Exception as error:
            future.set_exception(error)

    def _next_batch(self) -> bool:
        """Take one picture of each request in turn, so that a large one does not keep small ones
        waiting; whether there is any."""
        positions = self.engine.transformer.positions
        with self._changed:
            self._count_waiting()
            while self._requests and len(self._rows) < self.batch:
                waiting = self._requests.popleft()
                count = waiting.drawing.partials
                ends = {positions * (i + 1) // (count + 1) - 1: i for i in range(count)}
                self._rows.append(_Row(waiting.drawing, waiting.taken, ends))
                waiting.taken += 1
                if waiting.left:
                    self._requests.append(waiting)
            return bool(self._rows)

    def _draw(self) -> None:
        rows, finished, began = self._rows, self.counts.pictures, time.perf_counter()
        self.counts.batches += 1
        self.counts.batch_sizes += len(rows)
        try:
            self._draw_positions(rows)
        except Exception as error:  # whatever it is, it ends this batch alone
            if not isinstance(error, M2KitError):
                LOG.error("a batch failed", exc_info=error)
                error = BackendError("the engine failed")
            for row in rows:
                row.drawing.put(error)
        finally:
            self.counts.seconds += time.perf_counter() - began
            self._keep([], finished=self.counts.pictures - finished)

    def _keep(self, rows: list[_Row], finished: int = 0) -> None:
        """Let the batch go on with some of its rows; the others stopped, but for the finished."""
        with self._changed:
            self.counts.stopped += len(self._rows) - len(rows) - finished
            self._rows = rows

    def _draw_positions(self, rows: list[_Row]) -> None:
        wanted = [row.wanted for row in rows]

        def stopped() -> list[int]:
            gone = [place for place, row in enumerate(rows) if row.drawing.gone]
            self._keep([row for place, row in enumerate(rows) if place not in gone])
            return gone

        tokens: npt.NDArray[np.int64] | None = None
        position = -1
        for position, tokens in self.engine.generate(
            [one.class_id for one in wanted],
            [one.sampling for one in wanted],
            image_numbers=[one.number for one in wanted],
            stopped=stopped,
        ):
            self.counts.positions += len(self._rows)
            self._do_a_job()
            partial = [i for i, row in enumerate(rows) if position in row.partials]
            self._put_pictures(rows, partial, tokens, position)
        if tokens is not None and position + 1 == self.engine.transformer.positions:
            self._put_pictures(rows, list(range(len(rows))), tokens, None)

    def _put_pictures(
        self,
        rows: list[_Row],
        chosen: list[int],
        tokens: npt.NDArray[np.int64],
        position: int | None,
    ) -> None:
        """Decode some of the batch's pictures and hand them over: as they are after a position, or
        finished."""
        chosen = [place for place in chosen if not rows[place].drawing.gone]
        if not chosen:
            return
        own = tokens[chosen]
        images = self.engine.decode(own if position is None else filled(own, position + 1))
        for place, pixels in zip(chosen, uint8_from_images(images), strict=True):
            row = rows[place]
            partial = None if position is None else row.partials[position]
            row.drawing.put(Made(row.place, partial, pixels))
            self.counts.pictures += position is None
