"""A host takes the made checkpoints for SD 1.5, and their autoencoder keeps a picture."""

import logging

import comfy.lora
import comfy.model_detection
import comfy.sd
import comfy.supported_models
import nodes
import pytest
import torch
from comfy.sd import CLIP, VAE
from torch.nn.functional import avg_pool2d, interpolate

from base_directory import cached_checkpoint
from small_world import (
    LARGE_UNET,
    SMALL_UNET,
    UNET_PREFIX,
    UnetShape,
    diffusers_name,
    unet_layers,
)


@pytest.fixture(scope="module")
def loaded() -> tuple[object, CLIP, VAE, list[str]]:
    """The parts of the small checkpoint, and the warnings of the host while it loaded them."""
    warnings: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        parts = comfy.sd.load_checkpoint_guess_config(str(cached_checkpoint()))
    finally:
        logging.getLogger().removeHandler(handler)
    return *parts[:3], warnings


def test_the_host_takes_the_small_checkpoint_for_sd15_and_misses_no_key(loaded):
    model, clip, vae, warnings = loaded
    assert isinstance(model.model.model_config, comfy.supported_models.SD15)
    assert clip is not None
    assert vae is not None
    assert warnings == []


def test_latents_are_finite_after_four_steps(loaded):
    model, clip, _, _ = loaded
    positive = clip.encode_from_tokens_scheduled(clip.tokenize("a lighthouse"))
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    (latent,) = nodes.common_ksampler(
        model, 1, 4, 3.0, "euler", "normal", positive, positive, empty
    )
    assert latent["samples"].isfinite().all()
    assert latent["samples"].std() > 1


def test_the_text_reaches_the_latent(loaded):
    model, clip, _, _ = loaded
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    latents = []
    for text in ("a lighthouse", "a bowl of cherries"):
        words = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        (latent,) = nodes.common_ksampler(model, 1, 4, 3.0, "euler", "normal", words, words, empty)
        latents.append(latent["samples"])
    assert (latents[0] - latents[1]).norm() > 0.05 * latents[0].norm()


def test_a_picture_survives_as_its_block_averages(loaded):
    _, _, vae, _ = loaded
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    blocks = avg_pool2d(picture.movedim(-1, 1), 8)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(picture))
    expected = interpolate(blocks, scale_factor=8, mode="nearest").movedim(1, -1)
    # Float32 rounding, and the cubic term of the decoder's tanh.
    assert (decoded - expected).abs().max() < 1e-5


def test_a_latent_survives_decoding_and_encoding(loaded):
    _, _, vae, _ = loaded
    # The fourth channel is the mean of the others: nothing else survives.
    colours = 100 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).tanh()
    latent = torch.cat([colours, colours.mean(1, keepdim=True)], 1)
    with torch.no_grad():
        encoded = vae.encode(vae.decode(latent))
    assert (encoded - latent).abs().max() < 5e-3


@pytest.mark.parametrize("shape", [SMALL_UNET, LARGE_UNET], ids=["small", "large"])
def test_the_layers_are_those_of_the_host_s_unet(shape: UnetShape):
    tensors = {}
    for layer in unet_layers(shape):
        weight = torch.empty(layer.weight, dtype=torch.float16, device="meta")
        tensors[f"{UNET_PREFIX}{layer.name}.weight"] = weight
        if layer.bias:
            tensors[f"{UNET_PREFIX}{layer.name}.bias"] = weight.new_empty(layer.weight[0])

    config = comfy.model_detection.model_config_from_unet(tensors, UNET_PREFIX)
    assert isinstance(config, comfy.supported_models.SD15)
    config.set_inference_dtype(torch.float16, None)
    unet = config.get_model(tensors, UNET_PREFIX, device="meta").diffusion_model
    expected = {UNET_PREFIX + name: tensor.shape for name, tensor in unet.state_dict().items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected


def test_the_names_of_diffusers_are_those_that_the_host_maps(loaded):
    model = loaded[0]
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    for layer in unet_layers(SMALL_UNET):
        in_file = "lora_unet_" + diffusers_name(SMALL_UNET, layer.name).replace(".", "_")
        assert names[in_file] == f"diffusion_model.{layer.name}.weight"
