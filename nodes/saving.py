"""Save Adapter: writes an adapter to a file of the LoRA folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..algorithms.editing.file_content import (
    AS_IT_IS,
    DIALECTS,
    FileContent,
    Writing,
    file_content,
    require_model,
)
from ..algorithms.editing.header_lines import parse_lines
from ..algorithms.editing.precision import DTYPES, dtype_names
from ..algorithms.errors import AdapterError, counted, listed
from ..algorithms.formats.parse import AdapterSet
from ..algorithms.report import methods
from .adapting import key_maps_of
from .host.messages import show_text
from .host.saved_files import ENDING, adapter_file, checked_name, dated_name, write_new
from .schema import advanced
from .sockets import AdapterSocket

KEEP = "keep"
DROP = "drop"
UNCONNECTED = object()


class SaveAdapter(io.ComfyNode):
    """Writes an adapter as one file, which other tools read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterSave",
            display_name="Save Adapter",
            category="Any Adapter",
            description=(
                "Saves an adapter to the LoRA folder, in the dtype and under the names that you "
                "choose. No file is overwritten: a name that is taken gets a number."
            ),
            inputs=[
                AdapterSocket.Input("adapter", tooltip="What to save."),
                io.String.Input(
                    "name",
                    default="adapter",
                    tooltip="Name of the file, with folders before it if you like: styles/cat. "
                    "%year%, %month%, %day%, %hour%, %minute% and %second% stand for the time.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=[AS_IT_IS, *DTYPES],
                    default=AS_IT_IS,
                    tooltip="How exactly numbers are kept. float16 and bfloat16 take half the space "
                    "of float32; bfloat16 is coarser, and holds any number.",
                ),
                io.Combo.Input(
                    "dialect",
                    options=[AS_IT_IS, *DIALECTS],
                    default=AS_IT_IS,
                    tooltip="Whose names the layers get. Any choice but the first needs the model "
                    "that the adapter is for.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model that the adapter is for: read only to name layers "
                    "in another dialect.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The text encoders, for the same reason."
                ),
                advanced(
                    io.Boolean.Input(
                        "whole",
                        default=False,
                        tooltip="Where another dialect has several layers in one and the method "
                        "cannot be joined: save the change of the whole weight, which is large.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "metadata",
                        options=[KEEP, DROP],
                        default=KEEP,
                        tooltip="What the file says of its training and its author. Its hashes are "
                        "made anew.",
                    )
                ),
                advanced(
                    io.String.Input(
                        "metadata_changes",
                        default="",
                        multiline=True,
                        tooltip="One to a line, laid over the metadata: key = value sets a key, "
                        "key = takes it out.",
                    )
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file",
                    tooltip="Name of the file as Load Adapter lists it.",
                ),
                AdapterSocket.Output(
                    display_name="adapter", tooltip="The adapter as the file holds it."
                ),
                io.String.Output(
                    display_name="report", tooltip="What was saved, where, and what that changed."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,  # two that are asked for the same write two files
        )

    @classmethod
    def validate_inputs(
        cls,
        name: str | None = None,
        dialect: str | None = None,
        metadata_changes: str | None = None,
        model: Any = UNCONNECTED,
        clip: Any = UNCONNECTED,
    ) -> bool | str:
        """Returns what is wrong with the inputs, so that nothing runs before it is mended.

        Args:
            name: None where it comes from another node, as is true of all.
            dialect: Whose names.
            metadata_changes: Lines.
            model: Given where it is connected.
            clip: Given where it is connected.
        """
        try:
            if name is not None:
                checked_name(name)
            parse_lines(metadata_changes or "")
            if model is UNCONNECTED and clip is UNCONNECTED:
                require_model(dialect or AS_IT_IS)
        except AdapterError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        adapter: AdapterSet,
        name: str,
        dtype: str = AS_IT_IS,
        dialect: str = AS_IT_IS,
        model: Any = None,
        clip: Any = None,
        whole: bool = False,
        metadata: str = KEEP,
        metadata_changes: str = "",
    ) -> io.NodeOutput:
        """Returns the name of the file, what it holds, and a report that stands on the node."""
        name = dated_name(name)
        wish = Writing(dtype, dialect, whole, metadata == KEEP, metadata_changes)
        content = file_content(adapter, wish, [*key_maps_of(model, clip).values()])
        used = write_new(name, content.tensors, content.strings)
        file = str(Path(f"{used}{ENDING}"))  # with the separators of the host's list
        text = _report(content, used, name)
        show_text(cls.hidden.unique_id, text)
        saved = replace(content.adapter_set, source=file)
        return io.NodeOutput(file, saved, text, ui={"text": [text]})


def _report(content: FileContent, used: str, wanted: str) -> str:
    """Returns what the user is told.

    Args:
        content: What was written.
        used: Name of the file.
        wanted: The name that it would have, were that not taken.
    """
    path = adapter_file(used)
    adapter_set = content.adapter_set
    lines = [
        f"Saved as {used}{ENDING}, {path.stat().st_size / 1e6:.2f} MB, "
        f"{dtype_names(content.tensors)}: {methods(adapter_set)}, in "
        f"{counted(len(adapter_set.adapters), 'layer')}."
    ]
    if used != wanted:
        lines.append(f"The name {wanted} was taken.")
    if adapter_set.embeddings:
        lines.append(f"With its embeddings: {listed(list(adapter_set.embeddings))}.")
    return "\n".join([*lines, *content.notes, f"It lies at {path}."])
