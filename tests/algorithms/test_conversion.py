"""What is made of an adapter changes a layer as the adapter did, or as little less as can be."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from lycoris.modules import get_module, make_module
from torch import Tensor, nn
from torch.testing import assert_close

from adapter_cases import ADAPTER_CASES, AdapterCase, random
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.diff import Diff, FullRank
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.loha import Loha
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.adapters.replacement import Replacement
from anyadapter.algorithms.adapters.shira import Shira
from anyadapter.algorithms.editing.conversion import (
    CONVERSION,
    Conversion,
    Converted,
    conversion_report,
    converted,
)
from anyadapter.algorithms.editing.sites import Sited
from anyadapter.algorithms.editing.size import Size
from anyadapter.algorithms.errors import EditingError
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.algorithms.keymap import Target
from ending_steps import EndingSteps
from import_peft import peft
from layer_cases import LayerCase, few, product_cases
from sited_adapters import LAYER, on

EXACT = Conversion(size=Size(error=0.0))
ALIKE = {one.name for one in product_cases()} - {one.name for one in few(product_cases())}
"""Layers that have nothing which a change of the weight could tell from that of another one."""
PAIRS = [
    pytest.param(adapter_case, layer_case, id=f"{adapter_case.name} on {layer_case.name}")
    for adapter_case in ADAPTER_CASES
    for layer_case in adapter_case.layers()
    if layer_case.name not in ALIKE
]
each_pair = pytest.mark.parametrize(("adapter_case", "layer_case"), PAIRS)
NO_MATRIX = ("bias only", "beft", "ln tuning")
SHAPE_NEEDED = {"VeRA", "PVeRA", "RandLoRA", "MiSS", "FourierFT", "WaveFT", "SHiRA"}
"""Methods whose tensors do not tell the shape of the weight; nor do SuperTuning's without a LoRA."""


def is_told(case: AdapterCase) -> bool:
    """Whether the tensors alone tell what a method changes."""
    adapter = case.on(case.layers()[0])
    by_weight = adapter.needs_weight or adapter.prepares_from_weight
    return not by_weight and adapter.name not in SHAPE_NEEDED and case.name != "supertuning"


def set_of(adapters: Mapping[str, Sequence[Adapter]], **strings: str) -> AdapterSet:
    several = {module: tuple(some) for module, some in adapters.items()}
    return AdapterSet("cat.safetensors", several, AdapterMetadata(strings))


def alone(adapters: AdapterSet) -> list[Sited]:
    return [Sited(module, one) for module, some in adapters.adapters.items() for one in some]


def convert(adapter: Adapter, wish: Conversion, case: LayerCase | None = None) -> Converted:
    source = set_of({LAYER: [adapter]})
    return converted(alone(source) if case is None else [on(case, adapter)], source, wish)


def parts_of(adapters: Sequence[Adapter], case: LayerCase) -> tuple[Tensor, Tensor]:
    """What adapters change together in weight and bias."""
    change = torch.zeros_like(case.weight)
    shift = torch.zeros(case.weight.shape[0], dtype=torch.float64)
    for adapter in adapters:
        own, own_shift = adapter.delta_weight(case.weight), adapter.delta_bias(case.bias)
        change = change if own is None else change + own
        shift = shift if own_shift is None else shift + own_shift
    return change, shift


def norm_of(parts: tuple[Tensor, Tensor]) -> float:
    return math.hypot(*(float(part.norm()) for part in parts))


def as_read(made: Converted, module: str = LAYER) -> tuple[Adapter, ...]:
    """The adapters of a layer as the next loader has them."""
    tensors, metadata = to_tensors(made.adapter_set)
    parsed = parse_tensors(tensors, metadata, "file")
    assert not parsed.unclaimed
    return parsed.as_trained().adapters[module]


@each_pair
def test_every_method_becomes_a_lora_that_changes_the_same(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    adapter = adapter_case.on(layer_case)
    made = convert(adapter, EXACT, layer_case)
    expected = parts_of([adapter], layer_case)
    adapters = as_read(made)
    for ours, theirs in zip(parts_of(adapters, layer_case), expected, strict=True):
        assert float((ours - theirs).norm()) <= 2e-6 * norm_of(expected)
    assert made.accuracy.relative < 1e-6
    loras = [one for one in adapters if isinstance(one, Lora)]
    if len(layer_case.weight.shape) > 1 and float(expected[0].norm()) > 0:
        (lora,) = loras
        outputs, inputs, *kernel = layer_case.layer.weight_shape
        assert lora.alpha == lora.rank or lora.up is adapter.tensors()["up"]
        assert lora.up.shape == (outputs, lora.rank, *[1] * len(kernel))
        assert lora.down.shape == (lora.rank, inputs, *kernel)
    else:
        assert not loras


@pytest.mark.parametrize("adapter_case", [pytest.param(one, id=one.name) for one in ADAPTER_CASES])
def test_every_method_becomes_a_whole_difference_that_changes_the_same(
    adapter_case: AdapterCase,
) -> None:
    layer_case = adapter_case.layers()[-1]
    adapter = adapter_case.on(layer_case)
    made = convert(adapter, Conversion("full difference"), layer_case)
    expected = parts_of([adapter], layer_case)
    for ours, theirs in zip(parts_of(as_read(made), layer_case), expected, strict=True):
        assert float((ours - theirs).norm()) <= 2e-6 * norm_of(expected)


@pytest.mark.parametrize(
    ("adapter_case", "layer_case"),
    [
        pair
        for pair in PAIRS
        if pair.values[0].name not in NO_MATRIX and len(pair.values[1].weight.shape) > 1
    ],
)
def test_the_error_of_a_small_rank_is_that_of_the_best_one_and_is_told(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    adapter = adapter_case.on(layer_case)
    made = (
        convert(adapter, Conversion(size=Size(rank=2), norms_and_biases=False), layer_case)
        if (
            len(layer_case.weight.shape) > 1 and adapter.delta_weight(layer_case.weight) is not None
        )
        else None
    )
    if made is None:
        return
    change, shift = parts_of([adapter], layer_case)
    values = torch.linalg.svdvals(change.flatten(1))
    least = math.hypot(float(values[2:].norm()), float(shift.norm()))
    ours, none = parts_of(as_read(made), layer_case)
    assert float(none.norm()) == 0
    error = math.hypot(float((ours - change).norm()), float(shift.norm()))
    whole = norm_of((change, shift))
    assert error == pytest.approx(least, rel=1e-5, abs=1e-6 * whole)
    assert made.accuracy.relative * whole == pytest.approx(error, rel=1e-4, abs=1e-6 * whole)


@pytest.mark.parametrize(
    "adapter_case", [pytest.param(one, id=one.name) for one in ADAPTER_CASES if not is_told(one)]
)
def test_the_model_is_asked_for_where_the_file_does_not_tell(adapter_case: AdapterCase) -> None:
    adapter = adapter_case.on(adapter_case.layers()[0])
    with pytest.raises(EditingError, match=r"in 1 layer of cat.*Connect the MODEL") as caught:
        convert(adapter, EXACT)
    assert str(caught.value).startswith(f"What {adapter.label} changes")


@pytest.mark.parametrize(
    ("adapter_case", "layer_case"), [pair for pair in PAIRS if is_told(pair.values[0])]
)
def test_without_a_model_what_the_file_tells_becomes_the_same(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    adapter = adapter_case.on(layer_case)
    expected = parts_of([adapter], layer_case)
    adapters = as_read(convert(adapter, EXACT))
    for ours, theirs in zip(parts_of(adapters, layer_case), expected, strict=True):
        assert float((ours - theirs).norm()) <= 2e-6 * norm_of(expected)


def linear() -> LayerCase:
    return product_cases()[0]


def conv() -> LayerCase:
    (case,) = (one for one in product_cases() if one.name == "conv2d 3x5")
    return case


def wide_lora(rank: int, rows: int = 40, columns: int = 30) -> Lora:
    return Lora(random(rows, rank), random(rank, columns + 1)[:, 1:].contiguous(), 3.0)


def test_a_lora_of_rank_16_becomes_the_best_one_of_rank_4() -> None:
    adapter = wide_lora(16)
    made = convert(adapter, Conversion(size=Size(rank=4)))
    (lora,) = as_read(made)
    assert lora.rank == 4
    change = adapter.delta_weight(torch.empty(40, 30, device="meta"))
    left, values, right = torch.linalg.svd(change)
    best = left[:, :4] * values[:4] @ right[:4]
    assert_close(lora.delta_weight(torch.empty(40, 30, device="meta")), best, rtol=1e-5, atol=1e-5)
    expected = float(values[4:].norm() / values.norm())
    assert made.accuracy.relative == pytest.approx(expected, rel=1e-6)


def test_energy_and_error_give_each_layer_the_rank_that_it_takes() -> None:
    steep = replace(wide_lora(16), up=wide_lora(16).up * 0.5 ** torch.arange(16))
    source = set_of({"lora_unet_flat": [wide_lora(16)], "lora_unet_steep": [steep]})
    for size, allowed in ((Size(energy=0.9), 0.1), (Size(error=0.2), 0.04)):
        made = converted(alone(source), source, Conversion(size=size))
        ranks: list[int] = []
        for module, (lora,) in made.adapter_set.adapters.items():
            change = source.adapters[module][0].delta_weight(torch.empty(40, 30, device="meta"))
            lost = torch.linalg.svdvals(change).square().flip(0).cumsum(0).flip(0)
            lost = torch.cat([lost, torch.zeros(1)]) / lost[0]
            assert lora.rank == int((lost > allowed).sum())
            ranks.append(lora.rank)
        assert ranks[0] > ranks[1]
        assert made.adapter_set.metadata.strings["ss_network_dim"] == "Dynamic"


def test_the_largest_rank_counts_before_the_error() -> None:
    made = convert(wide_lora(16), Conversion(size=Size(error=0.0, most=3)))
    assert as_read(made)[0].rank == 3
    assert made.accuracy.relative > 0.1


def test_kernels_have_a_size_of_their_own() -> None:
    source = set_of(
        {
            "lora_unet_linear": [wide_lora(8)],
            "lora_unet_conv": [Lora(random(8, 4, 1, 1), random(4, 6, 3, 5), 2.0)],
            "lora_unet_pointwise": [Lora(random(8, 4, 1, 1), random(4, 6, 1, 1), 2.0)],
        }
    )
    wish = Conversion(size=Size(rank=3, kernel_rank=2))
    made = converted(alone(source), source, wish).adapter_set
    assert [one.rank for (one,) in made.adapters.values()] == [3, 2, 3]
    strings = made.metadata.strings
    assert (strings["ss_network_dim"], strings["ss_network_alpha"]) == ("3", "3.0")
    assert json.loads(strings["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2.0"}


def test_a_lora_that_cannot_be_smaller_keeps_its_own_numbers() -> None:
    adapter = wide_lora(4)
    for wish in (EXACT, Conversion(size=Size(rank=8)), Conversion("as it is")):
        made = convert(adapter, wish)
        (kept,) = made.adapter_set.adapters[LAYER]
        assert kept.up is adapter.up
        assert kept.alpha == 3.0
        assert made.accuracy.relative == 0


def test_a_loha_is_a_lora_of_the_square_of_its_rank() -> None:
    factors = (random(40, 3), random(3, 30), random(3, 40).T, random(30, 3).T)
    made = convert(Loha(*factors, 2.0), EXACT)
    assert as_read(made)[0].rank == 9
    assert "connect the model" in made.notes[0]


def test_a_lokr_has_the_product_of_the_ranks_of_its_sides() -> None:
    adapter = Lokr(w1=random(5, 4), w2_a=random(8, 2), w2_b=random(2, 7), alpha=2.0)
    made = convert(adapter, EXACT)
    (lora,) = as_read(made)
    assert lora.rank == 4 * 2
    shape = torch.empty(40, 28, device="meta")
    assert_close(lora.delta_weight(shape), adapter.delta_weight(shape))


def test_several_adapters_of_a_layer_become_one() -> None:
    case = conv()
    lora = Lora(random(8, 2, 1, 1), random(2, 6, 3, 5), 1.0, random(8))
    lokr = Lokr(w1=random(2, 3), w2=random(4, 2, 3, 5), alpha=1.0)
    dora = Dora(Lora(random(8, 1, 1, 1), random(1, 6, 3, 5)), dora_scale=random(8, 1, 1, 1).abs())
    for some in (
        [lora, replace(lora, alpha=2.0)],
        [lora, lokr],
        [lora, dora, Diff(random(8, 6, 3, 5))],
    ):
        source = set_of({LAYER: some})
        made = converted([on(case, one) for one in some], source, EXACT)
        adapters = as_read(made)
        assert [type(one) for one in adapters] == [Diff, Lora] or len(adapters) == 2
        for ours, theirs in zip(parts_of(adapters, case), parts_of(some, case), strict=True):
            assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_dylora_is_cut_to_its_first_ranks() -> None:
    source = set_of(
        {LAYER: [wide_lora(16)]}, ss_network_module="networks.dylora", ss_network_dim="16"
    )
    cut = source.cut(4)
    made = converted(alone(cut), cut, Conversion("as it is")).adapter_set
    (lora,) = made.adapters[LAYER]
    assert torch.equal(lora.up, wide_lora(16).up[:, :4])
    assert made.metadata.strings["ss_network_dim"] == "4"
    assert not made.notes


def test_as_it_is_leaves_all_but_loras_alone() -> None:
    bias = random(40)
    others = {"lora_unet_a": [Loha(*(random(4, 4),) * 4)], "lora_unet_b": [Norm(random(8))]}
    source = set_of({"lora_unet_x": [replace(wide_lora(16), bias=bias)], **others})
    made = converted(alone(source), source, Conversion("as it is", Size(rank=4))).adapter_set
    assert {name: [*made.adapters[name]] for name in others} == others
    (lora,) = made.adapters["lora_unet_x"]
    assert lora.rank == 4
    assert_close(lora.delta_bias(None), source.adapters["lora_unet_x"][0].delta_bias(None))


def test_what_is_no_matrix_is_kept_or_dropped_and_counted() -> None:
    norm = Norm(random(8), random(8))
    shifted = replace(wide_lora(2), bias=random(40))
    table = Diff(random(1, 6, 8))
    source = set_of(
        {"lora_unet_norm": [norm], "lora_unet_x": [shifted], "lora_unet_table": [table]}
    )
    kept = converted(alone(source), source, EXACT)
    assert kept.adapter_set.adapters["lora_unet_norm"] == (norm,)
    assert kept.adapter_set.adapters["lora_unet_table"] == (table,)
    assert kept.accuracy.relative < 1e-6
    dropped = converted(alone(source), source, replace(EXACT, norms_and_biases=False))
    assert [*dropped.adapter_set.adapters] == ["lora_unet_x"]
    (lora,) = dropped.adapter_set.adapters["lora_unet_x"]
    assert lora.delta_bias(None) is None
    assert "Dropped in 3 layers" in dropped.notes[0]
    lost = [norm.w_norm, norm.b_norm, table.diff, shifted.delta_bias(None)]
    expected = math.hypot(*(float(one.norm()) for one in lost if one is not None))
    whole = math.hypot(expected, shifted.form().norm())
    assert dropped.accuracy.relative == pytest.approx(expected / whole, rel=1e-6)
    with pytest.raises(EditingError, match=r"Nothing is left of cat\.safetensors"):
        convert(norm, replace(EXACT, norms_and_biases=False))


def test_a_convolution_of_one_output_is_no_table() -> None:
    adapter = Lora(random(1, 2, 1), random(2, 5, 3), 2.0)
    made = converted([Sited(LAYER, adapter)], set_of({LAYER: [adapter]}), EXACT)
    (lora,) = made.adapter_set.adapters[LAYER]
    assert isinstance(lora, Lora)


def test_a_parameter_that_is_no_weight_stays_whole() -> None:
    adapter = Replacement(random(6, 8))
    table = Sited(
        LAYER,
        adapter,
        1.0,
        Target("a.scale_shift_table"),
        (6, 8),
        lambda: (random(6, 8) * 2, None),
    )
    made = converted([table], set_of({LAYER: [adapter]}), EXACT)
    (diff,) = made.adapter_set.adapters[LAYER]
    assert isinstance(diff, Diff)
    assert diff.diff is not None
    assert_close(diff.diff, -random(6, 8))


def test_the_part_that_tells_a_change_is_asked_for_by_name() -> None:
    text, dora = "lora_te_text_model_encoder_layers_0_mlp_fc1", Dora(wide_lora(2), random(40, 1))
    source = set_of({LAYER: [dora], text: [dora]})
    with pytest.raises(EditingError, match=r"LoRA with DoRA changes in 2 layers.*MODEL and CLIP"):
        converted(alone(source), source, EXACT)
    case = linear()
    placed = on(case, Dora(Lora(random(8, 2), random(2, 6)), random(8, 1)))
    with pytest.raises(EditingError, match=rf"in 1 layer .*{text}.*Connect the CLIP"):
        converted([placed, Sited(text, dora)], source, EXACT)
    homeless = "lora_unet_nowhere"
    made = converted([placed, Sited(homeless, dora)], source, EXACT)
    assert made.adapter_set.adapters[homeless] == (dora,)
    assert homeless in made.notes[0]


def test_a_shira_smaller_than_its_weight_fits_it_with_the_model() -> None:
    adapter = Shira(torch.tensor([1.0, 2.0]), torch.tensor([[0, 3], [1, 2]], dtype=torch.int32))
    case = linear()
    made = convert(adapter, EXACT, case)
    assert_close(parts_of(as_read(made), case), parts_of([adapter], case), check_dtype=False)


def test_a_lora_that_makes_a_weight_larger_still_does() -> None:
    adapter = Lora(random(8, 4), random(4, 10), 4.0, reshape=(8, 10))
    case = linear()
    (lora,) = as_read(convert(adapter, Conversion(size=Size(rank=2)), case))
    assert lora.rank == 2
    assert lora.reshape == (8, 10)
    made = convert(adapter, Conversion("full difference"), case)
    assert as_read(made)[0].rank == 4
    assert "larger" in made.notes[0]


def test_the_header_says_what_the_result_is_and_keeps_the_rest() -> None:
    strings = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "16",
        "ss_network_alpha": "8",
        "ss_network_args": '{"algo": "dylora", "block_size": "4", "conv_dim": "8"}',
        "ss_tag_frequency": "{}",
        "sshs_model_hash": "abc",
        "lora_adapter_metadata": '{"r": 3}',
    }
    source = set_of({LAYER: [wide_lora(16)]}, **strings).as_trained()
    made = converted(alone(source), source, Conversion(size=Size(rank=4))).adapter_set
    found = dict(made.metadata.strings)
    assert json.loads(found.pop(CONVERSION))["ranks"] == [4, 4]
    assert found == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "ss_network_args": "{}",
        "ss_tag_frequency": "{}",
    }


def test_a_result_is_not_corrected_again() -> None:
    """LyCORIS' DyLoRA acts weaker than trained by what its header says; once is enough."""
    strings = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "dylora"}'}
    source = set_of({LAYER: [wide_lora(16)]}, **strings).as_trained()
    shape = torch.empty(40, 30, device="meta")
    for wish in (EXACT, Conversion(size=Size(rank=15)), Conversion("as it is", Size(rank=15))):
        made = converted(alone(source), source, wish)
        (lora,) = as_read(made)
        ours, theirs = lora.delta_weight(shape), source.adapters[LAYER][0].delta_weight(shape)
        assert float((ours - theirs).norm() / theirs.norm()) == pytest.approx(
            made.accuracy.relative, abs=1e-6
        )


def test_a_report_says_what_became_of_what() -> None:
    source = set_of(
        {LAYER: [Diff(random(512, 512).half())], "lora_unet_n": [Norm(random(8).half())]}
    )
    made = converted(alone(source), source, Conversion(size=Size(rank=64)))
    lines = conversion_report(source, made).splitlines()
    assert lines[0] == (
        "cat.safetensors: full in 1 layer, norm in 1 layer -> "
        "LoRA in 1 layer, norm in 1 layer, rank 64."
    )
    assert lines[1] == (
        "Tensors: 0.5 MB in float16 before, 0.3 MB in float32, 0.1 MB in float16 as before."
    )
    assert lines[2].startswith("Error ")


def test_each_layer_is_a_step_that_may_end_the_work() -> None:
    source = set_of({f"lora_unet_{i}": [wide_lora(2)] for i in range(3)})
    all_three, two = EndingSteps(3), EndingSteps(2)
    converted(alone(source), source, EXACT, all_three)
    assert (all_three.count, all_three.begun) == (3, 3)
    with pytest.raises(InterruptedError):
        converted(alone(source), source, EXACT, two)


WHOLE = {
    "linear": nn.Linear(6, 8),
    "conv2d 3x5": nn.Conv2d(6, 8, (3, 5), padding=(1, 2)),
    "conv2d 1x1": nn.Conv2d(6, 8, 1),
}


@pytest.mark.parametrize("name", WHOLE)
def test_lycoris_reads_the_lora_and_does_the_same(name: str) -> None:
    (case,) = (one for one in few(product_cases()) if one.name == name)
    shape = case.layer.weight_shape
    made = convert(FullRank(random(*shape).float()), EXACT, case)
    tensors, _ = to_tensors(made.adapter_set)
    module = case.to(torch.float32).module
    found, values = get_module(tensors, LAYER)
    opened = make_module(found, values, LAYER, module)
    expected = case.with_base(case.weight + random(*shape), case.bias).float()
    opened.apply_to()
    assert_close(module(case.x.float()), expected, rtol=1e-4, atol=1e-4)


def test_peft_reads_the_lora_and_does_the_same() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 8)
            self.conv = nn.Conv2d(6, 8, 3)

    torch.manual_seed(0)
    model = Model()
    changes = {"layer": random(8, 6).float(), "conv": random(8, 6, 3, 3).float()}
    source = set_of({name: [FullRank(change)] for name, change in changes.items()})
    made = converted(alone(source), source, Conversion(size=Size(rank=8))).adapter_set
    before = {name: getattr(model, name).weight.clone() for name in changes}
    ranks = {name: one.rank for name, (one,) in made.adapters.items()}
    config = peft.LoraConfig(
        r=1, lora_alpha=1, target_modules=[*changes], rank_pattern=ranks, alpha_pattern=ranks
    )
    adapted = peft.get_peft_model(model, config)
    for name, (lora,) in made.adapters.items():
        layer = adapted.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(lora.down)
        layer.lora_B["default"].weight.data.copy_(lora.up)
    merged = adapted.merge_and_unload()
    for name, change in changes.items():
        assert_close(merged.get_submodule(name).weight, before[name] + change, rtol=1e-4, atol=1e-5)
