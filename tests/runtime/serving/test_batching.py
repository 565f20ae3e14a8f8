"""Requests that share batches."""

import contextlib
import threading

import numpy as np
import pytest
from conftest import tiny_spec
from doubles.fake_backend import FakeBackend
from doubles.until import until

from m2kit import Sampling
from m2kit.errors import BackendError
from m2kit.runtime.drawing import filled
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import uint8_from_images
from m2kit.runtime.serving.batching import (
    MOST_JOBS,
    Batcher,
    QueueFull,
    ServerClosing,
    Wanted,
)


def engine():
    spec = tiny_spec()
    return Engine(spec, FakeBackend(spec))


class Slow:
    """Holds an engine's positions until it is let go, a position at a time or altogether."""

    def __init__(self, engine):
        self.held, self.engine = threading.Semaphore(0), engine
        self.reached = []
        generate = engine.generate

        def slow(*arguments, **options):
            for drawn in generate(*arguments, **options):
                self.held.acquire()
                self.reached.append((drawn.position, len(drawn.tokens)))
                yield drawn

        engine.generate = slow

    def let(self, positions=10**6):
        self.held.release(positions)


class Client:
    """A request whose pictures arrive in a list."""

    def __init__(self, batcher, wanted, partials=0):
        self.made, self.done, self.count = [], threading.Event(), len(wanted)
        self.drawing = batcher.draw(wanted, partials, self._put)

    def _put(self, made):
        self.made.append(made)
        finished = [m for m in self.made if isinstance(m, Exception) or m.partial is None]
        if isinstance(made, Exception) or len(finished) == self.count:
            self.done.set()

    def finished(self):
        assert self.done.wait(10)
        return {m.picture: m.pixels for m in self.made if m.partial is None}


def wanted(*numbers, **options):
    return [Wanted(number % 4, number, Sampling(**options)) for number in numbers]


def alone(one):
    own = engine()
    tokens = own.sample([one.class_id], one.sampling, image_numbers=[one.number])
    return uint8_from_images(own.decode(tokens))[0]


@pytest.fixture
def batcher():
    with contextlib.closing(Batcher(engine(), batch=4, most_waiting=6)) as made:
        slow = Slow(made.engine)
        yield made, slow
        slow.let()


def test_requests_of_other_options_share_a_batch_and_each_has_its_own_pictures(batcher):
    served, slow = batcher
    asked = [
        wanted(0, 1, seed=3, guidance=2.0),
        wanted(2, seed=4, temperature=0.5),
        wanted(3, 4, 5, greedy=True),
        wanted(6, seed=3, guidance=2.0, top_k=2),
    ]
    first = Client(served, asked[0])
    until(lambda: served.in_batch == 2)
    clients = [first, *(Client(served, one) for one in asked[1:])]
    assert served.waiting == 5
    slow.let()
    for client, one in zip(clients, asked, strict=True):
        found = client.finished()
        for place, picture in enumerate(one):
            np.testing.assert_array_equal(found[place], alone(picture))
    until(lambda: served.counts.pictures == 7)
    assert served.counts.batches == 3
    assert served.counts.batch_sizes == 7 and served.counts.positions == 7 * 6
    assert {size for _, size in slow.reached} == {2, 4, 1}  # each of those waiting got a turn


def test_partial_pictures_come_in_order_before_the_whole_one(batcher):
    served, slow = batcher
    slow.let()
    client = Client(served, wanted(1, 2, seed=5), partials=2)
    client.finished()
    for place in range(2):
        assert [m.partial for m in client.made if m.picture == place] == [0, 1, None]
    tokens = engine().sample([1], Sampling(seed=5), image_numbers=[1])
    own = engine().decode(filled(tokens, 2))
    (first,) = [m for m in client.made if (m.picture, m.partial) == (0, 0)]
    np.testing.assert_array_equal(first.pixels, uint8_from_images(own)[0])


def test_a_client_that_left_is_drawn_no_further_and_the_others_are(batcher):
    served, slow = batcher
    stays, leaves = Client(served, wanted(1, seed=1)), None
    until(lambda: served.in_batch == 1)
    leaves, other = Client(served, wanted(2, 3, seed=1)), Client(served, wanted(4, seed=2))
    slow.let(6)
    until(lambda: served.in_batch == 3)
    slow.let(2)
    until(lambda: len(slow.reached) == 8)
    leaves.drawing.cancel()
    slow.let()
    np.testing.assert_array_equal(other.finished()[0], alone(wanted(4, seed=2)[0]))
    assert stays.done.is_set() and not leaves.made
    until(lambda: served.in_batch == 0)
    assert (served.counts.stopped, served.counts.pictures) == (2, 2)
    assert served.counts.positions < 4 * 6


def test_too_many_that_wait_are_refused_at_once(batcher):
    served, _ = batcher
    Client(served, wanted(0))
    until(lambda: served.in_batch == 1)
    Client(served, wanted(*range(5)))
    with pytest.raises(QueueFull, match="5 pictures wait, of 6 that may"):
        Client(served, wanted(1, 2))
    Client(served, wanted(1))


def test_a_request_larger_than_may_wait_is_taken_while_none_waits(batcher):
    served, slow = batcher
    client = Client(served, wanted(*range(20)))
    until(lambda: served.in_batch == 4)
    with pytest.raises(QueueFull, match="16 pictures wait, of 6 that may"):
        Client(served, wanted(1))
    slow.let()
    assert len(client.finished()) == 20


def test_requests_that_are_cancelled_while_they_wait_are_kept_no_longer(batcher):
    served, _ = batcher
    Client(served, wanted(0))
    until(lambda: served.in_batch == 1)
    for _ in range(50):
        Client(served, wanted(1, 2, 3)).drawing.cancel()
    assert served.waiting == 0 and served.counts.stopped == 150


def test_other_work_is_done_between_two_positions_a_piece_each_time(batcher):
    served, slow = batcher
    client = Client(served, wanted(0))
    until(lambda: served.in_batch == 1)
    places = [served.do(lambda: (threading.current_thread().name, len(slow.reached)))
              for _ in range(3)]  # fmt: skip
    failing = served.do(lambda: 1 / 0)
    slow.let()
    assert [one.result(10) for one in places] == [("m2kit-batcher", 1 + i) for i in range(3)]
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    client.finished()


def test_too_much_other_work_is_refused_at_once(batcher):
    served, slow = batcher
    Client(served, wanted(0))
    until(lambda: served.in_batch == 1)
    jobs = [served.do(lambda: None) for _ in range(MOST_JOBS)]
    with pytest.raises(QueueFull, match=f"{MOST_JOBS} pictures wait to be"):
        served.do(print)
    jobs[0].cancel()
    last = served.do(lambda: "done")
    slow.let()
    assert last.result(10) == "done"


@pytest.mark.parametrize(
    "failure", [BackendError("inter_step computed NaN"), RuntimeError("a bug"), MemoryError()]
)
def test_an_engine_that_fails_ends_its_batch_and_draws_the_next(batcher, failure, caplog):
    served, slow = batcher
    generate = served.engine.generate

    def broken(*_, **__):
        served.engine.generate = generate
        raise failure

    served.engine.generate = broken
    slow.let()
    client = Client(served, wanted(0, 1))
    assert client.done.wait(10)
    (error,) = client.made
    assert isinstance(error, BackendError)
    if error is not failure:
        assert str(error) == "the engine failed" and type(failure).__name__ in caplog.text
    assert len(Client(served, wanted(3)).finished()) == 1
    until(lambda: served.in_batch == 0)
    assert (served.counts.stopped, served.counts.pictures) == (2, 1)


def test_a_finished_picture_is_not_counted_as_stopped(batcher):
    served, slow = batcher
    client = Client(served, wanted(0, 1))
    put = client.drawing._put

    def last(made):
        put(made)
        if client.done.is_set():
            client.drawing.cancel()  # as the application does when all is answered

    client.drawing._put = last
    slow.let()
    client.finished()
    until(lambda: served.in_batch == 0)
    assert (served.counts.stopped, served.counts.pictures) == (0, 2)


def test_closing_finishes_what_was_taken_and_takes_nothing_more():
    served = Batcher(engine(), batch=1, most_waiting=9)
    slow = Slow(served.engine)
    clients = [Client(served, wanted(n)) for n in range(3)]
    threading.Timer(0.1, slow.let).start()
    assert served.close(20)
    assert all(len(client.finished()) == 1 for client in clients)
    with pytest.raises(ServerClosing):
        served.draw(wanted(1), 0, print)
    with pytest.raises(ServerClosing):
        served.do(print)
    assert not served.alive


def test_closing_in_time_tells_whom_it_leaves():
    served = Batcher(engine(), batch=1, most_waiting=9)
    slow = Slow(served.engine)
    clients = [Client(served, wanted(n)) for n in range(3)]
    until(lambda: served.in_batch == 1)
    threading.Timer(0.3, slow.let, [1]).start()
    assert not served.close(0.05)
    for client in clients:
        assert client.done.wait(10)
        assert isinstance(client.made[-1], ServerClosing)
