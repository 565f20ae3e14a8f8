"""report.html: a finished run on one page, in one file that needs no other and asks no network.

Elements are built as a tree, which escapes whatever text is put into it. Light and dark follow the
reader's screen.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.outputs import new_file
from m2kit.records import JsonObject, to_json
from m2kit.runtime.codebook import CodebookReport
from m2kit.runtime.images import uint8_from_images
from m2kit.runtime.saving import Sheet
from m2kit.training.datasets.crops import Crops
from m2kit.training.evaluation.tokenizer import Seen, pictures_above_reconstructions
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.recipes.metrics import EPOCH, STEP, curves_png, read_metrics
from m2kit.training.recipes.phase import Panels
from m2kit.training.recipes.run_folder import METRICS_FILE, REPORT_FILE, Trained

_HELD_OUT = "held_out_"
_SHARES = "codebook_usage", "held_out_codebook_usage"  # shown as percentages
_NAMES = {  # of what is no name with spaces
    "held_out_psnr_db": "held-out PSNR in dB, mean over pictures of 8 bits a colour",
    "held_out_psnr": "held-out PSNR in dB, mean over pictures of floats, as while it trained",
}
_LISTED = 20  # of a list's values
_WIDTH, _PIXELS = 1280, 2**20  # of a grid of pictures
_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 82rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.45;
  font-family: system-ui, sans-serif; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
.soft, figcaption { opacity: .7; } .bad { color: #b00020; font-weight: bold; }
@media (prefers-color-scheme: dark) { .bad { color: #ff6b81; } }
table { border-collapse: collapse; } td, th { padding: .2rem 1.2rem .2rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid #8885; font-variant-numeric: tabular-nums; }
th { font-weight: normal; white-space: nowrap; } td { overflow-wrap: anywhere; }
.first td { font-size: 1.3rem; } meter { width: 12rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
.columns { display: flex; flex-wrap: wrap; gap: 1rem 3rem; }
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with a caption: a PNG, and another one for a dark screen, if any."""

    caption: str
    png: bytes
    dark: bytes | None = None


def grid_layout(size: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of pictures (height, width) that a page has space for: 10 x 10 at most."""
    columns = min(10, max(1, _WIDTH // size[1]))
    return min(10, max(1, _PIXELS // (columns * size[0] * size[1]))), columns


def figure_of_grid(caption: str, images: npt.NDArray[np.float32], *, columns: int) -> Figure:
    """Images (B, 3, H, W) float32 in [-1, 1], row by row."""
    sheet = Sheet(Path("grid.png"), len(images), images.shape[2:], columns=columns)
    for item, pixels in enumerate(uint8_from_images(images)):
        sheet.put(item, pixels)
    file = io.BytesIO()
    Image.fromarray(sheet.pixels).save(file, "PNG")
    return Figure(caption, file.getvalue())


def figure_of_samples(
    images: npt.NDArray[np.float32], classes: Sequence[str], *, columns: int
) -> Figure:
    """Rows of images, one for each of the first classes, as many as there is space for."""
    rows = min(grid_layout(images.shape[2:])[0], len(images) // columns)
    caption = f"samples, a row for each of {', '.join(classes[:rows])}"
    return figure_of_grid(caption, images[: rows * columns], columns=columns)


def figure_of_reconstructions(tokenizer: Tokenizer, held_out: Seen) -> Figure:
    """Some held-out pictures, or frames of clips, and below each what the tokenizer makes of it."""
    size = held_out.cut.size
    if isinstance(held_out, Crops):
        what, (rows, columns) = "held-out pictures", grid_layout(size)
    else:
        what, columns = "frames of held-out clips", held_out.frames
        rows = min(10, max(2, _PIXELS // (columns * size[0] * size[1])))
    images = pictures_above_reconstructions(
        tokenizer, held_out, rows=max(1, rows // 2), columns=columns
    )
    caption = f"{what}, a row of reconstructions below each row"
    return figure_of_grid(caption, images, columns=columns)


def write_page(
    folder: Path,
    title: str,
    training: Trained,
    *,
    panels: Panels,
    figures: Sequence[Figure],
    codebooks: Mapping[str, CodebookReport],
    environment: JsonObject,
) -> None:
    """Write report.html into a run folder that has its metrics.csv.

    Args:
        folder: The run folder.
        title: What was trained.
        training: What came of it.
        panels: Of its curves.
        figures: To be looked at.
        codebooks: Reports, by what they are of.
        environment: What it ran on.

    Raises:
        InputError: metrics.csv is damaged.
        FolderError: The page cannot be written.
    """
    metrics = folder / METRICS_FILE
    settings = to_json(training.settings)
    if settings.get("steps"):
        del settings["epochs"]  # in place of which it has steps
    measures = {n: v for n, v in to_json(training).items() if n not in ("data", "settings")}
    page, body = new_page(f"{title}: {folder.resolve().name}")
    add_text(body, "h1", title)
    add_text(body, "p", f"trained on {training.data}, {environment['finished']}", "soft")
    body.append(table_element(measures, "first"))
    _last_measurement(body, read_metrics(metrics, panels))
    add_text(body, "h2", "Pictures")
    for figure in figures:
        body.append(figure_element(figure))
    add_text(body, "h2", "Curves")
    light, dark = (curves_png(metrics, panels, dark=dark) for dark in (False, True))
    body.append(figure_element(Figure("over the epochs", light, dark)))
    for of, report in codebooks.items():
        add_text(body, "h2", f"Codebook: {of}")
        body.append(codebook_element(report))
    for name, values in (("Settings", settings), ("Environment", environment)):
        add_text(body, "h2", name)
        body.append(table_element(values))
    save_page(folder / REPORT_FILE, page)


def new_page(title: str) -> tuple[Element, Element]:
    """An empty page, and its body."""
    page = Element("html", lang="en")
    head, body = SubElement(page, "head"), SubElement(page, "body")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    add_text(head, "title", title)
    add_text(head, "style", _STYLE)
    return page, body


def save_page(destination: Path, page: Element) -> None:
    """Write a page.

    Raises:
        FolderError: It cannot be written.
    """
    text = "<!DOCTYPE html>\n" + tostring(page, encoding="unicode", method="html") + "\n"
    with new_file(destination) as path:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _last_measurement(body: Element, rows: Sequence[Mapping[str, float]]) -> None:
    measured = [row for row in rows if any(name.startswith(_HELD_OUT) for name in row)]
    if measured:
        last = measured[-1]
        add_text(body, "h2", f"Last measurement, step {last[STEP]}, epoch {last[EPOCH]:.4g}")
        body.append(table_element({n: v for n, v in last.items() if n not in (STEP, EPOCH)}))


def codebook_element(report: CodebookReport) -> Element:
    """Its rows, and a bar for each bit."""
    box = Element("div", {"class": "columns"})
    rows = report.rows()
    rows.pop("share of +1 of each bit", None)
    box.append(table_element(rows, bad={"dead bits"} if report.dead_bits else ()))
    if report.ones:
        table = SubElement(box, "table")
        for bit, share in enumerate(report.ones):
            row = SubElement(table, "tr", {"class": "bad"} if bit in report.dead_bits else {})
            add_text(row, "th", f"bit {bit}")
            add_text(row, "td", f"{share:.3f}")
            SubElement(SubElement(row, "td"), "meter", value=f"{share:.3f}", title="share of +1")
    return box


def table_element(values: Mapping[str, Any], kind: str = "", bad: Iterable[str] = ()) -> Element:
    """A row for each value, of the kind of its style; `bad` ones stand out."""
    table = Element("table", {"class": kind} if kind else {})
    for name, value in values.items():
        row = SubElement(table, "tr", {"class": "bad"} if name in bad else {})
        add_text(row, "th", _NAMES.get(name, name.replace("_", " ")))
        add_text(row, "td", f"{value:.2%}" if name in _SHARES else _shown(value))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        more = [f"{len(value) - _LISTED} more"] if len(value) > _LISTED else []
        return ", ".join([*map(_shown, value[:_LISTED]), *more]) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def figure_element(figure: Figure) -> Element:
    """A picture, inside the page, with its caption."""
    element = Element("figure")
    picture = SubElement(element, "picture")
    if figure.dark is not None:
        media = "(prefers-color-scheme: dark)"
        SubElement(picture, "source", media=media, srcset=_data_address(figure.dark))
    SubElement(picture, "img", src=_data_address(figure.png), alt=figure.caption)
    add_text(element, "figcaption", figure.caption)
    return element


def _data_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def add_text(parent: Element, tag: str, text: str, kind: str = "") -> None:
    """An element of text alone, of the kind of its style."""
    SubElement(parent, tag, {"class": kind} if kind else {}).text = text
