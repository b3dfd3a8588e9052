"""Pictures of numbers: each value in its colour at its place, readable with old fonts too."""

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import ImageFont

from anyadapter.algorithms.analysis.spectrum import Spread
from anyadapter.algorithms.families.blocks import Group
from anyadapter.nodes import drawing
from anyadapter.nodes.drawing import Bars, Bytes, Panel, heat_map, label_grid, ramp

GROUPS = (Group("IN", ("IN00", "IN01")), Group("MID", ("M00",)))
PANEL = Panel(
    "Diffusion model",
    GROUPS,
    ("attn1.q", "mlp"),
    {("IN00", "attn1.q"): 0.0, ("IN01", "mlp"): 4.0, ("M00", "mlp"): 2.0, ("M00", "attn1.q"): None},
)
FLUX = (
    Group("DOUBLE", tuple(f"D{number:02}" for number in range(19))),
    Group("SINGLE", tuple(f"S{number:02}" for number in range(38))),
    Group("BASE", ("IN", "OUT")),
)


def count(pixels: Bytes, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(2).sum())


def test_colours_grow_darker_all_the_way() -> None:
    shades = [np.dot(ramp(step / 50), (0.2126, 0.7152, 0.0722)) for step in range(51)]
    assert all(one > next_one for one, next_one in itertools.pairwise(shades))
    assert ramp(-1) == ramp(0)
    assert ramp(2) == ramp(1)


def test_a_heat_map_has_each_value_in_its_colour() -> None:
    pixels = heat_map([PANEL], "norm", "file")
    cell = 40 * 18
    for share in (0.0, 0.5, 1.0):
        assert count(pixels, ramp(share)) > cell
    without = Panel(PANEL.title, GROUPS, PANEL.rows, {("IN01", "mlp"): 4.0})
    assert count(heat_map([without], "norm", "file"), ramp(0.5)) < cell
    assert count(pixels, drawing.UNTOUCHED) > cell


def test_a_value_stands_below_its_block_and_beside_its_part() -> None:
    pixels = heat_map([PANEL], "norm", "file")
    rows, columns = (pixels == ramp(1.0)).all(2).nonzero()
    cell = columns < columns.max() - 30  # the bar of colours is at the right
    other_rows, other_columns = (pixels == ramp(0.5)).all(2).nonzero()
    inside = other_columns < columns.max() - 30
    assert abs(np.median(rows[cell]) - np.median(other_rows[inside])) <= 1
    assert np.median(columns[cell]) < np.median(other_columns[inside])


def test_57_blocks_fit_on_a_screen() -> None:
    cells = {(block, "mlp"): 1.0 for group in FLUX for block in group.blocks}
    pixels = heat_map([Panel("Diffusion model", FLUX, ("mlp",), cells)], "norm", "file")
    assert pixels.shape[1] < 1500


def test_nothing_at_all_makes_a_picture_too() -> None:
    assert heat_map([], "norm", "file").ndim == 3
    zero = Panel("Diffusion model", GROUPS, ("mlp",), {("IN00", "mlp"): 0.0})
    assert count(heat_map([zero], "norm", "file"), ramp(0)) > 0
    empty = drawing.spectrum_plot(Spread((), (), ()), Bars((), {}), "file", "0 of 3 layers")
    assert empty.ndim == 3


def test_bars_are_as_high_as_their_values() -> None:
    spread = Spread((1.0, 0.1), (1.0, 0.2), (1.0, 0.3))
    values = {"IN00": 10.0, "M00": 5.0}
    pixels = drawing.spectrum_plot(spread, Bars(GROUPS, values), "file", "all layers")
    bars = (pixels == drawing.LINE).all(2)
    heights = sorted(bars[300:].sum(0)[bars[300:].any(0)].tolist())
    assert heights[-1] == pytest.approx(2 * heights[0], abs=2)


def test_a_font_of_one_size_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow before 10.1, which ComfyUI does not forbid.
    plain = ImageFont.load_default_imagefont()

    def old(*sizes: Any) -> ImageFont.ImageFont:
        if sizes:
            raise TypeError("load_default() takes 0 positional arguments but 1 was given")
        return plain

    monkeypatch.setattr(ImageFont, "load_default", old)
    monkeypatch.setattr(drawing, "_fonts", {})
    pixels = heat_map([PANEL], "norm", "file")
    assert count(pixels, ramp(1.0)) > 40 * 18
    assert count(pixels, drawing.INK) > 100


def test_pictures_stand_in_rows_with_a_line_below_each() -> None:
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 0] = 255
    grid = label_grid([red, red[:20, :30], red], ["one", "two", "three"], 2)
    assert grid.shape[1] == 2 * 68 + 8
    assert count(grid, (255, 0, 0)) == 2 * 40 * 60 + 20 * 30
    assert count(grid, drawing.INK) > 0


@pytest.mark.parametrize(("pictures", "columns", "expected"), [(9, 0, 3), (5, 0, 3), (2, 7, 2)])
def test_a_row_has_as_many_as_asked_for(pictures: int, columns: int, expected: int) -> None:
    one = np.zeros((32, 32, 3), np.uint8)
    grid = label_grid([one] * pictures, ["x"] * pictures, columns)
    assert grid.shape[1] == expected * 40 + 8


def test_a_long_label_is_cut_to_its_picture() -> None:
    one = np.full((32, 64, 3), 255, np.uint8)
    short, long = (label_grid([one], [words], 1) for words in ("x", "a very long label " * 9))
    assert short.shape == long.shape


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (12.345, "12.3"), (0.00432, "4.3e-3"), (1e5, "1.0e5")]
)
def test_numbers_are_short(value: float, words: str) -> None:
    assert drawing.number(value) == words
