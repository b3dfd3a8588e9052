"""Training in a running ComfyUI: every method, every kind of dataset, and what comes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anyadapter.algorithms.training.methods import METHODS
from comfy_server import ComfyServer, PromptFailedError
from training_prompts import (
    ALL_LAYERS,
    CAPTION,
    SIDE_PX,
    listed,
    loading,
    losses,
    metadata,
    report,
    sampling,
    saved,
    scene,
    tensors,
    training,
    write_scene,
)
from workflows import Prompt, node, read_latent, saved_file

ARTEFACTS = Path(__file__).parents[1] / "browser" / "artefacts"
STEPS = 6
INPUTS: dict[str, dict[str, Any]] = {
    "LoRA-LierLa": {"rules": ALL_LAYERS},
    "LoRA-C3Lier": {},
    "LoRA+": {"learning_rate": 2e-4},
    "LoRA-FA": {"rank": 16, "alpha": 16.0},
    "DyLoRA": {"learning_rate": 3e-3},
    "LoHa": {"learning_rate": 3e-3},
    "LoKr": {"rules": ALL_LAYERS, "learning_rate": 3e-3},
    "(IA)^3": {"learning_rate": 3e-2},
    "Full": {"learning_rate": 2e-4},
    "OFT (kohya)": {},
    "Diag-OFT": {},
    "BOFT": {"rank": 16},
    "GLoRA": {},
    "T-LoRA": {},
    "NestedUNet": {},
}
"""What each method is trained with: few steps at a rate that shows."""
UNKNOWN_TO_HOST = {"(IA)^3", "OFT (kohya)"}
"""Whose files the host's own loader does not know, or turns otherwise than their makers do."""
TOLERANCE = 1e-3
"""Of the effect, which is small after so few steps: rounding in float32 gives 1e-4."""


class Lighthouse:
    """A server with a picture of a lighthouse, and what it does without any training."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self.folder = write_scene(server)
        still = self.training(learning_rate=1e-12, steps=STEPS) | sampling("plain")
        history = server.run(still)
        self.losses = losses(history)
        self.latent = read_latent(server, history, "plain_latent")

    def training(self, **inputs: Any) -> Prompt:
        return training(self.folder, **inputs)

    def latents(self, prompt: Prompt, *names: str) -> list[Tensor]:
        history = self.server.run(prompt)
        return [read_latent(self.server, history, f"{name}_latent") for name in names]


@pytest.fixture(scope="module")
def lighthouse(server: ComfyServer) -> Lighthouse:
    return Lighthouse(server)


def from_file(lighthouse: Lighthouse, file: str, name: str) -> Prompt:
    """Samples with a file, by Load Adapter and by the host's loader."""
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    parts = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1]}
    return {
        "checkpoint": lighthouse.training()["checkpoint"],
        "ours": loading(file),
        "theirs": node("LoraLoader", lora_name=file, **strengths, **parts),
        **sampling(f"{name}_ours", "ours"),
        **sampling(f"{name}_theirs", "theirs"),
    }


def test_every_method_has_its_inputs():
    assert list(INPUTS) == list(METHODS)


@pytest.mark.parametrize("method", INPUTS)
def test_a_method_learns_and_its_file_is_what_goes_on_in_the_graph(
    lighthouse: Lighthouse, method: str
):
    server, name = lighthouse.server, method.translate(str.maketrans("()+^ ", "_____"))
    prompt = lighthouse.training(
        method=method, steps=STEPS, output_name=f"methods/{name}", **INPUTS[method]
    )
    history = server.run(prompt | {"load": loading()} | sampling(name, "load"))
    trained = losses(history)
    assert trained[0] == pytest.approx(lighthouse.losses[0], rel=1e-4)
    assert sum(trained[2:]) < 0.97 * sum(lighthouse.losses[2:])

    file = saved(history)
    assert file == f"methods/{name}.safetensors"
    assert file in listed(server)
    of_socket = read_latent(server, history, f"{name}_latent")
    of_file, of_host = lighthouse.latents(
        from_file(lighthouse, file, name), f"{name}_ours", f"{name}_theirs"
    )
    assert torch.equal(of_socket, of_file)
    effect = (of_file - lighthouse.latent).norm()
    assert effect > 1e-3 * lighthouse.latent.norm()
    if method not in UNKNOWN_TO_HOST:
        assert (of_host - of_file).norm() < TOLERANCE * effect


def pixels(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB"), np.float32)


def distance(first: Image.Image, other: Image.Image) -> float:
    return float(np.sqrt(np.mean((pixels(first) - pixels(other)) ** 2)))


def test_what_was_trained_draws_a_picture_nearer_to_that_of_the_training(lighthouse: Lighthouse):
    server = lighthouse.server
    prompt = lighthouse.training(
        method="LoRA-C3Lier",
        rank=8,
        alpha=8.0,
        learning_rate=4e-3,
        steps=40,
        rules=ALL_LAYERS,
        output_name="nearer",
    )
    prompt |= {"load": loading()}
    prompt |= sampling("drawn", "load", 8, 1.0) | sampling("base", "checkpoint", 8, 1.0)
    history = server.run(prompt)
    drawn, base = (
        Image.open(saved_file(server, history, f"{name}_picture")) for name in ("drawn", "base")
    )
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    sheet = Image.new("RGB", (3 * 200, 200), "white")
    for column, one in enumerate((scene(), base, drawn)):
        large = one.convert("RGB").resize((192, 192), Image.Resampling.NEAREST)
        sheet.paste(large, (200 * column + 4, 4))
    sheet.save(ARTEFACTS / "trained_picture.png")
    assert distance(drawn, scene()) < 0.75 * distance(base, scene())


def test_all_kinds_of_datasets_teach_the_same(lighthouse: Lighthouse):
    server = lighthouse.server
    picture = "scene_of_the_graph.png"
    scene().save(server.input_directory / picture)
    encoded = {"clip": ["checkpoint", 1], "text": CAPTION}
    parts: Prompt = {
        "image": node("LoadImage", image=picture),
        "latent": node("VAEEncode", pixels=["image", 0], vae=["checkpoint", 2]),
        "text": node("CLIPTextEncode", **encoded),
        "made": node(
            "MakeTrainingDataset",
            images=["image", 0],
            vae=["checkpoint", 2],
            clip=["checkpoint", 1],
            texts=CAPTION,
        ),
    }
    datasets = {
        "AnyAdapterImageDataset": node(
            "AnyAdapterImageDataset",
            images=["image", 0],
            captions=CAPTION,
            resolution=SIDE_PX,
            bucket_step=8,
        ),
        "encoded": node(
            "AnyAdapterLatentDataset", latents=["latent", 0], conditionings=["text", 0]
        ),
        "made": node("AnyAdapterLatentDataset", latents=["made", 0], conditionings=["made", 1]),
    }
    of_folder = losses(server.run(lighthouse.training(output_name="datasets")))
    for name, made in datasets.items():
        prompt = lighthouse.training(output_name="datasets", resolution=SIDE_PX) | parts
        prompt["data"] = made
        if name != "AnyAdapterImageDataset":
            del prompt["train"]["inputs"]["clip"], prompt["train"]["inputs"]["vae"]
        assert losses(server.run(prompt)) == pytest.approx(of_folder, rel=1e-4), name


def test_all_settings_can_be_connected(lighthouse: Lighthouse):
    server = lighthouse.server
    prompt = lighthouse.training(
        rules="L00: on\nOUT03: on\nALL: off",
        layers={"text_encoders": True},
        steps=2,
        batch_size=2,
        accumulation=2,
        gradient_checkpointing=True,
        cache="disk",
        max_norm=1.0,
        save_every=1,
        output_name="styles/everything",
    )
    prompt["train"]["inputs"] |= {
        name: [name, 0] for name in ("method_options", "optimizer", "noise_and_loss", "samples")
    }
    prompt |= {
        "method_options": node("AnyAdapterMethodOptions", dora=True, rank_dropout=0.1),
        "optimizer": node(
            "AnyAdapterOptimizer",
            schedule="cosine",
            warmup=1,
            ema_decay=0.5,
            text_encoder_rate=1e-4,
            arguments="betas=.9,.99",
        ),
        "noise_and_loss": node(
            "AnyAdapterNoiseAndLoss", min_snr_gamma=5.0, noise_offset=0.05, loss_type="huber"
        ),
        "samples": node(
            "AnyAdapterSamples",
            prompts=f"{CAPTION}\na tower",
            every_steps=1,
            width=SIDE_PX,
            height=SIDE_PX,
            steps=1,
        ),
        "plot": node("SaveImage", images=["train", 2], filename_prefix="plot"),
        "told": node("PreviewAny", source=["train", 3]),
        "file": node("PreviewAny", source=["train", 1]),
    }
    history = server.run(prompt)
    file = "styles/everything.safetensors"
    assert history["outputs"]["file"]["text"] == [file]
    assert history["outputs"]["told"]["text"] == [report(history)]
    assert "styles/everything-step00000001.safetensors" in listed(server)

    (shown,) = history["outputs"]["train"]["anyadapter_training"]
    assert [(one["step"], one["label"]) for one in shown["samples"]] == [
        (step, label) for step in (0, 1, 2) for label in (CAPTION, "a tower")
    ]
    assert all(one["image"].startswith("data:image/jpeg;base64,") for one in shown["samples"])
    assert shown["samples"][0]["image"] != shown["samples"][-2]["image"]
    plot = pixels(Image.open(saved_file(server, history, "plot")))
    assert min(plot.shape[:2]) > 200
    assert plot.std() > 1

    found = tensors(server, file)
    assert {key.split("_")[1] for key in found} == {"unet", "te"}
    assert any(key.endswith("dora_scale") for key in found)
    said = metadata(server, file)
    assert said["ss_network_module"]
    assert json.loads(said["ss_tag_frequency"]) == {"lighthouse": {CAPTION: 1}}
    for text in (str(server.base_directory), str(Path.home()), server.input_directory.name + "/"):
        assert text not in json.dumps(said)


def test_trainings_do_not_change_what_is_drawn_without_them(lighthouse: Lighthouse):
    server = lighthouse.server
    apart = lighthouse.training(output_name="apart")
    apart["train"]["inputs"]["optimizer"] = ["optimizer", 0]
    apart["optimizer"] = node("AnyAdapterOptimizer", arguments="eps=0")  # 0 / 0
    with pytest.raises(PromptFailedError, match="The loss of step 2 is nan: the training has come"):
        server.run(apart)
    assert "apart-step00000001.safetensors" in listed(server)
    for name in ("again", "once_more"):
        history = server.run(lighthouse.training(output_name="leak") | sampling(name))
        assert torch.equal(read_latent(server, history, f"{name}_latent"), lighthouse.latent)


def test_what_is_missing_is_said_and_the_page_is_told_of_the_end(lighthouse: Lighthouse):
    prompt = lighthouse.training()
    del prompt["train"]["inputs"]["vae"]
    with pytest.raises(PromptFailedError, match="No VAE is connected"):
        lighthouse.server.run(prompt)
    status, shown = lighthouse.server.get("/anyadapter/training?node=train")
    assert (status, shown["running"]) == (200, False)
