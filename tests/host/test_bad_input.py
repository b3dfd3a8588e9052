"""A file that cannot be used stops the prompt with its own message, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import broken_files
from base_directory import CHECKPOINT_NAME
from comfy_server import PromptFailedError, PromptInterruptedError, PromptRejectedError
from made_adapters import Applied
from pictures import MODES, Mode, Pictures
from workflows import text_to_latent

GOOD = Applied("lora", 0.8, 0.8)


@pytest.fixture
def good(pictures: Pictures) -> Path:
    return _folder(pictures) / pictures.adapter(GOOD.method)


@pytest.fixture(autouse=True)
def _serves_on(pictures: Pictures):
    """After each test a good prompt gives what it gave before."""
    before = pictures.loaded("hook", GOOD)
    yield
    assert torch.equal(pictures.latent(pictures.prompt([GOOD], ["hook"])), before)


@pytest.mark.parametrize(
    ("write", "name", "words"),
    [
        (broken_files.write_truncated, "cut.safetensors", ["truncated", "bytes"]),
        (broken_files.write_truncated_in_header, "stub.safetensors", ["truncated", "bytes"]),
        (broken_files.write_empty, "nothing.safetensors", ["empty", "0 bytes"]),
        (broken_files.write_without_tensors, "hollow.safetensors", ["no tensors"]),
        (broken_files.write_text, "page.safetensors", ["not a safetensors file", "text file"]),
        (broken_files.write_pickle, "old.pt", ["pickle", "convert"]),
        (broken_files.write_pickle, "disguised.safetensors", ["pickle", "convert"]),
        (broken_files.write_checkpoint, "model.safetensors", ["checkpoint", "not an adapter"]),
        (broken_files.write_for_sdxl, "xl.safetensors", ["SDXL", "SD 1", "lora_te2_text_model"]),
        (broken_files.write_for_flux_by_diffusers, "flux_d.safetensors", ["Flux", "SD 1"]),
        (broken_files.write_for_flux_by_kohya, "flux_k.safetensors", ["Flux", "SD 1"]),
        (broken_files.write_of_sd2_width, "sd2.safetensors", ["1024", "768", "SD 2", "SD 1"]),
    ],
    ids=lambda value: value.__name__.removeprefix("write_") if callable(value) else "",
)
def test_an_unusable_file_stops_the_prompt_with_its_own_message(
    pictures: Pictures, good: Path, write: Callable[[Path, Path], None], name: str, words: list[str]
):
    write(good, _folder(pictures) / name)
    message = _failure(pictures, name)
    assert name in message
    for word in words:
        assert word.lower() in message.lower(), message


def test_nan_is_refused_and_the_tensor_named(pictures: Pictures, good: Path):
    broken_files.write_with_nan(good, _folder(pictures) / "nan.safetensors")
    message = _failure(pictures, "nan.safetensors")
    assert "nan.safetensors" in message
    assert "NaN" in message
    assert broken_files.nan_key(good) in message


def test_an_up_without_its_down_is_named(pictures: Pictures, good: Path):
    broken_files.write_without_a_down(good, _folder(pictures) / "half.safetensors")
    message = _failure(pictures, "half.safetensors")
    assert "half.safetensors" in message
    assert "lora_down" in message
    assert broken_files.missing_key(good).removesuffix(".lora_down.weight") in message


@pytest.mark.parametrize("mode", MODES)
def test_unknown_tensors_are_named_and_the_rest_is_loaded(
    pictures: Pictures, good: Path, mode: Mode
):
    broken_files.write_with_extra_tensors(good, _folder(pictures) / "extra.safetensors")
    prompt = pictures.prompt([GOOD], [mode])
    prompt["adapter_1"]["inputs"]["adapter"] = "extra.safetensors"
    (report,) = pictures.run(prompt)["outputs"]["adapter_1"]["text"]
    assert ".mystery" in report
    assert "not_of_this_world" in report
    assert torch.equal(pictures.latent(prompt), pictures.loaded(mode, GOOD))


def test_an_sdxl_file_of_which_only_clip_fits_says_that_the_rest_has_no_home(
    pictures: Pictures, good: Path
):
    name = "xl_clip.safetensors"
    broken_files.write_for_sdxl_with_clip_l(good, _folder(pictures) / name)
    history = pictures.run(_prompt(pictures, name))
    (report,) = history["outputs"]["adapter_1"]["text"]
    assert "input_blocks_4_1" in report
    assert "SDXL" in report


def test_a_file_that_is_gone_when_the_prompt_is_queued_is_refused(pictures: Pictures, good: Path):
    path = _folder(pictures) / "gone.safetensors"
    path.write_bytes(good.read_bytes())
    pictures.server.object_info("AnyAdapterLoad")
    path.unlink()
    assert path.name in _refusal(pictures, path.name)


def test_a_file_that_goes_while_the_prompt_waits_is_told(pictures: Pictures, good: Path):
    path = _folder(pictures) / "vanishing.safetensors"
    path.write_bytes(good.read_bytes())
    long = pictures.server.queue(text_to_latent(CHECKPOINT_NAME, seed=3, steps=10_000))
    pictures.server.wait_until_step()
    waiting = pictures.server.queue(_prompt(pictures, path.name))
    path.unlink()
    pictures.server.interrupt()
    with pytest.raises(PromptInterruptedError):
        pictures.server.wait(long)
    with pytest.raises(PromptFailedError) as failure:
        pictures.server.wait(waiting)
    assert failure.value.node_id == "adapter_1"
    assert "vanishing.safetensors" in failure.value.exception_message
    assert "Refresh" in failure.value.exception_message


def test_a_name_that_leaves_the_folder_is_refused(pictures: Pictures, good: Path):
    outside = _folder(pictures).parent / "outside.safetensors"
    outside.write_bytes(good.read_bytes())
    for name in ("../outside.safetensors", "..\\outside.safetensors", str(outside)):
        assert "not in" in _refusal(pictures, name)


def test_a_file_that_is_mended_loads_at_once(pictures: Pictures, good: Path):
    path = _folder(pictures) / "mended.safetensors"
    broken_files.write_truncated(good, path)
    _failure(pictures, path.name)
    path.write_bytes(good.read_bytes())
    prompt = pictures.prompt([GOOD], ["hook"])
    prompt["adapter_1"]["inputs"]["adapter"] = path.name
    assert torch.equal(pictures.latent(prompt), pictures.loaded("hook", GOOD))


def _folder(pictures: Pictures) -> Path:
    return pictures.server.base_directory / "models" / "loras"


def _prompt(pictures: Pictures, name: str):
    prompt = pictures.prompt([GOOD], ["hook"])
    prompt["adapter_1"]["inputs"]["adapter"] = name
    return prompt


def _failure(pictures: Pictures, name: str) -> str:
    with pytest.raises(PromptFailedError) as failure:
        pictures.run(_prompt(pictures, name))
    assert failure.value.node_id == "adapter_1"
    return failure.value.exception_message


def _refusal(pictures: Pictures, name: str) -> str:
    """Returns the message about a name that is not in the list.

    Some hosts compare it with the list when a prompt is queued, some leave that to the node.
    """
    with pytest.raises((PromptRejectedError, PromptFailedError)) as refusal:
        pictures.run(_prompt(pictures, name))
    if isinstance(refusal.value, PromptFailedError):
        assert refusal.value.node_id == "adapter_1"
        return refusal.value.exception_message
    assert list(refusal.value.node_errors) == ["adapter_1"]
    return str(refusal.value)
