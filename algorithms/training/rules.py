"""Rules: one ordered table that says which layers are trained, and how each differs from the run.

    IN04, IN05: off                          blocks, ranges (D00-D05), groups (OUT), parts (IN04.attn2)
    *attn2*: rank=8 alpha=4 rate=0.5         a name with wildcards
    re:.*to_q$: method=LoKr                  a regular expression, found anywhere in a name
    ALL: on                                  every layer

A rule is a line: patterns, a colon, and what it says. For each value the first rule that matches a
layer and says it counts, so that a rule for ranks and one for rates do not disturb each other, and
what a user writes stands before a preset of layers. Names are the host's dotted path, the name in
the file, sd-scripts' with underscores and diffusers' with dots; blocks and parts are those of block
weights. What no rule says is as the run has it, and a layer of which nobody says otherwise is trained.
"""

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

from ..block_names import ALL, BlockNames, selected
from ..errors import BlockWeightsError, TrainingError, counted, listed
from .layer_presets import LAYER_PRESETS
from .targets import TargetLayer, Targets

Value = bool | int | float | str

OPTIONS: Mapping[str, type[Value]] = {
    "method": str,
    "rank": int,
    "alpha": float,
    "conv_rank": int,
    "conv_alpha": float,
    "rate": float,
    "dropout": float,
    "rank_dropout": float,
    "module_dropout": float,
    "rs_lora": bool,
    "use_tucker": bool,
    "dora": bool,
    "dora_on": str,
    "dora_detached": bool,
    "unit": int,
    "factor": int,
    "full_matrix": bool,
    "decompose_both": bool,
    "unbalanced": bool,
    "on_input": bool,
    "constraint": float,
    "rescaled": bool,
    "min_rank": int,
    "rank_power": float,
}
"""What a rule may say besides on and off: `rate`, a factor on the learning rate, and arguments of the
method. A rank of 0 leaves a layer out."""

WORDS: Mapping[str, bool] = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
HOW_TO_WRITE = 'Write a rule as "IN04, *attn2*: rank=8 rate=0.5" or "OUT: off"'


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    pattern: str
    """As written: several are parted by commas, but for a regular expression, which is alone."""
    train: bool | None = None
    """Whether these layers are trained; None where it leaves that to others."""
    values: Mapping[str, Value] = field(default_factory=dict[str, Value])
    """A key of `OPTIONS` -> its value."""
    required: bool = True
    """Whether it is a mistake if it matches nothing; not in what a list or a preset stands for."""

    @classmethod
    def parse(cls, line: str) -> "Rule":
        """Reads a line.

        Raises:
            TrainingError: It says nothing that is understood.
        """
        pattern, colon, said = line.rpartition(":")
        if not colon or not pattern.strip() or not said.split():
            raise TrainingError(f'The rule "{line}" lacks a pattern or a value. {HOW_TO_WRITE}.')
        train: bool | None = None
        values: dict[str, Value] = {}
        for word in said.split():
            key, equals, text = word.partition("=")
            if word in ("on", "off"):
                train = word == "on"
            elif not equals or key not in OPTIONS:
                raise TrainingError(
                    f'The rule "{line}": "{word}" is no value of a rule. There are on, off, and '
                    f"{', '.join(f'{name}=' for name in OPTIONS)}."
                )
            else:
                values[key] = _value(line, key, text)
        return cls(pattern.strip(), train, values)

    def text(self) -> str:
        """Returns it as it is written."""
        words = [] if self.train is None else ["on" if self.train else "off"]
        words += [f"{key}={_written(value)}" for key, value in self.values.items()]
        return f"{self.pattern}: {' '.join(words)}"


@dataclass(frozen=True, eq=False)
class Chosen:
    """A layer that is trained."""

    layer: TargetLayer
    rate: float
    """Factor on the learning rate of its part."""
    options: Mapping[str, Value]
    """What differs from the method and its arguments that the run has."""


@dataclass(frozen=True)
class RuleTable:
    """Rules in their order."""

    rules: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = ()
    """What a user should know of how they came about."""

    @classmethod
    def parse(cls, text: str) -> "RuleTable":
        """Reads lines; empty ones and those that begin with # say nothing.

        Raises:
            TrainingError: A line is no rule.
        """
        lines = (line.strip() for line in text.splitlines())
        return cls(tuple(Rule.parse(line) for line in lines if line and line[0] != "#"))

    @classmethod
    def of_preset(cls, name: str) -> "RuleTable":
        """Returns the rules that a preset of layers stands for, a key of `LAYER_PRESETS`.

        Raises:
            TrainingError: There is none of that name.
        """
        preset = LAYER_PRESETS.get(name)
        if preset is None:
            raise TrainingError(
                f'There is no preset of layers "{name}". There are {", ".join(LAYER_PRESETS)}.'
            )
        return cls.parse(preset).optional()

    def optional(self) -> "RuleTable":
        """Returns the same rules, which may match nothing."""
        rules = (Rule(one.pattern, one.train, one.values, required=False) for one in self.rules)
        return RuleTable(tuple(rules), self.notes)

    def followed_by(self, other: "RuleTable") -> "RuleTable":
        """Returns the rules of both, in which these count before the others."""
        return RuleTable((*self.rules, *other.rules), (*self.notes, *other.notes))

    def text(self) -> str:
        """Returns all rules, a line each."""
        return "\n".join(rule.text() for rule in self.rules)

    def on(self, targets: Targets, *, norms: bool = False) -> "PlacedRules":
        """Returns which layers of a model are trained, and how.

        Args:
            targets: Its layers.
            norms: Whether norms are among them at all.

        Raises:
            TrainingError: A rule matches nothing, or changes nothing; or no layer is left.
        """
        layers = tuple(layer for layer in targets.layers if norms or layer.kind != "norm")
        known = BlockNames(targets.blocks)
        names = {name for layer in targets.layers for name in layer.spellings}
        rules = [_PlacedRule(rule, _matcher(rule, known, names)) for rule in self.rules]
        chosen = [one for one in (_choice(layer, rules) for layer in layers) if one is not None]
        for placed in rules:
            placed.require_effect(targets)
        if not chosen:
            raise TrainingError(
                f"The rules leave none of {len(layers)} layers to train. The last of them is "
                f'"{self.rules[-1].text() if self.rules else ""}": switch some layers on before it.'
            )
        counts = tuple((one.rule, one.matched) for one in rules)
        return PlacedRules(tuple(chosen), counts, layers, self.notes)


@dataclass(frozen=True, eq=False)
class PlacedRules:
    """The rules on one model."""

    chosen: tuple[Chosen, ...]
    """The layers that are trained, in the order of the model."""
    counts: tuple[tuple[Rule, int], ...]
    """Each rule, and how many layers it matches."""
    layers: tuple[TargetLayer, ...]
    """All that could be trained."""
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Returns the user's rules with how many layers each matches, and how many are trained."""
        told = [(rule.text(), count) for rule, count in self.counts if rule.required]
        width = max((len(text) for text, _ in told), default=0)
        lines = [f"{text:<{width}}  {counted(count, 'layer')}" for text, count in told]
        for section, name in (("model", "the model"), ("clip", "the text encoders")):
            of_part = [layer for layer in self.layers if layer.section == section]
            trained = sum(one.layer.section == section for one in self.chosen)
            if of_part:
                lines.append(f"Trained: {trained} of {len(of_part)} layers of {name}.")
        return "\n".join([*lines, *self.notes])


@dataclass(eq=False)
class _PlacedRule:
    rule: Rule
    matches: Callable[[TargetLayer], bool]
    matched: int = 0
    said: int = 0
    """Layers of which it was the first to say something."""
    used: int = 0
    """Of these, layers that are trained."""
    left_out: int = 0
    """Layers that are not trained by its word."""

    def require_effect(self, targets: Targets) -> None:
        """Checks that it makes a difference, if it must.

        Raises:
            TrainingError: It makes none.
        """
        rule = self.rule
        if not rule.required or self.used or self.left_out:
            return
        what = f'The rule "{rule.text()}"'
        if not self.matched:
            groups = listed([ALL, *(group.name for group in targets.blocks.groups)], 20)
            example = next(iter(targets.layers), None)
            called = "" if example is None else f", layers {' or '.join(example.spellings[:3])}"
            raise TrainingError(
                f"{what} matches no layer. Groups here are {groups}; blocks are called "
                f"{listed(targets.blocks.blocks, 4)}{called}."
            )
        layers = counted(self.matched, "layer")
        if not self.said:
            raise TrainingError(
                f"{what} has no effect: of its {layers} rules before it say all that it says. Move "
                "it up, or delete it."
            )
        raise TrainingError(
            f'{what} has no effect: none of its {layers} is trained. Add "on" to it, or choose '
            "another preset of layers."
        )


def _choice(layer: TargetLayer, rules: Iterable[_PlacedRule]) -> Chosen | None:
    """Returns how a layer is trained, or None; tells each rule what came of it."""
    values: dict[str, Value] = {}
    train: bool | None = None
    speakers: list[tuple[_PlacedRule, frozenset[str]]] = []
    switch: _PlacedRule | None = None
    for placed in rules:
        if not placed.matches(layer):
            continue
        placed.matched += 1
        news = {key: one for key, one in placed.rule.values.items() if key not in values}
        values |= news
        switches = train is None and placed.rule.train is not None
        if switches:
            train, switch = placed.rule.train, placed
        if news or switches:
            placed.said += 1
            speakers.append((placed, frozenset(news)))
    rank = "conv_rank" if layer.kind == "kxk" else "rank"
    nothing = next((key for key in ("rate", rank) if values.get(key, 1) == 0), None)
    if train is False or nothing:
        for placed, news in speakers:
            placed.left_out += (placed is switch and train is False) or nothing in news
        return None
    for placed, _ in speakers:
        placed.used += 1
    rate = float(values.pop("rate", 1.0))
    ranks = ("rank", "conv_rank")  # a 0 is for layers of the other kind
    options = {key: one for key, one in values.items() if not (key in ranks and one == 0)}
    return Chosen(layer, rate, options)


def _matcher(rule: Rule, known: BlockNames, names: Set[str]) -> Callable[[TargetLayer], bool]:
    """Returns whether a rule means a layer.

    Args:
        rule: The rule.
        known: Blocks of the model.
        names: Every spelling of its layers.
    """
    if rule.pattern.startswith("re:"):
        return _regular(rule, rule.pattern[3:])
    single = [
        _by_name(pattern)
        if set(pattern) & set("*?[") or pattern in names
        else _by_block(rule, pattern, known)
        for pattern in (piece.strip() for piece in rule.pattern.split(","))
    ]
    return lambda layer: any(matches(layer) for matches in single)


def _regular(rule: Rule, pattern: str) -> Callable[[TargetLayer], bool]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TrainingError(
            f'The rule "{rule.text()}": after re: stands no regular expression ({error}). '
            f"{HOW_TO_WRITE}."
        ) from error
    return lambda layer: any(compiled.search(name) for name in layer.spellings)


def _by_name(pattern: str) -> Callable[[TargetLayer], bool]:
    compiled = re.compile(fnmatch.translate(pattern))
    return lambda layer: any(compiled.match(name) for name in layer.spellings)


def _by_block(rule: Rule, pattern: str, known: BlockNames) -> Callable[[TargetLayer], bool]:
    found = selected(pattern)
    if found is None:
        raise TrainingError(
            f'The rule "{rule.text()}": "{pattern}" is the name of no layer, and of no blocks. '
            f"{HOW_TO_WRITE}."
        )
    blocks, named = found
    try:
        covered, _ = known.covered([blocks])
    except BlockWeightsError as error:
        raise TrainingError(f'The rule "{rule.text()}": {error}') from error
    part = f"{named}." if "." in pattern else ""  # "IN01.." names a part that no layer is in
    return lambda layer: layer.place.block in covered and f"{layer.place.part}.".startswith(part)


def _value(line: str, key: str, text: str) -> Value:
    """Returns a value of a rule, of the type that it must have."""
    kind = OPTIONS[key]
    value: Value | None = None
    if kind is str:
        value = text or None
    elif kind is bool:
        value = WORDS.get(text.lower())
    else:
        try:
            value = int(text) if kind is int else float(text)
        except ValueError:
            value = None
    numbers = ("rank", "conv_rank", "rate")
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        expected = {str: "a word", bool: "true or false", int: "a whole number", float: "a number"}
        raise TrainingError(f'The rule "{line}": {key} is "{text}", and must be {expected[kind]}.')
    if key in numbers and float(value) < 0:
        raise TrainingError(f'The rule "{line}": {key} is below 0. Set it to 0 or more.')
    return value


def _written(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
