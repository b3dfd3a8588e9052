"""Block Sweep and Label Grid in a running ComfyUI: a picture for each block, each the right one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from base_directory import CHECKPOINT_NAME, cached_checkpoint
from comfy_server import ComfyServer, PromptFailedError
from made_adapters import put_adapter
from workflows import Prompt, node, saved_file, text_to_image

ARTEFACTS = Path(__file__).parents[1] / "browser" / "artefacts"
CHECKPOINT = node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT_NAME)
TOUCHED = ["IN01", "IN02", "IN03", "M00", "OUT00", "OUT01", "OUT02", "OUT03"]
"""Blocks of the small UNet in which LoCon has layers."""


@pytest.fixture(scope="session")
def adapter(server: ComfyServer) -> str:
    return put_adapter("locon", cached_checkpoint(), server.base_directory / "models" / "loras")


def loader(adapter: str, blocks: Any = "") -> dict[str, Any]:
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    return {"adapter": adapter, **strengths, "mode": "hook", "rank": 0, "blocks": blocks}


def sweep_of(adapter: str, **options: Any) -> dict[str, Any]:
    wishes = {
        "what": "each off in turn",
        "level": "blocks",
        "value": 0.5,
        "base": "",
        "with_reference": True,
        "where": "diffusion model",
    }
    links = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1]}
    return node("AnyAdapterBlockSweep", adapter=adapter, **(wishes | links | options))


def swept(adapter: str, **options: Any) -> Prompt:
    """A picture for each step of a sweep; their latents are saved, and a grid of all."""
    nodes = text_to_image(CHECKPOINT_NAME, [loader(adapter, ["sweep", 0])])
    nodes["sweep"] = sweep_of(adapter, **options)
    nodes["latents"] = node("SaveLatent", samples=["sampler", 0], filename_prefix="swept")
    nodes["grid"] = node(
        "AnyAdapterLabelGrid", images=["decode", 0], labels=["sweep", 1], columns=0, show="pictures"
    )
    nodes["differences"] = node(
        "AnyAdapterLabelGrid",
        images=["decode", 0],
        labels=["sweep", 1],
        columns=4,
        show="difference to the first",
    )
    nodes["save_grid"] = node("SaveImage", images=["grid", 0], filename_prefix="grid")
    nodes["save_differences"] = node("SaveImage", images=["differences", 0], filename_prefix="diff")
    return nodes


def latent_of(server: ComfyServer, adapter: str, blocks: str) -> torch.Tensor:
    nodes = text_to_image(CHECKPOINT_NAME, [loader(adapter, blocks)])
    nodes["save"] = node("SaveLatent", samples=["sampler", 0], filename_prefix=f"one {blocks}"[:20])
    return load_file(saved_file(server, server.run(nodes)))["latent_tensor"]


def told(server: ComfyServer, sweep: dict[str, Any]) -> tuple[list[str], list[str], str]:
    """Texts, labels and the count of a sweep that stands alone."""
    history = server.run(
        {
            "checkpoint": CHECKPOINT,
            "sweep": sweep,
            "blocks": node("PreviewAny", source=["sweep", 0]),
            "labels": node("PreviewAny", source=["sweep", 1]),
            "count": node("PreviewAny", source=["sweep", 2]),
        }
    )
    outputs = history["outputs"]
    return outputs["blocks"]["text"], outputs["labels"]["text"], outputs["count"]["text"][0]


def test_every_touched_block_makes_a_picture_and_one_is_unchanged(
    server: ComfyServer, adapter: str
) -> None:
    history = server.run(swept(adapter))
    pictures, latents = (history["outputs"][one] for one in ("save", "latents"))
    assert len(pictures["images"]) == len(latents["latents"]) == len(TOUCHED) + 1
    files = [
        server.output_directory / one["subfolder"] / one["filename"] for one in latents["latents"]
    ]
    found = [load_file(path)["latent_tensor"] for path in files]
    assert torch.equal(found[0], latent_of(server, adapter, ""))
    assert torch.equal(found[1 + TOUCHED.index("IN01")], latent_of(server, adapter, "IN01:0"))
    assert torch.equal(found[1 + TOUCHED.index("OUT03")], latent_of(server, adapter, "OUT03:0"))
    assert len({latent.sum().item() for latent in found}) == len(found)
    ARTEFACTS.mkdir(exist_ok=True)
    for output in ("save_grid", "save_differences"):
        path = saved_file(server, history, output)
        shutil.copy(path, ARTEFACTS / f"sweep_{output}.png")
        with Image.open(path) as image:
            assert image.width > 3 * 64


def test_a_sweep_tells_its_texts_and_labels(server: ComfyServer, adapter: str) -> None:
    texts, labels, count = told(server, sweep_of(adapter))
    assert labels == ["unchanged", *(f"{block} off" for block in TOUCHED)]
    assert texts == ["", *(f"{block}:0" for block in TOUCHED)]
    assert count == str(len(TOUCHED) + 1)


def test_groups_alone_keep_what_the_base_keeps(server: ComfyServer, adapter: str) -> None:
    sweep = sweep_of(adapter, what="each alone", level="groups", base="TE:1", with_reference=False)
    texts, labels, _ = told(server, sweep)
    assert labels == ["IN alone", "MID alone", "OUT alone"]
    assert texts[1] == "ALL:0, TE:1, MID:1"


def test_layers_of_the_text_encoder_are_tried_on_request(server: ComfyServer, adapter: str) -> None:
    _, labels, _ = told(server, sweep_of(adapter, where="text encoders", with_reference=False))
    assert labels == ["L00 off", "L03 off", "L06 off", "L09 off"]


def grid(images: Any, labels: Any, **options: Any) -> Prompt:
    wishes = {"columns": 0, "show": "pictures"} | options
    return {
        "grid": node("AnyAdapterLabelGrid", images=images, labels=labels, **wishes),
        "save": node("SaveImage", images=["grid", 0], filename_prefix="grid"),
    }


def blank(colour: int, width: int, height: int, batch: int = 1) -> dict[str, Any]:
    return node("EmptyImage", width=width, height=height, batch_size=batch, color=colour)


def test_a_batch_is_laid_out_with_its_label_under_each(server: ComfyServer) -> None:
    nodes = {"image": blank(0xFF0000, 64, 48, batch=3), "text": node("PrimitiveString", value="x")}
    history = server.run(nodes | grid(["image", 0], ["text", 0], columns=2))
    with Image.open(saved_file(server, history)) as image:
        pixels = np.array(image.convert("RGB"))
    red = (pixels == (255, 0, 0)).all(2)
    assert red.sum() == 3 * 64 * 48
    rows, columns = red.any(1).nonzero()[0], red.any(0).nonzero()[0]
    assert columns.max() - columns.min() + 1 == 2 * 64 + 8
    assert rows.max() - rows.min() + 1 > 2 * 48
    ink = (pixels < 128).all(2)
    assert ink.any()


def test_labels_of_another_number_are_refused(server: ComfyServer, adapter: str) -> None:
    nodes = {"image": blank(0xFF, 64, 64, batch=2), "sweep": sweep_of(adapter)}
    nodes["checkpoint"] = CHECKPOINT
    with pytest.raises(PromptFailedError, match="9 labels for 2 pictures"):
        server.run(nodes | grid(["image", 0], ["sweep", 1]))


def test_a_file_without_blocks_of_that_part_is_told(server: ComfyServer, adapter: str) -> None:
    tensors = load_file(server.base_directory / "models" / "loras" / adapter)
    only = {key: value for key, value in tensors.items() if key.startswith("lora_te")}
    save_file(only, server.base_directory / "models" / "loras" / "te_only.safetensors")
    with pytest.raises(PromptFailedError, match="touches no block of the diffusion model"):
        told(server, sweep_of("te_only.safetensors"))
