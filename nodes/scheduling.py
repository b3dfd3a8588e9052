"""Adapter Schedule: draws the curve that the strength of an adapter follows during sampling."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..algorithms.schedule import Interpolation, Preset, schedule_from_choices
from .sockets import ScheduleSocket

PROGRESS = {"min": 0.0, "max": 1.0, "step": 0.001}
FACTOR = {"min": -20.0, "max": 20.0, "step": 0.01}


class AdapterSchedule(io.ComfyNode):
    """Makes a factor on the strength, from the first step of sampling to the last."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterSchedule",
            display_name="Adapter Schedule",
            category="Any Adapter",
            description=(
                "A curve over the progress of sampling. At each step the strength of the adapter "
                "is multiplied by its value."
            ),
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(get_args(Preset)),
                    default="linear",
                    tooltip="The shape of the curve. constant: one value. linear, cosine: from one "
                    "value to another, straight or with a soft beginning and end. window: one "
                    "value from start to end and another outside, with hard edges. points: a curve "
                    "of your own.",
                ),
                io.Float.Input(
                    "from_or_inside",
                    default=1.0,
                    **FACTOR,
                    tooltip="constant: the value. linear, cosine: the value up to the start. "
                    "window: the value inside. points does not read it. 1 leaves the strength as "
                    "it is, 0 switches the adapter off.",
                ),
                io.Float.Input(
                    "to_or_outside",
                    default=0.0,
                    **FACTOR,
                    tooltip="linear, cosine: the value from the end on. window: the value outside. "
                    "constant and points do not read it.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    **PROGRESS,
                    tooltip="Where the change or the window begins: 0 is the first step, 1 the "
                    "end, counted as in Apply ControlNet. constant and points do not read it.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    **PROGRESS,
                    tooltip="Where the change or the window ends: 0 is the first step, 1 the end. "
                    "constant and points do not read it.",
                ),
                io.String.Input(
                    "points",
                    multiline=True,
                    default="0:1, 0.5:0.3, 1:0",
                    tooltip="For points: progress:value, in order, with commas between or one to "
                    "a line. 0.5:0.3 and 50%:0.3 are the same. Two points at one progress are a "
                    "jump. The other presets do not read it.",
                ),
                io.Combo.Input(
                    "interpolation",
                    options=list(get_args(Interpolation)),
                    default="linear",
                    tooltip="For points, the way from one to the next. linear: straight. cosine: "
                    "softly, level at each point. monotone cubic: one smooth curve that never "
                    "overshoots. step: each value holds until the next. The other presets do not "
                    "read it.",
                ),
            ],
            outputs=[
                ScheduleSocket.Output(
                    display_name="schedule",
                    tooltip="The curve: a factor on the strength, step by step.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        from_or_inside: float,
        to_or_outside: float,
        start_percent: float,
        end_percent: float,
        points: str,
        interpolation: str,
    ) -> io.NodeOutput:
        """Returns the schedule."""
        return io.NodeOutput(
            schedule_from_choices(
                preset,
                start=start_percent,
                end=end_percent,
                from_or_inside=from_or_inside,
                to_or_outside=to_or_outside,
                points=points,
                interpolation=interpolation,
            )
        )
