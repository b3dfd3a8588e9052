"""The names of blocks and groups in texts: how they are written, and which blocks of a model they mean."""

import re
from collections.abc import Sequence

from .errors import BlockWeightsError, listed
from .families.blocks import BASE, ENCODERS, LISTS, NAMES, TEXT_ENCODERS, BlockMap

ALL = "ALL"
SELECTOR = re.compile(r"(?P<first>[A-Za-z0-9]+)(?:-(?P<last>[A-Za-z0-9]+))?(?:\.(?P<part>[\w.]+))?")
ALIASES = {
    "CLIP": ("L", "G", "H"),
    "T5": ("T",),
    "M": ("MID",),
    "D": ("DOUBLE",),
    "DBL": ("DOUBLE",),
    "S": ("SINGLE",),
}
"""Names that others have for groups."""
STARTS = {*LISTS.values(), *ENCODERS.values()}


class BlockNames:
    """The names of blocks and groups of a model."""

    def __init__(self, blocks: BlockMap) -> None:
        self._order = blocks.blocks
        self._places = {block: place for place, block in enumerate(self._order)}
        self._groups = {group.name: group.blocks for group in blocks.groups}
        encoders = [group.blocks for group in blocks.groups if group.section == "clip"]
        self._encoders = [block for names in encoders for block in names]

    def covered(self, names: Sequence[str]) -> tuple[dict[str, int], list[str]]:
        """Returns block -> how closely these names mean it, and those that mean none here.

        Raises:
            BlockWeightsError: A name is one of no model.
        """
        covered: dict[str, int] = {}
        absent: list[str] = []
        for name in names:
            found, level = self._meant(name)
            if not found and name not in (ALL, BASE, TEXT_ENCODERS, *ALIASES):
                self._check(name)
                absent.append(name)
            for block in found:
                covered[block] = max(level, covered.get(block, 0))
        return covered, absent

    def _meant(self, name: str) -> tuple[Sequence[str], int]:
        if name == ALL:
            return self._order, 0
        if name == TEXT_ENCODERS:
            return self._encoders, 1
        if name in ALIASES:
            return [block for one in ALIASES[name] for block in self._groups.get(one, ())], 2
        if "-" in name:
            return self._range(*name.split("-")), 3
        if name in self._places and name not in self._groups:
            return [name], 3
        if name in self._groups:
            return self._groups[name], 2
        return (), 0

    def _range(self, first: str, last: str) -> Sequence[str]:
        """Returns the blocks from one to another, as far as the model has them."""
        found = [end for end in map(self._end, (first, last)) if end is not None]
        if len(found) < 2:
            return ()
        return [block for block, at in self._places.items() if min(found) <= at <= max(found)]

    def _end(self, name: str) -> float | None:
        """Returns where the end of a range is; one that the model lacks is behind its like."""
        if name in self._places:
            return float(self._places[name])
        start, _ = number_of_block(name)
        like = [at for block, at in self._places.items() if number_of_block(block)[0] == start]
        return max(like) + 0.5 if like else None

    def _check(self, name: str) -> None:
        """Checks that a name which this model lacks is one of another model."""
        for one in name.split("-"):
            start, _ = number_of_block(one)
            if one not in NAMES and start not in STARTS:
                groups = listed([ALL, *self._groups], 12)
                raise BlockWeightsError(
                    f'There is no block or group "{one}". Groups here are {groups}; blocks are '
                    f"{listed(self._order, 4)}."
                )


def number_of_block(block: str) -> tuple[str, int]:
    """Returns how the name of a block begins, and its number; -1 where it has none."""
    found = re.fullmatch(r"([A-Z]+?)(\d+)", block)
    return (found[1], int(found[2])) if found else (block, -1)


def selected(text: str) -> tuple[str, str] | None:
    """Returns the block, the group or the range that a text names, as we spell it, and the part of it.

    None is returned where the text cannot be such a name.
    """
    found = SELECTOR.fullmatch(text)
    if found is None:
        return None
    ends = [spelled_block(found[end]) for end in ("first", "last") if found[end]]
    return "-".join(ends), (found["part"] or "").strip(".")


def spelled_block(name: str) -> str:
    """Returns the name of a block as we spell it: IN4 is IN04, MID00 is M00."""
    start, number = number_of_block(name.upper())
    if number < 0 or name.upper() in ALIASES:
        return name.upper()
    return f"{'M' if start == 'MID' else start}{number:02}"
