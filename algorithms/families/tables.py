"""Tables of names: what other tools call the layers of a model, layer by layer, as text.

    double_blocks.* -> transformer_blocks.*        a list of blocks, and its name elsewhere
      img_attn.proj = attn.to_out.0                a layer of such a block: host = elsewhere
      img_attn.qkv = attn.to_q+attn.to_k+attn.to_v    rows of a fused layer, one after the other
      img_mlp.0 = ff.net.0.proj ff.linear_in       two names of the same layer
      linear1 = linear1_qkv+-                      query, key and value as one, the rest nameless
    final_layer.linear = proj_out                  a layer outside of the blocks
    final_layer.adaLN_modulation.1 = ~norm_out.linear    halves swapped: (scale, shift)

Depths and widths come from the shapes of the model, so one table serves all sizes of a family.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..keymap import Target, halves_swapped, rows_of
from .family import Shapes

HOST_PREFIX = "diffusion_model."
NAMELESS = "-"


@dataclass(frozen=True)
class Table:
    """The parsed text: layer of the host with `*` for the block's number -> names elsewhere."""

    lines: dict[str, tuple[str, ...]]
    lists: dict[str, str]
    """List of blocks elsewhere -> that of the host."""

    @classmethod
    def parse(cls, *texts: str) -> "Table":
        """Returns the table that some texts make together."""
        lines: dict[str, list[str]] = defaultdict(list)
        lists: dict[str, str] = {}
        for text in texts:
            host_block = other_block = ""
            for line in filter(str.strip, text.splitlines()):
                if "->" in line:
                    host_block, other_block = line.split(" -> ")
                    lists[other_block.removesuffix(".*")] = host_block.removesuffix(".*")
                    continue
                inside = line.startswith(" ")
                host, others = line.strip().split(" = ")
                lines[_joined(host_block, host) if inside else host] += [
                    "+".join(
                        _joined(other_block, part) if inside and part != NAMELESS else part
                        for part in one.split("+")
                    )
                    for one in others.split()
                ]
        return cls({host: tuple(others) for host, others in lines.items()}, lists)

    def names(self, shapes: Shapes) -> Iterator[tuple[str, Target]]:
        """Returns (name elsewhere, what it means) for every layer of a model that it knows."""
        for key, shape in shapes.items():
            if not key.startswith(HOST_PREFIX):
                continue
            path = key.removeprefix(HOST_PREFIX)
            module, _, parameter = path.rpartition(".")
            if parameter == "bias":
                continue
            layer = path if parameter not in ("weight", "scale") else module
            for template, number in _templates(layer):
                for spelling in self.lines.get(template, ()):
                    yield from _meanings(spelling.replace("*", number), key, shape)


def _joined(block: str, layer: str) -> str:
    """Puts the name of a block before a layer, after the mark that the layer may have."""
    swapped = "~" if layer.startswith("~") else ""
    return f"{swapped}{block}.{layer.removeprefix('~')}"


def _templates(layer: str) -> Iterator[tuple[str, str]]:
    """Returns the layer as a table may have it, and the number for which `*` stands there."""
    yield layer, ""
    for found in re.finditer(r"(?<![^.])\d+(?![^.])", layer):
        yield f"{layer[: found.start()]}*{layer[found.end() :]}", found.group()


def _meanings(spelling: str, key: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Target]]:
    """Returns what a spelling means: a whole weight, a swapped one, or the slices of a fused one."""
    names = spelling.split("+")
    if len(names) > 1:
        lengths = _lengths(names, shape)
        starts = accumulate(lengths, initial=0)
        for name, start, length in zip(names, starts, lengths, strict=False):
            if name != NAMELESS:
                yield name, rows_of(key, start, length)
    elif spelling.startswith("~"):
        # Blocks that compute more than shift and scale have the same order everywhere.
        pair = shape[0] == 2 * shape[-1]
        yield spelling[1:], halves_swapped(key, shape[0]) if pair else Target(key)
    else:
        yield spelling, Target(key)


def _lengths(names: Sequence[str], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns how many rows the parts of a fused layer have.

    Two are key and value. Three are query, as wide as the input, and key and value, which have
    fewer heads in some models. Four are query, key, value and what the layer computes besides.
    """
    rows, width = shape[0], shape[-1]
    if names[-1] == NAMELESS:
        lengths = (3 * width, rows - 3 * width)
    else:
        lengths = {
            2: (rows // 2,) * 2,
            3: (width, *[(rows - width) // 2] * 2),
            4: (width, width, width, rows - 3 * width),
        }[len(names)]
    # A quantised weight may be packed in another shape: then its rows mean nothing.
    return lengths if sum(lengths) == rows and min(lengths) > 0 else ()
