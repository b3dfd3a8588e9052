"""Layouts that ComfyUI translates before it loads them, and weights that become larger."""

from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor, nn

from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.replacement import Replacement
from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.formats.parse import AdapterSet
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.algorithms.strength import Dial
from anyadapter.nodes.host import files
from anyadapter.nodes.host.applying import Mode, apply

CPU = torch.device("cpu")


def pair(module: str, down: str, up: str) -> dict[str, Tensor]:
    return {f"{module}{down}": torch.randn(4, 10), f"{module}{up}": torch.randn(8, 4)}


CONTROL = (
    pair("img_in", ".lora_A.weight", ".lora_B.weight")
    | {"img_in.lora_B.bias": torch.randn(8)}
    | {"single_blocks.0.norm.key_norm.scale": torch.randn(8)}
)
"""BFL's control LoRAs for Flux."""
WAN_FUN = pair("lora_unet__blocks_0_cross_attn_k", ".lora_down.weight", ".lora_up.weight")
USO = pair("single_blocks.37.processor.qkv_lora", ".down.weight", ".up.weight") | pair(
    "double_blocks.18.processor.qkv_lora2", ".down.weight", ".up.weight"
)
PLAIN = pair("img_in", ".lora_A.weight", ".lora_B.weight")


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads tensors as a file of the host's folders."""

    def loaded(tensors: dict[str, Tensor]) -> AdapterSet:
        path = tmp_path / "style.safetensors"
        save_file(tensors, path)
        monkeypatch.setattr(files.folder_paths, "get_full_path", lambda *_: str(path))
        return files.load_adapter("style.safetensors")

    return loaded


def test_the_names_of_a_control_lora_are_translated(load) -> None:
    adapters = load(CONTROL).adapters
    lora, shift = adapters["diffusion_model.img_in"]
    assert isinstance(lora, Lora)
    assert lora.reshape == (8, 10)
    assert isinstance(shift, Diff)
    ((name, (norm,)),) = [(k, v) for k, v in adapters.items() if k != "diffusion_model.img_in"]
    assert name.startswith("diffusion_model.single_blocks.0.norm.key_norm")
    assert isinstance(norm, Replacement)


def test_the_names_of_other_layouts_are_translated(load) -> None:
    assert set(load(WAN_FUN).adapters) == {"lora_unet_blocks_0_cross_attn_k"}
    assert set(load(USO).adapters) == {
        "diffusion_model.single_blocks.37.linear1_qkv",
        "diffusion_model.double_blocks.18.txt_attn.qkv",
    }
    assert set(load(PLAIN).adapters) == {"img_in"}


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))


class Model(nn.Module):
    """What of a Flux the control file changes."""

    def __init__(self) -> None:
        super().__init__()
        self.img_in = comfy.ops.manual_cast.Linear(6, 8)
        self.key_norm = Norm()
        for parameter in self.parameters():
            parameter.data = torch.randn_like(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.img_in(x)


def weights(patcher: ModelPatcher) -> dict[str, Tensor]:
    comfy.model_management.load_models_gpu([patcher])
    return {key: tensor.clone() for key, tensor in patcher.model.state_dict().items()}


def key_names() -> dict[str, str]:
    """The names after the translation, whose word for the norm differs between versions."""
    norm = "diffusion_model.single_blocks.0.norm.key_norm"
    return {
        "diffusion_model.img_in": "img_in.weight",
        f"{norm}.scale": "key_norm.scale",
        norm: "key_norm.scale",
    }


def key_map(model: nn.Module) -> KeyMap:
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return KeyMap(((name, Target(key)) for name, key in key_names().items()), shapes)


@pytest.mark.parametrize("mode", ["hook", "patch"])
def test_a_control_lora_gives_the_weights_of_the_host(load, mode: Mode) -> None:
    base = ModelPatcher(Model(), CPU, CPU)
    before = weights(base)
    host = base.clone()
    names = key_names()
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(CONTROL)), names)
    host.add_patches(patches, 1.0)
    expected = weights(host)
    assert expected["img_in.weight"].shape == (8, 10)

    ours = base.clone()
    applied = apply(ours, bind(load(CONTROL), key_map(ours.model)).bound, Dial(1.0), mode)
    after = weights(ours)
    torch.testing.assert_close(after["img_in.weight"], expected["img_in.weight"])
    torch.testing.assert_close(after["key_norm.scale"], expected["key_norm.scale"])
    x = torch.randn(2, 10)
    y = x @ expected["img_in.weight"].T + before["img_in.bias"] + CONTROL["img_in.lora_B.bias"]
    torch.testing.assert_close(ours.model(x), y)
    # No hook can stand where the input itself becomes wider: said in the report.
    assert ("diffusion_model.img_in" in applied.unhooked) == (mode == "hook")

    again = weights(base)
    assert all(torch.equal(again[key], before[key]) for key in before)


def test_a_grown_weight_is_computed_while_it_runs_too(load) -> None:
    base = ModelPatcher(Model(), CPU, CPU)
    ours = base.clone()
    apply(ours, bind(load(CONTROL), key_map(ours.model)).bound, Dial(1.0), "patch")
    weights(ours)
    x = torch.randn(2, 10)
    whole = ours.model(x)
    ours.detach()
    ours.load(CPU, lowvram_model_memory=1)
    assert ours.model.img_in.weight.shape == (8, 6)
    torch.testing.assert_close(ours.model(x), whole)
    ours.detach()
