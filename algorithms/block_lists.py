"""What the numbers of a list of block weights are for, by how many there are."""

from collections.abc import Sequence

from .errors import BlockWeightsError
from .families.blocks import BASE, TEXT_ENCODERS, BlockMap

Entry = tuple[str, ...]
"""Names of groups and blocks that one number is for."""

BESIDE: Entry = (BASE, TEXT_ENCODERS)
"""The first number of most lists: what is in no block, and the text encoders."""


def _blocks(start: str, numbers: Sequence[int]) -> list[Entry]:
    return [(f"{start}{number:02}",) for number in numbers]


MIDDLE: Entry = ("M00",)
MIDDLE_PARTS: list[Entry] = [(f"M00/middle_block.{number}.",) for number in range(3)]
"""The three parts of the middle block, which the Inspire pack counts apart."""

OF_UNETS = {
    12: [BESIDE, *_blocks("IN", [4, 5, 7, 8]), MIDDLE, *_blocks("OUT", range(6))],
    17: [BESIDE, *_blocks("IN", [1, 2, 4, 5, 7, 8]), MIDDLE, *_blocks("OUT", range(3, 12))],
    20: [BESIDE, *_blocks("IN", range(9)), MIDDLE, *_blocks("OUT", range(9))],
    26: [BESIDE, *_blocks("IN", range(12)), MIDDLE, *_blocks("OUT", range(12))],
    21: [BESIDE, *_blocks("IN", range(1, 9)), *MIDDLE_PARTS, *_blocks("OUT", range(9))],
    27: [BESIDE, *_blocks("IN", range(1, 12)), *MIDDLE_PARTS, *_blocks("OUT", range(12))],
}
"""Of sd-webui-lora-block-weight: SDXL and SD 1 without and with convolutions; then of Inspire."""

DOUBLE, SINGLE = _blocks("D", range(19)), _blocks("S", range(38))
OF_FLUX = {
    61: [("CLIP",), ("T5",), ("IN",), *DOUBLE, *SINGLE, ("OUT",)],
    # Inspire gives the last number to all that the list is too short for.
    20: [BESIDE, *DOUBLE[:-1], ("D18", "SINGLE")],
}
"""Of sd-webui-lora-block-weight, and of Inspire."""


def entries_of(count: int, blocks: BlockMap) -> list[Entry]:
    """Returns what each number of a list is for, in a model with these blocks.

    Raises:
        BlockWeightsError: No list of this model has so many.
    """
    known = lists_for(blocks)
    if count not in known:
        fitting = ", ".join(map(str, sorted(known)))
        there_are = f"there are lists of {fitting} numbers" if known else "the model is unknown"
        raise BlockWeightsError(
            f"A list of {count} block weights fits nothing here: {there_are}. "
            "Or name the blocks: IN04:0.5, OUT:0."
        )
    return known[count]


def lists_for(blocks: BlockMap) -> dict[int, list[Entry]]:
    """Returns how many numbers a list may have -> what each is for."""
    groups = {group.name: group.blocks for group in blocks.groups if group.section == "model"}
    inside = [(block,) for name, names in groups.items() if name != BASE for block in names]
    known: dict[int, list[Entry]] = {1 + len(inside): [BESIDE, *inside]} if inside else {}
    if "IN" in groups:
        known = {**known, **OF_UNETS}
    if len(groups.get("DOUBLE", ())) == len(DOUBLE) and len(groups.get("SINGLE", ())) == len(
        SINGLE
    ):
        known = {**known, **OF_FLUX}
    return known
