"""The block editor of Load Adapter in the page: what is moved stands in the text, and back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Locator, expect
from safetensors.torch import save_file

from base_directory import CHECKPOINT_NAME
from comfy_page import ComfyPage
from comfy_server import ComfyServer
from workflows import read_latent, text_to_latent

ARTEFACTS = Path(__file__).parent / "artefacts"
TEXT_MODULE = "/extensions/anyadapter/block_text.js"

SD, FLUX, SDXL = "blocks/sd.safetensors", "blocks/flux.safetensors", "blocks/sdxl.safetensors"
USED = "blocks/used.safetensors"
"""Of which the server knows more once it was put on a model."""
TRANSFORMER = "1_transformer_blocks_0"
SD_BLOCKS = {
    "IN01": f"input_blocks_1_{TRANSFORMER}",
    "IN03": f"input_blocks_3_{TRANSFORMER}",
    "M00": f"middle_block_{TRANSFORMER}",
    **{f"OUT0{number}": f"output_blocks_{number}_{TRANSFORMER}" for number in range(4)},
}
"""Blocks of the small checkpoint with attention -> their modules in a file."""
SD_LAYERS = {
    "attn1_to_q": (320, 320),
    "attn1_to_k": (320, 320),
    "attn2_to_q": (320, 320),
    "attn2_to_k": (320, 768),
    "ff_net_0_proj": (2560, 320),
}

EDITOR = ".anyadapter-blocks"
FOLD = ".anyadapter-blocks-head button"
SUMMARY = ".anyadapter-blocks-summary"
NUMBER = ".anyadapter-blocks-number"
NOTE = ".anyadapter-blocks-note"
INFO = ".anyadapter-blocks-current-info"
BARS = f"{EDITOR} .anyadapter-blocks-strip [role=slider]"
HEAD_HEIGHT = 26
MAX_HEIGHT = 330
OPEN = {"anyadapter_blocks_open": True}


@pytest.fixture(scope="module", autouse=True)
def _files(server: ComfyServer) -> None:
    folder = server.base_directory / "models" / "loras"
    (folder / "blocks").mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(5)

    def factors(module: str, shape: tuple[int, int], size: float) -> dict[str, torch.Tensor]:
        outputs, inputs = shape
        up = size * torch.randn(outputs, 4, generator=generator)
        down = torch.randn(4, inputs, generator=generator)
        return {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}

    tensors: dict[str, torch.Tensor] = {}
    for number, module in enumerate(SD_BLOCKS.values(), 1):
        for layer, shape in SD_LAYERS.items():
            tensors |= factors(f"lora_unet_{module}_{layer}", shape, 0.02 * number)
    for name in (SD, USED):
        save_file(tensors, folder / name)

    tensors = {}
    for number in range(19):
        for stream in ("img", "txt"):
            for layer in ("attn_qkv", "attn_proj", "mlp_0", "mlp_2"):
                module = f"lora_unet_double_blocks_{number}_{stream}_{layer}"
                tensors |= factors(module, (8, 8), 1 + number % 5)
    for number in range(38):
        for layer in ("linear1", "linear2"):
            module = f"lora_unet_single_blocks_{number}_{layer}"
            tensors |= factors(module, (8, 8), 1 + number % 7)
    save_file(tensors, folder / FLUX)

    tensors = {}
    places = [f"input_blocks_{number}" for number in (4, 5, 7, 8)]
    places += ["middle_block", *(f"output_blocks_{number}" for number in range(6))]
    for number, place in enumerate(places):
        for layer in ("attn1_to_q", "attn1_to_k", "attn2_to_q", "attn2_to_v", "ff_net_2"):
            module = f"lora_unet_{place}_{TRANSFORMER}_{layer}"
            tensors |= factors(module, (8, 8), 1 + (3 * number) % 5)
    for number in range(12):
        module = f"lora_te1_text_model_encoder_layers_{number}_mlp_fc1"
        tensors |= factors(module, (8, 8), 0.5)
    save_file(tensors, folder / SDXL)


@pytest.fixture(autouse=True)
def _rules(page: ComfyPage) -> Iterator[None]:
    """Leaves the page as the next test expects it."""
    yield
    page.tab.set_viewport_size({"width": 1400, "height": 1000})


def load_node(adapter: str, blocks: str = "", **fields: Any) -> dict[str, Any]:
    widgets = [adapter, 1, 1, "hook", 0, "as trained", "every conditioning", -1, blocks, 0]
    return {
        "id": 1,
        "type": "AnyAdapterLoad",
        "pos": [0, 0],
        "size": [360, 300],
        "widgets_values": widgets,
        **fields,
    }


def opened(page: ComfyPage, adapter: str, blocks: str = "", level: str = "blocks") -> None:
    """Opens a workflow with a node whose editor is open, and waits until it shows the text."""
    properties = {**OPEN, "anyadapter_blocks_level": level}
    page.open(load_node(adapter, blocks, properties=properties))
    expect(page.find(f"{EDITOR} [role=slider]").first).to_be_visible()
    expect(page.find(NOTE)).to_be_hidden()
    look_at(page)


def look_at(page: ComfyPage, x: float = 300, y: float = 300, scale: float = 1) -> None:
    """Moves the canvas until the editor has its upper left corner at a place of the window."""
    page.run("scale => { app.canvas.ds.scale = scale; app.canvas.setDirty(true, true) }", scale)
    settled(page)
    box = page.find(EDITOR).first.bounding_box()
    assert box is not None
    page.run(
        "([x, y]) => { const {ds} = app.canvas; ds.offset = [ds.offset[0] + x / ds.scale, "
        "ds.offset[1] + y / ds.scale]; app.canvas.setDirty(true, true) }",
        [x - box["x"], y - box["y"]],
    )
    settled(page)


def settled(page: ComfyPage) -> None:
    """Waits until the node has stopped to move and grow, and no gesture goes on."""
    script = """() => new Promise(done => {
        let last = '', same = 0;
        const look = () => {
            const boxes = [...document.querySelectorAll('.anyadapter-blocks')].map(one =>
                JSON.stringify(one.getBoundingClientRect()));
            const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
            const now = boxes.join() + tracker.changeCount;
            same = now === last && tracker.changeCount === 0 ? same + 1 : 0;
            last = now;
            same > 10 ? done() : requestAnimationFrame(look);
        };
        look();
    })"""
    page.run(script)


def bar(page: ComfyPage, name: str) -> Locator:
    return page.find(f"{EDITOR} [role=slider][aria-label='{name}']")


def master(page: ComfyPage, group: str) -> Locator:
    return bar(page, f"Group {group}, all its blocks")


def text_of(page: ComfyPage) -> str:
    """What the node sends with a prompt."""
    return page.run("async () => (await app.graphToPrompt()).output['1'].inputs.blocks")


def value(of: Locator) -> float:
    return float(of.get_attribute("aria-valuenow") or "nan")


def node_size(page: ComfyPage) -> list[float]:
    settled(page)
    return page.run("() => [...app.graph.getNodeById(1).size]")


def place(of: Locator, wanted: float) -> tuple[float, float]:
    """Where an upright slider has a value."""
    box = of.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] * (2 - wanted) / 4


def click_at(page: ComfyPage, of: Locator, wanted: float) -> None:
    page.tab.mouse.click(*place(of, wanted))


def steps_to_undo(page: ComfyPage) -> int:
    """How many steps the page can take back."""
    settled(page)
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    return page.run(f"() => {{ {tracker}.checkState(); return {tracker}.undoQueue.length }}")


def undo(page: ComfyPage, key: str = "Control+z") -> None:
    settled(page)
    page.run("() => document.activeElement.blur()")
    page.tab.keyboard.press(key)


def test_fifty_folded_editors_are_one_line_each_and_ask_nothing(page: ComfyPage):
    asked: list[str] = []

    def note(request: Any) -> None:
        asked.append(request.url)

    page.tab.on("request", note)
    nodes = [
        load_node(SD, "IN:0.5", id=number + 1, pos=[400 * (number % 10), 500 * (number // 10)])
        for number in range(50)
    ]
    page.open(*nodes)
    expect(page.find(SUMMARY).first).to_have_text("IN:0.5")
    settled(page)
    page.tab.remove_listener("request", note)
    assert page.find(EDITOR).first.bounding_box()["height"] == HEAD_HEIGHT  # type: ignore[index]
    assert page.find(".anyadapter-blocks-strip").count() == 0
    routes = ("/anyadapter/blocks", "/anyadapter/block_weights", "/anyadapter/presets")
    assert not [url for url in asked if any(f"/api{route}" in url for route in routes)]


def test_unfolding_shows_all_blocks_and_folding_gives_the_node_its_size_back(page: ComfyPage):
    page.open(load_node(SD))
    before = node_size(page)
    fold = page.find(FOLD)
    expect(fold).to_have_attribute("aria-expanded", "false")
    expect(page.find(SUMMARY)).to_have_text("all at 1")
    fold.click()
    expect(fold).to_have_attribute("aria-expanded", "true")
    expect(bar(page, "IN01")).to_have_attribute("aria-valuenow", "1")
    unfolded = node_size(page)
    assert unfolded[1] > before[1] + 100
    fold.click()
    expect(page.find(BARS).first).to_be_hidden()
    assert node_size(page) == pytest.approx(before, abs=1)


def test_what_the_user_made_larger_stays_so(page: ComfyPage):
    page.open(load_node(SD))
    node_size(page)
    page.find(FOLD).click()
    expect(bar(page, "IN01")).to_be_visible()
    before = node_size(page)
    page.drag_corner(1, by=(60, 40))
    after = node_size(page)
    assert after[0] > before[0]
    assert after[1] > before[1]
    page.find(FOLD).click()
    folded = node_size(page)
    page.find(FOLD).click()
    expect(bar(page, "IN01")).to_be_visible()
    assert node_size(page) == pytest.approx(after, abs=1)
    page.find(FOLD).click()
    assert node_size(page) == pytest.approx(folded, abs=1)
    assert folded[1] < before[1]


def test_blocks_tell_where_the_file_acts(page: ComfyPage):
    opened(page, SD)
    assert [
        one.get_attribute("aria-disabled") for one in (bar(page, "IN01"), bar(page, "M00"))
    ] == [
        None,
        None,
    ]
    idle = bar(page, "IN02, not in this file")
    expect(idle).to_have_attribute("aria-disabled", "true")
    shares = [
        float(bar(page, name).evaluate("one => one.style.getPropertyValue('--share')").rstrip("%"))
        for name in SD_BLOCKS
    ]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    bar(page, "OUT03").focus()
    expect(page.find(INFO)).to_contain_text("100 % of the largest")
    click_at(page, idle, 0)
    expect(page.find(INFO)).to_have_text("not in this file")
    assert text_of(page) == ""


def test_a_click_and_a_drag_set_a_block(page: ComfyPage):
    opened(page, SD)
    click_at(page, bar(page, "IN01"), 0)
    expect(bar(page, "IN01")).to_have_attribute("aria-valuenow", "0")
    assert text_of(page) == "IN01:0"
    expect(page.find(SUMMARY)).to_have_text("IN01:0")
    one = bar(page, "OUT02")
    page.tab.mouse.move(*place(one, 1))
    page.tab.mouse.down()
    page.tab.mouse.move(*place(one, -0.5))
    page.tab.mouse.move(*place(one, -1))
    moved = value(one)
    assert moved == pytest.approx(-1, abs=0.051)
    assert text_of(page) == f"IN01:0, OUT02:{moved:g}"
    page.tab.mouse.up()
    page.tab.mouse.move(*place(one, 1))
    settled(page)
    assert value(one) == moved


def test_a_drag_across_paints_all_it_passes(page: ComfyPage):
    opened(page, SD)
    page.tab.mouse.move(*place(bar(page, "OUT00"), 0.5))
    page.tab.mouse.down()
    page.tab.mouse.move(*place(bar(page, "OUT03"), 0.5))
    page.tab.mouse.up()
    painted = value(bar(page, "OUT00"))
    assert painted == pytest.approx(0.5, abs=0.051)
    assert text_of(page) == f"OUT00-OUT03:{painted:g}"


def test_a_late_answer_leaves_what_was_moved_meanwhile(page: ComfyPage):
    # It took back the bars of a drag that had begun before it came.
    opened(page, SD)
    page.run(
        """() => { const real = window.fetch; window.fetchOfThePage = real;
        window.fetch = async (...values) => {
            if (!String(values[0]).includes('block_weights')) return real(...values);
            window.asked++;
            await new Promise(go => setTimeout(go, 1500));
            window.answered++;
            return real(...values) }; window.asked = window.answered = 0 }"""
    )
    try:
        bar(page, "IN01").focus()
        with page.tab.expect_response(lambda answer: "block_weights" in answer.url):
            page.tab.keyboard.press("ArrowDown")
            page.tab.wait_for_function("() => window.asked === 1")
            page.tab.mouse.move(*place(bar(page, "OUT00"), 0.5))
            page.tab.mouse.down()
            page.tab.mouse.move(*place(bar(page, "OUT01"), 0.5))
            assert page.run("() => window.answered") == 0
        page.run("() => new Promise(go => setTimeout(go, 100))")
        page.tab.mouse.move(*place(bar(page, "OUT02"), 0.5))
        page.tab.mouse.up()
    finally:
        page.run("() => { window.fetch = window.fetchOfThePage }")
    painted = value(bar(page, "OUT00"))
    assert text_of(page) == f"IN01:0.95, OUT00-OUT02:{painted:g}"


def test_shift_moves_in_hundredths(page: ComfyPage):
    opened(page, SD)
    x, y = place(bar(page, "IN01"), 0)
    page.tab.keyboard.down("Shift")
    page.tab.mouse.move(x, y)
    page.tab.mouse.down()
    page.tab.mouse.move(x, y - 7)
    page.tab.mouse.up()
    page.tab.keyboard.up("Shift")
    assert text_of(page) == "IN01:1.07"


def test_the_wheel_moves_a_block_and_zooms_elsewhere(page: ComfyPage):
    opened(page, SD)
    scale = "() => app.canvas.ds.scale"
    before = page.run(scale)
    page.tab.mouse.move(*place(bar(page, "M00"), 0))
    page.tab.mouse.wheel(0, -100)
    page.tab.mouse.wheel(0, -100)
    expect(bar(page, "M00")).to_have_attribute("aria-valuenow", "1.1")
    assert page.run(scale) == before
    page.find(INFO).hover()
    page.tab.mouse.wheel(0, 100)
    page.tab.wait_for_function(f"before => ({scale})() !== before", arg=before)
    assert text_of(page) == "M00:1.1"


def test_a_double_click_sets_to_one_and_alt_leaves_one_alone(page: ComfyPage):
    opened(page, SD, "OUT01:0.3")
    page.tab.mouse.dblclick(*place(bar(page, "OUT01"), -1))
    expect(bar(page, "OUT01")).to_have_attribute("aria-valuenow", "1")
    assert text_of(page) == ""
    page.tab.keyboard.down("Alt")
    click_at(page, bar(page, "IN03"), 0)
    page.tab.keyboard.up("Alt")
    assert text_of(page) == "ALL:0, IN03:1"
    assert page.run("() => app.graph._nodes.length") == 1
    page.find("button[aria-label^=Solo]").click()
    assert text_of(page) == ""


def test_each_gesture_is_one_step_of_undo(page: ComfyPage):
    opened(page, SD)
    start = steps_to_undo(page)
    one = bar(page, "OUT02")
    page.tab.mouse.move(*place(one, 1))
    page.tab.mouse.down()
    for wanted in (0.5, 0.2, -0.4, -1):
        page.tab.mouse.move(*place(one, wanted))
        page.tab.keyboard.press("Shift")
    page.tab.mouse.up()
    assert steps_to_undo(page) == start + 1
    dragged = text_of(page)
    page.tab.mouse.move(*place(bar(page, "IN01"), 0))
    for _ in range(4):
        page.tab.mouse.wheel(0, -100)
    assert steps_to_undo(page) == start + 2
    page.tab.mouse.dblclick(*place(one, 0))
    assert steps_to_undo(page) == start + 3
    assert text_of(page) == "IN01:1.2"
    undo(page)
    expect(one).not_to_have_attribute("aria-valuenow", "1")
    undo(page)
    expect(bar(page, "IN01")).to_have_attribute("aria-valuenow", "1")
    assert text_of(page) == dragged
    undo(page)
    expect(one).to_have_attribute("aria-valuenow", "1")
    assert text_of(page) == ""
    undo(page, "Control+y")
    expect(one).not_to_have_attribute("aria-valuenow", "1")
    assert text_of(page) == dragged


def test_an_undo_right_after_a_change_takes_it_back(page: ComfyPage):
    opened(page, SD)
    steps_to_undo(page)
    bar(page, "IN01").focus()
    page.tab.keyboard.press("ArrowUp")
    page.tab.keyboard.press("Control+z")
    expect(bar(page, "IN01")).to_have_attribute("aria-valuenow", "1")
    assert text_of(page) == ""


def test_folding_is_one_step_of_undo(page: ComfyPage):
    page.open(load_node(SD))
    before = node_size(page)
    start = steps_to_undo(page)
    page.find(FOLD).click()
    expect(bar(page, "IN01")).to_be_visible()
    assert steps_to_undo(page) == start + 1
    undo(page)
    expect(page.find(FOLD)).to_have_attribute("aria-expanded", "false")
    assert node_size(page) == pytest.approx(before, abs=1)


def test_sliders_are_worked_by_keyboard(page: ComfyPage):
    opened(page, SD)
    keys = page.tab.keyboard
    bar(page, "OUT00").focus()
    expect(bar(page, "OUT00")).to_have_attribute("aria-orientation", "vertical")
    keys.press("ArrowUp")
    assert text_of(page) == "OUT00:1.05"
    keys.press("Shift+ArrowDown")
    assert text_of(page) == "OUT00:1.04"
    keys.press("PageDown")
    assert text_of(page) == "OUT00:0.79"
    keys.press("ArrowRight")
    expect(bar(page, "OUT01")).to_be_focused()
    keys.press("Home")
    assert value(bar(page, "OUT01")) == -2
    keys.press("End")
    assert value(bar(page, "OUT01")) == 2
    keys.press("0")
    assert value(bar(page, "OUT01")) == 0
    keys.press("1")
    keys.press("ArrowLeft")
    keys.press("Delete")
    assert text_of(page) == ""
    assert page.run("() => app.graph._nodes.length") == 1
    keys.press("Enter")
    expect(page.find(NUMBER)).to_be_focused()
    keys.type("3.5")
    keys.press("Enter")
    expect(bar(page, "OUT00")).to_be_focused()
    assert text_of(page) == "OUT00:3.5"
    assert bar(page, "OUT00").get_attribute("aria-valuemax") == "3.5"


def test_a_slider_is_reached_by_tab_once_for_a_group(page: ComfyPage):
    opened(page, SD)
    tabs = page.run(
        f"() => [...document.querySelectorAll('{BARS}')].filter("
        "one => one.tabIndex === 0 && one.offsetParent).length"
    )
    assert tabs == len(page.find(".anyadapter-blocks-strip:visible").all())


def test_a_group_sets_all_its_blocks(page: ComfyPage):
    opened(page, SD, "OUT01:0.4")
    expect(master(page, "OUT")).to_have_attribute("aria-valuetext", "≈ 0.95")
    master(page, "OUT").focus()
    page.tab.keyboard.press("0")
    assert text_of(page) == "OUT:0"
    page.find("button[value=groups]").click()
    expect(page.find(BARS)).to_have_count(0)
    box = master(page, "IN").bounding_box()
    assert box is not None
    page.tab.mouse.click(box["x"] + box["width"] * 0.625, box["y"] + box["height"] / 2)
    assert text_of(page) == "IN:0.5, OUT:0"
    page.find(NUMBER).fill("-3")
    page.find(NUMBER).press("Enter")
    assert text_of(page) == "IN:-3, OUT:0"


def test_parts_are_set_inside_of_a_block(page: ComfyPage):
    opened(page, SD, level="parts")
    page.find(f"{EDITOR} [role=radio][aria-label=M00]").click()
    expect(page.find(".anyadapter-blocks-parts [role=slider]")).to_have_count(5)
    assert text_of(page) == ""
    bar(page, "M00.attn2.q").focus()
    page.tab.keyboard.press("0")
    assert text_of(page) == "M00.attn2.q:0"
    bar(page, "M00.attn2.k").focus()
    page.tab.keyboard.press("0")
    assert text_of(page) == "M00.attn2:0"
    settled(page)
    assert value(bar(page, "M00.attn2.k")) == 0
    assert value(bar(page, "M00.attn1.k")) == 1
    page.find("button[value=blocks]").click()
    expect(bar(page, "M00")).to_have_attribute("data-parted", "true")


def test_link_moves_the_whole_group(page: ComfyPage):
    opened(page, SD, "OUT01:0.5")
    link = page.find("button[aria-label^=Link]")
    link.click()
    expect(link).to_have_attribute("aria-pressed", "true")
    page.tab.mouse.move(*place(bar(page, "OUT00"), 1))
    page.tab.mouse.down()
    page.tab.mouse.move(*place(bar(page, "OUT03"), 0.5))
    page.tab.mouse.up()
    by = value(bar(page, "OUT00")) - 1
    assert by == pytest.approx(-0.5, abs=0.051)
    assert value(bar(page, "OUT01")) == pytest.approx(0.5 + by)
    assert value(bar(page, "OUT03")) == pytest.approx(1 + by)
    assert value(bar(page, "IN01")) == 1


def test_invert_and_reset(page: ComfyPage):
    opened(page, SD, "IN:0, M00:0.3, M00.mlp:1.5")
    page.find("button[aria-label^=Invert]").click()
    assert text_of(page) == "OUT:0, BASE:0, M00:0.7, M00.mlp:-0.5"
    page.find("button[aria-label^=Reset]").click()
    assert text_of(page) == ""


def test_solo_goes_and_comes_back(page: ComfyPage):
    opened(page, SD, "IN01:0.5, OUT:0")
    bar(page, "IN01").focus()
    solo = page.find("button[aria-label^=Solo]")
    solo.click()
    assert text_of(page) == "ALL:0, IN01:0.5"
    expect(solo).to_have_attribute("aria-pressed", "true")
    solo.click()
    assert text_of(page) == "OUT:0, IN01:0.5"


def test_weights_are_copied_and_pasted_as_text(page: ComfyPage):
    page.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened(page, SD, "IN:0.5")
    page.find("button[aria-label^=Copy]").click()
    expect(page.find(NOTE)).to_have_text("Copied: IN:0.5")
    page.find("button[aria-label^=Reset]").click()
    page.find("button[aria-label^=Paste]").click()
    expect(bar(page, "IN01")).to_have_attribute("aria-valuenow", "0.5")
    assert text_of(page) == "IN:0.5"
    page.run("() => navigator.clipboard.writeText('a poem')")
    page.find("button[aria-label^=Paste]").click()
    expect(page.find(NOTE)).to_contain_text("a poem")
    assert text_of(page) == "IN:0.5"


def test_pasting_works_where_the_browser_keeps_its_clipboard(page: ComfyPage):
    opened(page, SD, "OUT:0.25")
    page.find("button[aria-label^=Copy]").click()
    page.tab.context.clear_permissions()
    page.run("() => { navigator.clipboard.readText = () => Promise.reject(new Error('no')) }")
    page.find("button[aria-label^=Reset]").click()
    page.find("button[aria-label^=Paste]").click()
    expect(bar(page, "OUT01")).to_have_attribute("aria-valuenow", "0.25")


def test_typed_text_is_shown_or_told_what_is_wrong(page: ComfyPage):
    opened(page, SD)
    type_text(page, "IN03-M00:0.25, OUT.attn1:0")
    expect(bar(page, "M00")).to_have_attribute("aria-valuenow", "0.25")
    expect(bar(page, "OUT00")).to_have_attribute("data-parted", "true")
    type_text(page, "IN03:")
    expect(page.find(NOTE)).to_contain_text('"IN03:"')
    expect(page.find(NOTE)).to_have_class("anyadapter-blocks-note anyadapter-blocks-wrong")
    type_text(page, "S12:0.5")
    expect(page.find(NOTE)).to_contain_text("S12: no such block in this model")
    type_text(page, "")
    expect(page.find(NOTE)).to_be_hidden()
    expect(bar(page, "M00")).to_have_attribute("aria-valuenow", "1")


def test_random_weights_become_numbers_when_one_is_moved(page: ComfyPage):
    opened(page, SD, "OUT:R")
    drawn = [value(bar(page, f"OUT0{number}")) for number in range(4)]
    assert len(set(drawn)) == 4
    bar(page, "OUT01").focus()
    page.tab.keyboard.press("0")
    settled(page)
    assert [value(bar(page, f"OUT0{number}")) for number in range(4)] == [
        drawn[0],
        0,
        *drawn[2:],
    ]
    assert "R" not in text_of(page)


def test_rules_on_single_layers_are_kept(page: ComfyPage):
    page.open(load_node(SD, "IN:0.5, M00:to_q:0", properties=OPEN))
    expect(page.find(NOTE)).to_contain_text("Weights of single layers")
    bar(page, "OUT01").focus()
    page.tab.keyboard.press("0")
    assert text_of(page) == "IN:0.5, OUT01:0, M00:to_q:0"


@pytest.mark.parametrize("adapter", [SD, SDXL, FLUX])
def test_the_server_reads_what_the_page_writes(page: ComfyPage, adapter: str):
    """Random weights of blocks and parts come back as they were."""
    script = f"""async adapter => {{
        const {{ blockText }} = await import('{TEXT_MODULE}');
        const ask = async (route, query) => await (await fetch(
            `/anyadapter/${{route}}?${{new URLSearchParams(query)}}`)).json();
        const {{ groups }} = await ask('blocks', {{ adapter }});
        const blocks = groups.flatMap(group => group.blocks);
        let state = 7;
        const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
        const results = [];
        for (let round = 0; round < 40; round++) {{
            const choices = [0, 1, 0.5, -0.35, 1.125, 3].slice(0, 1 + round % 6);
            const pick = () => choices[Math.floor(random() * choices.length)];
            const usual = pick();
            const often = round % 3 / 2;
            const values = new Map(), parts = new Map();
            for (const group of groups) {{
                const own = random() < 0.5 ? usual : pick();
                for (const block of group.blocks) {{
                    const value = random() < often ? pick() : own;
                    values.set(block.name, value);
                    for (const part of block.parts) {{
                        const chosen = random() < 0.3 * often ? pick() : value;
                        if (chosen !== value) parts.set(`${{block.name}}.${{part.name}}`, chosen);
                    }}
                }}
            }}
            if (round % 4 === 3) for (const block of blocks) for (const part of block.parts)
                if (part.name.includes('attn') && values.get(block.name) !== 0.25)
                    parts.set(`${{block.name}}.${{part.name}}`, 0.25);
            const text = blockText(groups, {{ values, parts }});
            const read = await ask('block_weights', {{ adapter, text, seed: 0 }});
            results.push([text, read, Object.fromEntries(values), Object.fromEntries(parts)]);
        }}
        return results;
    }}"""
    for text, read, values, parts in page.run(script, adapter):
        assert read.get("values") == values, (text, read)
        assert read["parts"] == parts, text


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, ""),
        ({"IN04": 0.5}, "IN04:0.5"),
        (dict.fromkeys(("IN00", "IN01", "IN02", "IN03", "IN04", "IN05"), 0), "IN:0"),
        ({"IN01": 0, "IN02": 0, "M00": 0.5}, "IN01-IN02:0, M00:0.5"),
        ({"*": 0, "IN03": 1, "OUT00": -0.75}, "ALL:0, IN03:1, OUT00:-0.75"),
        (
            {"*": 0, "IN04": 0.5, "OUT00": 1, "OUT01": 1, "OUT02": 1},
            "ALL:0, IN04:0.5, OUT00-OUT02:1",
        ),
        ({"IN04": 1, "IN04.attn2.q": 0}, "IN04.attn2.q:0"),
        ({"IN04.attn2.q": 0, "IN04.attn2.k": 0}, "IN04.attn2:0"),
        ({"IN04.attn2.q": 0, "IN05.attn2.q": 0}, "IN04-IN05.attn2.q:0"),
        ({"IN04": 0.1 + 0.2}, "IN04:0.3"),
    ],
)
def test_the_text_is_short(page: ComfyPage, weights: dict[str, float], expected: str):
    script = f"""async weights => {{
        const {{ blockText }} = await import('{TEXT_MODULE}');
        const parts = ['attn1.q', 'attn2.q', 'attn2.k', 'mlp'].map(name => ({{ name }}));
        const group = (name, start, count) => ({{ name, blocks: Array.from({{ length: count }},
            (_, index) => ({{ name: `${{start}}0${{index}}`, parts }})) }});
        const groups = [group('IN', 'IN', 6), group('MID', 'M', 1), group('OUT', 'OUT', 6)];
        const names = groups.flatMap(one => one.blocks.map(block => block.name));
        const values = new Map(names.map(name => [name, weights[name] ?? weights['*'] ?? 1]));
        const own = Object.entries(weights).filter(([name]) => name.includes('.'));
        return blockText(groups, {{ values, parts: new Map(own) }});
    }}"""
    assert page.run(script, weights) == expected


@pytest.mark.parametrize("name", ["blocks", "adapter"])
def test_what_comes_from_another_node_is_not_edited(page: ComfyPage, name: str):
    kind = "STRING" if name == "blocks" else "COMBO"
    source = {
        "id": 2,
        "type": "PrimitiveString",
        "pos": [-280, 0],
        "size": [200, 60],
        "widgets_values": ["IN:0"],
        "outputs": [{"name": "STRING", "type": "STRING", "links": [1]}],
    }
    widget = {"name": name, "type": kind, "widget": {"name": name}}
    node = load_node(SD, properties=OPEN, inputs=[{**widget, "link": 1}])
    page.open(node, source, links=[[1, 2, 0, 1, 0, kind]])
    expect(page.find(NOTE)).to_contain_text(f"{name} comes from another node")
    expect(page.find(BARS)).to_have_count(0)
    page.run("name => app.graph.getNodeById(1).disconnectInput(name)", name)
    expect(bar(page, "IN01")).to_be_visible()


def test_another_file_has_other_blocks(page: ComfyPage):
    opened(page, SD, "OUT:0")
    page.run(
        "name => { const widget = app.graph.getNodeById(1).widgets.find(w => w.name === 'adapter');"
        "widget.value = name; widget.callback(widget.value) }",
        FLUX,
    )
    expect(bar(page, "S37")).to_be_visible()
    expect(bar(page, "IN01")).to_have_count(0)
    expect(bar(page, "S37")).to_have_attribute("aria-valuenow", "1")
    assert text_of(page) == "OUT:0"


def test_a_missing_file_is_told(page: ComfyPage):
    page.open(load_node("gone.safetensors", properties=OPEN))
    expect(page.find(NOTE)).to_contain_text("gone.safetensors")


def test_a_reopened_workflow_looks_as_it_did(page: ComfyPage):
    opened(page, SD)
    click_at(page, bar(page, "OUT00"), -1)
    page.find("button[value=groups]").click()
    size = node_size(page)
    text = text_of(page)
    stored = page.run("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    assert len(stored["nodes"][0]["widgets_values"]) == 10
    page.run("workflow => app.loadGraphData(workflow)", stored)
    expect(master(page, "OUT")).to_be_visible()
    expect(page.find("button[value=groups]")).to_have_attribute("aria-pressed", "true")
    settled(page)
    assert text_of(page) == text
    assert node_size(page)[0] == pytest.approx(size[0], abs=1)


def test_a_copied_node_has_an_editor_of_its_own(page: ComfyPage):
    opened(page, SD, "IN:0.5")
    page.run(
        "() => { const node = app.graph.getNodeById(1), copy = node.clone();"
        "app.graph.add(copy); copy.pos = [500, 0] }"
    )
    expect(page.find(FOLD)).to_have_count(2)
    copied = page.find(f"{EDITOR} >> nth=1").locator("[role=slider][aria-label=OUT00]")
    expect(copied).to_be_visible()
    copied.focus()
    page.tab.keyboard.press("0")
    expect(page.find(SUMMARY)).to_have_text(["IN:0.5", "IN:0.5, OUT00:0"])


def test_flux_is_not_as_tall_as_the_screen(page: ComfyPage):
    opened(page, FLUX)
    assert page.find(BARS).count() == 19 + 38 + 2
    for level in ("blocks", "groups", "parts"):
        page.find(f"button[value={level}]").click()
        settled(page)
        box = page.find(EDITOR).bounding_box()
        assert box is not None
        assert box["height"] <= MAX_HEIGHT
        hidden = page.run(
            "() => { const one = document.querySelector('.anyadapter-blocks-scroller');"
            "return one.scrollHeight - one.clientHeight }"
        )
        assert hidden <= 0, level


def test_what_does_not_fit_is_scrolled(page: ComfyPage, server: ComfyServer):
    names = [f"lora_te2_text_model_encoder_layers_{number}_mlp_fc1" for number in range(32)]
    names += [f"lora_te1_text_model_encoder_layers_{number}_mlp_fc1" for number in range(12)]
    for number in range(12):
        names += [
            f"lora_unet_{side}_blocks_{number}_1_transformer_blocks_{depth}_{layer}"
            for side in ("input", "output")
            for depth in (0, 1)
            for layer in ("attn1_to_q", "attn2_to_q", "ff_net_2")
        ]
    factors = {
        f"{name}.lora_{side}.weight": torch.ones(2, 2) for name in names for side in ("up", "down")
    }
    save_file(factors, server.base_directory / "models" / "loras" / "blocks" / "many.safetensors")
    opened(page, "blocks/many.safetensors")
    box = page.find(EDITOR).bounding_box()
    assert box is not None
    assert box["height"] <= MAX_HEIGHT
    bar(page, "G31").focus()
    page.tab.keyboard.press("0")
    assert text_of(page) == "G31:0"


@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_zoomed_the_mouse_hits_what_it_points_at(page: ComfyPage, scale: float):
    opened(page, SD)
    look_at(page, 300, 200, scale)
    click_at(page, bar(page, "OUT02"), -1)
    assert value(bar(page, "OUT02")) == pytest.approx(-1, abs=0.101)
    assert text_of(page).startswith("OUT02:-")


def test_a_small_window(page: ComfyPage):
    page.tab.set_viewport_size({"width": 700, "height": 500})
    opened(page, SD)
    look_at(page, 100, 100)
    click_at(page, bar(page, "IN01"), 0)
    assert text_of(page) == "IN01:0"


def test_a_preset_is_chosen_saved_replaced_and_deleted(page: ComfyPage):
    opened(page, SD)
    presets = page.find(f"{EDITOR} select")
    presets.select_option("INALL")
    expect(bar(page, "OUT00")).to_have_attribute("aria-valuenow", "0")
    chosen = text_of(page)
    assert chosen
    expect(presets.locator("option:checked")).to_have_text("INALL")
    start = steps_to_undo(page)
    bar(page, "OUT01").focus()
    page.tab.keyboard.press("End")
    expect(presets.locator("option:checked")).to_have_text("Presets")
    assert steps_to_undo(page) == start + 1

    press(page, "Save as")
    page.find(f"{EDITOR} input[type=text]").fill("Mine")
    page.tab.keyboard.press("Enter")
    expect(page.find(NOTE)).to_have_text("Saved as “Mine”.")
    expect(presets.locator("option:checked")).to_have_text("Mine")
    mine = text_of(page)

    page.find("button[aria-label^=Reset]").click()
    press(page, "Save as")
    page.find(f"{EDITOR} input[type=text]").fill("Mine")
    page.tab.keyboard.press("Enter")
    expect(page.find(f"{EDITOR} [role=alert]")).to_contain_text("Mine")
    page.find(f"{EDITOR} button").get_by_text("Cancel").click()
    presets.select_option("Mine")
    expect(bar(page, "OUT01")).to_have_attribute("aria-valuenow", "2")
    assert text_of(page) == mine

    presets.select_option("NONE")
    expect(bar(page, "OUT01")).to_have_attribute("aria-valuenow", "0")
    page.find(f"{EDITOR} button[aria-label^='Save, delete']").click()
    press(page, "Save as")
    page.find(f"{EDITOR} input[type=text]").fill("Mine")
    page.tab.keyboard.press("Enter")
    page.find(f"{EDITOR} button").get_by_text("Replace").click()
    expect(page.find(NOTE)).to_have_text("Saved as “Mine”.")
    expect(presets.locator("option:checked")).to_have_text("Mine")

    press(page, "Delete “Mine”")
    expect(page.find(NOTE)).to_have_text("“Mine” is deleted.")
    expect(presets.locator("option", has_text="Mine")).to_have_count(0)


def test_presets_go_to_a_file_and_come_from_one(page: ComfyPage, tmp_path: Path):
    opened(page, SD, "IN:0.4")
    press(page, "Save as")
    page.find(f"{EDITOR} input[type=text]").fill("For export")
    page.tab.keyboard.press("Enter")
    expect(page.find(NOTE)).to_contain_text("Saved")
    page.find(f"{EDITOR} button[aria-label^='Save, delete']").click()
    with page.tab.expect_download() as download:
        page.find(f"{EDITOR} button").get_by_text("Export", exact=True).click()
    download.value.save_as(tmp_path / "presets.json")
    exported = json.loads((tmp_path / "presets.json").read_text(encoding="utf-8"))
    assert "For export" in json.dumps(exported)
    page.find(f"{EDITOR} button").get_by_text("Delete “For export”").click()
    expect(page.find(NOTE)).to_contain_text("is deleted")
    page.find(f"{EDITOR} button[aria-label^='Save, delete']").click()
    with page.tab.expect_file_chooser() as chooser:
        page.find(f"{EDITOR} button").get_by_text("Import …").click()
    chooser.value.set_files(tmp_path / "presets.json")
    expect(page.find(NOTE)).to_contain_text("imported")
    expect(page.find(f"{EDITOR} option:checked")).to_have_text("For export")
    press(page, "Delete “For export”")
    expect(page.find(NOTE)).to_contain_text("is deleted")


def test_a_name_that_is_no_name_is_told(page: ComfyPage):
    opened(page, SD, "IN:0.4")
    press(page, "Save as")
    page.find(f"{EDITOR} input[type=text]").fill("  ")
    page.tab.keyboard.press("Enter")
    expect(page.find(NOTE)).not_to_be_empty()


def test_what_the_sliders_write_acts_as_the_same_text_does(page: ComfyPage, server: ComfyServer):
    prompt = text_to_latent(
        CHECKPOINT_NAME,
        [{"adapter": USED, "strength_model": 1.0, "strength_clip": 1.0, "mode": "hook", "rank": 0}],
        save_prefix="by_page",
    )
    page.run("prompt => app.loadApiJson(prompt, 'blocks')", prompt)
    expect(page.find(FOLD)).to_be_attached()
    look_at(page)
    page.find(FOLD).click()
    expect(bar(page, "OUT01")).to_be_visible()
    settled(page)
    click_at(page, bar(page, "OUT01"), -0.5)
    click_at(page, bar(page, "IN01"), 0)
    settled(page)
    written = page.run(
        "() => app.graph._nodes.find(one => one.type === 'AnyAdapterLoad')"
        ".widgets.find(one => one.name === 'blocks').value"
    )
    assert written.startswith("IN01:0, OUT01:-0.")
    with page.tab.expect_response("**/prompt") as answer:
        page.run("() => app.queuePrompt(0)")
    queued = answer.value.json()["prompt_id"]
    history = server.wait(queued)
    save = next(name for name, output in history["outputs"].items() if "latents" in output)
    by_page = read_latent(server, history, save)

    def by_text(blocks: str) -> torch.Tensor:
        loader = {**prompt["adapter_1"]["inputs"], "blocks": blocks}
        again = {**prompt, "adapter_1": {**prompt["adapter_1"], "inputs": loader}}
        again["save"] = {**prompt["save"], "inputs": {**prompt["save"]["inputs"]}}
        again["save"]["inputs"]["filename_prefix"] = "by_text"
        return read_latent(server, server.run(again))

    assert torch.equal(by_page, by_text(written))
    assert not torch.equal(by_page, by_text(""))


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_pictures(page: ComfyPage, theme: str):
    ARTEFACTS.mkdir(exist_ok=True)
    page.setting("Comfy.ColorPalette", theme)
    looks = [
        (SDXL, "ALL:0.8, OUT:0, IN04-IN05:1.5, OUT01:-0.7, M00:2.6, IN04.attn2:0", "blocks"),
        (SDXL, "IN04.attn2:0", "parts"),
        (FLUX, "SINGLE:0.5, S10-S20:1.3, D04:0", "blocks"),
        (FLUX, "DOUBLE:1.4", "groups"),
    ]
    nodes = [
        load_node(
            adapter,
            text,
            id=number + 1,
            pos=[380 * number, 0],
            size=[340, 300],
            properties={**OPEN, "anyadapter_blocks_level": level},
        )
        for number, (adapter, text, level) in enumerate(looks)
    ]
    page.tab.set_viewport_size({"width": 1700, "height": 950})
    page.open(*nodes)
    expect(page.find(".anyadapter-blocks-scroller:visible")).to_have_count(4)
    expect(page.find(f"{NOTE}:visible")).to_have_count(0)
    page.run("() => { app.canvas.ds.offset = [100, 120]; app.canvas.setDirty(true, true) }")
    settled(page)
    way = "nodes2" if page.run("() => Boolean(document.querySelector('[data-node-id]'))") else "lg"
    page.tab.screenshot(path=ARTEFACTS / f"blocks-{way}-{theme}.png")
    page.setting("Comfy.ColorPalette", "dark")


def type_text(page: ComfyPage, text: str) -> None:
    """Gives the widget a text, as its field does."""
    page.run(
        "text => { const widget = app.graph.getNodeById(1).widgets.find(w => w.name === 'blocks');"
        "widget.value = text; widget.callback(text) }",
        text,
    )


def press(page: ComfyPage, label: str) -> None:
    """Presses a button of the row of presets, which it opens if need be."""
    button = page.find(f"{EDITOR} button").get_by_text(label)
    if not button.is_visible():
        page.find(f"{EDITOR} button[aria-label^='Save, delete']").click()
    button.click()
