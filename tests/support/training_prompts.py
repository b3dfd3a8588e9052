"""Prompts that train on the small checkpoint, and what is asked of their outcome."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from base_directory import CHECKPOINT_NAME
from comfy_server import ComfyServer
from lighthouse import draw_lighthouse, write_captioned
from workflows import Prompt, node

FEW_LAYERS = "OUT03: on\nALL: off"
"""Near the output, so that gradients have a short way."""
ALL_LAYERS = ""
SIDE_PX = 64
CAPTION = "a lighthouse"


def scene() -> Image.Image:
    """Returns the lighthouse in pale colours, near to what the small checkpoint can draw."""
    small = draw_lighthouse().resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    pale = (np.asarray(small, np.float32) - 127.5) * 0.3 + 127.5
    return Image.fromarray(pale.round().astype(np.uint8))


def write_scene(server: ComfyServer, folder: str = "lighthouse") -> str:
    """Writes the scene with its caption into a folder of the host's inputs, and returns its name."""
    write_captioned(server.input_directory / folder / "scene.png", scene(), CAPTION)
    return folder


def training(
    folder: str, rules: str = FEW_LAYERS, layers: Mapping[str, Any] | None = None, **inputs: Any
) -> Prompt:
    """Returns a prompt that trains on a folder of the host's inputs.

    Args:
        folder: Of pictures.
        rules: Which layers are trained.
        layers: More inputs of Blocks and Layers.
        inputs: Of Train LoRA.
    """
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT_NAME),
        "data": node("AnyAdapterDataset", folder=folder, resolution=SIDE_PX, bucket_step=8),
        "layers": node("AnyAdapterLayers", rules=rules, **(layers or {})),
        "train": train_node(**inputs),
    }


def train_node(**inputs: Any) -> dict[str, Any]:
    """Returns Train LoRA with the models of `checkpoint`, on `data` and `layers`: a short run.

    Args:
        inputs: What is to be otherwise, or besides.
    """
    links = {
        "model": ["checkpoint", 0],
        "clip": ["checkpoint", 1],
        "vae": ["checkpoint", 2],
        "dataset": ["data", 0],
        "layers": ["layers", 0],
    }
    plain = {
        "method": "LoRA-LierLa",
        "rank": 4,
        "alpha": 4.0,
        "steps": 3,
        "learning_rate": 1e-3,
        "batch_size": 1,
        "resolution": 0,
        "seed": 0,
        "output_name": "trained",
    }
    return node("AnyAdapterTrain", **(links | plain | inputs))


def loading(file: str = "", **inputs: Any) -> dict[str, Any]:
    """Returns Load Adapter for what the prompt trains, or for a file."""
    given = {"adapter": file, "strength_model": 1.0, "strength_clip": 1.0, "mode": "hook"}
    given |= {} if file else {"trained": ["train", 0]}
    parts = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1]}
    return node("AnyAdapterLoad", **parts, **given, rank=0, **inputs)


def sampling(name: str, source: str = "checkpoint", steps: int = 2, cfg: float = 3.0) -> Prompt:
    """Returns nodes that sample with the models of a node, and save the latent and the picture.

    Args:
        name: Begins the names of the nodes, of which `NAME_latent` and `NAME_picture` save.
        source: The node of the models.
        steps: Of the sampler.
        cfg: Of the sampler.
    """
    clip = [source, 1]
    return {
        f"{name}_positive": node("CLIPTextEncode", clip=clip, text=CAPTION),
        f"{name}_negative": node("CLIPTextEncode", clip=clip, text=""),
        f"{name}_empty": node("EmptyLatentImage", width=SIDE_PX, height=SIDE_PX, batch_size=1),
        f"{name}_sampler": node(
            "KSampler",
            model=[source, 0],
            positive=[f"{name}_positive", 0],
            negative=[f"{name}_negative", 0],
            latent_image=[f"{name}_empty", 0],
            seed=1,
            steps=steps,
            cfg=cfg,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        f"{name}_latent": node("SaveLatent", samples=[f"{name}_sampler", 0], filename_prefix=name),
        f"{name}_decoded": node("VAEDecode", samples=[f"{name}_sampler", 0], vae=["checkpoint", 2]),
        f"{name}_picture": node("SaveImage", images=[f"{name}_decoded", 0], filename_prefix=name),
    }


def losses(history: Mapping[str, Any]) -> list[float]:
    """Returns the loss of each step of the training of a prompt."""
    (shown,) = history["outputs"]["train"]["anyadapter_training"]
    return [point[1] for point in shown["points"]]


def report(history: Mapping[str, Any]) -> str:
    """Returns what the training node of a prompt says."""
    (text,) = history["outputs"]["train"]["text"]
    return text


def saved(history: Mapping[str, Any]) -> str:
    """Returns the name of the file that a prompt has trained."""
    (shown,) = history["outputs"]["train"]["anyadapter_training"]
    return shown["saved"]


def loras(server: ComfyServer) -> Path:
    """Returns the folder of adapters."""
    return server.base_directory / "models" / "loras"


def listed(server: ComfyServer) -> list[str]:
    """Returns the files among which Load Adapter lets one choose."""
    return server.object_info("AnyAdapterLoad")["input"]["required"]["adapter"][1]["options"]


def tensors(server: ComfyServer, name: str) -> dict[str, Tensor]:
    """Returns what is in a file."""
    return load_file(loras(server) / name)


def metadata(server: ComfyServer, name: str) -> dict[str, str]:
    """Returns what a file says of itself."""
    with safe_open(loras(server) / name, "pt") as file:
        return file.metadata()


def state(server: ComfyServer) -> dict[str, Any]:
    """Returns what the page shows of the training that began last."""
    status, answer = server.get("/anyadapter/training?node=train")
    assert status == 200
    return answer


def wait_until_step(server: ComfyServer, step: int) -> dict[str, Any]:
    """Waits until a training has done so many steps and goes on, and returns its state."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = state(server)
        if found and found["running"] and found["step"] >= step:
            return found
        time.sleep(0.01)
    raise TimeoutError(f"The training stays at {json.dumps(state(server))[:1000]}")


def stop(server: ComfyServer, run: str) -> None:
    """Tells a training to end and to keep what it has, as the button on its node does."""
    body = json.dumps({"node": "train", "run": run}).encode()
    status, _, _ = server.send("POST", "/anyadapter/training/stop", body)
    assert status == 200
