"""Stack: many adapters as readable text, one to a line, each with all that is set for it.

    style.safetensors | 0.8
    sub/face.safetensors | 1 | clip 0.5 | blocks IN:0.5, OUT:0 | steps 0-0.6 | seed 7 | off

Blank lines and lines beginning with `#` are skipped. A name that begins so itself is written behind a
`|`, which may stand before every name. A line may also be a tag of A1111, `<lora:style:0.8>`.
`web/stack_text.js` reads the same; `tests/support/stack_cases.json` holds both to it.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import FileError, StackError, listed

LARGEST_STRENGTH = 20.0
LARGEST_SEED = 2**53 - 1
"""The largest whole number that a page has exactly."""

HOW_TO_WRITE = (
    'Write "NAME | 0.8", and behind it, each after a "|", what else is wanted: "clip 0.5", '
    '"blocks IN:0.5, OUT:0", "steps 0-0.6", "seed 7" or "off"; decimals with a point.'
)
NO_NAMES = (None, "", "None")
"""What stands in a LORA_STACK where no file was chosen."""
LINE_BREAK = re.compile(r"\r\n|\n|\r")
BLANKS = " \t\u00a0\u3000"
NUMBER = re.compile(r"[+-]?(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
PROGRESS = r"(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?%?"
SPAN = re.compile(rf"({PROGRESS})[{BLANKS}]*-[{BLANKS}]*({PROGRESS})", re.ASCII | re.IGNORECASE)
SEED = re.compile(r"\d{1,16}", re.ASCII)
FIELD = re.compile(rf"(clip|blocks|steps|seed|off)(?:[{BLANKS}]+(.*))?", re.DOTALL)
TAG = re.compile(r"<(?:lora|lyco):", re.ASCII | re.IGNORECASE)
EXTENSION = re.compile(r"\.(safetensors|sft|ckpt|pt2?|bin|pth|pkl)$", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """What a stack says of one adapter."""

    adapter: str
    """Its name in the host's list, or so much of it that it can be found there."""
    strength_model: float = 1.0
    strength_clip: float = 1.0
    blocks: str = ""
    """Weights of blocks, as text; empty for all at 1."""
    seed: int = 0
    """Of the random weights of blocks."""
    start: float = 0.0
    """Progress of sampling from which on the adapter acts on the diffusion model."""
    end: float = 1.0
    """Progress of sampling at which it ceases."""
    is_on: bool = True

    @property
    def is_read(self) -> bool:
        """Whether its file is needed at all."""
        return self.is_on and (self.strength_model != 0 or self.strength_clip != 0)

    @property
    def has_span(self) -> bool:
        """Whether it acts only during some of the steps."""
        return self.start > 0 or self.end < 1


def parse_stack(text: str) -> tuple[Row, ...]:
    """Returns the rows of a stack; those that are off too.

    Raises:
        StackError: A line is no row; the message tells the line.
    """
    rows: list[Row] = []
    for number, line in enumerate(LINE_BREAK.split(text), start=1):
        written = line.strip(BLANKS)
        if written and not written.startswith("#"):
            read = _tag if TAG.match(written) else _row
            rows.append(read(f"Line {number}", written))
    return tuple(rows)


def format_stack(rows: Iterable[Row]) -> str:
    """Returns the text that `parse_stack` reads as these rows.

    Raises:
        StackError: A name or the weights of blocks hold what a line cannot.
    """
    return "\n".join(map(_written, rows))


def rows_of(lora_stack: Any) -> tuple[Row, ...]:
    """Returns the rows of a stack as other packs exchange it.

    It is a list of name, strength of the model and strength of CLIP; the name "None" is an empty
    place, and None an empty stack.

    Raises:
        StackError: It is something else; the message tells the entry.
    """
    if lora_stack is None:
        return ()
    if not isinstance(lora_stack, list | tuple):
        raise StackError(
            f"A LORA_STACK is a list, and this is {_kind(lora_stack)}. Connect an output of that type."
        )
    rows: list[Row] = []
    for number, entry in enumerate(lora_stack, start=1):
        if not isinstance(entry, list | tuple) or len(entry) != 3:
            raise StackError(
                f"Entry {number} of the LORA_STACK is not a name with two strengths, but "
                f"{_kind(entry)}."
            )
        name, *strengths = entry
        if name in NO_NAMES:
            continue
        if not isinstance(name, str) or not all(map(_is_strength, strengths)):
            raise StackError(
                f"Entry {number} of the LORA_STACK is not a name with two numbers: {entry!r:.100}."
            )
        model, clip = map(float, strengths)
        rows.append(Row(name, model, clip))
    return tuple(rows)


def find_adapter(name: str, names: Sequence[str]) -> str:
    """Returns the name in the host's list that a stack means.

    That is the very name, or else the only one that ends so, folder by folder, with slashes of
    either kind, and without its extension if none is written.

    Raises:
        FileError: There is none, or more than one.
    """
    if name in names:
        return name
    wanted = name.replace("\\", "/")
    has_extension = EXTENSION.search(wanted) is not None
    keys = {one: one.replace("\\", "/") for one in names}
    if not has_extension:
        keys = {one: EXTENSION.sub("", key) for one, key in keys.items()}
    found = [one for one, key in keys.items() if key == wanted]
    found = found or [one for one, key in keys.items() if key.endswith(f"/{wanted}")]
    if len(found) > 1:
        raise FileError(
            f'"{name}" could be any of {len(found)} files: {listed(sorted(found))}. Write it with '
            "folder and extension."
        )
    if not found:
        raise FileError(
            f'"{name}" is not in the LoRA folders (any more). Refresh the list and choose again, '
            "or switch it off."
        )
    return found[0]


def _kind(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, list | tuple) else ""
    return type(value).__name__ + size


def _is_strength(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _row(place: str, line: str) -> Row:
    name, *fields = (field.strip(BLANKS) for field in line.removeprefix("|").split("|"))
    if not name:
        raise StackError(f"{place} names no file. {HOW_TO_WRITE}")
    fields = list(filter(None, fields))
    strength = 1.0
    if fields and NUMBER.fullmatch(fields[0]):
        strength = _strength(place, "strength", fields.pop(0))
    row = Row(name, strength, strength)
    words: set[str] = set()
    for field in fields:
        found = FIELD.fullmatch(field)
        word, value = found.groups() if found else ("", None)
        if not word or (word == "off" and value):
            raise StackError(f'{place}: "{field}" means nothing here. {HOW_TO_WRITE}')
        if word in words:
            raise StackError(f"{place}: {word} stands there twice. Keep one of them.")
        words.add(word)
        row = replace(row, **FIELDS[word](place, value or ""))
    return row


def _off(_place: str, _value: str) -> dict[str, Any]:
    return {"is_on": False}


def _clip(place: str, value: str) -> dict[str, Any]:
    return {"strength_clip": _strength(place, "clip", value)}


def _blocks(place: str, value: str) -> dict[str, Any]:
    if not value:
        raise StackError(f"{place}: there are no weights behind blocks. {HOW_TO_WRITE}")
    return {"blocks": value}


def _steps(place: str, value: str) -> dict[str, Any]:
    found = SPAN.fullmatch(value)
    start, end = map(_progress, found.groups()) if found else (math.nan, math.nan)
    if not 0 <= start < end <= 1:
        raise StackError(
            f'{place}: steps is "{value}", and must be two numbers from 0 (the first step) to 1 '
            "(the end), the smaller first, such as 0-0.6."
        )
    return {"start": start, "end": end}


def _seed(place: str, value: str) -> dict[str, Any]:
    if not SEED.fullmatch(value) or int(value) > LARGEST_SEED:
        raise StackError(
            f'{place}: seed is "{value}", and must be a whole number from 0 to {LARGEST_SEED}.'
        )
    return {"seed": int(value)}


FIELDS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "clip": _clip,
    "blocks": _blocks,
    "steps": _steps,
    "seed": _seed,
    "off": _off,
}


def _tag(place: str, line: str) -> Row:
    """Reads a tag of A1111 and of sd-webui-lora-block-weight.

    Its first number is for the text encoders and the second for the diffusion model, and where
    only one is given both get it; a third place that is no number has weights of blocks.
    """
    name, *options = (part.strip(BLANKS) for part in TAG.sub("", line)[:-1].split(":"))
    if not line.endswith(">") or ">" in line[:-1] or "|" in line:
        raise StackError(
            f'{place}: a tag has a line of its own, such as "<lora:NAME:0.8>", and nothing else on it.'
        )
    if not name:
        raise StackError(f"{place} names no file. {HOW_TO_WRITE}")
    named = dict[str, str]()
    for position, option in enumerate(options):
        key, equals, value = (part.strip(BLANKS) for part in option.partition("="))
        if not equals:
            value = key
            key = "lbw" if position >= 2 else ("te", "unet")[position]
        key = {"w": "lbw"}.get(key, key)
        if key in ("start", "stop", "step"):
            raise StackError(
                f"{place}: {key}= counts steps, and a stack does not know how many there will be. "
                'Write "NAME | 0.8 | steps 0-0.6", from 0 (the first step) to 1 (the end).'
            )
        if key not in ("te", "unet", "lbw"):
            raise StackError(f'{place}: "{option}" means nothing here. A tag has te=, unet=, lbw=.')
        if not value:
            raise StackError(f"{place}: there is nothing behind {key}=.")
        if key == "lbw" and key in named:
            raise StackError(
                f'{place}: "{option}" comes after block weights. Names of blocks have colons, which part '
                'a tag: write "NAME | 0.8 | blocks IN04:0.5".'
            )
        named[key] = value  # a name counts before a position, which stands ahead of it
    strengths = {key: _strength(place, key, named[key]) for key in ("te", "unet") if key in named}
    te = strengths.get("te", strengths.get("unet", 1.0))
    return Row(name, strengths.get("unet", te), te, named.get("lbw", ""))


def _strength(place: str, what: str, text: str) -> float:
    if not NUMBER.fullmatch(text) or not abs(float(text)) <= LARGEST_STRENGTH:
        raise StackError(
            f'{place}: {what} is "{text}", and must be a number from -{LARGEST_STRENGTH:.0f} to '
            f"{LARGEST_STRENGTH:.0f}, such as 0.8."
        )
    return float(text)


def _progress(text: str) -> float:
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def _written(row: Row) -> str:
    needs_bar = row.adapter.startswith("#") or TAG.match(row.adapter)
    fields = [f"| {row.adapter}" if needs_bar else row.adapter, _number(row.strength_model)]
    if row.strength_clip != row.strength_model:
        fields.append(f"clip {_number(row.strength_clip)}")
    if row.blocks:
        fields.append(f"blocks {row.blocks}")
    if row.has_span:
        fields.append(f"steps {_number(row.start)}-{_number(row.end)}")
    if row.seed:
        fields.append(f"seed {row.seed}")
    if not row.is_on:
        fields.append("off")
    line = " | ".join(fields)
    try:
        is_same = parse_stack(line) == (row,)
    except StackError as error:
        raise StackError(f'"{row.adapter}" cannot stand in a stack. {error}') from None
    if not is_same:
        raise StackError(
            f'"{row.adapter}" cannot stand in a stack: a name, and weights of blocks, have no "|", '
            "no line break, and no blank at either end."
        )
    return line


def _number(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
