"""An embedding in an adapter file works in prompts as the same vectors in the host's own folder."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from made_adapters import Applied
from pictures import Pictures

ADAPTER = Applied("lora", 0.8, 0.8)
NAME = "with_cat.safetensors"
VECTORS = torch.randn(2, 768, generator=torch.Generator().manual_seed(1)) * 0.05


@pytest.fixture(scope="module")
def pictures(pictures: Pictures) -> Pictures:
    models = pictures.server.base_directory / "models"
    (models / "embeddings").mkdir(exist_ok=True)
    save_file({"clip_l": VECTORS}, models / "embeddings" / "stored.safetensors")
    tensors = load_file(models / "loras" / pictures.adapter(ADAPTER.method))
    save_file(tensors | {"bundle_emb.cat.clip_l": VECTORS}, models / "loras" / NAME)
    return pictures


def latent(pictures: Pictures, text: str, **options: bool) -> tuple[Tensor, str]:
    """Returns the latent of a prompt with the file, and its report (empty if it was loaded before)."""
    prompt = pictures.prompt([ADAPTER], ["hook"], prompt=text, **options)
    prompt["adapter_1"]["inputs"] |= {"adapter": NAME, "scale": "as trained"}
    history = pictures.run(prompt)
    (report,) = history["outputs"].get("adapter_1", {"text": [""]})["text"]
    (file,) = history["outputs"]["save"]["latents"]
    path = pictures.server.output_directory / file["subfolder"] / file["filename"]
    return load_file(path)["latent_tensor"], report


def test_the_bundled_vectors_act_as_those_of_the_hosts_own_folder(pictures: Pictures):
    bundled, report = latent(pictures, "a embedding:cat, at night")
    stored, _ = latent(pictures, "a embedding:stored, at night")
    without, _ = latent(pictures, "a , at night")
    assert torch.equal(bundled, stored)
    assert not torch.equal(bundled, without)
    assert "Embeddings of the file, to use in a prompt: embedding:cat." in report


def test_without_a_clip_they_are_named(pictures: Pictures):
    _, report = latent(pictures, "a lighthouse", use_clip=False)
    assert "Embeddings of the file not offered, no CLIP connected: cat." in report
