"""sample: sets of images too large for one sitting, drawn in shards, merged for an evaluator."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

import m2kit
from m2kit.class_names import class_ids, names_in_notes
from m2kit.cli.commands import Interrupted
from m2kit.cli.options import (
    COUNT,
    OpenEngine,
    batch_option,
    engine_argument,
    given,
    json_option,
    only_folder,
    output_option,
    sampling_options,
)
from m2kit.cli.output import note, print_result, stages
from m2kit.errors import FolderError, require
from m2kit.host import peak_bytes
from m2kit.manifest import ENGINE
from m2kit.outputs import check_output_folder
from m2kit.progress import Begin
from m2kit.runtime.engine import Engine
from m2kit.runtime.sample_files import ADM_NAME, merge_npz, merge_tar, part_words
from m2kit.runtime.sample_set import SampleSet, SetFolder, draw_parts, find_set, set_of

_TELL_SECONDS = 60  # between two lines on how far it is, where stderr is no terminal
_SHOWN = 20  # shards that are missing


class Shard(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """Reads "2/5" as the third of five."""

    name = "shard"

    def get_metavar(self, *_: Any, **__: Any) -> str:
        """What help shows."""
        return "I/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The two numbers."""
        if not isinstance(value, str):
            return value
        parts = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value)
        if parts is None or not int(parts[1]) < int(parts[2]):
            self.fail(
                f"expected I/N, N shards of which this is number I from 0 to N - 1, found "
                f"{value[:40]!r}",
                param,
                ctx,
            )
        return int(parts[1]), int(parts[2])


@click.command()
@engine_argument
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS[,CLASS...]",
    help="Class to draw, as for generate; may be repeated.  [default: all]",
)
@click.option("--per-class", type=COUNT, default=50, help="Images of each class.")
@sampling_options
@click.option(
    "--uint8",
    type=click.Choice(["truncate", "round"]),
    default="truncate",
    help="What becomes of values between two whole ones: ADM and Open-MAGVIT2 truncate, VAR and "
    "LlamaGen round.",
)
@batch_option
@click.option(
    "--shard",
    type=Shard(),
    default=(0, 1),
    show_default="0/1, all of it",
    help="Draw share I of N, I from 0; the others may be drawn on other machines.",
)
@click.option(
    "--ray",
    "address",
    metavar="ADDRESS",
    help="Draw on a Ray cluster: HOST:PORT, auto (the one this machine is in) or local (started "
    "here, and ended).",
)
@click.option(
    "--workers",
    type=COUNT,
    help="Processes of the cluster that draw, with an engine each; a CPU engine's --threads are "
    "those of each.  [threads: the cores of a node, divided among its workers]",
)
@output_option("samples", "Folder of the set; its parts are in parts/ there.")
@click.option("--merge", is_flag=True, help="Draw nothing: write the set whose parts are all here.")
@click.option(
    "--form",
    type=click.Choice(["npz", "tar"]),
    default="npz",
    help=f"What --merge writes: {ADM_NAME} as ADM's evaluator reads it, or .tar shards as "
    "webdataset does.",
)
@json_option
def sample(
    open_engine: OpenEngine,
    shard: tuple[int, int],
    address: str | None,
    workers: int | None,
    output: Path,
    merge: bool,
    form: str,
    as_json: bool,
    **how: Any,
) -> None:
    """Draw a large set of images of every class, for an evaluation, on any number of machines.

    The i-th image of class c is the one that `m2kit generate` draws under the same seed, whatever N
    is. Images are kept in parts of up to 64 (a whole batch at least), each of which is whole when
    it is there: after a kill the same command goes on. Bring the parts of all machines into one
    folder, and --merge writes samples.npz: arr_0 (n, h, w, 3) uint8 and arr_1 the labels, in order
    of class and number. A folder with parts of another set (engine, sampling, seed, classes, images
    per class, uint8, batch, version) is refused. Memory does not depend on how many images there
    are.

    --merge needs no ENGINE; where one is named, the set must be what it would draw.
    """
    check_output_folder(output)
    if merge:
        _merge(open_engine, output, form, as_json, how)
        return
    if given("form"):
        raise click.UsageError("--form says what --merge writes; add --merge.")
    if (address is None) != (workers is None):
        raise click.UsageError("--ray and --workers need one another, as --ray local --workers 2.")
    if address is not None:
        require("ray.data", extra="ray", what="drawing on a Ray cluster")
    with open_engine() as engine, stages("tokens") as begin, ExitStack() as stack:
        found = find_set(output, _wanted(engine, **how))
        whole = found.set
        share = range(shard[0], whole.parts, shard[1])
        total, left = (
            found.images_of(share),
            found.images_of([p for p in share if p in found.missing]),
        )
        began, finished = time.perf_counter(), 0
        progress = _Lines(total - left, total)
        active = engine.backend.active()
        told: dict[str, int] = {}
        if address is None or workers is None or not left:
            drawing = draw_parts(engine, found, shard, begin)
        else:
            drawing = _on_ray(stack, address, workers, engine, found, shard, begin, told)
        try:
            for count in drawing:
                finished += count
                progress.tell(finished)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted: {total - left + finished} of {total} images are finished in "
                f"{output}. Give the same command again to go on."
            ) from error
        seconds = time.perf_counter() - began
    missing = len(find_set(output, whole).missing)
    if not missing:
        merging = shlex.join(["m2kit", "sample", "--merge", "-o", str(output)])
        note(f"all {whole.parts} parts are here; `{merging}` writes the set")
    result = {
        "images": total,
        "there_before": total - left or None,
        "shard": f"{shard[0]}/{shard[1]}",
        "images_of_set": whole.images,
        "classes": len(whole.classes),
        "per_class": whole.per_class,
        "seed": whole.sampling.seed,
        "uint8": whole.uint8,
        "missing_parts": missing,
        "workers": workers,
        "threads_of_worker": "-".join(map(str, sorted(set(told.values())))) or None,
        "images_per_second": round(finished / seconds, 4) if finished else None,
        "output": str(output),
    }
    details = {"active": active, "peak_memory_bytes": peak_bytes()}
    print_result(result, as_json, result | details)


def _on_ray(
    stack: ExitStack,
    address: str,
    workers: int,
    engine: Engine,
    found: SetFolder,
    shard: tuple[int, int],
    begin: Begin,
    told: dict[str, int],
) -> Iterator[int]:
    """Draw on a cluster, which is left with the stack; the engine here is closed before."""
    from m2kit.runtime.ray_sampling import draw_on, workers_at

    options = click.get_current_context().params
    path = only_folder(ENGINE, options["engine"])
    opening = {name: options[name] for name in ("threads", "provider")}
    begin(f"joining Ray at {address}")
    drawers = stack.enter_context(workers_at(address, workers, path, engine, **opening))
    positions = engine.transformer.positions
    engine.close()
    return draw_on(drawers, found, positions, shard, begin, told)


def _wanted(
    engine: Engine,
    classes: tuple[str, ...],
    per_class: int,
    uint8: Any,
    batch: int | None,
    **sampling: Any,
) -> SampleSet:
    """The set that the options name."""
    known = engine.transformer.classes
    names = names_in_notes(engine.info.training, known) if engine.info else ()
    chosen = class_ids(classes, known, names) or range(known)
    return set_of(engine, chosen, per_class, m2kit.Sampling(**sampling), uint8=uint8, batch=batch)


class _Lines:
    """Lines on how far a long drawing is, now and then, where no bar can be shown."""

    def __init__(self, before: int, total: int) -> None:
        self._before, self._total = before, total
        self._began = self._told = time.perf_counter()

    def tell(self, finished: int) -> None:
        """So many images are finished, besides those that were there before."""
        now = time.perf_counter()
        if sys.stderr.isatty() or now - self._told < _TELL_SECONDS:
            return
        self._told, done = now, self._before + finished
        seconds = (now - self._began) / finished * (self._total - done)
        hours, minutes = divmod(round(seconds / 60), 60)
        note(f"{done:,} of {self._total:,} images, {hours} h {minutes:02d} min left")


def _merge(
    open_engine: OpenEngine, output: Path, form: str, as_json: bool, how: dict[str, Any]
) -> None:
    """Write a set of which all parts are there, and print what was written."""
    context = click.get_current_context()
    named = context.params["engine"]
    if given("shard"):
        raise click.UsageError("--merge writes all shards; leave out --shard.")
    if given("address", "workers"):
        raise click.UsageError("--merge draws nothing; leave out --ray and --workers.")
    drawing = given(*how, "provider", "threads", "check")
    if drawing and named is None:
        raise click.UsageError(
            f"with --merge, {', '.join(drawing)} {'need' if len(drawing) > 1 else 'needs'} ENGINE, "
            "to hold the set against; name it, or leave them out."
        )
    wanted = None
    if named is not None:
        with open_engine() as engine:
            wanted = _wanted(engine, **how)
    found = find_set(output, wanted)
    if found.missing:
        raise _missing(found, str(named or "ENGINE"))
    with stages("images") as begin:
        written = merge_npz(found, begin) if form == "npz" else merge_tar(found, begin)
    whole = found.set
    result = {
        "images": whole.images,
        "image_size": list(whole.image_size),
        "classes": len(whole.classes),
        "per_class": whole.per_class,
        "seed": whole.sampling.seed,
        "uint8": whole.uint8,
        "engine": whole.engine,
        "drawn_on": sorted({part.device for part in found.parts.values()}),
        "output": str(written) if isinstance(written, Path) else f"{written[0]} .. {written[-1]}",
    }
    print_result(result, as_json, result | {"peak_memory_bytes": peak_bytes()})


def _missing(found: SetFolder, engine: str) -> FolderError:
    """Which shards are missing, and the commands that draw them."""
    shards = sorted({part % found.shards for part in found.missing})
    first, *others = (f"--shard {shard}/{found.shards}" for shard in shards)
    more = ", ..." if len(others) > _SHOWN else ""
    rest = f", and likewise with {', '.join(others[:_SHOWN])}{more}" if others else ""
    return FolderError(
        f"{found.path} lacks {len(found.missing)} of the set's {found.set.parts} parts "
        f"({part_words(found.missing)}); bring them here, or draw them: "
        f"`{shlex.join(_words(found, engine))} {first}`{rest}"
    )


def _words(found: SetFolder, engine: str) -> list[str]:
    """The command that draws a set, as words."""
    whole = found.set
    values = {
        name: ",".join(map(str, getattr(whole.sampling, name)))
        for name in ("guidance", "temperature", "top_k", "top_p")
    }
    words = ["m2kit", "sample", engine, "--per-class", str(whole.per_class)]
    words += ["--class", _ranges(whole.classes)]
    words += ["--seed", str(whole.sampling.seed)]
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", value]
    words += ["--greedy"] * whole.sampling.greedy
    words += ["--uint8", whole.uint8, "--batch", str(whole.batch), "-o", str(found.path)]
    return words


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as 0-3,7."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in ends)
