"""Numbers as pictures: heat maps of blocks, spectra of changes, grids of pictures with labels.

Dark ink on white, whatever theme the page has: a picture is saved and shown elsewhere too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..algorithms.analysis.spectrum import Spread
from ..algorithms.families.blocks import Group

Bytes = NDArray[np.uint8]
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER, INK, FAINT, GRID = (255, 255, 255), (32, 36, 44), (110, 116, 126), (222, 225, 230)
UNTOUCHED, HATCH = (240, 241, 243), (208, 211, 216)
LINE, BAND = (38, 92, 143), (188, 212, 232)
RAMP: tuple[Colour, ...] = (
    (246, 244, 208),
    (206, 227, 160),
    (130, 199, 161),
    (61, 160, 166),
    (38, 115, 150),
    (43, 71, 125),
    (45, 26, 82),
)
"""From little to much, ever darker and from yellow over green to violet: told apart without red and
green, and in grey too."""

SMALL, NORMAL, LARGE = 12, 14, 17
"""Sizes of text in pixels."""
MARGIN = 16


@dataclass(frozen=True)
class Panel:
    """A heat map: blocks across, their parts down."""

    title: str
    groups: tuple[Group, ...]
    rows: tuple[str, ...]
    cells: Mapping[tuple[str, str], float | None]
    """(Block, part) -> its value, None for one that is not known; what is not there is untouched."""


class Canvas:
    """A sheet in pixels, drawn at twice its size for smooth lines where the font can grow too."""

    def __init__(self, width: int, height: int) -> None:
        """Takes the size of the finished picture."""
        self._scale = 2 if _grows() else 1
        size = (width * self._scale, height * self._scale)
        self._image = Image.new("RGB", size, PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def box(self, x: float, y: float, width: float, height: float, fill: Colour) -> None:
        """Fills a rectangle."""
        s = self._scale
        far = ((x + width) * s - 1, (y + height) * s - 1)
        if far[0] >= x * s and far[1] >= y * s:
            self._draw.rectangle(((x * s, y * s), far), fill=fill)

    def hatched(self, x: float, y: float, width: float, height: float) -> None:
        """Fills a rectangle with the look of what is not there."""
        self.box(x, y, width, height, UNTOUCHED)
        step = 6
        for offset in range(step, int(width + height), step):
            start = (x + max(0.0, offset - height), y + min(offset, height))
            end = (x + min(offset, width), y + max(0.0, offset - width))
            self.line([start, end], HATCH)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float = 1) -> None:
        """Draws a line through points."""
        scaled = [(x * self._scale, y * self._scale) for x, y in points]
        self._draw.line(scaled, fill=fill, width=round(width * self._scale))

    def area(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        """Fills what lies between points."""
        self._draw.polygon([(x * self._scale, y * self._scale) for x, y in points], fill=fill)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = NORMAL,
        fill: Colour = INK,
        *,
        anchor: str = "l",
        upward: bool = False,
    ) -> None:
        """Writes a line whose middle is at `y`, or at `x` if it runs upward.

        Args:
            x: Where it begins, ends or has its middle.
            y: The same of a line that runs upward.
            words: The text.
            size: Of the letters.
            fill: Their colour.
            anchor: What stands at the place: `l` its beginning, `m` its middle, `r` its end.
            upward: Whether it runs from below to above.
        """
        font = _font(size * self._scale)
        left, top, right, bottom = (round(one) for one in font.getbbox(words))
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (right - left, bottom - top), 0)
        ImageDraw.Draw(mask).text((-left, -top), words, fill=255, font=font)
        # Middles are those of small letters and figures, so that words in a row have one line.
        height = _font_height(font)
        ahead = {"l": 0.0, "m": mask.width / 2, "r": float(mask.width)}[anchor]
        if upward:
            mask = mask.transpose(Image.Transpose.ROTATE_90)
            place = (x * self._scale - height / 2 + top, y * self._scale - mask.height + ahead)
        else:
            place = (x * self._scale - ahead, y * self._scale - height / 2 + top)
        self._image.paste(Image.new("RGB", mask.size, fill), _whole(place), mask)

    def finished(self) -> Bytes:
        """Returns the pixels."""
        image = self._image if self._scale == 1 else self._image.reduce(self._scale)
        return np.array(image)


def text_width(words: str, size: int = NORMAL) -> int:
    """Returns how many pixels a line is long."""
    scale = 2 if _grows() else 1
    left, _, right, _ = _font(size * scale).getbbox(words)
    return math.ceil((right - left) / scale)


def ramp(share: float) -> Colour:
    """Returns the colour of a value between nothing, 0, and the largest one, 1."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    lower = min(int(place), len(RAMP) - 2)
    near, far, rest = RAMP[lower], RAMP[lower + 1], place - lower
    red, green, blue = (round(a + (b - a) * rest) for a, b in zip(near, far, strict=True))
    return red, green, blue


def heat_map(panels: Sequence[Panel], caption: str, title: str) -> Bytes:
    """Returns heat maps below each other, with one scale of colours for each.

    Args:
        panels: What to draw.
        caption: What the values are.
        title: The heading.
    """
    layouts = [_PanelLayout.of(panel) for panel in panels]
    width = max([420, *(layout.width for layout in layouts)])
    width = max(width, text_width(title, LARGE) + 2 * MARGIN)
    top = MARGIN + 28
    canvas = Canvas(width, top + sum(layout.height for layout in layouts) + MARGIN)
    canvas.text(MARGIN, MARGIN + 8, title, LARGE)
    for layout in layouts:
        _draw_panel(canvas, layout, top, caption)
        top += layout.height
    return canvas.finished()


@dataclass(frozen=True)
class _PanelLayout:
    panel: Panel
    cell_width: int
    left: int
    head: int
    """Height of the names above the cells."""

    ROW = 22
    GAP = 8
    SCALE_WIDTH = 96

    @classmethod
    def of(cls, panel: Panel) -> _PanelLayout:
        count = sum(len(group.blocks) for group in panel.groups)
        labels = [text_width(name, SMALL) for name in panel.rows]
        names = [text_width(block, SMALL) for group in panel.groups for block in group.blocks]
        cell_width = min(max(1180 // max(count, 1), 17), 46)
        for group in panel.groups:  # a group with one narrow block needs room for its name
            needed = text_width(group.name, NORMAL) + 6 - cls.GAP
            cell_width = min(max(cell_width, -(-needed // len(group.blocks))), 60)
        head = 52 + (max(names, default=0) if max(names, default=0) > cell_width - 4 else SMALL)
        return cls(panel, cell_width, MARGIN + max(labels, default=0) + 10, head)

    @property
    def width(self) -> int:
        return self.left + self.span + self.SCALE_WIDTH + MARGIN

    @property
    def span(self) -> int:
        count = sum(len(group.blocks) for group in self.panel.groups)
        return count * self.cell_width + (len(self.panel.groups) - 1) * self.GAP

    @property
    def height(self) -> int:
        return self.head + max(len(self.panel.rows), 5) * self.ROW + 26

    @property
    def columns(self) -> list[tuple[str, int]]:
        """The blocks and where they begin."""
        columns: list[tuple[str, int]] = []
        x = self.left
        for group in self.panel.groups:
            for block in group.blocks:
                columns.append((block, x))
                x += self.cell_width
            x += self.GAP
        return columns


def _draw_panel(canvas: Canvas, layout: _PanelLayout, top: int, caption: str) -> None:
    panel, first = layout.panel, top + layout.head
    canvas.text(MARGIN, top + 12, panel.title, NORMAL, FAINT)
    known = [value for value in panel.cells.values() if value is not None]
    largest = max(known, default=0.0)
    starts = dict(layout.columns)
    for group in panel.groups:
        x = starts[group.blocks[0]]
        end = starts[group.blocks[-1]] + layout.cell_width
        canvas.text((x + end) / 2, top + 34, group.name, NORMAL, anchor="m")
        canvas.line([(x + 1, top + 45), (end - 1, top + 45)], FAINT)
    upward = layout.head > 52 + SMALL
    for block, x in layout.columns:
        middle = x + layout.cell_width / 2
        if upward:
            canvas.text(middle, first - 5, block, SMALL, upward=True)
        else:
            canvas.text(middle, first - 10, block, SMALL, anchor="m")
    for number, part in enumerate(panel.rows):
        y = first + number * layout.ROW
        canvas.text(layout.left - 8, y + layout.ROW / 2, part, SMALL, anchor="r")
        for block, x in layout.columns:
            place = (x, y, layout.cell_width - 1, layout.ROW - 1)
            if (block, part) not in panel.cells:
                canvas.hatched(*place)
                continue
            value = panel.cells[block, part]
            if value is None:
                canvas.box(*place, GRID)
                canvas.text(x + layout.cell_width / 2, y + 10, "?", SMALL, FAINT, anchor="m")
            else:
                canvas.box(*place, ramp(value / largest if largest else 0.0))
    _draw_scale(canvas, layout, first, largest, caption)


def _draw_scale(
    canvas: Canvas, layout: _PanelLayout, first: int, largest: float, caption: str
) -> None:
    """Draws the bar of colours with its numbers beside the cells."""
    x, height = layout.left + layout.span + 18, max(len(layout.panel.rows), 5) * layout.ROW - 1
    for row in range(height):
        canvas.box(x, first + row, 14, 1, ramp(1 - row / (height - 1)))
    for share in (0.0, 0.5, 1.0):
        y = first + (1 - share) * (height - 1)
        canvas.line([(x + 14, y), (x + 18, y)], FAINT)
        words = number(largest * share)
        canvas.text(x + 22, min(max(y, first + 6), first + height - 6), words, SMALL)
    canvas.text(layout.left, first + height + 14, caption, SMALL, FAINT)


def number(value: float) -> str:
    """Returns a number in three figures."""
    if value == 0 or 0.01 <= abs(value) < 10000:
        return f"{value:.3g}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


@dataclass(frozen=True)
class Bars:
    """One number for each block."""

    groups: tuple[Group, ...]
    values: Mapping[str, float]


DECADES = 6
"""Powers of ten below the largest singular value that a plot has at most."""


def spectrum_plot(spread: Spread, ranks: Bars, title: str, note: str) -> Bytes:
    """Returns how singular values fall off, and the effective rank of each block.

    Args:
        spread: Singular values.
        ranks: Effective ranks.
        title: The heading.
        note: How many layers were looked at.
    """
    count = sum(len(group.blocks) for group in ranks.groups)
    gaps = max(len(ranks.groups) - 1, 0) * 8
    bar = min(max(860 // max(count, 1), 17), 46)
    left, plot_height, bars_height = MARGIN + 56, 240, 150
    width = max(left + max(count * bar + gaps, 640) + MARGIN, text_width(title, LARGE) + 2 * MARGIN)
    names = max(
        (text_width(one, SMALL) for group in ranks.groups for one in group.blocks), default=0
    )
    upward = names > bar - 4
    below = (names if upward else SMALL) + 22
    top = MARGIN + 60
    bars_top = top + plot_height + 96
    canvas = Canvas(width, bars_top + bars_height + below + MARGIN)
    canvas.text(MARGIN, MARGIN + 8, title, LARGE)
    canvas.text(MARGIN, MARGIN + 32, note, SMALL, FAINT)
    _draw_spread(canvas, spread, (left, top, width - left - MARGIN, plot_height))
    canvas.text(MARGIN, bars_top - 22, "Effective rank of each block (mean of its layers)", NORMAL)
    highest = _round_up(max(ranks.values.values(), default=1.0))
    for share in (0.0, 0.5, 1.0):
        y = bars_top + bars_height * (1 - share)
        canvas.line([(left, y), (width - MARGIN, y)], GRID)
        canvas.text(left - 8, y, number(highest * share), SMALL, FAINT, anchor="r")
    x = float(left)
    for group in ranks.groups:
        for block in group.blocks:
            value = ranks.values.get(block)
            if value is None:
                canvas.hatched(x + 1, bars_top + bars_height - 10, bar - 2, 10)
            else:
                height = bars_height * value / highest
                canvas.box(x + 1, bars_top + bars_height - height, bar - 2, height, LINE)
            if upward:
                canvas.text(
                    x + bar / 2, bars_top + bars_height + 5, block, SMALL, anchor="r", upward=True
                )
            else:
                canvas.text(x + bar / 2, bars_top + bars_height + 12, block, SMALL, anchor="m")
            x += bar
        x += 8
    return canvas.finished()


def _draw_spread(canvas: Canvas, spread: Spread, box: tuple[int, int, int, int]) -> None:
    x0, y0, width, height = box
    present = [value for value in spread.median if value > 0]
    decades = min(max(math.ceil(-math.log10(min(present, default=0.1))), 1), DECADES)

    def place(index: int, value: float) -> tuple[float, float]:
        across = index / max(len(spread.median) - 1, 1)
        down = -math.log10(max(value, 10.0**-decades)) / decades
        return x0 + across * width, y0 + down * height

    for decade in range(decades + 1):
        y = y0 + height * decade / decades
        canvas.line([(x0, y), (x0 + width, y)], GRID)
        words = "1" if decade == 0 else f"1e-{decade}" if decade > 3 else f"{10.0**-decade:g}"
        canvas.text(x0 - 8, y, words, SMALL, FAINT, anchor="r")
    upper = [place(index, value) for index, value in enumerate(spread.upper)]
    lower = [place(index, value) for index, value in enumerate(spread.lower)]
    if len(upper) > 1:
        canvas.area([*upper, *lower[::-1]], BAND)
        canvas.line([place(index, value) for index, value in enumerate(spread.median)], LINE, 2)
    elif upper:
        canvas.box(x0 - 2, y0 - 2, 5, 5, LINE)
    last = len(spread.median)
    for index in sorted({0, (last - 1) // 2, max(last - 1, 0)}):
        anchor = "l" if index == 0 else "r" if index == last - 1 else "m"
        x, _ = place(index, 1)
        canvas.text(x, y0 + height + 14, str(index + 1), SMALL, FAINT, anchor=anchor)
    words = "Direction, by its size. Line: median of the layers, band: their middle half"
    canvas.text(x0, y0 + height + 34, words, SMALL, FAINT)


def _round_up(value: float) -> float:
    """Returns a round number that is not below `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 5, 8, 10) if power * step >= value)


def label_grid(pictures: Sequence[Bytes], labels: Sequence[str], columns: int) -> Bytes:
    """Returns pictures in rows, each with a line below.

    Args:
        pictures: `[height, width, 3]`; smaller ones stand in the middle of their place.
        labels: One for each.
        columns: How many stand in a row; 0 for a square.
    """
    columns = columns if columns > 0 else math.ceil(math.sqrt(len(pictures)))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width = max(one.shape[1] for one in pictures)
    height = max(one.shape[0] for one in pictures)
    size = min(max(width // 22, SMALL), 28)
    strip, gap = 2 * size, 8
    sheet = np.full(
        (rows * (height + strip) + gap, columns * (width + gap) + gap, 3), PAPER, np.uint8
    )
    for index, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = gap + index % columns * (width + gap), gap + index // columns * (height + strip)
        inner_x, inner_y = x + (width - pixels.shape[1]) // 2, y + (height - pixels.shape[0]) // 2
        sheet[inner_y : inner_y + pixels.shape[0], inner_x : inner_x + pixels.shape[1]] = pixels
        below = Canvas(width, strip - gap)
        words = shortened(label, width, size)
        below.text(width / 2, (strip - gap) / 2, words, size, anchor="m")
        sheet[y + height : y + height + strip - gap, x : x + width] = below.finished()
    return sheet


def shortened(words: str, width: int, size: int) -> str:
    """Returns a line that is no longer than `width` pixels, its end cut off."""
    words = " ".join(words.split())
    while words and text_width(words, size) > width:
        words = words.removesuffix("...")[:-1].rstrip() + "..." if len(words) > 4 else ""
    return words


def _font(size: int) -> Font:
    """Returns the font that Pillow brings; before 10.1 it has one size only."""
    if size not in _fonts:
        try:
            _fonts[size] = ImageFont.load_default(size)
        except (TypeError, ImportError, OSError):
            _fonts[size] = ImageFont.load_default()
    return _fonts[size]


_fonts: dict[int, Font] = {}


def _font_height(font: Font) -> float:
    return sum(font.getbbox("0")[1::2])


def _grows() -> bool:
    return _font_height(_font(40)) > _font_height(_font(20))


def _whole(place: tuple[float, float]) -> tuple[int, int]:
    return round(place[0]), round(place[1])
