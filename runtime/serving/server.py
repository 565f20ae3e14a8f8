"""The application on a socket, by uvicorn.

A client that sends the head of a request slowly is let go: uvicorn itself waits for it for ever.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from m2kit.errors import InputError
from m2kit.runtime.serving.application import Service

HEAD_SECONDS = 10.0  # in which the head of a request must have been sent
_KEPT_SECONDS = 5  # that a connection without a request stays open
_MOST_CONNECTIONS = 1024
_ANSWERED_SECONDS = 10  # in which a client takes its answer when the server ends


class _Protocol(H11Protocol):
    """HTTP/1.1, with a time limit for the head of each request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_is_there()
        elif self._deadline is None and not self.transport.is_closing():
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._head_is_there()  # uvicorn's own timer closes a connection without a request

    def _wait_for_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._let_go)

    def _head_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _let_go(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Tells when it listens, and at its end lets what was accepted finish."""

    def __init__(
        self, config: uvicorn.Config, started: Callable[[], None], drain: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._told, self._drain = started, drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._told()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(asyncio.to_thread(self._drain))
        await super().shutdown(sockets)
        await draining


def serve(
    service: Service, host: str, port: int, *, drain_s: int, started: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM; what was accepted then has `drain_s` seconds to finish.

    Args:
        service: The routes.
        host: Address to listen at.
        port: Of it; 0 is any that is free.
        drain_s: Seconds.
        started: Called with the address, when requests are taken.

    Raises:
        InputError: The address cannot be had.
    """
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise InputError(
            f"cannot listen at {host}, port {port} ({error.strerror or error}); choose another",
            option="--port, --host",
        ) from error
    with listening:
        own = listening.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        options: dict[str, Any] = {"ws": "none", "lifespan": "on", "access_log": False}
        config = uvicorn.Config(
            service.application(drain_s),
            http=_Protocol,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=_KEPT_SECONDS,
            timeout_graceful_shutdown=drain_s + _ANSWERED_SECONDS,
            limit_concurrency=_MOST_CONNECTIONS,
            **options,
        )
        _Server(
            config,
            lambda: started(f"http://{name}:{own}"),
            lambda: service.batcher.close(drain_s),
        ).run(sockets=[listening])
