"""Open Adapter: a file as something that other nodes change, combine and save."""

from __future__ import annotations

import re
from typing import Any

from comfy_api.latest import io

from ..algorithms.errors import AdapterError, FileError
from ..algorithms.formats.parse import AdapterSet
from ..algorithms.report import contents
from ..algorithms.stack import find_adapter
from .host.files import adapter_names, adapter_path, adapter_state, load_adapter
from .host.messages import ReadingBar, show_text
from .inputs import AS_TRAINED, scale_input
from .schema import advanced
from .sockets import AdapterSocket


class OpenAdapter(io.ComfyNode):
    """Reads any adapter files, and puts them on nothing."""

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
                scale_input(),
                advanced(
                    io.String.Input(
                        "files",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip="Instead of the file above, several: one name to a line; styles/* "
                        "stands for all in that folder. The nodes behind run once for each; Combine "
                        "Adapters takes them all together.",
                    )
                ),
            ],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter",
                    is_output_list=True,
                    tooltip="What the file holds; of several files, a list.",
                ),
                io.String.Output(
                    display_name="report",
                    is_output_list=True,
                    tooltip="What the file is, and what was assumed or corrected.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None, files: str | None = "") -> bool | str:
        """Returns why the host must refuse a prompt, before it runs: a file is gone.

        Args:
            adapter: None where it comes from another node, and is known only when that has run.
            files: The same.
        """
        try:
            if adapter is not None and files is not None:
                for name in _wanted(adapter, files):
                    adapter_path(name)
        except AdapterError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None, files: str | None = "", **_: Any) -> str:
        """Returns what changes when a file does, so that it is read again."""
        if adapter is None or files is None:  # from another node, and known only when that has run
            return str(adapter_state(None))
        try:
            return str([adapter_state(name) for name in _wanted(adapter, files)])
        except AdapterError as error:
            return str(error)

    @classmethod
    def execute(
        cls, adapter: str, rank: int = 0, scale: str = AS_TRAINED, files: str = ""
    ) -> io.NodeOutput:
        """Returns the adapters, with a report on the node."""
        corrections = scale == AS_TRAINED
        opened: list[AdapterSet] = []
        texts: list[str] = []
        names = _wanted(adapter, files)
        for name in names:
            opened.append(load_adapter(name, rank, corrections=corrections, progress=ReadingBar()))
            texts.append(contents(opened[-1]))
        said = [f"{name}\n{text}" for name, text in zip(names, texts, strict=True)]
        text = "\n\n".join(said if files.strip() else texts)
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(opened, texts, ui={"text": [text]})


def _wanted(adapter: str, files: str) -> list[str]:
    """Returns the names of the files to open.

    Args:
        adapter: One, for where there are no others.
        files: One to a line, or what many names fit: `*` and `?` as in a shell. A line with # in
            front is skipped.

    Raises:
        AdapterError: No file is called so, or several may be meant.
    """
    lines = [line.strip() for line in files.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        return [adapter]
    names = adapter_names()
    found: list[str] = []
    for line in lines:
        if not set(line) & set("*?"):
            # The path is asked first, as the host's list may lack a file that was just made.
            known = adapter_state(line) is not None
            found.append(line if known else find_adapter(line, names))
            continue
        pattern = re.escape(line.replace("\\", "/")).replace(r"\*", ".*").replace(r"\?", ".")
        fitting = [name for name in names if re.fullmatch(pattern, name.replace("\\", "/"))]
        if not fitting:
            raise FileError(f"{line} fits no file of the LoRA folders.")
        found += sorted(fitting)
    return list(dict.fromkeys(found))
