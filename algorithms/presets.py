"""Presets of block weights that come with the pack: names that users know, and the blocks they mean.

Sources: the presets of sd-webui-lora-block-weight and of the Inspire pack, whose lists of numbers are
written out here by the names of blocks, so that a preset means the same for every file. BASE and the
text encoders stay at 1 in all but NONE and those that say so.

Departures: INALL, MIDALL and OUTALL mean whole groups, also blocks that a list of 17 numbers has no
number for. FRONT7 and its like mean the blocks they name and no others, where Inspire's lists of 20
numbers let their last one run on over the single blocks. AOUT and AB are left out, as they need two
numbers of their node. The presets of SDXL that begin so are the ones of SD 1 at the same resolutions.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import PresetError
from .families.blocks import ENCODERS, LISTS, NAMES, TEXT_ENCODERS, Group
from .families.family import Family
from .families.flux import CHROMA, FLUX
from .families.unets import SD1, SD2, SDXL

LONGEST_NAME = 64
BLOCK = re.compile(f"(?:{'|'.join({*LISTS.values(), *ENCODERS.values()})})\\d\\d+", re.IGNORECASE)
"""The name of a block, or one that a block of a longer model would have."""
DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
GROUP_NAMES = {*NAMES, *LISTS.values()}
PREFIXES = re.compile("(?:SD|SDXL|FLUX)-(?:LyC-)?", re.IGNORECASE)
"""Before the names in Inspire's file of presets."""


@dataclass(frozen=True)
class Preset:
    """A text of block weights with a name."""

    name: str
    text: str
    groups: frozenset[str] = frozenset()
    """What a model must have for it to mean anything."""
    families: tuple[Family, ...] = ()
    """Whose blocks it names; none for those of all families with these groups."""

    def fits(self, family: str | None, groups: frozenset[str]) -> bool:
        """Whether it means anything for a model of this family with these groups."""
        known = not self.families or family in [one.name for one in self.families]
        return known and self.groups <= groups


def presets_for(family: str | None, groups: Iterable[Group]) -> tuple[Preset, ...]:
    """Returns the presets that mean something for a model, or for what a file was made for.

    Args:
        family: The name of its family, None if it is unknown.
        groups: Its groups of blocks.
    """
    names = {group.name for group in groups}
    if names & {*ENCODERS.values()}:
        names.add(TEXT_ENCODERS)
    return tuple(preset for preset in PRESETS if preset.fits(family, frozenset(names)))


def find(name: str) -> Preset | None:
    """Returns the preset of a name, in any case of letters, or None if there is none.

    The names that the Inspire pack has in its file, such as `SD-MIDD`, are understood too.
    """
    wanted = name.strip().casefold()
    return _BY_NAME.get(wanted) or _BY_NAME.get(PREFIXES.sub("", wanted, count=1))


def checked_name(name: str) -> str:
    """Returns a name for a preset of the user's as it is stored.

    Raises:
        PresetError: It is empty, too long, or means something else in a text of block weights.
    """
    # Composed, so that the same name typed on another system is the same.
    name = unicodedata.normalize("NFC", name).strip()
    if not any(unicodedata.category(letter)[0] not in "CZ" for letter in name):
        raise PresetError("A preset needs a name.")
    if len(name) > LONGEST_NAME:
        raise PresetError(f"The name of a preset has at most {LONGEST_NAME} characters.")
    if any(map(_is_control, name)):
        raise PresetError("The name of a preset has no line breaks and no control characters.")
    if set(name) & set(",:"):
        raise PresetError(
            f'"{name}" cannot be the name of a preset: commas and colons part the block weights in '
            "a text."
        )
    if name.startswith("%") or "|" in name:
        raise PresetError(
            f'"{name}" cannot be the name of a preset: no text of block weights begins with %, and | '
            "parts the fields of a row of Adapter Stack."
        )
    taken = _other_meaning(name)
    if taken:
        raise PresetError(
            f'"{name}" cannot be the name of a preset: it is {taken}. Choose another.'
        )
    return name


def _is_control(letter: str) -> bool:
    """Whether a character breaks lines, turns the direction of others, or cannot be stored."""
    unwanted = unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
    directed = unicodedata.bidirectional(letter) in DIRECTIONS
    return unwanted or directed


def _other_meaning(name: str) -> str:
    """Returns what a name means already, or nothing."""
    if find(name):
        return "the name of one that comes with the pack"
    try:
        float(name)
    except ValueError:
        pass
    else:
        return "a number"
    if re.fullmatch(r"[RU](?:\(.*\))?|[ABX](?:[-+]\d.*|\s*=.*)?", name, re.IGNORECASE):
        return "a number at random, or one that a letter stands for"
    ends = name.partition(".")[0].split("-")
    if all(end.upper() in GROUP_NAMES or BLOCK.fullmatch(end) for end in ends):
        return "the name of blocks"
    return ""


def _unet(values: str) -> str:
    """Returns the text of a preset in which these blocks of a UNet have weights, and no others."""
    return ", ".join(["IN:0", "MID:0", "OUT:0", *_items(values)])


def _items(values: str) -> Iterator[str]:
    for item in values.split():
        yield item if ":" in item else f"{item}:1"


def _presets() -> Iterator[Preset]:
    yield Preset("ALL", "ALL:1")
    yield Preset("NONE", "ALL:0")
    yield Preset("ALL0.5", "ALL:0.5")
    unet = frozenset({"IN", "MID", "OUT"})
    yield Preset("INALL", "MID:0, OUT:0", unet)
    yield Preset("MIDALL", "IN:0, OUT:0", unet)
    yield Preset("OUTALL", "IN:0, MID:0", unet)
    for name, values in OF_SD.items():
        yield Preset(name, _unet(values), unet, (SD1, SD2))
    for name, values in OF_SDXL.items():
        yield Preset(name, _unet(values), unet, (SDXL,))
    streams = frozenset({"DOUBLE", "SINGLE"})
    yield Preset("DBL-ALL", "SINGLE:0", streams)
    yield Preset("SINGLE-ALL", "DOUBLE:0", streams)
    for name, blocks in OF_FLUX.items():
        yield Preset(name, f"DOUBLE:0, SINGLE:0, {blocks}:1", streams, (FLUX, CHROMA))
    thirds = ("EARLY", "MIDDLE", "LATE")
    for third in thirds:
        others = ", ".join(f"{other}:0" for other in thirds if other != third)
        yield Preset(f"{third}-ONLY", others, frozenset(thirds))
    yield Preset("TE-OFF", "TE:0", frozenset({TEXT_ENCODERS}))
    yield Preset("TE-ONLY", "ALL:0, TE:1", frozenset({TEXT_ENCODERS}))


OF_SD = {
    "INS": "IN01 IN02 IN04",
    "IND": "IN05 IN07 IN08",
    "MIDD": "IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06",
    "MIDD0.2": "IN08:0.2 M00:0.4 OUT03:0.4 OUT04:0.2",
    "MIDD0.8": "IN07:0.5 IN08:0.8 M00:0.8 OUT03:0.4",
    "MOUT": "IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09:0.5",
    "OUTD": "OUT03 OUT04 OUT05 OUT06",
    "OUTS": "OUT07 OUT08 OUT09 OUT10 OUT11",
    "ROUT": "IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03:R OUT04:R OUT05:R OUT06:R OUT07:R OUT08:R "
    "OUT09:R OUT10:R OUT11:R",
}
"""Blocks at 1, or at the value after the colon."""
OF_SDXL = {
    "SDXL-INS": "IN04 IN05",
    "SDXL-IND": "IN07 IN08",
    "SDXL-MIDD": "IN07 IN08 M00 OUT00 OUT01 OUT02",
    "SDXL-OUTD": "OUT00 OUT01 OUT02",
    "SDXL-OUTS": "OUT03 OUT04 OUT05",
}
OF_FLUX = {
    "DBL-FRONT7": "D00-D06",
    "DBL-MID6": "D07-D12",
    "DBL-TAIL6": "D13-D18",
    "SINGLE-1to10": "S00-S09",
    "SINGLE-11to20": "S10-S19",
    "SINGLE-21to30": "S20-S29",
    "SINGLE-31to37": "S30-S37",
}

PRESETS = tuple(_presets())
_BY_NAME = {preset.name.casefold(): preset for preset in PRESETS}
_BY_NAME["fluxall"] = _BY_NAME["all"]  # in sd-webui-lora-block-weight
