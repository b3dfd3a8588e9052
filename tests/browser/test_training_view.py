"""The view of a training in its node: it shows what the server tells, live and afterwards."""

import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Route, expect

from anyadapter.algorithms.analysis.series import Stretch, smoothed, thinned, usual_range
from comfy_page import ComfyPage, page_server
from comfy_server import ComfyServer

ARTEFACTS = Path(__file__).parent / "artefacts"
STAND_IN = Path(__file__).parents[1] / "support" / "stand_in_train.py"
CURVE_MODULE = "/extensions/anyadapter/training_curve.js"
VIEW = ".anyadapter-training"
FOLD = ".anyadapter-training-fold"
SUMMARY = ".anyadapter-training-summary"
FACTS = ".anyadapter-training-facts"
COURSE = "polyline.anyadapter-curve-course"
STEPS = "polyline.anyadapter-curve-steps"
DOTS = "circle.anyadapter-curve-validation"
TOLD = ".anyadapter-curve-told"
SAMPLE = ".anyadapter-training-sample"
STOP = ".anyadapter-training-stop"
SAVED = ".anyadapter-training-saved"
HEAD_HEIGHT = 26

numbers = itertools.count(100)
"""Of nodes: of each the page and the server know one training at most."""


@pytest.fixture(scope="module")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server whose Train LoRA does what a script says."""
    with page_server(comfyui, tmp_path_factory.mktemp("comfyui"), STAND_IN) as running:
        yield running


def train_node(number: int, *script: list[Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": number,
        "type": "AnyAdapterTrain",
        "pos": [0, 0],
        "size": [360, 160],
        "widgets_values": [json.dumps(script)],
        **fields,
    }


def opened(page: ComfyPage, *script: list[Any], **fields: Any) -> int:
    """Opens a workflow with one node and returns its number."""
    number = next(numbers)
    page.open(train_node(number, *script, **fields))
    expect(page.find(SUMMARY)).to_have_text("has not run yet")
    return number


def tell(page: ComfyPage, number: int | str, message: int = 1, **news: Any) -> None:
    """Tells the page what a server would."""
    told = {
        "node": str(number),
        "run": f"run of {number}",
        "message": message,
        "total": 500,
        "step": 0,
        "rate": 1e-4,
        "seconds_per_step": 0.5,
        "phase": "",
        "running": True,
        "stopping": False,
        "finished": "",
        "saved": "",
        "points": [],
        "validation": [],
        **news,
    }
    page.run(
        "detail => app.api.dispatchEvent(new CustomEvent('anyadapter.training', { detail }))", told
    )


def falling(count: int, noise: float = 0.0) -> list[list[float]]:
    draw = random.Random(2)
    return [
        [step, 0.1 + math.exp(-step / 60) + draw.expovariate(1) * noise, 1e-4]
        for step in range(1, count + 1)
    ]


def heights(line: Locator) -> list[float]:
    points = line.get_attribute("points") or ""
    return [float(pair.split(",")[1]) for pair in points.split()]


def stored(page: ComfyPage) -> dict[str, Any]:
    """The workflow as a file has it."""
    return json.loads(page.run("() => JSON.stringify(app.graph.serialize())"))


def node_size(page: ComfyPage, number: int) -> list[float]:
    """Width and height of a node once they rest."""
    script = (
        "async number => { const size = () => { const drawn = document.querySelector("
        "`[data-node-id='${number}']`), node = app.graph.getNodeById(number);"
        "return drawn ? [drawn.offsetWidth, drawn.offsetHeight] : [...node.size] };"
        "const frame = () => new Promise(requestAnimationFrame); let before; let now = size();"
        "do { before = now; for (let i = 0; i < 6; i++) await frame(); now = size() }"
        "while (String(before) !== String(now)); return now }"
    )
    return page.run(script, number)


def test_a_run_is_shown_live_stopped_and_remembered(page: ComfyPage, server: ComfyServer):
    number = opened(
        page,
        ["phase", "Encoding 12 of 40 pictures"],
        ["steps", 120],
        ["validation", 100, 0.4],
        ["sample", 100, "teal", "a cat in a hat"],
        ["wait"],
        ["finished", "Trained 120 of 500 steps.", "cat_000120.safetensors"],
    )
    page.run("() => app.queuePrompt(0)")
    expect(page.find(SUMMARY)).to_have_text("step 120/500 · 3 min left")
    expect(page.find(FACTS)).to_contain_text("2 it/s · rate 1e-4")
    expect(page.find(COURSE)).to_be_visible()
    assert len(heights(page.find(COURSE))) == 120
    expect(page.find(DOTS)).to_have_count(1)
    expect(page.find(f"{SAMPLE} img")).to_have_attribute("alt", "a cat in a hat")
    workflow = stored(page)
    page.reload()  # in the middle of it
    page.run("workflow => app.loadGraphData(workflow)", workflow)
    expect(page.find(SUMMARY)).to_have_text("step 120/500 · 3 min left")
    assert len(heights(page.find(COURSE))) == 120
    expect(page.find(SAMPLE)).to_have_count(1)
    page.find(STOP).click()
    expect(page.find(SUMMARY)).to_have_text("Trained 120 of 500 steps.")
    expect(page.find(STOP)).to_have_count(0)
    expect(page.find(SAVED)).to_have_text("cat_000120.safetensors")
    status, state = server.get(f"/anyadapter/training?node={number}")
    assert (status, state["saved"]) == (200, "cat_000120.safetensors")
    # The output of the node, brought back into a workflow of which the server knows nothing.
    history = [*server.get("/history")[1].values()][-1]
    other = opened(page)
    outputs = {str(other): history["outputs"][str(number)]}
    page.run("outputs => { app.nodeOutputs = outputs }", outputs)
    expect(page.find(SUMMARY)).to_have_text("Trained 120 of 500 steps.")
    expect(page.find(SAMPLE)).to_have_count(1)
    assert len(heights(page.find(COURSE))) == 120


def test_a_node_inside_of_a_subgraph_shows_its_run(page: ComfyPage, server: ComfyServer):
    number = opened(page, ["steps", 40], ["finished", "Trained.", "dog.safetensors"])
    place = page.run(
        "number => { const made = app.rootGraph.convertToSubgraph(new Set([app.rootGraph"
        ".getNodeById(number)])); const inner = made.node.subgraph.nodes[0];"
        "app.canvas.openSubgraph(made.node.subgraph, made.node);"
        "return `${made.node.id}:${inner.id}` }",
        number,
    )
    assert ":" in place
    expect(page.find(SUMMARY)).to_have_text("has not run yet")
    page.run("() => app.queuePrompt(0)")
    expect(page.find(SUMMARY)).to_have_text("Trained.")
    assert server.get(f"/anyadapter/training?node={place}")[1]["saved"] == "dog.safetensors"


def test_before_the_first_run_it_is_one_line(page: ComfyPage):
    opened(page)
    box = page.find(VIEW).bounding_box()
    assert box is not None
    assert box["height"] == HEAD_HEIGHT
    expect(page.find(FOLD)).to_be_disabled()
    expect(page.find(".anyadapter-curve")).to_be_hidden()


def test_a_phase_is_shown_until_steps_go_on(page: ComfyPage):
    number = opened(page)
    tell(page, number, phase="Encoding 12 of 40 pictures")
    expect(page.find(SUMMARY)).to_have_text("Encoding 12 of 40 pictures")
    expect(page.find(FACTS)).to_have_text("Encoding 12 of 40 pictures")
    tell(page, number, 2, step=2, points=[[1, 0.5, 1e-4], [2, 0.4, 1e-4]], seconds_per_step=2.5)
    expect(page.find(SUMMARY)).to_have_text("step 2/500 · 21 min left")
    expect(page.find(FACTS)).to_contain_text("2.5 s/it")
    tell(page, number, 3, step=2, phase="Sampling")
    expect(page.find(FACTS)).to_have_text("Sampling")


def test_a_missed_message_makes_the_page_ask(page: ComfyPage):
    number = opened(page)
    tell(page, number, step=1, points=[[1, 0.5, 1e-4]])
    with page.tab.expect_request(f"**/anyadapter/training?node={number}"):
        tell(page, number, 3, step=3, points=[[3, 0.5, 1e-4]])


def test_an_answer_that_comes_late_does_not_undo_what_was_told_since(page: ComfyPage):
    # The view of a short training stayed at its first step.
    number = next(numbers)
    held: list[Route] = []
    page.tab.route(f"**/anyadapter/training?node={number}", lambda route: held.append(route))
    with page.tab.expect_request(f"**/anyadapter/training?node={number}"):
        page.open(train_node(number))
    tell(page, number, step=1, points=falling(1))
    news = {"step": 9, "points": falling(9)[1:], "running": False, "finished": "Trained."}
    tell(page, number, 2, **news)
    expect(page.find(SUMMARY)).to_have_text("Trained.")
    old = {"run": f"run of {number}", "message": 1, "running": True, "finished": "", "saved": ""}
    old |= {"step": 1, "total": 500, "points": falling(1), "validation": [], "samples": []}
    with page.tab.expect_response(f"**/anyadapter/training?node={number}"):
        held[0].fulfill(json={**old, "node": str(number)})
    page.run("() => new Promise(requestAnimationFrame)")
    expect(page.find(SUMMARY)).to_have_text("Trained.")


def test_a_run_that_ended_by_itself_says_so(page: ComfyPage):
    number = opened(page)
    tell(page, number, step=3, points=falling(3))
    tell(page, number, 2, step=3, running=False)
    expect(page.find(SUMMARY)).to_have_text("ended after 3 of 500 steps")
    expect(page.find(STOP)).to_be_hidden()


def test_a_stop_that_comes_too_late_is_told(page: ComfyPage):
    number = opened(page)
    tell(page, number, step=3, points=falling(3))
    page.find(STOP).click()
    hint = page.find(".anyadapter-training-hint")
    expect(hint).to_contain_text("There is no such training any more")
    expect(page.find(STOP)).to_be_enabled()


def test_the_name_of_the_file_is_copied(page: ComfyPage):
    page.run("() => { Clipboard.prototype.writeText = async text => { window.copied = text } }")
    number = opened(page)
    tell(
        page, number, points=falling(9), running=False, finished="Done.", saved="a/cat.safetensors"
    )
    page.find(SAVED).click()
    page.tab.wait_for_function("() => window.copied === 'a/cat.safetensors'")


def test_a_picture_is_enlarged(page: ComfyPage):
    number = opened(page)
    image = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
    tell(page, number, step=100, points=falling(100))
    sample = {"step": 100, "label": "a cat in a hat", "image": image}
    tell(page, number, 2, step=100, sample=sample)
    page.find(SAMPLE).click()
    dialog = page.find("dialog.anyadapter-training-enlarged")
    expect(dialog.get_by_role("heading")).to_have_text("Step 100")
    expect(dialog.locator("p")).to_have_text("a cat in a hat")
    page.tab.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_only_the_newest_pictures_stay(page: ComfyPage):
    number = opened(page)
    tell(page, number)
    for step in range(26):
        sample = {"step": step, "label": "x", "image": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}
        tell(page, number, step + 2, sample=sample)
    expect(page.find(SAMPLE)).to_have_count(24)
    expect(page.find(SAMPLE).first).to_have_text("2")


def test_smoothing_and_scale_are_chosen_and_kept(page: ComfyPage):
    number = opened(page)
    tell(page, number, step=300, points=falling(300, noise=0.1), running=False)
    expect(page.find(STEPS)).to_have_count(1)
    node_size(page, number)
    smoother = heights(page.find(COURSE))
    page.find(f"{VIEW} select").select_option("some")
    smooth = heights(page.find(COURSE))
    page.find(f"{VIEW} select").select_option("none")
    expect(page.find(STEPS)).to_have_count(0)
    raw = heights(page.find(COURSE))

    def roughness(line: list[float]) -> float:
        return sum(abs(a - b) for a, b in itertools.pairwise(line))

    assert roughness(smoother) < roughness(smooth) < roughness(raw)
    scale = page.tab.get_by_role("button", name="Logarithmic scale")
    scale.click()
    assert heights(page.find(COURSE)) != raw
    page.run("workflow => app.loadGraphData(workflow)", stored(page))
    expect(scale).to_have_attribute("aria-pressed", "true")
    expect(page.find(f"{VIEW} select")).to_have_value("none")


def test_the_mouse_and_the_keys_tell_about_a_step(page: ComfyPage):
    number = opened(page)
    tell(page, number, step=101, points=falling(101), validation=[[51, 0.47]])
    curve = page.find(".anyadapter-curve")
    left = float((page.find(STEPS).get_attribute("points") or "").split(",")[0])
    box = curve.bounding_box()
    assert box is not None
    middle = (left + box["width"] - 12) / 2
    curve.hover(position={"x": middle, "y": 60})
    expect(page.find(TOLD)).to_have_text("step 51 · loss 0.5274 · rate 1e-4 · validation 0.47")
    page.tab.mouse.move(5, 5)
    expect(page.find(TOLD)).to_be_hidden()
    curve.focus()
    page.tab.keyboard.press("ArrowLeft")
    expect(page.find(TOLD)).to_contain_text("step 101")
    page.tab.keyboard.press("ArrowLeft")
    expect(page.find(TOLD)).to_contain_text("step 100")
    page.tab.keyboard.press("Home")
    expect(page.find(TOLD)).to_contain_text("step 1 ·")


@pytest.mark.parametrize("logarithmic", [False, True])
def test_hardly_anything_is_drawn_too(page: ComfyPage, logarithmic: bool):
    cases: list[tuple[list[Any], int, int]] = [
        ([[step, 0.125, 1e-4] for step in range(1, 9)], 1, 0),
        ([[1, 0.3, 1e-4]], 0, 1),
        ([[1, 0.3, 1e-4], [2, None, 1e-4], [3, 0.2, 1e-4], [4, 0.1, 1e-4]], 1, 1),
        ([[1, None, 1e-4]], 0, 0),
        ([[1, 0, 1e-4]], 0, 0 if logarithmic else 1),
        ([], 0, 0),
    ]
    for points, lines, dots in cases:
        properties = {"anyadapter_training_logarithmic": logarithmic}
        number = opened(page, properties=properties)
        tell(page, number, points=points)
        expect(page.find(".anyadapter-curve")).to_be_visible()
        expect(page.find(COURSE)).to_have_count(lines)
        expect(page.find("circle.anyadapter-curve-course")).to_have_count(dots)
        drawn = page.run("() => document.querySelector('.anyadapter-curve').innerHTML")
        assert "NaN" not in drawn
        assert "Infinity" not in drawn


def test_a_spike_leaves_the_rest_as_high_as_it_was(page: ComfyPage):
    spiky = falling(200)
    spiky[120][1] = 1e6
    spans = []
    for points in (falling(200), spiky):
        number = opened(page, properties={"anyadapter_training_smoothing": "none"})
        tell(page, number, points=points)
        node_size(page, number)
        course = heights(page.find(COURSE))
        spans.append(max(course[:100]) - min(course[:100]))
    assert spans[1] == pytest.approx(spans[0], rel=0.1)


def test_the_page_smooths_as_the_server_does(page: ComfyPage):
    stretches = thinned([Stretch.of(int(a), b, c) for a, b, c in falling(900, noise=0.2)], 100)
    points = [[s.step, s.loss, s.rate, s.low, s.high, s.count] for s in stretches]
    points[3][1] = None
    stretches[3] = Stretch.of(stretches[3].step, math.nan)
    script = (
        f"async points => {{ const {{ smoothed, usualRange }} = await import('{CURVE_MODULE}');"
        "return [smoothed(points, 40), usualRange(points.map(one => one[1]).filter(Boolean))] }"
    )
    means, usual = page.run(script, points)
    expected = smoothed(stretches, 40.0)
    assert means.pop(3) is None
    assert math.isnan(expected.pop(3))
    assert means == pytest.approx(expected, rel=1e-12)
    assert tuple(usual) == usual_range(one.loss for one in stretches)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 1, [0.01, 0.1, 1]), (0.1, 0.9, [0.1, 0.2, 0.5]), (0.2, 0.4, [0.2, 0.3, 0.4])],
)
def test_marks_of_a_logarithmic_scale_are_round(
    page: ComfyPage, low: float, high: float, expected: list[float]
):
    script = (
        f"async ([low, high]) => (await import('{CURVE_MODULE}')).logarithmicTicks(low, high, 3)"
    )
    assert page.run(script, [low, high]) == expected


def test_a_node_grows_for_its_run_and_folding_gives_its_size_back(page: ComfyPage):
    number = opened(page)
    before = node_size(page, number)
    tell(page, number, step=100, points=falling(100))
    grown = node_size(page, number)
    assert grown[1] > before[1] + 150
    page.find(FOLD).click()
    expect(page.find(".anyadapter-curve")).to_be_hidden()
    assert node_size(page, number) == pytest.approx(before, abs=1)
    tell(page, number, 2, step=101, points=[[101, 0.3, 1e-4]])
    expect(page.find(SUMMARY)).to_contain_text("step 101/500")
    assert node_size(page, number) == pytest.approx(before, abs=1)
    page.find(FOLD).click()
    assert node_size(page, number) == pytest.approx(grown, abs=1)
    tell(page, number, 3, step=101, running=False)  # nothing to press, nothing to copy
    assert node_size(page, number) == pytest.approx([grown[0], grown[1] - 30], abs=1)


def test_a_larger_node_has_a_larger_curve(page: ComfyPage):
    number = opened(page)
    tell(page, number, step=100, points=falling(100))
    node_size(page, number)
    curve = page.find(".anyadapter-curve")
    before = curve.bounding_box()
    page.drag_corner(number, by=(100, 120))
    node_size(page, number)
    after = curve.bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > before["width"] + 60
    assert after["height"] > before["height"] + 60


def test_a_workflow_stored_with_a_curve_opens_small_without_one(page: ComfyPage):
    number = opened(page)
    before = node_size(page, number)
    tell(page, number, step=100, points=falling(100))
    assert node_size(page, number)[1] > before[1]
    (node,) = stored(page)["nodes"]
    assert node["widgets_values"] == ["[]"]
    other = next(numbers)
    page.open({**node, "id": other})
    expect(page.find(SUMMARY)).to_have_text("has not run yet")
    page.tab.wait_for_function(
        "([id, height]) => Math.abs(app.graph.getNodeById(id).size[1] - height) < 60",
        arg=[other, before[1]],
    )


def test_several_nodes_show_their_own_runs(page: ComfyPage):
    first, second = next(numbers), next(numbers)
    page.open(train_node(first), train_node(second, pos=[500, 0]))
    tell(page, first, step=10, points=falling(10))
    tell(page, second, step=20, points=falling(20))
    expect(page.find(SUMMARY)).to_have_text(
        ["step 10/500 · 4 min left", "step 20/500 · 4 min left"]
    )


def test_a_copied_node_begins_anew(page: ComfyPage):
    number = opened(page)
    tell(page, number, step=10, points=falling(10))
    page.run(
        "number => { const copy = app.graph.getNodeById(number).clone();"
        "app.graph.add(copy); copy.pos = [500, 0] }",
        number,
    )
    expect(page.find(SUMMARY)).to_have_text(["step 10/500 · 4 min left", "has not run yet"])


def test_after_an_undo_the_run_is_still_there(page: ComfyPage):
    number = opened(page)
    tell(page, number, step=10, points=falling(10), running=False, finished="Trained.")
    page.run("workflow => app.loadGraphData(workflow)", stored(page))  # as an undo does
    expect(page.find(SUMMARY)).to_have_text("Trained.")
    expect(page.find(COURSE)).to_be_visible()
    tell(page, number, run="the next", total=20)
    expect(page.find(SUMMARY)).to_have_text("starting …")


def test_a_removed_node_is_told_nothing(page: ComfyPage):
    number = opened(page)
    tell(page, number, step=10, points=falling(10))
    page.run("number => app.graph.remove(app.graph.getNodeById(number))", number)
    expect(page.find(VIEW)).to_have_count(0)
    tell(page, number, 2, step=11, points=[[11, 0.3, 1e-4]])
    assert not page.errors


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_pictures(page: ComfyPage, theme: str):
    ARTEFACTS.mkdir(exist_ok=True)
    page.setting("Comfy.ColorPalette", theme)
    ids = [next(numbers) for _ in range(4)]
    page.tab.set_viewport_size({"width": 1700, "height": 700})
    page.open(*[train_node(one, pos=[390 * index, 0]) for index, one in enumerate(ids)])
    samples = [
        {"step": step, "label": "a cat", "image": _square(hue)}
        for step, hue in ((100, 20), (200, 90), (300, 200), (400, 290))
    ]
    long = falling(400, noise=0.08)
    checks = [[step, 0.18 + math.exp(-step / 60)] for step in range(50, 401, 50)]
    tell(page, ids[0], step=400, points=long, validation=checks, seconds_per_step=0.43)
    for index, sample in enumerate(samples):
        tell(page, ids[0], index + 2, step=400, sample=sample, seconds_per_step=0.43)
    ended = {"running": False, "finished": "Trained 400 of 500 steps.", "saved": "cat.safetensors"}
    tell(page, ids[1], points=long, validation=checks, step=400, **ended)
    tell(page, ids[2], phase="Encoding 12 of 40 pictures")
    expect(page.find(SAMPLE)).to_have_count(4)
    page.find(".anyadapter-curve >> nth=1").hover(position={"x": 120, "y": 60})
    for number in ids:
        node_size(page, number)
    page.tab.screenshot(path=ARTEFACTS / f"training-{page.way}-{theme}.png")
    page.setting("Comfy.ColorPalette", "dark")
    page.tab.set_viewport_size({"width": 1400, "height": 1000})


def _square(hue: int) -> str:
    return (
        "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'>"
        f"<rect width='8' height='8' fill='hsl({hue},45%25,50%25)'/>"
        f"<circle cx='4' cy='5' r='2.5' fill='hsl({hue + 40},60%25,75%25)'/></svg>"
    )
