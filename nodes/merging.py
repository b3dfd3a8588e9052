"""Bake into Model: makes weight patches of adapters that hang on a model as hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy_api.latest import io

from ..algorithms.adapters import Adapter
from ..algorithms.errors import EditingError, counted, listed
from .adapting import CLIP, MODEL
from .host.baking import Baked, bake
from .host.injections import Loaded
from .host.messages import show_text

NEAREST, BY_CHANCE = "nearest", "stochastic"


class BakeIntoModel(io.ComfyNode):
    """Turns hooks into weight patches, for nodes that look at the weights of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterMerge",
            display_name="Bake into Model",
            category="Any Adapter",
            description=(
                "Makes all adapters that Any Adapter has put on a model a part of its weights, as "
                "ComfyUI's own loader does. Put it before Save Checkpoint, the nodes that merge "
                "models, and Torch Compile Model. The picture stays the same."
            ),
            inputs=[
                io.Model.Input(
                    "model", optional=True, tooltip="The diffusion model with adapters."
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoders with adapters."),
                io.Combo.Input(
                    "rounding",
                    options=[NEAREST, BY_CHANCE],
                    default=NEAREST,
                    tooltip="How a weight is brought back to float16 or bfloat16. nearest: to the "
                    "nearest number, as ComfyUI does. stochastic: up or down by chance, so that of "
                    "many changes too small for such numbers the right share is kept. float32 "
                    "needs neither, and fp8 is rounded by chance by ComfyUI itself.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.String.Output(
                    display_name="report", tooltip="What was baked, how strongly, and what was not."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, rounding: str = NEAREST, model: Any = None, clip: Any = None) -> io.NodeOutput:
        """Returns the parts with patches for hooks, and a report on the node."""
        parts, lines = baked_parts({MODEL: model, CLIP: clip}, by_chance=rounding == BY_CHANCE)
        text = "\n".join(lines)
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(parts[MODEL], parts[CLIP], text, ui={"text": [text]})


def baked_parts(
    parts: dict[str, Any], *, by_chance: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Returns clones of a MODEL and a CLIP without hooks of the pack, and what the user is told.

    Args:
        parts: Under `MODEL` and `CLIP`; what is None stays so, what has no adapters is not cloned.
        by_chance: Whether results are rounded up or down by chance.

    Raises:
        EditingError: Nothing is connected, or an adapter has no strength of its own.
        UnsupportedLayerError: ComfyUI cannot patch a weight.
    """
    if all(part is None for part in parts.values()):
        raise EditingError("There is nothing to bake: connect a model or a CLIP with adapters.")
    made: dict[str, Any] = {}
    lines: list[str] = []
    for name, part in parts.items():
        made[name] = part
        if part is None:
            continue
        clone = part.clone()
        baked = bake(getattr(clone, "patcher", clone), by_chance=by_chance)
        if baked.is_empty:
            lines.append(f"The {name} has no adapters of Any Adapter: it stays as it is.")
            continue
        made[name] = clone
        lines += _told(name, baked, by_chance=by_chance)
    return made, lines


def _told(name: str, baked: Baked, *, by_chance: bool) -> list[str]:
    """Returns what became of one part."""
    lines = [f"Baked into the {name}, {counted(baked.layers, 'layer')}:"]
    lines += [f"{_told_of(item)}." for item in baked.hooked]
    if baked.patched:
        methods = _methods(item.adapter for _, item in baked.patched)
        lines.append(f"Weight patches before, which stay: {methods}.")
    if baked.by_chance:
        lines.append(f"Rounded by chance: {counted(baked.by_chance, 'parameter')}.")
    elif by_chance:
        lines.append("No weight is float16 or bfloat16: nothing is left to round by chance.")
    if baked.homeless_biases:
        lines.append(
            f"Lost, as the layers have no bias: the change of {listed(baked.homeless_biases, 3)}. "
            "As hooks they have it."
        )
    if baked.grown:
        lines.append(f"Weights that become larger: {listed(baked.grown, 3)}.")
    if baked.packed:
        lines.append(
            f"Packed by another pack, and unpacked at every step: {listed(baked.packed, 3)}. "
            "They work, but Save Checkpoint cannot write them."
        )
    return lines


def _told_of(item: Loaded) -> str:
    """Returns what a file is, where and how strong."""
    factors = sorted({one.factor for one in item.bound})
    layers = len({one.target.module for one in item.bound})
    text = f"{item.dial.name}: {_methods(one.adapter for one in item.bound)} on "
    text += f"{counted(layers, 'layer')} at {item.dial.strength:g}"
    if factors != [1.0]:
        text += f", times weights of blocks from {factors[0]:g} to {factors[-1]:g}"
    return text


def _methods(adapters: Iterable[Adapter]) -> str:
    return ", ".join(dict.fromkeys(adapter.label for adapter in adapters))
