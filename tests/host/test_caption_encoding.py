"""Captions are encoded as the host does it, once, and with gradients where the encoder learns."""

from pathlib import Path

import comfy.sd
import folder_paths
import pytest
import torch

from anyadapter.algorithms.training.dataset import SizeCondition
from anyadapter.nodes.host import caption_encoding
from anyadapter.nodes.host.caption_encoding import CaptionEncoder
from anyadapter.nodes.host.training_hooks import gradients
from training_world import models


@pytest.fixture(scope="module")
def clip() -> comfy.sd.CLIP:
    found = models().clip
    assert found is not None
    return found


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    return tmp_path


def encoded(encoder: CaptionEncoder, caption: str) -> torch.Tensor:
    with torch.inference_mode(False):
        return encoder.conditioning(caption)[0][0]


def test_a_caption_is_what_a_prompt_with_escaped_brackets_is(clip: comfy.sd.CLIP) -> None:
    own = encoded(CaptionEncoder(clip, trained=False), "a (cat) of (glass:1.5)")
    tokens = clip.tokenize(r"a \(cat\) of \(glass:1.5\)")
    assert torch.equal(own, clip.encode_from_tokens(tokens))


def test_a_caption_is_encoded_once(clip: comfy.sd.CLIP) -> None:
    encoder = CaptionEncoder(clip, trained=False)
    first, again = encoded(encoder, "a cat"), encoded(encoder, "a cat")
    assert torch.equal(first, again)
    assert encoder.made == 1


def test_sizes_and_guidance_are_told(clip: comfy.sd.CLIP) -> None:
    size = SizeCondition((640, 480), (8, 0), (512, 384))
    ((_, options),) = CaptionEncoder(clip, trained=False).conditioning("", size)
    assert (options["width"], options["crop_w"], options["guidance"]) == (640, 8, 1.0)
    assert "pooled_output" in options


@pytest.mark.usefixtures("users_folder")
def test_the_next_run_finds_captions_on_disk(clip: comfy.sd.CLIP) -> None:
    first = CaptionEncoder(clip, trained=False, on_disk=True)
    tensor = encoded(first, "a cat")
    again = CaptionEncoder(clip, trained=False, on_disk=True)
    assert torch.equal(encoded(again, "a cat"), tensor)
    assert (first.made, again.made) == (1, 0)
    encoded(again, "a dog")
    assert again.made == 1


@pytest.mark.usefixtures("users_folder")
def test_another_layer_of_the_encoder_is_another_caption(clip: comfy.sd.CLIP) -> None:
    encoded(CaptionEncoder(clip, trained=False, on_disk=True), "a cat")
    earlier = clip.clone()
    earlier.clip_layer(-2)
    encoder = CaptionEncoder(earlier, trained=False, on_disk=True)
    encoded(encoder, "a cat")
    assert encoder.made == 1


def test_a_damaged_file_is_made_again(clip: comfy.sd.CLIP, users_folder: Path) -> None:
    tensor = encoded(CaptionEncoder(clip, trained=False, on_disk=True), "a cat")
    (path,) = users_folder.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    encoder = CaptionEncoder(clip, trained=False, on_disk=True)
    assert torch.equal(encoded(encoder, "a cat"), tensor)
    assert encoder.made == 1


def test_what_is_kept_is_fit_for_gradients(clip: comfy.sd.CLIP) -> None:
    with torch.inference_mode():
        encoder = CaptionEncoder(clip, trained=False)
        tensor = encoded(encoder, "a cat")
    assert not tensor.is_inference()
    assert not tensor.requires_grad


def test_gradients_flow_through_encoders_that_learn(clip: comfy.sd.CLIP) -> None:
    norm = clip.cond_stage_model.clip_l.transformer.text_model.final_layer_norm
    shift = torch.zeros_like(norm.bias, requires_grad=True)
    original = norm.forward
    with torch.inference_mode(False), torch.enable_grad(), gradients(clip.cond_stage_model):
        norm.forward = lambda x: original(x + shift)
        try:
            encoder = CaptionEncoder(clip, trained=True)
            encoded(encoder, "a cat").square().sum().backward()
            encoded(encoder, "a cat")
        finally:
            del norm.forward
    assert shift.grad is not None
    assert shift.grad.abs().sum() > 0
    assert encoder.made == 2


def test_brackets_of_a_prompt_are_weights(clip: comfy.sd.CLIP) -> None:
    encoder = CaptionEncoder(clip, trained=False)
    with torch.inference_mode(False):
        ((prompt, _),) = encoder.conditioning("a (cat:1.5)", as_prompt=True)
    assert torch.equal(prompt, clip.encode_from_tokens(clip.tokenize("a (cat:1.5)")))
    assert not torch.equal(prompt, encoded(encoder, "a (cat:1.5)"))


def test_captions_in_memory_have_a_bound(
    clip: comfy.sd.CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = encoded(CaptionEncoder(clip, trained=False), "a cat").nbytes
    monkeypatch.setattr(caption_encoding, "MOST_BYTES", int(2.5 * size))
    encoder = CaptionEncoder(clip, trained=False)
    for caption in ("a", "b", "a", "c", "a", "b"):  # b goes when c comes
        encoded(encoder, caption)
    assert encoder.made == 4
