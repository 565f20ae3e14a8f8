"""serve: pictures over HTTP, in the shape of OpenAI's images API, and a page to draw them on."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from pathlib import Path

import click

from m2kit.cli.options import COUNT, PATH, OpenEngine, engine_argument
from m2kit.cli.output import note
from m2kit.errors import InputError, require

_LOCAL = ("127.0.0.1", "localhost", "::1")
_MOST_KEYS, _LONGEST_KEY = 1000, 200


@click.command()
@engine_argument
@click.option("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 is any free one.")
@click.option(
    "--batch",
    type=COUNT,
    default=8,
    help="Pictures drawn at once, at most; results do not depend on it.",
)
@click.option(
    "--waiting",
    type=COUNT,
    default=256,
    help="Pictures that may wait for a batch; more are answered 429.",
)
@click.option(
    "--api-key-file",
    type=PATH,
    help="A key on each line, of which clients must send one as a bearer token.",
)
@click.option(
    "--drain",
    type=click.IntRange(0, 3600),
    default=30,
    metavar="SECONDS",
    help="After SIGINT or SIGTERM, for what was accepted to finish.",
)
def serve(
    open_engine: OpenEngine,
    host: str,
    port: int,
    batch: int,
    waiting: int,
    api_key_file: Path | None,
    drain: int,
) -> None:
    """Serve an engine's pictures: an API that OpenAI's clients speak, and a page at /.

    Requests that wait share batches, whatever their options. See docs/serving.md.
    """
    for module in ("starlette", "uvicorn"):
        require(module, extra="serve", what="serving")
    keys = read_keys(api_key_file) if api_key_file else frozenset()
    from m2kit.runtime.serving.application import Service
    from m2kit.runtime.serving.limits import Limits, own_hosts
    from m2kit.runtime.serving.server import Server, address_of, listen

    with listen(host, port) as listening, open_engine() as engine:
        largest = engine.backend.largest_rows
        at_once = min(batch, largest // 2) if largest else batch
        limits = Limits(waiting=waiting, api_keys=keys, hosts=own_hosts(host))
        if host not in _LOCAL and not keys:
            note(f"WARNING: whoever reaches {host} may draw; --api-key-file asks for a key")
        with closing(Service(engine, max(1, at_once), limits)) as service:
            note(f"serving at {address_of(listening)}")
            server = Server(service, drain_s=drain, stopping=lambda: note(_stopping(drain)))
            try:
                server.run([listening])
            except KeyboardInterrupt:
                if server.force_exit:
                    raise
                sys.exit(130)  # all that was accepted is done: no error


def _stopping(drain: int) -> str:
    return f"stopping: what was accepted has {drain} s; Ctrl-C once more ends it now"


def read_keys(path: Path) -> frozenset[str]:
    """The API keys of a file, one on each line.

    Raises:
        InputError: It cannot be read, or has none or such as no header can hold.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a file of API keys, a line each ({error})") from error
    for number, key in enumerate(lines, 1):
        if len(key) > _LONGEST_KEY or not re.fullmatch("[!-~]*", key):
            raise InputError(
                f"{path}: expected keys of printable ASCII without spaces, of {_LONGEST_KEY} "
                f"characters at most, found another in line {number}"
            )
    keys = frozenset(filter(None, lines))
    if not 0 < len(keys) <= _MOST_KEYS:
        raise InputError(f"{path}: expected 1 to {_MOST_KEYS} keys, found {len(keys)}")
    return keys
