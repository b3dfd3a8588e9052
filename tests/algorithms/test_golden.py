"""Files that other tools made give what the tools compute with them: see `tests/golden/README.md`.

Beside every adapter file lie the tool's own outputs. Here the file is read as a user's would be, and
both ways of applying it are held against the tool, by the effect: the output less the base output.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from anyadapter.algorithms.editing.file_content import Writing, file_content
from anyadapter.algorithms.errors import FormatError
from anyadapter.algorithms.formats.parse import AdapterSet, parse_file, parse_tensors
from anyadapter.algorithms.formats.read import read_file
from anyadapter.algorithms.formats.write import settled, to_tensors
from anyadapter.algorithms.strength import Placed, merged_bias, merged_weight
from layer_cases import LayerCase, hooked_output, layer_of

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-5
"""Of the effect, in float32: a few times what its rounding makes of a chain of small products."""
STRENGTHS = (1.0, 0.5, -0.7)

OTHER_AT_OTHER_STRENGTHS = {
    "lycoris/*dora*": "LyCORIS multiplies W + dW by 1 + s (m / ||W + dW|| - 1): at 0 it is not W",
    "lycoris/*rescaled": "LyCORIS has all of `rescale` at every strength: at 0 it is not W",
    "lycoris/boft*": "LyCORIS blends every stage with the identity, which is no line from W to W'",
}
"""File -> why the tool is followed at strength 1 only; elsewhere the rule of strength holds."""

REFUSED = {
    "peft/frod": ("FRoD", "it rebuilds layers from a joint decomposition of the base weights"),
    "peft/glora_bias_of_weight": ("GLoRA", "its part C makes a bias out of the weight"),
    "peft/psoft": ("PSOFT", "it turns singular vectors whose signs the file does not keep"),
    "peft/tinylora": ("TinyLoRA", "its vectors belong to layers by their order in the trainer"),
    "peft/unilora": ("Uni-LoRA", "its indices are drawn anew, in the order of all layers"),
    "peft/vera_without_projection": (
        "VeRA",
        "its matrices are drawn anew, in the sizes of the largest layer that was adapted",
    ),
}
"""File -> name of the method and why it cannot be loaded, which the user is told instead."""


@dataclass(frozen=True)
class Golden:
    """An adapter file and what its tool computes with it."""

    path: Path
    layers: dict[str, str]
    """Module name in the file -> name of the layer in `layers.safetensors`."""
    strengths: tuple[float, ...]
    outputs: dict[str, Tensor]
    """Module name -> outputs, one for each of the strengths."""

    @property
    def name(self) -> str:
        folder = (
            self.path.parent if self.path.stem == "adapter_model" else self.path.with_suffix("")
        )
        return folder.relative_to(GOLDEN).as_posix()

    @property
    def reason_to_depart(self) -> str | None:
        found = [why for file, why in OTHER_AT_OTHER_STRENGTHS.items() if fnmatch(self.name, file)]
        return found[0] if found else None

    def by_tool(self, module: str, strength: float) -> Tensor:
        return self.outputs[module][self.strengths.index(strength)].double()

    def expected_effect(self, module: str, strength: float) -> Tensor:
        """What the tool adds to the output, or the rule of strength where the tool has none."""
        base = base_output(self.layers[module])
        if strength in self.strengths and self.reason_to_depart is None:
            return self.by_tool(module, strength) - base
        return (self.by_tool(module, 1.0) - base) * strength


def golden(expected: Path) -> Golden:
    adapter = expected.with_name(expected.name.replace(".expected", ""))
    with safe_open(expected, framework="pt") as file:
        said = file.metadata()
        outputs = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    strengths = tuple(json.loads(said["strengths"]))
    return Golden(adapter, json.loads(said["layers"]), strengths, outputs)


ALL = [
    golden(path)
    for tool in ("lycoris", "peft", "written")
    for path in sorted((GOLDEN / tool).rglob("*.expected.safetensors"))
]
FILES = [file for file in ALL if file.name not in REFUSED]
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


@cache
def adapters_of(path: Path) -> AdapterSet:
    return parse_file(read_file(path)).as_trained()


@cache
def layer_case(name: str) -> LayerCase:
    """A layer that the tools had, in float32."""
    with safe_open(GOLDEN / "layers.safetensors", framework="pt") as file:
        arguments: dict[str, Any] = json.loads(file.metadata()["layers"])[name]
        module: nn.Module = getattr(nn, arguments.pop("kind"))(**arguments)
        module.load_state_dict(
            {key: file.get_tensor(f"{name}.{key}") for key in module.state_dict()}
        )
        x = file.get_tensor(f"{name}.x")
    module.requires_grad_(False)
    return LayerCase(name, module, layer_of(module), x)


@cache
def base_output(name: str) -> Tensor:
    case = layer_case(name).to(torch.float64)
    return case.module(case.x)


def hooked(case: LayerCase, placed: list[Placed]) -> Tensor:
    """The output with hooks, as the host has them: constants are made once, in float32 or better."""
    ready: list[Placed] = []
    for item in placed:
        weight = case.weight
        if not item.adapter.prepares_from_weight:
            weight = torch.empty(weight.shape, device="meta")
        ready.append(replace(item, adapter=item.adapter.prepared(weight)))
    return hooked_output(case.x, case.layer, ready)


def merged(case: LayerCase, placed: list[Placed]) -> Tensor:
    weight = merged_weight(case.weight, placed)
    bias = merged_bias(case.bias, case.layer.weight_shape[0], placed)
    return case.with_base(weight, bias)


Run = Callable[[LayerCase, list[Placed]], Tensor]


def errors(file: Golden, run: Run) -> dict[str, float]:
    """Relative errors of the effect, by module and strength."""
    found: dict[str, float] = {}
    for module, layer in file.layers.items():
        for strength in STRENGTHS:
            placed = [Placed(one, strength) for one in adapters_of(file.path).adapters[module]]
            effect = run(layer_case(layer), placed).double() - base_output(layer)
            expected = file.expected_effect(module, strength)
            found[f"{module} at {strength}"] = float((effect - expected).norm() / expected.norm())
    return found


def too_large(found: dict[str, float]) -> dict[str, float]:
    return {where: error for where, error in found.items() if not error < TOLERANCE}


@each_file
def test_every_tensor_of_the_file_is_understood(file: Golden) -> None:
    adapters = adapters_of(file.path)
    assert adapters.unclaimed == ()
    assert set(adapters.adapters) == set(file.layers)


@each_file
def test_the_tool_changes_the_output(file: Golden) -> None:
    for module, layer in file.layers.items():
        assert file.expected_effect(module, 1.0).norm() > 0.02 * base_output(layer).norm()


@each_file
def test_hooks_give_what_the_tool_gives(file: Golden) -> None:
    assert too_large(errors(file, hooked)) == {}


@each_file
def test_merged_weights_give_what_the_tool_gives(file: Golden) -> None:
    assert too_large(errors(file, merged)) == {}


def changes(found: AdapterSet, module: str, layer: str) -> list[Tensor]:
    """The changes of weight and bias that the adapters of a module make."""
    case = layer_case(layer)
    every: list[Tensor] = []
    for adapter in found.adapters[module]:
        for change in (adapter.delta_weight(case.weight), adapter.delta_bias(case.bias)):
            every += [] if change is None else [change.double()]
    return every


@each_file
def test_what_is_saved_again_is_completed_only_once(file: Golden) -> None:
    made = adapters_of(file.path)
    tensors, strings = to_tensors(settled(made))
    again = parse_tensors(tensors, strings, "saved").as_trained()
    assert again.unclaimed == ()
    assert [note for note in again.notes if "Corrected" in note or "scale 1" in note] == []
    for module, layer in file.layers.items():
        expected, found = (changes(one, module, layer) for one in (made, again))
        for change, same in zip(expected, found, strict=True):
            assert (same - change).norm() <= 1e-6 * change.norm()


BESIDE_OTHER_CHANGES = (
    *("peft/lora_modules_to_save", "peft/lora_trains_biases", "written/ai_toolkit_fullrank"),
)
"""Files with LoRA's names in PEFT, of which something is no LoRA."""


@each_file
def test_what_is_saved_as_it_is_keeps_its_changes_and_its_spelling(file: Golden) -> None:
    """Files of PEFT got the suffixes of kohya, which diffusers reads without scale and DoRA."""
    made = adapters_of(file.path)
    content = file_content(made, Writing())
    for module, layer in file.layers.items():
        expected, found = (changes(one, module, layer) for one in (made, content.adapter_set))
        for change, same in zip(expected, found, strict=True):
            assert (same - change).norm() <= 1e-6 * change.norm()
    before = read_file(file.path).header.forms
    of_peft = any(key.endswith(".lora_A.weight") for key in before)
    if of_peft and not any(key.endswith(".alpha") for key in before):
        own = (".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_magnitude_vector")
        is_kept = all(key.endswith(own) for key in content.tensors)
        assert is_kept is not any("as sd-scripts does" in note for note in content.notes)
        assert is_kept is (file.name not in BESIDE_OTHER_CHANGES)


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.reason_to_depart], ids=lambda file: file.name
)
def test_a_deliberate_difference_is_one(file: Golden) -> None:
    for module, layer in file.layers.items():
        ours = file.expected_effect(module, 0.5)
        tools = file.by_tool(module, 0.5) - base_output(layer)
        assert (tools - ours).norm() > 0.01 * ours.norm(), file.reason_to_depart


@pytest.mark.parametrize(
    "file", [file for file in ALL if file.name in REFUSED], ids=lambda file: file.name
)
def test_what_cannot_be_loaded_is_refused_by_name(file: Golden) -> None:
    method, _ = REFUSED[file.name]
    with pytest.raises(FormatError, match=method):
        parse_file(read_file(file.path)).as_trained()


def test_every_entry_of_the_tables_names_a_file() -> None:
    names = [file.name for file in ALL]
    assert [one for one in REFUSED if one not in names] == []
    patterns = OTHER_AT_OTHER_STRENGTHS
    assert [one for one in patterns if not any(fnmatch(name, one) for name in names)] == []
