"""Open Adapter: a file as something that other nodes change, combine and save."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..algorithms.errors import FileError
from ..algorithms.report import contents
from .host.files import adapter_names, adapter_path, adapter_state, load_adapter
from .host.messages import ReadingBar, show_text
from .loading import AS_OTHERS, AS_TRAINED
from .schema import advanced
from .sockets import AdapterSocket


class OpenAdapter(io.ComfyNode):
    """Reads any adapter file, and puts it on nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterOpen",
            display_name="Open Adapter",
            category="Any Adapter",
            description=(
                "Reads a LoRA-like adapter of any kind for the nodes that change, combine or save "
                "adapters. No model is needed."
            ),
            inputs=[
                io.Combo.Input(
                    "adapter", options=adapter_names(), tooltip="A file of the LoRA folders."
                ),
                advanced(
                    io.Int.Input(
                        "rank",
                        default=0,
                        min=0,
                        max=4096,
                        tooltip="For DyLoRA files: take only the first ranks. 0 takes all.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "scale",
                        options=[AS_TRAINED, AS_OTHERS],
                        default=AS_TRAINED,
                        tooltip="Some tools save files that act weaker in every loader than in "
                        "training. Where the metadata prove it, this is corrected and the report "
                        "says so; the second choice leaves it as it is elsewhere.",
                    )
                ),
            ],
            outputs=[
                AdapterSocket.Output(display_name="adapter", tooltip="What the file holds."),
                io.String.Output(
                    display_name="report",
                    tooltip="What the file is, and what was assumed or corrected.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool | str:
        """Returns why the host must refuse a prompt, before it runs: the file is gone.

        Args:
            adapter: None where it comes from another node, and is known only when that has run.
        """
        try:
            if adapter is not None:
                adapter_path(adapter)
        except FileError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None, **_: Any) -> str:
        """Returns what changes when the file does, so that it is read again."""
        return str(adapter_state(adapter))

    @classmethod
    def execute(cls, adapter: str, rank: int = 0, scale: str = AS_TRAINED) -> io.NodeOutput:
        """Returns the adapter, with a report on the node."""
        corrections = scale == AS_TRAINED
        opened = load_adapter(adapter, rank, corrections=corrections, progress=ReadingBar())
        text = contents(opened)
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(opened, text, ui={"text": [text]})
