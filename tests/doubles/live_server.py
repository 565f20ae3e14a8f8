"""A server of an engine in this process, on a port of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx

import m2kit
from m2kit.runtime.serving.application import Service
from m2kit.runtime.serving.limits import Limits
from m2kit.runtime.serving.server import Server, address_of, listen

GENERATIONS = "/v1/images/generations"


def ask(address: str, **fields: Any) -> httpx.Response:
    """The answer to a request for pictures."""
    return httpx.post(address + GENERATIONS, json=fields, timeout=60)


@contextlib.contextmanager
def served(engine_folder: Any, *, batch: int = 4, **limits: Any) -> Iterator[tuple[str, Service]]:
    """The address and the routes of an engine, until the block ends."""
    with (
        listen("127.0.0.1", 0) as listening,
        m2kit.open_engine(engine_folder) as engine,
        contextlib.closing(Service(engine, batch, Limits(**limits))) as service,
    ):
        server = Server(service, drain_s=20, stopping=lambda: None)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield address_of(listening), service
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
