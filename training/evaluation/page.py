"""report.html of an evaluation: its numbers, what they are of, and pictures, on one page that needs
no other file and asks no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2kit.records import to_json
from m2kit.runtime.codebook import CodebookReport
from m2kit.runtime.images import images_from_pixels
from m2kit.training.evaluation.protocol import Result
from m2kit.training.recipes.page import (
    Figure,
    add_text,
    codebook_element,
    figure_element,
    figure_of_grid,
    new_page,
    save_page,
    table_element,
)

PAGE_FILE = "report.html"
_COLUMNS = 10


def write_result_page(
    folder: Path, result: Result, figure: Figure, codebook: CodebookReport | None = None
) -> None:
    """Write report.html into the folder of a result.

    Args:
        folder: Where.
        result: What was measured.
        figure: To be looked at.
        codebook: Its use, of reconstructions.

    Raises:
        FolderError: It cannot be written.
    """
    protocol = result.protocol
    page, body = new_page(f"{protocol.task} of {protocol.model}: {protocol.id}")
    add_text(body, "h1", f"{protocol.task} of {protocol.model}")
    add_text(body, "p", f"protocol {protocol.id}, {result.images:,} {protocol.words}", "soft")
    told = {n: v for n, v in result.metrics.items() if v is not None}
    body.append(table_element(told, "first"))
    if result.reasons:
        add_text(body, "h2", "Not computed")
        body.append(table_element(result.reasons))
    add_text(body, "h2", "Pictures")
    body.append(figure_element(figure))
    if codebook is not None:
        add_text(body, "h2", "Codebook")
        body.append(codebook_element(codebook))
    add_text(body, "h2", "Protocol")
    add_text(body, "p", "Numbers of another protocol do not compare with these.", "soft")
    body.append(table_element({"id": protocol.id} | protocol.compared))
    add_text(body, "h2", "Model")
    own = {n: v for n, v in to_json(protocol).items() if n not in protocol.compared}
    body.append(table_element(own))
    save_page(folder / PAGE_FILE, page)


def figure_of_pairs(originals: npt.NDArray[np.float32], rebuilt: npt.NDArray[np.float32]) -> Figure:
    """Pictures (n, 3, H, W) in [-1, 1], a row of reconstructions below each row; of clips
    (n, 3, T, H, W) each a row of frames, evenly spread."""
    if originals.ndim == 5:
        return _figure_of_clips(originals, rebuilt)
    columns = min(_COLUMNS, len(originals))
    rows = [
        part[start : start + columns]
        for start in range(0, len(originals) // columns * columns, columns)
        for part in (originals, rebuilt)
    ]
    caption = "pictures, a row of reconstructions below each row"
    return figure_of_grid(caption, np.concatenate(rows), columns=columns)


def _figure_of_clips(
    originals: npt.NDArray[np.float32], rebuilt: npt.NDArray[np.float32]
) -> Figure:
    columns = min(_COLUMNS, originals.shape[2])
    shown = np.linspace(0, originals.shape[2] - 1, columns).round().astype(int)
    both = np.stack([originals, rebuilt], 1)[:, :, :, shown]  # (n, 2, 3, columns, H, W)
    frames = both.swapaxes(2, 3).reshape(-1, 3, *originals.shape[3:])
    caption = "frames of clips, a row of reconstructions below each row"
    return figure_of_grid(caption, frames, columns=columns)


def figure_of_made(pixels: npt.NDArray[np.uint8]) -> Figure:
    """Generated pictures (n, H, W, 3)."""
    columns = min(_COLUMNS, len(pixels))
    caption = "generated images, evenly spread over the set"
    return figure_of_grid(caption, images_from_pixels(pixels), columns=columns)
