"""Adapter for Conditioning: gives a prompt its own strength of an adapter."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..algorithms.schedule import Schedule
from ..algorithms.strength import Request
from .host.files import adapter_names
from .host.moments import with_request
from .sockets import ScheduleSocket

ALL = "all adapters"
FACTOR = {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.01}


class AdapterForConditioning(io.ComfyNode):
    """Marks a conditioning with a factor on the strength of one adapter, or of all."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterConditioning",
            display_name="Adapter for Conditioning",
            category="Any Adapter",
            description=(
                "Gives this prompt its own strength of an adapter that Load Adapter has put on the "
                "model. Positive, negative and regional prompts run in one batch, each with its own."
            ),
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt."),
                io.Combo.Input(
                    "adapter",
                    options=[ALL, *adapter_names()],
                    default=ALL,
                    tooltip="The file, as chosen in Load Adapter, or all that are loaded. A file "
                    "by its name counts before all.",
                ),
                io.Float.Input(
                    "strength",
                    **FACTOR,
                    tooltip="A factor on strength_model of Load Adapter, for this prompt only: 1 is "
                    "as set there, 0 leaves the adapter out.",
                ),
                ScheduleSocket.Input(
                    "schedule",
                    optional=True,
                    tooltip="A curve that this factor follows during sampling.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, conditioning: Any, adapter: str, strength: float, schedule: Schedule | None = None
    ) -> io.NodeOutput:
        """Returns the conditioning with its request."""
        name = "" if adapter == ALL else adapter
        return io.NodeOutput(with_request(conditioning, Request(name, strength, schedule)))
