"""Parts of fused weights, on small models of ComfyUI's own classes: hook, patch and by hand agree."""

from collections.abc import Iterator
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.formats.parse import parse_tensors
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.algorithms.strength import Dial
from anyadapter.nodes.host.applying import Mode, apply
from anyadapter.nodes.host.keymaps import diffusion_model_key_map
from real_models import MODELS, real_model

MODES: tuple[Mode, ...] = ("hook", "patch")
CPU = torch.device("cpu")
SMALL_FLUX = {
    "hidden_size": 96,
    "num_heads": 3,
    "axes_dim": [8, 12, 12],
    "depth": 2,
    "depth_single_blocks": 2,
    "context_in_dim": 40,
    "vec_in_dim": 24,
}
SMALL_LUMINA = {"cap_feat_dim": 40, "n_layers": 2}
SMALL: dict[str, dict[str, Any]] = {
    "flux": SMALL_FLUX,
    "hunyuan_video": SMALL_FLUX,
    "lumina2": SMALL_LUMINA | {"dim": 96, "axes_dims": [4, 6, 6], "n_heads": 6, "n_kv_heads": 2},
    "z_image": SMALL_LUMINA | {"dim": 256, "axes_dims": [8, 12, 12], "n_heads": 8, "n_kv_heads": 8},
    "sd35_medium": {
        "depth": 2,
        "adm_in_channels": 24,
        "x_block_self_attn_layers": [0],
        "pos_embed_max_size": 16,
        "num_patches": 256,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 40, "out_features": 128},
        },
    },
}
INPUTS: dict[str, dict[str, Any]] = {
    "flux": {"context": (1, 5, 40), "y": (1, 24), "guidance": (1,)},
    "hunyuan_video": {"context": (1, 5, 40), "y": (1, 24), "guidance": (1,)},
    "lumina2": {"context": (1, 5, 40)},
    "z_image": {"context": (1, 5, 40)},
    "sd35_medium": {"context": (1, 5, 40), "y": (1, 24)},
}
each_family = pytest.mark.parametrize("family", SMALL)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def patcher_of(family: str) -> ModelPatcher:
    _, config = MODELS[family]
    model = real_model(family, config | SMALL[family], CPU)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        deviation = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * deviation
        parameter.data += name.endswith("norm.weight")
    for buffer in model.diffusion_model.buffers():  # type: ignore[union-attr]
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return ModelPatcher(model, CPU, CPU)


def sampled(family: str, patcher: ModelPatcher) -> Tensor:
    """What the model makes of a small latent."""
    comfy.model_management.load_models_gpu([patcher])
    shape = (1, 16, 1, 8, 8) if family == "hunyuan_video" else (1, 16, 8, 8)
    inputs = {name: random(*size) for name, size in INPUTS[family].items()}
    if family in ("lumina2", "z_image"):
        inputs["num_tokens"] = 5  # type: ignore[assignment]
    with torch.no_grad():
        model: nn.Module = patcher.model.diffusion_model  # type: ignore[assignment]
        return model(random(*shape), torch.tensor([0.5]), **inputs)


def slices(key_map: KeyMap) -> Iterator[tuple[str, Target]]:
    """Every part of a fused weight with one of its names; the first one of a weight's rows."""
    for target in key_map.targets():
        if target.rows is not None and target.rows.reorder is None:
            yield key_map.names(target)[0], target


def file_of(key_map: KeyMap) -> dict[str, Tensor]:
    """A LoRA on every part of every fused weight, as PEFT writes it."""
    tensors: dict[str, Tensor] = {}
    for name, target in slices(key_map):
        outputs, inputs = target.shape(key_map.shapes[target.weight])
        tensors[f"{name}.lora_B.weight"] = random(outputs, 3) / 3
        tensors[f"{name}.lora_A.weight"] = random(3, inputs) / inputs**0.5
    return tensors


def adapted(base: ModelPatcher, tensors: dict[str, Tensor], mode: Mode) -> ModelPatcher:
    patcher = base.clone()
    binding = bind(parse_tensors(tensors, {}, "a file"), diffusion_model_key_map(patcher))
    assert not binding.unmatched
    apply(patcher, binding.bound, Dial(0.5), mode)
    return patcher


@each_family
def test_a_lora_on_every_slice_gives_what_it_gives_by_hand(family: str) -> None:
    base = patcher_of(family)
    key_map = diffusion_model_key_map(base)
    tensors = file_of(key_map)
    plain = sampled(family, base)
    hooked, patched = (sampled(family, adapted(base, tensors, mode)) for mode in MODES)
    assert torch.equal(sampled(family, base), plain)
    weights = dict(base.model.named_parameters())
    with torch.no_grad():
        for name, target in slices(key_map):
            change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            rows = target.rows
            assert rows is not None
            weights[target.weight][rows.start : rows.start + rows.length] += 0.5 * change
    by_hand = sampled(family, base)
    effect = (by_hand - plain).norm()
    assert effect > 0.05 * plain.norm()
    assert (hooked - by_hand).norm() < 1e-4 * effect
    assert (patched - by_hand).norm() < 1e-4 * effect


@each_family
def test_every_fused_weight_has_slices(family: str) -> None:
    key_map = diffusion_model_key_map(patcher_of(family))
    fused = {target.weight for _, target in slices(key_map)}
    assert len(fused) >= 3


@each_family
def test_methods_that_read_the_weight_read_their_rows_only(family: str) -> None:
    base = patcher_of(family)
    key_map = diffusion_model_key_map(base)
    tensors = file_of(key_map)
    for name, target in slices(key_map):
        outputs, _ = target.shape(key_map.shapes[target.weight])
        tensors[f"{name}.lora_magnitude_vector"] = random(outputs).abs() + 0.5
    plain = sampled(family, base)
    hooked, patched = (sampled(family, adapted(base, tensors, mode)) for mode in MODES)
    effect = (patched - plain).norm()
    assert effect > 0.05 * plain.norm()
    assert (hooked - patched).norm() < 1e-4 * effect
