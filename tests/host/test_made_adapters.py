"""The oracle of `test_pictures` is right: what is read off the tools equals formulas in float64."""

from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from lycoris.modules.dylora import DyLoraModule
from safetensors.torch import load_file
from torch import Tensor

import made_adapters
from base_directory import cached_checkpoint
from formulas import FORMULAS
from made_adapters import METHODS, bake, changes, file_name, write_adapter
from made_by_lycoris import DYLORA_BLOCK, LYCORIS_METHODS
from made_by_peft import PEFT_METHODS
from making import (
    ALPHA,
    CONV_ALPHA,
    CONV_RANK,
    RANK,
    Made,
    Target,
    Task,
    probe,
    targets,
)

LINEAR = "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj"
WITHOUT_BIAS = "input_blocks.1.1.transformer_blocks.0.attn1.to_v"
POINTWISE = "input_blocks.1.1.proj_in"
KERNEL = "output_blocks.0.0.in_layers.2"
STRIDED = "input_blocks.2.0.op"
CLIP = "encoder.layers.3.mlp.fc2"
PRODUCTS = (LINEAR, WITHOUT_BIAS, POINTWISE, KERNEL, CLIP)

NOT_PROBED = ("dylora_lycoris", "full", "norm", "mixed")
"""Those that are probed anyway, are mixtures, or have a forward that draws ranks at random."""
PROBED = [one for one in (*LYCORIS_METHODS, *PEFT_METHODS) if one not in NOT_PROBED]
WRONG_FORWARD = {("oft_peft", KERNEL)}
"""PEFT's forward counts overlapping fields of a convolution twice."""


def _on_each_layer(
    methods: Iterable[str], left_out: Collection[tuple[str, str]] = ()
) -> pytest.MarkDecorator:
    """Runs a test on all layers that a method can change."""
    pairs = [
        (method, layer)
        for method in methods
        for layer in PRODUCTS
        if METHODS[method].selects(_target(layer)) and (method, layer) not in left_out
    ]
    return pytest.mark.parametrize(("method", "layer"), pairs)


@cache
def _checkpoint() -> dict[str, Tensor]:
    return load_file(cached_checkpoint())


def _target(layer: str) -> Target:
    return next(target for target in targets() if target.layer.name == layer)


def test_the_effect_of_a_lora_is_its_formula():
    for layer in (LINEAR, POINTWISE, KERNEL, STRIDED, CLIP):
        made = _make("locon", layer)
        up, down = _factors(made)
        rank, alpha = (CONV_RANK, CONV_ALPHA) if layer in (KERNEL, STRIDED) else (RANK, ALPHA)
        assert down.shape[0] == rank
        assert made.tensors["alpha"] == alpha
        _assert_close(made, alpha / rank * up.flatten(1) @ down.flatten(1))


def test_the_effect_of_a_tucker_lora_is_its_formula():
    made = _make("locon_tucker", KERNEL)
    up, down = _factors(made)
    core = made.tensors["lora_mid.weight"].double()
    product = torch.einsum("om,mnhw,ni->oihw", up[:, :, 0, 0], core, down[:, :, 0, 0])
    _assert_close(made, CONV_ALPHA / CONV_RANK * product)


def test_a_rank_stabilised_lora_is_scaled_by_the_root_of_its_rank():
    for method in ("rslora", "rslora_peft"):
        made = _make(method, LINEAR)
        up, down = _factors(made)
        _assert_close(made, ALPHA / RANK**0.5 * up @ down)
    assert _make("rslora", LINEAR).tensors["alpha"].item() == pytest.approx(ALPHA * RANK**0.5)


@_on_each_layer(PROBED, WRONG_FORWARD)
def test_the_effect_of_a_method_is_what_its_forward_does(method: str, layer: str):
    made = _make(method, layer)
    adapted, plain = made.change.args
    change, probed = made.change(), probe(adapted, plain)
    torch.testing.assert_close(change.weight, probed.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(change.bias, probed.bias, rtol=0, atol=1e-5)


@_on_each_layer(FORMULAS)
def test_the_effect_of_a_method_is_its_formula(method: str, layer: str):
    made = _make(method, layer)
    tensors = {name: tensor.detach().double() for name, tensor in made.tensors.items()}
    weight = _target(layer).module(_checkpoint()).weight.double()
    _assert_close(made, FORMULAS[method](tensors | made.common, weight))


def test_the_effect_of_full_is_its_difference():
    for layer in ("middle_block.0.in_layers.2", "middle_block.1.transformer_blocks.0.ff.net.2"):
        made = _make("full", layer)
        change = made.change()
        _assert_close(made, made.tensors["diff"])
        assert change.bias is not None
        torch.testing.assert_close(change.bias, made.tensors["diff_b"], rtol=0, atol=1e-5)


def test_the_effect_of_norm_is_its_difference():
    for layer in ("middle_block.0.in_layers.0", "middle_block.1.transformer_blocks.0.norm2"):
        made = _make("norm", layer)
        change = made.change()
        assert change.bias is not None
        torch.testing.assert_close(change.weight, made.tensors["w_norm"].data, rtol=0, atol=1e-5)
        torch.testing.assert_close(change.bias, made.tensors["b_norm"].data, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [DYLORA_BLOCK, 2 * DYLORA_BLOCK, RANK])
@pytest.mark.parametrize("layer", [LINEAR, KERNEL])
def test_a_dylora_of_lycoris_does_what_it_did_in_training(layer: str, rank: int):
    made = _make("dylora_lycoris", layer, rank)
    up, down = _factors(made)
    plain = _target(layer).module(_checkpoint())
    module = DyLoraModule("", plain, lora_dim=RANK, alpha=ALPHA, block_size=DYLORA_BLOCK)
    for index in range(RANK // DYLORA_BLOCK):
        rows = slice(index * DYLORA_BLOCK, (index + 1) * DYLORA_BLOCK)
        module.up_list[index].data = up[:, rows].float()
        module.down_list[index].data = down[rows].flatten(1).float()
    # It counts from 0: the block that begins at this rank is the last one in play.
    trained, _ = module.get_diff_weight(rank=rank - DYLORA_BLOCK)
    _assert_close(made, trained.detach())


def test_a_checkpoint_is_baked_with_both_strengths(tmp_path: Path):
    path = tmp_path / "baked.safetensors"
    bake("norm", cached_checkpoint(), path, strength_model=0.5, strength_clip=-2)
    base, baked = _checkpoint(), load_file(path)
    changed = changes("norm", cached_checkpoint(), 0)
    assert baked.keys() == base.keys()
    for target, change in changed.items():
        strength = 0.5 if target.part == "unet" else -2
        assert torch.equal(baked.pop(target.weight), base[target.weight] + strength * change.weight)
        assert torch.equal(baked.pop(target.bias), base[target.bias] + strength * change.bias)
    assert all(torch.equal(tensor, base[key]) for key, tensor in baked.items())


def test_an_adapter_file_is_the_same_each_time_it_is_made(tmp_path: Path):
    for folder in ("first", "second"):
        made_adapters._make_all.cache_clear()
        write_adapter("lora_fa", cached_checkpoint(), tmp_path / folder)
    first, second = (
        load_file(tmp_path / folder / file_name("lora_fa")) for folder in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def _make(method: str, layer: str, rank: int = 0) -> Made:
    target = _target(layer)
    assert METHODS[method].selects(target)
    generator = torch.Generator().manual_seed(0)
    return METHODS[method].make(Task(target, target.module(_checkpoint()), generator, rank))


def _factors(made: Made) -> tuple[Tensor, Tensor]:
    """Returns up and down in float64, whatever the file calls them."""
    spelled = "lora_up.weight" in made.tensors
    names = ("lora_up", "lora_down") if spelled else ("lora_B", "lora_A")
    up, down = (made.tensors[f"{name}.weight"].detach().double() for name in names)
    return up, down


def _assert_close(made: Made, expected: Tensor) -> None:
    weight = made.change().weight
    # Rounding of W + change to float32; a change is about 0.01.
    torch.testing.assert_close(
        weight, expected.reshape(weight.shape).to(weight.dtype), rtol=0, atol=3e-6
    )
