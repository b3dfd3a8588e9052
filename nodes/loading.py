"""Load Adapter: puts the adapters of one file on a model and its text encoders."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..algorithms.errors import FileError
from ..algorithms.formats.parse import AdapterSet
from ..algorithms.schedule import Schedule
from .adapting import Wish, adapt
from .host.applying import Mode
from .host.files import adapter_names, adapter_path, adapter_state
from .host.memory import AUTOMATIC
from .host.messages import show_text
from .host.preset_files import own_texts
from .inputs import AS_TRAINED, memory_input, mode_input, scale_input
from .schema import advanced, optional
from .sockets import AdapterSocket, ScheduleSocket

EVERY_CONDITIONING = "every conditioning"
ASKING_CONDITIONINGS = "conditionings that ask for it"
UNCONNECTED = object()
STRENGTH = {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.01}


class LoadAdapter(io.ComfyNode):
    """Loads any adapter file and applies it, by hooks or by weight patches."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterLoad",
            display_name="Load Adapter",
            category="Any Adapter",
            description=(
                "Applies a LoRA-like adapter of any kind to a model and its text encoders. "
                "Several of these nodes in a row add up, in any order."
            ),
            inputs=[
                io.Model.Input("model", optional=True, tooltip="The diffusion model to adapt."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoders to adapt."),
                io.Combo.Input(
                    "adapter",
                    options=adapter_names() or [""],  # with `trained` it works without any file
                    tooltip="A file of the LoRA folders. Not read where trained is connected.",
                ),
                io.Float.Input(
                    "strength_model",
                    **STRENGTH,
                    tooltip="How strongly the diffusion model is changed: 1 is as trained, "
                    "0 is not at all, negative is the opposite.",
                ),
                io.Float.Input(
                    "strength_clip",
                    **STRENGTH,
                    tooltip="How strongly the text encoders are changed.",
                ),
                mode_input(),
                advanced(
                    io.Int.Input(
                        "rank",
                        default=0,
                        min=0,
                        max=4096,
                        tooltip="For DyLoRA files: use only the first ranks. 0 uses all.",
                    )
                ),
                *optional(scale_input()),  # workflows of before it in the API's form have none
                ScheduleSocket.Input(
                    "schedule",
                    optional=True,
                    tooltip="A curve that strength_model follows during sampling: connect Adapter "
                    "Schedule. Only in mode hook.",
                ),
                advanced(
                    io.Combo.Input(
                        "acts_on",
                        options=[EVERY_CONDITIONING, ASKING_CONDITIONINGS],
                        default=EVERY_CONDITIONING,
                        optional=True,
                        tooltip="Which conditionings the adapter acts on in the diffusion model: all, "
                        "or those that passed through Adapter for Conditioning. Only in mode hook.",
                    )
                ),
                memory_input(),
                io.String.Input(
                    "blocks",
                    default="",
                    optional=True,
                    tooltip="Weights of blocks, as factors on both strengths. Empty: all at 1. By name, "
                    "IN04:0.5, OUT:0, IN05-IN08:1.2, IN04.attn2:0, or as a list of numbers "
                    "(1,0,0,0.5,...), or a preset, MIDD.",
                ),
                advanced(
                    io.Int.Input(
                        "blocks_seed",
                        default=0,
                        min=0,
                        max=2**53 - 1,  # what a page can tell exactly
                        optional=True,
                        tooltip="Of the random weights R and U in blocks.",
                    )
                ),
                AdapterSocket.Input(
                    "trained",
                    optional=True,
                    tooltip="An adapter of any node that gives one, in place of a file: Open, Convert, "
                    "Combine, Extract Adapter or Train LoRA.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.String.Output(
                    display_name="report",
                    tooltip="What the file is, what of it was applied, and what was not.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None, trained: Any = UNCONNECTED) -> bool | str:
        """Returns why the host must refuse a prompt, before it runs: the file is gone.

        Args:
            adapter: None where it comes from another node, and is known only when that has run.
            trained: Given where it is connected, and known only when that node has run.
        """
        try:
            if adapter is not None and trained is UNCONNECTED:
                adapter_path(adapter)
        except FileError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        adapter: str | None,
        strength_model: float,
        strength_clip: float,
        blocks: str | None = "",
        trained: Any = UNCONNECTED,
        **_: Any,
    ) -> str:
        """Returns what changes when the file or a preset in `blocks` does, so that it is taken up."""
        if strength_model == 0 and strength_clip == 0:
            return ""
        if trained is not UNCONNECTED:
            return str(own_texts(blocks))
        return str((adapter_state(adapter), *own_texts(blocks)))

    @classmethod
    def execute(
        cls,
        adapter: str,
        strength_model: float,
        strength_clip: float,
        mode: Mode = "hook",
        rank: int = 0,
        scale: str = AS_TRAINED,
        model: Any = None,
        clip: Any = None,
        schedule: Schedule | None = None,
        acts_on: str = EVERY_CONDITIONING,
        memory_mb: int = AUTOMATIC,
        blocks: str = "",
        blocks_seed: int = 0,
        trained: AdapterSet | None = None,
    ) -> io.NodeOutput:
        """Returns the adapted model and text encoders, with a report on the node."""
        wish = Wish(
            adapter if trained is None else trained.source,
            strength_model,
            strength_clip,
            mode,
            rank,
            corrections=scale == AS_TRAINED,
            schedule=schedule,
            on_request=acts_on == ASKING_CONDITIONINGS,
            memory_mb=memory_mb,
            blocks=blocks,
            seed=blocks_seed,
            trained=trained,
        )
        adapted = adapt(wish, model, clip)
        show_text(cls.hidden.unique_id, adapted.report)
        ui = {"text": [adapted.report]}
        return io.NodeOutput(adapted.model, adapted.clip, adapted.report, ui=ui)
