"""LoHa: against the tools that make it, its two ways of running, and what gives its scale."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adapter_cases import random
from anyadapter.algorithms.adapters.base import Origin
from anyadapter.algorithms.adapters.loha import Loha, LohaTucker, pairs_are_cheaper
from anyadapter.algorithms.errors import MissingTensorError, ShapeError
from layer_cases import LayerCase, layer_of
from oracles import (
    EXACT,
    change,
    covering,
    lycoris,
    of_lycoris,
    of_peft,
    peft,
    read,
    relative_error,
)


def kernel_of(case: LayerCase) -> tuple[int, ...]:
    return case.layer.weight_shape[2:]


LYCORIS_VARIANTS = {
    "rank 2": (2, False),
    "rank 5": (5, False),
    "rank 2, tucker": (2, True),
    "rank 5, tucker": (5, True),
}


@pytest.mark.parametrize(("case", "variant"), covering(EXACT, LYCORIS_VARIANTS))
def test_the_forward_is_that_of_lycoris(case: LayerCase, variant: tuple[int, bool]) -> None:
    rank, tucker = variant
    settings = {"lora_dim": rank, "alpha": 3.0, "use_tucker": tucker}
    expected, saved = of_lycoris(lycoris.loha.LohaModule, case, **settings)
    adapter = read(saved)
    has_core = tucker and any(size > 1 for size in kernel_of(case))
    assert type(adapter) is (LohaTucker if has_core else Loha)
    assert relative_error(change(case, adapter), expected) < 1e-10


@pytest.mark.parametrize("setting", ["rs_lora", "use_scalar"])
def test_settings_of_lycoris_that_it_folds_into_the_file(setting: str) -> None:
    settings = {"lora_dim": 3, "alpha": 2.0, setting: True}
    expected, saved = of_lycoris(lycoris.loha.LohaModule, EXACT[0], **settings)
    assert relative_error(change(EXACT[0], read(saved)), expected) < 1e-6  # alpha is in float32


KNOWN_TO_PEFT = [case for case in EXACT if len(kernel_of(case)) < 3]
PEFT_VARIANTS = {
    "saved": (False, False),
    "in memory": (False, True),
    "effective conv2d": (True, False),
    "effective conv2d in memory": (True, True),
}


@pytest.mark.parametrize(("case", "variant"), covering(KNOWN_TO_PEFT, PEFT_VARIANTS))
def test_the_forward_is_that_of_peft(case: LayerCase, variant: tuple[bool, bool]) -> None:
    effective, in_memory = variant
    config = peft.LoHaConfig(
        r=4, alpha=2, target_modules=["layer"], use_effective_conv2d=effective, init_weights=False
    )
    expected, saved, settings = of_peft(config, case, in_memory=in_memory)
    assert relative_error(change(case, read(saved, config=settings)), expected) < 1e-10


def test_both_ways_of_running_give_the_same() -> None:
    case = EXACT[0]
    factors = [random(*shape) for shape in ((8, 3), (3, 6), (8, 3), (3, 6))]
    adapter = Loha(*factors, alpha=2.0)
    many = case.x.repeat(100, 1, 1)
    assert pairs_are_cheaper(1, 8, 6, 1400)
    assert not pairs_are_cheaper(3, 8, 6, 1400)
    for rank in (1, 3):
        cut = Loha(
            *(factor[:, :rank] if factor.shape[1] == 3 else factor[:rank] for factor in factors)
        )
        wide = LayerCase("many", case.module, case.layer, many)
        expected = many @ cut.delta_weight(case.weight).T
        torch.testing.assert_close(change(wide, cut), expected)
    assert adapter.scale == 2 / 3


@pytest.mark.parametrize(
    ("rank", "positions", "by_pairs"),
    [(8, 4096, True), (12, 4096, True), (13, 4096, False), (16, 4096, False), (16, 1, True)],
)
def test_the_cheaper_way_is_taken(rank: int, positions: int, by_pairs: bool) -> None:
    # On 320 x 320: R squared pairs against (2 R / T + 1) * 160, so up to rank 12 with many tokens.
    assert pairs_are_cheaper(rank, 320, 320, positions) is by_pairs


@pytest.mark.parametrize("rank", [2, 24])
def test_a_call_costs_no_more_than_the_cheaper_way(rank: int) -> None:
    layer = torch.nn.Linear(48, 64).double().requires_grad_(False)
    case = LayerCase("wide", layer, layer_of(layer), random(500, 48))
    shapes = ((64, rank), (rank, 48), (64, rank), (rank, 48))
    adapter = Loha(*(random(*shape) for shape in shapes))
    y = layer(case.x)
    with FlopCounterMode(display=False) as counter:
        adapter.delta_output(case.x, y, case.layer)
    by_pairs = 2 * 500 * rank**2 * (64 + 48)
    by_weight = 2 * (2 * rank + 500) * 64 * 48
    assert counter.get_total_flops() == min(by_pairs, by_weight)


def test_kernels_of_onetrainer_are_flattened() -> None:
    case = next(case for case in EXACT if case.name == "conv2d 3x5")
    factors = [random(8, 4), random(4, 90), random(8, 4) - 0.5, random(4, 90) - 0.5]
    shapes = [(8, 4, 1, 1), (4, 6, 3, 5)] * 2
    names = ("w1_a", "w1_b", "w2_a", "w2_b")
    flat = {f"x.hada_{name}": value for name, value in zip(names, factors, strict=True)}
    kernels = {
        key: value.reshape(shape) for (key, value), shape in zip(flat.items(), shapes, strict=True)
    }
    assert torch.equal(change(case, read(kernels)), change(case, read(flat)))


def test_the_scale_comes_from_the_tensors_else_the_header_else_it_is_assumed() -> None:
    factors = [random(8, 4), random(4, 6), random(8, 4), random(4, 6)]
    said = Origin("peft", alpha=2.0)
    own = Loha(*factors, alpha=8.0).completed(said, corrections=True)
    assert (own.adapter.scale, own.assumed) == (2.0, "")
    theirs = Loha(*factors).completed(said, corrections=True)
    assert (theirs.adapter.scale, theirs.assumed) == (0.5, "")
    nothing = Loha(*factors, alpha=0.0).completed(Origin(), corrections=True)
    assert (nothing.adapter.scale, nothing.assumed) == (1.0, "scale 1")


def test_the_rank_of_the_tucker_form_is_next_to_the_input() -> None:
    adapter = LohaTucker(
        w1_a=random(4, 8), w1_b=random(3, 6), t1=random(4, 3, 3, 5),
        w2_a=random(4, 8), w2_b=random(3, 6), t2=random(4, 3, 3, 5), alpha=6.0,
    )  # fmt: skip
    assert (adapter.rank, adapter.scale) == (3, 2.0)


def test_a_misfit_says_both_sizes() -> None:
    adapter = Loha(random(8, 4), random(4, 6), random(8, 4), random(4, 6))
    with pytest.raises(ShapeError, match=r"changes 8 x 6 numbers, the weight has 8 x 7 \[8, 7\]"):
        adapter.delta_weight(torch.empty(8, 7, device="meta"))


def test_one_core_without_the_other_is_named() -> None:
    tensors = {
        "x.hada_w1_a": random(4, 8), "x.hada_w1_b": random(4, 6), "x.hada_t1": random(4, 4, 3, 5),
        "x.hada_w2_a": random(4, 8), "x.hada_w2_b": random(4, 6),
    }  # fmt: skip
    with pytest.raises(MissingTensorError, match=r"x has hada_t1, but LoHa \(Tucker\) needs"):
        read(tensors)
