"""ComfyUI's own model classes at the real sizes of the model families, without memory."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import comfy.supported_models as supported
import torch
from comfy.ldm.chroma.model import ChromaParams
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams
from torch import nn

UNET = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "model_channels": 320,
}
SD = UNET | {
    "adm_in_channels": None,
    "num_res_blocks": [2] * 4,
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3,
}
XL = UNET | {
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
    "num_head_channels": 64,
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
}
LUMINA = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "qk_norm": True}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 5120,
    "in_dim": 16,
    "out_dim": 16,
    "num_heads": 40,
    "ffn_dim": 13824,
    "num_layers": 40,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
PIXART = {
    "patch_size": 2,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "input_size": 128,
    "pe_interpolation": 2,
}

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sd1": (
        supported.SD15,
        SD | {"context_dim": 768, "use_linear_in_transformer": False, "num_heads": 8},
    ),
    "sd2": (
        supported.SD20,
        SD | {"context_dim": 1024, "use_linear_in_transformer": True, "num_head_channels": 64},
    ),
    "sdxl": (
        supported.SDXL,
        XL
        | {
            "adm_in_channels": 2816,
            "num_res_blocks": [2] * 3,
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "context_dim": 2048,
        },
    ),
    "sdxl_refiner": (
        supported.SDXLRefiner,
        XL
        | {
            "model_channels": 384,
            "adm_in_channels": 2560,
            "num_res_blocks": [2] * 4,
            "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
            "transformer_depth_middle": 4,
            "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
            "context_dim": 1280,
        },
    ),
    "sd35_medium": (
        supported.SD3,
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 24,
            "input_size": None,
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 1536},
            },
            "num_patches": 147456,
            "pos_embed_max_size": 384,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": list(range(13)),
        },
    ),
    "flux": (
        supported.Flux,
        FLUX | {"image_model": "flux", "vec_in_dim": 768, "guidance_embed": True},
    ),
    "flux2": (
        supported.Flux2,
        FLUX
        | {
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "patch_size": 1,
            "vec_in_dim": None,
            "context_in_dim": 15360,
            "hidden_size": 6144,
            "mlp_ratio": 3.0,
            "num_heads": 48,
            "depth": 8,
            "depth_single_blocks": 48,
            "axes_dim": [32] * 4,
            "theta": 2000,
            "qkv_bias": False,
            "guidance_embed": True,
            "global_modulation": True,
            "mlp_silu_act": True,
            "ops_bias": False,
        },
    ),
    "chroma": (
        supported.Chroma,
        FLUX
        | {
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 3072,
            "hidden_dim": 5120,
            "n_layers": 5,
        },
    ),
    "wan": (supported.WAN21_T2V, WAN),
    "wan_small": (
        supported.WAN21_T2V,
        WAN | {"dim": 1536, "num_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    "wan_i2v": (supported.WAN21_I2V, WAN | {"in_dim": 36, "model_type": "i2v"}),
    "wan_vace": (
        supported.WAN21_Vace,
        WAN | {"model_type": "vace", "vace_in_dim": 96, "vace_layers": 8},
    ),
    "hunyuan_video": (
        supported.HunyuanVideo,
        FLUX
        | {
            "image_model": "hunyuan_video",
            "patch_size": [1, 2, 2],
            "vec_in_dim": 768,
            "depth": 20,
            "depth_single_blocks": 40,
            "theta": 256,
            "guidance_embed": True,
            "meanflow": False,
            "byt5": False,
            "use_cond_type_embedding": False,
            "vision_in_dim": None,
        },
    ),
    "qwen_image": (
        supported.QwenImage,
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60},
    ),
    "z_image": (
        supported.ZImage,
        LUMINA
        | {
            "dim": 3840,
            "cap_feat_dim": 2560,
            "n_layers": 30,
            "n_heads": 30,
            "n_kv_heads": 30,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 8 / 3,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
    ),
    "lumina2": (
        supported.Lumina2,
        LUMINA
        | {
            "dim": 2304,
            "cap_feat_dim": 2304,
            "n_layers": 26,
            "n_heads": 24,
            "n_kv_heads": 8,
            "axes_dims": [32] * 3,
            "axes_lens": [300, 512, 512],
            "rope_theta": 10000.0,
            "ffn_dim_multiplier": 4.0,
        },
    ),
    "auraflow": (
        supported.AuraFlow,
        {"max_seq": 1024, "cond_seq_dim": 2048, "n_double_layers": 4, "n_layers": 36},
    ),
    "pixart_alpha": (
        supported.PixArtAlpha,
        PIXART | {"image_model": "pixart_alpha", "micro_condition": True, "model_max_length": 120},
    ),
    "pixart_sigma": (
        supported.PixArtSigma,
        PIXART | {"image_model": "pixart_sigma", "micro_condition": False, "model_max_length": 300},
    ),
    "hidream": (
        supported.HiDream,
        {
            "image_model": "hidream",
            "attention_head_dim": 128,
            "axes_dims_rope": [64, 32, 32],
            "caption_channels": [4096] * 2,
            "max_resolution": [128, 128],
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "llama_layers": [*range(32), *[31] * 16],
            "num_attention_heads": 20,
            "num_layers": 16,
            "num_single_layers": 32,
            "num_routed_experts": 4,
            "num_activated_experts": 2,
            "text_emb_dim": 2048,
        },
    ),
}

PARAMETERS = {
    "flux": FluxParams,
    "flux2": FluxParams,
    "chroma": ChromaParams,
    "hunyuan_video": HunyuanVideoParams,
}
LATER = {"txt_ids_dims": [], "meanflow_sum": False, "vec_in_dim": None}
"""What these classes ask for on newer hosts."""


def real_model(
    family: str, config: dict[str, Any] | None = None, device: torch.device | None = None
) -> nn.Module:
    """Returns ComfyUI's model of a family, with its tensors on the meta device.

    Args:
        family: One of `MODELS`.
        config: Other sizes than the real ones.
        device: Where the tensors shall be instead, without being initialised.
    """
    supported_model, real_config = MODELS[family]
    model_config = supported_model(dict(config or real_config))
    asked_for = {field.name for field in fields(PARAMETERS[family])} if family in PARAMETERS else ()
    later = {key: value for key, value in LATER.items() if key in asked_for}
    for key, value in (later | supported_model.unet_extra_config).items():
        model_config.unet_config.setdefault(key, value)
    place = device or torch.device("meta")
    linspace = torch.linspace
    # Some classes read numbers of a schedule while they are made.
    torch.linspace = lambda *args, **options: linspace(*args, **{**options, "device": "cpu"})
    try:
        with place:
            return model_config.get_model({}, "", device=place)
    finally:
        torch.linspace = linspace


def as_model(module: nn.Module) -> Any:
    """Returns what is asked of a MODEL that nothing has patched."""
    return SimpleNamespace(model=module, backup={}, hook_backup={})


def as_clip(module: nn.Module) -> Any:
    """Returns what is asked of a CLIP that nothing has patched."""
    return SimpleNamespace(cond_stage_model=module, patcher=as_model(module))
