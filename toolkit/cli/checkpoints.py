"""Checkpoint files as commands take them: the path of one, or the address of a published one, which
is downloaded when it is read; and the options that say how.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2kit.cli.options import PathName, together
from m2kit.cli.output import note, stages
from m2kit.config import PRESETS, UNTOLD, overrides_from_json
from m2kit.errors import InputError
from m2kit.records import BadRecord, JsonObject, json_from_text, read_json

if TYPE_CHECKING:
    from m2kit.training.checkpoints.hub import HubFile
    from m2kit.training.checkpoints.reading import Checkpoint


class CheckpointName(PathName):
    """A path, or an address of the form hf://OWNER/REPO/FILE[@REVISION]."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path or the file of the hub."""
        from m2kit.training.checkpoints.hub import HUB, hub_file_from_address

        if not str(value).startswith(HUB):
            return super().convert(value, param, ctx)
        try:
            return hub_file_from_address(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)


CHECKPOINT = CheckpointName()


def local_file(checkpoint: Path | HubFile) -> Path:
    """The file's path, of a published one after its download."""
    from m2kit.training.checkpoints.hub import fetch

    if isinstance(checkpoint, Path):
        return checkpoint
    with stages("MB") as begin:
        return fetch(checkpoint, begin)


def read_named(
    checkpoint: Path | HubFile, *, tokenizer: Path | HubFile | None, **reading: Any
) -> Checkpoint:
    """Read a checkpoint as the options of `checkpoint_options` say."""
    from m2kit.training.checkpoints.reading import read_checkpoint

    path = local_file(checkpoint)
    other = None if tokenizer is None else local_file(tokenizer)
    note(f"reading {checkpoint} ...")
    return read_checkpoint(path, tokenizer=other, **reading)


def _overrides(ctx: click.Context, param: click.Parameter, text: str | None) -> JsonObject:
    if text is None:
        return {}
    inline = text.lstrip().startswith("{")
    try:
        value = json_from_text(text) if inline else read_json(Path(text))
    except (BadRecord, OSError, ValueError) as error:  # ValueError: of a path with a NUL
        found = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--spec: expected JSON or a JSON file, found {text} ({found})") from error
    return overrides_from_json(value)


# --preset, --spec, --weights and --tokenizer: how a checkpoint file is read
checkpoint_options = together(
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        metavar="NAME",
        help="Published model that tells what a checkpoint's shapes do not: "
        f"{', '.join(PRESETS)}.  [default: the one of the same shapes]",
    ),
    click.option(
        "--spec",
        "overrides",
        metavar="FILE|JSON",
        callback=_overrides,
        help="The same told by a JSON file, or JSON such as "
        f'{{"heads": 20}}. Fields: {", ".join(UNTOLD)}.',
    ),
    click.option(
        "--weights",
        type=click.Choice(["ema", "live"]),
        help="Which weights of a tokenizer file.  [default: ema where it has them]",
    ),
    click.option(
        "--tokenizer",
        type=CHECKPOINT,
        help="Tokenizer file that replaces the tokenizer of an AR file; may be published, too.",
    ),
)
