"""A custom node for ComfyUI that stands in for AnyAdapterTrain: it tells the page what a script says."""

import json
import math
import sys
import time
from typing import Any

import nodes
from PIL import Image
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}


class StandInTrain:
    RETURN_TYPES = ()
    FUNCTION = "train"
    CATEGORY = "Any Adapter"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        script = ("STRING", {"default": "[]"})
        return {"required": {"script": script}, "hidden": {"node": "UNIQUE_ID"}}

    def train(self, script: str, node: str) -> dict[str, Any]:
        view = _pack("nodes.host.training_view").TrainingView(node, 500)
        try:
            for action, *values in json.loads(script):
                if action == "steps":
                    for step in range(1, values[0] + 1):
                        view.step(step, 0.1 + math.exp(-step / 60) + 0.05 * (step % 3), 1e-4, 0.5)
                elif action == "wait":
                    while not view.wants_stop():
                        time.sleep(0.02)
                elif action == "sample":
                    step, colour, label = values
                    view.sample(step, Image.new("RGB", (96, 64), colour), label)
                else:
                    getattr(view, action)(*values)
        finally:
            view.close()
        return {"ui": view.output(), "result": ()}


def _pack(module: str) -> Any:
    """Returns a module of the pack, whose name in the host begins with its path."""
    return next(one for name, one in sys.modules.items() if name.endswith(f"anyadapter.{module}"))


async def stand_in(_: Any) -> None:
    """Takes the place of the real node, after all custom nodes are there."""
    nodes.NODE_CLASS_MAPPINGS["AnyAdapterTrain"] = StandInTrain


PromptServer.instance.app.on_startup.append(stand_in)
