"""Combine Adapters in a real ComfyUI: the picture of the stack, files for the host's own loader."""

from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.errors import EditingError, StackError
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.nodes import combining
from anyadapter.nodes.combining import CombineAdapters
from base_directory import CHECKPOINT_NAME
from comfy_server import ComfyServer, PromptRejectedError
from pictures import Pictures
from without_page import without_page
from workflows import COMBINE, Prompt, node, read_latent, text_to_latent

TOLERANCE = 1e-4
"""Of the effect, as in test_pictures.py."""
LINES = "locon | 0.8 | clip 0.3 | blocks IN:0.5\nloha | -0.5\ndiag_oft | 0.6\nlocon | 0.2"
UNET = "lora_unet_layer"


@pytest.fixture(scope="module")
def pictures(pictures: Pictures) -> Pictures:
    for method in ("locon", "loha", "diag_oft"):
        pictures.adapter(method)
    return pictures


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the node run outside of a prompt."""
    without_page(monkeypatch, combining, CombineAdapters)


def made(text: str, **inputs: Any) -> tuple[AdapterSet, str]:
    """Runs the node, to which the host gives lists."""
    values = COMBINE | {"adapters": text} | inputs
    lists = {name: [value] for name, value in values.items() if name != "adapter"}
    several = {"adapter": inputs["adapter"]} if "adapter" in inputs else {}
    return CombineAdapters.execute(**lists, **several).result


def combined(text: str, **inputs: Any) -> Prompt:
    """The prompt in which Load Adapter gets what the node makes."""
    loader = {"adapter": "", "strength_model": 1.0, "strength_clip": 1.0, "mode": "hook", "rank": 0}
    prompt = text_to_latent(CHECKPOINT_NAME, [loader])
    prompt["combine"] = node("AnyAdapterCombine", **(COMBINE | {"adapters": text} | inputs))
    prompt["combine"]["inputs"] |= {"model": ["checkpoint", 0], "clip": ["checkpoint", 1]}
    prompt["adapter_1"]["inputs"]["trained"] = ["combine", 0]
    return prompt


def stacked(text: str) -> Prompt:
    stack = {"adapters": text, "mode": "hook"}
    return text_to_latent(CHECKPOINT_NAME, [stack], loader_class="AnyAdapterStack")


def require_equal(pictures: Pictures, ours: Tensor, expected: Tensor) -> None:
    effect = (expected - pictures.plain).norm()
    assert effect > 0.02 * pictures.plain.norm()
    assert (ours - expected).norm() < TOLERANCE * effect


def test_an_exact_combination_makes_the_picture_of_the_stack(pictures: Pictures) -> None:
    history = pictures.run(combined(LINES))
    ours = read_latent(pictures.server, history)
    require_equal(pictures, ours, pictures.latent(stacked(LINES)))
    (report,) = history["outputs"]["combine"]["text"]
    assert "Exact within the precision of float32" in report
    assert "turned into its change of those of this model: OFT in" in report
    assert "locon.safetensors | 0.8 | clip 0.3 | blocks IN:0.5" in report


@pytest.mark.usefixtures("alone")
def test_the_hosts_own_loader_applies_what_is_saved(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures.server.base_directory / "models" / "loras"
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"})
    )
    text = "locon | 0.8\nloha | -0.5"
    adapter_set, _ = made(text)
    tensors, metadata = to_tensors(adapter_set)
    save_file(
        {key: value.contiguous() for key, value in tensors.items()},
        folder / "sum.safetensors",
        metadata,
    )
    loader = {"lora_name": "sum.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    by_host = text_to_latent(CHECKPOINT_NAME, [loader], loader_class="LoraLoader")
    require_equal(pictures, pictures.latent(by_host), pictures.latent(stacked(text)))


def lora(rank: int, name: str = UNET) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return {
        f"{name}.lora_up.weight": torch.randn(40, rank, generator=generator),
        f"{name}.lora_down.weight": torch.randn(rank, 30, generator=generator),
        f"{name}.alpha": torch.tensor(float(rank)),
    }


def adapter(rank: int, name: str) -> AdapterSet:
    return parse_tensors(lora(rank), {}, name).as_trained()


def weight(adapter_set: AdapterSet) -> Tensor:
    ((found,),) = adapter_set.adapters.values()
    change = found.delta_weight(torch.zeros(40, 30))
    assert change is not None
    return change


@pytest.mark.usefixtures("alone")
def test_connected_adapters_are_added_to_the_rows(loras: Path) -> None:
    save_file(lora(2), loras / "file.safetensors")
    several = [adapter(1, "one"), adapter(3, "three | odd")]
    expected = weight(several[0]) * 0.5 - weight(several[1]) * 2
    result, report = made("", adapter=several, strengths="0.5, -2")
    torch.testing.assert_close(weight(result), expected)
    assert "three | odd | -2" in report
    result, _ = made("file | 0.25\nfile | 3 | off", adapter=several, strengths="1")
    file = weight(parse_tensors(load_file(loras / "file.safetensors"), {}, "file").as_trained())
    expected = file * 0.25 + weight(several[0]) + weight(several[1])
    torch.testing.assert_close(weight(result), expected)
    for text, why in (("1, 2, 3", "3 numbers, and 2 adapters"), ("a", "must be numbers")):
        with pytest.raises(EditingError, match=why):
            made("", adapter=several, strengths=text)


@pytest.mark.usefixtures("alone")
def test_adapters_of_one_name_are_counted_and_notes_said_once() -> None:
    _, report = made("", adapter=[adapter(1, "one"), adapter(3, "one")])
    assert report.startswith("1. one | 1\n2. one | 1\n\n")
    _, report = made("", adapter=[adapter(1, "one"), adapter(3, "two")])
    assert report.startswith("one | 1\ntwo | 1\n\n")
    notes = report.splitlines()[3:]
    assert len({*notes}) == len(notes)


@pytest.mark.usefixtures("alone")
def test_sizes_are_those_of_the_widgets() -> None:
    several = [adapter(5, "one"), adapter(3, "two")]
    exact = weight(several[0]) + weight(several[1])
    values = torch.linalg.svdvals(exact)

    def result(**inputs: Any) -> Any:
        adapter_set, _ = made("", adapter=several, **inputs)
        ((found,),) = adapter_set.adapters.values()
        return found

    assert result(mode="svd").rank == 4
    shares = (values.square().cumsum(0) / values.square().sum()).tolist()
    needed = next(rank for rank, share in enumerate(shares, 1) if share >= 0.9)
    assert result(mode="svd", size="kept energy", kept_energy=0.9).rank == needed
    assert result(mode="svd", size="error", error=0.0, largest_rank=2).rank == 2
    assert isinstance(result(mode="ties", size="whole"), Diff)
    assert isinstance(result(mode="dare ties", sign="frequency"), Lora)
    with pytest.raises(EditingError, match="choose a rank"):
        result(mode="svd", size="whole")
    assert result().rank == 8


@pytest.mark.usefixtures("alone")
def test_it_ends_where_the_user_cancels() -> None:
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        made("", adapter=[adapter(2, "one")])
    assert not comfy.model_management.processing_interrupted()


def test_it_runs_again_when_a_file_changes(loras: Path) -> None:
    save_file(lora(2), loras / "file.safetensors")
    before = CombineAdapters.fingerprint_inputs(["file | 1"])
    assert CombineAdapters.fingerprint_inputs(["file | 1"]) == before
    save_file(lora(3), loras / "file.safetensors")
    assert CombineAdapters.fingerprint_inputs(["file | 1"]) != before


@pytest.mark.usefixtures("alone")
def test_what_is_wrong_is_said_before_anything_runs(pictures: Pictures, loras: Path) -> None:
    with pytest.raises(PromptRejectedError) as refused:
        pictures.run(combined("locon | 1 | steps 0-0.5"))
    (found,) = refused.value.node_errors["combine"]["errors"]
    assert "acts in all of them" in found["details"]
    assert CombineAdapters.validate_inputs([None]) is True
    assert "Line 1" in str(CombineAdapters.validate_inputs(["a | b"]))
    assert "is not in the LoRA folders" in str(CombineAdapters.validate_inputs(["nothing"]))
    save_file(lora(2), loras / "locon.safetensors")
    with pytest.raises(StackError, match="range of steps"):
        made("locon | 1 | steps 0-0.5")  # as it comes from another node


def test_the_page_is_told_of_the_node(server: ComfyServer) -> None:
    info = server.object_info("AnyAdapterCombine")
    assert info["output"] == ["ANYADAPTER_ADAPTER", "STRING"]
    kind, options = info["input"]["required"]["adapters"]
    assert (kind, options["widgetType"]) == ("STRING", "ANYADAPTER_STACK")
    text = (Path(__file__).parents[2] / "web/docs/AnyAdapterCombine.md").read_text(encoding="utf-8")
    for group in ("required", "optional"):
        assert all(f"{name}" in text for name in info["input"][group])
