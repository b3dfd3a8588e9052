"""The editor of Adapter Stack in the page: what is done to its rows stands in the text, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import Locator, expect
from safetensors.torch import save_file

from comfy_page import ComfyPage
from comfy_server import ComfyServer

SUPPORT = Path(__file__).parents[1] / "support"
ARTEFACTS = Path(__file__).parent / "artefacts"
CASES: Any = json.loads((SUPPORT / "stack_cases.json").read_text(encoding="utf-8"))
"""The server is held to the same ones in tests/algorithms/test_stack.py."""
MODULE = "/extensions/anyadapter/stack_text.js"
FIELDS = ("adapter", "strengthModel", "strengthClip", "blocks", "seed", "start", "end", "isOn")

FILES = ("styles/ink.safetensors", "styles/soft.safetensors", "faces/顔.safetensors")
INK, SOFT, FACE = FILES
THREE = f"{INK} | 0.8\n{SOFT} | 0.5\n{FACE} | 1"

ROWS = ".anyadapter-stack-row"
NAMES = ".anyadapter-stack-name"
NUMBERS = ".anyadapter-number:visible"
HANDLES = ".anyadapter-range-handle"
ALL = ".anyadapter-stack-header [role=checkbox]"
AREA = ".anyadapter-stack-area"


@pytest.fixture(scope="module", autouse=True)
def _files(server: ComfyServer) -> None:
    folder = server.base_directory / "models" / "loras"
    module = "lora_unet_mid_block_attentions_0_proj_in"
    for name in (*FILES, *(f"many/{number:02}.safetensors" for number in range(20))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"{module}.lora_{part}.weight": torch.ones(4, 4) for part in ("up", "down")}
        save_file(tensors, path, {"modelspec.trigger_phrase": f"word of {path.stem}"})


def stack_node(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "type": "AnyAdapterStack",
        "pos": [0, 0],
        "size": [380, 100],
        "widgets_values": [text, "hook", -1],
        **fields,
    }


def opened(page: ComfyPage, text: str, rows: int, **fields: Any) -> Locator:
    """Opens a workflow with the node, and returns its rows."""
    page.open(stack_node(text, **fields))
    found = page.find(ROWS)
    expect(found).to_have_count(rows)
    settle(page)
    return found


def settle(page: ComfyPage) -> None:
    """Waits until the node has its size, and lets the page remember it.

    Nodes 2.0 gives a node another height when it is drawn, and takes that for a change of the user's
    at the next click.
    """
    page.run(
        """async () => {
            const size = () => String(app.graph.getNodeById(1).size);
            for (let same = 0, last = size(); same < 12; last = size()) {
                await new Promise(requestAnimationFrame);
                same = size() === last ? same + 1 : 0;
            }
        }"""
    )
    # A click elsewhere; a real one would be a double click with that of the test before.
    page.run(
        "() => { for (const event of [new PointerEvent('pointerdown'), new MouseEvent('mouseup')])"
        "window.dispatchEvent(event) }"
    )
    page.tab.wait_for_function(
        """() => {
            const stored = app.extensionManager.workflow.activeWorkflow.changeTracker.activeState;
            return String([...stored.nodes[0].size]) === String([...app.graph.getNodeById(1).size]);
        }"""
    )


def text_of(page: ComfyPage) -> str:
    """What the node sends with a prompt."""
    return page.run("async () => (await app.graphToPrompt()).output['1'].inputs.adapters")


def height(page: ComfyPage) -> float:
    return page.run("() => app.graph.getNodeById(1).size[1]")


def undo(page: ComfyPage) -> None:
    page.run("() => document.activeElement.blur()")
    page.tab.keyboard.press("Control+z")


def steps_to_undo(page: ComfyPage) -> int:
    """How many steps the page can take back."""
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    return page.run(f"() => {tracker}.undoQueue.length")


def choose(page: ComfyPage, name: str) -> None:
    """Chooses a file in the picker."""
    page.find("dialog input[type=search]").fill(Path(name).stem)
    expect(page.find("dialog [role=option]")).to_have_count(1)
    page.tab.keyboard.press("Enter")
    expect(page.find("dialog")).to_have_count(0)


def centre(of: Locator) -> tuple[float, float]:
    box = of.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: ComfyPage, of: Locator, *, by: tuple[float, float], shift: bool = False) -> None:
    x, y = centre(of)
    page.tab.mouse.move(x, y)
    page.tab.mouse.down()
    if shift:
        page.tab.keyboard.down("Shift")
    for step in (1, 2, 3, 4):
        page.tab.mouse.move(x + by[0] * step / 4, y + by[1] * step / 4)
    page.tab.mouse.up()
    if shift:
        page.tab.keyboard.up("Shift")


def test_the_page_reads_and_writes_what_the_server_does(page: ComfyPage):
    texts = [case["text"] for case in CASES["read"]]
    script = f"""async texts => {{
        const {{ parseStack, formatRow }} = await import('{MODULE}');
        return texts.map(text => {{
            const rows = parseStack(text);
            const values = rows.map(row => {json.dumps(FIELDS)}.map(field => row[field]));
            return [values, rows.map(formatRow).join('\\n')];
        }});
    }}"""
    for case, (rows, written) in zip(CASES["read"], page.run(script, texts), strict=True):
        assert rows == case["rows"], case["case"]
        assert written == case["written"], case["case"]


def test_the_page_refuses_what_the_server_does_in_the_same_words(page: ComfyPage):
    texts = [case["text"] for case in CASES["refused"]]
    script = f"""async texts => {{
        const {{ parseStack }} = await import('{MODULE}');
        return texts.map(text => {{
            try {{ return parseStack(text) }} catch (error) {{ return error.message }}
        }});
    }}"""
    assert page.run(script, texts) == [case["error"] for case in CASES["refused"]]


def test_the_page_finds_the_files_that_the_server_does(page: ComfyPage):
    script = f"async ([name, names]) => (await import('{MODULE}')).meant(name, names)"
    for case in CASES["found"]:
        found = page.run(script, [case["name"], CASES["names"]])
        assert (found[0] if len(found) == 1 else None) == case["found"], case["name"]


def test_rows_show_what_the_text_says(page: ComfyPage):
    rows = opened(page, f"{INK} | 0.8\n{SOFT} | -2.5 | off\n{FACE} | 1 | clip 0.25", 3)
    expect(page.find(NAMES)).to_have_text(["styles/ink", "styles/soft", "faces/顔"])
    expect(rows.get_by_role("switch")).to_have_count(3)
    assert [one.get_attribute("aria-checked") for one in rows.get_by_role("switch").all()] == [
        "true",
        "false",
        "true",
    ]
    shown = [[one.inner_text() for one in row.locator(NUMBERS).all()] for row in rows.all()]
    assert shown == [["0.80", "0.80"], ["-2.50", "-2.50"], ["1.00", "0.25"]]
    expect(rows.nth(1).locator(".anyadapter-unusual").first).to_be_visible()
    expect(page.find(".anyadapter-stack-count")).to_have_text("2 of 3")


def test_the_folder_that_all_share_is_not_shown(page: ComfyPage):
    opened(page, f"{INK} | 1\n{SOFT} | 1", 2)
    expect(page.find(NAMES)).to_have_text(["ink", "soft"])
    expect(page.find(NAMES).first).to_have_attribute("title", INK)


def test_an_adapter_is_added(page: ComfyPage):
    opened(page, "", 0)
    expect(page.find(".anyadapter-stack-empty")).to_be_visible()
    page.find(".anyadapter-stack-add").click()
    choose(page, SOFT)
    expect(page.find(ROWS)).to_have_count(1)
    assert text_of(page) == f"{SOFT} | 1"
    undo(page)
    expect(page.find(ROWS)).to_have_count(0)
    assert text_of(page) == ""


def test_another_file_is_chosen_for_a_row(page: ComfyPage):
    opened(page, f"{INK} | 0.8 | clip 0.5 | off", 1)
    page.find(NAMES).click()
    choose(page, SOFT)
    expect(page.find(NAMES)).to_have_text("soft")
    assert text_of(page) == f"{SOFT} | 0.8 | clip 0.5 | off"


def test_choosing_nothing_changes_nothing(page: ComfyPage):
    opened(page, THREE, 3)
    page.find(".anyadapter-stack-add").click()
    expect(page.find("dialog")).to_be_visible()
    page.tab.keyboard.press("Escape")
    expect(page.find("dialog")).to_have_count(0)
    assert text_of(page) == THREE


def test_a_row_and_all_rows_are_switched(page: ComfyPage):
    rows = opened(page, f"# kept\n{THREE}", 3)
    rows.nth(1).get_by_role("switch").click()
    assert text_of(page) == f"# kept\n{INK} | 0.8\n{SOFT} | 0.5 | off\n{FACE} | 1"
    expect(page.find(ALL)).to_have_attribute("aria-checked", "mixed")
    page.find(ALL).click()
    expect(page.find(ALL)).to_have_attribute("aria-checked", "true")
    assert text_of(page) == f"# kept\n{THREE}"
    page.find(ALL).click()
    expect(page.find(ALL)).to_have_attribute("aria-checked", "false")
    assert text_of(page).count(" | off") == 3
    undo(page)
    expect(page.find(ALL)).to_have_attribute("aria-checked", "true")
    assert text_of(page) == f"# kept\n{THREE}"


def test_a_strength_is_dragged_in_one_step_of_undo(page: ComfyPage):
    rows = opened(page, THREE, 3)
    before = steps_to_undo(page)
    drag(page, rows.nth(1).locator(NUMBERS), by=(40, 0))
    expect(rows.nth(1).locator(NUMBERS)).to_have_text("1.00")
    assert text_of(page).splitlines()[1] == f"{SOFT} | 1"
    page.tab.wait_for_function(
        "count => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length > count",
        arg=before,
    )
    assert steps_to_undo(page) == before + 1
    undo(page)
    expect(page.find(ROWS).nth(1).locator(NUMBERS)).to_have_text("0.50")
    assert text_of(page) == THREE


def test_shift_makes_fine_steps(page: ComfyPage):
    rows = opened(page, THREE, 3)
    drag(page, rows.nth(1).locator(NUMBERS), by=(-20, 0), shift=True)
    expect(rows.nth(1).locator(NUMBERS)).to_have_text("0.45")


def test_a_strength_is_typed(page: ComfyPage):
    rows = opened(page, THREE, 3)
    number = rows.first.locator(NUMBERS)
    number.click()
    number.locator("input").fill("-1.255")
    page.tab.keyboard.press("Enter")
    expect(number).to_have_text("-1.255")
    assert text_of(page).splitlines()[0] == f"{INK} | -1.255"
    number.click()
    number.locator("input").fill("nonsense")
    page.tab.keyboard.press("Enter")
    number.click()
    number.locator("input").fill("7")
    page.tab.keyboard.press("Escape")
    assert text_of(page).splitlines()[0] == f"{INK} | -1.255"


def test_a_strength_is_stepped_with_arrows_and_keys(page: ComfyPage):
    rows = opened(page, THREE, 3)
    number = rows.first.locator(NUMBERS)
    number.locator(".anyadapter-number-arrow").last.click()
    expect(number).to_have_text("0.85")
    page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("Shift+ArrowUp")
    expect(number).to_have_text("0.76")
    expect(number).to_have_attribute("aria-valuenow", "0.76")
    page.tab.keyboard.type("2")
    page.tab.keyboard.press("Enter")
    expect(number).to_have_text("2.00")
    assert text_of(page).splitlines()[0] == f"{INK} | 2"


def test_clip_gets_a_column_of_its_own(page: ComfyPage):
    rows = opened(page, THREE, 3)
    expect(rows.first.locator(NUMBERS)).to_have_count(1)
    columns = page.find(".anyadapter-tool").first
    columns.click()
    expect(rows.first.locator(NUMBERS)).to_have_count(2)
    drag(page, rows.first.locator(NUMBERS).nth(1), by=(-20, 0))
    drag(page, rows.first.locator(NUMBERS).nth(0), by=(20, 0))
    assert text_of(page).splitlines()[0] == f"{INK} | 1.05 | clip 0.55"
    columns.click()
    expect(rows.first.locator(NUMBERS)).to_have_count(1)
    assert text_of(page).splitlines()[0] == f"{INK} | 1.05"


@pytest.mark.parametrize("zoom", [1, 0.7])
def test_rows_are_reordered_by_dragging(page: ComfyPage, zoom: float):
    rows = opened(page, f"{INK} | 0.8\n# between\n{SOFT} | 0.5\n{FACE} | 1", 3)
    page.run("zoom => { app.canvas.ds.scale = zoom; app.canvas.setDirty(true, true) }", zoom)
    page.tab.wait_for_timeout(300)  # the page follows in a frame of its own
    before = steps_to_undo(page)
    drag(page, rows.first.locator(".anyadapter-stack-handle"), by=(0, 63 * zoom))
    expect(page.find(NAMES)).to_have_text(["styles/soft", "faces/顔", "styles/ink"])
    assert text_of(page) == f"{SOFT} | 0.5\n# between\n{FACE} | 1\n{INK} | 0.8"
    assert steps_to_undo(page) == before + 1
    undo(page)
    expect(page.find(NAMES)).to_have_text(["styles/ink", "styles/soft", "faces/顔"])


def test_escape_puts_a_dragged_row_back(page: ComfyPage):
    rows = opened(page, THREE, 3)
    x, y = centre(rows.first.locator(".anyadapter-stack-handle"))
    page.tab.mouse.move(x, y)
    page.tab.mouse.down()
    page.tab.mouse.move(x, y + 40)
    expect(page.find(NAMES)).to_have_text(["styles/soft", "styles/ink", "faces/顔"])
    page.tab.keyboard.press("Escape")
    page.tab.mouse.up()
    expect(page.find(NAMES)).to_have_text(["styles/ink", "styles/soft", "faces/顔"])
    assert text_of(page) == THREE


def test_rows_are_reordered_and_removed_by_keys(page: ComfyPage):
    rows = opened(page, THREE, 3)
    rows.first.locator(".anyadapter-stack-handle").focus()
    page.tab.keyboard.press("Alt+ArrowDown")
    page.tab.keyboard.press("Alt+ArrowDown")
    page.tab.keyboard.press("Alt+ArrowDown")
    expect(page.find(NAMES)).to_have_text(["styles/soft", "faces/顔", "styles/ink"])
    page.tab.keyboard.press("Alt+ArrowUp")
    expect(page.find(NAMES)).to_have_text(["styles/soft", "styles/ink", "faces/顔"])
    page.tab.keyboard.press("Delete")
    expect(page.find(NAMES)).to_have_text(["styles/soft", "faces/顔"])
    assert text_of(page) == f"{SOFT} | 0.5\n{FACE} | 1"
    assert page.run("() => app.graph.nodes.length") == 1


def test_the_menu_of_a_row(page: ComfyPage):
    rows = opened(page, f"{INK} | 0.8 | steps 0-0.5\n{SOFT} | 0.5", 2)
    rows.first.locator(NAMES).click(button="right")
    menu = page.find("[role=menu].anyadapter-menu")
    expect(menu.get_by_role("menuitem", name="Move up")).to_be_disabled()
    menu.get_by_role("menuitem", name="Duplicate").click()
    expect(menu).to_have_count(0)
    copied = f"{INK} | 0.8 | steps 0-0.5"
    assert text_of(page) == f"{copied}\n{copied}\n{SOFT} | 0.5"
    rows.first.locator(".anyadapter-stack-menu").click()
    menu.get_by_role("menuitem", name="Move down").click()
    rows.nth(2).locator(".anyadapter-stack-menu").click()
    page.tab.keyboard.press("ArrowUp")
    page.tab.keyboard.press("Enter")
    expect(page.find(ROWS)).to_have_count(2)
    assert text_of(page) == f"{copied}\n{copied}"
    rows.first.locator(".anyadapter-stack-menu").click()
    page.tab.keyboard.press("Escape")
    expect(menu).to_have_count(0)


def test_steps_are_set_below_a_row(page: ComfyPage):
    rows = opened(page, THREE, 3)
    rows.first.locator(".anyadapter-stack-fold").click()
    start, end = rows.first.locator(HANDLES).all()
    end.focus()
    for _ in range(4):
        page.tab.keyboard.press("PageDown")
    page.tab.keyboard.press("ArrowRight")
    assert text_of(page).splitlines()[0] == f"{INK} | 0.8 | steps 0-0.61"
    track = rows.first.locator(".anyadapter-range-track").bounding_box()
    assert track is not None
    drag(page, start, by=(track["width"] / 2, 0))
    expect(rows.first.locator(".anyadapter-range-text")).to_have_text("50\u201361%")
    drag(page, start, by=(track["width"], 0))
    assert text_of(page).splitlines()[0] == f"{INK} | 0.8 | steps 0.6-0.61"
    rows.first.locator(".anyadapter-stack-fold").click()
    expect(rows.first.locator(".anyadapter-stack-marks")).to_have_text("60\u201361%")


def test_weights_of_blocks_are_set_below_a_row(page: ComfyPage):
    rows = opened(page, THREE, 3)
    rows.first.locator(".anyadapter-stack-fold").click()
    expect(rows.first.locator(".anyadapter-stack-blocks [role=slider]").first).to_be_visible()
    settle(page)  # or both would be one gesture
    rows.first.locator(".anyadapter-stack-blocks [role=slider]").first.focus()
    page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("ArrowDown")
    expect(rows.first.locator(".anyadapter-blocks-summary")).to_have_text("M00:0.9")
    assert text_of(page) == THREE.replace("| 0.8", "| 0.8 | blocks M00:0.9")
    settle(page)
    undo(page)
    expect(page.find(".anyadapter-blocks-summary")).to_have_text("all at 1")
    assert text_of(page) == THREE
    expect(page.find(".anyadapter-stack-blocks [role=slider]").first).to_be_visible()


def test_the_editor_below_a_row_keeps_its_looks_whichever_was_there_first(page: ComfyPage):
    """Its buttons stuck together where a Load Adapter node had been opened before the stack."""
    rows = opened(page, THREE, 3)
    rows.first.locator(".anyadapter-stack-fold").click()
    page.run(
        """() => new Promise((done) => {
            const sheet = document.querySelector("link[href$='/stack_editor.css']");
            sheet.addEventListener("load", done, { once: true });
            document.head.append(sheet);
        })"""
    )
    expect(page.find(".anyadapter-blocks-levels button").first).to_have_css("padding-left", "7px")


def test_another_file_shows_its_own_blocks(page: ComfyPage):
    # The editor below the row kept those of the file before.
    rows = opened(page, f"{INK} | 0.8", 1)
    rows.first.locator(".anyadapter-stack-fold").click()
    expect(rows.first.locator(".anyadapter-stack-blocks [role=slider]").first).to_be_visible()
    page.find(NAMES).click()
    with page.tab.expect_request(
        lambda asked: "/anyadapter/blocks?" in asked.url and Path(SOFT).stem in asked.url
    ):
        choose(page, SOFT)


def test_trigger_words_are_copied_by_a_click(page: ComfyPage):
    page.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    rows = opened(page, THREE, 3)
    rows.first.locator(".anyadapter-stack-fold").click()
    word = rows.first.locator(".anyadapter-stack-words button")
    expect(word).to_have_text("word of ink")
    word.click()
    expect(word).to_have_class("anyadapter-chip anyadapter-copied")
    assert page.run("() => navigator.clipboard.readText()") == "word of ink"
    expect(rows.first.locator("img")).to_be_hidden()


def test_a_picture_is_shown_where_there_is_one(page: ComfyPage, server: ComfyServer):
    picture = server.base_directory / "models" / "loras" / "styles" / "soft.preview.png"
    Image.new("RGB", (8, 6), (200, 40, 90)).save(picture)
    rows = opened(page, THREE, 3)
    rows.nth(1).locator(".anyadapter-stack-fold").click()
    expect(rows.nth(1).locator("img")).to_be_visible()
    rows.first.locator(".anyadapter-stack-fold").click()
    expect(rows.first.locator(".anyadapter-stack-words button")).to_have_count(1)
    expect(rows.first.locator("img")).to_be_hidden()


def test_the_menu_shows_all_about_a_file(page: ComfyPage):
    rows = opened(page, f"{INK} | 1\ngone/lost.safetensors | 1", 2)
    expect(page.find(".anyadapter-missing")).to_have_count(1)
    rows.nth(1).locator(".anyadapter-stack-menu").click()
    info = page.find("[role=menu].anyadapter-menu").get_by_role("menuitem", name="Info")
    expect(info).to_be_disabled()
    page.tab.keyboard.press("Escape")
    rows.first.locator(".anyadapter-stack-menu").click()
    info.click()
    expect(page.find("dialog")).to_contain_text("ink")
    page.tab.keyboard.press("Escape")
    expect(page.find("dialog")).to_have_count(0)


def test_the_node_is_as_high_as_its_rows_need(page: ComfyPage):
    rows = opened(page, THREE, 3)
    page.tab.wait_for_timeout(300)
    three = height(page)
    rows.first.locator(".anyadapter-stack-menu").click()
    page.find("[role=menu].anyadapter-menu").get_by_role("menuitem", name="Duplicate").click()
    expect(page.find(ROWS)).to_have_count(4)
    page.tab.wait_for_function("three => app.graph.getNodeById(1).size[1] > three + 20", arg=three)
    assert height(page) == pytest.approx(three + 30, abs=1.5)
    rows.first.locator(".anyadapter-stack-handle").focus()
    page.tab.keyboard.press("Delete")
    page.tab.wait_for_function("three => app.graph.getNodeById(1).size[1] < three + 2", arg=three)
    assert height(page) == pytest.approx(three, abs=1.5)


def test_many_rows_scroll(page: ComfyPage):
    text = "\n".join(f"many/{number:02}.safetensors | 1" for number in range(20))
    rows = opened(page, text, 20)
    expect(rows.first).to_be_in_viewport()
    listed = page.find(".anyadapter-stack-list")
    box, row = listed.bounding_box(), rows.first.bounding_box()
    assert box is not None
    assert row is not None
    assert 11.5 < box["height"] / row["height"] < 13
    scale = page.run("() => app.canvas.ds.scale")
    rows.first.locator(".anyadapter-stack-handle").click()  # Nodes 2.0 may want it to be in use
    listed.hover()
    page.tab.mouse.wheel(0, 300)
    page.tab.wait_for_function("document.querySelector('.anyadapter-stack-list').scrollTop > 100")
    assert page.run("() => app.canvas.ds.scale") == scale


def test_the_text_is_shown_and_edited(page: ComfyPage):
    opened(page, THREE, 3)
    expect(page.find(AREA)).to_be_hidden()
    page.find(".anyadapter-tool").last.click()
    expect(page.find(AREA)).to_have_value(THREE)
    page.find(AREA).fill(f"# only\n<lora:ink:0.6:0.3>\n{SOFT} | 0,5")
    expect(page.find(NAMES)).to_have_text(["ink"])
    expect(page.find(".anyadapter-stack-bad")).to_contain_text('Line 3: "0,5" means nothing here')
    assert text_of(page) == f"# only\n<lora:ink:0.6:0.3>\n{SOFT} | 0,5"
    page.find(ROWS).get_by_role("switch").click()
    expected = f"# only\nink | 0.3 | clip 0.6 | off\n{SOFT} | 0,5"
    assert text_of(page) == expected
    expect(page.find(AREA)).to_have_value(expected)


def test_a_missing_file_is_marked(page: ComfyPage):
    rows = opened(page, f"{INK} | 1\ngone/lost.safetensors | 1", 2)
    expect(page.find(".anyadapter-missing")).to_have_count(1)
    expect(rows.nth(1).locator(NAMES)).to_have_attribute(
        "title", "gone/lost.safetensors is not in the LoRA folders."
    )


def test_all_is_kept_in_the_workflow(page: ComfyPage):
    text = f"# my looks\n\n{INK} | 0.8 | clip 0.5 | blocks IN:0.5\n{SOFT} | 1 | off\n"
    rows = opened(page, text, 2)
    rows.nth(1).locator(".anyadapter-stack-fold").click()
    expect(rows.nth(1).locator(HANDLES)).to_have_count(2)
    expect(rows.nth(1).locator(".anyadapter-stack-words button")).to_have_count(1)
    settle(page)
    stored = page.run("() => app.graph.serialize()")
    (node,) = stored["nodes"]
    assert node["widgets_values"] == [text, "hook", -1]
    page.run("async workflow => { await app.loadGraphData(workflow) }", stored)
    expect(page.find(ROWS)).to_have_count(2)
    expect(page.find(ROWS).nth(1).locator(HANDLES)).to_have_count(2)
    expect(page.find(".anyadapter-stack-words button")).to_have_count(1)
    settle(page)
    assert text_of(page) == text
    assert height(page) == pytest.approx(node["size"][1], abs=2)


def test_a_prompt_has_the_text_and_the_other_widgets_and_nothing_else(page: ComfyPage):
    opened(page, THREE, 3)
    inputs = page.run("async () => (await app.graphToPrompt()).output['1'].inputs")
    assert inputs == {"adapters": THREE, "mode": "hook", "memory_mb": -1}


def test_text_from_another_node_is_told(page: ComfyPage):
    source = {
        "id": 2,
        "type": "PrimitiveStringMultiline",
        "pos": [-280, 0],
        "size": [200, 60],
        "widgets_values": ["x"],
        "outputs": [{"name": "STRING", "type": "STRING", "links": [1]}],
    }
    linked = {"name": "adapters", "type": "STRING", "widget": {"name": "adapters"}, "link": 1}
    page.open(stack_node(THREE, inputs=[linked]), source, links=[[1, 2, 0, 1, 0, "STRING"]])
    expect(page.find(".anyadapter-stack-note")).to_contain_text("comes from another node")
    page.run("() => app.graph.getNodeById(1).disconnectInput('adapters')")
    expect(page.find(".anyadapter-stack-note")).to_be_hidden()


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_it_is_drawn_narrow_and_wide(page: ComfyPage, theme: str):
    """Makes pictures for people to look at; nothing may stick out of the narrow one."""
    page.setting("Comfy.ColorPalette", theme)
    text = (
        f"{INK} | 0.8\n{SOFT} | 0.35 | off\n{FACE} | 1 | clip 0.6 | blocks IN:0.5 | steps 0-0.6\n"
        "gone/lost.safetensors | -2.5\nx | 0,8"
    )
    unfolded = {"anyadapter_unfolded": [2]}
    narrow = stack_node(text, size=[320, 100], properties=unfolded)
    page.open(narrow, stack_node(text, id=2, pos=[440, 0], size=[460, 100], properties=unfolded))
    expect(page.find(ROWS)).to_have_count(8)
    page.tab.wait_for_timeout(500)
    ARTEFACTS.mkdir(exist_ok=True)
    way = "nodes2" if page.run("() => LiteGraph.vueNodesMode") else "litegraph"
    page.tab.screenshot(path=ARTEFACTS / f"stack-{way}-{theme}.png")
    sticking_out = page.run(
        """() => {
            const edges = (one) => one.getBoundingClientRect();
            const stack = document.querySelector('.anyadapter-stack');
            const controls = [...stack.querySelectorAll('button, .anyadapter-number')];
            return controls.filter(one => one.offsetParent && edges(one).right > edges(stack).right + 1)
                .map(one => one.className);
        }"""
    )
    assert sticking_out == []
    page.setting("Comfy.ColorPalette", "dark")
