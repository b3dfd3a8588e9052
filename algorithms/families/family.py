"""What a model family is, and how one is told from names and sizes."""

from collections.abc import Mapping
from dataclasses import dataclass

Sizes = Mapping[str, frozenset[int]]
"""Module or weight name -> every axis size of its tensors."""


@dataclass(frozen=True)
class Mark:
    """A sign of a family: a part of a name, and optionally a size that goes with it."""

    fragment: str
    """Part of a module name with its dots as underscores, so that one mark serves all dialects."""
    size: int | None = None
    """A size that one of the module's tensors must have: the width of its text input, say."""


@dataclass(frozen=True)
class Family:
    """A model family; any one of its marks is enough."""

    name: str
    """As users know it, for example `SDXL`."""
    marks: tuple[Mark, ...]

    def fits(self, sizes: Sizes) -> bool:
        """Whether a module of `sizes` bears one of the marks."""
        underscored = [(name.replace(".", "_"), axes) for name, axes in sizes.items()]
        return any(
            mark.fragment in name and (mark.size is None or mark.size in axes)
            for mark in self.marks
            for name, axes in underscored
        )
