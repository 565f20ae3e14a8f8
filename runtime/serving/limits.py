"""What a client may send, and whether it may at all."""

from __future__ import annotations

import asyncio
import hmac
import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from m2kit.errors import InputError
from m2kit.runtime.serving.refusals import Refused


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of a server.

    Attributes:
        waiting: Pictures that may wait for a batch.
        body_bytes: Of a request.
        body_seconds: In which it must have been sent.
        api_keys: Of which one must be sent as a bearer token; empty: none is asked for.
    """

    waiting: int = 256
    body_bytes: int = 16 << 20
    body_seconds: float = 30.0
    api_keys: frozenset[str] = frozenset()

    def check_key(self, request: Request) -> None:
        """Refuse a request without a key, where one is asked for.

        Raises:
            Refused: It has none, or another.
        """
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

    async def body(self, request: Request) -> bytes:
        """What was sent.

        Raises:
            Refused: It is too much, or comes too slowly.
        """
        content = bytearray()

        async def read() -> None:
            async for chunk in request.stream():
                content.extend(chunk)
                if len(content) > self.body_bytes:
                    raise Refused(413, f"expected {self.body_bytes:,} bytes at most; send less")

        try:
            await asyncio.wait_for(read(), self.body_seconds)
        except asyncio.TimeoutError as error:
            raise Refused(408, f"expected the whole request in {self.body_seconds:g} s") from error
        return bytes(content)

    async def json(self, request: Request) -> Any:
        """The JSON that was sent.

        Raises:
            Refused: As for `body`, or it is said to be something else.
            InputError: It is none.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which browsers send to another site only if it agrees
            raise Refused(415, f"expected content-type application/json, found {kind!r:.60}")
        body = await self.body(request)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InputError(f"expected JSON ({str(error)[:100]})") from error
