"""Inspect Adapter in a running ComfyUI: any method, with a model and without, alone or connected."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from base_directory import CHECKPOINT_NAME, cached_checkpoint
from comfy_server import ComfyServer, PromptFailedError
from made_adapters import put_adapter
from workflows import Prompt, node, saved_file

ARTEFACTS = Path(__file__).parents[1] / "browser" / "artefacts"
WHOLE = ("locon", "loha_tucker", "lokr_both", "norm")
"""Methods whose change does not depend on the weight."""
BY_WEIGHT = ("diag_oft", "dora", "tlora")


def folder(server: ComfyServer) -> Path:
    return server.base_directory / "models" / "loras"


def made(server: ComfyServer, method: str) -> str:
    return put_adapter(method, cached_checkpoint(), folder(server))


def prompt(name: str, *, model: bool) -> Prompt:
    nodes = {
        "inspect": node("AnyAdapterInspect", adapter=name),
        "heat": node("SaveImage", images=["inspect", 1], filename_prefix="heat"),
        "spectrum": node("SaveImage", images=["inspect", 2], filename_prefix="spectrum"),
    }
    if model:
        nodes["checkpoint"] = node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT_NAME)
        nodes["inspect"]["inputs"] |= {"model": ["checkpoint", 0], "clip": ["checkpoint", 1]}
    return nodes


def report_of(history: dict[str, Any]) -> str:
    (text,) = history["outputs"]["inspect"]["text"]
    return text


def shares(report: str) -> dict[str, float]:
    """Block -> its share in percent."""
    lines = (line.split() for line in report.splitlines() if line.startswith("  "))
    return {words[0]: float(words[1]) for words in lines if words[2:3] == ["%"]}


def whole_norm(report: str) -> float:
    """The norm of all blocks together."""
    lines = (line.split() for line in report.splitlines() if line.startswith("  "))
    return math.hypot(*(float(words[3]) for words in lines if words[2:3] == ["%"]))


@pytest.mark.parametrize("method", WHOLE + BY_WEIGHT)
def test_any_method_is_measured_on_its_model(server: ComfyServer, method: str) -> None:
    name = made(server, method)
    history = server.run(prompt(name, model=True))
    report = report_of(history)
    assert report.startswith(f"{Path(name).name}, ")
    assert "Method: " in report
    assert "All of it fits the diffusion model" in report
    assert "estimate" not in report
    assert "connect" not in report
    sections = report.count("by their share")
    assert sections > 0
    assert sum(shares(report).values()) == pytest.approx(100 * sections, abs=2)
    assert "Effective rank: " in report
    for output in ("heat", "spectrum"):
        picture = saved_file(server, history, output)
        with Image.open(picture) as image:
            assert image.width > 400
        ARTEFACTS.mkdir(exist_ok=True)
        shutil.copy(picture, ARTEFACTS / f"inspect_{output}_{method}.png")


@pytest.mark.parametrize("method", WHOLE)
def test_norms_without_a_model_are_those_with_it(server: ComfyServer, method: str) -> None:
    name = made(server, method)
    alone, on_model = (report_of(server.run(prompt(name, model=model))) for model in (False, True))
    # The small UNet has fewer blocks than its kind, so that names alone mean others.
    assert whole_norm(alone) == pytest.approx(whole_norm(on_model), rel=1e-3)
    assert "All of it fits" not in alone
    assert "connect" not in alone


@pytest.mark.parametrize("method", BY_WEIGHT)
def test_without_a_model_what_takes_its_weights_is_said_to_be_estimated(
    server: ComfyServer, method: str
) -> None:
    report = report_of(server.run(prompt(made(server, method), model=False)))
    estimated = "are estimates, as their method changes a weight" in report
    assert estimated or "take the numbers of the model's weights: connect it" in report


def test_it_runs_without_anything_behind_it(server: ComfyServer) -> None:
    name = made(server, "loha")
    history = server.run({"inspect": node("AnyAdapterInspect", adapter=name)})
    assert "LoHa" in report_of(history)


def test_a_block_that_alone_has_changes_holds_all(server: ComfyServer) -> None:
    tensors = load_file(folder(server) / made(server, "lora"))
    one = {key: value for key, value in tensors.items() if "down_blocks_0_attentions_0" in key}
    assert one
    save_file(one, folder(server) / "one_block.safetensors")
    report = report_of(server.run(prompt("one_block.safetensors", model=True)))
    assert shares(report) == {"IN01": 100.0}


def test_training_and_trigger_words_come_from_the_metadata(server: ComfyServer) -> None:
    tensors = load_file(folder(server) / made(server, "lora"))
    metadata = {
        "ss_steps": "1200",
        "ss_tag_frequency": '{"10_zkw": {"zkw": 30, "smile": 12}}',
        "modelspec.trigger_phrase": "zkw woman",
    }
    save_file(tensors, folder(server) / "told.safetensors", metadata=metadata)
    report = report_of(server.run(prompt("told.safetensors", model=False)))
    assert "steps 1200" in report
    assert "Trigger words: zkw woman, zkw" in report
    assert "smile (12)" in report


def test_what_does_not_fit_is_told_with_its_reason(server: ComfyServer) -> None:
    tensors = load_file(folder(server) / made(server, "lora"))
    tensors = {key.replace("down_blocks_0", "down_blocks_3"): one for key, one in tensors.items()}
    save_file(tensors, folder(server) / "other.safetensors")
    report = report_of(server.run(prompt("other.safetensors", model=True)))
    assert "No place for " in report
    assert "the model has no such layer" in report


def test_a_broken_file_is_refused_with_its_reason(server: ComfyServer) -> None:
    (folder(server) / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(PromptFailedError, match=r"broken\.safetensors"):
        server.run(prompt("broken.safetensors", model=False))
