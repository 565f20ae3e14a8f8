"""A server of an engine in this process, on a port of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import m2kit
from m2kit.runtime.serving import server
from m2kit.runtime.serving.application import Service
from m2kit.runtime.serving.limits import Limits


@contextlib.contextmanager
def served(engine_folder: Any, *, batch: int = 4, **limits: Any) -> Iterator[tuple[str, Service]]:
    """The address and the routes of an engine, until the block ends."""
    with m2kit.open_engine(engine_folder) as engine:
        service = Service(engine, batch, Limits(**limits))
        addresses: list[str] = []
        running: list[Any] = []
        listens, run = threading.Event(), server._Server.run

        def kept(self: Any, *arguments: Any, **options: Any) -> None:
            running.append(self)
            run(self, *arguments, **options)

        def started(address: str) -> None:
            addresses.append(address)
            listens.set()

        with mock.patch.object(server._Server, "run", kept):
            thread = threading.Thread(
                target=server.serve,
                args=(service, "127.0.0.1", 0),
                kwargs={"drain_s": 20, "started": started},
            )
            thread.start()
            assert listens.wait(20)
        try:
            yield addresses[0], service
        finally:
            running[0].should_exit = True
            thread.join(60)
            assert not thread.is_alive()
