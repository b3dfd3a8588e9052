"""Starts of training: their forms, sizes and numbers, and what has no start."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.base import InitialConfig
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.dora import Axis, Dora
from anyadapter.algorithms.adapters.glora import Glora
from anyadapter.algorithms.adapters.ia3 import Ia3
from anyadapter.algorithms.adapters.loha import Loha, LohaTucker
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora, LoraTucker
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.adapters.oft import DiagOft, SplitOft
from anyadapter.algorithms.errors import ShapeError, TrainingError, UnsupportedLayerError
from anyadapter.algorithms.layers import Layer
from anyadapter.algorithms.strength import Placed
from layer_cases import LayerCase, layer_of, norm_cases, product_cases
from oracles import lycoris

LINEAR = nn.Linear(24, 40).requires_grad_(False)
KERNEL = nn.Conv2d(24, 40, 3, padding=1).requires_grad_(False)
POINT = nn.Conv2d(24, 40, 1).requires_grad_(False)
MODULES = (LINEAR, POINT, KERNEL)
of_each = pytest.mark.parametrize("module", MODULES, ids=["linear", "conv2d 1x1", "conv2d 3x3"])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def start_of(method: type[Adapter], module: nn.Module, **config: Any) -> Adapter:
    return method.initial(layer_of(module), InitialConfig(**config), generator())


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def deviation(tensor: Tensor) -> float:
    return float(tensor.std())


# LoKr


NAMES = {"unbalanced": "unbalanced_factorization"}
SWITCHES = ("full_matrix", "decompose_both", "unbalanced", "use_tucker")
SETTINGS = [
    dict(zip(SWITCHES, switches, strict=True))
    for switches in itertools.product((False, True), repeat=len(SWITCHES))
]


@pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda one: "+".join(name for name in one if one[name]) or "none"
)
@of_each
def test_lokr_has_the_forms_and_sizes_of_lycoris(
    module: nn.Module, settings: dict[str, bool]
) -> None:
    theirs = {NAMES.get(name, name): value for name, value in settings.items()}
    for rank, factor in itertools.product((1, 2, 3, 40), (-1, 2, 4)):
        start = start_of(Lokr, module, rank=rank, alpha=0.5, factor=factor, **settings)
        made = lycoris.lokr.LokrModule(
            "x", module, lora_dim=rank, alpha=0.5, factor=factor, **theirs
        )
        state = {name.removeprefix("lokr_"): value for name, value in made.state_dict().items()}
        assert start.alpha == float(state.pop("alpha"))
        assert shapes(start.tensors()) == shapes(state)
        zeros = {name for name, value in start.tensors().items() if not value.any()}
        assert zeros == {name for name, value in state.items() if not value.any()}


@pytest.mark.parametrize(
    ("width", "factor", "rank"),
    [(320, 8, 20), (640, 8, 40), (1280, 8, 80), (3072, 8, 192), (1280, -1, 20)],
)
def test_w2_of_lokr_is_whole_from_half_of_its_longer_side(
    width: int, factor: int, rank: int
) -> None:
    layer = Layer("linear", (width, width))
    for wanted, whole in ((rank - 1, False), (rank, True), (10_000, True)):
        start = Lokr.initial(layer, InitialConfig(rank=wanted, factor=factor), generator())
        assert (start.w2 is not None) is whole


def test_lokr_starts_uniform_within_the_root_of_the_inputs() -> None:
    layer = Layer("conv", (1600, 1600, 3, 3))
    config = InitialConfig(rank=10, decompose_both=True, use_tucker=True)
    start = Lokr.initial(layer, config, generator()).tensors()
    for name, fan_in in {"w1_a": 10, "w1_b": 40, "w2_a": 40, "t2": 90}.items():
        assert 0.9 * fan_in**-0.5 < float(start[name].abs().max()) <= fan_in**-0.5


# LoHa


@pytest.mark.parametrize(("rank", "expected"), [(4, 0.2), (16, 0.4), (32, 0.4), (128, 0.4)])
def test_the_first_half_of_loha_grows_up_to_rank_16(rank: int, expected: float) -> None:
    # LyCORIS: 0.561 at rank 32 and 1.13 at 128 (training.md, 1.7).
    start = Loha.initial(Layer("linear", (640, 320)), InitialConfig(rank=rank), generator())
    assert deviation(start.w1_a @ start.w1_b) == pytest.approx(expected, rel=0.05)
    assert deviation(start.w2_b) == pytest.approx(1.0, rel=0.05)
    assert not start.w2_a.any()


@pytest.mark.parametrize(("rank", "expected"), [(4, 0.04), (16, 0.16), (64, 0.16)])
def test_so_does_that_of_its_tucker_form(rank: int, expected: float) -> None:
    layer = Layer("conv", (320, 320, 3, 3))
    start = LohaTucker.initial(layer, InitialConfig(rank=rank), generator())
    half = torch.einsum("mo, mrhw, ri -> oihw", start.w1_a, start.t1, start.w1_b)
    assert deviation(half) == pytest.approx(expected, rel=0.15)
    assert not start.w2_a.any()


# The other additive methods


@pytest.mark.parametrize("on_input", [False, True], ids=["outputs", "inputs"])
@of_each
def test_ia3_has_the_shape_of_lycoris(module: nn.Module, on_input: bool) -> None:
    start = start_of(Ia3, module, on_input=on_input)
    made = lycoris.ia3.IA3Module("x", module, train_on_input=on_input)
    assert isinstance(start, Ia3)
    assert start.weight.shape == made.weight.shape
    assert start.on_input == float(made.on_input)
    assert not start.weight.any()


def test_a_bias_is_trained_where_there_is_one() -> None:
    for case in product_cases():
        start = Diff.initial(case.layer, InitialConfig(), generator())
        assert (start.diff_b is None) is (case.bias is None)
    for case in norm_cases():
        start = Norm.initial(case.layer, InitialConfig(), generator())
        assert (start.b_norm is None) is (case.bias is None)


# kohya's OFT


@pytest.mark.parametrize("count", [4, 10])
def test_the_rank_of_kohyas_oft_is_the_number_of_its_blocks(count: int) -> None:
    config, layer = InitialConfig(rank=count, constraint=0.001), layer_of(LINEAR)
    whole = DiagOft.initial_of_kohya(layer, config)
    parts = SplitOft.initial(layer, config, generator())
    assert whole.maker == "kohya"
    assert whole.oft_blocks.shape == parts.oft_blocks_0.shape == (count, 40 // count, 40 // count)
    assert whole.alpha == parts.alpha == 0.001


def test_without_a_constraint_kohyas_oft_can_turn() -> None:
    # Its alpha of 0 is no turn at all.
    free = DiagOft.initial_of_kohya(layer_of(LINEAR), InitialConfig(rank=4))
    assert (free.alpha, free.limit) == (None, None)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (6, r"6 does not divide 40: choose one that does, near it 2, 4, 5, 8"),
        (40, "cannot turn: lower the rank to 20 or less"),
    ],
)
def test_blocks_that_do_not_divide_the_outputs_are_refused(count: int, words: str) -> None:
    layer, config = layer_of(LINEAR), InitialConfig(rank=count)
    with pytest.raises(ShapeError, match=words):
        DiagOft.initial_of_kohya(layer, config)
    with pytest.raises(ShapeError, match=words):
        SplitOft.initial(layer, config, generator())


# DoRA


INNER: dict[str, tuple[type[Adapter], dict[str, Any]]] = {
    "LoRA": (Lora, {}),
    "LoRA tucker": (LoraTucker, {}),
    "LoHa": (Loha, {}),
    "LoHa tucker": (LohaTucker, {}),
    "LoKr": (Lokr, {}),
    "LoKr of factors": (Lokr, {"rank": 1, "decompose_both": True}),
    "full": (Diff, {}),
}
KERNELS = [case for case in product_cases() if case.name in ("conv2d 3x5", "conv2d, 2 groups")]
FLAT = [case for case in product_cases() if case.name in ("linear", "conv2d 1x1")]
AROUND = [
    pytest.param(case, method, config, id=f"{name}, {case.name}")
    for name, (method, config) in INNER.items()
    for case in (KERNELS if "tucker" in name else KERNELS + FLAT)
]


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
@pytest.mark.parametrize(("case", "method", "config"), AROUND)
def test_dora_around_any_additive_method_changes_nothing_yet(
    case: LayerCase, method: type[Adapter], config: dict[str, Any], axis: Axis
) -> None:
    inner = method.initial(case.layer, InitialConfig(**({"rank": 2} | config)), generator())
    start = Dora.around(inner.to("cpu", torch.float64), case.layer, axis)
    assert start.axis(case.layer.weight_shape) == axis
    assert torch.equal(case.hooked([Placed(start, 1.0)]), case.module(case.x))


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
@of_each
def test_its_lengths_are_those_of_lycoris(module: nn.Module, axis: Axis) -> None:
    layer = layer_of(module)
    start = Dora.around(Lora.initial(layer, InitialConfig(), generator()), layer, axis)
    on_outputs = axis == "outputs"
    made = lycoris.locon.LoConModule(
        "x", module, weight_decompose=True, wd_on_out=on_outputs
    ).dora_scale
    assert start.dora_scale is not None
    assert start.dora_scale.shape == made.shape
    torch.testing.assert_close(start.dora_scale.float(), made.detach())
    assert not start.detached_norm
    assert Dora.around(start.inner, layer, axis, detached_norm=True).detached_norm


def test_dora_is_refused_where_it_has_no_meaning() -> None:
    layer, config = layer_of(LINEAR), InitialConfig(rank=2)
    with pytest.raises(TrainingError, match=r"that of GLoRA does\. Switch DoRA off, or choose"):
        Dora.around(Glora.initial(layer, config, generator()), layer)
    norm = norm_cases()[0].layer
    with pytest.raises(ShapeError, match=r"DoRA needs a matrix or a kernel, the weight is \[8\]"):
        Dora.around(Diff.initial(norm, config, generator()), norm)
    with pytest.raises(UnsupportedLayerError, match="does not give"):
        Dora.around(Lora.initial(layer, config, generator()), Layer("linear", (40, 24)))


@pytest.mark.parametrize(
    ("method", "config", "words"),
    [
        (Lokr, {}, r"LoKr needs a matrix or a kernel, the weight is \[8\]"),
        (Ia3, {"on_input": True}, r"\(IA\)\^3 scales inputs of a matrix or a kernel"),
    ],
)
def test_a_norm_has_no_inputs_to_adapt(
    method: type[Adapter], config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ShapeError, match=words):
        method.initial(norm_cases()[0].layer, InitialConfig(**config), generator())


@of_each
@pytest.mark.parametrize("method", [Lora, Loha, Lokr, Glora])
def test_a_start_follows_its_generator(method: type[Adapter], module: nn.Module) -> None:
    one, same = (start_of(method, module).tensors() for _ in range(2))
    other = method.initial(layer_of(module), InitialConfig(), generator().manual_seed(1)).tensors()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
