"""What is extracted of two models makes one of the other again, method by method."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapter_cases import random
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.ia3 import Ia3
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.editing.extraction import (
    Extracted,
    Extraction,
    Method,
    extracted,
    extracted_parameter,
)
from anyadapter.algorithms.editing.size import Size
from anyadapter.algorithms.errors import EditingError
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.formats.write import to_tensors

MATRIX, POINT, KERNEL, VIDEO = (48, 40), (48, 40, 1, 1), (24, 20, 3, 5), (12, 10, 3, 3, 3)
SHAPES = [MATRIX, POINT, KERNEL, VIDEO]
EVERY_RANK = Extraction(Size(rank=4096))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def base_of(shape: tuple[int, ...]) -> Tensor:
    return (random(*shape) / math.sqrt(math.prod(shape[1:]))).float()


def some(shape: tuple[int, ...], scale: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shape, generator=generator) * scale


def applied(found: Extracted, base: Tensor) -> Tensor:
    """The base with the changes of all adapters, by the formulas of the methods."""
    changes = [adapter.delta_weight(base) for adapter in found.adapters]
    return base + sum(change for change in changes if change is not None)


def lack(found: Extracted, base: Tensor, tuned: Tensor) -> float:
    return float((applied(found, base).double() - tuned.double()).norm())


def with_adapter(adapter: Adapter, base: Tensor) -> Tensor:
    change = adapter.delta_weight(base)
    assert change is not None
    return base + change


@each_shape
@pytest.mark.parametrize("method", ["LoRA", "DoRA", "full"])
def test_with_all_ranks_the_tuned_weight_is_there_again(
    shape: tuple[int, ...], method: Method
) -> None:
    base = base_of(shape)
    tuned = base + some(shape, 0.02)
    found = extracted(base, tuned, replace(EVERY_RANK, method=method), "layer")
    assert_close(applied(found, base), tuned, rtol=0, atol=2e-6)
    assert found.error <= 1e-5 * found.norm
    assert found.norm == pytest.approx(float((tuned - base).norm()), rel=1e-5)


@each_shape
@pytest.mark.parametrize("method", ["LoRA", "DoRA", "LoKr", "(IA)^3"])
@pytest.mark.parametrize("size", [Size(rank=3), Size(energy=0.8), Size(error=0.3)], ids=str)
def test_the_error_is_what_lacks(shape: tuple[int, ...], method: Method, size: Size) -> None:
    base = base_of(shape)
    tuned = base * 1.1 + some(shape, 0.1)
    found = extracted(base, tuned, Extraction(size, method), "layer")
    assert 0 < found.error < found.norm
    assert found.error == pytest.approx(lack(found, base, tuned), rel=1e-3)


@each_shape
def test_a_lora_is_the_best_copy_and_has_the_shapes_of_other_tools(
    shape: tuple[int, ...],
) -> None:
    base = base_of(shape)
    tuned = base + some(shape)
    found = extracted(base, tuned, Extraction(Size(rank=5)), "layer")
    (lora,) = found.adapters
    assert isinstance(lora, Lora)
    assert lora.up.shape == (shape[0], 5, *[1] * len(shape[2:]))
    assert lora.down.shape == (5, *shape[1:])
    assert lora.alpha == 5
    values = torch.linalg.svdvals((tuned - base).double().flatten(1))
    assert found.error == pytest.approx(float(values[5:].norm()), rel=1e-4)


def test_kernels_have_a_size_of_their_own_and_pointwise_layers_that_of_matrices() -> None:
    wish = Extraction(Size(rank=7, kernel_rank=2))
    ranks = {}
    for shape in SHAPES:
        base = base_of(shape)
        (lora,) = extracted(base, base + some(shape), wish, "layer").adapters
        ranks[shape] = lora.rank
    assert ranks == {MATRIX: 7, POINT: 7, KERNEL: 2, VIDEO: 2}


@each_shape
def test_a_baked_lora_is_found_again(shape: tuple[int, ...]) -> None:
    base = base_of(shape)
    known = Lora(some((shape[0], 4, *[1] * len(shape[2:]))), some((4, *shape[1:])) * 3, 2.0)
    tuned = with_adapter(known, base)
    found = extracted(base, tuned, Extraction(Size(rank=4)), "layer")
    assert found.error <= 1e-5 * found.norm
    assert_close(applied(found, base), tuned, rtol=0, atol=1e-6)


@each_shape
def test_a_baked_dora_is_found_again(shape: tuple[int, ...]) -> None:
    base = base_of(shape)
    inner = Lora(some((shape[0], 2, *[1] * len(shape[2:]))), some((2, *shape[1:])), 2.0)
    lengths = base.flatten(1).norm(dim=1) * (1 + some((shape[0],), 0.2))
    known = Dora(inner, dora_scale=lengths.reshape(-1, *[1] * (len(shape) - 1)))
    tuned = with_adapter(known, base)
    found = extracted(base, tuned, Extraction(Size(rank=2), "DoRA"), "layer")
    (dora,) = found.adapters
    assert isinstance(dora, Dora)
    assert found.error <= 2e-4 * found.norm
    plain = extracted(base, tuned, Extraction(Size(rank=2)), "layer")
    assert plain.error > 0.3 * plain.norm


def test_a_dora_of_lengths_alone_needs_no_rank() -> None:
    base = base_of(MATRIX)
    tuned = base * (1 + some((MATRIX[0], 1), 0.3))
    found = extracted(base, tuned, Extraction(Size(rank=1), "DoRA"), "layer")
    assert found.error <= 1e-5 * found.norm


def test_a_dora_of_rows_without_length_is_finite() -> None:
    base, tuned = base_of(MATRIX), base_of(MATRIX) + some(MATRIX)
    base[3] = tuned[3] = tuned[5] = base[7] = 0
    found = extracted(base, tuned, Extraction(Size(rank=40), "DoRA"), "layer")
    assert math.isfinite(found.error)
    assert found.error == pytest.approx(lack(found, base, tuned), rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
@each_shape
def test_a_baked_ia3_is_found_again_on_its_side(shape: tuple[int, ...], axis: int) -> None:
    base = base_of(shape)
    gains = some((shape[axis],), 0.2)
    around = [-1 if one == axis else 1 for one in range(len(shape))]
    tuned = base * (1 + gains.reshape(around))
    found = extracted(base, tuned, Extraction(Size(rank=1), "(IA)^3"), "layer")
    (adapter,) = found.adapters
    assert isinstance(adapter, Ia3)
    assert adapter.on_input == axis
    assert_close(adapter.weight.flatten(), gains, rtol=0, atol=1e-6)
    assert found.error <= 1e-5 * found.norm


@pytest.mark.parametrize(
    ("shape", "factor", "left"),
    [
        *((MATRIX, -1, (6, 5)), (MATRIX, 4, (4, 4)), (MATRIX, 3, (3, 2)), (POINT, 8, (6, 5))),
        *((KERNEL, -1, (4, 4)), (VIDEO, 2, (2, 2))),
    ],
)
def test_a_baked_lokr_is_found_again_in_the_sizes_of_lycoris(
    shape: tuple[int, ...], factor: int, left: tuple[int, int]
) -> None:
    base = base_of(shape)
    right = (shape[0] // left[0], shape[1] // left[1], *shape[2:])
    known = Lokr(w1=some(left), w2=some(right, 0.3))
    tuned = with_adapter(known, base)
    found = extracted(base, tuned, Extraction(Size(rank=1), "LoKr", factor=factor), "layer")
    (lokr,) = found.adapters
    assert isinstance(lokr, Lokr)
    assert lokr.w1 is not None
    assert lokr.w1.shape == left
    assert found.error <= 1e-5 * found.norm


@pytest.mark.parametrize("method", ["LoRA", "DoRA", "LoKr", "(IA)^3", "full"])
def test_norms_and_biases_are_kept_as_they_are(method: Method) -> None:
    wish = Extraction(Size(rank=48), method)
    base, bias = base_of((9,)), base_of((9,)) * 2
    moved = bias + some((9,))
    found = extracted(base, base * 1.5, wish, "norm", bias, moved)
    (norm,) = found.adapters
    assert isinstance(norm, Norm)
    assert norm.w_norm is not None
    assert norm.b_norm is not None
    assert_close(norm.w_norm, base * 0.5)
    assert_close(bias + norm.b_norm, moved)
    assert found.error == 0
    assert found.norm == pytest.approx(math.hypot(base.norm() * 0.5, (moved - bias).norm()))

    weight = base_of((9, 8))
    found = extracted(weight, weight * 1.5, wish, "layer", bias, moved)
    last = found.adapters[-1]
    assert isinstance(last, Diff)
    assert last.diff_b is not None
    assert_close(bias + last.diff_b, moved)
    assert method == "LoKr" or found.error <= 1e-5 * found.norm
    (alone,) = extracted(weight, weight.clone(), wish, "layer", bias, moved).adapters
    assert isinstance(alone, Diff)
    assert alone.diff is None


def test_a_norm_that_is_only_shifted_has_a_scale_of_nothing() -> None:
    """Other loaders left the shift out where there was no scale."""
    base, bias = base_of((9,)), base_of((9,)) * 2
    (norm,) = extracted(base, base.clone(), EVERY_RANK, "norm", bias, bias * 2).adapters
    assert isinstance(norm, Norm)
    assert norm.w_norm is not None
    assert not norm.w_norm.any()
    (norm,) = extracted(base, base * 2, EVERY_RANK, "norm", bias, bias.clone()).adapters
    assert isinstance(norm, Norm)
    assert norm.b_norm is None


def test_norms_and_biases_can_be_left_out() -> None:
    wish = Extraction(Size(rank=2), norms_and_biases=False)
    base, bias = base_of((9,)), base_of((9,)) * 2
    assert not extracted(base, base * 2, wish, "norm", bias, bias * 2).adapters
    weight = base_of((9, 8))
    (lora,) = extracted(weight, weight * 2, wish, "layer", bias, bias * 2).adapters
    assert isinstance(lora, Lora)
    assert not extracted_parameter(base, base * 2, wish, "table").adapters


def test_a_table_is_kept_as_it_is() -> None:
    base = base_of((9, 8))
    found = extracted_parameter(base, base * 2, Extraction(Size(rank=2)), "table")
    (diff,) = found.adapters
    assert isinstance(diff, Diff)
    assert diff.diff is not None
    assert_close(diff.diff, base)
    assert found.error == 0


def test_without_a_difference_there_is_nothing() -> None:
    base, bias = base_of(MATRIX), base_of((48,))
    found = extracted(base, base.clone(), EVERY_RANK, "layer", bias, bias.clone())
    assert found.adapters == ()
    assert found.norm == found.error == 0


def test_what_no_checkpoint_has_is_no_difference_whatever_it_holds() -> None:
    """A weight that the host had never filled was not finite, and stopped the whole run."""
    base = torch.full(MATRIX, math.nan)
    assert extracted(base, base.clone(), EVERY_RANK, "layer").adapters == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_was_only_rounded_is_no_difference(dtype: torch.dtype) -> None:
    """Models are kept in several precisions: all their layers seemed to be trained."""
    base = base_of(MATRIX)
    rounded = base.to(dtype).float()
    for one, other in ((base, rounded), (rounded, base)):
        found = extracted(one, other, EVERY_RANK, "layer", unlike=True)
        assert found.adapters == ()
        assert found.norm == 0
    assert extracted(base, rounded + 1e-6, EVERY_RANK, "layer", unlike=True).adapters


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_change_smaller_than_a_step_counts_where_both_are_kept_alike(dtype: torch.dtype) -> None:
    """Patches on a model in half precision may change each number by less than half a step."""
    base = base_of((48,)).to(dtype).float()
    tuned = base * (1 + 1e-4)
    found = extracted(base, tuned, EVERY_RANK, "layer")
    assert lack(found, base, tuned) <= 1e-6 * float((tuned - base).norm())


@pytest.mark.parametrize("rows", [24, 48])
def test_rows_of_zeros_can_be_trained_by_dora(rows: int) -> None:
    base = base_of(MATRIX)
    base[:rows] = 0
    tuned = base + some(MATRIX)
    found = extracted(base, tuned, Extraction(Size(rank=48), "DoRA"), "layer")
    assert lack(found, base, tuned) <= 1e-4 * float((tuned - base).norm())


def test_less_than_the_minimum_is_left_out_and_counts_as_lost() -> None:
    base = base_of(MATRIX)
    tuned = base * 1.01
    wish = Extraction(Size(rank=48), minimum=0.0101)
    found = extracted(base, tuned, wish, "layer", base[:, 0], base[:, 0] * 2)
    assert [type(adapter) for adapter in found.adapters] == [Diff]
    assert found.error == pytest.approx(float((tuned - base).norm()), rel=1e-5)
    assert found.norm > found.error
    assert len(extracted(base, tuned, replace(wish, minimum=0.0099), "layer").adapters) == 1


@pytest.mark.parametrize("method", ["LoRA", "DoRA", "LoKr", "(IA)^3", "full"])
def test_numbers_that_are_not_finite_are_refused_with_their_layer(method: Method) -> None:
    base = base_of(MATRIX)
    with pytest.raises(EditingError, match="the layer"):
        extracted(base, base * math.nan, Extraction(Size(rank=2), method), "the layer")


@pytest.mark.parametrize("wrong", [{"factor": 0}, {"minimum": -0.1}, {"minimum": 1.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(EditingError):
        replace(EVERY_RANK, **wrong)


@pytest.mark.parametrize("method", ["LoRA", "DoRA", "LoKr", "(IA)^3", "full"])
def test_what_is_extracted_is_the_same_after_a_file(method: Method) -> None:
    adapters: dict[str, tuple[Adapter, ...]] = {}
    weights: dict[str, Tensor] = {}
    for number, shape in enumerate(SHAPES):
        base, bias = base_of(shape), base_of((shape[0],))
        wish = Extraction(Size(rank=3), method)
        found = extracted(base, base * 1.2 + some(shape), wish, "layer", bias, bias * 2)
        adapters[f"lora_unet_{number}"], weights[f"lora_unet_{number}"] = found.adapters, base
    tensors, strings = to_tensors(AdapterSet("", adapters, AdapterMetadata({})))
    read = parse_tensors(tensors, strings, "made.safetensors")
    assert not read.unclaimed
    for module, several in read.as_trained().adapters.items():
        base = weights[module]
        expected = applied(Extracted(adapters[module]), base)
        assert_close(applied(Extracted(several), base), expected)
        shifts = [one.delta_bias(base[:, 0].flatten()) for one in several]
        assert any(shift is not None for shift in shifts)
