"""Workflows in ComfyUI's API form, as plain dictionaries that a test may change."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from comfy_server import ComfyServer

Prompt = dict[str, Any]

WIDGETS = {"BOOLEAN", "COMBO", "FLOAT", "INT", "STRING"}
"""Types of inputs that have their values on the node."""

COMBINE: dict[str, Any] = {
    "adapters": "",
    "mode": "exact",
    "size": "rank",
    "rank": 4,
    "kept_energy": 0.99,
    "error": 0.05,
    "density": 0.5,
    "sign": "total",
    "largest_rank": 0,
    "conv_rank": 0,
    "strengths": "",
}
"""What the widgets of Combine Adapters hold, in its fastest mode."""
ADDED_TO_LOAD: dict[str, Any] = {
    "scale": "as trained",
    "acts_on": "every conditioning",
    "memory_mb": -1,
    "blocks": "",
    "blocks_seed": 0,
}
"""What the inputs that Load Adapter was given later do to workflows of before them: nothing."""


def text_to_latent(
    checkpoint: str,
    loaders: Sequence[dict[str, Any]] = (),
    *,
    prompt: str = "a lighthouse",
    negative: str = "",
    seed: int = 1,
    steps: int = 2,
    size_px: int = 64,
    batch: int = 1,
    save_prefix: str = "latent",
    loader_class: str = "AnyAdapterLoad",
    use_clip: bool = True,
    use_model: bool = True,
) -> Prompt:
    """Returns a workflow that samples with a chain of loader nodes and saves the latent.

    Args:
        loaders: The inputs of each loader node but `model` and `clip`, which this function links.
        use_model: Whether the loaders get the checkpoint's MODEL.
        use_clip: Whether the loaders get the checkpoint's CLIP.
    """
    model: list[Any] = ["checkpoint", 0]
    clip: list[Any] = ["checkpoint", 1]
    nodes: Prompt = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
    }
    for number, loader in enumerate(loaders, start=1):
        node_id = f"adapter_{number}"
        nodes[node_id] = node(loader_class, **loader)
        if use_model:
            nodes[node_id]["inputs"]["model"] = model
            model = [node_id, 0]
        if use_clip:
            nodes[node_id]["inputs"]["clip"] = clip
            clip = [node_id, 1]
    return nodes | {
        "positive": node("CLIPTextEncode", clip=clip, text=prompt),
        "negative": node("CLIPTextEncode", clip=clip, text=negative),
        "empty": node("EmptyLatentImage", width=size_px, height=size_px, batch_size=batch),
        "sampler": node(
            "KSampler",
            model=model,
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            seed=seed,
            steps=steps,
            cfg=3.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sampler", 0], filename_prefix=save_prefix),
    }


def text_to_image(
    checkpoint: str,
    loaders: Sequence[dict[str, Any]] = (),
    *,
    save_prefix: str = "image",
    **options: Any,
) -> Prompt:
    """Returns the workflow of `text_to_latent`, with its options, that saves a picture instead."""
    nodes = text_to_latent(checkpoint, loaders, **options)
    nodes["decode"] = node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2])
    nodes["save"] = node("SaveImage", images=["decode", 0], filename_prefix=save_prefix)
    return nodes


def image_to_image(
    checkpoint: str,
    image: str,
    loaders: Sequence[dict[str, Any]] = (),
    *,
    denoise: float = 1.0,
    **options: Any,
) -> Prompt:
    """Returns the workflow of `text_to_image`, with its options, that draws over a picture.

    Args:
        image: A file in the input folder.
        denoise: How much of the way the picture is drawn anew.
    """
    nodes = text_to_image(checkpoint, loaders, **options)
    del nodes["empty"]
    nodes["picture"] = node("LoadImage", image=image)
    nodes["encode"] = node("VAEEncode", pixels=["picture", 0], vae=["checkpoint", 2])
    nodes["sampler"]["inputs"] |= {"latent_image": ["encode", 0], "denoise": denoise}
    return nodes


def side_by_side(first: Prompt, second: Prompt) -> Prompt:
    """Returns both prompts as one: `other_` is put before the ids of the second one's nodes.

    Loaders that are the same in both are there once.
    """
    names = {
        theirs: ours
        for theirs, node in second.items()
        for ours, same in first.items()
        if node == same and node["class_type"] == "CheckpointLoaderSimple"
    }

    def renamed(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [names.get(value[0], f"other_{value[0]}"), value[1]]

    other = {
        f"other_{node_id}": node
        | {"inputs": {name: renamed(value) for name, value in node["inputs"].items()}}
        for node_id, node in second.items()
        if node_id not in names
    }
    return first | other


def saved_file(server: ComfyServer, history: dict[str, Any], node_id: str = "save") -> Path:
    """Returns the one file that a node of a finished workflow has written."""
    output = history["outputs"][node_id]
    (file,) = output["latents"] if "latents" in output else output["images"]
    return server.output_directory / file["subfolder"] / file["filename"]


def read_latent(
    server: ComfyServer, history: dict[str, Any], node_id: str = "save"
) -> torch.Tensor:
    """Returns the latent that a node of a finished workflow has saved."""
    return load_file(saved_file(server, history, node_id))["latent_tensor"]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Returns one node; an input is a value, or a link `[node id, output]`."""
    return {"class_type": class_type, "inputs": inputs}


def api_form(workflow: Prompt, server: ComfyServer) -> Prompt:
    """Returns a stored workflow of the page as the page would send it.

    Widgets of which it has no value, since it is older than they are, are left out.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: Prompt = {}
    for stored in workflow["nodes"]:
        groups = server.object_info(stored["type"])["input"]
        asked = groups.get("required", {}) | groups.get("optional", {})
        values = iter(stored.get("widgets_values") or [])
        inputs: dict[str, Any] = {}
        for name, (kind, *options) in asked.items():
            if not (isinstance(kind, list) or kind in WIDGETS):
                continue
            with suppress(StopIteration):
                inputs[name] = next(values)
            if options and options[0].get("control_after_generate"):
                next(values)
        assert not [*values], f"{stored['type']} has more values than widgets"
        linked = {one["name"]: one["link"] for one in stored["inputs"]}
        inputs |= {name: links[link] for name, link in linked.items() if link is not None}
        prompt[str(stored["id"])] = node(stored["type"], **inputs)
    return prompt
