"""From files to files in a real ComfyUI: opened, converted, combined, extracted, baked and saved."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import broken_files
from base_directory import CHECKPOINT_NAME, TUNED_NAME, example_workflow, make_tuned_checkpoint
from comfy_server import ComfyServer, PromptFailedError, PromptInterruptedError, PromptRejectedError
from own_loop import in_own_loop
from pictures import Pictures
from real_models import MODELS, real_model
from workflows import COMBINE, Prompt, api_form, node, read_latent, side_by_side, text_to_latent

TOLERANCE = 1e-4
"""Of the effect, as in test_pictures.py."""
SMALL: dict[str, dict[str, Any]] = {
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 2, "cfg": 3.0},
    "CLIPTextEncode": {"text": "a lighthouse"},
}
CONVERT: dict[str, Any] = {
    "to": "LoRA",
    "size": "all of it",
    "rank": 4,
    "kept_energy": 0.99,
    "error": 0.05,
    "largest_rank": 0,
    "conv_rank": 0,
    "cut": 0,
    "norms_and_biases": True,
}
EXTRACT: dict[str, Any] = {
    "method": "LoRA",
    "size": "error",
    "rank": 4,
    "kept_energy": 0.99,
    "error": 0.0,
    "norms_and_biases": True,
    "largest_rank": 0,
    "conv_rank": 0,
    "factor": -1,
    "minimum": 0.0,
}
SAVE: dict[str, Any] = {
    "dtype": "as it is",
    "dialect": "as it is",
    "whole": False,
    "metadata": "keep",
    "metadata_changes": "",
}
PARTS: dict[str, Any] = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1]}
CHECKPOINT = node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT_NAME)


@pytest.fixture(scope="module")
def folder(server: Any) -> Path:
    """The LoRA folder of the server."""
    return server.base_directory / "models" / "loras"


def some_layers(pictures: Pictures, folder: Path, method: str) -> str:
    """Returns the name of a file with the attention layers of a method's file in one block."""
    name = f"flows/some_{method}.safetensors"
    path = folder / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        tensors = load_file(folder / pictures.adapter(method))
        chosen = re.compile(r".*(down_blocks_0_att|input_blocks_1_1_).*")
        save_file({key: one for key, one in tensors.items() if chosen.match(key)}, path)
    return name


def opening(name: str) -> dict[str, Any]:
    return node("AnyAdapterOpen", adapter=name, rank=0, scale="as trained")


def saving(source: str, name: str, **inputs: Any) -> dict[str, Any]:
    return node("AnyAdapterSave", adapter=[source, 0], name=name, **(SAVE | inputs))


def loading(name: str, **inputs: Any) -> dict[str, Any]:
    more = {"strength_model": 1.0, "strength_clip": 1.0, "mode": "hook", "rank": 0}
    return {"adapter": name, **more, **inputs}


def drawn_with(pictures: Pictures, name: str) -> Tensor:
    """The latent with a file that was saved."""
    return pictures.latent(text_to_latent(CHECKPOINT_NAME, [loading(name)]))


def require_equal(pictures: Pictures, ours: Tensor, expected: Tensor) -> None:
    effect = (expected - pictures.plain).norm()
    assert effect > 0.02 * pictures.plain.norm()
    assert (ours - expected).norm() < TOLERANCE * effect


def report_of(history: dict[str, Any], node_id: str) -> str:
    (report,) = history["outputs"][node_id]["text"]
    return report


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def run_example(pictures: Pictures, name: str) -> tuple[Prompt, dict[str, Any]]:
    """Runs an example workflow as it ships, but for the size of the picture."""
    prompt = api_form(json.loads(example_workflow(name)), pictures.server)
    for one in prompt.values():
        one["inputs"] |= SMALL.get(one["class_type"], {})
    return prompt, pictures.run(prompt)


def only(prompt: Prompt, kind: str) -> str:
    (found,) = (key for key, one in prompt.items() if one["class_type"] == kind)
    return found


@pytest.mark.parametrize("name", ["convert", "combine", "extract"])
def test_an_example_runs_and_writes_a_file_that_loads(
    pictures: Pictures, folder: Path, name: str
) -> None:
    for method in ("locon", "norm"):
        pictures.adapter(method)
    make_tuned_checkpoint(pictures.server.base_directory)
    prompt, history = run_example(pictures, name)
    save = only(prompt, "AnyAdapterSave")
    assert report_of(history, save).startswith(
        f"Saved as {prompt[save]['inputs']['name']}.safetensors"
    )
    path = folder / f"{prompt[save]['inputs']['name']}.safetensors"
    assert {one.dtype for one in load_file(path).values() if one.ndim} == {torch.float16}
    latent = drawn_with(pictures, path.name)
    if name == "extract":
        tuned = pictures.latent(text_to_latent(TUNED_NAME))
        assert (latent - tuned).norm() < 0.01 * (tuned - pictures.plain).norm()
    if "SaveImage" in {one["class_type"] for one in prompt.values()}:
        assert history["outputs"][only(prompt, "SaveImage")]["images"]


def test_what_is_combined_and_saved_draws_what_the_stack_draws(pictures: Pictures) -> None:
    lines = [
        f"{pictures.adapter('locon')} | 0.8",
        f"{pictures.adapter('diag_oft')} | 0.6 | clip 0.2",
    ]
    text = "\n".join(lines)
    stack = {"adapters": text, "mode": "hook"}
    stacked = text_to_latent(CHECKPOINT_NAME, [stack], loader_class="AnyAdapterStack")
    prompt = {
        "checkpoint": CHECKPOINT,
        "combine": node("AnyAdapterCombine", **(COMBINE | {"adapters": text}), **PARTS),
        "save": saving("combine", "flows/sum"),
    }
    pictures.run(prompt)
    require_equal(pictures, drawn_with(pictures, "flows/sum.safetensors"), pictures.latent(stacked))


@pytest.mark.parametrize("method", ["loha", "lokr", "diag_oft", "dora_input"])
def test_what_is_converted_to_a_lora_draws_what_it_drew(
    pictures: Pictures, folder: Path, method: str
) -> None:
    name = some_layers(pictures, folder, method)
    prompt = {
        "checkpoint": CHECKPOINT,
        "open": opening(name),
        "convert": node("AnyAdapterConvert", adapter=["open", 0], **CONVERT, **PARTS),
        "kohya": saving("convert", f"flows/{method}_kohya", dialect="kohya", **PARTS),
        "diffusers": saving("convert", f"flows/{method}_diffusers", dialect="diffusers", **PARTS),
    }
    history = pictures.run(prompt)
    assert "Exact within the precision of float32" in report_of(history, "convert")
    expected = drawn_with(pictures, name)
    both = side_by_side(
        *(
            text_to_latent(CHECKPOINT_NAME, [loading(f"flows/{method}_{dialect}.safetensors")])
            for dialect in ("kohya", "diffusers")
        )
    )
    history = pictures.run(both)
    for save in ("save", "other_save"):
        require_equal(pictures, read_latent(pictures.server, history, save), expected)


def test_what_is_extracted_from_a_baked_model_draws_what_was_baked(
    pictures: Pictures, folder: Path
) -> None:
    rotation = some_layers(pictures, folder, "diag_oft")
    baked = text_to_latent(CHECKPOINT_NAME, [loading(rotation)])
    hooked = pictures.latent(baked)
    baked["bake"] = node(
        "AnyAdapterMerge", rounding="nearest", model=["adapter_1", 0], clip=["adapter_1", 1]
    )
    baked["extract"] = node(
        "AnyAdapterExtract",
        **EXTRACT,
        model_tuned=["bake", 0],
        model_base=["checkpoint", 0],
        clip_tuned=["bake", 1],
        clip_base=["checkpoint", 1],
    )
    baked["write"] = saving("extract", "flows/rotation")
    baked["sampler"]["inputs"]["model"] = ["bake", 0]
    for text in ("positive", "negative"):
        baked[text]["inputs"]["clip"] = ["bake", 1]
    expected = pictures.latent(baked)
    require_equal(pictures, expected, hooked)
    ours = drawn_with(pictures, "flows/rotation.safetensors")
    require_equal(pictures, ours, expected)


def test_a_list_of_files_goes_through_every_node(pictures: Pictures, folder: Path) -> None:
    methods = ("loha", "lokr")
    names = [some_layers(pictures, folder, method) for method in methods]
    for number, name in enumerate(names):
        path = folder / "flows" / "list" / f"{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((folder / name).read_bytes())
    several = opening(names[0])
    several["inputs"]["files"] = "# both\nflows/list/*\nflows/list/1.safetensors"
    prompt = {
        "checkpoint": CHECKPOINT,
        "open": several,
        "convert": node("AnyAdapterConvert", adapter=["open", 0], **CONVERT, **PARTS),
        "save": saving("convert", "flows/each"),
        "combine": node(
            "AnyAdapterCombine",
            **(COMBINE | {"strengths": "1, -0.5"}),
            adapter=["open", 0],
            **PARTS,
        ),
        "sum": saving("combine", "flows/list_sum"),
    }
    history = pictures.run(prompt)
    assert names_in(folder / "flows" / "list") == ["0.safetensors", "1.safetensors"]
    assert len(history["outputs"]["save"]["text"]) == 2
    for original, name in zip(names, ("each", "each_2"), strict=True):
        ours = drawn_with(pictures, f"flows/{name}.safetensors")
        require_equal(pictures, ours, drawn_with(pictures, original))
    stack = {"adapters": f"{names[0]} | 1\n{names[1]} | -0.5", "mode": "hook"}
    stacked = text_to_latent(CHECKPOINT_NAME, [stack], loader_class="AnyAdapterStack")
    require_equal(
        pictures, drawn_with(pictures, "flows/list_sum.safetensors"), pictures.latent(stacked)
    )
    several["inputs"]["files"] = "flows/list/z*"
    with pytest.raises(PromptRejectedError, match="fits no file"):
        pictures.run({"open": several, "save": saving("open", "flows/none")})


def test_no_file_is_overwritten_by_two_of_one_name(pictures: Pictures, folder: Path) -> None:
    mine = folder / "flows" / "mine" / "cat.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"not to be lost")
    prompt = {"open": opening(pictures.adapter("locon"))}
    prompt |= {one: saving("open", "flows/mine/cat") for one in ("first", "second")}
    for _ in range(2):
        pictures.run(prompt)
        prompt["open"]["inputs"]["rank"] += 1  # else the host need not run it again
    assert names_in(mine.parent) == [
        "cat.safetensors",
        *(f"cat_{number}.safetensors" for number in range(2, 6)),
    ]
    assert mine.read_bytes() == b"not to be lost"
    first, second, *_ = (load_file(mine.parent / f"cat_{number}.safetensors") for number in (2, 3))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_interrupted_extraction_leaves_nothing(pictures: Pictures, folder: Path) -> None:
    server = pictures.server
    # Twice the model differs from it in every layer, and in all ranks of each.
    prompt = {
        "checkpoint": CHECKPOINT,
        "twice": node("ModelMergeAdd", model1=["checkpoint", 0], model2=["checkpoint", 0]),
        "extract": node(
            "AnyAdapterExtract",
            **EXTRACT,
            model_tuned=["twice", 0],
            model_base=["checkpoint", 0],
        ),
        "write": saving("extract", "flows/cut/extracted"),
    }
    prompt_id, done = in_own_loop(run_until_layer(server, prompt, "extract", 5))
    with pytest.raises(PromptInterruptedError, match="interrupted in extract"):
        server.wait(prompt_id)
    assert 5 <= done < 100
    assert names_in(folder / "flows" / "cut") == []
    assert torch.equal(pictures.latent(text_to_latent(CHECKPOINT_NAME)), pictures.plain)


async def run_until_layer(
    server: ComfyServer, prompt: Prompt, node_id: str, layer: int
) -> tuple[str, int]:
    """Queues a prompt and interrupts it when a node's bar has come so far.

    Returns:
        The id of the prompt, and where the bar was.
    """
    address = server.url.replace("http", "ws", 1) + "/ws?clientId=flows"
    async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
        prompt_id = await asyncio.to_thread(server.queue, prompt)
        while True:
            message = await socket.receive(timeout=60)
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            told = json.loads(message.data)
            data = told.get("data", {})
            if told["type"] == "progress" and data["node"] == node_id and data["value"] >= layer:
                await asyncio.to_thread(server.interrupt)
                return prompt_id, data["value"]


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A disk of 64 kB, where this machine lets us have one."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="such disks are of Linux")
def test_a_full_disk_is_told_and_leaves_nothing(pictures: Pictures, folder: Path) -> None:
    prompt = {
        "open": opening(pictures.adapter("locon")),
        "write": saving("open", "flows/full/locon"),
    }
    full = folder / "flows" / "full"
    with small_disk(full):
        (full / "mine.txt").write_text("mine")
        message = failure(pictures, prompt, "write")
        assert "locon.safetensors could not be written: it needs" in message
        assert f"free in {full}. Free some space there." in message
        assert names_in(full) == ["mine.txt"]
    pictures.run(prompt)
    assert names_in(full) == ["locon.safetensors"]


def failure(pictures: Pictures, prompt: Prompt, node_id: str) -> str:
    """Returns the message of a node that fails."""
    with pytest.raises(PromptFailedError) as failed:
        pictures.run(prompt)
    assert failed.value.node_id == node_id, failed.value
    return failed.value.exception_message


def test_broken_files_and_those_of_other_models_are_told(pictures: Pictures, folder: Path) -> None:
    good = folder / pictures.adapter("lora")
    broken_files.write_with_nan(good, folder / "flows_nan.safetensors")
    broken_files.write_truncated(good, folder / "flows_cut.safetensors")
    broken_files.write_for_flux_by_kohya(good, folder / "flows_flux.safetensors")

    def convert(name: str) -> Prompt:
        return {
            "checkpoint": CHECKPOINT,
            "open": opening(name),
            "convert": node("AnyAdapterConvert", adapter=["open", 0], **CONVERT, **PARTS),
            "write": saving("convert", "flows/broken"),
        }

    for name, words in (
        ("flows_nan.safetensors", f"{broken_files.nan_key(good)} contains NaN or infinity"),
        ("flows_cut.safetensors", "is truncated: it should have"),
    ):
        message = failure(pictures, convert(name), "open")
        assert name in message
        assert words in message
    of_flux = "Nothing of flows_flux.safetensors fits.*made for Flux; the model is SD 1.x"
    assert re.search(of_flux, failure(pictures, convert("flows_flux.safetensors"), "convert"))
    two = COMBINE | {"adapters": f"{good.name} | 1\nflows_flux.safetensors | 1"}
    combined = {
        "checkpoint": CHECKPOINT,
        "combine": node("AnyAdapterCombine", **two, **PARTS),
        "write": saving("combine", "flows/broken"),
    }
    assert re.search(of_flux, failure(pictures, combined, "combine"))
    tiny = {"dim": 128, "num_heads": 1, "ffn_dim": 128, "num_layers": 1}
    write_model(pictures, "wan", tiny, "tiny_wan.safetensors")
    extract = {
        "checkpoint": CHECKPOINT,
        "other": node("UNETLoader", unet_name="tiny_wan.safetensors", weight_dtype="default"),
        "extract": node(
            "AnyAdapterExtract",
            **EXTRACT,
            model_tuned=["other", 0],
            model_base=["checkpoint", 0],
        ),
        "write": saving("extract", "flows/broken"),
    }
    message = failure(pictures, extract, "extract")
    assert "The two diffusion models share no layer: they are of different kinds" in message
    assert not (folder / "flows" / "broken.safetensors").exists()


def write_model(pictures: Pictures, family: str, sizes: dict[str, Any], name: str) -> None:
    """Puts a diffusion model of a family and of other sizes than the real ones on the server."""
    model = real_model(family, MODELS[family][1] | sizes, torch.device("cpu")).diffusion_model
    path = pictures.server.base_directory / "models" / "diffusion_models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: torch.zeros(one.shape) for key, one in model.state_dict().items()}, path)
