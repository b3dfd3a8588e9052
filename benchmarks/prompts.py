"""Whole prompts in a ComfyUI that runs as people run it, timed by its own clock."""

import itertools
import os
import shutil
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import world
from comfy_server import ComfyServer
from workflows import Prompt, text_to_latent

BYPASS = "LoraLoaderBypassModelOnly"
STOCK = "LoraLoaderModelOnly"
PICTURE_PX = 64
WITHIN_SECONDS = 900


@dataclass
class Prompts:
    """A running ComfyUI with a checkpoint, and prompts that are never twice the same."""

    server: ComfyServer
    size: world.Size
    _number: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def seconds(self, loader_class: str | None = None, **inputs: Any) -> float:
        """Returns how long one step with one loader took, with a new seed and a new strength.

        Args:
            loader_class: The node that loads an adapter; None for no such node.
            **inputs: What it gets; a function is given a number that is another at each prompt.
        """
        number = next(self._number)
        loaders: list[dict[str, Any]] = []
        if loader_class is not None:
            moving = 0.5 + number % 100 / 200
            given = {name: one(moving) if callable(one) else one for name, one in inputs.items()}
            loaders = [{"strength_model": moving, **given}]
        prompt: Prompt = text_to_latent(
            *(world.checkpoint(self.size).name, loaders),
            seed=number,
            steps=1,
            size_px=PICTURE_PX,
            loader_class=loader_class or "",
            use_clip=False,  # the text encoder's result then stays as it is
        )
        return _seconds_by_server(self.server.run(prompt, WITHIN_SECONDS))

    def has(self, node: str) -> bool:
        """Whether this ComfyUI has a node class."""
        try:
            self.server.object_info(node)
        except (KeyError, urllib.error.HTTPError):
            return False
        return True


@contextmanager
def running(size: world.Size) -> Iterator[Prompts]:
    """Gives a ComfyUI that ends with the block; its first prompt has loaded the checkpoint."""
    comfyui = Path(os.environ["COMFYUI_PATH"])
    on_gpu = torch.accelerator.is_available()
    with ComfyServer(comfyui, world.BASE, cpu=not on_gpu) as server:
        prompts = Prompts(server, size)
        prompts.seconds()
        yield prompts


def with_new_strengths(
    prompts: Prompts, loaders: Mapping[str, Mapping[str, Any] | None], runs: int
) -> dict[str, list[float]]:
    """Returns the seconds of prompts that differ from the one before in strength and seed.

    At each turn one prompt goes ahead that does not count: it pays for what the competitor
    before has left, such as patched weights.
    """
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(runs):
        for name, inputs in loaders.items():
            prompts.seconds(**(inputs or {}))
            seconds[name].append(prompts.seconds(**(inputs or {})))
            print(f"  {number + 1}/{runs} {name}: {seconds[name][-1]:.3f} s", flush=True)
    return seconds


def with_new_files(
    prompts: Prompts,
    loaders: Mapping[str, Callable[[str], Mapping[str, Any]]],
    file: str,
    runs: int,
) -> dict[str, list[float]]:
    """Returns the seconds of prompts with a file that was never loaded before.

    Before each, one without an adapter leaves the model loaded and its weights as they were.
    """
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(runs):
        for name, inputs in loaders.items():
            prompts.seconds()
            copy = world.ADAPTERS / f"copy-{os.getpid()}-{number}-{len(name)}.safetensors"
            shutil.copyfile(world.ADAPTERS / file, copy)
            try:
                seconds[name].append(prompts.seconds(**inputs(copy.name)))
            finally:
                copy.unlink()
            print(f"  {number + 1}/{runs} {name}: {seconds[name][-1]:.3f} s", flush=True)
    return seconds


def ours(file: str, mode: str = "hook") -> dict[str, Any]:
    """Returns the pack's loader on a file."""
    inputs = {"adapter": file, "strength_clip": 0.0, "mode": mode, "rank": 0}
    return {"loader_class": "AnyAdapterLoad"} | inputs


def one_block(file: str) -> dict[str, Any]:
    """Returns the pack's loader on a file at strength 1, with another weight of one block."""
    return ours(file) | {"strength_model": 1.0, "blocks": "MID:{:.3f}".format}


def stock(file: str, loader_class: str = STOCK) -> dict[str, Any]:
    """Returns a loader of ComfyUI's own on a file."""
    return {"loader_class": loader_class, "lora_name": file}


def _seconds_by_server(history: dict[str, Any]) -> float:
    """Returns the time from start to end as the server noted it: asking for it costs more."""
    at = {name: message["timestamp"] for name, message in history["status"]["messages"]}
    return (at["execution_success"] - at["execution_start"]) / 1000
