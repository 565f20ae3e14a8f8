"""The application on a socket, by uvicorn.

A client that sends slowly, or does not read its answer, is let go: uvicorn itself waits for it for
ever.
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
from m2kit.runtime.serving.refusals import Refused

HEAD_SECONDS = 10.0  # in which the head of a request must have been sent
UNREAD_SECONDS = 30.0  # in which a client must have read _READ_BYTES of its answer, or the rest
_READ_BYTES = 1 << 16
_KEPT_SECONDS = 5  # that a connection without a request stays open
_MOST_CONNECTIONS = 1024
_ANSWERED_SECONDS = 10  # in which a client takes its answer when the server ends


class _Protocol(H11Protocol):
    """HTTP/1.1, with time limits for the head of a request, the rest of one that was answered
    before its end, and for reading an answer."""

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(0)  # so that whatever is not read pauses the writing
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._owes:
            self._end()
        elif self._deadline is None and not self.transport.is_closing():
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._end_unread()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._end()  # uvicorn's own timer closes a connection on which nothing more comes

    def pause_writing(self) -> None:
        super().pause_writing()
        self._begin_unread()

    def send_400_response(self, msg: str) -> None:
        answer = Refused(400, f"expected HTTP/1.1 ({msg})").response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for part in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: uvicorn would tell whoever runs the server to install packages."""

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_unread()

    @property
    def _owes(self) -> bool:
        """Whether the head of a request is to come, or the rest of one that is answered."""
        return self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE

    def _begin(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._let_go)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _let_go(self) -> None:
        self._deadline = None
        if self._owes and not self.transport.is_closing():
            self.transport.close()

    def _begin_unread(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._abort_unread, left)

    def _end_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _abort_unread(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < _READ_BYTES:
            self.transport.abort()
        else:
            self._begin_unread()


class Server(uvicorn.Server):
    """Serves until SIGINT, SIGTERM or `should_exit`, and then lets what was accepted finish; a
    second SIGINT ends it at once. `run([socket])` runs it."""

    def __init__(self, service: Service, *, drain_s: int, stopping: Callable[[], None]) -> None:
        """Of these routes.

        Args:
            service: The routes.
            drain_s: Seconds that what was accepted has at the end.
            stopping: Called when the end begins.
        """
        options: dict[str, Any] = {"ws": "none", "lifespan": "off", "access_log": False}
        super().__init__(
            uvicorn.Config(
                service.application(drain_s),
                http=_Protocol,
                log_level="warning",
                server_header=False,
                proxy_headers=False,  # nothing asks who sent a request
                timeout_keep_alive=_KEPT_SECONDS,
                timeout_graceful_shutdown=drain_s + _ANSWERED_SECONDS,
                limit_concurrency=_MOST_CONNECTIONS,
                **options,
            )
        )
        self._service, self._drain_s, self._stopping = service, drain_s, stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing more, and wait for what was accepted."""
        self._stopping()
        draining = asyncio.create_task(asyncio.to_thread(self._service.close, self._drain_s))
        forced = asyncio.create_task(self._end_when_forced())
        await super().shutdown(sockets)
        await draining
        if self.force_exit:
            await forced
        forced.cancel()

    async def _end_when_forced(self) -> None:
        while not self.force_exit:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._service.close, 0)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if tasks := list(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=_ANSWERED_SECONDS)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; its clients wait until it is served.

    Args:
        host: Address to listen at.
        port: Of it; 0 is any that is free.

    Raises:
        InputError: The address cannot be had.
    """
    if not host:  # which is all addresses to the system
        raise InputError("expected a host to listen at, found ''; 0.0.0.0 is all", option="--host")
    try:
        host.encode("idna")
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen at {host}, port {port} ({reason}); choose another",
            option="--port, --host",
        ) from error


def address_of(listening: socket.socket) -> str:
    """Where a socket listens, as http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
