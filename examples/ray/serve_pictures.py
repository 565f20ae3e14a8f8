"""The application of `m2kit serve` as a deployment of Ray Serve: replicas with an engine each,
behind one address.

    serve run serve_pictures:pictures engine=/data/emoji.engine replicas=2
"""

from __future__ import annotations

from pathlib import Path

from ray import serve
from starlette.applications import Starlette

import m2kit
from m2kit.runtime.serving.application import Service
from m2kit.runtime.serving.limits import Limits

BATCH, WAITING = 8, 256  # pictures, of a replica


def pictures(arguments: dict[str, str]) -> serve.Application:
    """The deployment of an engine, whose path is there on every node."""
    engine = Path(arguments["engine"]).resolve()
    replicas, threads = (int(arguments.get(name, "1")) for name in ("replicas", "threads"))

    def application() -> Starlette:  # in a replica
        opened = m2kit.open_engine(engine, threads=threads)
        return Service(opened, BATCH, Limits(waiting=WAITING)).application()

    deployment = serve.deployment(
        serve.ingress(application)(),
        name="pictures",
        num_replicas=replicas,
        max_ongoing_requests=WAITING,  # the application says itself when its queue is full
        ray_actor_options={"num_cpus": 0.5},
        graceful_shutdown_timeout_s=60,
    )
    return deployment.bind()
