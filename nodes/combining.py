"""Combine Adapters: makes one adapter of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..algorithms.editing.combination import Combined, Mode, Recipe, combined
from ..algorithms.editing.joining import Input
from ..algorithms.editing.pruning import Sign
from ..algorithms.errors import AdapterError, EditingError, StackError
from ..algorithms.formats.parse import AdapterSet
from ..algorithms.stack import Row, format_stack
from .host.files import load_adapter
from .host.messages import LayersBar, ReadingBar, show_text
from .inputs import SIZES, chosen_size, size_inputs, size_limits
from .placing import Placing, placed
from .schema import advanced, drawn_by_page
from .sockets import AdapterSocket
from .stack_rows import own_rows, require_weights, state_of, told_of

MODES: list[Mode] = ["exact", "svd", "ties", "dare linear", "dare ties", "magnitude"]
SIGNS: list[Sign] = ["total", "frequency"]
WHOLE = "whole"


class CombineAdapters(io.ComfyNode):
    """Adds up any adapters, each with strengths and weights of blocks of its own, in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterCombine",
            display_name="Combine Adapters",
            category="Any Adapter",
            description=(
                "Makes one adapter of several, of any kinds: exactly what they change together, or "
                "the best copy of it in a size, or with TIES, DARE or pruning, so that they get less "
                "in each other's way."
            ),
            inputs=[
                drawn_by_page(
                    "ANYADAPTER_STACK",
                    io.String.Input(
                        "adapters",
                        default="",
                        multiline=True,
                        tooltip="One adapter to a line: NAME | 0.8, and behind it, each after "
                        "a |, what else is wanted: clip 0.5, blocks IN:0.5, seed 7, off. Steps mean "
                        "nothing here. A line with # in front is skipped.",
                    ),
                ),
                io.Combo.Input(
                    "mode",
                    options=[*MODES],
                    default="exact",
                    tooltip="exact: the plain sum; ranks add up. svd: the sum in the size below. "
                    "ties: the largest numbers of each, averaged where their signs agree. dare: some "
                    "numbers at random, made larger; linear adds them, ties as before. magnitude: the "
                    "largest numbers of each, added.",
                ),
                *size_inputs(
                    of="Of the result, in all modes but exact.",
                    others="whole: the change of each weight as it is, exact and large.",
                    choices=[*SIZES, WHOLE],
                ),
                io.Float.Input(
                    "density",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="For ties, dare and magnitude: share of the numbers of each change that "
                    "is kept.",
                ),
                advanced(
                    io.Combo.Input(
                        "sign",
                        options=[*SIGNS],
                        default="total",
                        tooltip="For ties and dare ties, whose sign counts: total is that of the sum, "
                        "frequency that of the greater number of adapters.",
                    )
                ),
                *size_limits(),
                io.String.Input(
                    "strengths",
                    default="",
                    tooltip="Of the adapters that are connected below: one number for all, or one for "
                    "each in their order, such as 1, 0.5. Empty: all at 1.",
                ),
                AdapterSocket.Input(
                    "adapter",
                    optional=True,
                    tooltip="An adapter from another node, or a list of several: added to those above.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model that the adapters were made for. With it layers are "
                    "found whatever a file calls them. Needed to add up what changes a weight by what "
                    "it is (DoRA, OFT, (IA)^3 and others).",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The text encoders, for the same reasons."
                ),
            ],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter",
                    tooltip="For Save Adapter, for Load Adapter, or to go on with.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was made of which files, and how large the error is.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, adapters: Sequence[str | None] = ()) -> bool | str:
        """Returns what is wrong with the text, so that nothing runs before it is mended."""
        try:
            for text in adapters:  # None: it comes from another node, when that has run
                require_weights(_rows(text or ""))
        except AdapterError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, adapters: Sequence[str | None] = (), **_: Any) -> str:
        """Returns what changes when a file or a preset does, so that it is taken up."""
        return str([state_of(text) for text in adapters])

    @classmethod
    def execute(
        cls,
        adapters: Sequence[str],
        mode: Sequence[Mode],
        size: Sequence[str],
        rank: Sequence[int],
        kept_energy: Sequence[float],
        error: Sequence[float],
        density: Sequence[float],
        sign: Sequence[Sign] = ("total",),
        largest_rank: Sequence[int] = (0,),
        conv_rank: Sequence[int] = (0,),
        strengths: Sequence[str] = ("",),
        adapter: Sequence[AdapterSet] = (),
        model: Sequence[Any] = (None,),
        clip: Sequence[Any] = (None,),
    ) -> io.NodeOutput:
        """Returns what was made, with a report on the node; every input comes as a list."""
        wished = None
        if size[0] != WHOLE:
            wished = chosen_size(
                size[0],
                rank=rank[0],
                kept_energy=kept_energy[0],
                error=error[0],
                largest_rank=largest_rank[0],
                conv_rank=conv_rank[0],
            )
        recipe = Recipe(mode[0], wished, density[0], sign[0])
        sources = [*_files(adapters), *_connected(adapter, strengths[0])]
        placings = [_placed(row, source, model[0], clip[0]) for row, source in sources]
        inputs = [
            Input(source, placing.sites, _said(row))
            for (row, source), placing in zip(sources, placings, strict=True)
        ]
        key_maps = placings[0].key_maps if placings else {}
        made = combined(inputs, recipe, key_maps, LayersBar)
        text = _report(inputs, made, placings)
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(made.adapter_set, text, ui={"text": [text]})


def _rows(text: str) -> list[Row]:
    """Returns the rows of a text.

    Raises:
        AdapterError: A line is no row, its file cannot be found, or it has steps.
    """
    rows = own_rows(text)
    for row in rows:
        if row.is_read and row.has_span:
            raise StackError(
                f"{row.adapter} has a range of steps, and a combined adapter acts in all of them. Take "
                "the steps away here, or apply it apart with Adapter Stack."
            )
    return rows


def _files(texts: Sequence[str]) -> list[tuple[Row, AdapterSet]]:
    """Returns the rows that are read, with what is in their files."""
    rows = [row for text in texts for row in _rows(text) if row.is_read]
    return [(row, load_adapter(row.adapter, progress=ReadingBar())) for row in rows]


def _connected(adapters: Sequence[AdapterSet], text: str) -> list[tuple[Row, AdapterSet]]:
    """Returns adapters of other nodes, as rows of a stack."""
    rows: list[tuple[Row, AdapterSet]] = []
    for source, strength in zip(adapters, _strengths(text, len(adapters)), strict=True):
        rows.append((Row(source.source, strength, strength), source))
    return rows


def _strengths(text: str, count: int) -> list[float]:
    """Returns a strength for each of `count` adapters.

    Raises:
        EditingError: The text has another number of them, or is none.
    """
    words = [word.strip() for word in text.replace(";", ",").split(",") if word.strip()]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise EditingError(
            f'strengths is "{text}", and must be numbers with commas between them, such as 1, 0.5.'
        )
    if len(numbers) <= 1:
        return (numbers or [1.0]) * count
    if len(numbers) != count:
        raise EditingError(
            f"strengths has {len(numbers)} numbers, and {count} adapters are connected. Write one for "
            "each, or one for all."
        )
    return numbers


def _placed(row: Row, source: AdapterSet, model: Any, clip: Any) -> Placing:
    """Returns the adapters of a file with their strengths."""
    with told_of(row):
        return placed(
            source,
            model,
            clip,
            strength_model=row.strength_model,
            strength_clip=row.strength_clip,
            blocks=row.blocks,
            seed=row.seed,
        )


def _said(row: Row) -> str:
    """Returns a row as a stack has it; what is connected may be called as no row can."""
    try:
        return format_stack([row])
    except StackError:
        return f"{row.adapter} | {row.strength_model:g}"


def _report(inputs: Sequence[Input], made: Combined, placings: Sequence[Placing]) -> str:
    """Returns what the user is told."""
    notes = [note for placing in placings for note in placing.notes]
    said = [one.said for one in inputs]
    if len({*said}) < len(said):  # a file twice, or adapters of one name from other nodes
        said = [f"{number}. {line}" for number, line in enumerate(said, 1)]
    told = dict.fromkeys([made.accuracy.sentence(), *made.notes, *notes])
    return "\n".join([*said, "", *told])
