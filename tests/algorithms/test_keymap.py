"""The key map: exact names, names with any prefix, slices, and what it refuses."""

import pytest
import torch

from anyadapter.algorithms.errors import AmbiguousNameError
from anyadapter.algorithms.keymap import Dialect, KeyMap, Part, Target, halves_swapped, rows_of
from anyadapter.algorithms.layers import swap_halves

SHAPES = {
    "model.to_k.weight": (8, 6),
    "model.to_k.bias": (8,),
    "model.qkv.weight": (12, 6),
    "model.qkv.bias": (12,),
    "model.norm.scale": (8,),
}
TO_K = Target("model.to_k.weight")
TO_V = rows_of("model.qkv.weight", 8, 4)
NORM = Target("model.norm.scale")
PART = Part(
    prefixes=("unet.", "lora_unet_", "base_model.model."),
    names=(("a.to_k", TO_K), ("b.to_k", TO_K), ("a.to_v", TO_V), ("a.norm", NORM)),
    host={TO_K: "a.to_k", NORM: "a.norm"},
    diffusers={TO_K: "b.to_k", TO_V: "a.to_v"},
    dialects=(
        Dialect("comfy", "model.", "host"),
        Dialect("kohya", "lora_unet_", "diffusers", underscored=True),
    ),
)
KEY_MAP = KeyMap([("lora_unet_exact", TO_K), ("unet.a.to_v", TO_V)], SHAPES, [PART])


def test_a_key_map_is_the_identity_there_and_back() -> None:
    for target in KEY_MAP.targets():
        for name in KEY_MAP.names(target):
            assert KEY_MAP.target(name) == target
    assert KEY_MAP.names(TO_K) == ("lora_unet_exact", "a.to_k", "b.to_k")
    assert list(KEY_MAP.targets()) == [TO_K, TO_V, NORM]
    assert len(KEY_MAP) == 2


def test_a_key_map_refuses_contradictions() -> None:
    with pytest.raises(ValueError, match="which the model does not have"):
        KeyMap([("a", Target("gone.weight"))], SHAPES)
    with pytest.raises(ValueError, match="and to"):
        KeyMap([("a", TO_K), ("a", TO_V)], SHAPES)


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_exact",
        "a.to_k",
        "unet.a.to_k",
        "unet.base_model.model.b.to_k",
        "base_model.model.unet.b.to_k",
        "lora_unet_a_to_k",
        "b_to_k",
        "unet.a._orig_mod.to_k",
        "unet.a.to_k.weight",
    ],
)
def test_a_name_is_found_with_any_prefix(name: str) -> None:
    assert KEY_MAP.target(name) == TO_K


@pytest.mark.parametrize(
    "name", ["a_to.k", "exact", "lora_unet_lora_unet", "other.a.to_k", "", "."]
)
def test_a_name_is_never_split_anew(name: str) -> None:
    assert KEY_MAP.target(name) is None


def test_a_name_may_end_in_the_parameter_that_it_means() -> None:
    assert KEY_MAP.target("unet.a.to_k.bias") == Target("model.to_k.bias")
    assert KEY_MAP.target("unet.a.to_v.bias") == rows_of("model.qkv.bias", 8, 4)
    assert KEY_MAP.target("unet.a.norm.bias") is None
    assert KEY_MAP.target("unet.a.norm.weight") == KEY_MAP.target("unet.a.norm.scale") == NORM


def test_the_whole_name_comes_before_its_parts() -> None:
    key_map = KeyMap([("unet.a.to_k", TO_V)], SHAPES, [PART])
    assert key_map.target("unet.a.to_k") == TO_V
    assert key_map.target("a.to_k") == TO_K


def test_two_meanings_are_an_error_that_names_both() -> None:
    other = Part(("lora_unet_",), (("a_to.k", NORM), ("a.to_k", TO_K)), {}, {})
    key_map = KeyMap([], SHAPES, [PART, other])
    with pytest.raises(AmbiguousNameError) as caught:
        key_map.target("lora_unet_a_to_k")
    message = str(caught.value)
    assert "lora_unet_a_to_k may mean model.to_k.weight" in message
    assert "and model.norm.scale" in message
    assert key_map.target("unet.a.to_k") == TO_K


def test_names_are_spelled_in_a_dialect() -> None:
    assert KEY_MAP.name(TO_K, "comfy") == "model.a.to_k"
    assert KEY_MAP.name(TO_K, "kohya") == "lora_unet_b_to_k"
    assert KEY_MAP.name(TO_V, "kohya") == "lora_unet_a_to_v"
    assert KEY_MAP.name(TO_V, "comfy") is None
    assert KEY_MAP.name(TO_K, "unheard of") is None


def test_targets_say_what_they_are() -> None:
    assert str(TO_K) == "model.to_k.weight"
    assert str(TO_V) == "model.qkv.weight rows 8 to 11"


def test_halves_swapped_twice_are_the_same() -> None:
    rows = torch.arange(6)
    assert swap_halves(rows).tolist() == [3, 4, 5, 0, 1, 2]
    assert torch.equal(swap_halves(swap_halves(rows)), rows)
    assert halves_swapped("w", 6) == halves_swapped("w", 6)
