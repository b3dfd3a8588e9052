"""A dataset as a picture: its buckets with their counts, and pictures as they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .drawing import (
    FAINT,
    GRID,
    INK,
    LARGE,
    LINE,
    MARGIN,
    NORMAL,
    SMALL,
    Bytes,
    Canvas,
    shortened,
    text_width,
)

WIDTH = 960
COLUMNS = 4
GAP = 16
CELL = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
"""Pixels of the place of a picture."""
CAPTION_LINES = 4
ROW = 20
SHOWN_BUCKETS = 24


@dataclass(frozen=True)
class Sample:
    """A picture with its caption, as one step trains it."""

    pixels: Bytes
    caption: str


def dataset_sheet(
    title: str, buckets: Mapping[tuple[int, int], int], samples: Sequence[Sample]
) -> Bytes:
    """Returns the picture of a dataset.

    Args:
        title: The heading.
        buckets: How many draws each gets, by width and height in pixels.
        samples: Which pictures are shown.
    """
    shown = sorted(buckets.items(), key=lambda one: (-one[1], one[0]))[:SHOWN_BUCKETS]
    small = [Sample(_thumbnail(one.pixels), one.caption) for one in samples]
    rows = [small[start : start + COLUMNS] for start in range(0, len(small), COLUMNS)]
    strip = CAPTION_LINES * (SMALL + 5) + GAP
    heights = [max(one.pixels.shape[0] for one in row) + strip for row in rows]
    first = MARGIN + 36
    below = first + len(shown) * ROW + (ROW if len(buckets) > len(shown) else 0) + GAP
    canvas = Canvas(WIDTH, below + sum(heights) + MARGIN)
    canvas.text(MARGIN, MARGIN + 8, title, LARGE)
    _draw_buckets(canvas, shown, len(buckets), first)
    places: list[tuple[int, int, Bytes]] = []
    top = below
    for row, height in zip(rows, heights, strict=True):
        for column, sample in enumerate(row):
            x = MARGIN + column * (CELL + GAP)
            places.append((x, top, sample.pixels))
            caption_top = top + height - strip + 6
            for line, words in enumerate(_wrapped(sample.caption or "(no caption)")):
                y = caption_top + line * (SMALL + 5) + SMALL / 2
                canvas.text(x, y, words, SMALL, INK if sample.caption else FAINT)
        top += height
    sheet = canvas.finished()
    for x, y, pixels in places:
        sheet[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return sheet


def _draw_buckets(
    canvas: Canvas, shown: Sequence[tuple[tuple[int, int], int]], count: int, top: int
) -> None:
    """Draws a row for each bucket: its shape, its size, and a bar of how much it gets."""
    largest = max((draws for _, draws in shown), default=1)
    left = MARGIN + 150
    room = WIDTH - MARGIN - left - 60
    for row, ((width, height), draws) in enumerate(shown):
        y = top + row * ROW
        scale = (ROW - 6) / max(width, height)
        box = max(width * scale, 2), max(height * scale, 2)
        canvas.box(MARGIN + 7 - box[0] / 2, y + ROW / 2 - box[1] / 2, *box, FAINT)
        canvas.text(left - 12, y + ROW / 2, f"{width} x {height}", NORMAL, anchor="r")
        canvas.box(left, y + 3, room, ROW - 6, GRID)
        bar = max(room * draws / largest, 2)
        canvas.box(left, y + 3, bar, ROW - 6, LINE)
        canvas.text(left + room + 10, y + ROW / 2, str(draws), NORMAL)
    if count > len(shown):
        y = top + len(shown) * ROW + ROW / 2
        canvas.text(left, y, f"and {count - len(shown)} more buckets", SMALL, FAINT)


def _thumbnail(pixels: Bytes) -> Bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((CELL, CELL))
    return np.asarray(image)


def _wrapped(caption: str) -> list[str]:
    """Returns a caption in lines that are no wider than a picture, what is too much cut off."""
    lines = [""]
    for word in caption[:600].split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, SMALL) > CELL:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], f"{lines[CAPTION_LINES - 1]} ..."]
    # No letter is narrower than two pixels: so much of a text without blanks is enough.
    return [shortened(line[: CELL // 2 + 1], CELL, SMALL) for line in lines]
