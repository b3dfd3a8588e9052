"""Families: the marks they are told by, tables of names, and why a module has no home."""

import pytest

from anyadapter.algorithms.families import (
    FAMILIES,
    Family,
    detect,
    diffusion_model_part,
    in_text_encoder,
    likely_cause,
    text_encoder_parts,
)
from anyadapter.algorithms.families.tables import Table
from anyadapter.algorithms.keymap import KeyMap, Target, halves_swapped, rows_of

BY_NAME = {family.name: family for family in FAMILIES}
TABLE = Table.parse(
    """
blocks.* -> layers.*
  attn.qkv = to_q+to_k+to_v
  attn.kv = to_k2+to_v2
  linear1 = q+k+v+mlp qkv+-
  mod.1 = ~norm.linear
  ff.0 = ff.net.0 ff.linear_in
out = ~norm_out
table = tables
"""
)


def weight(layer: str) -> str:
    return f"diffusion_model.{layer}.weight"


def test_a_table_names_layers_and_blocks_of_any_number() -> None:
    found = dict(TABLE.names({weight("blocks.12.ff.0"): (8, 6), weight("ff.0"): (8, 6)}))
    target = Target(weight("blocks.12.ff.0"))
    assert found == {"layers.12.ff.net.0": target, "layers.12.ff.linear_in": target}


def test_a_table_cuts_fused_layers_by_their_shape() -> None:
    qkv, kv, linear1 = (weight(f"blocks.3.{name}") for name in ("attn.qkv", "attn.kv", "linear1"))
    # Six inputs: six rows of queries, and fewer of keys and values where heads are grouped.
    assert dict(TABLE.names({qkv: (10, 6), kv: (12, 6), linear1: (42, 6)})) == {
        "layers.3.to_q": rows_of(qkv, 0, 6),
        "layers.3.to_k": rows_of(qkv, 6, 2),
        "layers.3.to_v": rows_of(qkv, 8, 2),
        "layers.3.to_k2": rows_of(kv, 0, 6),
        "layers.3.to_v2": rows_of(kv, 6, 6),
        "layers.3.q": rows_of(linear1, 0, 6),
        "layers.3.k": rows_of(linear1, 6, 6),
        "layers.3.v": rows_of(linear1, 12, 6),
        "layers.3.mlp": rows_of(linear1, 18, 24),
        "layers.3.qkv": rows_of(linear1, 0, 18),
    }


def test_a_table_names_no_slice_of_a_packed_weight() -> None:
    assert not dict(TABLE.names({weight("blocks.0.attn.qkv"): (54, 1)})).get("layers.0.to_q")


def test_halves_are_swapped_where_a_layer_has_just_two() -> None:
    last, other = weight("blocks.1.mod.1"), weight("blocks.0.mod.1")
    assert dict(TABLE.names({last: (12, 6), other: (36, 6)})) == {
        "layers.1.norm.linear": halves_swapped(last, 12),
        "layers.0.norm.linear": Target(other),
    }


def test_a_parameter_that_is_no_weight_is_named_whole() -> None:
    assert dict(TABLE.names({"diffusion_model.table": (2, 6)})) == {
        "tables": Target("diffusion_model.table")
    }


@pytest.mark.parametrize(
    ("name", "sizes", "family"),
    [
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", {320, 768}, "SD 1.x"),
        ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", {320, 1024}, "SD 2.x"),
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k",
            {640, 2048},
            "SDXL",
        ),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", {8}, "SDXL"),
        (
            "lora_unet_input_blocks_7_1_transformer_blocks_3_attn2_to_v",
            {1536, 1280},
            "SDXL refiner",
        ),
        ("lora_unet_joint_blocks_7_x_block_mlp_fc1", {8}, "SD 3"),
        ("transformer.transformer_blocks.3.attn.to_q", {1536}, "SD 3"),
        ("transformer.single_transformer_blocks.9.attn.to_q", {3072}, "Flux"),
        ("double_blocks.9.processor.qkv_lora1", {3072, 9216}, "Flux"),
        ("lora_unet_distilled_guidance_layer_layers_0_in_layer", {5120}, "Chroma"),
        ("transformer.blocks.0.attn1.to_q", {1536}, "Wan"),
        ("lora_unet__blocks_9_cross_attn_k", {8}, "Wan"),
        ("lora_transformer_blocks_9_ffn_net_2", {8}, "Wan"),
        ("lora_unet_double_blocks_0_img_mlp_fc1", {3072}, "HunyuanVideo"),
        ("transformer_blocks.9.img_mlp.net.2", {3072}, "Qwen-Image"),
        ("lora_unet_layers_9_attention_to_q", {3840}, "Z-Image"),
        ("lora_unet_layers_9_attention_qkv", {2304, 3840}, "Lumina 2"),
        ("transformer.layers.9.attn.to_q", {2304}, "Lumina 2"),
        ("transformer.joint_transformer_blocks.0.attn.to_q", {3072}, "AuraFlow"),
        ("base_model.model.transformer_blocks.9.attn1.to_q", {1152}, "PixArt"),
        ("lycoris_double_stream_blocks_9_block_attn1_to_q", {2560}, "HiDream"),
        ("lora_unet_odd", {768}, None),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", {768, 3072}, None),
    ],
)
def test_a_single_module_tells_its_family(name: str, sizes: set[int], family: str | None) -> None:
    assert detect({name: frozenset(sizes)}) == (BY_NAME[family] if family else None)


SD1 = BY_NAME["SD 1.x"]
CLIP_L, CLIP_G, T5 = ("clip_l",), ("clip_l", "clip_g"), ("clip_l", "t5xxl")


@pytest.mark.parametrize(
    ("module", "sizes", "model", "present", "cause"),
    [
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
            {640, 2048},
            SD1,
            None,
            "it was made for SDXL, the model is SD 1.x",
        ),
        ("lora_unet_double_blocks_0_img_mlp_0", {3072}, None, None, "it was made for Flux"),
        ("lora_unet_down_blocks_9_attentions_0_attn2_to_k", {320, 768}, SD1, None, ""),
        ("lora_unet_odd", {8}, SD1, None, ""),
        ("lora_te_text_model_x", {8}, SD1, None, "no text encoder is connected"),
        (
            "lora_te2_text_model_encoder_layers_0_mlp_fc1",
            {1280},
            SD1,
            CLIP_L,
            "text encoder 2 (CLIP-G) is not in this CLIP",
        ),
        (
            "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
            {4096},
            None,
            CLIP_G,
            "text encoder 2 (T5) is not in this CLIP",
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            {768},
            None,
            ("t5xxl",),
            "text encoder 1 (CLIP-L) is not in this CLIP",
        ),
        (
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
            {768},
            None,
            ("t5xxl",),
            "its text encoder (CLIP) is not in this CLIP",
        ),
        (
            "text_encoder.model.layers.0.mlp.up_proj",
            {9216},
            None,
            T5,
            "text encoder 1 (language model) is not in this CLIP",
        ),
        (
            "lora_te_text_model_encoder_layers_12_mlp_fc1",
            {768},
            None,
            CLIP_L,
            "the text encoder has no such layer",
        ),
        ("lora_te2_odd", {8}, None, CLIP_G, "the text encoder has no such layer"),
    ],
)
def test_the_cause_of_a_module_without_home(
    module: str,
    sizes: set[int],
    model: Family | None,
    present: tuple[str, ...] | None,
    cause: str,
) -> None:
    assert likely_cause(module, frozenset(sizes), model, present) == cause


@pytest.mark.parametrize(
    ("module", "inside"),
    [
        ("lora_te_text_model_x", True),
        ("lora_te1_x", True),
        ("text_encoder.x", True),
        ("text_encoder_3.x", True),
        ("text_encoders.clip_l.x", True),
        ("clip_g.x", True),
        ("t5xxl.x", True),
        ("base_model.model.text_model.x", True),
        ("lycoris_text_model_x", True),
        ("lora_unet_text_model_x", False),
        ("lycoris_transformer_blocks_0", False),
        ("base_model.model.down_blocks.0", False),
        ("text_embedding.0", False),
    ],
)
def test_a_module_of_a_text_encoder_is_known_by_its_start(module: str, inside: bool) -> None:
    assert in_text_encoder(module) is inside


def test_what_the_host_knows_with_one_prefix_is_found_with_any() -> None:
    key = weight("net.0")
    pairs = [("transformer.new.layer", Target(key))]
    key_map = KeyMap(pairs, {key: (8, 6)}, [diffusion_model_part({key: (8, 6)}, pairs, None)])
    for name in ("new.layer", "lora_unet_new_layer", "unet.net.0", "base_model.model.new.layer"):
        assert key_map.target(name) == Target(key)
    assert key_map.name(Target(key), "comfy") == "diffusion_model.net.0"
    assert key_map.name(Target(key), "kohya") == "lora_unet_net_0"


def test_a_text_encoder_alone_needs_no_number() -> None:
    key = "clip_l.transformer.text_model.x.weight"
    key_map = KeyMap([], {key: (8, 6)}, text_encoder_parts({key: (8, 6), "clip_l.other": (1,)}))
    assert key_map.name(Target(key), "kohya") == "lora_te_text_model_x"
    assert key_map.name(Target(key), "diffusers") == "text_encoder.text_model.x"
    assert key_map.name(Target(key), "peft") == "base_model.model.text_model.x"
    assert key_map.name(Target(key), "unheard of") is None
