"""What a client may send, and whether it may at all."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from starlette.requests import Request

from m2kit.errors import InputError
from m2kit.runtime.serving.refusals import Refused

JSON_BYTES = 64 << 10  # of a request for pictures, as JSON is read in the loop that serves all
_PICTURE_BYTES = 16 << 20  # of a picture file


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of a server.

    Attributes:
        waiting: Pictures that may wait for a batch.
        body_seconds: In which a request must have been sent.
        api_keys: Of which one must be sent as a bearer token; empty: none is asked for.
        hosts: That a request may be for where no key is asked for, without ports; empty: any.
    """

    waiting: int = 256
    body_seconds: float = 30.0
    api_keys: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()

    def admit(self, request: Request) -> None:
        """Refuse a request without a key, where one is asked for, and where none is, one for
        another host: of a page whose owner lets its name lead here.

        Raises:
            Refused: It has none, or another.
        """
        host = re.sub(r":\d*$", "", request.headers.get("host", "")).lower()
        if self.hosts and not self.api_keys and host not in self.hosts:
            own = ", ".join(sorted(self.hosts))
            raise Refused(421, f"expected host {own}, found {host!r:.60}; with API keys, any is")
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        keys = [key.encode() for key in self.api_keys]
        known = [hmac.compare_digest(sent.strip().encode(), key) for key in keys]
        if keys and not (scheme.lower() == "bearer" and any(known)):
            raise Refused(
                401,
                "an API key is asked for: Authorization: Bearer KEY",
                "authentication_error",
                www_authenticate="Bearer",
            )

    async def picture(self, request: Request) -> bytes:
        """The picture file that was sent.

        Raises:
            Refused: It is said to be something else, is too much, or comes too slowly.
        """
        _check_type(request, "image/*", "application/octet-stream")
        return await self._body(request, _PICTURE_BYTES)

    async def json(self, request: Request, most: int = JSON_BYTES) -> Any:
        """The JSON that was sent, of so many bytes at most.

        Raises:
            Refused: As for `picture`.
            InputError: It is none.
        """
        _check_type(request, "application/json")
        body = await self._body(request, most)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InputError(f"expected JSON ({str(error)[:100]})") from error

    async def _body(self, request: Request, most: int) -> bytes:
        content, told = bytearray(), request.headers.get("content-length", "")
        too_much = Refused(413, f"expected {most:,} bytes at most; send less")
        if told.isdecimal() and int(told) > most:
            raise too_much

        async def read() -> None:
            async for chunk in request.stream():
                content.extend(chunk)
                if len(content) > most:
                    raise too_much

        try:
            await asyncio.wait_for(read(), self.body_seconds)
        except asyncio.TimeoutError as error:
            raise Refused(408, f"expected the whole request in {self.body_seconds:g} s") from error
        return bytes(content)


def own_hosts(host: str) -> frozenset[str]:
    """What a server that listens at an address may be called: any, as the empty set, where that is
    all addresses."""
    if host in ("0.0.0.0", "::"):
        return frozenset()
    return frozenset(
        {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()}
    )


def _check_type(request: Request, *wanted: str) -> None:
    """Refuse what is said to be of another type; those that are wanted are ones that browsers send
    to another site only if it agrees, as this one does not."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not any(fnmatchcase(kind, one) for one in wanted):
        raise Refused(415, f"expected content-type {' or '.join(wanted)}, found {kind!r:.60}")
