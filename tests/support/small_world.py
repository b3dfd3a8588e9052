"""Checkpoints with seeded random weights that a host takes for SD 1.5, small and in real size.

The layout is that of the original SD 1.x files: `model.diffusion_model.` (UNet),
`cond_stage_model.transformer.text_model.` (CLIP-L) and `first_stage_model.`. In place of the
84 M-parameter VAE stands a TAESD with weights set by hand, so that a latent is a picture a person
can read: encoding averages blocks of 8x8 pixels, decoding paints each latent pixel as such a block.
"""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

UNET_PREFIX = "model.diffusion_model."
CLIP_PREFIX = "cond_stage_model.transformer.text_model."
VAE_PREFIX = "first_stage_model."

CLIP_LAYERS = 12
CLIP_WIDTH = 768
CONTEXT_WIDTH = CLIP_WIDTH

LATENT_REACH = 150.0
"""A white pixel encodes to this in every channel, a black one to its negative.

A random UNet predicts noise it cannot see, so its latents keep the deviation of the first sigma
(14.6, or 85 before the host's factor 0.18215). This reach shows them as pictures, not as clipped
colours.
"""

VAE_SCALE = 0.0001
"""TAESD's decoder begins with 3 tanh(x / 3): this scale keeps a latent in its linear part."""

BIAS = 0.04
"""Deviation of all biases: an adapter that wrongly scales or turns them shows."""

LayerKind = Literal["linear", "conv", "layer_norm", "group_norm"]


@dataclass(frozen=True)
class LayerShape:
    """One layer of a network: what its weight is called in the checkpoint and how large it is."""

    name: str
    kind: LayerKind
    weight: tuple[int, ...]
    bias: bool = True
    stride: int = 1


@dataclass(frozen=True)
class UnetShape:
    """The numbers in which UNets of the SD 1.5 kind differ. One entry per level."""

    channel_mult: tuple[int, ...]
    res_blocks: int
    attention: tuple[bool, ...]
    model_channels: int = 320


SMALL_UNET = UnetShape(channel_mult=(1, 1), res_blocks=1, attention=(True, True))
LARGE_UNET = UnetShape(channel_mult=(1, 2, 4, 4), res_blocks=2, attention=(True, True, True, False))


def make_small_checkpoint(path: Path) -> None:
    """Writes the small SD 1.5: a 43 M-parameter UNet, CLIP-L, the hand-set TAESD; float32."""
    _make_checkpoint(path, SMALL_UNET, torch.float32)


def make_large_checkpoint(path: Path) -> None:
    """Writes an SD 1.5 of real size (859.5 M parameters in the UNet); float16, 2 GB."""
    _make_checkpoint(path, LARGE_UNET, torch.float16)


def write_atomically(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(dict(tensors), unfinished, metadata=dict(metadata) if metadata else None)
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def unet_layers(shape: UnetShape) -> Iterator[LayerShape]:
    """Every layer of the UNet, in the original (LDM) naming and order."""
    width = shape.model_channels
    embedding = 4 * width
    yield LayerShape("time_embed.0", "linear", (embedding, width))
    yield LayerShape("time_embed.2", "linear", (embedding, embedding))

    yield LayerShape("input_blocks.0.0", "conv", (width, 4, 3, 3))
    skips = [width]
    channels = width
    index = 1
    for level, mult in enumerate(shape.channel_mult):
        for _ in range(shape.res_blocks):
            block = f"input_blocks.{index}"
            yield from _res_block(f"{block}.0", channels, mult * width, embedding)
            channels = mult * width
            if shape.attention[level]:
                yield from _spatial_transformer(f"{block}.1", channels)
            skips.append(channels)
            index += 1
        if level != len(shape.channel_mult) - 1:
            name = f"input_blocks.{index}.0.op"
            yield LayerShape(name, "conv", (channels, channels, 3, 3), stride=2)
            skips.append(channels)
            index += 1

    yield from _res_block("middle_block.0", channels, channels, embedding)
    yield from _spatial_transformer("middle_block.1", channels)
    yield from _res_block("middle_block.2", channels, channels, embedding)

    index = 0
    for level, mult in reversed(list(enumerate(shape.channel_mult))):
        for position in range(shape.res_blocks + 1):
            block = f"output_blocks.{index}"
            yield from _res_block(f"{block}.0", channels + skips.pop(), mult * width, embedding)
            channels = mult * width
            if shape.attention[level]:
                yield from _spatial_transformer(f"{block}.1", channels)
            if level and position == shape.res_blocks:
                name = f"{block}.{2 if shape.attention[level] else 1}.conv"
                yield LayerShape(name, "conv", (channels, channels, 3, 3))
            index += 1

    yield LayerShape("out.0", "group_norm", (channels,))
    yield LayerShape("out.2", "conv", (4, channels, 3, 3))


def clip_layers() -> Iterator[LayerShape]:
    """Every layer of CLIP-L but its two embeddings, named as in `transformers`."""
    width = CLIP_WIDTH
    for index in range(CLIP_LAYERS):
        layer = f"encoder.layers.{index}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield LayerShape(f"{layer}.self_attn.{name}", "linear", (width, width))
        yield LayerShape(f"{layer}.layer_norm1", "layer_norm", (width,))
        yield LayerShape(f"{layer}.mlp.fc1", "linear", (4 * width, width))
        yield LayerShape(f"{layer}.mlp.fc2", "linear", (width, 4 * width))
        yield LayerShape(f"{layer}.layer_norm2", "layer_norm", (width,))
    yield LayerShape("final_layer_norm", "layer_norm", (width,))


def diffusers_names(shape: UnetShape) -> dict[str, str]:
    """What diffusers (and so sd-scripts, for SD 1.x) calls each block: {original: diffusers}.

    The keys are stems (`input_blocks.1.0`); what follows a stem is translated by
    `diffusers_name`.
    """
    names = {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
    names |= {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    names |= {
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
    }
    index = 1
    for level in range(len(shape.channel_mult)):
        for position in range(shape.res_blocks):
            names[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{position}"
            names[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{position}"
            index += 1
        names[f"input_blocks.{index}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        index += 1
    index = 0
    for level, attention in enumerate(reversed(shape.attention)):
        for position in range(shape.res_blocks + 1):
            names[f"output_blocks.{index}.0"] = f"up_blocks.{level}.resnets.{position}"
            if attention:
                names[f"output_blocks.{index}.1"] = f"up_blocks.{level}.attentions.{position}"
            index += 1
        last = f"output_blocks.{index - 1}.{2 if attention else 1}.conv"
        names[last] = f"up_blocks.{level}.upsamplers.0.conv"
    return names


def diffusers_name(shape: UnetShape, name: str) -> str:
    """Translates the original name of a UNet layer into that of diffusers."""
    names = diffusers_names(shape)
    stem = name
    while stem not in names:
        stem = stem.rpartition(".")[0]
    inner = name[len(stem) :]
    return names[stem] + {
        ".in_layers.0": ".norm1",
        ".in_layers.2": ".conv1",
        ".emb_layers.1": ".time_emb_proj",
        ".out_layers.0": ".norm2",
        ".out_layers.3": ".conv2",
        ".skip_connection": ".conv_shortcut",
    }.get(inner, inner)


def _res_block(block: str, inputs: int, outputs: int, embedding: int) -> Iterator[LayerShape]:
    yield LayerShape(f"{block}.in_layers.0", "group_norm", (inputs,))
    yield LayerShape(f"{block}.in_layers.2", "conv", (outputs, inputs, 3, 3))
    yield LayerShape(f"{block}.emb_layers.1", "linear", (outputs, embedding))
    yield LayerShape(f"{block}.out_layers.0", "group_norm", (outputs,))
    yield LayerShape(f"{block}.out_layers.3", "conv", (outputs, outputs, 3, 3))
    if inputs != outputs:
        yield LayerShape(f"{block}.skip_connection", "conv", (outputs, inputs, 1, 1))


def _spatial_transformer(block: str, width: int) -> Iterator[LayerShape]:
    yield LayerShape(f"{block}.norm", "group_norm", (width,))
    yield LayerShape(f"{block}.proj_in", "conv", (width, width, 1, 1))
    inner = f"{block}.transformer_blocks.0"
    for attention, context in (("attn1", width), ("attn2", CONTEXT_WIDTH)):
        yield LayerShape(f"{inner}.{attention}.to_q", "linear", (width, width), bias=False)
        yield LayerShape(f"{inner}.{attention}.to_k", "linear", (width, context), bias=False)
        yield LayerShape(f"{inner}.{attention}.to_v", "linear", (width, context), bias=False)
        yield LayerShape(f"{inner}.{attention}.to_out.0", "linear", (width, width))
    yield LayerShape(f"{inner}.ff.net.0.proj", "linear", (8 * width, width))
    yield LayerShape(f"{inner}.ff.net.2", "linear", (width, 4 * width))
    for norm in ("norm1", "norm2", "norm3"):
        yield LayerShape(f"{inner}.{norm}", "layer_norm", (width,))
    yield LayerShape(f"{block}.proj_out", "conv", (width, width, 1, 1))


def _make_checkpoint(path: Path, shape: UnetShape, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(15)
    tensors: dict[str, Tensor] = {}
    for prefix, layers in ((UNET_PREFIX, unet_layers(shape)), (CLIP_PREFIX, clip_layers())):
        for layer in layers:
            tensors[f"{prefix}{layer.name}.weight"] = _weight(layer, generator).to(dtype)
            if layer.bias:
                bias = torch.randn(layer.weight[0], generator=generator) * BIAS
                tensors[f"{prefix}{layer.name}.bias"] = bias.to(dtype)
    for name, length in (("token", 49408), ("position", 77)):
        embedding = torch.randn(length, CLIP_WIDTH, generator=generator) * 0.5
        tensors[f"{CLIP_PREFIX}embeddings.{name}_embedding.weight"] = embedding.to(dtype)
    for name, tensor in _taesd().items():
        tensors[VAE_PREFIX + name] = tensor
    write_atomically(tensors, path)


def _weight(layer: LayerShape, generator: torch.Generator) -> Tensor:
    if layer.kind in ("layer_norm", "group_norm"):
        return torch.ones(layer.weight)
    # 0.6 instead of 1: residual branches stay small enough for finite latents, and large enough
    # that every layer still shows in the result. Cross attention is stronger, as with 0.6 it is
    # nearly uniform over the tokens and the text changes a latent by 2 % only.
    gain = 1.5 if ".attn2." in layer.name else 0.6
    deviation = gain / math.sqrt(math.prod(layer.weight[1:]))
    return torch.randn(layer.weight, generator=generator) * deviation


def _taesd() -> dict[str, Tensor]:
    """The tiny autoencoder. Its blocks have zero weights: each is then the identity for x >= 0."""
    wide = 64
    copy = torch.zeros(wide, wide, 3, 3)
    copy[range(wide), range(wide), 1, 1] = 1.0
    halve = torch.zeros(wide, wide, 3, 3)
    # Padding 1 and stride 2: taps 1 and 2 of the kernel fall on the pixels 2i and 2i + 1.
    halve[range(wide), range(wide), 1:, 1:] = 0.25

    read_rgb = torch.zeros(wide, 3, 3, 3)
    read_rgb[range(3), range(3), 1, 1] = 1.0
    reach = LATENT_REACH * VAE_SCALE
    to_latent = torch.zeros(4, wide, 3, 3)
    to_latent[range(3), range(3), 1, 1] = 2 * reach
    to_latent[3, :3, 1, 1] = 2 * reach / 3
    from_latent = torch.zeros(wide, 4, 3, 3)
    from_latent[range(3), range(3), 1, 1] = 1 / (2 * reach)
    half = torch.zeros(wide)
    half[:3] = 0.5
    paint_rgb = torch.zeros(3, wide, 3, 3)
    paint_rgb[range(3), range(3), 1, 1] = 1.0

    tensors = {
        "vae_scale": torch.tensor(VAE_SCALE),
        "vae_shift": torch.tensor(0.0),
        "taesd_encoder.0.weight": read_rgb,
        "taesd_encoder.0.bias": torch.zeros(wide),
        "taesd_encoder.14.weight": to_latent,
        "taesd_encoder.14.bias": torch.full((4,), -reach),
        "taesd_decoder.1.weight": from_latent,
        "taesd_decoder.1.bias": half,
        "taesd_decoder.19.weight": paint_rgb,
        "taesd_decoder.19.bias": torch.zeros(3),
    }
    for index in (2, 6, 10):
        tensors[f"taesd_encoder.{index}.weight"] = halve.clone()
    for index in (7, 12, 17):
        tensors[f"taesd_decoder.{index}.weight"] = copy.clone()
    encoder_blocks = (1, 3, 4, 5, 7, 8, 9, 11, 12, 13)
    decoder_blocks = (3, 4, 5, 8, 9, 10, 13, 14, 15, 18)
    for half_name, blocks in (("encoder", encoder_blocks), ("decoder", decoder_blocks)):
        for block in blocks:
            for convolution in (0, 2, 4):
                stem = f"taesd_{half_name}.{block}.conv.{convolution}"
                tensors[f"{stem}.weight"] = torch.zeros(wide, wide, 3, 3)
                tensors[f"{stem}.bias"] = torch.zeros(wide)
    return tensors
