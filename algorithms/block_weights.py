"""Weights of blocks as text: factors on the strength of an adapter, by the names of blocks.

    IN04:0.5, IN05-IN08:1.2, OUT:0, ALL.attn2:0.3     blocks, groups, parts of blocks
    MIDD, OUT03:0.5                                   a preset, then what differs from it
    1,0,0,0.5,...                                     a list, one number for each block
    IN04-OUT05:attn2.to_k:0                           blocks, a piece of layer names, number

A value multiplies the strength of every adapter there, linear and signed for every method. Where
several say something, the closest counts: layers over parts over blocks over groups over ALL, and
of two alike the later. What nothing is said of is 1.

The lists, the letters R, U and X and the last form are those of sd-webui-lora-block-weight; lists of
21, 27 and 58 numbers and the letters A and B are those of the Inspire pack.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .binding import Bound
from .block_lists import entries_of
from .block_names import ALIASES, ALL, STARTS, BlockNames, number_of_block, selected
from .errors import BlockWeightsError, listed
from .families.blocks import NAMES, BlockMap, Place, place_of

LARGEST = 100.0
NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
VALUE = re.compile(
    rf"(?P<number>{NUMBER})|(?P<random>[RU])(?:\((?P<low>{NUMBER})\.\.(?P<high>{NUMBER})\))?"
    rf"|(?P<letter>[ABXab])(?P<offset>[-+]\d+(?:\.\d*)?)?"
)
SPANS = {"R": (0.0, 1.0), "U": (-0.5, 1.5)}
"""Between which the random weights lie, as in sd-webui-lora-block-weight."""
HOW_TO_WRITE = 'Write names and numbers as in "IN04:0.5, OUT:0", a list of numbers, or a preset'

FindPreset = Callable[[str], str | None]
"""Gives the text of a preset, or None where there is none of that name."""


def no_presets(name: str) -> str | None:
    """Knows no preset."""
    del name
    return None


@dataclass(frozen=True)
class Value:
    """A number, or one that is drawn for each block."""

    low: float
    high: float

    def text(self) -> str:
        """Returns it as it is written."""
        if self.low == self.high:
            return _written(self.low)
        return f"R({_written(self.low)}..{_written(self.high)})"

    def drawn(self, *key: object) -> float:
        """Returns the number; the same key draws the same one."""
        if self.low == self.high:
            return self.low
        source = random.Random(":".join(map(str, key)))
        return round(source.uniform(self.low, self.high), 3)


@dataclass(frozen=True)
class Rule:
    """One value, and what it is for."""

    names: tuple[str, ...]
    """Of blocks, groups, and ranges of blocks (`IN04-OUT05`)."""
    value: Value
    part: str = ""
    """Of the blocks, the beginning of its dotted name; empty for whole blocks."""
    layers: tuple[str, ...] = ()
    """Pieces of layer names, one of which must be there."""
    other_blocks: bool = False
    """Whether all blocks but these are meant."""
    other_layers: bool = False
    """Whether all layers but these are meant."""

    def text(self) -> str:
        """Returns a rule by layers as it is written."""
        blocks = f"{'NOT ' * self.other_blocks}{' '.join(self.names)}"
        layers = f"{'NOT ' * self.other_layers}{' '.join(self.layers)}"
        return f"{blocks}:{layers}:{self.value.text()}"


@dataclass(frozen=True)
class NumberList:
    """Numbers whose blocks depend on how many there are, and on the model."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class BlockWeights:
    """A text that was read; not yet on a model."""

    items: tuple[Rule | NumberList, ...] = ()

    @classmethod
    def parse(cls, text: str, find_preset: FindPreset = no_presets) -> "BlockWeights":
        """Reads a text.

        Args:
            text: As described at the top of this module; items are parted by commas or lines.
            find_preset: Gives the texts of presets.

        Raises:
            BlockWeightsError: An item is none of these; says which.
        """
        if text.lstrip().startswith("%"):
            raise BlockWeightsError(
                "Block weights that begin with % count the blocks of each file by their order, so the "
                f"same text means something else for another file. {HOW_TO_WRITE}."
            )
        pieces = [piece.strip() for piece in re.split(r"[,\n]", text)]
        while pieces and not pieces[-1]:
            pieces.pop()
        letters = dict(_letters(pieces))
        named = re.fullmatch(r"([^:]+):\s*([^:]+)", pieces[0]) if len(pieces) > 1 else None
        if (
            named
            and not _may_name_blocks(named[1])
            and all(VALUE.fullmatch(piece) for piece in (named[2], *pieces[1:]))
        ):
            pieces[0] = named[2]  # a line of a presets' file: NAME:1,0,0
        items: list[Rule | NumberList] = []
        numbers: list[Value] = []
        for place, piece in enumerate(pieces, 1):
            where = f'Item {place} of the block weights ("{piece}")'
            following = pieces[place : place + 1]
            if not piece and not (numbers and any(map(VALUE.fullmatch, following))):
                continue
            if VALUE.fullmatch(piece):
                numbers.append(_value(where, piece, letters))
                continue
            if numbers:
                items.append(NumberList(tuple(numbers)))
                numbers = []
            if re.fullmatch(rf"[ABX]\s*=\s*{NUMBER}", piece):
                continue
            if ":" in piece:
                items.append(_rule(where, piece, letters))
            else:
                items += _preset(where, piece, find_preset)
        if numbers:
            items.append(NumberList(tuple(numbers)))
        return cls(tuple(items))

    def on(self, blocks: BlockMap, seed: int = 0) -> "PlacedWeights":
        """Returns the weights of the blocks of a model.

        Args:
            blocks: Of a diffusion model, its text encoders, or both.
            seed: Of random weights; a block has the same one whatever else is in the text.

        Raises:
            BlockWeightsError: A list has as many numbers as none for this model, or a name is one of
                no model.
        """
        rules: list[Rule] = []
        notes: list[str] = []
        for item in self.items:
            if isinstance(item, Rule):
                rules.append(item)
                continue
            rules += _rules_of_list(item.values, blocks)
        known = BlockNames(blocks)
        placed: list[_PlacedRule] = []
        for order, rule in enumerate(rules):
            covered, absent = known.covered(rule.names)
            if absent and not isinstance(rule, _FromList):
                notes.append(f"{listed(absent)}: no such block in this model.")
            if rule.other_blocks:
                covered = {block: 0 for block in blocks.blocks if block not in covered}
            what = (rule.part, *rule.layers)
            values = {block: rule.value.drawn(seed, block, *what) for block in covered}
            placed.append(_PlacedRule(rule, covered, values, order))
        by_layer = [rule.text() for rule in rules if rule.layers]
        return PlacedWeights(blocks, tuple(placed), by_layer, tuple(notes))


@dataclass(frozen=True)
class _FromList(Rule):
    """A rule that a list stands for: what its model lacks goes without saying."""


@dataclass(frozen=True, eq=False)
class _PlacedRule:
    rule: Rule
    levels: Mapping[str, int]
    """Block -> how closely it is named: as all, a group, or itself."""
    values: Mapping[str, float]
    order: int

    def closeness(self, place: Place, layers: Sequence[str]) -> tuple[int, int, int, int] | None:
        """Returns how closely it speaks of a layer, or None if it does not.

        Args:
            place: The block and the part of the layer; an empty part is the block as a whole.
            layers: Names of the layer; none where the block as a whole is meant.
        """
        level = self.levels.get(place.block)
        if level is None:
            return None
        part, pieces = self.rule.part, self.rule.layers
        if part and not f"{place.part}.".startswith(f"{part}."):
            return None
        if pieces:
            found = any(piece in layer for piece in pieces for layer in layers)
            if not layers or found == self.rule.other_layers:
                return None
            return (1, 0, 0, self.order)
        return (0, len(part.split(".")) if part else 0, level, self.order)


@dataclass(frozen=True, eq=False)
class PlacedWeights:
    """The weights of the blocks of one model."""

    blocks: BlockMap
    _rules: tuple[_PlacedRule, ...]
    by_layer: list[str] = field(default_factory=list[str])
    """The weights that some layers have by their own names, as text: no block or part tells."""
    notes: tuple[str, ...] = ()
    """What of the text has no meaning here."""
    _found: dict[Place, float] = field(default_factory=dict[Place, float])

    def of_block(self, block: str) -> float:
        """Returns the weight of a block where nothing is said of its parts."""
        return self._at(Place(block, ""), ())

    def of_part(self, block: str, part: str) -> float:
        """Returns the weight of a part of a block."""
        return self._at(Place(block, part), ())

    def of_layer(self, place: Place, names: Iterable[str]) -> float:
        """Returns the weight of a layer.

        Args:
            place: Where it is.
            names: What it is called, in the file and in the model.
        """
        if not self.by_layer:
            if place not in self._found:
                self._found[place] = self._at(place, ())
            return self._found[place]
        return self._at(place, [name.replace(".", "_") for name in names])

    def _at(self, place: Place, layers: Sequence[str]) -> float:
        best: tuple[int, int, int, int] | None = None
        value = 1.0
        for one in self._rules:
            closeness = one.closeness(place, layers)
            if closeness is not None and (best is None or closeness > best):
                best, value = closeness, one.values[place.block]
        return value

    def text(self) -> str:
        """Returns all weights that are not 1 as text, with what was drawn at random as numbers."""
        items: list[str] = []
        for group in self.blocks.groups:
            values = [self.of_block(block) for block in group.blocks]
            if len(set(values)) == 1:
                items += [] if values[0] == 1 else [f"{group.name}:{_written(values[0])}"]
            else:
                named = zip(group.blocks, values, strict=True)
                items += [f"{block}:{_written(value)}" for block, value in named if value != 1]
        places = dict.fromkeys(self.blocks.places.values())
        parts = {place: self.of_part(place.block, place.part) for place in places}
        items += [
            f"{place.block}.{place.part}:{_written(value)}"
            for place, value in parts.items()
            if value != self.of_block(place.block)
        ]
        return ", ".join([*items, *self.by_layer])


def weighted(
    bound: Iterable[Bound],
    weights: PlacedWeights,
    of_file: Mapping[str, Place],
) -> tuple[Bound, ...]:
    """Returns the adapters of a model with the factors of their blocks.

    Args:
        bound: The adapters and the weights that they change.
        weights: Of the blocks of the model.
        of_file: Module name of the file -> place, as far as its names tell: a file may speak of the
            parts of what is one fused weight in the model.
    """
    result: list[Bound] = []
    for item in bound:
        in_model = weights.blocks.places[item.target.weight]
        place = place_of(in_model, of_file.get(item.module))
        factor = weights.of_layer(place, (item.module, item.target.weight))
        result.append(item if factor == 1 else replace(item, factor=factor))
    return tuple(result)


def _rules_of_list(values: Sequence[Value], blocks: BlockMap) -> Iterator[Rule]:
    """Yields what a list stands for; what it says nothing of is 0, as in other tools."""
    yield Rule((ALL,), Value(0.0, 0.0))
    by_layer: list[_FromList] = []
    for names, value in zip(entries_of(len(values), blocks), values, strict=True):
        for name in names:
            block, _, layer = name.partition("/")
            yield _FromList((block,), value)
            if layer:
                by_layer.append(_FromList((block,), value, layers=(layer.replace(".", "_"),)))
    if len({rule.value for rule in by_layer}) > 1:  # else the block says it all
        yield from by_layer


def _may_name_blocks(text: str) -> bool:
    """Whether a text is a name of blocks, be they those of another model."""
    found = selected(text.strip())
    starts = [number_of_block(end)[0] for end in found[0].split("-")] if found else []
    return bool(starts) and all(one in STARTS or one in (*NAMES, *ALIASES) for one in starts)


def _written(number: float) -> str:
    """Returns a number in digits that are read again."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _letters(pieces: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Yields the letters that a text defines, `A=0.5`; a small letter is half of it."""
    for piece in pieces:
        found = re.fullmatch(rf"([ABX])\s*=\s*({NUMBER})", piece)
        if found:
            yield found[1], float(found[2])
            yield found[1].lower(), float(found[2]) / 2


def _value(where: str, text: str, letters: Mapping[str, float]) -> Value:
    found = VALUE.fullmatch(text)
    if found is None:
        several = (
            " Several numbers in one place have no meaning by name: name the parts, IN04.attn1:1."
        )
        raise BlockWeightsError(
            f'{where}: "{text}" is not a number.{several if " " in text else f" {HOW_TO_WRITE}."}'
        )
    if found["random"]:
        low, high = SPANS[found["random"]]
        if found["low"]:
            low, high = sorted((float(found["low"]), float(found["high"])))
        value = Value(low, high)
    elif found["letter"]:
        if found["letter"] not in letters:
            letter = found["letter"].upper()
            raise BlockWeightsError(f"{where}: {letter} has no value. Add {letter}=0.5, say.")
        number = letters[found["letter"]] + float(found["offset"] or 0)
        value = Value(number, number)
    else:
        value = Value(float(found["number"]), float(found["number"]))
    if max(abs(value.low), abs(value.high)) > LARGEST:
        raise BlockWeightsError(f"{where}: weights go from -{LARGEST:g} to {LARGEST:g}.")
    return value


def _rule(where: str, piece: str, letters: Mapping[str, float]) -> Rule:
    fields = [one.strip() for one in piece.split(":")]
    if len(fields) == 2:
        names, part = _selector(where, fields[0])
        return Rule((names,), _value(where, fields[1], letters), part)
    if len(fields) != 3:
        raise BlockWeightsError(f"{where} has too many colons. {HOW_TO_WRITE}.")
    blocks, layers, value = fields
    names, other_blocks = _several(blocks)
    pieces, other_layers = _several(layers)
    return Rule(
        tuple(_selector(where, name)[0] for name in names) or (ALL,),
        _value(where, value, letters),
        layers=tuple(one.replace(".", "_") for one in pieces),
        other_blocks=other_blocks,
        other_layers=other_layers,
    )


def _several(text: str) -> tuple[list[str], bool]:
    """Returns the words of a field, and whether it begins with NOT."""
    words = text.split()
    return (words[1:], True) if words[:1] == ["NOT"] else (words, False)


def _selector(where: str, text: str) -> tuple[str, str]:
    """Returns a name or a range as we spell it, and the part."""
    found = selected(text)
    if found is None:
        raise BlockWeightsError(f'{where}: "{text}" is no name of blocks. {HOW_TO_WRITE}.')
    return found


def _preset(where: str, name: str, find_preset: FindPreset) -> tuple[Rule | NumberList, ...]:
    text = find_preset(name)
    if text is None:
        raise BlockWeightsError(f"{where} is neither a number nor a preset. {HOW_TO_WRITE}.")
    return BlockWeights.parse(text).items
