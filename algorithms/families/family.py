"""What a model family is, and how one is told from names and sizes."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..keymap import Naming, Target

Sizes = Mapping[str, frozenset[int]]
"""Module or weight name -> every axis size of its tensors."""
Shapes = Mapping[str, tuple[int, ...]]
"""Key of a parameter -> its shape."""
Names = Callable[[Shapes], Iterable[tuple[str, Target]]]


def no_names(shapes: Shapes) -> Iterator[tuple[str, Target]]:
    """Returns nothing: the host's names are the ones that all tools use."""
    del shapes
    return iter(())


@dataclass(frozen=True)
class Mark:
    """A sign of a family: a part of a name, and optionally a size that goes with it."""

    pattern: str
    """Regular expression for a part of a module name with its dots as underscores, so that one mark
    serves all dialects."""
    size: int | None = None
    """A size that one of the module's tensors must have: the width of its text input, say."""

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def on(self, text: str, sizes: Sizes) -> bool:
        """Whether a module bears the mark.

        Args:
            text: All module names with underscores, each on a line.
            sizes: The same names -> axis sizes.
        """
        for found in self._compiled.finditer(text):
            if self.size is None:
                return True
            line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
            if self.size in sizes[line]:
                return True
        return False


@dataclass(frozen=True)
class Family:
    """A model family; any one of its marks is enough."""

    name: str
    """As users know it, for example `SDXL`."""
    marks: tuple[Mark, ...]
    names: Names = no_names
    """Shapes of a model -> (module name in diffusers or another tool, what it means); of several
    names of one weight the first is diffusers'."""
    diffusers_prefix: str = "transformer."
    """What diffusers puts before the names."""
    kohya: Naming = "host"
    """Which names sd-scripts makes its own of."""
    same_names: str = "(?!)"
    """Pattern of names in the host that `names` does not give, as diffusers has the same."""
    lists: Mapping[str, str] = field(default_factory=dict[str, str])
    """List of blocks in diffusers or another tool -> in the host, where these differ."""
    depths: Mapping[str, int] = field(default_factory=dict[str, int])
    """List of blocks in the host -> how many there are, where all models of the family have as many."""

    def fits(self, text: str, sizes: Sizes) -> bool:
        """Whether one of the marks is on the modules; see `Mark.on`."""
        return any(mark.on(text, sizes) for mark in self.marks)
