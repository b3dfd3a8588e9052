"""Trains adapters on one picture in a real ComfyUI, and draws it before and after."""

import shutil
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from base_directory import CHECKPOINT_NAME
from comfy_server import ComfyServer
from lighthouse import draw_lighthouse, write_captioned
from small_world import LATENT_REACH
from training_prompts import loading, train_node
from workflows import Prompt, image_to_image, node, read_latent, saved_file

FOLDER = "demo_training"
"""In the input folder, and among the adapters."""
PICTURE = f"{FOLDER}/lighthouse.png"
CAPTION = "a lighthouse"
PICTURE_PX, CELL_PX = 128, 8
STEPS = 80
RATE = 1e-3
NOISIEST = 800
"""Timesteps below it are not trained: noise that hardly covers a picture of these colours teaches
slowly, and two steps of drawing meet none such."""
WITHIN_SECONDS = 900

SHOWN_PX = 256
"""16 screen pixels for each of the latent."""
GAP_PX = 16
HEADING_PX = 92
PLOT_PX = (SHOWN_PX * 2 + GAP_PX, 297)
LABEL_PX = 44
LINE_PX = 16
LETTERS = 92
"""In a line of a report."""


@dataclass(frozen=True)
class Method:
    """What is trained."""

    title: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


KERNELS = {"conv_rank": 16, "conv_alpha": 16.0}
METHODS = (
    Method("LoRA on all layers, rank 16", "LoRA-C3Lier", KERNELS),
    Method(
        "LoKr on all layers, factor 8, whole matrices",
        "LoKr",
        {"factor": 8, "full_matrix": True, **KERNELS},
    ),
)


@dataclass(frozen=True)
class Drawn:
    """What came of a prompt."""

    picture: Image.Image
    latent: Tensor
    target: Tensor
    """The training picture as a latent."""
    report: str = ""
    plot: Image.Image | None = None
    seconds: float = 0.0

    @property
    def distance(self) -> float:
        """The root of the mean squared difference to the training picture; 1 is black to white."""
        difference = (self.latent - self.target) / (2 * LATENT_REACH)
        return difference.square().mean().sqrt().item()


def put_training_picture(base_directory: Path) -> None:
    """Puts the picture with its caption into the input folder, and takes what it taught before away."""
    shutil.rmtree(base_directory / "models" / "loras" / FOLDER, ignore_errors=True)
    picture = draw_lighthouse().resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)
    write_captioned(base_directory / "input" / PICTURE, picture, CAPTION)


def draw_training(server: ComfyServer) -> Image.Image:
    """Trains each method, and returns the sheet."""
    before = _drawn(server, _drawing())
    trained: list[Drawn] = []
    for method in METHODS:
        print(f"Training {method.title}, {STEPS} steps ...", flush=True)
        trained.append(_drawn(server, _training(method)))
        distances = f"{before.distance:.3f} before, {trained[-1].distance:.3f} after"
        print(f"  {trained[-1].seconds:.0f} s, distance {distances}", flush=True)
    return _sheet(_as_seen(server.input_directory / PICTURE), before, trained)


def _as_seen(path: Path) -> Image.Image:
    """Returns a picture in the blocks that the small VAE makes of it."""
    cells = (PICTURE_PX // CELL_PX, PICTURE_PX // CELL_PX)
    return Image.open(path).convert("RGB").resize(cells, Image.Resampling.BOX)


def _drawing() -> Prompt:
    """Returns the prompt that draws the picture anew from under pure noise."""
    prompt = image_to_image(CHECKPOINT_NAME, PICTURE, prompt=CAPTION, steps=2, save_prefix=FOLDER)
    prompt["sampler"]["inputs"]["cfg"] = 1.0
    for name, of in {"latent": "sampler", "target": "encode"}.items():
        # Under a new name, since what was saved just so before is not saved again.
        prefix = f"{FOLDER}_{name}_{time.time_ns()}"
        prompt[name] = node("SaveLatent", samples=[of, 0], filename_prefix=prefix)
    return prompt


def _training(method: Method) -> Prompt:
    """Returns the prompt that trains, and draws with what was learned."""
    prompt = _drawing()
    prompt["data"] = node("AnyAdapterDataset", folder=FOLDER, resolution=PICTURE_PX)
    prompt["options"] = node("AnyAdapterMethodOptions", **method.options)
    prompt["noise"] = node("AnyAdapterNoiseAndLoss", min_timestep=NOISIEST)
    prompt["layers"] = node("AnyAdapterLayers", preset="full")
    prompt["train"] = train_node(
        method_options=["options", 0],
        noise_and_loss=["noise", 0],
        output_name=f"{FOLDER}/{method.method}",
        method=method.method,
        rank=16,
        alpha=16.0,
        steps=STEPS,
        learning_rate=RATE,
    )
    prompt["plot"] = node("SaveImage", images=["train", 2], filename_prefix=FOLDER)
    prompt["adapter"] = loading()
    prompt["sampler"]["inputs"]["model"] = ["adapter", 0]
    return prompt


def _drawn(server: ComfyServer, prompt: Prompt) -> Drawn:
    started = time.monotonic()
    history = server.run(prompt, WITHIN_SECONDS)
    picture = Image.open(saved_file(server, history)).convert("RGB")
    latents = [read_latent(server, history, name) for name in ("latent", "target")]
    if "train" not in prompt:
        return Drawn(picture, *latents)
    report = history["outputs"]["train"]["text"][0]
    plot = Image.open(saved_file(server, history, "plot")).convert("RGB")
    return Drawn(picture, *latents, report, plot, time.monotonic() - started)


def _sheet(picture: Image.Image, before: Drawn, trained: list[Drawn]) -> Image.Image:
    columns = 2 + len(trained)
    width = GAP_PX + columns * (SHOWN_PX + GAP_PX)
    plots = HEADING_PX + SHOWN_PX + LABEL_PX + GAP_PX
    reports = [_wrapped(one.report) for one in trained]
    below = plots + 26 + PLOT_PX[1] + 8
    height = below + LINE_PX * max(map(len, reports)) + GAP_PX
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    large, middle, small = (ImageFont.load_default(size) for size in (26, 15, 12))
    title = "Any Adapter: two adapters learn one picture"
    pen.text((GAP_PX, GAP_PX), title, "black", large)
    told = (
        "Noise of full strength is laid over the training picture, and a small model with random "
        "weights draws it anew in two steps; one seed for all."
    )
    pen.text((GAP_PX, GAP_PX + 36), told, "#444", small)

    names = [
        "the training picture, in the VAE's blocks",
        "before",
        *(f"after, {one.method}" for one in METHODS),
    ]
    shown = [picture, before.picture, *(one.picture for one in trained)]
    distances = [None, before.distance, *(one.distance for one in trained)]
    for column, (name, one, distance) in enumerate(zip(names, shown, distances, strict=True)):
        left = GAP_PX + column * (SHOWN_PX + GAP_PX)
        large_one = one.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.NEAREST)
        sheet.paste(large_one, (left, HEADING_PX))
        pen.text((left, HEADING_PX + SHOWN_PX + 6), name, "black", middle)
        if distance is not None:
            text = f"distance {distance:.3f}, where 1 is black to white"
            pen.text((left, HEADING_PX + SHOWN_PX + 25), text, "#444", small)

    for number, (method, one, lines) in enumerate(zip(METHODS, trained, reports, strict=True)):
        left = GAP_PX + number * (PLOT_PX[0] + GAP_PX)
        heading = f"{method.title}: {STEPS} steps, {one.seconds:.0f} s"
        pen.text((left, plots), heading, "black", middle)
        assert one.plot is not None
        sheet.paste(one.plot.resize(PLOT_PX, Image.Resampling.LANCZOS), (left, plots + 26))
        pen.text((left, below), "\n".join(lines), "#444", small)
    return sheet


def _wrapped(report: str) -> list[str]:
    return [part for line in report.splitlines() for part in textwrap.wrap(line, LETTERS)]
