"""Names at real size: every weight of a family, in every dialect, both ways.

The models are ComfyUI's own classes without memory; the names of diffusers' models and where they
come from are in `golden/names`, made by diffusers.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import comfy.lora
import pytest
import torch
from comfy import sd1_clip, sdxl_clip
from comfy.text_encoders import flux, hunyuan_video, lumina2, sd2_clip, sd3_clip, wan
from torch import nn

from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.errors import AmbiguousNameError
from anyadapter.algorithms.families import detect, encoders, sizes_of, text_encoder_parts
from anyadapter.algorithms.formats.parse import parse_tensors
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.algorithms.layers import Rows, swap_halves
from anyadapter.nodes.host.keymaps import diffusion_model_key_map, text_encoder_key_map
from name_lists import weights_of
from real_models import MODELS, as_clip, as_model, real_model

FAMILIES = {
    "sd1": "SD 1.x",
    "sd2": "SD 2.x",
    "sdxl": "SDXL",
    "sdxl_refiner": "SDXL refiner",
    "sd35_medium": "SD 3",
    "flux": "Flux",
    "flux2": "Flux 2",
    "chroma": "Chroma",
    "wan": "Wan",
    "wan_small": "Wan",
    "wan_i2v": "Wan",
    "wan_vace": "Wan",
    "hunyuan_video": "HunyuanVideo",
    "qwen_image": "Qwen-Image",
    "z_image": "Z-Image",
    "lumina2": "Lumina 2",
    "auraflow": "AuraFlow",
    "pixart_alpha": "PixArt",
    "pixart_sigma": "PixArt",
    "hidream": "HiDream",
}
UNETS = ("sd1", "sd2", "sdxl", "sdxl_refiner")
LAYERS = {
    "sd1": 282,
    "sd2": 282,
    "sdxl": 794,
    "flux": 504,
    "chroma": 433,
    "sd35_medium": 393,
    "wan": 407,
    "hunyuan_video": 548,
    "qwen_image": 846,
    "z_image": 276,
    "lumina2": 244,
    "auraflow": 326,
    "pixart_alpha": 291,
    "pixart_sigma": 287,
    "hidream": 1128,
}
DIALECTS = ("comfy", "kohya", "onetrainer", "diffusers", "peft", "lycoris")
DOTTED = (
    "",
    "unet.",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    "base_model.model.",
    "unet.base_model.model.",
    "transformer.base_model.model.",
    "module.",
    "_orig_mod.",
    "base_model.model._orig_mod.",
)
UNDERSCORED = (
    "lora_unet_",
    "lora_unet__",
    "lycoris_",
    "lora_transformer_",
    "lora_prior_unet_",
    "oft_unet_",
)
every_family = pytest.mark.parametrize("family", MODELS)


@cache
def model_of(family: str) -> nn.Module:
    return real_model(family)


@cache
def key_map_of(family: str) -> KeyMap:
    return diffusion_model_key_map(as_model(model_of(family)))


def own_weights(key_map: KeyMap) -> Iterator[str]:
    return (
        key
        for key in key_map.shapes
        if key.startswith("diffusion_model.") and not key.endswith(".bias")
    )


def spellings(name: str) -> Iterator[str]:
    yield from (prefix + name for prefix in DOTTED)
    yield from (prefix + name.replace(".", "_") for prefix in UNDERSCORED)


@every_family
def test_the_list_has_all_layers_of_the_diffusers_model(family: str) -> None:
    layers = sum(named.is_layer for named in weights_of(family))
    assert layers == LAYERS.get(family, layers)
    assert layers > 190


@every_family
def test_every_weight_has_one_name_in_every_dialect(family: str) -> None:
    key_map = key_map_of(family)
    for key in own_weights(key_map):
        target = Target(key)
        for dialect in DIALECTS:
            for unit in key_map.units(target, dialect):
                name = key_map.name(unit, dialect)
                if name is None and NOT_IN_DIFFUSERS.search(key):
                    continue
                assert name is not None, (key, dialect)
                assert key_map.target(name) == unit, name


NOT_IN_DIFFUSERS = re.compile(r"norm_final|distilled_guidance_layer\.norms\.\d+\.scale")


@every_family
def test_every_name_means_its_target_in_every_dialect(family: str) -> None:
    key_map = key_map_of(family)
    for target in key_map.targets():
        for name in key_map.names(target) if target.rows else ():
            assert key_map.target(name) == target, name
        for dialect in DIALECTS:
            name = key_map.name(target, dialect)
            assert name is None or key_map.target(name) == target, name


@every_family
def test_no_underscored_name_means_two_weights(family: str) -> None:
    (part,) = key_map_of(family).parts
    meanings: dict[str, set[Target]] = defaultdict(set)
    for name, target in part.names:
        meanings[name.replace(".", "_")].add(target)
    assert not [name for name, targets in meanings.items() if len(targets) > 1]


@every_family
def test_every_layer_of_diffusers_finds_its_weight_under_every_prefix(family: str) -> None:
    key_map = key_map_of(family)
    for named in weights_of(family):
        for name in spellings(named.name):
            target = key_map.target(name)
            assert target is not None, name
            shape = target.shape(key_map.shapes[target.weight])
            ones = (1,) * (len(shape) - len(named.shape))
            # The original makes patches by a convolution or by a matrix, as diffusers does or not.
            assert shape == (*named.shape, *ones) or family == "auraflow", name


@every_family
def test_names_mean_what_diffusers_own_conversion_says(family: str) -> None:
    key_map = key_map_of(family)
    for named in weights_of(family):
        if named.origin is None:
            continue
        ends = ("", ".weight", ".scale")
        keys = [f"diffusion_model.{named.origin}{end}" for end in ends]
        key = next(key for key in keys if key in key_map.shapes)
        rows = None
        if named.place == "swapped":
            rows = Rows(0, named.shape[0], swap_halves)
        elif key_map.shapes[key][0] != named.shape[0]:
            rows = Rows(int(named.place or 0), named.shape[0])
        assert key_map.target(f"transformer.{named.name}") == Target(key, rows), named.name


@every_family
def test_slices_tile_their_weight(family: str) -> None:
    key_map = key_map_of(family)
    slices: dict[str, list[Rows]] = defaultdict(list)
    for named in weights_of(family):
        target = key_map.target(f"base_model.model.{named.name}")
        assert target is not None
        if target.rows is not None:
            slices[target.weight].append(target.rows)
    for key, several in slices.items():
        several.sort(key=lambda rows: rows.start)
        ends = [rows.start + rows.length for rows in several]
        assert [rows.start for rows in several] == [0, *ends[:-1]]
        assert ends[-1] == key_map.shapes[key][0]


@pytest.mark.parametrize("family", UNETS)
def test_unet_names_are_those_of_the_host(family: str) -> None:
    key_map = key_map_of(family)
    theirs = comfy.lora.model_lora_keys_unet(model_of(family), {})
    for named in weights_of(family):
        target = key_map.target(f"unet.{named.name}")
        assert target is not None
        assert target.weight == theirs["lora_unet_" + named.name.replace(".", "_")]


@pytest.mark.parametrize("family", ["flux", "sd35_medium", "auraflow", "pixart_alpha"])
def test_names_are_those_of_the_host_where_it_has_them(family: str) -> None:
    key_map = key_map_of(family)
    theirs = comfy.lora.model_lora_keys_unet(model_of(family), {})
    compared = 0
    for named in weights_of(family):
        value = theirs.get(f"transformer.{named.name}")
        if value is None:
            continue
        target = key_map.target(f"lora_unet_{named.name.replace('.', '_')}")
        assert target is not None
        key, part = (value, None) if isinstance(value, str) else value[:2]
        assert target.weight == key
        if part is not None:
            assert target.rows == Rows(*part[1:])
        compared += 1
    assert compared > 280


@every_family
def test_a_model_is_told_by_its_weights(family: str) -> None:
    found = detect(sizes_of(key_map_of(family).shapes))
    assert found is not None
    assert found.name == FAMILIES[family]


@pytest.mark.parametrize("prefix", ["transformer.", "lora_unet_", "lycoris_", "base_model.model."])
@every_family
def test_a_file_with_names_of_diffusers_is_told_by_them(family: str, prefix: str) -> None:
    layers = [named for named in weights_of(family) if named.is_layer]
    sizes = {
        prefix + (named.name if "." in prefix else named.name.replace(".", "_")): frozenset(
            {*named.shape, 16}
        )
        for named in layers
    }
    found = detect(sizes)
    assert found is not None
    assert found.name == FAMILIES[family]


@every_family
def test_a_file_of_attention_layers_is_told_by_their_names(family: str) -> None:
    sizes = {
        f"transformer.{named.name}": frozenset({*named.shape, 16})
        for named in weights_of(family)
        if named.is_layer and "attn" in named.name.replace("attention.", "attn.")
    }
    found = detect(sizes)
    assert found is not None
    alike = {"chroma": "Flux", "hunyuan_video": "Flux"}  # the very same names and sizes
    if family in alike:
        sizes = {name: axes for name, axes in sizes.items() if "refiner" not in name}
        found = detect(sizes)
        assert found is not None
    assert found.name == alike.get(family, FAMILIES[family])


TOOLS = [
    # kohya sd-scripts
    ("sd1", "lora_unet_mid_block_attentions_0_proj_in", "middle_block.1.proj_in.weight"),
    (
        "sdxl",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
    ),
    (
        "sd1",
        "oft_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
    ),
    ("flux", "lora_unet_double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv.weight"),
    (
        "sd35_medium",
        "lora_unet_joint_blocks_0_context_block_attn_qkv",
        "joint_blocks.0.context_block.attn.qkv.weight",
    ),
    ("lumina2", "lora_unet_layers_0_attention_qkv", "layers.0.attention.qkv.weight"),
    # diffusers' old attention processors, and PEFT beside it
    (
        "sd1",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
        "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight",
    ),
    (
        "sd1",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight",
    ),
    ("sd1", "unet.down_blocks.0.resnets.0.norm1", "input_blocks.1.0.in_layers.0.weight"),
    ("sd1", "unet.conv_in.bias", "input_blocks.0.0.bias"),
    # musubi-tuner
    ("wan", "lora_unet_blocks_0_self_attn_q", "blocks.0.self_attn.q.weight"),
    (
        "hunyuan_video",
        "lora_unet_double_blocks_0_img_mlp_fc1",
        "double_blocks.0.img_mlp.0.weight",
    ),
    (
        "hunyuan_video",
        "lora_unet_single_blocks_3_modulation_linear",
        "single_blocks.3.modulation.lin.weight",
    ),
    (
        "qwen_image",
        "lora_unet_transformer_blocks_0_attn_to_q",
        "transformer_blocks.0.attn.to_q.weight",
    ),
    # Wan-Fun, lightx2v
    ("wan", "lora_unet__blocks_0_cross_attn_k", "blocks.0.cross_attn.k.weight"),
    ("wan", "diffusion_model.blocks.0.norm3", "blocks.0.norm3.weight"),
    ("wan", "transformer.blocks.0.scale_shift_table", "blocks.0.modulation"),
    ("wan", "transformer.scale_shift_table", "head.modulation"),
    # diffusion-pipe
    (
        "hunyuan_video",
        "transformer.double_blocks.0.img_attn_qkv",
        "double_blocks.0.img_attn.qkv.weight",
    ),
    (
        "hunyuan_video",
        "diffusion_model.txt_in.individual_token_refiner.blocks.0.self_attn_proj",
        "txt_in.individual_token_refiner.blocks.0.self_attn.proj.weight",
    ),
    # ai-toolkit, OneTrainer, regional torch.compile
    ("flux", "lycoris_transformer_blocks_7_ff_net_2", "double_blocks.7.img_mlp.2.weight"),
    ("flux", "lora_transformer_transformer_blocks_7_ff_net_2", "double_blocks.7.img_mlp.2.weight"),
    (
        "flux",
        "transformer.transformer_blocks.7._orig_mod.ff.net.2",
        "double_blocks.7.img_mlp.2.weight",
    ),
    # XLabs
    ("flux", "double_blocks.0.processor.qkv_lora1", "double_blocks.0.img_attn.qkv.weight"),
    ("flux", "double_blocks.0.processor.qkv_lora2", "double_blocks.0.txt_attn.qkv.weight"),
    ("flux", "double_blocks.0.processor.proj_lora2", "double_blocks.0.txt_attn.proj.weight"),
    ("flux", "single_blocks.0.processor.proj", "single_blocks.0.linear2.weight"),
]


@pytest.mark.parametrize(("family", "name", "key"), TOOLS, ids=[name for _, name, _ in TOOLS])
def test_the_spelling_of_a_tool_is_understood(family: str, name: str, key: str) -> None:
    assert key_map_of(family).target(name) == Target(f"diffusion_model.{key}")


SLICES = [
    ("flux", "diffusion_model.single_blocks.0.linear1_qkv", "single_blocks.0.linear1", 0, 9216),
    ("flux", "single_blocks.0.processor.qkv", "single_blocks.0.linear1", 0, 9216),
    ("z_image", "lora_unet_layers_0_attention_to_v", "layers.0.attention.qkv", 7680, 3840),
    ("lumina2", "transformer.layers.0.attention.to_k", "layers.0.attention.qkv", 2304, 768),
    ("lumina2", "lycoris_layers_0_attn_to_v", "layers.0.attention.qkv", 3072, 768),
]


@pytest.mark.parametrize(
    ("family", "name", "module", "start", "length"), SLICES, ids=[row[1] for row in SLICES]
)
def test_the_spelling_of_a_slice_is_understood(
    family: str, name: str, module: str, start: int, length: int
) -> None:
    target = key_map_of(family).target(name)
    assert target == Target(f"diffusion_model.{module}.weight", Rows(start, length))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sd1", "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"),
        ("flux", "transformer.transformer_blocks.19.attn.to_q"),
        ("qwen_image", "transformer.blocks.0.attn.to_q"),
        ("sd1", "unet.down_blocks_0_resnets_0_conv1.x"),
        ("sd1", "lora_unet_"),
    ],
)
def test_a_name_that_fits_nothing_means_nothing(family: str, name: str) -> None:
    assert key_map_of(family).target(name) is None


def test_a_file_of_xlabs_lands_on_the_fused_layers() -> None:
    """Its suffix is part of its names: nothing of such a file was understood."""
    sizes = {
        "double_blocks.0.processor.qkv_lora1": (9216, 3072),
        "double_blocks.0.processor.proj_lora2": (3072, 3072),
        "single_blocks.5.processor.qkv_lora": (9216, 3072),
        "single_blocks.5.processor.proj_lora": (3072, 15360),
    }
    tensors = {
        f"{name}.{end}.weight": torch.ones(*shape)
        for name, (outputs, inputs) in sizes.items()
        for end, shape in (("up", (outputs, 2)), ("down", (2, inputs)))
    }
    binding = bind(parse_tensors(tensors, {}, "xlabs.safetensors"), key_map_of("flux"))
    assert not binding.unmatched
    assert [item.target for item in binding.bound] == [
        Target("diffusion_model.double_blocks.0.img_attn.qkv.weight"),
        Target("diffusion_model.double_blocks.0.txt_attn.proj.weight"),
        Target("diffusion_model.single_blocks.5.linear1.weight", Rows(0, 9216)),
        Target("diffusion_model.single_blocks.5.linear2.weight"),
    ]


def test_a_key_map_is_built_once_for_a_model() -> None:
    model = as_model(model_of("pixart_sigma"))
    assert diffusion_model_key_map(model) is diffusion_model_key_map(model)


def test_a_key_map_has_the_shapes_before_what_is_patched_right_now() -> None:
    model, key = as_model(real_model("pixart_sigma")), "diffusion_model.x_embedder.proj.weight"
    model.backup[key] = SimpleNamespace(weight=torch.empty(1152, 2, 2, 2, device="meta"))
    assert diffusion_model_key_map(model).shapes[key] == (1152, 2, 2, 2)


HALF = {"device": "cpu", "dtype": torch.float16}
T5 = {"dtype_t5": torch.float16}
CLIPS: dict[str, Any] = {
    "sd1": sd1_clip.SD1ClipModel,
    "sd2": sd2_clip.SD2ClipModel,
    "sdxl": sdxl_clip.SDXLClipModel,
    "sdxl_refiner": sdxl_clip.SDXLRefinerClipModel,
    "sd3": sd3_clip.sd3_clip(**T5),
    "flux": flux.flux_clip(**T5),
    "hunyuan_video": hunyuan_video.hunyuan_video_clip(dtype_llama=torch.float16),
    "lumina2": lumina2.te(dtype_llama=torch.float16),
    "wan": wan.te(**T5),
}


@cache
def clip_key_map(family: str) -> KeyMap:
    with torch.device("meta"):
        module = CLIPS[family](**HALF)
    return text_encoder_key_map(as_clip(module))


@pytest.mark.parametrize("family", CLIPS)
def test_every_weight_of_a_text_encoder_has_one_name_in_every_dialect(family: str) -> None:
    key_map = clip_key_map(family)
    alone = ("peft", "lycoris") if len(key_map.parts) == 1 else ()
    for key in key_map.shapes:
        if ".transformer." not in key or key.endswith(".bias"):
            continue
        for dialect in ("comfy", "kohya", "onetrainer", "diffusers", *alone):
            name = key_map.name(Target(key), dialect)
            assert name is not None
            assert key_map.target(name) == Target(key), name


Q = "encoder.layers.0.self_attn.q_proj"
T5_Q = "encoder.block.0.layer.0.SelfAttention.q"
ENCODER_NAMES = [
    ("sd1", f"base_model.model.text_model.{Q}", f"clip_l.transformer.text_model.{Q}"),
    ("sd1", f"text_encoder.{Q}", f"clip_l.transformer.text_model.{Q}"),
    (
        "sd1",
        "lora_te_text_model_embeddings_token_embedding",
        "clip_l.transformer.text_model.embeddings.token_embedding",
    ),
    (
        "sd1",
        "lycoris_text_model_encoder_layers_0_self_attn_q_proj",
        f"clip_l.transformer.text_model.{Q}",
    ),
    (
        "sd1",
        "text_encoder.text_model.final_layer_norm",
        "clip_l.transformer.text_model.final_layer_norm",
    ),
    ("sd2", f"text_encoder.text_model.{Q}", f"clip_h.transformer.text_model.{Q}"),
    ("sdxl", f"text_encoder.text_model.{Q}", f"clip_l.transformer.text_model.{Q}"),
    ("sdxl", f"text_encoder_2.text_model.{Q}", f"clip_g.transformer.text_model.{Q}"),
    (
        "sdxl",
        "lora_te2_text_model_final_layer_norm",
        "clip_g.transformer.text_model.final_layer_norm",
    ),
    (
        "sdxl",
        "lora_te1_text_model_embeddings_position_embedding",
        "clip_l.transformer.text_model.embeddings.position_embedding",
    ),
    ("sdxl", "lora_te2_text_projection", "clip_g.transformer.text_projection"),
    (
        "sdxl",
        f"text_encoder_2.base_model.model.text_model.{Q}",
        f"clip_g.transformer.text_model.{Q}",
    ),
    (
        "sdxl_refiner",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1",
    ),
    ("flux", f"text_encoder_2.{T5_Q}", f"t5xxl.transformer.{T5_Q}"),
    (
        "flux",
        "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
        f"t5xxl.transformer.{T5_Q}",
    ),
    ("flux", "text_encoder_2.shared", "t5xxl.transformer.shared"),
    ("wan", "text_encoder_2.encoder.embed_tokens", "umt5xxl.transformer.shared"),
    ("sd3", f"text_encoder_3.{T5_Q}", f"t5xxl.transformer.{T5_Q}"),
    ("sd3", f"text_encoder_2.text_model.{Q}", f"clip_g.transformer.text_model.{Q}"),
    ("sd3", "lora_te3_encoder_final_layer_norm", "t5xxl.transformer.encoder.final_layer_norm"),
    (
        "hunyuan_video",
        "text_encoder.layers.0.self_attn.q_proj",
        "llama.transformer.model.layers.0.self_attn.q_proj",
    ),
    (
        "hunyuan_video",
        f"text_encoder_2.text_model.{Q}",
        f"clip_l.transformer.text_model.{Q}",
    ),
    (
        "lumina2",
        "lora_te_layers_0_mlp_up_proj",
        "gemma2_2b.transformer.model.layers.0.mlp.up_proj",
    ),
    (
        "lumina2",
        "text_encoder.model.layers.0.mlp.up_proj",
        "gemma2_2b.transformer.model.layers.0.mlp.up_proj",
    ),
    ("wan", f"text_encoder.{T5_Q}", f"umt5xxl.transformer.{T5_Q}"),
    (
        "sdxl",
        f"text_encoders.clip_g.transformer.text_model.{Q}",
        f"clip_g.transformer.text_model.{Q}",
    ),
    ("sdxl", f"clip_g.text_model.{Q}", f"clip_g.transformer.text_model.{Q}"),
]


SHORT_CLIPS = {
    "T5 alone": ("t5xxl",),
    "CLIP-L and T5": ("clip_l", "t5xxl"),
    "CLIP-G and T5": ("clip_g", "t5xxl"),
    "all of SD 3": ("clip_l", "clip_g", "t5xxl"),
}


def short_key_map(encoders_of: tuple[str, ...]) -> KeyMap:
    """The key map of a CLIP with some encoders of one layer each, by our names alone."""
    layer = {"t5xxl": T5_Q}
    keys = {
        f"{one}.transformer.{layer.get(one, f'text_model.{Q}')}.weight": (6, 6)
        for one in encoders_of
    }
    return KeyMap([], keys, text_encoder_parts(keys))


@pytest.mark.parametrize(
    ("clip", "encoder", "kohya", "diffusers", "onetrainer"),
    [
        ("T5 alone", "t5xxl", "lora_te1_", "text_encoder.", "lora_te1_"),
        ("CLIP-L and T5", "t5xxl", "lora_te3_", "text_encoder_2.", "lora_te2_"),
        ("CLIP-G and T5", "clip_g", "lora_te2_", "text_encoder_2.", "lora_te2_"),
        ("CLIP-G and T5", "t5xxl", "lora_te3_", "text_encoder_3.", "lora_te3_"),
        ("all of SD 3", "clip_g", "lora_te2_", "text_encoder_2.", "lora_te2_"),
        ("all of SD 3", "t5xxl", "lora_te3_", "text_encoder_3.", "lora_te3_"),
    ],
)
def test_text_encoders_have_the_numbers_of_each_tool(
    clip: str, encoder: str, kohya: str, diffusers: str, onetrainer: str
) -> None:
    """sd-scripts: networks/lora_flux.py and lora_sd3.py, LORA_PREFIX_TEXT_ENCODER_*."""
    key_map = short_key_map(SHORT_CLIPS[clip])
    (key,) = [key for key in key_map.shapes if key.startswith(encoder)]
    module = key.removeprefix(f"{encoder}.transformer.").removesuffix(".weight")
    assert key_map.name(Target(key), "kohya") == kohya + module.replace(".", "_")
    assert key_map.name(Target(key), "diffusers") == diffusers + module
    assert key_map.name(Target(key), "onetrainer") == onetrainer + module.replace(".", "_")
    for dialect in ("kohya", "diffusers", "onetrainer"):
        name = key_map.name(Target(key), dialect)
        assert name is not None
        assert key_map.target(name) == Target(key)


def test_the_first_text_encoder_of_sd_3_is_not_its_second() -> None:
    key_map = short_key_map(SHORT_CLIPS["CLIP-G and T5"])
    assert key_map.target("lora_te1_text_model_encoder_layers_0_self_attn_q_proj") is None


def test_a_language_model_is_named_by_sd_scripts_from_its_layers_on() -> None:
    """networks/lora_lumina.py wraps the model below the head."""
    key = "gemma2_2b.transformer.model.layers.0.mlp.up_proj.weight"
    key_map = clip_key_map("lumina2")
    assert key_map.name(Target(key), "kohya") == "lora_te_layers_0_mlp_up_proj"
    assert key_map.name(Target(key), "comfy") == "text_encoders." + key.removesuffix(".weight")


@pytest.mark.parametrize(
    ("family", "name", "module"), ENCODER_NAMES, ids=[f"{row[0]} {row[1]}" for row in ENCODER_NAMES]
)
def test_a_layer_of_a_text_encoder_is_understood(family: str, name: str, module: str) -> None:
    assert clip_key_map(family).target(name) == Target(f"{module}.weight")


def test_the_first_text_encoder_of_sdxl_is_not_the_one_of_its_refiner() -> None:
    key_map = clip_key_map("sdxl_refiner")
    assert key_map.target("lora_te1_text_model_encoder_layers_0_mlp_fc1") is None


def test_a_name_that_fits_two_text_encoders_is_an_error() -> None:
    with pytest.raises(AmbiguousNameError) as caught:
        clip_key_map("sdxl").target(f"base_model.model.text_model.{Q}")
    assert "clip_l.transformer" in str(caught.value)
    assert "clip_g.transformer" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "order"),
    [
        ("sdxl", ("clip_l", "clip_g")),
        ("sd3", ("clip_l", "clip_g", "t5xxl")),
        ("flux", ("clip_l", "t5xxl")),
        ("hunyuan_video", ("llama", "clip_l")),
    ],
)
def test_text_encoders_are_numbered_as_in_diffusers(family: str, order: tuple[str, ...]) -> None:
    assert encoders(clip_key_map(family).shapes) == order
