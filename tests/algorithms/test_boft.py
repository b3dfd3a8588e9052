"""BOFT of LyCORIS and PEFT: against the tools, against PEFT's own permutations, and its limits."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from adapter_cases import random
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.base import InitialConfig
from anyadapter.algorithms.adapters.boft import Boft, PeftBoft, butterfly
from anyadapter.algorithms.adapters.oft import DiagOft
from anyadapter.algorithms.adapters.rotation import cayley, skew_of
from anyadapter.algorithms.errors import ShapeError
from anyadapter.algorithms.layers import Layer
from layer_cases import LayerCase, product_cases, wide_cases
from oracles import (
    SINGLE,
    change,
    covering,
    given_to_peft,
    lycoris,
    of_lycoris,
    of_peft,
    peft,
    read,
    require_effect,
    weight_effect,
)


def named(case_name: str) -> LayerCase:
    return next(case for case in [*product_cases(), *wide_cases()] if case.name == case_name)


# LyCORIS


LYCORIS_OPTIONS: dict[str, dict[str, Any]] = {
    "3 stages, limited and rescaled": {"lora_dim": 2, "constraint": 0.05, "rescaled": True},
    "3 stages": {"lora_dim": 2},
    "3 stages, limited": {"lora_dim": 2, "constraint": 0.05},
    "2 stages": {"lora_dim": 4},
    "2 stages, rescaled": {"lora_dim": 4, "rescaled": True},
    "1 stage": {"lora_dim": 8},
}


@pytest.mark.parametrize(("case", "options"), covering(SINGLE, LYCORIS_OPTIONS))
def test_it_equals_the_forward_of_lycoris(case: LayerCase, options: dict[str, Any]) -> None:
    effect, file = of_lycoris(lycoris.boft.ButterflyOFTModule, case, **options)
    adapter = read(file)
    assert isinstance(adapter, Boft)
    size = options["lora_dim"]
    assert adapter.oft_blocks.shape == ({2: 3, 4: 2, 8: 1}[size], 8 // size, size, size)
    require_effect(case, adapter, effect)


def test_the_number_of_axes_tells_it_from_oft() -> None:
    assert isinstance(read({"x.oft_blocks": random(3, 4, 2, 2)}), Boft)
    assert isinstance(read({"x.oft_blocks": random(4, 2, 2)}), DiagOft)


def test_lycoris_loads_what_we_start_with() -> None:
    case = named("conv2d 3x5")
    start = Boft.initial(case.layer, InitialConfig(rank=4, rescaled=True), torch.Generator())
    assert start.oft_blocks.shape == (2, 2, 4, 4)
    assert start.rescale is not None
    with torch.no_grad():
        made = lycoris.boft.ButterflyOFTModule.make_module_from_state_dict(
            "x", case.module, start.oft_blocks, start.rescale, torch.tensor(start.alpha)
        )
    assert made.oft_blocks.shape == start.oft_blocks.shape
    assert made.rescale.shape == start.rescale.shape


# PEFT


def config_of(size: int) -> peft.BOFTConfig:
    return peft.BOFTConfig(target_modules=["layer"], boft_block_size=size)


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT as it is without its CUDA extension, which it would compile now."""
    monkeypatch.setattr(peft.tuners.boft.layer, "get_fbd_cuda", lambda: None)


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("name", ["linear", "linear, no bias"])
def test_it_equals_the_forward_of_peft_on_a_linear_layer(name: str, size: int) -> None:
    case = named(name).to(torch.float32)
    effect, tensors, written = of_peft(config_of(size), case)
    adapter = read(tensors, config=written)
    assert isinstance(adapter, PeftBoft)
    assert adapter.boft_s.shape == (8, 1)
    require_effect(case, adapter, effect)


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("name", ["conv2d 1x1", "conv2d, stride"])
def test_it_equals_the_merge_of_peft_on_a_convolution(name: str) -> None:
    case = named(name).to(torch.float32)
    model, tensors, written = given_to_peft(case.to(torch.float32).module, config_of(3))
    adapter = read(tensors, config=written)
    assert isinstance(adapter, PeftBoft)
    assert adapter.boft_s.shape == (1, 8)
    merged = model.merge_and_unload().layer
    require_effect(case, adapter, weight_effect(case, merged.weight.detach()))


def peft_matrix(blocks: Tensor) -> Tensor:
    """The product of stages by PEFT's own permutations and Cayley transform, which need no CUDA."""
    stages, count, size, _ = blocks.shape
    total = torch.eye(count * size, dtype=blocks.dtype)
    for stage in range(stages):
        order = peft.tuners.boft.layer.BOFTLayer.block_butterfly_perm(
            None, count * size, count // 2**stage, size // 2, stages - 1
        )
        permutation = peft.tuners.boft.layer.BOFTLayer.perm2mat(None, order).to(blocks.dtype)
        diagonal = torch.block_diag(
            *peft.tuners.boft.layer.BOFTLayer.cayley_batch(None, blocks[stage].float()).double()
        )
        total = permutation @ diagonal @ permutation.T @ total
    return total


@pytest.mark.parametrize("name", ["linear, 12 inputs", "conv2d 1x1, 2 groups", "conv2d, 12 inputs"])
@pytest.mark.parametrize("size", [2, 6])
def test_stages_follow_pefts_permutations(name: str, size: int) -> None:
    case = named(name).to(torch.float32)
    columns = case.weight[0].numel()
    stages = 2 if columns // size % 4 else 3
    blocks, lengths = random(stages, columns // size, size, size), random(8, 1)
    turned = case.weight.flatten(1).double() @ peft_matrix(blocks).T * lengths
    adapter = read({"x.boft_R": blocks.float(), "x.boft_s": lengths.float()})
    expected = weight_effect(case, turned.reshape(case.weight.shape))
    require_effect(case, adapter, expected)


def test_names_in_memory_are_known_too() -> None:
    blocks, lengths = random(1, 2, 3, 3), random(8, 1)
    adapter = read({"x.boft_R.default": blocks, "x.boft_s.default": lengths})
    assert isinstance(adapter, PeftBoft)


def test_its_header_says_nothing_that_changes_it() -> None:
    header = {"lora_adapter_metadata": json.dumps({"x.peft_type": "BOFT"})}
    file = {"x.boft_R": random(1, 2, 3, 3), "x.boft_s": random(8, 1)}
    case = named("linear")
    assert torch.equal(change(case, read(file, header)), change(case, read(file)))


# The matrices and their limits


@pytest.mark.parametrize("chunk", [1, 2])
def test_the_product_of_all_stages_is_orthogonal_and_turns_back(chunk: int) -> None:
    turns = cayley(skew_of(random(3, 4, 4, 4)))
    identity = torch.eye(16, dtype=torch.float64)
    there = identity + butterfly(turns, identity, 0, chunk=chunk, back=False)
    back = identity + butterfly(turns, identity, 0, chunk=chunk, back=True)
    torch.testing.assert_close(there @ there.T, identity)
    torch.testing.assert_close(back, there.T)
    assert (there != 0).all()


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (Boft(random(2, 2, 2, 2)), "2 blocks of 2 rotate 4 outputs, the weight has 8"),
        (Boft(random(4, 4, 2, 2)), "4 blocks of 2 cannot be mixed in 4 stages"),
        (Boft(random(0, 4, 2, 2)), "4 blocks of 2 cannot be mixed in 0 stages"),
        (PeftBoft(random(1, 2, 2, 2), random(8, 1)), "rotate 4 inputs, the weight has 6"),
        (PeftBoft(random(2, 2, 3, 3), random(8, 1)), "2 blocks of 3 cannot be mixed in 2 stages"),
        (PeftBoft(random(1, 2, 3, 3), random(7, 1)), "7 rows are stretched, the weight has 8"),
    ],
)
def test_stages_that_do_not_fit_are_named(adapter: Adapter, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        adapter.delta_weight(named("linear").weight)


@pytest.mark.parametrize(
    ("outputs", "rank", "words"),
    [(320, 8, "choose a rank of 10 or more"), (1280, 4, "rank of 10 or more"), (9, 8, "it is odd")],
)
def test_a_start_without_a_power_of_two_says_what_to_do(
    outputs: int, rank: int, words: str
) -> None:
    layer = Layer("linear", (outputs, 6))
    with pytest.raises(ShapeError, match=words):
        Boft.initial(layer, InitialConfig(rank=rank), torch.Generator())


def test_a_start_takes_the_largest_blocks_up_to_the_rank() -> None:
    start = Boft.initial(Layer("linear", (1280, 6)), InitialConfig(rank=16), torch.Generator())
    assert start.oft_blocks.shape == (8, 128, 10, 10)
