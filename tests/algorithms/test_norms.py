"""The size of a change, told without building it, equals that of the change that is built."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapter_cases import ADAPTER_CASES, AdapterCase, random
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.boft import Boft
from anyadapter.algorithms.adapters.loha import Loha
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.oft import DiagOft
from anyadapter.algorithms.analysis.norms import change_norm
from layer_cases import LayerCase

PAIRS = [
    pytest.param(adapter_case, layer_case, id=f"{adapter_case.name} on {layer_case.name}")
    for adapter_case in ADAPTER_CASES
    for layer_case in adapter_case.layers()
]
each_pair = pytest.mark.parametrize(("adapter_case", "layer_case"), PAIRS)
SHAPE_NEEDED = {"VeRA", "PVeRA", "RandLoRA", "MiSS", "FourierFT", "WaveFT", "SuperTuning"}
"""Methods whose tensors do not tell the shape of the weight, SuperTuning's without its LoRA."""


def built(adapter: Adapter, weight: Tensor, bias: Tensor | None) -> float:
    change, shift = adapter.delta_weight(weight), adapter.delta_bias(bias)
    parts = [part for part in (change, shift) if part is not None]
    return math.hypot(*(float(part.double().norm()) for part in parts))


def random_weight(layer_case: LayerCase) -> Tensor:
    return random(*layer_case.layer.weight_shape) * 2 + 1


@each_pair
def test_with_a_weight_the_norm_is_that_of_the_change(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    adapter, weight = adapter_case.on(layer_case), random_weight(layer_case)
    expected = built(adapter, weight, layer_case.bias)
    assert expected > 0
    norm = change_norm(adapter, weight, layer_case.bias)
    assert norm == pytest.approx(expected, rel=1e-6)


@each_pair
def test_without_a_weight_the_norm_of_what_reads_none_is_the_same(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    adapter, weight = adapter_case.on(layer_case), random_weight(layer_case)
    if adapter.needs_weight:
        return
    expected = pytest.approx(built(adapter, weight, None), rel=1e-6)
    norm = change_norm(adapter)
    assert norm == expected or (norm is None and adapter.name in SHAPE_NEEDED)
    shape_only = torch.empty(layer_case.layer.weight_shape, device="meta")
    assert change_norm(adapter, shape_only) == expected


IDENTITIES = {
    "OFT": ("oft", "oft, limit and rescale", "oft in parts", "boft", "boft, limit and rescale"),
    "of inputs": ("oft v2", "oft v2, exact", "oft of onetrainer", "hra", "hra, orthogonal"),
}


@pytest.mark.parametrize("name", IDENTITIES["OFT"])
def test_a_rotation_of_outputs_is_as_large_as_on_the_identity(name: str) -> None:
    (adapter,) = (case.on(case.layers()[0]) for case in ADAPTER_CASES if case.name == name)
    expected = built(adapter, torch.eye(8, dtype=torch.float64), None)
    assert change_norm(adapter) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", IDENTITIES["of inputs"])
def test_a_rotation_of_inputs_is_as_large_as_on_the_identity(name: str) -> None:
    (adapter,) = (case.on(case.layers()[0]) for case in ADAPTER_CASES if case.name == name)
    expected = built(adapter, torch.eye(6, dtype=torch.float64), None)
    assert change_norm(adapter) == pytest.approx(expected, rel=1e-5)


RELATIVE = {
    case.name: case
    for case in ADAPTER_CASES
    if case.on(case.layers()[0]).relative_norm() is not None
}


@pytest.mark.parametrize("name", RELATIVE)
def test_an_estimate_is_of_the_size_of_the_change_of_rows_of_length_one(name: str) -> None:
    case = RELATIVE[name]
    layer_case = next(one for one in case.layers() if one.layer.kind != "layer_norm")
    adapter = case.on(layer_case)
    weight = random_weight(layer_case)
    weight = weight / weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    estimate = change_norm(adapter)
    assert estimate is not None
    if "dora" in name and "oft" not in name:  # the lengths that it gives the rows are not known
        inner = adapter.inner
        assert estimate == pytest.approx(change_norm(inner), rel=1e-6)
    else:
        assert 0.5 < estimate / built(adapter, weight, None) < 2


def test_a_large_rotation_is_measured_within_a_few_percent() -> None:
    size, count = 8, 64
    blocks = random(count, size, size).float() * 0.1
    length = count * size
    stages = random(4, count, size, size).float() * 0.1
    for adapter in (DiagOft(blocks), Boft(stages)):
        expected = built(adapter, torch.eye(length), None)
        assert change_norm(adapter) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("rank", [1, 3, 8, 40])
@pytest.mark.parametrize("shape", [(96, 60), (60, 700)])
def test_both_ways_of_a_loha_give_its_norm(rank: int, shape: tuple[int, int]) -> None:
    rows, columns = shape
    adapter = Loha(
        random(rows, rank), random(rank, columns), random(rows, rank), random(rank, columns) + 1
    )
    expected = built(adapter, torch.empty(shape, device="meta"), None)
    assert change_norm(adapter) == pytest.approx(expected, rel=1e-6)
    pairs = adapter.form().over_pairs()
    assert_close(pairs.left @ pairs.right, adapter.delta_weight(torch.empty(shape, device="meta")))


def test_factors_that_nearly_cancel_keep_their_digits() -> None:
    left, right = torch.ones(50, 2), torch.ones(2, 40)
    right[1] = -1 + 1e-5
    adapter = Lora(left * 100, right)
    expected = built(adapter, torch.empty(50, 40, device="meta"), None)
    assert change_norm(adapter) == pytest.approx(expected, rel=1e-3)


def test_the_numbers_of_a_file_in_half_precision_do_not_overflow() -> None:
    adapter = Lora(torch.full((64, 4), 300.0).half(), torch.full((4, 64), 300.0).half())
    assert change_norm(adapter) == pytest.approx(300**2 * 4 * 64)


def test_what_only_a_weight_tells_is_not_guessed() -> None:
    (case,) = (case for case in ADAPTER_CASES if case.name == "replacement")
    layer_case = case.layers()[0]
    assert change_norm(case.on(layer_case)) is None
    assert change_norm(case.on(layer_case), torch.empty(8, 6, device="meta")) is None
