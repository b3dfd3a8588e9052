"""Reads the lists of weight names in `golden/names`."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "golden" / "names"


@dataclass(frozen=True)
class Named:
    """A weight of a diffusers model."""

    name: str
    shape: tuple[int, ...]
    origin: str | None = None
    """Name of the original weight that diffusers' conversion takes it from."""
    place: str | None = None
    """First row of it there, or `swapped`."""

    @property
    def is_layer(self) -> bool:
        """Whether it is a linear layer or a convolution: no norm, token, table or bare matrix."""
        others = ("_token", "_tokens", "scale_shift_table", "pos_embed.pos_embed", "ff_i.gate")
        return len(self.shape) > 1 and not self.name.endswith(others)


def weights_of(family: str) -> list[Named]:
    """Returns every weight of the diffusers model of a family; see `golden/names/make.py`."""
    text = (FOLDER / f"{family}.txt").read_text(encoding="utf-8")
    return [named for line in text.splitlines() for named in _expanded(line)]


def _expanded(line: str) -> Iterator[Named]:
    left, _, right = line.partition(" = ")
    pattern, *sizes = left.split()
    origin, place = right.split() if right else (None, None)
    for name in _spelled_out(pattern):
        number = re.search(r"(?<=\.)\d+(?=\.|$)", name)
        here = origin.replace("{}", number.group()) if origin and number else origin
        yield Named(name, tuple(map(int, sizes)), here, place)


def _spelled_out(pattern: str) -> Iterator[str]:
    """Returns the names that `{0..18}` in a pattern stands for."""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    numbers = [
        range(int(first), int(last) + 1)
        for first, last in zip(parts[1::3], parts[2::3], strict=True)
    ]
    for chosen in itertools.product(*numbers):
        between = itertools.chain(map(str, chosen), [""])
        yield "".join(itertools.chain(*zip(parts[::3], between, strict=True)))
