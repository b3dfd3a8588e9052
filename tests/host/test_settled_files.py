"""What is saved with its scale settled, ComfyUI's own loader reads right, which it did not before."""

import json
from collections.abc import Mapping
from pathlib import Path

import comfy.lora
import pytest
import torch
from safetensors.torch import safe_open
from torch import Tensor

from anyadapter.algorithms.formats.parse import AdapterSet, parse_file
from anyadapter.algorithms.formats.read import read_file
from anyadapter.algorithms.formats.write import settled, to_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
BY_HEADER = (
    *("lycoris/dylora", "lycoris/glora_rs"),
    *("written/kohya_alpha_in_header", "written/kohya_split_qkv"),
    *("peft/loha", "peft/lokr_decompose_both", "peft/lokr_whole", "peft/lora_diffusers"),
    *("peft/lora_patterns", "peft/lora_rs_patterns"),
)
"""Files of which the tensors alone do not tell the scale."""


def tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def errors(made: AdapterSet, weights: Mapping[str, Tensor], written: dict[str, Tensor]) -> float:
    """How far what ComfyUI makes of tensors is from what was trained, at most over the layers."""
    loaded = comfy.lora.load_lora(dict(written), {name: name for name in weights})
    found: list[float] = []
    for module, weight in weights.items():
        (adapter,) = made.adapters[module]
        change = adapter.delta_weight(weight)
        assert change is not None
        patch = (1.0, loaded[module], 1.0, None, None)
        theirs = comfy.lora.calculate_weight([patch], weight.clone(), module) - weight
        found.append(float((theirs - change).norm() / change.norm()))
    return max(found)


@pytest.mark.parametrize("name", BY_HEADER)
def test_comfyui_reads_what_is_settled(name: str) -> None:
    path = GOLDEN / f"{name}.safetensors"
    path = path if path.exists() else GOLDEN / name / "adapter_model.safetensors"
    layers = json.loads(tensors_of(path.with_suffix(".expected.safetensors"))[1]["layers"])
    weights = {
        module: tensors_of(GOLDEN / "layers.safetensors")[0][f"{layer}.weight"]
        for module, layer in layers.items()
    }
    made = parse_file(read_file(path)).as_trained()
    with torch.no_grad():
        assert errors(made, weights, tensors_of(path)[0]) > 0.2
        assert errors(made, weights, to_tensors(settled(made))[0]) < 1e-5
