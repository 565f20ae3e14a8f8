"""--dry-run of the trainers: what would run, as a table or as JSON. What the preset of a published
run names and is not at hand is assumed, and said to be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from m2kit.cli.output import print_result, stages
from m2kit.cli.training_options import PRESET
from m2kit.config import PRESETS
from m2kit.errors import InputError

if TYPE_CHECKING:
    from m2kit.training.checkpoints.hub import HubFile
    from m2kit.training.recipes.machine import Machine
    from m2kit.training.recipes.plan import Data, Plan
    from m2kit.training.recipes.settings import RunSettings

_UNSEEN = "workspaces of operators, fragmentation, CUDA's own, Python"


def show_tokenizer_plan(
    options: dict[str, Any],
    machine: Machine,
    init: Path | HubFile | None,
    files: tuple[Path | None, Path | None],
    output: Path,
    resume: bool,
    as_json: bool,
) -> None:
    """Print what `train tokenizer` would do.

    Args:
        options: The fields of the run's settings.
        machine: Where it would run.
        init: The checkpoint that it would start from; a published one is not fetched.
        files: Of LPIPS, as the options name them: VGG-16, heads.
        output: The run folder, which stays as it is.
        resume: Go on with the run in it.
        as_json: As one line of JSON.
    """
    from m2kit.training.models.perceptual import missing_files
    from m2kit.training.recipes.initial import read_initial
    from m2kit.training.recipes.plan import tokenizer_plan
    from m2kit.training.recipes.run_folder import TOKENIZER_FILES, check_run
    from m2kit.training.recipes.settings import TokenizerSettings, digest

    start = "not fetched" if init is not None else None
    start = digest(init) if isinstance(init, Path) else start
    settings = TokenizerSettings(**options, init_sha256=start)
    check_run(output, settings if start != "not fetched" else None, resume, *TOKENIZER_FILES)
    if isinstance(init, Path):
        read_initial(init, settings.spec)
    plan = tokenizer_plan(settings, machine, _data(settings))
    missing = missing_files(*files) if settings.perceptual_weight else []
    _show(plan, {}, {"missing": missing}, as_json)
    for line in [] if as_json else missing:  # not in the table, which would break an address
        click.echo(line)


def show_ar_plan(
    options: dict[str, Any],
    machine: Machine,
    tokenizer: Path | HubFile,
    output: Path,
    resume: bool,
    as_json: bool,
) -> None:
    """Print what `train ar` would do.

    Args:
        options: The fields of the run's settings, but for the tokenizer's hash.
        machine: Where it would run.
        tokenizer: The file that it would take; a published one is not fetched.
        output: The run folder, which stays as it is.
        resume: Go on with the run in it.
        as_json: As one line of JSON.
    """
    from m2kit.training.checkpoints.reading import read_checkpoint
    from m2kit.training.recipes.plan import ar_plan
    from m2kit.training.recipes.run_folder import AR_FILE, check_run
    from m2kit.training.recipes.settings import ARSettings, settings_for

    name = is_assumed("tokenizer_file")
    if name is not None:
        settings = ARSettings(tokenizer_sha256="", **options)
        spec: Any = PRESETS[name].spec.tokenizer
        told = f"that of {name}, assumed; name your own with --tokenizer"
    elif isinstance(tokenizer, Path):
        settings = settings_for(tokenizer, **options)
        spec, told = read_checkpoint(tokenizer).spec.tokenizer, str(tokenizer)
    else:
        raise InputError(
            f"a dry run fetches nothing: name a file that is here in place of {tokenizer}, or "
            "take that of a preset",
            option="--tokenizer, --preset",
        )
    check_run(output, settings if name is None else None, resume, AR_FILE)
    plan = ar_plan(settings, machine, _data(settings), spec)
    _show(plan, {"tokenizer": told}, {"tokenizer": told}, as_json)


def is_assumed(option: str) -> str | None:
    """The preset whose own is assumed in a dry run, where an option was not given."""
    context = click.get_current_context()
    given = context.get_parameter_source(option) != ParameterSource.DEFAULT
    return None if given else context.meta.get(PRESET)


def _data(settings: RunSettings) -> Data:
    from m2kit.training.recipes.plan import assumed_data, found_data
    from m2kit.training.recipes.presets import published, published_data
    from m2kit.training.recipes.settings import TokenizerSettings

    name = is_assumed("data")
    clips = isinstance(settings, TokenizerSettings) and settings.frames is not None
    if name and clips != ("frames" in published(name)):
        raise InputError(
            f"{name} was published as a run on {'pictures' if clips else 'clips'}, whose data says "
            "nothing of others; name the data",
            option="--data",
        )
    if name:
        return assumed_data(settings, published_data(name))
    with stages("films") as begin:
        return found_data(settings, begin)


def _show(plan: Plan, more: dict[str, Any], more_json: dict[str, Any], as_json: bool) -> None:
    preset = click.get_current_context().meta.get(PRESET)
    rows = {"preset": preset, **_rows(plan), **more}
    value = {"preset": preset, **plan.to_json(), "not_in_memory": _UNSEEN, **more_json}
    print_result(rows, as_json, value)


def _rows(plan: Plan) -> dict[str, Any]:
    """What the table shows."""
    data, devices, batch, memory = plan.data, plan.devices, plan.batch, plan.memory
    held_out = "an unknown number" if data.held_out_images is None else f"{data.held_out_images:,}"
    assumed = ", assumed; name your own with --data" if data.assumed else ""
    shape = " x ".join(map(str, (*filter(None, [data.frames]), *[data.size_pixels] * 2)))
    parts = f"{batch.parts_per_device} parts of {batch.images_per_part}"
    whole = "one part" if batch.parts_per_device == 1 else parts
    where = f"{devices.per_node} on each of {devices.nodes} machines" if devices.nodes > 1 else ""
    rows = {
        "data": f"{data.title}{assumed}",
        "clips" if data.frames else "images": f"{data.images_per_epoch:,} an epoch of {shape}, "
        f"{_count(data.classes, 'class', 'classes')}, {held_out} held out",
        "devices": ", ".join(
            part
            for part in (
                f"{devices.processes} x {devices.accelerator}",
                where,
                devices.strategy if devices.processes > 1 else "",
                devices.precision,
                "none of which is here" if devices.missing else "",
            )
            if part
        ),
        "batch": f"{batch.images:,} a step: {batch.images_per_device:,} a device, in {whole}",
        "steps": f"{plan.steps:,}: {plan.epochs:,} epochs of {plan.steps_per_epoch:,}",
    }
    if data.left_out:
        rows["not trained on"] = data.left_out
    for corner in plan.schedule:
        epoch = corner.step / plan.steps_per_epoch
        rate = f"{corner.learning_rate:.6g} at epoch {epoch:,.2f}"
        rows[f"step {corner.step:,}"] = f"learning rate {rate} ({corner.what})"
    for network in plan.networks:
        known = {network.parameters: "", 0: ", not trained"}
        trained = known.get(network.trained, f", {network.trained:,} of them trained")
        rows[f"parameters, {network.name}"] = f"{network.parameters:,}{trained}"
    parts_of = ("weights", "gradients", "optimizer", "averages", "exchange", "activations")
    sizes = {name: getattr(memory, f"{name}_bytes") for name in parts_of}
    rows["memory a device"] = f"{memory.total_bytes / 1e9:,.2f} GB: " + ", ".join(
        f"{name} {size / 1e9:,.2f}" for name, size in sizes.items() if size
    )
    rows["not in it"] = _UNSEEN
    return rows


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
