"""DoRA: around every inner method against the tools that make it, and how the axis is found."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from adapter_cases import random
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.errors import ShapeError
from anyadapter.algorithms.formats.parse import parse_tensors
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.strength import Placed, merged_weight
from layer_cases import LayerCase
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

INNER: dict[str, tuple[Any, dict[str, Any]]] = {
    "LoRA": (lycoris.locon.LoConModule, {}),
    "LoRA tucker": (lycoris.locon.LoConModule, {"use_tucker": True}),
    "LoHa": (lycoris.loha.LohaModule, {}),
    "LoHa tucker": (lycoris.loha.LohaModule, {"use_tucker": True}),
    "LoKr whole": (lycoris.lokr.LokrModule, {"full_matrix": True}),
    "LoKr factors": (lycoris.lokr.LokrModule, {"lora_dim": 1, "decompose_both": True}),
    "LoKr tucker": (lycoris.lokr.LokrModule, {"lora_dim": 1, "use_tucker": True}),
}


VARIANTS = {
    f"{inner} on {'outputs' if on_outputs else 'inputs'}": (inner, on_outputs)
    for on_outputs in (True, False)
    for inner in INNER
}


@pytest.mark.parametrize(("case", "variant"), covering(EXACT, VARIANTS))
def test_the_forward_is_that_of_lycoris(case: LayerCase, variant: tuple[str, bool]) -> None:
    inner, on_outputs = variant
    kind, settings = INNER[inner]
    shared = {"lora_dim": 2, "alpha": 3.0, "weight_decompose": True, "wd_on_out": on_outputs}
    expected, saved = of_lycoris(kind, case, **(shared | settings))
    adapter = read(saved)
    assert isinstance(adapter, Dora)
    assert adapter.axis(case.layer.weight_shape) == ("outputs" if on_outputs else "inputs")
    assert relative_error(change(case, adapter), expected) < 1e-10


# PEFT's LoRA of a convolution has no dilation, and one of groups stores other factors.
PEFT_CASES = [case for case in EXACT if case.layer.groups == 1 and set(case.layer.dilation) <= {1}]


@pytest.mark.parametrize(
    ("case", "in_memory"), covering(PEFT_CASES, {"saved": False, "in memory": True})
)
def test_the_forward_is_that_of_peft(case: LayerCase, in_memory: bool) -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=["layer"], use_dora=True, init_lora_weights=False
    )
    expected, saved, written = of_peft(config, case, in_memory=in_memory)
    adapter = read(saved, config=written)
    assert isinstance(adapter, Dora)
    assert relative_error(change(case, adapter), expected) < 1e-10


def lora(outputs: int, inputs: int) -> dict[str, Tensor]:
    return {
        ".lora_up.weight": random(outputs, 3),
        ".lora_down.weight": random(3, inputs),
        ".alpha": torch.tensor(2.0),
    }


def named(module: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {module + suffix: tensor for suffix, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("magnitude", "kept"),
    [
        ({".dora_scale": random(1, 6).abs() + 1}, 1),
        ({".dora_scale": random(8, 1).abs() + 1}, 0),
        ({".magnitude": random(8).abs() + 1}, 0),
        ({".dora_scale": random(6).abs() + 1}, 1),
        ({".dora_scale": random(8).abs() + 1}, 0),
    ],
    ids=["OneTrainer", "OneTrainer on outputs", "ai-toolkit", "flat on inputs", "flat on outputs"],
)
def test_the_weight_is_that_of_the_formula(magnitude: dict[str, Tensor], kept: int) -> None:
    # W' = m (W + c dW) / ||W + c dW||, as OneTrainer and ai-toolkit write it in their forward.
    weight = EXACT[0].weight
    tensors = lora(8, 6)
    changed = weight + tensors[".lora_up.weight"] @ tensors[".lora_down.weight"] * 2 / 3
    lengths = changed.pow(2).sum(1 - kept, keepdim=True).sqrt()
    (m,) = magnitude.values()
    expected = changed / lengths * m.reshape(lengths.shape)
    adapter = read(named("x", tensors | magnitude))
    torch.testing.assert_close(weight + adapter.delta_weight(weight), expected)
    merged = merged_weight(weight, [Placed(adapter, 0.5)])
    torch.testing.assert_close(merged, (weight + expected) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_magnitudes_in_half_precision_are_widened(dtype: torch.dtype) -> None:
    weight = EXACT[0].weight
    tensors = named("x", lora(8, 6) | {".dora_scale": random(8, 1).abs() + 1})
    low = read({key: tensor.to(dtype) for key, tensor in tensors.items()})
    stored = {key: tensor.to(dtype).double() for key, tensor in tensors.items()}
    found = low.delta_weight(weight)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, read(stored).delta_weight(weight))
    prepared = low.prepared(weight)
    assert prepared.gain.dtype == torch.float64


def test_a_gain_near_one_keeps_its_digits_in_half_precision() -> None:
    # A DoRA trained a little: lengths grow by 0.3 percent, less than the rounding of 1 in bfloat16.
    case = EXACT[1].to(torch.bfloat16)
    weight = case.weight.float()
    lengths = torch.linalg.vector_norm(weight, dim=1, keepdim=True) * 1.003
    adapter = Dora(Lora(torch.zeros(8, 3), random(3, 6).float()), dora_scale=lengths)
    ready = adapter.prepared(weight).to("cpu", torch.bfloat16)
    y = case.module(case.x)
    found = ready.delta_output(case.x, y, case.layer)
    assert relative_error(found.double(), 0.003 * y.double()) < 0.01


def test_the_lengths_of_a_slice_are_those_of_its_rows() -> None:
    weight = EXACT[0].weight
    rows = Rows(2, 4)
    for magnitude in (random(4, 1).abs() + 1, random(1, 6).abs() + 1):
        adapter = read(named("x", lora(4, 6) | {".dora_scale": magnitude}))
        merged = merged_weight(weight, [Placed(adapter, 1.0, rows)])
        alone = merged_weight(weight[2:6], [Placed(adapter, 1.0)])
        torch.testing.assert_close(merged[2:6], alone)
        assert torch.equal(merged[:2], weight[:2])
        assert torch.equal(merged[6:], weight[6:])


SHAPES = {"wide.weight": (4, 6), "square.weight": (6, 6), "tall.weight": (6, 4)}
KEY_MAP = KeyMap([(key.removesuffix(".weight"), Target(key)) for key in SHAPES], SHAPES)
FLAT_OUT = {"wide": 4, "tall": 6}
FLAT_IN = {"wide": 6, "tall": 4}


def axis_of_square(
    others: Mapping[str, int], metadata: Mapping[str, str] | None = None, *, inner: str = "lora"
) -> str:
    """The axis of flat magnitudes on a square weight, in a file with flat ones on other layers."""
    tensors = named("square", {".dora_scale": random(6).abs()})
    if inner == "lora":
        tensors |= named("square", lora(6, 6))
    else:
        tensors |= {"square.lokr_w1": random(2, 3), "square.lokr_w2": random(3, 2)}
    for module, length in others.items():
        tensors |= named(module, lora(*SHAPES[f"{module}.weight"]))
        tensors |= named(module, {".dora_scale": random(length).abs()})
    parsed = parse_tensors(tensors, metadata or {}, "file").as_trained()
    found = {item.module: item.adapter for item in bind(parsed, KEY_MAP).bound}["square"]
    assert isinstance(found, Dora)
    return found.axis((6, 6))


def of_lycoris_header(**arguments: str) -> dict[str, str]:
    return {
        "ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(arguments)
    }  # fmt: skip


def of_onetrainer_header(**settings: bool) -> dict[str, str]:
    return {"ot_branch": "master", "ot_config": json.dumps(settings)}


def test_other_layers_of_the_file_tell_the_axis_of_a_square_one() -> None:
    assert axis_of_square(FLAT_IN) == "inputs"
    assert axis_of_square(FLAT_OUT) == "outputs"
    assert axis_of_square(FLAT_IN, of_lycoris_header(wd_on_output="True")) == "inputs"
    assert axis_of_square(FLAT_OUT, of_lycoris_header(wd_on_output="False")) == "outputs"


def test_else_the_header_tells_it() -> None:
    assert axis_of_square({}, of_lycoris_header(wd_on_output="False")) == "inputs"
    assert axis_of_square({}, of_lycoris_header(wd_on_output="True")) == "outputs"
    settings = {"lora_decompose_output_axis": False, "lokr_dora_on_output": True}
    assert axis_of_square({}, of_onetrainer_header(**settings)) == "inputs"
    assert axis_of_square({}, of_onetrainer_header(**settings), inner="lokr") == "outputs"


def test_else_it_is_the_outputs_also_where_layers_contradict_each_other() -> None:
    assert axis_of_square({}) == "outputs"
    assert axis_of_square({"wide": FLAT_IN["wide"], "tall": FLAT_OUT["tall"]}) == "outputs"


def test_a_square_weight_is_told_by_the_axis_that_is_stored() -> None:
    for shape, axis in (((6, 1), "outputs"), ((1, 6), "inputs")):
        adapter = read(named("x", lora(6, 6) | {".dora_scale": random(*shape)}))
        assert isinstance(adapter, Dora)
        assert adapter.axis((6, 6)) == axis


def test_magnitudes_that_fit_neither_axis_are_a_misfit() -> None:
    for key, shape in ((".dora_scale", (5, 1)), (".dora_scale", (7,)), (".magnitude", (6,))):
        adapter = read(named("x", lora(8, 6) | {key: random(*shape)}))
        with pytest.raises(ShapeError, match=r"the DoRA magnitudes are \[\d"):
            adapter.delta_weight(torch.ones(8, 6))
