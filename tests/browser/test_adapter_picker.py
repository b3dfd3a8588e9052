"""The picker of adapter files in the page, what it tells of a file, and its row in Load Adapter."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from comfy_page import ComfyPage
from comfy_server import ComfyServer
from described_files import png, write_described

ARTEFACTS = Path(__file__).parent / "artefacts"
TAGS = {"10_sks town": {"night": 40, "rain": 25, "umbrella": 3}}
FILES: dict[str, dict[str, object]] = {
    "picked/styles/ink.safetensors": {
        "ss_sd_model_name": "ponyDiffusion.safetensors",
        "modelspec.title": "Ink drawings",
        "modelspec.trigger_phrase": "drawn in ink",
        "ss_tag_frequency": TAGS,
        "ss_steps": "1200",
    },
    "picked/styles/deep/neon lights.safetensors": {"ss_sd_model_name": "sd_xl_base.safetensors"},
    "picked/people/Ünï #1 猫.safetensors": {"ss_sd_model_name": "ponyDiffusion.safetensors"},
}
INK, NEON, CAT = FILES
GONE = "picked/gone.safetensors"
VALUES = [1, 0.5, "hook", 0, "as trained", "every conditioning", -1, "", 0]
BROWSE = ".anyadapter-browse-button"
DIALOG = "dialog.anyadapter-picker"
LINES = f"{DIALOG} [role=option]"
SEARCH = f"{DIALOG} [role=combobox]"


@pytest.fixture(scope="module")
def server(server: ComfyServer) -> ComfyServer:
    """A server that has the files before the page asks for their names."""
    folder = server.base_directory / "models" / "loras"
    for name, metadata in FILES.items():
        write_described(folder / name, metadata)
    (folder / INK).with_suffix(".preview.png").write_bytes(png(64, 96))
    return server


@pytest.fixture(autouse=True)
def closed(page: ComfyPage) -> Iterator[None]:
    """Leaves no dialog and nothing remembered to the next test."""
    yield
    page.run(
        "() => { document.querySelector('dialog[open]')?.close(); localStorage.removeItem('anyadapter.picker') }"
    )


def loader(adapter: str = INK, **fields: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "type": "AnyAdapterLoad",
        "pos": [0, 0],
        "size": [380, 420],
        "widgets_values": [adapter, *VALUES],
        **fields,
    }


def open_loader(page: ComfyPage, adapter: str = INK) -> None:
    """Opens a workflow of one Load Adapter and brings it into view, where the page has moved it."""
    page.open(loader(adapter))
    page.run(
        "() => { const [x, y] = app.graph.getNodeById(1).pos;"
        "app.canvas.ds.offset = [300 - x, 150 - y]; app.canvas.setDirty(true, true) }"
    )
    expect(page.find(BROWSE)).to_be_visible()


def open_picker(page: ComfyPage, adapter: str = INK) -> None:
    open_loader(page, adapter)
    page.find(BROWSE).click()
    expect(line(page, INK)).to_contain_text("LoRA-LierLa")  # the server has read it
    page.find(SEARCH).fill("picked")


def line(page: ComfyPage, name: str) -> Any:
    return page.find(f"{DIALOG} [data-name='{name}']")


def names(page: ComfyPage) -> list[str]:
    return [one.get_attribute("data-name") or "" for one in page.find(LINES).all()]


def chosen(page: ComfyPage) -> str:
    return page.run("() => app.graph.getNodeById(1).widgets.find(w => w.name === 'adapter').value")


def test_it_opens_at_the_chosen_file_with_the_search_in_focus(page: ComfyPage):
    open_loader(page)
    page.find(BROWSE).click()
    expect(page.find(SEARCH)).to_be_focused()
    expect(line(page, INK)).to_have_attribute("aria-selected", "true")
    expect(page.find(f"{DIALOG} .anyadapter-inspector")).to_contain_text("Ink drawings")
    page.tab.screenshot(path=ARTEFACTS / f"picker-{page.way}.png")


def test_a_line_tells_method_rank_and_family(page: ComfyPage):
    open_picker(page)
    expect(line(page, INK)).to_contain_text("LoRA-LierLa · rank 4")
    expect(line(page, INK)).to_contain_text("SDXL")


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("picked lights neon", [NEON]),
        ("PONY picked", [INK, CAT]),
        ("picked lierla sdxl ink", [INK]),
        ("picked 猫", [CAT]),
        ("picked nothing has this", []),
    ],
)
def test_all_words_of_a_search_are_found_in_any_order(
    page: ComfyPage, search: str, expected: list[str]
):
    open_picker(page)
    page.find(SEARCH).fill(search)
    expect(page.find(LINES)).to_have_count(len(expected))
    assert sorted(names(page)) == sorted(expected)


def test_a_folder_shows_its_files_and_those_below(page: ComfyPage):
    open_picker(page)
    folder = page.find(f"{DIALOG} [data-path='picked/styles']")
    expect(folder).to_contain_text("2")
    folder.click()
    expect(page.find(LINES)).to_have_count(2)
    assert sorted(names(page)) == sorted([INK, NEON])
    page.tab.keyboard.press("ArrowRight")  # unfolds it
    page.tab.keyboard.press("ArrowDown")
    expect(page.find(LINES)).to_have_count(1)
    assert names(page) == [NEON]
    page.tab.keyboard.press("ArrowLeft")
    expect(page.find(LINES)).to_have_count(2)


def test_a_family_can_be_asked_for(page: ComfyPage):
    open_picker(page)
    page.find(f"{DIALOG} select").first.select_option("SDXL")
    expect(page.find(LINES)).to_have_count(3)
    other = page.find(f"{DIALOG} select").first.locator("option").all_inner_texts()
    assert any("SDXL (" in text for text in other)


def test_pictures_are_shown(page: ComfyPage):
    open_picker(page)
    page.find(f"{DIALOG} .anyadapter-bar button").click()
    page.tab.wait_for_function(
        "name => { const one = document.querySelector(`[data-name='${name}'] img`);"
        "return one?.complete && one.naturalWidth === 64 }",
        arg=INK,
    )
    assert (
        page.run("() => document.querySelector('.anyadapter-inspector-picture').naturalHeight")
        == 96
    )
    page.tab.screenshot(path=ARTEFACTS / f"pictures-{page.way}.png")


def test_the_keyboard_alone_chooses_a_file(page: ComfyPage):
    open_picker(page)
    page.run(
        "() => { window.told = []; const node = app.graph.getNodeById(1);"
        "const combo = node.widgets.find(w => w.name === 'adapter');"
        "const before = combo.callback;"
        "combo.callback = (...all) => { told.push(all[0]); return before?.(...all) } }"
    )
    page.tab.keyboard.press("ArrowUp")
    page.tab.keyboard.press("ArrowUp")
    page.tab.keyboard.press("ArrowDown")
    first, second, _ = names(page)
    expect(line(page, second)).to_have_attribute("aria-selected", "true")
    page.tab.keyboard.press("Enter")
    expect(page.find(DIALOG)).to_have_count(0)
    assert chosen(page) == second != first
    assert page.run("() => told") == [second]


def test_a_choice_is_undone_in_one_step(page: ComfyPage):
    open_picker(page)
    line(page, NEON).dblclick()
    expect(page.find(DIALOG)).to_have_count(0)
    assert chosen(page) == NEON
    page.run("() => app.extensionManager.command.execute('Comfy.Undo')")
    page.tab.wait_for_function(
        "name => app.graph.getNodeById(1)?.widgets.find(w => w.name === 'adapter').value === name",
        arg=INK,
    )


def test_escape_and_a_click_outside_choose_nothing(page: ComfyPage):
    open_picker(page)
    line(page, NEON).click()
    page.find(SEARCH).focus()
    page.tab.keyboard.press("Escape")
    expect(page.find(DIALOG)).to_have_count(0)
    assert chosen(page) == INK
    page.find(BROWSE).click()
    expect(page.find(DIALOG)).to_be_visible()
    page.tab.mouse.click(5, 500)
    expect(page.find(DIALOG)).to_have_count(0)
    assert chosen(page) == INK


def test_the_focus_stays_in_the_dialog(page: ComfyPage):
    open_picker(page)
    inside = "() => document.querySelector('dialog').contains(document.activeElement)"
    page.find(f"{DIALOG} .anyadapter-primary").focus()
    page.tab.keyboard.press("Tab")
    assert page.run(inside)
    expect(page.find(f"{DIALOG} .anyadapter-dialog-close")).to_be_focused()
    page.tab.keyboard.press("Shift+Tab")
    expect(page.find(f"{DIALOG} .anyadapter-primary")).to_be_focused()


def test_keys_in_the_dialog_are_no_shortcuts_of_the_page(page: ComfyPage):
    open_picker(page)
    page.run("() => app.canvas.selectNode(app.graph.getNodeById(1))")
    line(page, NEON).click()
    page.find("#anyadapter-files").focus()
    page.tab.keyboard.press("Delete")
    assert page.run("() => app.graph.nodes.length") == 1


def test_a_trigger_word_is_one_click_from_the_clipboard(page: ComfyPage):
    page.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_loader(page)
    page.find(".anyadapter-browse-info").click()
    info = page.find("dialog.anyadapter-info-dialog")
    words = info.locator("[data-words=trigger] button")
    expect(words).to_have_text(["drawn in ink", "sks town"])
    words.first.click()
    expect(info.locator("[role=status]")).to_contain_text("drawn in ink")
    assert page.run("() => navigator.clipboard.readText()") == "drawn in ink"
    tags = info.locator("[data-words=tags] button")
    expect(tags).to_have_text(["night40", "rain25", "umbrella3"])
    info.get_by_text("copy all").nth(1).click()
    page.tab.wait_for_function(
        "async () => await navigator.clipboard.readText() === 'night, rain, umbrella'"
    )
    page.tab.screenshot(path=ARTEFACTS / f"info-{page.way}.png")


def test_the_metadata_are_shown_whole(page: ComfyPage):
    open_loader(page)
    page.find(".anyadapter-browse-info").click()
    page.find(".anyadapter-metadata summary").click()
    expect(page.find(".anyadapter-metadata pre")).to_contain_text('"umbrella": 3')
    shown = page.find(".anyadapter-metadata pre").inner_text()
    assert json.loads(shown) == FILES[INK]


def test_the_menu_of_the_node_has_its_info(page: ComfyPage):
    open_loader(page)
    page.run(
        "() => app.collectNodeMenuItems(app.graph.getNodeById(1))"
        ".find(item => item?.content === 'Adapter info').callback()"
    )
    expect(page.find("dialog.anyadapter-info-dialog")).to_contain_text("Ink drawings")


def test_a_file_that_is_gone_is_marked_until_another_is_chosen(page: ComfyPage):
    open_loader(page, GONE)
    expect(page.find(BROWSE)).to_have_text(f"missing: {GONE}, choose another")
    page.tab.screenshot(path=ARTEFACTS / f"missing-{page.way}.png")
    page.find(BROWSE).click()
    # Among the files of other tests it may be too far down to be drawn.
    page.find(f"{DIALOG} input[type=search]").fill(INK)
    line(page, INK).click()
    page.find(f"{DIALOG} .anyadapter-primary").click()
    expect(page.find(BROWSE)).to_have_text("Browse …")
    assert chosen(page) == INK


def test_a_file_with_the_slashes_of_windows_is_not_marked(page: ComfyPage):
    open_loader(page, INK.replace("/", "\\"))
    expect(page.find(BROWSE)).to_have_text("Browse …")


def test_the_row_is_neither_stored_nor_sent(page: ComfyPage):
    open_loader(page)
    sent = page.run("() => app.graphToPrompt()")
    assert sent["workflow"]["nodes"][0]["widgets_values"] == [INK, *VALUES]
    assert "browse" not in sent["output"]["1"]["inputs"]
    assert sent["output"]["1"]["inputs"]["strength_clip"] == 0.5


def test_the_row_takes_no_more_room_than_a_widget(page: ComfyPage):
    open_loader(page)
    box = page.find(BROWSE).bounding_box()
    assert box is not None
    assert 20 < box["height"] < 32
    assert box["width"] > 200


def test_a_stored_workflow_and_a_copied_node_keep_their_values(page: ComfyPage):
    open_loader(page)
    values = "node => node.widgets.filter(w => w.serialize !== false).map(w => w.value)"
    copied = page.run(f"() => ({values})(app.graph.getNodeById(1).clone())")
    assert copied == [INK, *VALUES]
    page.run("async () => app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())))")
    assert page.run(f"() => ({values})(app.graph.getNodeById(1))") == [INK, *VALUES]


def test_a_prompt_with_a_file_that_is_gone_shows_the_reason(page: ComfyPage):
    report = {"name": "report", "type": "STRING", "links": [1]}
    outputs = [
        {"name": "MODEL", "type": "MODEL", "links": []},
        {"name": "CLIP", "type": "CLIP", "links": []},
        report,
    ]
    shown = {
        "id": 2,
        "type": "PreviewAny",
        "pos": [500, 0],
        "size": [300, 200],
        "inputs": [{"name": "source", "type": "*", "link": 1}],
    }
    page.open(loader(GONE, outputs=outputs), shown, links=[[1, 1, 2, 2, 0, "STRING"]])
    page.run("() => app.queuePrompt(0)")
    page.tab.wait_for_function("() => app.lastNodeErrors?.['1']")
    (error,) = page.run("() => app.lastNodeErrors['1'].errors")
    assert error["extra_info"]["input_name"] == "adapter"
    assert f"{GONE} is not in the LoRA folders (any more)" in error["details"]
    page.tab.screenshot(path=ARTEFACTS / f"refused-{page.way}.png")
    page.tab.keyboard.press("Escape")


def test_of_seven_thousand_files_only_those_in_view_are_drawn(page: ComfyPage):
    made = [
        {
            "name": f"folder {number % 50}/file {number}.safetensors",
            "size": number,
            "modified": number,
            "method": "LoRA-LierLa",
            "rank": "8",
            "family": "SDXL",
            "base_model": "",
            "preview": False,
            "error": "",
            "read": True,
        }
        for number in range(7000)
    ]

    def answer(route: Route) -> None:
        route.fulfill(json={"adapters": made, "pending": 0})

    page.tab.route("**/anyadapter/adapters*", answer)
    try:
        open_loader(page)
        page.find(BROWSE).click()
        expect(page.find(f"{DIALOG} .anyadapter-status")).to_contain_text("7000 files")
        assert 5 < page.find(LINES).count() < 40
        page.find("#anyadapter-files").focus()
        page.tab.keyboard.press("End")
        expect(line(page, "folder 49/file 6999.safetensors")).to_be_visible()
        assert page.find(LINES).count() < 40
        page.find(SEARCH).fill("file 4242")
        expect(page.find(LINES)).to_have_count(1)
    finally:
        page.tab.unroute("**/anyadapter/adapters*", answer)
