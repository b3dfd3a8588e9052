"""Adapters under the names of other tools on the models of ComfyUI, and in its own loader."""

from collections.abc import Mapping
from functools import cache
from unittest.mock import patch

import comfy.lora
import comfy.lora_convert
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from anyadapter.algorithms.editing.dialects import DialectName, in_dialect, spelling_of
from anyadapter.algorithms.families import FAMILIES
from anyadapter.algorithms.formats.parse import parse_tensors
from anyadapter.algorithms.formats.write import settled, to_tensors
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.nodes.host import keymaps
from anyadapter.nodes.host.keymaps import diffusion_model_key_map
from name_lists import FOLDER, weights_of
from real_models import MODELS, as_model, real_model

SMALL = {
    "flux": {
        "hidden_size": 96,
        "num_heads": 3,
        "axes_dim": [8, 12, 12],
        "depth": 1,
        "depth_single_blocks": 1,
        "context_in_dim": 40,
        "vec_in_dim": 24,
    },
    "sd1": {"model_channels": 32, "context_dim": 24},
    "sdxl": {"model_channels": 32, "context_dim": 24},
}
FUSED = ("flux", "chroma", "hunyuan_video", "sd35_medium", "lumina2", "z_image", "pixart_sigma")
UNETS = ("sd1", "sd2", "sdxl", "sdxl_refiner")


def key_map_of(family: str) -> KeyMap:
    return diffusion_model_key_map(as_model(real_model(family)))


@pytest.mark.parametrize("family", [*FUSED, "sd1", "sdxl"])
def test_the_layers_of_diffusers_are_the_parts_that_a_weight_is_cut_into(family: str) -> None:
    key_map = key_map_of(family)
    prefix = "unet." if family in UNETS else "transformer."
    for named in weights_of(family):
        target = key_map.target(prefix + named.name) if named.is_layer else None
        if target is None:
            continue
        units = key_map.units(target, "diffusers")
        assert target in units, (named.name, units)
        assert key_map.name(target, "diffusers") == prefix + named.name


ALL = sorted(path.stem for path in FOLDER.glob("*.txt"))


@pytest.mark.parametrize("family", ALL)
def test_only_what_diffusers_has_has_a_name_of_diffusers(family: str) -> None:
    """Of what no table had the host's names were written as if they were diffusers'."""
    key_map = key_map_of(family)
    prefix = "unet." if family in UNETS else "transformer."
    known = {prefix + named.name for named in weights_of(family)}
    named = 0
    for target in key_map.targets():
        name = key_map.name(target, "diffusers")
        if name is None:
            continue
        named += 1
        if target in key_map.units(target, "diffusers"):
            buffers = ("pos_embed.pos_embed", "y_embedding")
            assert name in known or name.endswith(buffers), name
    assert named > len(known) / 2


@cache
def small(family: str) -> ModelPatcher:
    cpu = torch.device("cpu")
    _, config = MODELS[family]
    model = real_model(family, config | SMALL[family], cpu)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter)
    return ModelPatcher(model, cpu, cpu)


def small_key_map(family: str) -> KeyMap:
    """Of small models the sizes do not tell the family."""
    name = {"flux": "Flux", "sd1": "SD 1.x", "sdxl": "SDXL"}[family]
    known = next(one for one in FAMILIES if one.name == name)
    with patch.object(keymaps, "detect", lambda _: known):
        return diffusion_model_key_map(small(family))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def file_of(key_map: KeyMap) -> dict[str, Tensor]:
    """A LoRA of kohya on a few layers of each kind, among them every fused weight."""
    tensors: dict[str, Tensor] = {}
    layers = [key for key, shape in key_map.shapes.items() if len(shape) > 1]
    few = [key for i, key in enumerate(layers) if i % 17 == 0 or "qkv" in key or "linear1" in key]
    for rank, key in enumerate(few):
        name = key_map.name(Target(key), "kohya")
        outputs, *inputs = key_map.shapes[key]
        if key_map.units(Target(key), "kohya") != (Target(key),) or name is None:
            continue
        ones = [1] * (len(inputs) - 1)
        tensors[f"{name}.lora_up.weight"] = random(outputs, 1 + rank % 3, *ones)
        tensors[f"{name}.lora_down.weight"] = random(1 + rank % 3, *inputs)
        tensors[f"{name}.alpha"] = torch.tensor(1.0 + rank % 4)
    return tensors


def in_stock_loader(family: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The change of every weight that ComfyUI's own loader makes of a file."""
    patcher = small(family).clone()
    names = comfy.lora.model_lora_keys_unet(patcher.model, {})
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), names)
    patcher.add_patches(loaded, 1.0)
    weights = dict(patcher.model.named_parameters())
    return {
        key: comfy.lora.calculate_weight(patches, torch.zeros_like(weights[key]), key)
        for key, patches in patcher.patches.items()
    }


def by_hand(key_map: KeyMap, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    changes: dict[str, Tensor] = {}
    for key, up in tensors.items():
        module, _, role = key.partition(".")
        target = key_map.target(module)
        if role == "lora_up.weight" and target is not None:
            down = tensors[f"{module}.lora_down.weight"]
            change = up.flatten(1) @ down.flatten(1) * (tensors[f"{module}.alpha"] / up.shape[1])
            changes[target.weight] = change.reshape(key_map.shapes[target.weight])
    return changes


STOCK: list[tuple[str, DialectName]] = [
    *(("flux", dialect) for dialect in ("kohya", "comfy", "diffusers", "lycoris", "onetrainer")),
    *(("sd1", dialect) for dialect in ("kohya", "comfy", "lycoris", "onetrainer")),
    *(("sdxl", dialect) for dialect in ("kohya", "comfy", "lycoris", "onetrainer")),
]


@pytest.mark.parametrize(("family", "dialect"), STOCK)
def test_the_loader_of_comfyui_does_the_same_with_every_dialect_that_it_knows(
    family: str, dialect: DialectName
) -> None:
    key_map = small_key_map(family)
    tensors = file_of(key_map)
    expected = by_hand(key_map, tensors)
    assert len(expected) > (4 if family == "flux" else 10)
    named, _ = in_dialect(parse_tensors(tensors, {}, "a").as_trained(), [key_map], dialect)
    written, _ = to_tensors(settled(named), spelling_of(dialect))
    found = in_stock_loader(family, written)
    assert found.keys() == expected.keys()
    for key, change in expected.items():
        torch.testing.assert_close(found[key], change, rtol=1e-5, atol=1e-5)
