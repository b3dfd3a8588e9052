"""Bad files over HTTP: each its own message, and a server that goes on."""

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from base_directory import CHECKPOINT_NAME, cached_checkpoint, link_or_copy
from comfy_server import ComfyServer, PromptFailedError, PromptRejectedError
from workflows import read_latent, text_to_latent

TO_K = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"


def lora(module: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    return {
        f"{module}.lora_up.weight": torch.ones(outputs, 2) * 0.01,
        f"{module}.lora_down.weight": torch.ones(2, inputs) * 0.01,
    }


RUNS = itertools.count()
FITTING = lora(TO_K, 320, 768)


def with_nan() -> dict[str, Tensor]:
    tensors = {key: tensor.clone() for key, tensor in FITTING.items()}
    tensors[f"{TO_K}.lora_up.weight"][3, 1] = float("nan")
    return tensors


SDXL = lora("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 640, 640) | lora(
    "lora_te2_text_model_encoder_layers_0_mlp_fc1", 5120, 1280
)
FLUX = lora("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072)
HALF = {f"{TO_K}.lora_up.weight": torch.ones(320, 2)}

BAD: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "truncated": ("t.safetensors", lambda p: p.write_bytes(save(FITTING)[:-9]), ("truncated",)),
    "empty": ("e.safetensors", lambda p: p.write_bytes(b""), ("empty",)),
    "no tensors": ("n.safetensors", lambda p: p.write_bytes(save({})), ("holds no tensors",)),
    "text": ("x.safetensors", lambda p: p.write_text("<html>404"), ("not a safetensors file",)),
    "pickle": ("p.pt", lambda p: p.write_bytes(pickle.dumps({})), ("pickle", "Convert")),
    "checkpoint": (
        "c.safetensors",
        lambda p: link_or_copy(cached_checkpoint(), p),
        ("is a checkpoint", "Load Checkpoint"),
    ),
    "SDXL": ("s.safetensors", lambda p: save_file(SDXL, p), ("made for SDXL", "is SD 1.x")),
    "Flux": ("f.safetensors", lambda p: save_file(FLUX, p), ("made for Flux", "is SD 1.x")),
    "SD 2": (
        "2.safetensors",
        lambda p: save_file(lora(TO_K, 320, 1024), p),
        ("does not fit", TO_K, "320 x 1024", "320 x 768", "made for SD 2.x; the model is SD 1.x"),
    ),
    "NaN": ("a.safetensors", lambda p: save_file(with_nan(), p), ("NaN", "lora_up.weight")),
    "half": ("h.safetensors", lambda p: save_file(HALF, p), ("incomplete", "lora_down.weight")),
}


def loader(name: str, mode: str = "hook") -> dict[str, Any]:
    return {
        "adapter": name,
        "strength_model": 1.0,
        "strength_clip": 1.0,
        "mode": mode,
        "rank": 0,
    }


def run(server: ComfyServer, *loaders: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    prefix = f"bad_input_{next(RUNS)}"  # a new one, or the host would save nothing the second time
    history = server.run(text_to_latent(CHECKPOINT_NAME, loaders, steps=2, save_prefix=prefix))
    return read_latent(server, history), history


@pytest.fixture
def loras(server: ComfyServer) -> Path:
    return server.base_directory / "models" / "loras"


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_and_the_server_goes_on(
    server: ComfyServer, loras: Path, kind: str
) -> None:
    before, _ = run(server)
    name, write, words = BAD[kind]
    name = f"bad_{name}"
    write(loras / name)
    with pytest.raises(PromptFailedError) as caught:
        run(server, loader(name))
    for word in (name, *words):
        assert word in str(caught.value)
    assert torch.equal(run(server)[0], before)


def test_unknown_tensors_are_named_and_the_rest_is_loaded(server: ComfyServer, loras: Path) -> None:
    save_file(FITTING, loras / "plain.safetensors")
    extra = {"lora_unet_foo.bar_w": torch.ones(1), **lora("lora_unet_unheard_of", 3, 3)}
    save_file(FITTING | extra, loras / "extra.safetensors")
    plain, _ = run(server, loader("plain.safetensors"))
    latent, history = run(server, loader("extra.safetensors"))
    assert torch.equal(latent, plain)
    (text,) = history["outputs"]["adapter_1"]["text"]
    assert "Tensors not understood: lora_unet_foo.bar_w" in text
    assert "No home in the diffusion model: lora_unet_unheard_of" in text


def test_a_file_that_disappears_is_named(server: ComfyServer, loras: Path) -> None:
    path = loras / "gone.safetensors"
    save_file(FITTING, path)
    server.object_info("AnyAdapterLoad")
    path.unlink()
    with pytest.raises((PromptFailedError, PromptRejectedError), match=r"gone\.safetensors"):
        run(server, loader(path.name))


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/outside.safetensors", "..\\outside.safetensors"]
)
def test_a_name_cannot_leave_the_folder(server: ComfyServer, loras: Path, name: str) -> None:
    save_file(FITTING, loras.parent / "outside.safetensors")
    with pytest.raises((PromptFailedError, PromptRejectedError), match="outside"):
        run(server, loader(name))


def test_a_file_that_changes_on_disk_is_read_again(server: ComfyServer, loras: Path) -> None:
    path = loras / "changing.safetensors"
    save_file(FITTING, path)
    first, _ = run(server, loader(path.name))
    stronger = {key: tensor * 5 for key, tensor in load_file(path).items()}
    save_file(stronger, loras / "next")
    (loras / "next").replace(path)
    assert not torch.equal(run(server, loader(path.name))[0], first)


def test_nothing_connected_says_what_to_connect(server: ComfyServer, loras: Path) -> None:
    save_file(FITTING, loras / "plain.safetensors")
    prompt = text_to_latent(CHECKPOINT_NAME)
    prompt["adapter"] = {"class_type": "AnyAdapterLoad", "inputs": loader("plain.safetensors")}
    prompt["positive"]["inputs"]["clip"] = ["adapter", 1]
    with pytest.raises(PromptFailedError, match="connect a model or a CLIP"):
        server.run(prompt)
