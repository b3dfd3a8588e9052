"""Writes the weight names of diffusers' models beside this file: `python make.py SHAPES`.

Made with diffusers 0.42.1 (and torch 2.13). Nothing is downloaded: the models are built without
memory, from the sizes of the published ones. SHAPES is a file of `host_shapes.py`.

A line is a name and its shape; `{0..18}` stands for 19 lines. Biases of named modules are left out,
and so is the `.weight` at the end. What follows `=` is where diffusers' own conversion takes the
weight from: the original's name, with `{}` for the first number of the line's name, and the first
row of it, or `swapped` for (scale, shift) out of (shift, scale). Where nothing follows, diffusers
converts nothing, or it is a UNet: these have no slices, and ComfyUI's own map of them is complete.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

# diffusers imports them if they are there; its models do not need them.
for optional in ("peft", "torchvision", "transformers"):
    sys.modules[optional] = None  # type: ignore[assignment]

import diffusers  # noqa: E402
import torch  # noqa: E402
from diffusers.loaders import single_file_utils as conversion  # noqa: E402
from torch import Tensor  # noqa: E402

Convert = Callable[..., dict[str, Tensor]]

SDXL_BLOCKS = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER_BLOCKS = {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
XL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}
SD35_MEDIUM = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
HIDREAM = {
    "patch_size": 2,
    "in_channels": 16,
    "caption_channels": [4096, 4096],
    "llama_layers": [*range(32), *[31] * 16],
}
WAN_I2V = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
WAN_VACE = {"vace_layers": list(range(0, 40, 5)), "vace_in_channels": 96}
WAN_SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sd2": (
        "UNet2DConditionModel",
        {
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
            "attention_head_dim": (5, 10, 20, 20),
        },
    ),
    "sdxl": ("UNet2DConditionModel", {**SDXL_BLOCKS, **XL}),
    "sdxl_refiner": ("UNet2DConditionModel", {**REFINER_BLOCKS, **XL}),
    "sd35_medium": ("SD3Transformer2DModel", SD35_MEDIUM),
    "flux": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux2": ("Flux2Transformer2DModel", {}),
    "chroma": ("ChromaTransformer2DModel", {}),
    "wan": ("WanTransformer3DModel", {}),
    "wan_small": ("WanTransformer3DModel", WAN_SMALL),
    "wan_i2v": ("WanTransformer3DModel", WAN_I2V),
    "wan_vace": ("WanVACETransformer3DModel", WAN_VACE),
    "hunyuan_video": ("HunyuanVideoTransformer3DModel", {}),
    "qwen_image": ("QwenImageTransformer2DModel", {}),
    "z_image": ("ZImageTransformer2DModel", {}),
    "lumina2": ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
    "auraflow": ("AuraFlowTransformer2DModel", {}),
    "pixart_alpha": ("PixArtTransformer2DModel", {"caption_channels": 4096}),
    "pixart_sigma": (
        "PixArtTransformer2DModel",
        {"caption_channels": 4096, "use_additional_conditions": False},
    ),
    "hidream": ("HiDreamImageTransformer2DModel", HIDREAM),
}

CONVERSIONS: dict[str, Convert] = {
    "sd35_medium": conversion.convert_sd3_transformer_checkpoint_to_diffusers,
    "flux": conversion.convert_flux_transformer_checkpoint_to_diffusers,
    "flux2": conversion.convert_flux2_transformer_checkpoint_to_diffusers,
    "chroma": conversion.convert_chroma_transformer_checkpoint_to_diffusers,
    "wan": conversion.convert_wan_transformer_to_diffusers,
    "wan_small": conversion.convert_wan_transformer_to_diffusers,
    "wan_i2v": conversion.convert_wan_transformer_to_diffusers,
    "wan_vace": conversion.convert_wan_transformer_to_diffusers,
    "hunyuan_video": conversion.convert_hunyuan_video_transformer_to_diffusers,
    "z_image": conversion.convert_z_image_transformer_checkpoint_to_diffusers,
    "lumina2": conversion.convert_lumina2_to_diffusers,
    "auraflow": conversion.convert_auraflow_transformer_checkpoint_to_diffusers,
}

# ComfyUI renames HunyuanVideo's weights when it loads them (`supported_models.py`): the way back.
HUNYUAN_ORIGINAL = (
    (r"\.norm\.(query|key)_norm\.scale", lambda found: f"_{found[1][0]}_norm.weight"),
    (r"(single_blocks\.\d+)_(q|k)_norm", r"\1.\2_norm"),
    (r"_attn\.(qkv|proj)\.", r"_attn_\1."),
    (r"(_mod|modulation)\.lin\.", r"\1.linear."),
    (r"mlp\.0\.", "mlp.fc1."),
    (r"mlp\.2\.", "mlp.fc2."),
    (r"c_embedder\.in_layer", "c_embedder.linear_1"),
    (r"c_embedder\.out_layer", "c_embedder.linear_2"),
    (r"(time_in|guidance_in|t_embedder)\.in_layer", r"\1.mlp.0"),
    (r"(time_in|guidance_in|t_embedder)\.out_layer", r"\1.mlp.2"),
    (r"self_attn\.(qkv|proj)\.", r"self_attn_\1."),
)
ROWS = 10**6
"""More than any weight has."""


def original(family: str, key: str) -> str:
    """Returns the name that the converter expects of a weight of ComfyUI."""
    if family == "hunyuan_video":
        for pattern, replacement in HUNYUAN_ORIGINAL:
            key = re.sub(pattern, replacement, key)
    return key


def origins(family: str, shapes: dict[str, list[int]]) -> dict[str, str]:
    """Returns name in diffusers -> where its rows stand in which original weight, as text.

    Every row of the originals holds a number that no other has, and one column is enough.
    """
    if family not in CONVERSIONS:
        return {}
    keys = [key for key in shapes if not key.endswith("_pad_token")]
    marked: dict[str, Tensor] = {}
    for number, key in enumerate(keys):
        rows, *columns = shapes[key]
        marks = torch.arange(rows, dtype=torch.float64) + number * ROWS
        marked[original(family, key)] = marks.reshape(rows, *[1] * len(columns))
    converted = CONVERSIONS[family](marked)
    found: dict[str, str] = {}
    for name, tensor in converted.items():
        if tensor is None or name.endswith(".bias"):
            continue
        marks = tensor.flatten().long().tolist()
        key, first = keys[marks[0] // ROWS], marks[0] % ROWS
        start = marks[0] - first
        rows = [mark - start for mark in marks]
        whole = list(range(first, first + len(rows)))
        if rows == whole:
            place = str(first)
        else:
            assert rows == [*whole[: len(rows) // 2], *range(first)], name
            place = "swapped"
        layer = key.removesuffix(".weight").removesuffix(".scale")
        found[name.removesuffix(".weight")] = f"{layer} {place}"
    return found


def with_origin(name: str, shape: str, origin: str | None) -> str:
    """Returns a line, before lines are joined."""
    if origin is None:
        return f"{name} {shape}"
    numbers = [found.group() for found in re.finditer(r"(?<=\.)\d+(?=\.|$)", name)]
    host, place = origin.split(" ")
    if numbers:
        host = re.sub(rf"(?<=\.){numbers[0]}(?=\.|$)", "{}", host, count=1)
    return f"{name} {shape} = {host} {place}"


def names(model: torch.nn.Module) -> dict[str, str]:
    """Returns name -> shape as text, in the model's order."""
    shapes = {key: " ".join(map(str, tensor.shape)) for key, tensor in model.named_parameters()}
    return {
        key.removesuffix(".weight"): shape
        for key, shape in shapes.items()
        if not (key.endswith(".bias") and f"{key.removesuffix('bias')}weight" in shapes)
    }


def ranges(numbers: list[int]) -> list[str]:
    """Returns consecutive numbers as `{first..last}`."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return [
        str(start) if start == end else f"{{{start}..{end}}}"
        for start, end in zip(starts, ends, strict=True)
    ]


def compressed(lines: list[str]) -> list[str]:
    """Joins lines that differ in one number only, for each number in turn."""
    position = 0
    while any(len(parts(line)) > position for line in lines):
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for line in lines:
            numbers = parts(line)
            if len(numbers) <= position or not numbers[position].group(1).isdecimal():
                groups[(line, "")].append(0)
                continue
            found = numbers[position]
            groups[(line[: found.start(1)], line[found.end(1) :])].append(int(found.group(1)))
        lines = [
            f"{before}{middle}{after}" if after else before
            for (before, after), found in groups.items()
            for middle in (ranges(found) if after else [""])
        ]
        position += 1
    return lines


def parts(line: str) -> list[re.Match[str]]:
    """Returns the numbers and ranges among the parts of the name."""
    return list(re.finditer(r"(?<=\.)(\d+|\{\d+\.\.\d+\})(?=[. ])", line.partition(" = ")[0]))


if __name__ == "__main__":
    host_shapes = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for family, (class_name, config) in MODELS.items():
        with torch.device("meta"):
            model = getattr(diffusers, class_name)(**config)
        found = origins(family, host_shapes[family])
        lines = [with_origin(name, shape, found.get(name)) for name, shape in names(model).items()]
        path = Path(__file__).with_name(f"{family}.txt")
        path.write_text("\n".join(compressed(lines)) + "\n", encoding="utf-8")
