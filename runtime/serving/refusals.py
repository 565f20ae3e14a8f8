"""What ends a request without what it asked for: one line for the client, in the shape of OpenAI's
API, that names no path of the host; the log has the rest.
"""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from m2kit.errors import InputError, M2KitError
from m2kit.records import JsonObject
from m2kit.runtime.serving.batching import ServerClosing

LOG = logging.getLogger("m2kit.serve")


class Refused(Exception):
    """What ends a request.

    Attributes:
        status: Of the answer.
        message: For the client.
        kind: As OpenAI's API names it.
        headers: Of the answer.
    """

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", **headers: str
    ) -> None:
        """With headers by their names, `_` for `-`."""
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def to_json(self) -> JsonObject:
        """As the API tells errors."""
        return {"message": self.message, "type": self.kind, "param": None, "code": None}

    def response(self) -> Response:
        """The answer."""
        return JSONResponse({"error": self.to_json()}, self.status, headers=self.headers)


def refused_by(error: M2KitError) -> Refused:
    """What a client is told of an error."""
    if isinstance(error, InputError):
        return Refused(400, str(error))
    if isinstance(error, ServerClosing):
        return Refused(503, str(error), "server_error", retry_after="10")
    LOG.error("%s", error)
    return Refused(500, "the engine failed; the server's log says how", "server_error")


async def no_such_route(request: Request, error: Exception) -> Response:
    """The answer where no route is, or not by that method."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path:.80}"
    return Refused(error.status_code, message, **(error.headers or {})).response()


async def broken(_: Request, error: Exception) -> Response:
    """The answer to what nobody foresaw, which uvicorn logs."""
    return Refused(500, "the server failed; its log says how", "server_error").response()
