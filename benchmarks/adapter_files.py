"""Writes adapter files in the sizes that people train, by LyCORIS' own modules."""

import logging
import zlib
from pathlib import Path
from typing import Any

import torch
from lycoris.modules.base import LycorisBaseModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import load_file
from torch import Tensor

from making import Target
from small_world import UnetShape, unet_layers, write_atomically

# It tells the sizes of every layer that it makes.
logging.getLogger("LyCORIS").setLevel(logging.WARNING)

RANK = 16
ALPHA = 8.0
WIDE_RANK = 71
"""The rank at which a LoRA on all layers of the large UNet is a file of 150 MB."""
DEVIATION = 0.01
"""Of the numbers in a file: their effect is finite, and none is so small that it computes slow."""

KINDS: dict[str, tuple[type[LycorisBaseModule], dict[str, Any]]] = {
    "lora": (LoConModule, {}),
    "loha": (LohaModule, {}),
    "lokr": (LokrModule, {"factor": 8}),
    "ia3": (IA3Module, {}),
    "oft": (DiagOFTModule, {}),
    "dora": (LoConModule, {"weight_decompose": True}),
    "wide": (LoConModule, {"lora_dim": WIDE_RANK}),
}
"""LyCORIS' module of each kind of file, and what it is made with besides rank and alpha."""


def write_adapter(
    kind: str, path: Path, *, number: int, checkpoint: Path, shape: UnetShape
) -> None:
    """Writes an adapter on all linear and convolution layers of a UNet, in half precision."""
    base = load_file(checkpoint)
    module_class, options = KINDS[kind]
    tensors: dict[str, Tensor] = {}
    for layer in unet_layers(shape):
        if layer.kind not in ("linear", "conv"):
            continue
        plain = Target("unet", layer).module(base)
        sizes: dict[str, Any] = {"lora_dim": RANK, "alpha": ALPHA}
        if kind == "ia3":
            # As LyCORIS' preset: what comes out of a layer, but what goes into the last of `ff`.
            sizes["train_on_input"] = layer.name.endswith(".ff.net.2")
        module = module_class("", plain, **(sizes | options))
        seed = zlib.crc32(f"{kind} {number} {layer.name}".encode())
        _fill(module, torch.Generator().manual_seed(seed))
        stem = f"lora_unet_{layer.name.replace('.', '_')}"
        tensors |= {
            f"{stem}.{suffix}": tensor.detach().half().contiguous()
            for suffix, tensor in module.state_dict().items()
        }
    write_atomically(tensors, path, {"ss_base_model_version": "sd_v1"})


def _fill(module: LycorisBaseModule, generator: torch.Generator) -> None:
    for name, parameter in module.named_parameters():
        if name != "dora_scale":  # which holds the lengths of the base weight
            parameter.data.normal_(0, DEVIATION, generator=generator)
