"""Block Sweep and Label Grid: what each block of an adapter does, as a row of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from comfy_api.latest import io

from ..algorithms.block_sweep import Level, Step, Trial, sweep
from ..algorithms.errors import AdapterError
from . import drawing
from .adapting import CLIP, MODEL, key_maps_of
from .host.bindings import binding_of
from .host.blocks import placed_file
from .host.files import adapter_names, adapter_state, load_adapter
from .host.images import Pixels, as_bytes, as_image, pictures
from .host.preset_files import own_texts, preset_text

SECTIONS = {"diffusion model": ("model",), "text encoders": ("clip",), "both": ("model", "clip")}
PICTURES, DIFFERENCES = "pictures", "difference to the first"


class BlockSweep(io.ComfyNode):
    """Makes a list of block weights, one for each block that a file touches."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterBlockSweep",
            display_name="Block Sweep",
            category="Any Adapter",
            description=(
                "Tries the blocks of an adapter one after the other. Connect blocks to the input of "
                "that name of Load Adapter: everything behind it runs once for each block. Label "
                "Grid puts the pictures together."
            ),
            inputs=[
                io.Combo.Input(
                    "adapter",
                    options=adapter_names(),
                    tooltip="The file, as chosen in Load Adapter. Only blocks that it touches are "
                    "tried.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model. With it the blocks are exactly its own; without, "
                    "those that the names in the file tell.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoders, likewise."),
                io.Combo.Input(
                    "what",
                    options=list(get_args(Trial)),
                    default="each off in turn",
                    tooltip="each off in turn: one block at 0, all others as they are. each alone: "
                    "one block at 1, all others at 0. each at value: one block at the value below, "
                    "all others as they are.",
                ),
                io.Combo.Input(
                    "level",
                    options=list(get_args(Level)),
                    default="blocks",
                    tooltip="Whether whole groups (IN, MID, OUT) or single blocks are tried.",
                ),
                io.Float.Input(
                    "value",
                    default=0.5,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    tooltip="For each at value: the weight of the block whose turn it is. The "
                    "others do not read it.",
                ),
                io.String.Input(
                    "base",
                    default="",
                    tooltip="Block weights that hold otherwise, in the form of Load Adapter. For "
                    "each alone: what stays on besides, TE:1 for the text encoders.",
                ),
                io.Boolean.Input(
                    "with_reference",
                    default=True,
                    tooltip="Begins with an item in which no block is tried, to compare with.",
                ),
                io.Combo.Input(
                    "where",
                    options=list(SECTIONS),
                    default="diffusion model",
                    tooltip="Of which part of the model blocks are tried.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="blocks",
                    is_output_list=True,
                    tooltip="The list of block weights. Connect it to blocks of Load Adapter.",
                ),
                io.String.Output(
                    display_name="labels",
                    is_output_list=True,
                    tooltip="What each item tries. Connect it to Label Grid.",
                ),
                io.Int.Output(display_name="count", tooltip="How many items there are."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None, base: str | None, **_: Any) -> str:
        """Returns what changes when the file or a preset in `base` does."""
        return str((adapter_state(adapter), *own_texts(base)))

    @classmethod
    def execute(
        cls,
        adapter: str,
        what: Trial,
        level: Level,
        value: float,
        base: str,
        with_reference: bool,
        where: str,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        """Returns the lists, and their length."""
        adapter_set = load_adapter(adapter)
        key_maps = key_maps_of(model, clip)
        bindings = [binding_of(adapter_set, key_map) for key_map in key_maps.values()]
        blocks = placed_file(adapter_set, key_maps.get(MODEL), key_maps.get(CLIP), bindings)
        steps = sweep(
            blocks,
            [group for group in blocks.groups if group.section in SECTIONS[where]],
            trial=what,
            level=level,
            value=value,
            base=base,
            find_preset=preset_text,
        )
        if not steps:
            raise AdapterError(
                f"{adapter} touches no block of the {where}: choose another part under where."
            )
        if with_reference:
            steps = [Step(base, "unchanged"), *steps]
        texts, labels = [step.text for step in steps], [step.label for step in steps]
        return io.NodeOutput(texts, labels, len(steps))


class LabelGrid(io.ComfyNode):
    """Puts the pictures of a list together, each with its label."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterLabelGrid",
            display_name="Label Grid",
            category="Any Adapter",
            description="One picture of many, in rows, with a label below each.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="A list of pictures, of any sizes, or a batch."),
                io.String.Input(
                    "labels",
                    force_input=True,
                    tooltip="One for each picture. If each item of the list made a batch, one for "
                    "each item.",
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="How many pictures stand in a row. 0 makes a square.",
                ),
                io.Combo.Input(
                    "show",
                    options=[PICTURES, DIFFERENCES],
                    default=PICTURES,
                    tooltip="The pictures, or the first one and how much the others differ from it: "
                    "black where they are the same, all on one scale, with the mean difference.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The whole grid.")],
        )

    @classmethod
    def execute(
        cls, images: list[Any], labels: list[str], columns: list[int], show: list[str]
    ) -> io.NodeOutput:
        """Returns the grid. Every input is a list, as the host gives them."""
        flat, names = _labelled([pictures(batch) for batch in images], labels)
        if show[0] == DIFFERENCES:
            flat, names = _differences(flat, names)
        shown = [as_bytes(one) for one in flat]
        return io.NodeOutput(as_image(drawing.label_grid(shown, names, columns[0])))


def _labelled(
    batches: Sequence[Sequence[Pixels]], labels: Sequence[str]
) -> tuple[list[Pixels], list[str]]:
    """Returns all pictures in a row, each with its label.

    Raises:
        AdapterError: The labels are for another number of pictures.
    """
    flat = [picture for batch in batches for picture in batch]
    if len(labels) == len(flat):
        return flat, [*labels]
    if len(labels) != len(batches):
        raise AdapterError(
            f"There are {len(labels)} labels for {len(flat)} pictures: connect labels and pictures "
            "that come from the same Block Sweep."
        )
    return flat, [label for label, batch in zip(labels, batches, strict=True) for _ in batch]


def _differences(flat: Sequence[Pixels], names: Sequence[str]) -> tuple[list[Pixels], list[str]]:
    """Returns the first picture and the differences of the others, all raised alike, with labels.

    Raises:
        AdapterError: A picture is of another size.
    """
    first, *others = flat
    odd = next((one for one in others if one.shape != first.shape), None)
    if odd is not None:
        raise AdapterError(
            f"A picture of {odd.shape[1]} x {odd.shape[0]} pixels has no difference to one of "
            f"{first.shape[1]} x {first.shape[0]}: show pictures instead."
        )
    changes = [np.abs(one - first) for one in others]
    largest = max((float(one.max()) for one in changes), default=0.0)
    factor = np.float32(1 / largest if largest else 1.0)
    means = [f"{100 * float(one.mean()):.2g} %" for one in changes]
    labels = [f"{name}: {mean}" for name, mean in zip(names[1:], means, strict=True)]
    return [first, *(one * factor for one in changes)], [
        f"{names[0]} (differences x {drawing.number(float(factor))})",
        *labels,
    ]
