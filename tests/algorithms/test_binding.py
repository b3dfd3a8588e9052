"""Binding: adapters on the weights of a model, misfits, and names without a home."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.binding import bind, causes, require_match
from anyadapter.algorithms.errors import NoMatchError, ShapeError
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.report import Coverage, report

SHAPES = {
    "diffusion_model.attn2.to_k.weight": (8, 768),
    "diffusion_model.attn2.to_k.bias": (8,),
    "diffusion_model.qkv.weight": (12, 6),
}
TO_K = Target("diffusion_model.attn2.to_k.weight")
TO_V = Target("diffusion_model.qkv.weight", Rows(8, 4))
KEY_MAP = KeyMap(
    [("lora_unet_attn2_to_k", TO_K), ("unet.attn2.to_k", TO_K), ("lora_unet_to_v", TO_V)], SHAPES
)


def lora(module: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    return {
        f"{module}.lora_up.weight": torch.ones(outputs, 2),
        f"{module}.lora_down.weight": torch.ones(2, inputs),
    }


def parsed(*tensors: dict[str, Tensor], **metadata: str) -> AdapterSet:
    together = {key: value for some in tensors for key, value in some.items()}
    return parse_tensors(together, metadata, "style.safetensors")


def test_adapters_find_whole_weights_and_slices() -> None:
    adapters = parsed(lora("lora_unet_attn2_to_k", 8, 768), lora("lora_unet_to_v", 4, 6))
    binding = bind(adapters, KEY_MAP)
    assert [item.target for item in binding.bound] == [TO_K, TO_V]
    assert not binding.unmatched


def test_a_misfit_names_layer_shapes_and_both_families() -> None:
    with pytest.raises(ShapeError) as caught:
        bind(parsed(lora("lora_unet_attn2_to_k", 8, 1024)), KEY_MAP)
    message = str(caught.value)
    assert "style.safetensors does not fit this model in 1 of 1 layers" in message
    assert "lora_unet_attn2_to_k: the adapter changes 8 x 1024" in message
    assert "made for SD 2.x; the model is SD 1.x" in message


class Careless(Diff):
    """A method that multiplies without asking for the shape first."""

    def delta_weight(self, weight: Tensor) -> Tensor:
        assert self.diff is not None
        return self.diff @ weight


def test_a_misfit_that_only_torch_notices_is_a_misfit_too() -> None:
    file = parsed(lora("lora_unet_attn2_to_k", 8, 768))
    careless = replace(file, adapters={"lora_unet_attn2_to_k": (Careless(torch.ones(9, 3)),)})
    with pytest.raises(ShapeError, match=r"does not fit a weight \[8, 768\]"):
        bind(careless, KEY_MAP)


def test_a_layer_that_does_not_fit_a_model_of_the_same_family_is_left_out_and_named() -> None:
    # An adapter for SD 1.5 did not load at all on its inpainting model, whose first layer is wider.
    fitting = (lora("lora_unet_attn2_to_k", 8, 768), lora("unet.attn2.to_k", 8, 768))
    binding = bind(parsed(*fitting, lora("lora_unet_to_v", 4, 5)), KEY_MAP)
    assert [item.target for item in binding.bound] == [TO_K, TO_K]
    (misfit,) = binding.misfits
    assert misfit.startswith("lora_unet_to_v: the adapter changes 4 x 5 numbers")


def test_a_layer_that_does_not_fit_a_text_encoder_is_left_out_and_named() -> None:
    # One embedding of another length stopped the whole file, since a CLIP has no family.
    shapes = {"clip.a.weight": (8, 6), "clip.b.weight": (8, 6), "clip.c.weight": (9, 6)}
    pairs = [(f"lora_te_{one}", Target(f"clip.{one}.weight")) for one in "abc"]
    binding = bind(parsed(*(lora(f"lora_te_{one}", 8, 6) for one in "abc")), KeyMap(pairs, shapes))
    assert [item.module for item in binding.bound] == ["lora_te_a", "lora_te_b"]
    assert len(binding.misfits) == 1


def test_more_misfits_than_fits_are_an_error() -> None:
    adapters = parsed(lora("lora_unet_attn2_to_k", 8, 768), lora("lora_unet_to_v", 4, 5))
    with pytest.raises(ShapeError, match="in 1 of 2 layers"):
        bind(adapters, KEY_MAP)


def test_a_bias_that_does_not_fit_is_a_misfit() -> None:
    with pytest.raises(ShapeError, match="its bias has 5 numbers, the layer 8 outputs"):
        bind(parsed({"lora_unet_attn2_to_k.diff_b": torch.ones(5)}), KEY_MAP)


OUTSIDE = {
    "SHiRA": {"shira_weight": torch.ones(2), "shira_indices": torch.tensor([[7, 8], [0, 1]])},
    "SuperTuning": {
        "supertuning_values": torch.ones(2),
        "supertuning_indices": torch.tensor([0, 8 * 768]),
    },
    "Uni-LoRA": {
        "unilora_indices_A": torch.full((2, 768), 5),
        "unilora_indices_B": torch.zeros(8, 2).long(),
        "unilora_scales_A": torch.ones(2, 768),
        "unilora_scales_B": torch.ones(8, 2),
        "unilora_theta_d": torch.ones(5),
    },
    "VB-LoRA": {
        "vblora_logits_A_topk_indices": torch.full((2, 192, 2), 3),
        "vblora_logits_A_topk_weights": torch.ones(2, 192, 1),
        "vblora_logits_B_topk_indices": torch.zeros(2, 2, 2).long(),
        "vblora_logits_B_topk_weights": torch.ones(2, 2, 1),
        "vblora_vector_bank": torch.ones(3, 4),
    },
    "VB-LoRA of more vectors than there are": {
        "vblora_logits_A": torch.ones(2, 192, 1),
        "vblora_logits_B": torch.ones(2, 2, 1),
        "vblora_vector_bank": torch.ones(1, 4),
    },
}


@pytest.mark.parametrize("method", OUTSIDE)
def test_a_place_outside_of_what_it_points_into_is_a_misfit(method: str) -> None:
    # PyTorch ends with an IndexError there, and on a GPU with one that stops everything after it.
    tensors = {f"lora_unet_attn2_to_k.{key}": tensor for key, tensor in OUTSIDE[method].items()}
    with pytest.raises(ShapeError, match=r"its numbers stand at places up to|it mixes 2 vectors"):
        bind(parsed(tensors), KEY_MAP)


@pytest.mark.parametrize("shape", [(8, 5), (8,), (8, 768, 3, 3)])
def test_a_full_change_that_does_not_fit_is_a_misfit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="the stored change is"):
        bind(parsed({"lora_unet_attn2_to_k.diff": torch.ones(shape)}), KEY_MAP)


def test_nothing_matched_names_an_example_and_both_families() -> None:
    sdxl = parsed(lora("lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k", 8, 2048))
    with pytest.raises(NoMatchError) as caught:
        require_match(sdxl, [bind(sdxl, KEY_MAP)], [KEY_MAP])
    message = str(caught.value)
    assert "Nothing of style.safetensors fits" in message
    assert "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k" in message
    assert "made for SDXL; the model is SD 1.x" in message


def test_metadata_name_the_family_when_the_names_do_not() -> None:
    odd = parsed(lora("odd", 8, 7), **{"modelspec.architecture": "new-model/lora"})
    with pytest.raises(NoMatchError, match="made for new-model/lora"):
        require_match(odd, [bind(odd, KEY_MAP)], [KEY_MAP])


def test_a_name_has_a_home_if_any_connected_part_knows_it() -> None:
    adapters = parsed(
        lora("lora_unet_attn2_to_k", 8, 768), lora("lora_te_x", 3, 3), lora("lora_unet_odd", 3, 3)
    )
    text_encoder = KeyMap([("lora_te_x", Target("x.weight"))], {"x.weight": (3, 3)})
    key_maps = [KEY_MAP, text_encoder]
    bindings = [bind(adapters, key_map) for key_map in key_maps]
    assert require_match(adapters, bindings, key_maps) == ("lora_unet_odd",)


def test_the_report_names_what_found_no_home_and_why() -> None:
    adapters = parsed(
        lora("lora_unet_a", 8, 768), lora("lora_te_x", 3, 3), {"b.gizmo": torch.ones(1)}
    )
    part = Coverage("diffusion model", 3, 5, ("a.embedding",), ("b: it is too wide",))
    homeless = causes(adapters, ["lora_te_x", "lora_unet_a"], KEY_MAP, None)
    text = report(adapters, [part], homeless, ["A note."])
    assert text.splitlines() == [
        "LoRA-LierLa, rank 2.",
        "Adapted: diffusion model 3 of 5 layers.",
        "Left out, as they do not fit the diffusion model: b: it is too wide.",
        "Patched as weights, since no hook reaches them: a.embedding.",
        "Not applied: 1 layer, as no text encoder is connected (lora_te_x).",
        "Not applied: 1 layer, as the model has no such layer (lora_unet_a).",
        "Tensors not understood: b.gizmo.",
        "A note.",
    ]


@pytest.mark.parametrize(
    ("module", "inputs", "clip", "cause"),
    [
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            768,
            False,
            "no text encoder is connected",
        ),
        (
            "lora_te2_text_model_encoder_layers_31_mlp_fc1",
            1280,
            True,
            "text encoder 2 (CLIP-G) is not in this CLIP",
        ),
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k",
            2048,
            True,
            "it was made for SDXL, the model is SD 1.x",
        ),
        ("lora_unet_odd", 5, True, "the model has no such layer"),
    ],
)
def test_the_likely_cause_is_told(module: str, inputs: int, clip: bool, cause: str) -> None:
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    adapters = parsed(lora(module, 8, inputs))
    text_encoder = KeyMap([], {key: (3072, 768)}) if clip else None
    assert causes(adapters, [module], KEY_MAP, text_encoder) == {cause: [module]}


def test_without_a_model_its_layers_are_not_applied() -> None:
    adapters = parsed(lora("lora_unet_attn2_to_k", 8, 768))
    (cause,) = causes(adapters, ["lora_unet_attn2_to_k"], None, None)
    assert cause == "no diffusion model is connected"


def test_long_lists_are_cut() -> None:
    names = [f"lora_unet_{number}" for number in range(8)]
    text = report(parsed(lora("x", 3, 3)), [Coverage("diffusion model", 0, 8)], {"so it is": names})
    assert "lora_unet_2 and 5 more" in text
    assert "lora_unet_3" not in text


def test_what_is_remembered_of_a_layer_keeps_no_tensor() -> None:
    tensors = lora("lora_unet_attn2_to_k", 8, 768)
    gone = [weakref.ref(tensor) for tensor in tensors.values()]
    bind(parsed(tensors), KEY_MAP)
    del tensors
    gc.collect()
    assert all(one() is None for one in gone)


def test_a_layer_that_does_not_fit_is_told_after_others_of_its_shape_that_did() -> None:
    binding = bind(parsed(lora("lora_unet_to_v", 4, 6)), KEY_MAP)
    assert not binding.misfits
    for _ in range(2):
        with pytest.raises(ShapeError, match="does not fit this model"):
            bind(parsed(lora("lora_unet_attn2_to_k", 4, 6)), KEY_MAP)
