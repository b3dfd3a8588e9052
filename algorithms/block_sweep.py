"""Texts of block weights that try one block, or one group of blocks, after the other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .block_weights import ALL, BlockWeights, FindPreset, no_presets
from .errors import BlockWeightsError
from .families.blocks import BlockMap, Group

Trial = Literal["each off in turn", "each alone", "each at value"]
Level = Literal["groups", "blocks"]


@dataclass(frozen=True)
class Step:
    """One item of a sweep."""

    text: str
    """The weights of blocks."""
    label: str
    """What is tried, for a picture."""


def sweep(
    blocks: BlockMap,
    groups: Sequence[Group],
    *,
    trial: Trial,
    level: Level,
    value: float,
    base: str,
    find_preset: FindPreset = no_presets,
) -> list[Step]:
    """Returns a step for each block, or group, that a file touches.

    Args:
        blocks: All blocks of the model, and where the layers of the file are.
        groups: Those of which something is tried.
        trial: What becomes of each: off; at 1 while the others are off; at `value`.
        level: Whether whole groups or single blocks are tried.
        value: Of the last trial.
        base: The weights that hold otherwise; beside a block that is alone, what stays on.
        find_preset: Gives the texts of presets that the base may name.

    Raises:
        BlockWeightsError: The base cannot be read, or weighs single layers.
    """
    touched: dict[str, set[str]] = {}
    for place in blocks.places.values():
        touched.setdefault(place.block, set()).add(place.part)
    weight = {"each off in turn": 0.0, "each alone": 1.0, "each at value": value}[trial]
    word = {"each off in turn": "off", "each alone": "alone", "each at value": f"at {value:g}"}
    start = [f"{ALL}:0"] if trial == "each alone" else []
    start += [base.strip().strip(",")] if base.strip() else []
    if BlockWeights.parse(", ".join(start), find_preset).on(blocks).by_layer:
        raise BlockWeightsError(
            "The base has weights of single layers, which no weight of a block overrules: name "
            "blocks and their parts instead, as in IN04.attn2:0."
        )
    steps: list[Step] = []
    for name, members in _tried(groups, touched, level):
        items = [*start, f"{name}:{weight:.6g}"]
        items += _overruled(
            BlockWeights.parse(", ".join(items), find_preset), blocks, members, weight
        )
        steps.append(Step(", ".join(items), f"{name} {word[trial]}"))
    return steps


def _tried(
    groups: Sequence[Group], touched: Mapping[str, set[str]], level: Level
) -> Iterator[tuple[str, Mapping[str, set[str]]]]:
    """Yields the name of what is tried, and its touched blocks with their touched parts."""
    for group in groups:
        members = {block: touched[block] for block in group.blocks if block in touched}
        if level == "groups" and members:
            yield group.name, members
        elif level == "blocks":
            yield from ((block, {block: parts}) for block, parts in members.items())


def _overruled(
    weights: BlockWeights, blocks: BlockMap, members: Mapping[str, set[str]], weight: float
) -> Iterator[str]:
    """Yields what must be said besides, where the base speaks of blocks and parts more closely."""
    placed = weights.on(blocks)
    for block, parts in members.items():
        if placed.of_block(block) != weight:
            yield f"{block}:{weight:g}"
        for part in sorted(parts):
            if placed.of_part(block, part) not in (weight, placed.of_block(block)):
                yield f"{block}.{part}:{weight:g}"
