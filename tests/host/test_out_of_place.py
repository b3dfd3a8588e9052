"""Gradients through blocks of the host that write over their own activations."""

from collections.abc import Callable, Iterator
from functools import partial

import comfy.clip_model
import comfy.ldm.flux.layers
import comfy.ops
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anyadapter.nodes.host.out_of_place import OutOfPlace
from anyadapter.nodes.host.training_hooks import host_in_training

Run = Callable[[Tensor], Tensor]
OPS = comfy.ops.disable_weight_init
PLACES = {"dtype": torch.float64, "device": "cpu", "operations": OPS}


def filled(module: nn.Module) -> nn.Module:
    """Gives a module of the host, which leaves its weights open, numbers that do not learn."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4
    return module.requires_grad_(False)


def clip_layer() -> Run:
    layer = comfy.clip_model.CLIPLayer(8, 2, 16, "quick_gelu", **PLACES)
    attention = comfy.clip_model.optimized_attention_for_device(
        torch.device("cpu"), small_input=True
    )
    ready = filled(layer)
    return lambda x: ready(x * 1.0, None, attention)


def flux_block() -> Run:
    block = comfy.ldm.flux.layers.DoubleStreamBlock(8, 2, mlp_ratio=2.0, qkv_bias=True, **PLACES)
    ready = filled(block)
    vec = torch.randn(1, 8, dtype=torch.float64)
    angles = torch.linspace(0, 1, 12, dtype=torch.float64)
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1)
    pe = turns.reshape(1, 1, 6, 2, 2, 2)

    def run(x: Tensor) -> Tensor:
        img, txt = ready(x * 1.0, torch.ones(1, 2, 8, dtype=torch.float64) * 1.0, vec, pe)
        return torch.cat([img, txt], 1)

    return run


@pytest.fixture(autouse=True)
def training() -> Iterator[None]:
    with host_in_training():
        yield


def in_new_tensors(run: Run, x: Tensor) -> Tensor:
    with OutOfPlace():
        return run(x)


def slope(run: Run, x: Tensor, direction: Tensor, step: float = 1e-5) -> Tensor:
    """Returns how the sum of squares of an output rises along a direction, by two differences."""
    with torch.no_grad():
        ahead, behind = run(x + step * direction), run(x - step * direction)
    return ((ahead**2).sum() - (behind**2).sum()) / (2 * step)


@pytest.mark.parametrize("make", [clip_layer, flux_block])
@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_are_the_slopes(make: Callable[[], Run], recomputed: bool) -> None:
    run = make()
    torch.manual_seed(1)
    x = torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    guarded = partial(in_new_tensors, run)
    output = checkpoint(guarded, x, use_reentrant=False) if recomputed else guarded(x)
    (output**2).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(
        (x.grad * direction).sum(), slope(run, x, direction), rtol=1e-6, atol=0
    )


def test_without_it_the_host_s_layer_has_no_gradient() -> None:
    x = torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="inplace"):
        clip_layer()(x).sum().backward()


def test_a_statement_makes_a_new_tensor_and_a_call_does_not() -> None:
    base = torch.ones(3, requires_grad=True) * 2
    same = base
    with OutOfPlace():
        base += 1
        assert same.tolist() == [2, 2, 2]
        kept = base
        base.add_(1)
    assert kept is base
    assert base.tolist() == [4, 4, 4]


def test_the_dtype_stays_that_of_the_name() -> None:
    x = torch.ones(2, dtype=torch.bfloat16, requires_grad=True) * 1
    with OutOfPlace():
        x *= torch.ones(2, dtype=torch.float32)
    assert x.dtype == torch.bfloat16


def test_without_gradients_nothing_is_different() -> None:
    x = torch.ones(2)
    same = x
    with OutOfPlace(), torch.no_grad():
        x += 1
    assert same is x
