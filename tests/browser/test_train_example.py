"""The example of Train LoRA in the page: it opens, trains, and draws with what it has trained."""

import json
from typing import Any

from base_directory import CHECKPOINT_NAME, example_workflow, make_example_pictures
from comfy_page import ComfyPage
from comfy_server import ComfyServer

SMALL: dict[str, dict[str, Any]] = {
    "AnyAdapterDataset": {"resolution": 64},
    "AnyAdapterTrain": {"steps": 2},
    "AnyAdapterSamples": {"width": 64, "height": 64, "steps": 1},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 1},
}
"""What makes the training a matter of seconds."""


def test_the_example_opens_trains_and_draws_with_the_adapter(
    page: ComfyPage, server: ComfyServer
) -> None:
    make_example_pictures(server.base_directory)
    workflow = json.loads(example_workflow("train_lora"))
    page.run("workflow => app.loadGraphData(workflow)", workflow)
    prompt = page.run("async () => (await app.graphToPrompt()).output")
    ids = {one["class_type"]: key for key, one in prompt.items()}
    data, train = prompt[ids["AnyAdapterDataset"]], prompt[ids["AnyAdapterTrain"]]
    checkpoint = ids["CheckpointLoaderSimple"]
    assert prompt[checkpoint]["inputs"] == {"ckpt_name": CHECKPOINT_NAME}
    assert (
        data["inputs"]
        | {
            "folder": "my_pictures",
            "resolution": 512,
            "trigger_word": "ohwx",
            "buckets": True,
            "caption_files": ".txt, else .caption",
            "keep_separator": "|||",
            "warmup_tags": 1,
        }
        == data["inputs"]
    )
    assert train["inputs"] == {
        "model": [checkpoint, 0],
        "clip": [checkpoint, 1],
        "vae": [checkpoint, 2],
        "dataset": [ids["AnyAdapterDataset"], 0],
        "samples": [ids["AnyAdapterSamples"], 0],
        "output_name": "my_lora",
        "method": "LoRA-LierLa",
        "rank": 16,
        "alpha": 8,
        "steps": 500,
        "learning_rate": 0,
        "batch_size": 1,
        "resolution": 0,
        "seed": 0,
        "gradient_checkpointing": False,
        "epochs": 10,
        "save_every": 0,
        "keep_checkpoints": 0,
        "resume": "a new run",
        "accumulation": 1,
        "precision": "automatic",
        "adapter_precision": "fp32",
        "cache": "memory",
        "validation_share": 0,
        "validation_every": 50,
        "max_norm": 0,
        "training_details": True,
    }
    load = prompt[ids["AnyAdapterLoad"]]["inputs"]
    assert load["trained"] == [ids["AnyAdapterTrain"], 0]
    for kind, inputs in SMALL.items():
        prompt[ids[kind]]["inputs"] |= inputs
    train["inputs"]["output_name"] += f"_{page.way}"  # else the first page's run would stand for it
    outputs = server.run(prompt)["outputs"]
    assert "Saved as my_lora_" in outputs[ids["AnyAdapterTrain"]]["text"][0]
    saved = server.base_directory / "models" / "loras" / f"my_lora_{page.way}.safetensors"
    assert saved.is_file()
    assert "Adapted: diffusion model" in outputs[ids["AnyAdapterLoad"]]["text"][0]
    assert outputs[ids["SaveImage"]]["images"]
