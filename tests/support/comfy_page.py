"""ComfyUI's page in a browser, driven as its user and its extensions do."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from playwright.sync_api import Browser, Locator

from base_directory import make_base_directory
from comfy_server import ComfyServer

READY = (
    "Boolean(window.app?.extensionManager && window.LiteGraph"
    "?.registered_node_types['AnyAdapterSchedule'])"
)
READY_WITHIN_MS = 120_000


@contextmanager
def page_server(comfyui: Path, base_directory: Path, *custom_nodes: Path) -> Iterator[ComfyServer]:
    """Runs a server with the pack and other custom nodes, to open its page."""
    make_base_directory(base_directory)
    for module in custom_nodes:
        shutil.copy(module, base_directory / "custom_nodes")
    # Else its gallery of templates opens and lies over the page.
    settings = base_directory / "user" / "default" / "comfy.settings.json"
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")
    with ComfyServer(comfyui, base_directory) as running:
        yield running


class ComfyPage:
    """The page, opened when entered and closed when left."""

    def __init__(self, browser: Browser, url: str, *, nodes_2: bool) -> None:
        self._nodes_2 = nodes_2
        self.way = "nodes-2" if nodes_2 else "litegraph"
        """How nodes are drawn, for names of files."""
        self._url = url
        self.tab = browser.new_page(viewport={"width": 1400, "height": 1000})
        self.errors: list[str] = []
        """What scripts of the pack threw."""
        self.tab.on("pageerror", lambda error: self._note(error.stack or error.message))
        self.tab.on("console", lambda message: self._note(message.text))

    def __enter__(self) -> "ComfyPage":
        self.tab.goto(self._url)
        self._wait()
        self.setting("Comfy.VueNodes.Enabled", self._nodes_2)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.tab.close()

    def reload(self) -> None:
        """Loads the page again."""
        self.tab.reload()
        self._wait()

    def setting(self, name: str, value: object) -> None:
        """Changes a setting, as the dialog of settings does."""
        self.run("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])

    def open(self, *nodes: dict[str, Any], links: list[list[Any]] | None = None) -> None:
        """Opens a workflow, with its point (0, 0) in the upper left of the view."""
        always = {"flags": {}, "order": 0, "mode": 0, "properties": {}}
        workflow = {
            "last_node_id": len(nodes),
            "last_link_id": len(links or []),
            "nodes": [always | node for node in nodes],
            "links": links or [],
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 1, "offset": [300, 150]}},
            "version": 0.4,
        }
        self.run("workflow => app.loadGraphData(workflow)", workflow)

    def run(self, script: str, argument: object = None) -> Any:
        """Runs JavaScript in the page and returns what it returns."""
        return self.tab.evaluate(script, argument)

    def find(self, selector: str) -> Locator:
        """Returns what a CSS selector finds, now or later."""
        return self.tab.locator(selector)

    def place(self, node_id: int, x: float, y: float) -> tuple[float, float]:
        """Returns where on the screen a point of a node is, counted from the left below its title."""
        left, top = self.run(
            "id => { const {pos} = app.graph.getNodeById(id), {offset} = app.canvas.ds;"
            "return [0, 1].map(axis => pos[axis] + offset[axis]) }",
            node_id,
        )
        return left + x, top + y

    def select(self, node_id: int) -> None:
        """Clicks on the title of a node."""
        if self._nodes_2:
            box = self.find(f"[data-node-id='{node_id}']").bounding_box()
            assert box is not None
            self.tab.mouse.click(box["x"] + 120, box["y"] + 12)
        else:
            self.tab.mouse.click(*self.place(node_id, 120, -15))

    def drag_corner(self, node_id: int, *, by: tuple[float, float]) -> None:
        """Drags the lower right corner of a node with the mouse."""
        if self._nodes_2:
            box = self.find(f"[data-node-id='{node_id}']").bounding_box()
            assert box is not None
            corner = (box["x"] + box["width"], box["y"] + box["height"])
        else:
            corner = self.run(
                "id => { const {pos, size} = app.graph.getNodeById(id), {offset} = app.canvas.ds;"
                "return [0, 1].map(axis => pos[axis] + size[axis] + offset[axis]) }",
                node_id,
            )
        inside = [edge - 3 for edge in corner]
        self.tab.mouse.move(*inside)
        self.tab.mouse.down()
        self.tab.mouse.move(inside[0] + by[0] / 2, inside[1] + by[1] / 2)
        self.tab.mouse.move(inside[0] + by[0], inside[1] + by[1])
        self.tab.mouse.up()

    def hover_widget(self, node_id: int, name: str, *, shown: str = "") -> None:
        """Rests the mouse on the name of a widget, as it is shown in the language of the page."""
        if self._nodes_2:
            self.find(f"[data-node-id='{node_id}']").get_by_text(shown or name, exact=True).hover()
            return
        drawn = (  # and so it has a place
            "([id, name]) => { const widget = app.graph.getNodeById(id).widgets.find("
            "one => one.name === name); return widget.last_y || widget.y }"
        )
        top = self.tab.wait_for_function(drawn, arg=[node_id, name]).json_value()
        self.tab.mouse.move(*self.place(node_id, 60, top + 8))
        self.tab.mouse.move(*self.place(node_id, 62, top + 9))

    def _wait(self) -> None:
        self.tab.wait_for_function(READY, timeout=READY_WITHIN_MS)

    def _note(self, text: str) -> None:
        if "extensions/anyadapter" in text:
            self.errors.append(text)
