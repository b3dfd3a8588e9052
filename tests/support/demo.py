"""Draws pictures with adapters of several methods in a real ComfyUI, and trains two, on two sheets."""

import math
import os
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from base_directory import CHECKPOINT_NAME, HOST_BASE, make_base_directory, make_example_adapters
from comfy_server import ComfyServer
from demo_training import draw_training, put_training_picture
from lighthouse import draw_lighthouse
from made_adapters import file_name
from small_world import LATENT_REACH
from workflows import image_to_image, node, read_latent, saved_file

SHEET = HOST_BASE.with_name("demo.png")
TRAINING_SHEET = HOST_BASE.with_name("demo_training.png")
SHOWN_PX = 128
"""Two screen pixels for each of the latent, so that all methods fit on one sheet."""
DENOISE = 0.7
"""Weights that were never trained cannot draw, but they can colour what is drawn."""
LIGHTHOUSE = "lighthouse.png"
LABEL_PX = 270
GAP_PX = 10
HALVES = 2
"""How many methods stand side by side."""
HEADING_PX = 96
EFFECT_AMPLIFIED = 16
ERROR_AMPLIFIED = 100_000
COLUMNS = (
    "base",
    "strength 0.5",
    "strength 1.0",
    f"|1.0 - base| x {EFFECT_AMPLIFIED}",
    f"|hook - patch| x {ERROR_AMPLIFIED // 1000}k",
)

HALF_PX = LABEL_PX + len(COLUMNS) * (SHOWN_PX + GAP_PX) + 2 * GAP_PX
LABEL_LINES = 7

Loader = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """What one run of the workflow has given."""

    picture: Image.Image
    latent: Tensor
    report: str
    """What the Load Adapter node says of the file; empty where there is no node."""


def main() -> None:
    """Draws the sheets and says where they are."""
    started = time.monotonic()
    print("Making a small checkpoint and one adapter of each method ...", flush=True)
    make_base_directory(HOST_BASE)
    methods = make_example_adapters(HOST_BASE)
    print("Starting ComfyUI ...", flush=True)
    draw_lighthouse().save(HOST_BASE / "input" / LIGHTHOUSE)
    put_training_picture(HOST_BASE)
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), HOST_BASE) as server:
        base = draw(server)
        sheet = Sheet(rows=len(methods))
        for row, method in enumerate(methods):
            half = draw(server, loader(method, 0.5))
            full = draw(server, loader(method, 1.0))
            patched = draw(server, loader(method, 1.0, mode="patch"))
            difference = (full.latent - patched.latent).abs()
            effect = (full.latent - base.latent).abs()
            sheet.write_label(row, method, full.report)
            for column, one in enumerate((base, half, full)):
                sheet.paste(row, column, one.picture)
            sheet.paste(row, 3, picture_of(effect, EFFECT_AMPLIFIED))
            sheet.write_number(row, 3, f"largest {effect.max().item():.1f}")
            sheet.paste(row, 4, picture_of(difference, ERROR_AMPLIFIED))
            sheet.write_number(row, 4, f"largest {difference.max().item():.1e}")
            seconds = time.monotonic() - started
            print(f"  {row + 1} of {len(methods)}: {method} ({seconds:.0f} s)", flush=True)
        sheet.image.save(SHEET)
        print(f"The contact sheet is {SHEET}", flush=True)
        draw_training(server).save(TRAINING_SHEET)
    print(f"The sheet of trainings is {TRAINING_SHEET}")


def loader(method: str, strength: float, mode: str = "hook") -> Loader:
    """Returns the inputs of a Load Adapter node."""
    return {
        "adapter": file_name(method),
        "strength_model": strength,
        "strength_clip": strength,
        "mode": mode,
        "rank": 0,
    }


def draw(server: ComfyServer, *loaders: Loader) -> Drawn:
    """Runs checkpoint, Load Adapter, KSampler, VAE Decode and Save Image on the lighthouse."""
    prompt = image_to_image(
        CHECKPOINT_NAME, LIGHTHOUSE, loaders, denoise=DENOISE, save_prefix="demo"
    )
    prompt["latent"] = node("SaveLatent", samples=["sampler", 0], filename_prefix="demo")
    history = server.run(prompt)
    report = history["outputs"].get("adapter_1", {"text": [""]})["text"][0]
    picture = Image.open(saved_file(server, history)).convert("RGB")
    return Drawn(picture, read_latent(server, history, "latent"), report)


def picture_of(difference: Tensor, amplified: float) -> Image.Image:
    """Returns the first three channels as colours, amplified; black is no difference."""
    levels = (difference[0, :3] / (2 * LATENT_REACH) * amplified).clamp(0, 1) * 255
    pixels = levels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels)


class Sheet:
    """A table of pictures: a label for each method, a title for each column."""

    def __init__(self, rows: int) -> None:
        self._rows_in_half = math.ceil(rows / HALVES)
        width = HALVES * HALF_PX + GAP_PX
        height = HEADING_PX + self._rows_in_half * (SHOWN_PX + GAP_PX)
        self.image = Image.new("RGB", (width, height), "white")
        self._pen = ImageDraw.Draw(self.image)
        title = "Any Adapter: one small checkpoint, one seed, one adapter in each row"
        self._pen.text((GAP_PX, GAP_PX), title, "black", ImageFont.load_default(26))
        for half in range(min(HALVES, rows)):
            for column, text in enumerate(COLUMNS):
                left, _ = self._corner(half * self._rows_in_half, column)
                self._pen.text((left, HEADING_PX - 22), text, "black", ImageFont.load_default(13))

    def paste(self, row: int, column: int, picture: Image.Image) -> None:
        """Puts a picture into its place, in whole pixels of the latent."""
        size = (SHOWN_PX, SHOWN_PX)
        self.image.paste(picture.resize(size, Image.Resampling.NEAREST), self._corner(row, column))

    def write_label(self, row: int, name: str, report: str) -> None:
        """Writes the name of a method and what the node says of its file, at the left of a row."""
        left, top = self._corner(row, 0)
        left -= LABEL_PX
        self._pen.text((left, top), name, "black", ImageFont.load_default(15))
        lines = [part for line in report.splitlines() for part in textwrap.wrap(line, 46)]
        shown = lines if len(lines) <= LABEL_LINES else [*lines[: LABEL_LINES - 1], "..."]
        self._pen.text((left, top + 22), "\n".join(shown), "#444", ImageFont.load_default(11))

    def write_number(self, row: int, column: int, text: str) -> None:
        """Writes over the lower edge of a picture."""
        left, top = self._corner(row, column)
        edge = top + SHOWN_PX
        self._pen.rectangle((left, edge - 18, left + SHOWN_PX - 1, edge - 1), "white", "#888")
        self._pen.text((left + 4, edge - 16), text, "black", ImageFont.load_default(11))

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        half, row = divmod(row, self._rows_in_half)
        step = SHOWN_PX + GAP_PX
        left = GAP_PX + half * HALF_PX + LABEL_PX + column * step
        return left, HEADING_PX + row * step


if __name__ == "__main__":
    main()
