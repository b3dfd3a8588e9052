"""Adapter files as users have them by mistake or bad luck, each made from a good one."""

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from base_directory import cached_checkpoint


def write_truncated(good: Path, path: Path) -> None:
    """A download that was cut off in the tensors."""
    whole = good.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def write_truncated_in_header(good: Path, path: Path) -> None:
    """A download that was cut off at once."""
    path.write_bytes(good.read_bytes()[:100])


def write_empty(_: Path, path: Path) -> None:
    """0 bytes."""
    path.write_bytes(b"")


def write_without_tensors(_: Path, path: Path) -> None:
    """A valid file that holds nothing."""
    save_file({}, path)


def write_text(_: Path, path: Path) -> None:
    """The web page of a login instead of the file behind it."""
    path.write_text("<!DOCTYPE html><html><body>Please log in to download.</body></html>\n")


def write_pickle(good: Path, path: Path) -> None:
    """The right tensors in the format that can run code."""
    torch.save(load_file(good), path)


def write_checkpoint(_: Path, path: Path) -> None:
    """A whole model in the folder of the adapters."""
    path.unlink(missing_ok=True)
    try:
        os.link(cached_checkpoint(), path)
    except OSError:  # another disk
        shutil.copyfile(cached_checkpoint(), path)


def write_for_sdxl(_: Path, path: Path) -> None:
    """A LoRA for SDXL as sd-scripts writes it; its names mean nothing in the small SD 1.5."""
    block = "lora_unet_input_blocks_4_1_transformer_blocks_1"
    save_file(
        _lora(f"{block}_attn1_to_q", 640, 640)
        | _lora(f"{block}_attn2_to_k", 640, 2048)
        | _lora("lora_te2_text_model_encoder_layers_0_mlp_fc1", 5120, 1280),
        path,
        {"ss_base_model_version": "sdxl_base_v1-0"},
    )


def write_for_sdxl_with_clip_l(good: Path, path: Path) -> None:
    """The same with layers of CLIP-L, which SDXL and SD 1.5 share by name and shape."""
    write_for_sdxl(good, path)
    shared = _lora("lora_te1_text_model_encoder_layers_0_mlp_fc1", 3072, 768)
    save_file(load_file(path) | shared, path)


def write_for_flux_by_diffusers(_: Path, path: Path) -> None:
    """A LoRA for Flux in the names of diffusers and PEFT."""
    module = "transformer.single_transformer_blocks.0.attn.to_q"
    down, up = _lora(module, 3072, 3072).values()
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, path)


def write_for_flux_by_kohya(_: Path, path: Path) -> None:
    """A LoRA for Flux in the names of sd-scripts."""
    save_file(_lora("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072), path)


def write_of_sd2_width(good: Path, path: Path) -> None:
    """Names as in SD 1.5, but the width of SD 2's text: 1024 instead of 768."""
    tensors = load_file(good)
    for key, tensor in tensors.items():
        if "attn2_to_k.lora_down" in key or "attn2_to_v.lora_down" in key:
            tensors[key] = torch.ones(tensor.shape[0], 1024, dtype=tensor.dtype)
    save_file(tensors, path)


def write_with_nan(good: Path, path: Path) -> None:
    """One number in one tensor is NaN; `nan_key` says in which."""
    tensors = load_file(good)
    tensors[nan_key(good)].view(-1)[7] = float("nan")
    save_file(tensors, path)


def nan_key(good: Path) -> str:
    """The tensor that `write_with_nan` spoils."""
    return max(key for key in load_file(good) if key.endswith("lora_up.weight"))


def write_with_extra_tensors(good: Path, path: Path) -> None:
    """Tensors that no method knows: one beside a module's own, one on its own."""
    tensors = load_file(good)
    module = min(tensors).removesuffix(".alpha")
    extra = {f"{module}.mystery": torch.ones(3), "not_of_this_world": torch.ones(2, 2)}
    save_file(tensors | extra, path)


def write_without_a_down(good: Path, path: Path) -> None:
    """A module has its `lora_up` and lacks its `lora_down`; `missing_key` says which."""
    tensors = load_file(good)
    del tensors[missing_key(good)]
    save_file(tensors, path)


def missing_key(good: Path) -> str:
    """The tensor that `write_without_a_down` leaves out."""
    return max(key for key in load_file(good) if key.endswith("lora_down.weight"))


def _lora(module: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    return {
        f"{module}.lora_down.weight": torch.full((4, inputs), 0.01),
        f"{module}.lora_up.weight": torch.full((outputs, 4), 0.01),
    }
