"""The example of Block Sweep in the page: it opens, and makes a picture for each block."""

import json
from pathlib import Path
from typing import Any

import pytest

from base_directory import CHECKPOINT_NAME, cached_checkpoint, example_workflow
from comfy_page import ComfyPage
from comfy_server import ComfyServer
from made_adapters import put_adapter

ARTEFACTS = Path(__file__).parent / "artefacts"


def example(server: ComfyServer) -> dict[str, Any]:
    """The workflow as it ships, with files that are here and a small picture."""
    put_adapter("locon", cached_checkpoint(), server.base_directory / "models" / "loras")
    workflow = json.loads(example_workflow("block_sweep"))
    for node in workflow["nodes"]:
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"] = [64, 64, 1]
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 1
    return workflow


def test_the_example_opens_and_makes_a_picture_for_each_block(
    page: ComfyPage, server: ComfyServer, request: pytest.FixtureRequest
) -> None:
    page_name = request.node.callspec.id
    page.run("workflow => app.loadGraphData(workflow)", example(server))
    page.run("() => { app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [600, 150] }")
    prompt = page.run("async () => (await app.graphToPrompt()).output")
    loader = next(one for one in prompt.values() if one["class_type"] == "AnyAdapterLoad")
    sweep = next(key for key, one in prompt.items() if one["class_type"] == "AnyAdapterBlockSweep")
    assert loader["inputs"]["blocks"] == [sweep, 0]
    assert prompt["1"]["inputs"] == {"ckpt_name": CHECKPOINT_NAME}
    assert prompt[sweep]["inputs"] == {
        "adapter": "locon.safetensors",
        "model": ["1", 0],
        "clip": ["1", 1],
        "what": "each off in turn",
        "level": "blocks",
        "value": 0.5,
        "base": "",
        "with_reference": True,
        "where": "diffusion model",
    }
    for one in prompt.values():
        if one["class_type"] == "SaveImage":  # else the other page's run would stand for this one
            one["inputs"]["filename_prefix"] += page_name
    history = server.run(prompt)
    saved = [one["images"] for one in history["outputs"].values() if "images" in one]
    assert [len(images) for images in saved] == [1, 1]
    ARTEFACTS.mkdir(exist_ok=True)
    page.tab.screenshot(path=ARTEFACTS / f"block_sweep_{page_name}.png")
