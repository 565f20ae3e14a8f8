"""The folder of a run: settings.json, metrics.csv, resume.ckpt (Lightning's, after every epoch),
best.ckpt where a model is chosen by a held-out measure, and at the end the checkpoint in the
official layout, curves.png and samples.png.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2kit.errors import InputError
from m2kit.outputs import new_file
from m2kit.records import BadRecord, JsonObject, read_json, read_record, to_json

SETTINGS_FILE = "settings.json"
METRICS_FILE = "metrics.csv"
RESUME_FILE = "resume.ckpt"
BEST_FILE = "best.ckpt"
CURVES_FILE = "curves.png"
SAMPLES_FILE = "samples.png"


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a run; each recipe adds its measures.

    Attributes:
        data: What it was trained on, in words.
        settings: The run's record of settings.
    """

    data: str
    settings: Any

    def to_json(self) -> JsonObject:
        """As the checkpoint notes it: one level, the measures before the settings."""
        values = asdict(self)
        settings = values.pop("settings")
        del settings["data"]  # its name; the words are noted
        return {**values, **settings}


def open_run(folder: Path, settings: object, resume: bool) -> Path | None:
    """Prepare a run folder; returns the file to resume from, if any.

    Args:
        folder: The folder.
        settings: The run's record of settings.
        resume: Go on with the run that the folder holds.

    Raises:
        InputError: The folder holds a run and `resume` was not asked for, or other settings.
        FolderError: The folder cannot be written.
    """
    stored = folder / SETTINGS_FILE
    if stored.is_file():
        if not resume:
            raise InputError(
                f"{folder} already holds a training run; add --resume to go on with it, "
                "or choose another folder with -o"
            )
        _refuse_other_settings(stored, settings)
    elif resume:
        raise InputError(f"{folder} holds no run to resume; leave out --resume to start one")
    with new_file(stored) as path:
        path.write_text(json.dumps(to_json(settings), indent=1) + "\n", encoding="utf-8")
    checkpoint = folder / RESUME_FILE
    return checkpoint if checkpoint.exists() else None


def _refuse_other_settings(stored: Path, settings: object) -> None:
    try:
        found = to_json(read_record(type(settings), read_json(stored)))
    except (BadRecord, OSError) as error:
        raise InputError(
            f"{stored} holds no settings of such a run ({error}); choose another folder with -o"
        ) from error
    wanted = to_json(settings)
    changed = sorted(name for name in wanted if found[name] != wanted[name])
    if changed:
        raise InputError(
            f"{stored.parent} was started with other settings: "
            + ", ".join(f"{n} {found[n]} (now {wanted[n]})" for n in changed)
            + "; repeat them, or choose another folder with -o"
        )
