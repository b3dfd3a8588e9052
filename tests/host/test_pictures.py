"""Pictures with Load Adapter are those of a checkpoint into which the adapter was baked.

What is baked comes from LyCORIS' and PEFT's own modules or from formulas: see `made_adapters`.
"""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from base_directory import CHECKPOINT_NAME
from comfy_server import ComfyServer, PromptFailedError, PromptInterruptedError
from made_adapters import METHODS, Applied
from pictures import MODES, PAIR, Mode, Pictures
from workflows import read_latent, side_by_side, text_to_latent

TOLERANCE = 1e-4
"""Of the effect. Rounding in float32 gives 1e-5; 5e-3 is what the pack promises."""

RIGHT_IN_HOST = [
    *("lora", "locon", "locon_tucker", "lora_plus", "lora_fa", "rslora", "dylora_kohya"),
    *("loha", "loha_tucker", "lokr", "lokr_both", "lokr_full", "glora", "glora_old"),
    *("dora_input", "full", "norm"),
]
RIGHT_AT_FULL_STRENGTH = ["diag_oft", "boft", "set_weight"]
"""The host squares the strength of a rotation, and has none for a weight that is set."""

LOCON = Applied("locon")
FULL = Applied("full")


# The first decorator changes fastest: all tests of a method follow each other.
each_mode = pytest.mark.parametrize("mode", MODES)
each_strength = pytest.mark.parametrize("strength", PAIR)
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
def test_the_effect_of_a_method_is_clearly_visible(pictures: Pictures, method: str):
    effect = pictures.baked(Applied(method)) - pictures.plain
    assert 0.1 < effect.norm() / pictures.plain.norm() < 1.5


@pytest.mark.parametrize(
    ("method", "strength"),
    [(method, 0.6) for method in RIGHT_IN_HOST]
    + [(method, 1.0) for method in RIGHT_AT_FULL_STRENGTH],
)
def test_the_baked_checkpoint_agrees_with_the_host_s_loader_where_that_is_right(
    pictures: Pictures, method: str, strength: float
):
    applied = Applied(method, strength, strength)
    assert pictures.error(pictures.by_host(applied), applied) < TOLERANCE


@each_mode
@each_strength
@each_method
def test_a_latent_equals_that_of_the_baked_checkpoint(
    pictures: Pictures, method: str, strength: float, mode: Mode
):
    applied = Applied(method, strength, strength)
    assert pictures.error(pictures.loaded(mode, applied), applied) < TOLERANCE


@each_method
def test_hook_and_patch_give_the_same_latent(pictures: Pictures, method: str):
    applied = Applied(method, 0.6, 0.6)
    by_hook, by_patch = (pictures.loaded(mode, applied) for mode in MODES)
    effect = (by_patch - pictures.plain).norm()
    assert (by_hook - by_patch).norm() < TOLERANCE * effect


@each_mode
@pytest.mark.parametrize(
    "applied",
    [Applied("locon", 0.8, 0.0), Applied("locon", 0.0, 0.8), Applied("locon", 0.4, 1.2)],
    ids=["unet only", "clip only", "both, unlike"],
)
def test_unet_and_clip_have_strengths_of_their_own(
    pictures: Pictures, applied: Applied, mode: Mode
):
    assert pictures.error(pictures.loaded(mode, applied), applied) < TOLERANCE


@each_mode
def test_a_loader_without_clip_adapts_the_unet_alone(pictures: Pictures, mode: Mode):
    latent = pictures.latent(pictures.prompt([LOCON], [mode], use_clip=False))
    assert pictures.error(latent, Applied("locon", 1.0, 0.0)) < TOLERANCE


@each_mode
def test_a_loader_without_model_adapts_the_text_encoder_alone(pictures: Pictures, mode: Mode):
    latent = pictures.latent(pictures.prompt([LOCON], [mode], use_model=False))
    assert pictures.error(latent, Applied("locon", 0.0, 1.0)) < TOLERANCE


@each_mode
@pytest.mark.parametrize("method", ["locon", "full", "norm"])
def test_strength_zero_is_no_node_bit_for_bit(pictures: Pictures, method: str, mode: Mode):
    assert torch.equal(pictures.loaded(mode, Applied(method, 0, 0)), pictures.plain)


@each_mode
@pytest.mark.parametrize("method", ["locon", "full", "norm"])
def test_a_negative_strength_subtracts(pictures: Pictures, method: str, mode: Mode):
    applied = Applied(method, -0.7, -0.7)
    assert pictures.error(pictures.loaded(mode, applied), applied) < TOLERANCE


@each_mode
@pytest.mark.parametrize(
    "applied",
    [Applied("dylora_kohya", rank=3), Applied("dylora_lycoris", 0.9, 0.9, rank=4)],
    ids=["kohya", "lycoris"],
)
def test_a_rank_keeps_the_first_rows_of_a_dylora(pictures: Pictures, applied: Applied, mode: Mode):
    assert pictures.error(pictures.loaded(mode, applied), applied) < TOLERANCE


@pytest.mark.parametrize("method", ["dylora_lycoris", "glora_stabilised"])
def test_the_scale_of_other_loaders_is_theirs(pictures: Pictures, method: str):
    applied = Applied(method)
    prompt = pictures.prompt([applied], ["hook"])
    prompt["adapter_1"]["inputs"]["scale"] = "as other loaders do"
    theirs = pictures.by_host(applied)
    error = (pictures.latent(prompt) - theirs).norm() / (theirs - pictures.plain).norm()
    assert error < TOLERANCE
    assert pictures.error(theirs, applied) > 0.3


@each_mode
def test_a_rank_beyond_that_of_the_file_keeps_all_of_it(pictures: Pictures, mode: Mode):
    latent = pictures.loaded(mode, Applied("dylora_kohya", rank=64))
    assert pictures.error(latent, Applied("dylora_kohya")) < TOLERANCE


@pytest.mark.parametrize("modes", [("hook", "hook"), ("patch", "patch"), ("hook", "patch")])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_loaders_in_a_row_add_up_in_either_order(
    pictures: Pictures, modes: tuple[Mode, Mode], swapped: bool
):
    chain = (FULL, LOCON) if swapped else (LOCON, FULL)
    latent = pictures.latent(pictures.prompt(chain, modes))
    assert pictures.error(latent, LOCON, FULL) < TOLERANCE


@each_mode
def test_two_loaders_of_one_file_add_their_strengths(pictures: Pictures, mode: Mode):
    latent = pictures.loaded(mode, Applied("locon", 0.7, 0.3), Applied("locon", 0.3, 0.7))
    assert pictures.error(latent, LOCON) < TOLERANCE


@each_mode
def test_an_adapter_adds_up_with_one_of_the_host_s_loader(pictures: Pictures, mode: Mode):
    prompt = pictures.prompt([FULL, LOCON], [mode, mode])
    _make_host_s(prompt["adapter_1"])
    assert pictures.error(pictures.latent(prompt), LOCON, FULL) < TOLERANCE


@pytest.mark.parametrize("method", ["dora", "tlora"])
def test_a_hook_takes_its_constants_from_the_base_that_other_nodes_have_patched(
    pictures: Pictures, method: str
):
    # In a row: constants kept from the base before would be wrong for the next one.
    for strength in (1.0, -0.5):
        latents: list[Tensor] = []
        for mode in MODES:
            before = Applied("lora_plus", strength, strength)
            prompt = pictures.prompt([before, Applied(method)], [mode, mode])
            _make_host_s(prompt["adapter_1"])
            latents.append(pictures.latent(prompt))
        by_hook, by_patch = latents
        effect = (by_patch - pictures.plain).norm()
        assert (by_hook - by_patch).norm() < TOLERANCE * effect


def test_a_loader_of_the_host_behind_ours_leaves_the_plain_model_alone(pictures: Pictures):
    # The plain model was drawn with our adapter: the host's loader made a copy of the model in
    # use, and adding patches to the copy put its hooks on the modules that all copies share.
    pictures.latent(pictures.prompt([LOCON], ["hook"], use_clip=False))
    prompt = pictures.prompt([LOCON], ["hook"], use_clip=False)
    prompt["host_s"] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": ["adapter_1", 0],
            "clip": ["checkpoint", 1],
            "lora_name": pictures.adapter("full"),
            "strength_model": 1.0,
            "strength_clip": 0.0,
        },
    }
    prompt["positive"]["inputs"]["clip"] = ["host_s", 1]  # so it runs before the sampler
    prompt["sampler"]["inputs"]["model"] = ["checkpoint", 0]
    assert torch.equal(pictures.latent(prompt), pictures.plain)


@pytest.mark.parametrize("modes", [("hook", "hook"), ("patch", "patch"), ("hook", "patch")])
def test_clones_of_different_strength_side_by_side_do_not_disturb_each_other(
    pictures: Pictures, modes: tuple[Mode, Mode]
):
    strong, weak = Applied("locon"), Applied("locon", 0.6, 0.6)
    history = pictures.run(
        side_by_side(pictures.prompt([strong], modes[:1]), pictures.prompt([weak], modes[1:]))
    )
    assert pictures.error(read_latent(pictures.server, history), strong) < TOLERANCE
    assert pictures.error(_read_other(pictures.server, history), weak) < TOLERANCE


@each_mode
def test_a_plain_sampler_beside_an_adapted_one_is_untouched(pictures: Pictures, mode: Mode):
    history = pictures.run(
        side_by_side(pictures.prompt([LOCON], [mode]), text_to_latent(CHECKPOINT_NAME))
    )
    assert pictures.error(read_latent(pictures.server, history), LOCON) < TOLERANCE
    assert torch.equal(_read_other(pictures.server, history), pictures.plain)


@each_mode
def test_a_prompt_without_the_node_is_as_before_one_with_it(pictures: Pictures, mode: Mode):
    pictures.latent(pictures.prompt([LOCON, FULL], [mode] * 2))
    assert torch.equal(_sampled_anew(pictures), pictures.plain)


@each_mode
def test_after_an_interrupted_prompt_all_is_as_before(pictures: Pictures, mode: Mode):
    server = pictures.server
    prompt_id = server.queue(pictures.prompt([LOCON, FULL], [mode] * 2, steps=10_000))
    server.wait_until_step()
    server.interrupt()
    with pytest.raises(PromptInterruptedError):
        server.wait(prompt_id)
    assert torch.equal(_sampled_anew(pictures), pictures.plain)
    assert pictures.error(pictures.latent(pictures.prompt([LOCON], [mode])), LOCON) < TOLERANCE


@each_mode
def test_after_a_prompt_that_failed_in_the_sampler_all_is_as_before(pictures: Pictures, mode: Mode):
    # A latent of 16 channels: the first layer of the UNet raises while adapters are in place.
    wrong = {"latent_tensor": torch.ones(1, 16, 8, 8), "latent_format_version_0": torch.tensor([])}
    save_file(wrong, pictures.server.input_directory / "wrong.latent")
    prompt = pictures.prompt([LOCON, FULL], [mode] * 2)
    prompt["empty"] = {"class_type": "LoadLatent", "inputs": {"latent": "wrong.latent"}}
    with pytest.raises(PromptFailedError) as failure:
        pictures.server.run(prompt)
    assert failure.value.node_id == "sampler"
    assert torch.equal(_sampled_anew(pictures), pictures.plain)
    assert pictures.error(pictures.latent(pictures.prompt([LOCON], [mode])), LOCON) < TOLERANCE


@each_mode
def test_after_unloading_all_models_a_prompt_gives_the_same_latent(pictures: Pictures, mode: Mode):
    before = pictures.latent(pictures.prompt([LOCON], [mode]))
    pictures.server.free()
    assert torch.equal(pictures.latent(pictures.prompt([LOCON], [mode])), before)
    assert torch.equal(_sampled_anew(pictures), pictures.plain)


def _sampled_anew(pictures: Pictures) -> Tensor:
    """Runs the prompt without the node on the model that earlier prompts have used."""
    history = pictures.run(text_to_latent(CHECKPOINT_NAME))
    messages = dict(history["status"]["messages"])
    assert "sampler" not in messages["execution_cached"]["nodes"]
    return read_latent(pictures.server, history)


def _make_host_s(loader: dict[str, Any]) -> None:
    """Turns a Load Adapter node of a prompt into the host's own loader."""
    loader["class_type"] = "LoraLoader"
    del loader["inputs"]["mode"], loader["inputs"]["rank"]
    loader["inputs"]["lora_name"] = loader["inputs"].pop("adapter")


def _read_other(server: ComfyServer, history: dict[str, Any]) -> Tensor:
    return read_latent(server, {"outputs": {"save": history["outputs"]["other_save"]}})
