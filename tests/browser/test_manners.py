"""Load Adapter in the page behaves as the host's own nodes do."""

from typing import Any

import pytest
from playwright.sync_api import expect

from base_directory import make_example_adapters
from comfy_page import ComfyPage
from comfy_server import ComfyServer
from workflows import ADDED_TO_LOAD

NOW = {
    "adapter": "locon.safetensors",
    "strength_model": 0.75,
    "strength_clip": 0.5,
    "mode": "patch",
    "rank": 3,
    "scale": "as other loaders do",
    "acts_on": "conditionings that ask for it",
    "memory_mb": 7,
    "blocks": "IN04:0.5, OUT:0",
    "blocks_seed": 11,
}


@pytest.fixture(scope="module", autouse=True)
def adapters(server: ComfyServer) -> None:
    make_example_adapters(server.base_directory)


def load_node(values: list[Any]) -> dict[str, Any]:
    return {
        "id": 1,
        "type": "AnyAdapterLoad",
        "pos": [0, 200],
        "size": [380, 460],
        "widgets_values": values,
    }


def values_of(page: ComfyPage, node_id: int) -> dict[str, Any]:
    """The values of the widgets that have an input, as a prompt has them."""
    return page.run("async id => (await app.graphToPrompt()).output[id]?.inputs", str(node_id))


def test_a_widget_tells_what_it_is_for(page: ComfyPage):
    page.open(load_node([*NOW.values()]))
    page.hover_widget(1, "strength_model")
    tooltip = page.find(".node-tooltip, .p-tooltip-text").filter(has_text="as trained")
    expect(tooltip).to_have_text(
        "How strongly the diffusion model is changed: 1 is as trained, 0 is not at all, negative is "
        "the opposite."
    )


def test_the_help_page_of_a_node_opens(page: ComfyPage):
    page.open(load_node([*NOW.values()]))
    page.select(1)
    page.find("[data-testid='info-button']").click()
    help_page = page.find(".node-help-content")
    expect(help_page.get_by_role("heading", name="Load Adapter")).to_be_visible()
    expect(help_page).to_contain_text("Several of these nodes in a row add up")


def test_a_copied_node_has_the_same_values(page: ComfyPage):
    page.open(load_node([*NOW.values()]))
    page.select(1)
    page.tab.keyboard.press("Control+c")
    page.tab.mouse.move(900, 500)
    page.tab.keyboard.press("Control+v")
    page.tab.wait_for_function("app.graph.nodes.length === 2")
    copy = page.run("() => app.graph.nodes.find(node => node.id !== 1).id")
    assert values_of(page, copy) == values_of(page, 1) == NOW


@pytest.mark.parametrize("count", range(5, 11))
def test_a_workflow_of_before_opens_with_what_it_did_then(page: ComfyPage, count: int):
    page.open(load_node([*NOW.values()][:count]))
    stored = dict([*NOW.items()][:count])
    assert values_of(page, 1) == {**NOW, **ADDED_TO_LOAD, **stored}


def test_a_workflow_is_stored_as_it_was_opened(page: ComfyPage):
    page.open(load_node([*NOW.values()]))
    sent = page.run("() => app.graphToPrompt()")
    assert sent["workflow"]["nodes"][0]["widgets_values"] == [*NOW.values()]
