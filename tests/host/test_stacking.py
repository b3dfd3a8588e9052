"""Adapter Stack in a real ComfyUI: the same as a row of loaders, in any order, and its other outputs."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyadapter.algorithms.errors import FileError, StackError
from anyadapter.nodes import NODES, stacking
from anyadapter.nodes.combining import CombineAdapters
from anyadapter.nodes.host import preset_files
from anyadapter.nodes.inspecting import InspectAdapter
from anyadapter.nodes.loading import LoadAdapter
from anyadapter.nodes.opening import OpenAdapter
from anyadapter.nodes.stacking import AdapterStack
from anyadapter.nodes.sweeping import BlockSweep
from anyadapter.nodes.training import RESUME, TrainAdapter
from base_directory import CHECKPOINT_NAME, cached_checkpoint
from comfy_server import ComfyServer, PromptFailedError, PromptRejectedError
from pictures import Pictures
from without_page import without_page
from workflows import Prompt, node, text_to_latent

TOLERANCE = 1e-4
"""Of the effect, as in test_pictures.py."""


@pytest.fixture(scope="module")
def pictures(pictures: Pictures) -> Pictures:
    for method in ("locon", "loha", "lokr"):
        pictures.adapter(method)
    return pictures


def stack(text: str, **inputs: Any) -> dict[str, Any]:
    return {"adapters": text, "mode": "hook", **inputs}


def sampled(pictures: Pictures, text: str, **inputs: Any) -> Tensor:
    return pictures.latent(prompt([stack(text, **inputs)]))


def prompt(
    loaders: Sequence[dict[str, Any]], loader_class: str = "AnyAdapterStack", **options: Any
) -> Prompt:
    return text_to_latent(CHECKPOINT_NAME, loaders, loader_class=loader_class, **options)


def loader(adapter: str, model: float, clip: float, **inputs: Any) -> dict[str, Any]:
    strengths = {"strength_model": model, "strength_clip": clip}
    return {"adapter": adapter, **strengths, "mode": "hook", "rank": 0, **inputs}


def texts(pictures: Pictures, text: str, **inputs: Any) -> list[str]:
    """The LORA_STACK, the trigger words and the report of a node without a model."""
    made = {"stack": node("AnyAdapterStack", **stack(text, **inputs))}
    return shown(pictures, made, "stack")


def shown(pictures: Pictures, made: Prompt, name: str) -> list[str]:
    shows = {str(output): node("PreviewAny", source=[name, output]) for output in (2, 3, 4)}
    outputs = pictures.run(made | shows)["outputs"]
    return [outputs[one]["text"][0] for one in shows]


def refusal(pictures: Pictures, text: str, **inputs: Any) -> str:
    with pytest.raises(PromptRejectedError) as refused:
        pictures.run(prompt([stack(text, **inputs)]))
    ((_, found),) = refused.value.node_errors.items()
    assert found["class_type"] == "AnyAdapterStack"
    (error,) = found["errors"]
    assert error["extra_info"]["input_name"] == "adapters"
    return error["details"]


def require_equal(pictures: Pictures, ours: Tensor, expected: Tensor) -> None:
    effect = (expected - pictures.plain).norm()
    assert effect > 0.02 * pictures.plain.norm()
    assert (ours - expected).norm() < TOLERANCE * effect


@pytest.mark.parametrize("mode", ["hook", "patch"])
def test_it_is_the_same_as_load_adapter_nodes_in_a_row(pictures: Pictures, mode: str):
    ours = sampled(
        pictures,
        "# three\nlocon.safetensors | 0.8 | clip 0.3\n\nloha | -0.5\nlokr.safetensors | 1 | off",
        mode=mode,
    )
    loaders = [loader("locon.safetensors", 0.8, 0.3), loader("loha.safetensors", -0.5, -0.5)]
    row = prompt([one | {"mode": mode} for one in loaders], "AnyAdapterLoad")
    require_equal(pictures, ours, pictures.latent(row))


LINES = ("locon | 0.8", "loha | 0.5 | clip 1", "lokr | -0.7")


def test_the_order_of_rows_does_not_matter_to_a_picture(pictures: Pictures):
    lines = [f"{line} | steps 0-0.6" for line in LINES]
    first, *others = (
        sampled(pictures, "\n".join(order)) for order in itertools.permutations(lines)
    )
    assert len(others) == 5
    for other in others:
        require_equal(pictures, other, first)


def test_the_order_of_rows_does_not_matter_to_any_layer(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
):
    folder = str(pictures.server.base_directory / "models" / "loras")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([folder], {".safetensors"}))
    without_page(monkeypatch, stacking, AdapterStack)
    checkpoint = cached_checkpoint()
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False)
    first, *others = (
        outputs(*AdapterStack.execute("\n".join(order), model=model, clip=clip).result[:2])
        for order in itertools.permutations(LINES)
    )
    assert len(first) > 100
    for other in others:
        assert other.keys() == first.keys()
        for name, output in other.items():
            torch.testing.assert_close(output, first[name])  # as in test_injections.py


def outputs(model: Any, clip: Any) -> dict[str, Tensor]:
    """What each layer with an adapter makes of the same input."""
    patchers = {"model": model, "clip": clip.patcher}
    comfy.model_management.load_models_gpu(list(patchers.values()))
    found: dict[str, Tensor] = {}
    for part, patcher in patchers.items():
        for name, layer in patcher.model.named_modules():
            if "forward" in layer.__dict__:
                inputs = layer.weight.shape[1]
                shape = (2, inputs, 5, 5) if layer.weight.ndim == 4 else (2, inputs)
                with torch.no_grad():
                    generator = torch.Generator().manual_seed(0)
                    found[f"{part}.{name}"] = layer(torch.randn(shape, generator=generator))
    return found


def test_a_file_twice_adds_up(pictures: Pictures):
    twice = sampled(pictures, "locon | 0.5\nlocon | 0.3 | clip 0.1")
    once = sampled(pictures, "locon | 0.8 | clip 0.6")
    require_equal(pictures, twice, once)


def test_steps_are_a_window_of_a_schedule(pictures: Pictures):
    def at_four_steps(loaders: Sequence[dict[str, Any]], loader_class: str) -> Prompt:
        return prompt(loaders, loader_class, steps=4)

    ours = at_four_steps([stack("locon | 0.8 | steps 0.3-0.7")], "AnyAdapterStack")
    theirs = at_four_steps(
        [loader("locon.safetensors", 0.8, 0.8, schedule=["schedule", 0])], "AnyAdapterLoad"
    )
    theirs["schedule"] = node(
        "AnyAdapterSchedule",
        preset="window",
        from_or_inside=1.0,
        to_or_outside=0.0,
        start_percent=0.3,
        end_percent=0.7,
        points="",
        interpolation="linear",
    )
    found = pictures.latent(ours)
    assert torch.equal(found, pictures.latent(theirs))
    always = pictures.latent(at_four_steps([stack("locon | 0.8")], "AnyAdapterStack"))
    assert not torch.allclose(found, always, rtol=0.01)


def test_no_row_that_is_on_leaves_the_model_alone(pictures: Pictures):
    text = "locon | 1 | off\nloha | 0\ngone.safetensors | 0\nlost | 1 | off"
    assert torch.equal(sampled(pictures, text), pictures.plain)
    assert torch.equal(sampled(pictures, ""), pictures.plain)


def test_a_model_alone_and_a_clip_alone_are_adapted(pictures: Pictures):
    for options in ({"use_clip": False}, {"use_model": False}):
        ours = pictures.latent(prompt([stack("locon | 0.8")], **options))
        row = prompt([loader("locon.safetensors", 0.8, 0.8)], "AnyAdapterLoad", **options)
        require_equal(pictures, ours, pictures.latent(row))


def test_a_stack_that_comes_in_is_applied_beside_the_rows(pictures: Pictures):
    made = prompt([stack("locon | 0.8", lora_stack=["other", 2])])
    made["other"] = node("AnyAdapterStack", **stack("loha | 0.5 | clip 0.2\nlokr | 1 | off"))
    ours = pictures.latent(made)
    require_equal(pictures, ours, sampled(pictures, "loha | 0.5 | clip 0.2\nlocon | 0.8"))


def test_a_stack_goes_out_with_what_came_in_and_what_is_on(pictures: Pictures):
    made = {
        "first": node("AnyAdapterStack", **stack("loha | 0.5 | clip 0.2")),
        "stack": node(
            "AnyAdapterStack",
            **stack("lokr | 1 | off\nlocon | -1 | blocks IN:0", lora_stack=["first", 2]),
        ),
    }
    out, _, report = shown(pictures, made, "stack")
    assert json.loads(out) == [["loha.safetensors", 0.5, 0.2], ["locon.safetensors", -1.0, -1.0]]
    assert "No model or CLIP is connected" in report
    assert "do not learn of the weights of blocks or the steps of: locon.safetensors" in report


def test_the_stack_of_another_pack_is_read_as_it_is(monkeypatch: pytest.MonkeyPatch):
    """Lists for tuples, whole numbers, and empty places, as several packs send them."""
    without_page(monkeypatch, stacking, AdapterStack)
    given = [["None", 1.0, 1.0], ("gone.safetensors", 0, 0)]
    _, _, out, words, _ = AdapterStack.execute("", lora_stack=given).result
    assert out == [("gone.safetensors", 0.0, 0.0)]
    with pytest.raises(FileError, match=r"gone\.safetensors"):
        AdapterStack.execute("", lora_stack=[("gone.safetensors", 1, 0)])
    with pytest.raises(StackError, match="is a list"):
        AdapterStack.execute("", lora_stack="gone.safetensors")
    assert words == ""


def test_the_report_stands_under_the_name_of_each_file(pictures: Pictures):
    made = prompt([stack("locon | 0.8\nloha | 0.5")])
    del made["save"], made["sampler"]
    _, _, report = shown(pictures, made, "adapter_1")
    first, second = report.split("\n\nloha.safetensors\n")
    assert first.startswith("locon.safetensors\n")
    assert "LoCon" in first or "LoRA" in first
    assert "LoHa" in second


def with_metadata(pictures: Pictures, name: str, **metadata: str) -> None:
    folder = pictures.server.base_directory / "models" / "loras"
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    save_file(load_file(folder / "locon.safetensors"), path, metadata)


def test_trigger_words_of_the_rows_that_are_on_come_out(pictures: Pictures):
    with_metadata(pictures, "words/one.safetensors", **{"modelspec.trigger_phrase": "sks, a cat"})
    with_metadata(pictures, "words/two.safetensors", ss_tag_frequency='{"5_ohwx": {}, "2_sks": {}}')
    with_metadata(pictures, "words/off.safetensors", **{"modelspec.trigger_phrase": "never"})
    text = "words/one\nwords/two | 0.5\nwords/one | 0.2\nlocon\nwords/off | 1 | off"
    _, words, _ = texts(pictures, text)
    assert words == "sks, a cat, ohwx"


def test_a_file_that_cannot_be_read_has_no_trigger_words_and_says_so(pictures: Pictures):
    path = pictures.server.base_directory / "models" / "loras" / "bad.safetensors"
    path.write_bytes(b"nothing of the kind")
    out, words, report = texts(pictures, "bad.safetensors")
    assert json.loads(out) == [["bad.safetensors", 1.0, 1.0]]
    assert words == ""
    assert "No trigger words of bad.safetensors: " in report


def test_bad_text_is_refused_before_anything_runs(pictures: Pictures):
    assert 'Line 2: "0,5" means nothing here' in refusal(pictures, "locon | 1\nloha | 0,5")


def test_a_missing_file_is_refused_before_anything_runs(pictures: Pictures):
    message = refusal(pictures, "locon\nnowhere/x.safetensors | 1")
    assert '"nowhere/x.safetensors" is not in the LoRA folders' in message


def test_a_path_that_leads_out_of_the_folders_is_refused(pictures: Pictures):
    name = f"../checkpoints/{CHECKPOINT_NAME}"
    assert "is not in the LoRA folders" in refusal(pictures, f"{name} | 1")


def test_text_of_another_node_is_read_when_it_has_run(pictures: Pictures):
    made = prompt([stack("")])
    made["text"] = node("PrimitiveStringMultiline", value="locon | 0.8")
    made["adapter_1"]["inputs"]["adapters"] = ["text", 0]
    require_equal(pictures, pictures.latent(made), sampled(pictures, "locon | 0.8"))
    made["text"]["inputs"]["value"] = "gone.safetensors"
    with pytest.raises(PromptFailedError) as failure:
        pictures.run(made)
    assert failure.value.node_id == "adapter_1"
    assert '"gone.safetensors" is not in the LoRA folders' in failure.value.exception_message


def test_a_rewritten_file_is_taken_up(pictures: Pictures):
    folder = pictures.server.base_directory / "models" / "loras"
    path = folder / "changing.safetensors"
    path.write_bytes((folder / "locon.safetensors").read_bytes())
    before = sampled(pictures, "changing | 0.8")
    path.write_bytes((folder / "loha.safetensors").read_bytes())
    require_equal(pictures, sampled(pictures, "changing | 0.8"), sampled(pictures, "loha | 0.8"))
    assert not torch.equal(before, sampled(pictures, "loha | 0.8"))


def test_steps_are_refused_in_mode_patch(pictures: Pictures):
    with pytest.raises(PromptFailedError) as failure:
        pictures.run(prompt([stack("locon | 1 | steps 0-0.5", mode="patch")]))
    assert "choose mode hook" in failure.value.exception_message


def test_the_page_is_told_of_the_node(server: ComfyServer):
    info = server.object_info("AnyAdapterStack")
    assert info["display_name"] == "Adapter Stack"
    assert info["output"] == ["MODEL", "CLIP", "LORA_STACK", "STRING", "STRING"]
    assert info["output_name"][2:] == ["LORA_STACK", "trigger_words", "report"]
    kind, options = info["input"]["required"]["adapters"]
    assert (kind, options["widgetType"], options["default"]) == ("STRING", "ANYADAPTER_STACK", "")
    assert info["input"]["optional"]["lora_stack"][0] == "LORA_STACK"
    assert AdapterStack in NODES
    help_page = Path(__file__).parents[2] / "web" / "docs" / "AnyAdapterStack.md"
    text = help_page.read_text(encoding="utf-8")
    for kind in ("required", "optional"):
        assert all(name in text for name in info["input"][kind])


FILE: dict[str, Any] = {"adapter": None}
STRENGTHS: dict[str, Any] = {"strength_model": 1.0, "strength_clip": 1.0}


@pytest.mark.parametrize(
    ("node_class", "inputs"),
    [
        (OpenAdapter, FILE),
        (OpenAdapter, {"adapter": "cat.safetensors", "files": None}),
        (InspectAdapter, FILE),
        (LoadAdapter, FILE | STRENGTHS),
        (BlockSweep, FILE | {"base": ""}),
        (AdapterStack, {"adapters": None}),
        (AdapterStack, {"adapters": "", "lora_stack": None}),
        (CombineAdapters, {"adapters": [None]}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_for_a_name_that_another_node_gives_any_file_counts(
    node_class: Any, inputs: dict[str, Any], loras: Path
):
    # The host gives None for it here, and would take the node's last result for ever.
    (loras / "cat.safetensors").write_bytes(b"old")
    before = node_class.fingerprint_inputs(**inputs)
    assert node_class.fingerprint_inputs(**inputs) == before
    (loras / "cat.safetensors").write_bytes(b"newer")
    assert node_class.fingerprint_inputs(**inputs) != before


@pytest.mark.usefixtures("loras")
@pytest.mark.parametrize(
    ("node_class", "inputs"),
    [
        (LoadAdapter, FILE | STRENGTHS | {"blocks": None}),
        (BlockSweep, FILE | {"base": None}),
        (AdapterStack, {"adapters": None}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_for_block_weights_that_another_node_gives_any_preset_counts(
    node_class: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    before = node_class.fingerprint_inputs(**inputs)
    monkeypatch.setattr(preset_files, "own_presets", lambda: {"mine": "IN:0.5"})
    assert node_class.fingerprint_inputs(**inputs) != before


def test_a_training_goes_on_under_a_name_that_another_node_gives():
    went_on = TrainAdapter.fingerprint_inputs(None, RESUME)
    assert went_on != went_on  # which the host never takes for the same
    assert TrainAdapter.fingerprint_inputs(None) == ""
