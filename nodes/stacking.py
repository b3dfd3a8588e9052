"""Adapter Stack: puts the adapters of many files on a model and its text encoders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from comfy_api.latest import io

from ..algorithms.errors import AdapterError, FileError, listed
from ..algorithms.formats.description import describe, read_sidecar
from ..algorithms.formats.read import read_header
from ..algorithms.schedule import Schedule
from ..algorithms.stack import Row, rows_of
from .adapting import Wish, adapt
from .host.applying import Mode
from .host.files import adapter_path
from .host.memory import AUTOMATIC
from .host.messages import show_text
from .inputs import memory_input, mode_input
from .schema import drawn_by_page
from .sockets import LoraStackSocket
from .stack_rows import found, own_rows, require_weights, state_of, told_of

NOTHING_TO_ADAPT = "No model or CLIP is connected: only the LORA_STACK was made."


class AdapterStack(io.ComfyNode):
    """Applies any number of adapter files, each with strengths, blocks and steps of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterStack",
            display_name="Adapter Stack",
            category="Any Adapter",
            description=(
                "Applies many LoRA-like adapters of any kind at once. They add up, in any order; "
                "each can be switched off, and has strengths, weights of blocks and a range of "
                "steps of its own."
            ),
            inputs=[
                io.Model.Input("model", optional=True, tooltip="The diffusion model to adapt."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoders to adapt."),
                drawn_by_page(
                    "ANYADAPTER_STACK",
                    io.String.Input(
                        "adapters",
                        default="",
                        multiline=True,
                        tooltip="One adapter to a line: NAME | 0.8, and behind it, each after "
                        "a |, what else is wanted: clip 0.5, blocks IN:0.5, steps 0-0.6, seed 7, "
                        "off. A line with # in front is skipped.",
                    ),
                ),
                LoraStackSocket.Input(
                    "lora_stack",
                    optional=True,
                    tooltip="Adapters from a stack of this or another pack, applied beside these.",
                ),
                mode_input(),
                memory_input(),
            ],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                LoraStackSocket.Output(
                    display_name="LORA_STACK",
                    tooltip="The adapters that came in and those that are on here, for the nodes "
                    "of other packs: names and strengths.",
                ),
                io.String.Output(
                    display_name="trigger_words",
                    tooltip="The words that the files were trained to answer to, as their metadata "
                    "say.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What each file is, what of it was applied, and what was not.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, adapters: str | None) -> bool | str:
        """Returns what is wrong with the text, so that nothing runs before it is mended."""
        try:
            # None: it comes from another node, when that has run
            require_weights(own_rows(adapters or ""))
        except AdapterError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, adapters: str | None, lora_stack: Any = (), **_: Any) -> str:
        """Returns what changes when a file or a preset does, so that it is taken up.

        Args:
            adapters: None where it comes from another node, and is known only when that has run.
            lora_stack: None where one is connected: nobody knows yet which files it names.
        """
        return state_of(None if lora_stack is None else adapters)

    @classmethod
    def execute(
        cls,
        adapters: str,
        mode: Mode = "hook",
        memory_mb: int = AUTOMATIC,
        model: Any = None,
        clip: Any = None,
        lora_stack: Any = (),
    ) -> io.NodeOutput:
        """Returns the adapted parts, the stack for other packs, and a report on the node."""
        rows = [found(row) for row in rows_of(lora_stack)] + own_rows(adapters)
        used = [row for row in rows if row.is_on]
        reports: list[str] = []
        if model is None and clip is None:
            reports.append(NOTHING_TO_ADAPT)
        else:
            for row in used:
                with told_of(row):
                    adapted = adapt(_wish(row, mode, memory_mb), model, clip)
                model, clip = adapted.model, adapted.clip
                reports.append(f"{row.adapter}\n{adapted.report}")
        words, notes = _trigger_words(row for row in used if row.is_read)
        text = "\n\n".join([*reports, *notes, *_untold(used)]) or "No adapter is on."
        show_text(cls.hidden.unique_id, text)
        stack = [(row.adapter, row.strength_model, row.strength_clip) for row in used]
        return io.NodeOutput(model, clip, stack, ", ".join(words), text, ui={"text": [text]})


def _wish(row: Row, mode: Mode, memory_mb: int) -> Wish:
    return Wish(
        row.adapter,
        row.strength_model,
        row.strength_clip,
        mode,
        schedule=Schedule.window(row.start, row.end, 1.0, 0.0) if row.has_span else None,
        memory_mb=memory_mb,
        blocks=row.blocks,
        seed=row.seed,
    )


def _trigger_words(rows: Iterable[Row]) -> tuple[list[str], list[str]]:
    """Returns the words of all files, each once, and a note on each file that tells none."""
    words: dict[str, None] = {}
    notes: list[str] = []
    for name in dict.fromkeys(row.adapter for row in rows):
        try:
            path = adapter_path(name)
            known = describe(read_header(path).metadata, read_sidecar(path)).trigger_words
            said = [word for word in known if word.source != "folder"]
            phrases = ",".join(word.text for word in said or known)
            words |= dict.fromkeys(filter(None, map(str.strip, phrases.split(","))))
        except FileError as error:  # the file may still be one for a node behind the LORA_STACK
            notes.append(f"No trigger words of {name}: {error}")
    return list(words), notes


def _untold(rows: Sequence[Row]) -> list[str]:
    """Returns a note if a LORA_STACK cannot tell all of some rows."""
    names = [row.adapter for row in rows if row.blocks or row.has_span]
    if not names:
        return []
    return [
        "A LORA_STACK tells names and strengths only. Nodes behind it do not learn of the weights "
        f"of blocks or the steps of: {listed(list(dict.fromkeys(names)))}."
    ]
