"""ComfyUI's page in a browser, driven as its user and its extensions do."""

from types import TracebackType
from typing import Any

from playwright.sync_api import Browser, Locator

READY = (
    "Boolean(window.app?.extensionManager && window.LiteGraph"
    "?.registered_node_types['AnyAdapterSchedule'])"
)
READY_WITHIN_MS = 120_000


class ComfyPage:
    """The page, opened when entered and closed when left."""

    def __init__(self, browser: Browser, url: str, *, nodes_2: bool) -> None:
        self._nodes_2 = nodes_2
        self._url = url
        self.tab = browser.new_page(viewport={"width": 1400, "height": 1000})
        self.errors: list[str] = []
        """What scripts of the pack threw."""
        self.tab.on("pageerror", lambda error: self._note(error.stack or error.message))
        self.tab.on("console", lambda message: self._note(message.text))

    def __enter__(self) -> "ComfyPage":
        self.tab.goto(self._url)
        self.tab.wait_for_function(READY, timeout=READY_WITHIN_MS)
        self.setting("Comfy.VueNodes.Enabled", self._nodes_2)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.tab.close()

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
            "extra": {},
            "version": 0.4,
        }
        self.run("workflow => app.loadGraphData(workflow)", workflow)
        self.run(
            "() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [300, 150];"
            "app.canvas.setDirty(true, true) }"
        )

    def run(self, script: str, argument: object = None) -> Any:
        """Runs JavaScript in the page and returns what it returns."""
        return self.tab.evaluate(script, argument)

    def find(self, selector: str) -> Locator:
        """Returns what a CSS selector finds, now or later."""
        return self.tab.locator(selector)

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

    def _note(self, text: str) -> None:
        if "extensions/anyadapter" in text:
            self.errors.append(text)
