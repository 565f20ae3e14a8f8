"""What a run ran on and with: versions, processor and GPU, devices, the command."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import datetime, timezone

import lightning
import numpy as np
import torch
from lightning.fabric import Fabric

import m2kit
from m2kit.host import available_cores, host_name
from m2kit.records import JsonObject, to_json
from m2kit.training.recipes.machine import Machine


def environment_of(machine: Machine, fabric: Fabric) -> JsonObject:
    """Of this process, name -> value."""
    gpu = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else None
    return {
        "command": shlex.join(sys.orig_argv),
        "finished": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "m2kit": m2kit.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{host_name()}, {available_cores()} cores",
        "gpu": gpu,
        "processes": fabric.world_size,
        **to_json(machine),
    }
