"""What the experiments share: runs that are kept, a table over seeds, a plot and a page.

A run is a folder, named after its settings. One that is done has a result.json and is never run
again; one that was stopped goes on where it was; two experiments that need the same run share it.
The rows of an experiment, one a run, become NAME.csv, NAME.png and the measured part of NAME.md,
whose words are a person's and stay.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure

from m2kit.errors import M2KitError, TrainingInterrupted
from m2kit.outputs import new_file
from m2kit.records import to_json
from m2kit.runtime.engine import Engine
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.datasets.encoding import encode_data
from m2kit.training.datasets.table import dataset_named
from m2kit.training.recipes.ar import train_ar
from m2kit.training.recipes.run_folder import AR_FILE, SETTINGS_FILE, TOKENIZER_FILES
from m2kit.training.recipes.settings import RunSettings, TokenizerSettings, settings_for
from m2kit.training.recipes.tokenizer import train_tokenizer
from m2kit.training.torch_backend import TorchBackend

Row = dict[str, Any]
T = TypeVar("T")
RESULT_FILE = "result.json"
BEGIN, END = "<!-- measured: written by the command -->", "<!-- end of what was measured -->"
TOKENIZER: Row = {  # 16 x 16 tokens a picture; a batch has 2,048: 256 could not fill 2^12 codes
    "size": 32, "flip": True, "one_of_group": True, "base_channels": 32,
    "channel_multipliers": (1, 2), "blocks_per_level": 1, "epochs": 1, "steps": 500, "batch": 8,
    "learning_rate": 2e-3, "warm_up": 30.0, "floor": 0.05, "clip": 1.0, "ema_decay": 0.98,
    "entropy_weight": 0.1, "entropy_temperature": 0.01, "commitment_weight": 0.25,
    "log_every": 20, "validate_every": 100,
}  # fmt: skip
COARSE: Row = {  # 4 x 4 tokens a picture and 2^12 codes, for AR models: 256 would take hours
    "code_bits": 12, "channel_multipliers": (1, 1, 2, 2), "steps": 300, "batch": 16,
    "learning_rate": 1e-3, "validate_every": 75,
}  # fmt: skip
AR: Row = {  # on a token cache, which decides about size and crops
    "one_of_group": True, "width": 128, "heads": 4, "inter_layers": 4, "intra_layers": 1,
    "ffn_width": 320, "bits": (4, 8), "weight_decay": 0.05, "dropout": 0.1, "class_dropout": 0.1,
    "epochs": 1, "steps": 720, "batch": 32, "learning_rate": 1e-3, "warm_up": 30.0, "floor": 0.05,
    "clip": 1.0, "ema_decay": 0.98, "log_every": 20, "validate_every": 120,
}  # fmt: skip
_CROPS = 4  # of each training picture, every second one mirrored
_QUICK: Row = {"steps": 4, "batch": 8, "warm_up": 1.0, "log_every": 2, "validate_every": 4}


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is done.

    Attributes:
        folder: The run folder.
        result: What came of it, the recipe's record; `seconds` of wall-clock, None where it was
            stopped in between.
    """

    folder: Path
    result: Row

    @property
    def tokenizer(self) -> Path:
        """The checkpoint of a tokenizer run."""
        return self.folder / TOKENIZER_FILES[0]

    @property
    def model(self) -> Path:
        """The checkpoint of an AR run."""
        return self.folder / AR_FILE


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how large: the options of every experiment.

    Attributes:
        name: The experiment's.
        data: Name or path of the data set.
        runs: Folder of the run folders.
        output: Folder of table, plot and page.
        quick: A few steps of each run, with one seed: to see that it works.
    """

    name: str
    data: str
    runs: Path
    output: Path
    quick: bool

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the repetitions."""
        return (0,) if self.quick else (0, 1, 2)

    def some(self, options: Sequence[T]) -> Sequence[T]:
        """All of the options; of a trial the first one."""
        return options[:1] if self.quick else options

    def tokenizer(self, seed: int, variant: str = "tokenizer", **changes: Any) -> Run:
        """A tokenizer run, TOKENIZER but for the changes."""
        values = {"data": self.data} | TOKENIZER | (_QUICK if self.quick else {}) | changes
        settings = TokenizerSettings(seed=seed, **values)
        return self._done(
            variant, settings, lambda folder, resume: train_tokenizer(
                settings, folder, resume=resume)
        )  # fmt: skip

    def ar(self, seed: int, tokenizer: Run, variant: str = "ar", **changes: Any) -> Run:
        """An AR run on a tokenizer's tokens, AR but for the changes."""
        values = {"data": str(self._tokens(tokenizer))} | AR | (_QUICK if self.quick else {})
        values |= changes
        guidance = (1.0,) * len(values["bits"])
        file = tokenizer.tokenizer
        settings = settings_for(file, seed=seed, guidance=guidance, **values)
        return self._done(
            variant, settings, lambda folder, resume: train_ar(
                settings, file, folder, resume=resume)
        )  # fmt: skip

    def _tokens(self, tokenizer: Run) -> Path:
        """The token cache of the pictures that a tokenizer was trained on; encoded once."""
        file = tokenizer.folder / "tokens.npz"
        if not file.exists():
            checkpoint = read_checkpoint(tokenizer.tokenizer)
            data, size = dataset_named(self.data), TOKENIZER["size"]
            with Engine(checkpoint.spec, TorchBackend(model_from_checkpoint(checkpoint))) as engine:
                crops = 1 if self.quick else _CROPS
                encode_data(
                    engine, checkpoint.source, data, file, crops=crops, size=size, flip=True
                )
        return file

    def _done(self, variant: str, settings: RunSettings, train: Callable[[Path, bool], Any]) -> Run:
        fields = {**to_json(settings), "data": Path(settings.data).name}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]
        folder = self.runs / f"{variant}-{digest}"
        file = folder / RESULT_FILE
        if not file.exists():
            resume = (folder / SETTINGS_FILE).exists()
            print(f"{folder} {'goes on' if resume else 'begins'}", flush=True)
            start = time.monotonic()
            training = train(folder, resume)
            seconds = None if resume else round(time.monotonic() - start, 1)
            result = {**training.to_json(), "seconds": seconds}
            with new_file(file) as path:
                path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return Run(folder, json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the table: its key in the rows, its heading with the unit, and its format."""

    key: str
    heading: str
    form: str = ".2f"


def run_experiment(
    description: str | None,
    rows_of: Callable[[Bench], list[Row]],
    *,
    by: Sequence[str],
    measures: Sequence[Measure],
    draw: Callable[[Figure, list[Row]], None],
) -> None:
    """The command of an experiment: its runs, then its table, plot and page.

    Args:
        description: The experiment's prose, title first.
        rows_of: Makes the rows, one a run.
        by: Columns that name what is compared; runs that differ in others are repetitions.
        measures: Columns of the table.
        draw: Draws the plot.
    """
    name = Path(sys.argv[0]).stem
    prose = (description or name).strip()
    parser = argparse.ArgumentParser(
        description=prose, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="emoji64.npz", help="a data set's name or path")
    parser.add_argument("--runs", type=Path, default=Path("build/experiments/runs"))
    parser.add_argument("-o", "--output", type=Path, default=Path("build/experiments"))
    parser.add_argument("--quick", action="store_true", help="a few steps, one seed: a trial")
    options = parser.parse_args()
    bench = Bench(name, options.data, options.runs, options.output, options.quick)
    try:
        rows = rows_of(bench)
    except TrainingInterrupted:
        sys.exit(f"stopped; python experiments/{name}.py goes on with it")
    except M2KitError as error:
        sys.exit(str(error))
    bench.output.mkdir(parents=True, exist_ok=True)
    _write_csv(bench.output / f"{name}.csv", rows)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    draw(figure, rows)
    with new_file(bench.output / f"{name}.png") as path:
        figure.savefig(path, dpi=90)
    _write_page(bench, prose, table(rows, by, measures), rows)
    print(table(rows, by, measures))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def groups(rows: Sequence[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by the values of some columns, in the order in which these first occur."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in by), []).append(row)
    return found


def table(rows: Sequence[Row], by: Sequence[str], measures: Sequence[Measure]) -> str:
    """A Markdown table: mean and standard deviation over the rows of each group."""
    lines = [
        "| " + " | ".join([*by, *(m.heading for m in measures)]) + " |",
        "|---" * len(by) + "|--:" * len(measures) + "|",
    ]
    for key, members in groups(rows, by).items():
        cells = [*map(str, key), *(_cell([row[m.key] for row in members], m) for m in measures)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], measure: Measure) -> str:
    mean, deviation = spread(values)
    shown = format(mean, measure.form)
    return shown if len(set(values)) == 1 else f"{shown} ± {format(deviation, measure.form)}"


def points(axes: Any, rows: Sequence[Row], x: str, colour: str, measure: Measure) -> None:
    """A point for the mean of each group, those of each `colour` a little beside the others', with
    the standard deviation over its rows."""
    places = {key: index for index, (key,) in enumerate(groups(rows, [x]))}
    kinds = [key for (key,) in groups(rows, [colour])]
    for number, kind in enumerate(kinds):
        found = groups([row for row in rows if row[colour] == kind], [x])
        spreads = [spread([row[measure.key] for row in members]) for members in found.values()]
        aside = (number - (len(kinds) - 1) / 2) * 0.4 / len(kinds)
        means, deviations = zip(*spreads, strict=True)
        at = [places[key] + aside for (key,) in found]
        axes.errorbar(at, means, deviations, fmt="o", capsize=3, label=str(kind))
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylabel(measure.heading)
    axes.grid(axis="y", alpha=0.3)
    if len(kinds) > 1:
        axes.legend(title=colour, fontsize="small")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with new_file(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: round(v, 6) if isinstance(v, float) else v for key, v in row.items()}
            for row in rows
        )


def _write_page(bench: Bench, prose: str, shown: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """NAME.md: what is between the marks anew, all else as it was."""
    path = bench.output / f"{bench.name}.md"
    if not path.exists():
        title, _, rest = prose.partition("\n")
        path.write_text(f"# {title.rstrip('.')}\n{rest}\n\n{BEGIN}\n{END}\n", encoding="utf-8")
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path} has not the lines {BEGIN} and {END}; add them, or move it away")
    times = [row["seconds"] for row in rows if row["seconds"] is not None]
    whole = f"training took {sum(times) / 60:.0f} min"
    if len(times) < len(rows):
        whole += f",\nbut for {len(rows) - len(times)} that went on after a stop"
    runs = f"Mean ± standard deviation over {len(bench.seeds)} seeds, in table and plot."
    took = (
        f"Of the {len(rows)} rows of [{bench.name}.csv]({bench.name}.csv); {whole}, "
        f"threads: {torch.get_num_threads()}."
    )
    picture = f"![{bench.name}]({bench.name}.png)"
    measured = f"\n{shown}\n\n{runs}\n{took}\n\n{picture}\n"
    with new_file(path) as new:
        new.write_text(before + BEGIN + "\n" + measured + "\n" + END + after, encoding="utf-8")
