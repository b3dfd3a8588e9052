"""Inspect Adapter: what a file is and what it changes, as text and as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from comfy_api.latest import io

from ..algorithms.analysis.inspection import Site, measured, norms_by, ranks_by_block, spectra_of
from ..algorithms.analysis.spectrum import spread_of
from ..algorithms.binding import Binding, causes, families
from ..algorithms.errors import AdapterError
from ..algorithms.families.blocks import BlockMap, Group
from ..algorithms.families.parts import in_order
from ..algorithms.formats.parse import AdapterSet
from ..algorithms.inspection_report import Findings, inspection_report
from ..algorithms.keymap import KeyMap
from . import drawing
from .adapting import CLIP, MODEL, key_maps_of
from .host.bases import base_of
from .host.bindings import binding_of
from .host.blocks import placed_file
from .host.files import adapter_names, adapter_path, adapter_state, load_adapter
from .host.images import as_image
from .host.messages import ReadingBar, show_text
from .host.weights import read_weights

SECTIONS = {"model": "Diffusion model", "clip": "Text encoders"}
PARTS_ORDER = ("img", "txt", "attn1", "attn2", "attn", "linear1", "linear2", "mlp", "conv", "norm")


class InspectAdapter(io.ComfyNode):
    """Measures the changes of a file, with the weights of a model where they are needed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterInspect",
            display_name="Inspect Adapter",
            category="Any Adapter",
            description=(
                "Shows what an adapter file is and where it acts: methods, ranks, training, the "
                "size of the change in every block, and of how many directions it is."
            ),
            inputs=[
                io.Combo.Input(
                    "adapter", options=adapter_names(), tooltip="A file of the LoRA folders."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model that it is meant for. With it the report says what "
                    "fits, blocks are exactly those of the model, and methods that change a weight "
                    "by what it is (OFT, DoRA, (IA)^3) are measured and not estimated.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The text encoders, for the same reasons."
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="What the file is, as text."),
                io.Image.Output(
                    display_name="heat_map",
                    tooltip="The norm of the change in each part of each block.",
                ),
                io.Image.Output(
                    display_name="spectrum",
                    tooltip="How the singular values of the changes fall off, and the effective "
                    "rank of each block.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None, **_: Any) -> str:
        """Returns what changes when the file does."""
        return str(adapter_state(adapter))

    @classmethod
    def execute(cls, adapter: str, model: Any = None, clip: Any = None) -> io.NodeOutput:
        """Returns the report, which also stands on the node, and both pictures."""
        seen = look_at(adapter, model, clip)
        text = inspection_report(seen.findings)
        show_text(cls.hidden.unique_id, text)
        heat_map, spectrum = as_image(heat_map_of(seen)), as_image(spectrum_of(seen))
        return io.NodeOutput(text, heat_map, spectrum, ui={"text": [text]})


@dataclass(frozen=True)
class Seen:
    """What was found in a file."""

    adapter: str
    blocks: BlockMap
    findings: Findings


def look_at(adapter: str, model: Any, clip: Any) -> Seen:
    """Measures a file.

    Raises:
        AdapterError: The file cannot be read.
    """
    adapter_set = load_adapter(adapter, progress=ReadingBar())
    key_maps = key_maps_of(model, clip)
    bindings, misfits = _bindings(adapter_set, key_maps)
    blocks = placed_file(adapter_set, key_maps.get(MODEL), key_maps.get(CLIP), bindings.values())
    parts = {MODEL: model, CLIP: clip}
    weights = {name: read_weights(parts[name]) for name in bindings}
    reads = {
        (item.module, id(item.adapter)): partial(base_of, weights[name], item)
        for name, binding in bindings.items()
        for item in binding.bound
    }
    changes = measured(
        Site(module, one, blocks.places[module], reads.get((module, id(one))))
        for module, several in adapter_set.adapters.items()
        for one in several
    )
    made_for, of_model = families(adapter_set, [*key_maps.values()])
    findings = Findings(
        adapter_set=adapter_set,
        size_bytes=adapter_path(adapter).stat().st_size,
        made_for=made_for and made_for.name,
        model=of_model and of_model.name,
        connected=tuple(key_maps),
        groups=blocks.groups,
        changes=tuple(changes),
        spectra=tuple(spectra_of(changes)),
        misfits=misfits,
        path=adapter_path(adapter),
    )
    return Seen(adapter, blocks, findings)


def _bindings(
    adapter_set: AdapterSet, key_maps: dict[str, KeyMap]
) -> tuple[dict[str, Binding], tuple[str, ...]]:
    """Returns what fits the parts that are connected, and a sentence for all that does not."""
    bindings: dict[str, Binding] = {}
    sentences: list[str] = []
    for name, key_map in key_maps.items():
        try:
            bindings[name] = binding_of(adapter_set, key_map)
        except AdapterError as error:
            sentences.append(f"It does not fit the {name}: {error}")
            continue
        sentences += [f"Does not fit: {misfit}" for misfit in bindings[name].misfits]
    if bindings:
        nowhere = set.intersection(*(set(one.unmatched) for one in bindings.values()))
        homeless = [module for module in adapter_set.adapters if module in nowhere]
        found = causes(adapter_set, homeless, key_maps.get(MODEL), key_maps.get(CLIP))
        sentences += [
            f"No place for {len(modules)} of its layers: {cause} (for example {modules[0]})."
            for cause, modules in found.items()
        ]
    return bindings, tuple(sentences)


def heat_map_of(seen: Seen) -> drawing.Bytes:
    """Draws the norms of all parts of all blocks."""
    changes = seen.findings.changes
    cells = norms_by(changes, lambda place: (place.block, place.part))
    panels: list[drawing.Panel] = []
    for section, title in SECTIONS.items():
        groups = _groups(seen.blocks, section)
        inside = {block for group in groups for block in group.blocks}
        own = {where: norm for where, norm in cells.items() if where[0] in inside}
        if own:
            rows = tuple(sorted({part for _, part in own}, key=_row))
            panels.append(drawing.Panel(title, groups, rows, own))
    caption = "Norm of the change, at strength 1. Hatched: the file does not touch it."
    if not all(change.exact for change in changes):
        caption += " Estimated: no model."
    return drawing.heat_map(panels, caption, seen.adapter)


def spectrum_of(seen: Seen) -> drawing.Bytes:
    """Draws singular values and effective ranks."""
    looked, count = len(seen.findings.spectra), len(seen.findings.changes)
    note = f"{looked} of {count} layers"
    if looked < count:
        note += (
            ", those that change most" if looked else ": singular values take the model's weights"
        )
    ranks = ranks_by_block(seen.findings.spectra)
    groups = [
        group
        for section in SECTIONS
        for group in _groups(seen.blocks, section)
        if ranks.keys() & set(group.blocks)
    ]
    spread = spread_of([spectrum for _, spectrum in seen.findings.spectra])
    return drawing.spectrum_plot(spread, drawing.Bars(tuple(groups), ranks), seen.adapter, note)


def _groups(blocks: BlockMap, section: str) -> tuple[Group, ...]:
    return tuple(group for group in blocks.groups if group.section == section and group.blocks)


def _row(part: str) -> tuple[int, str, int]:
    """Returns where a part stands among the others: attention, MLP, and what is beside them."""
    first = part.partition(".")[0]
    known = first in PARTS_ORDER
    return (PARTS_ORDER.index(first) if known else len(PARTS_ORDER), *in_order(part))
