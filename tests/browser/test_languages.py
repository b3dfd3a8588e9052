"""The page in other languages: nodes, and the words of our own widgets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from base_directory import make_example_adapters
from comfy_page import ComfyPage
from comfy_server import ComfyServer

ARTEFACTS = Path(__file__).parent / "artefacts"
TITLES = {"ja": "アダプターを読み込む", "zh": "加载适配器", "zh-TW": "加载适配器"}
STRENGTHS = {"ja": "モデルの強度", "zh": "模型强度", "zh-TW": "模型强度"}
REPORTS = {"ja": "レポート", "zh": "报告", "zh-TW": "报告"}
TOOLTIPS = {
    "ja": "拡散モデルをどの程度変えるか",
    "zh": "扩散模型的改变程度",
    "zh-TW": "扩散模型的改变程度",
}
NOTES = {
    "ja": "始め/内側 は別のノードから",
    "zh": "起始值/内部值 来自其他节点",
    "zh-TW": "起始值/内部值 来自其他节点",
}
EDITORS = {"ja": "ブロック", "zh": "块权重", "zh-TW": "块权重"}
STACKS = {"ja": "アダプターを追加", "zh": "添加适配器", "zh-TW": "添加适配器"}
LOAD: dict[str, Any] = {
    "id": 1,
    "type": "AnyAdapterLoad",
    "pos": [0, 100],
    "size": [360, 460],
    "widgets_values": ["locon.safetensors", 1, 1, "hook", 0, "as trained"],
}
SCHEDULE: dict[str, Any] = {
    "id": 2,
    "type": "AnyAdapterSchedule",
    "pos": [420, 100],
    "size": [340, 420],
    "widgets_values": ["linear", 1, 0, 0, 1, "0:1, 1:0", "linear"],
    "inputs": [
        {
            "name": "from_or_inside",
            "type": "FLOAT",
            "widget": {"name": "from_or_inside"},
            "link": 1,
        }
    ],
}
SOURCE: dict[str, Any] = {
    "id": 3,
    "type": "PrimitiveFloat",
    "pos": [-280, 100],
    "size": [240, 60],
    "widgets_values": [0.5],
    "outputs": [{"name": "FLOAT", "type": "FLOAT", "links": [1]}],
}


STACK: dict[str, Any] = {
    "id": 4,
    "type": "AnyAdapterStack",
    "pos": [780, 100],
    "size": [320, 300],
    "widgets_values": ["locon.safetensors | 0.8", "hook", -1],
}


@pytest.fixture(scope="module", autouse=True)
def adapters(server: ComfyServer) -> None:
    make_example_adapters(server.base_directory)


@pytest.fixture(scope="module", params=["ja", "zh", "zh-TW"])
def language(page: ComfyPage, request: pytest.FixtureRequest) -> Iterator[str]:
    """The language in which the page was loaded, with a workflow in it."""
    page.setting("Comfy.Locale", request.param)
    page.reload()
    page.open(LOAD, SCHEDULE, SOURCE, STACK, links=[[1, 3, 0, 2, 0, "FLOAT"]])
    yield request.param
    page.setting("Comfy.Locale", "en")
    page.reload()


def test_nodes_have_their_names(page: ComfyPage, language: str):
    assert page.run("() => app.graph.getNodeById(1).title") == TITLES[language]
    names = page.run("() => app.graph.getNodeById(1).widgets.map(one => one.label)")
    assert STRENGTHS[language] in names
    outputs = page.run("() => app.graph.getNodeById(1).outputs.map(one => one.localized_name)")
    assert outputs[2] == REPORTS[language]


def test_the_search_finds_nodes_by_their_names(page: ComfyPage, language: str):
    page.run("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    box = page.find(".comfy-vue-node-search-container input, [role=dialog] input").first
    box.fill(TITLES[language])
    expect(page.tab.get_by_role("option").filter(has_text=TITLES[language]).first).to_be_visible()
    page.tab.keyboard.press("Escape")
    expect(box).to_have_count(0)


def test_tooltips_are_translated(page: ComfyPage, language: str):
    page.hover_widget(1, "strength_model", shown=STRENGTHS[language])
    tooltip = page.find(".node-tooltip, .p-tooltip-text").filter(has_text=TOOLTIPS[language])
    expect(tooltip).to_have_count(1)


def test_words_of_widgets_are_translated(page: ComfyPage, language: str):
    note = page.find("svg[data-plot=schedule] + [role=status]")
    expect(note).to_contain_text(NOTES[language])
    expect(page.find(".anyadapter-blocks-fold")).to_contain_text(EDITORS[language])
    expect(page.find(".anyadapter-stack-add")).to_contain_text(STACKS[language])


@pytest.mark.usefixtures("language")
def test_a_prompt_has_the_names_that_python_knows(page: ComfyPage):
    sent = page.run("() => app.graphToPrompt()")
    assert sent["output"]["1"]["inputs"]["strength_model"] == 1


def test_a_picture_is_taken(page: ComfyPage, language: str, request: pytest.FixtureRequest):
    ARTEFACTS.mkdir(exist_ok=True)
    way = request.node.callspec.params["page"].replace(" ", "_")
    picture = ARTEFACTS / f"language_{language}_{way}.png"
    page.tab.screenshot(path=picture)
    assert picture.stat().st_size > 0
