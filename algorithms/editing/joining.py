"""Which changes of several files are of one weight: by what their names mean, else by name."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from ..adapters import Adapter
from ..adapters.lora import Lora
from ..errors import EditingError, listed
from ..formats.parse import AdapterSet
from ..keymap import KeyMap, Target
from ..shapes import Float
from .digests import digest
from .sites import Sited
from .sums import Term
from .weight_shapes import told_shape

KOHYA = "kohya"
"""Dialect of names where files call a layer by different ones."""


@dataclass(frozen=True, eq=False)
class Input:
    """A file that goes into a combination."""

    adapter_set: AdapterSet
    """Completed."""
    sites: tuple[Sited, ...]
    """Its adapters with their layers and strengths."""
    said: str
    """How strongly it goes in, in the words of a stack."""

    @property
    def name(self) -> str:
        """The file name."""
        return self.adapter_set.source


@dataclass(frozen=True, eq=False)
class Joint:
    """All changes of one weight."""

    terms: tuple[Term, ...]
    target: Target | None = None
    whole: tuple[int, ...] | None = None
    """Shape of the weight, where a model tells it."""

    @property
    def seed(self) -> str:
        """A text that stands for the layer, whatever the files call it."""
        return self.terms[0].site.module if self.target is None else str(self.target)

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """Of the weight, as the model or else the tensors of an adapter tell it."""
        if self.reshape is not None:
            return self.reshape
        if self.whole is not None:
            return self.whole
        told = (told_shape(term.site.adapter) for term in self.terms)
        return max((shape for shape in told if shape is not None), key=len, default=None)

    @cached_property
    def reshape(self) -> tuple[int, ...] | None:
        """The shape that the weight gets first, if an adapter makes it larger.

        Raises:
            EditingError: Not all of them make it the same.
        """
        wished = {
            adapter.reshape if isinstance(adapter, Lora) else None
            for adapter in (term.site.adapter for term in self.terms)
        }
        if len(wished) > 1:
            raise EditingError(
                f"{self.files()}: one of them makes the weight of {self.terms[0].site.module} "
                "larger, and the others do not know of that. They cannot be combined."
            )
        return next(iter(wished), None)

    def matrix(self, change: Float[Tensor, "O C"]) -> Tensor:
        """Returns a change in the shape of the weight."""
        if self.reshape is not None:
            raise EditingError(
                f"{self.files()}: the weight of {self.terms[0].site.module} becomes larger, which "
                "only a low-rank change does. Give the result a rank."
            )
        return change if self.shape is None else change.reshape(self.shape)

    def files(self) -> str:
        """Returns the names of the files, for messages."""
        return listed(list(dict.fromkeys(term.file for term in self.terms)), 3)


def contents_of(inputs: Sequence[Input]) -> dict[Adapter, bytes]:
    """Returns a digest of every adapter; none of a file that is alone, which nobody asks for."""
    adapters = {site.adapter for one in inputs for site in one.sites}
    return {} if len(inputs) < 2 else {one: digest(one) for one in adapters}


def ordered(inputs: Sequence[Input], contents: Mapping[Adapter, bytes]) -> list[Input]:
    """Returns the files in an order that depends on their content alone."""
    if len(inputs) < 2:
        return [*inputs]

    def key(one: Input) -> tuple[list[tuple[str, bytes, float]], str, str]:
        found = [(site.module, contents[site.adapter], site.strength) for site in one.sites]
        return found, one.name, one.said

    return sorted(inputs, key=key)


def joints_of(
    inputs: Sequence[Input], maps: Sequence[KeyMap], contents: Mapping[Adapter, bytes]
) -> list[Joint]:
    """Returns the weights that change, in the order of the files, each with all of its changes.

    Where one file changes a fused weight and another one a part of it, they are joined on the whole.

    Args:
        inputs: The files, in order.
        maps: Of the models by which the sites were placed.
        contents: Digests of their adapters.
    """
    groups: dict[tuple[bool, str], list[Term]] = {}
    for number, one in enumerate(inputs):
        for site in one.sites:
            if site.strength:
                target = site.target
                place = (False, site.module) if target is None else (True, target.weight)
                content = contents.get(site.adapter, b"")
                term = Term(site, one.name, site.strength, number, content)
                groups.setdefault(place, []).append(term)
    joints: list[Joint] = []
    for terms in groups.values():
        joints += _parted(terms, maps)
    return joints


def _parted(terms: Sequence[Term], maps: Sequence[KeyMap]) -> Iterator[Joint]:
    """Yields the changes of one weight, or of one name, by the rows that they change."""
    if terms[0].site.target is None:
        yield Joint(tuple(terms))
        return
    for several in _overlapping(terms):
        first = several[0].site
        assert first.target is not None
        if len({term.site.target for term in several}) == 1:
            yield Joint(tuple(several), first.target, first.shape)
            continue
        whole = _whole_shape(first.target, maps)
        on_whole = tuple(
            replace(term, rows=term.site.target and term.site.target.rows, outputs=whole[0])
            for term in several
        )
        yield Joint(on_whole, Target(first.target.weight), whole)


def _overlapping(terms: Sequence[Term]) -> Iterator[list[Term]]:
    """Yields the changes of one weight in groups that change rows of their own."""
    groups: list[tuple[float, float, list[Term]]] = []
    for term in terms:
        rows = term.site.target and term.site.target.rows
        start, end = (0, math.inf) if rows is None else (rows.start, rows.start + rows.length)
        own = [term]
        apart: list[tuple[float, float, list[Term]]] = []
        for first, last, others in groups:
            if first < end and start < last:
                start, end, own = min(start, first), max(end, last), others + own
            else:
                apart.append((first, last, others))
        groups = [*apart, (start, end, own)]
    for _, _, own in groups:
        if len({term.number for term in own}) > 1:
            yield sorted(own, key=lambda term: term.number)
            continue
        by_target: dict[Target | None, list[Term]] = {}  # one file keeps what it has
        for term in own:
            by_target.setdefault(term.site.target, []).append(term)
        yield from by_target.values()


def _whole_shape(target: Target, maps: Sequence[KeyMap]) -> tuple[int, ...]:
    return next(one.shapes[target.weight] for one in maps if target.weight in one.shapes)


def names_of(joints: Sequence[Joint], maps: Sequence[KeyMap]) -> list[str]:
    """Returns the name of each weight: that of the files, or kohya's where they do not agree."""
    own: list[list[str]] = []
    for joint in joints:
        sites = [term.site for term in joint.terms]
        own.append(list(dict.fromkeys(one.module for one in sites if one.target == joint.target)))
    agree = all(len(names) == 1 for names in own)
    return [
        names[0] if agree else _common_name(joint, names, maps)
        for joint, names in zip(joints, own, strict=True)
    ]


def _common_name(joint: Joint, names: Sequence[str], maps: Sequence[KeyMap]) -> str:
    target = joint.target
    if target is None:
        return names[0]
    kohya = (one.name(target, KOHYA) for one in maps)
    known = (name for one in maps for name in one.names(target))
    found = [*filter(None, kohya), *names, *known, target.weight.removesuffix(".weight")]
    return found[0]
