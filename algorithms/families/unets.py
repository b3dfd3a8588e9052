"""The UNet families of Stable Diffusion: told apart by the width of the text they attend to.

ComfyUI runs the original layout, in which the blocks are numbered through; diffusers numbers them
within each resolution. Source: `convert_ldm_unet_checkpoint` of diffusers 0.42.
"""

import re
from collections.abc import Iterator

from ..keymap import Target
from .family import Family, Mark, Shapes
from .tables import HOST_PREFIX

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE = {
    "time_embed.0": ("time_embedding.linear_1",),
    "time_embed.2": ("time_embedding.linear_2",),
    "label_emb.0.0": ("add_embedding.linear_1", "class_embedding.linear_1"),
    "label_emb.0.2": ("add_embedding.linear_2", "class_embedding.linear_2"),
    "input_blocks.0.0": ("conv_in",),
    "out.0": ("conv_norm_out",),
    "out.2": ("conv_out",),
}
BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(.+)")


def diffusers_names(shapes: Shapes) -> Iterator[tuple[str, Target]]:
    """Returns (module name in diffusers, what it means) for every layer of a UNet."""
    layers = {
        key.removeprefix(HOST_PREFIX).rpartition(".")[0]: key
        for key in shapes
        if key.startswith(HOST_PREFIX) and key.endswith(".weight")
    }
    down = _numbers(layers, "input_blocks", ".0.op")
    up = _numbers(layers, "output_blocks", ".conv")
    for layer, key in layers.items():
        for name in OUTSIDE.get(layer, ()):
            yield name, Target(key)
        found = BLOCK.fullmatch(layer)
        if found is None:
            continue
        side, number, rest = found[1], int(found[2]), found[3]
        if side == "middle_block":
            name = _in_middle(number, rest)
        else:
            level, index = (down if side == "input_blocks" else up).get(number, (0, 0))
            name = _in_level("down" if side == "input_blocks" else "up", level, index, rest)
        if name is not None:
            yield name, Target(key)


def _numbers(layers: dict[str, str], side: str, resampler: str) -> dict[int, tuple[int, int]]:
    """Returns number of a block -> (resolution, place in it); a resampler ends a resolution.

    Going down, the resampler is a block of its own and the first block is the input layer; going
    up, it is part of the last block.
    """
    blocks: dict[int, list[str]] = {}
    for layer in layers:
        found = BLOCK.fullmatch(layer)
        if found is not None and found[1] == side:
            blocks.setdefault(int(found[2]), []).append(f".{found[3]}")
    numbers: dict[int, tuple[int, int]] = {}
    level = index = 0
    for number in sorted(blocks):
        if side == "input_blocks" and number == 0:
            continue
        numbers[number] = (level, index)
        index += 1
        if any(layer.endswith(resampler) for layer in blocks[number]):
            level, index = level + 1, 0
    return numbers


def _in_middle(number: int, rest: str) -> str | None:
    """Returns the name of a layer of the middle block: resnet, attention, resnet."""
    if rest in RESNET:
        return f"mid_block.resnets.{number // 2}.{RESNET[rest]}"
    return f"mid_block.attentions.0.{rest}"


def _in_level(side: str, level: int, index: int, rest: str) -> str | None:
    """Returns the name of a layer of one resolution; `rest` begins with the module's number."""
    module, _, layer = rest.partition(".")
    block = f"{side}_blocks.{level}"
    if rest == "0.op":
        return f"{block}.downsamplers.0.conv"
    if layer == "conv":
        return f"{block}.upsamplers.0.conv"
    if layer in RESNET and module == "0":
        return f"{block}.resnets.{index}.{RESNET[layer]}"
    return f"{block}.attentions.{index}.{layer}" if module == "1" else None


CROSS = "attn2_(?:processor_)?to_[kv]"
# The refiner attends to text of width 1280, a width of layers in the others, and has layers of width
# 768, SD 1's text: only its 1536 is its own.
LARGE = {"input_blocks": 12, "middle_block": 1, "output_blocks": 12}
SDXL_REFINER = Family("SDXL refiner", (Mark(CROSS, 1536),), diffusers_names, "unet.", depths=LARGE)
SD1 = Family("SD 1.x", (Mark(CROSS, 768),), diffusers_names, "unet.", "diffusers", depths=LARGE)
SD2 = Family("SD 2.x", (Mark(CROSS, 1024),), diffusers_names, "unet.", "diffusers", depths=LARGE)
SDXL = Family(
    "SDXL",
    (
        Mark(CROSS, 2048),
        Mark("blocks_4_1_transformer_blocks_1_"),
        Mark("lora_te2_text_model"),
    ),
    diffusers_names,
    "unet.",
    depths={"input_blocks": 9, "middle_block": 1, "output_blocks": 9},
)
