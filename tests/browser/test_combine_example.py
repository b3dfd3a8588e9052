"""Combine Adapters in the page: its editor of rows, its widgets in their order, and what it makes."""

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from base_directory import cached_checkpoint, example_workflow
from comfy_page import ComfyPage
from comfy_server import ComfyServer
from made_adapters import put_adapter

ARTEFACTS = Path(__file__).parent / "artefacts"
ROWS = ".anyadapter-stack-row"
STRENGTHS = {"litegraph": "-0.25", "nodes-2": "-0.5"}
"""Of the row that is added: others on the other page, or what that made would be taken."""


def example(server: ComfyServer) -> dict[str, Any]:
    """The workflow as it ships, with files that are here and a small picture."""
    for method in ("locon", "norm", "loha"):
        put_adapter(method, cached_checkpoint(), server.base_directory / "models" / "loras")
    workflow = json.loads(example_workflow("combine"))
    for node in workflow["nodes"]:
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"] = [64, 64, 1]
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 1
    return workflow


def test_the_example_opens_takes_another_row_and_runs(page: ComfyPage, server: ComfyServer) -> None:
    page.run("workflow => app.loadGraphData(workflow)", example(server))
    rows = page.find(ROWS)
    expect(rows).to_have_count(2)
    page.find(".anyadapter-stack-add").click()
    page.find("dialog input[type=search]").fill("loha.safetensors")  # others are beside it
    found = page.find("dialog [role=option]")
    expect(found).to_have_count(1)
    expect(found).to_contain_text(
        "LoHa"
    )  # the server has read it, and the list is no longer made anew
    expect(found).to_have_attribute("aria-selected", "true")
    found.dblclick()
    expect(rows).to_have_count(3)
    number = rows.nth(2).locator(".anyadapter-number:visible")
    number.click()
    number.locator("input").fill(STRENGTHS[page.way])
    page.tab.keyboard.press("Enter")
    prompt = page.run("async () => (await app.graphToPrompt()).output")
    ids = {one["class_type"]: key for key, one in prompt.items()}
    added = f"loha.safetensors | {STRENGTHS[page.way]}"
    lines = [f"{name}.safetensors | {by}" for name, by in (("locon", 0.8), ("norm", 0.5))]
    checkpoint = ids["CheckpointLoaderSimple"]
    assert prompt[ids["AnyAdapterCombine"]]["inputs"] == {
        "adapters": "\n".join([*lines, added]),
        "mode": "svd",
        "size": "rank",
        "rank": 32,
        "kept_energy": 0.99,
        "error": 0.05,
        "density": 0.5,
        "sign": "total",
        "largest_rank": 0,
        "conv_rank": 0,
        "strengths": "",
        "model": [checkpoint, 0],
        "clip": [checkpoint, 1],
    }
    assert prompt[ids["AnyAdapterLoad"]]["inputs"]["trained"] == [ids["AnyAdapterCombine"], 0]
    ARTEFACTS.mkdir(exist_ok=True)
    page.tab.screenshot(path=ARTEFACTS / f"combine_{page.way}.png")
    # In a mode that takes no time, and under names of this page.
    prompt[ids["AnyAdapterCombine"]]["inputs"]["mode"] = "exact"
    prompt[ids["AnyAdapterSave"]]["inputs"]["name"] += f"_{page.way}"
    prompt[ids["SaveImage"]]["inputs"]["filename_prefix"] += f"_{page.way}"
    outputs = server.run(prompt)["outputs"]
    assert added in outputs[ids["AnyAdapterCombine"]]["text"][0]
    assert f"Saved as combined_{page.way}" in outputs[ids["AnyAdapterSave"]]["text"][0]
    assert outputs[ids["SaveImage"]]["images"]
