"""The blocks of a model: found in its module tree, named as users know them, and grouped.

Names are those of sd-webui-lora-block-weight where it has some: IN04, M00, OUT11 of a UNet, D07 and
S30 of Flux, and BASE for what is in no block. A model that no family here knows has blocks all the
same: lists of modules are found by their numbers.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .dialects import bare
from .family import Family, Shapes
from .parts import part_of
from .tables import HOST_PREFIX
from .text_encoders import in_text_encoder, kind, kind_of_layer

BASE = "BASE"
"""The group of all that is in no list of blocks, and in UNets the block too."""
TEXT_ENCODERS = "TE"
"""All groups of text encoders at once."""

LISTS = {
    "input_blocks": "IN",
    "middle_block": "M",
    "output_blocks": "OUT",
    "double_blocks": "D",
    "double_stream_blocks": "D",
    "double_layers": "D",
    "single_blocks": "S",
    "single_stream_blocks": "S",
    "single_layers": "S",
    "blocks": "B",
    "layers": "B",
    "joint_blocks": "B",
    "transformer_blocks": "B",
    "noise_refiner": "NR",
    "context_refiner": "CR",
    "vace_blocks": "V",
    "txt_in.individual_token_refiner.blocks": "TR",
    "distilled_guidance_layer.layers": "GL",
}
"""List of a model -> how the names of its blocks begin. Other lists are called by initials."""
GROUPS = {"M": "MID", "D": "DOUBLE", "S": "SINGLE"}
"""Beginning of names -> group, where these differ."""
THIRDS = ("EARLY", "MIDDLE", "LATE")
"""Groups of a list that is the only long one of its model."""
TWO_STREAMS = ("double_blocks", "double_layers", "joint_blocks")
"""Lists of blocks whose layers of the picture are not always called so."""
OUTPUT = re.compile(
    "(?:all_)?final_|proj_out|norm_out|scale_shift_table|last_|modF|(?:head|out)(?![a-z])"
)
"""Modules behind the blocks of a transformer; all others outside of lists are before them."""

UNET_LISTS = ("input_blocks", "middle_block", "output_blocks")
DIFFUSERS_UNET = re.compile(
    r"(?:(?P<side>down|up)_blocks_(?P<level>\d{1,2})_(?:attentions|resnets)_(?P<index>\d{1,2})"
    r"|(?P<sampler_side>down|up)_blocks_(?P<sampler_level>\d{1,2})_(?:down|up)samplers_0"
    r"|(?P<middle>mid_block)_(?:attentions|resnets)_\d+)_(?P<rest>.+)"
)

ENCODERS = {"CLIP-L": "L", "CLIP-G": "G", "CLIP-H": "H", "T5": "T", "language model": "LM"}
"""Kind of text encoder -> its group, with which the names of its blocks begin."""
NAMES = (*ENCODERS.values(), *THIRDS, *GROUPS.values(), "IN", "OUT", BASE, TEXT_ENCODERS, "ALL")
"""What a list that nobody here knows may not be called."""
ENCODER_DEPTHS = {"L": 12, "G": 32, "H": 24, "T": 24}
ENCODER_LAYER = re.compile(r"(?:layers|block|resblocks)[._](\d{1,3})[._](.+)")

Section = Literal["model", "clip"]


@dataclass(frozen=True)
class Place:
    """Where a layer is."""

    block: str
    part: str


@dataclass(frozen=True)
class Group:
    """Neighbouring blocks under one name."""

    name: str
    blocks: tuple[str, ...]
    section: Section = "model"
    """Whether it is of the diffusion model or of the text encoders."""


@dataclass(frozen=True, eq=False)
class BlockMap:
    """The blocks of a model, or as far as they can be told, of what a file was made for."""

    groups: tuple[Group, ...]
    """In the model's order; BASE and the text encoders are last."""
    places: Mapping[str, Place] = field(default_factory=dict[str, Place])
    """Key of a weight, or module name of a file, -> where it is."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of all blocks in their order."""
        return tuple(block for group in self.groups for block in group.blocks)

    def joined(self, other: "BlockMap") -> "BlockMap":
        """Returns a map that has the groups and places of another one too."""
        return BlockMap((*self.groups, *other.groups), {**self.places, **other.places})


def place_of(in_model: Place, by_name: Place | None) -> Place:
    """Returns where a layer of a file is.

    Args:
        in_model: Where the weight is that it changes.
        by_name: What its name in the file tells, which may speak of a third of a fused weight.
    """
    stem, _, fused = in_model.part.rpartition(".")
    projection = "" if by_name is None else by_name.part.rpartition(".")[2]
    if projection not in ("q", "k", "v") or fused not in ("qkv", "kv", "linear1"):
        return in_model
    return Place(in_model.block, f"{stem or fused}.{projection}")


def blocks_of_model(shapes: Shapes) -> BlockMap:
    """Returns the blocks of a diffusion model.

    A list of blocks is a module whose children are numbered from 0 without gap, two or more of them,
    with two or more matrices in each on average; of lists inside of each other the outermost counts.

    Args:
        shapes: The host's key of every parameter -> its shape.
    """
    names = {key: key.removeprefix(HOST_PREFIX) for key in shapes if key.startswith(HOST_PREFIX)}
    matrices = [name for key, name in names.items() if len(shapes[key]) > 1]
    lists = _lists(matrices)
    starts = _starts(lists)
    places: dict[str, Place] = {}
    for key, name in names.items():
        module = name.rpartition(".")[0] or name
        inside = next((one for one in lists if name.startswith(f"{one}.")), None)
        if inside is None:
            places[key] = _outside(module, is_unet="input_blocks" in lists)
            continue
        number, _, layer = module.removeprefix(f"{inside}.").partition(".")
        if not number.isdigit():  # beside the numbered children
            places[key] = _outside(module, is_unet="input_blocks" in lists)
            continue
        places[key] = _in_list(inside, starts[inside], int(number), layer or name)
    return BlockMap(_groups({starts[one]: length for one, length in lists.items()}), places)


def blocks_of_clip(shapes: Shapes) -> BlockMap:
    """Returns the blocks of the text encoders of a CLIP: the layers of each.

    Args:
        shapes: The host's key of every parameter -> its shape.
    """
    places: dict[str, Place] = {}
    for key in shapes:
        encoder, _, path = key.partition(".transformer.")
        start = ENCODERS[kind(encoder)]
        module = path.rpartition(".")[0] or path or key
        places[key] = _in_encoder(start, module)
    return BlockMap(tuple(_encoder_groups(places.values())), places)


def blocks_of_file(modules: Iterable[str], family: Family | None) -> BlockMap:
    """Returns the blocks that the module names of a file speak of, without a model.

    The blocks that the family has besides are among them, as far as it has always as many.

    Args:
        modules: Module names as in the file.
        family: What the file was made for, if it is known.
    """
    places: dict[str, Place] = {}
    lengths: dict[str, int] = {}
    starts: dict[str, str] = {}
    for host_list, depth in (family.depths if family else {}).items():
        starts[host_list] = LISTS[host_list]
        lengths[LISTS[host_list]] = depth
    outside: list[str] = []
    for module in modules:
        if in_text_encoder(module):
            places[module] = _in_encoder(_encoder_of(module, family), module)
            continue
        found = _find_list(bare(module), family)
        if found is None:
            outside.append(module)
            continue
        path, number, layer = found
        start = starts.setdefault(path, _start(path, set(starts.values())))
        places[module] = _in_list(path, start, number, layer)
        # The parts of a middle block are one block.
        reach = 1 if path == "middle_block" else number + 1
        lengths[start] = max(lengths.get(start, 0), reach)
    for module in outside:  # last, since the names of a file can be all that tells a UNet
        places[module] = _outside(bare(module), is_unet="IN" in lengths)
    encoders = _encoder_groups(places.values(), least=True)
    return BlockMap((*_groups(lengths), *encoders), places)


def _lists(names: Iterable[str]) -> dict[str, int]:
    """Returns the lists among the paths of matrices, in their order: path -> how many blocks."""
    children: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for name in names:
        pieces = name.split(".")
        for index, piece in enumerate(pieces[1:-1], 1):
            if piece.isdigit():
                children[".".join(pieces[:index])][int(piece)] += 1
    lists: dict[str, int] = {}
    for path, numbered in children.items():
        length = len(numbered)
        whole = sorted(numbered) == list(range(length))
        if path == "middle_block" or (
            whole and length > 1 and sum(numbered.values()) >= 2 * length
        ):
            lists[path] = 1 if path == "middle_block" else length
    inner = [path for path in lists if any(path.startswith(f"{other}.") for other in lists)]
    return {path: length for path, length in lists.items() if path not in inner}


def _starts(lists: Mapping[str, int]) -> dict[str, str]:
    """Returns list -> how the names of its blocks begin, each its own."""
    starts: dict[str, str] = {}
    for path in sorted(lists, key=lambda one: one not in LISTS):
        starts[path] = _start(path, set(starts.values()))
    return {path: starts[path] for path in lists}


def _start(path: str, taken: set[str]) -> str:
    """Returns how the names of the blocks of a list begin: letters only."""
    initials = "".join(word[0] for word in re.split(r"[._]", path) if word[:1].isalpha()).upper()
    known = LISTS.get(path) or LISTS.get(path.rpartition(".")[2])
    own = known or initials
    reserved = {*NAMES, *LISTS.values()} - {known} | taken
    candidates = (own, initials, *(f"X{'X' * number}" for number in range(len(taken) + 1)))
    return next(one for one in candidates if one and one not in reserved)


def _in_list(path: str, start: str, number: int, layer: str) -> Place:
    if path == "middle_block":
        return Place("M00", part_of(layer))
    part = part_of(layer, two_streams=path in TWO_STREAMS, single_stream=path == "single_blocks")
    return Place(f"{start}{number:02}", part)


def _outside(module: str, *, is_unet: bool) -> Place:
    """Returns the place of a layer in no list: its part is called after the module it is in."""
    part = re.split(r"\.|_(?=\d)", module)[0]
    if is_unet:
        return Place(BASE, part)
    return Place("OUT" if OUTPUT.match(module) else "IN", part)


def _groups(lengths: Mapping[str, int]) -> tuple[Group, ...]:
    """Returns the groups of a diffusion model: of its lists, and BASE."""
    groups: list[Group] = []
    for start, length in lengths.items():
        blocks = tuple(f"{start}{number:02}" for number in range(length))
        if start == "B" and length >= len(THIRDS):
            bounds = [round(third * length / 3) for third in range(4)]
            groups += [
                Group(name, blocks[bounds[third] : bounds[third + 1]])
                for third, name in enumerate(THIRDS)
            ]
        else:
            groups.append(Group(GROUPS.get(start, start), blocks))
    return (*groups, Group(BASE, (BASE,) if "IN" in lengths else ("IN", "OUT")))


def _in_encoder(start: str, module: str) -> Place:
    found = ENCODER_LAYER.search(module)
    if found is None:
        return Place(f"{start}{BASE}", re.split(r"[._]", module)[-1] or "other")
    return Place(f"{start}{int(found[1]):02}", part_of(found[2]))


def _encoder_groups(places: Iterable[Place], *, least: bool = False) -> Iterator[Group]:
    """Yields a group for every text encoder that is spoken of.

    Args:
        places: Where its layers are, among others.
        least: Whether there are as many layers as such an encoder always has, at least.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for place in places:
        start = re.match("(?:LM|[LGHT])(?=BASE|\\d)", place.block)
        if start is not None:
            found[start[0]].add(place.block)
    for start in ENCODERS.values():
        if start not in found:
            continue
        numbers = [int(name.removeprefix(start)) for name in found[start] if name[-1].isdigit()]
        depth = max([ENCODER_DEPTHS.get(start, 0) if least else 0, *(one + 1 for one in numbers)])
        blocks = [f"{start}{number:02}" for number in range(depth)]
        yield Group(start, (*blocks, f"{start}{BASE}"), "clip")


def _encoder_of(module: str, family: Family | None) -> str:
    """Returns the group of the text encoder that a module name of a file is for."""
    named = re.search(r"clip_([lgh])\.", module)
    if named:
        return named[1].upper()
    found = kind_of_layer(module) or "language model"
    if found == "CLIP":
        return "H" if family is not None and family.name == "SD 2.x" else "L"
    return ENCODERS[found]


def _find_list(name: str, family: Family | None) -> tuple[str, int, str] | None:
    """Returns the list, the number of the block and the layer in it that a name speaks of.

    Larger numbers than any model has blocks (a date, say) are none of a block.

    Args:
        name: A module name of a file without its prefixes.
        family: What it was made for, whose lists may have other names in other tools.
    """
    underscored = name.replace(".", "_")
    unet = DIFFUSERS_UNET.search(underscored)
    if family is None or "input_blocks" in family.depths:
        if unet:
            return _in_diffusers_unet(unet)
        if underscored == "conv_in":
            return "input_blocks", 0, "conv"
    elsewhere = family.lists if family else {}
    known = {**{path: path for path in LISTS}, **elsewhere}
    for path in sorted(known, key=len, reverse=True):
        spelled = path.replace(".", "_")
        found = re.match(rf"{spelled}_(\d{{1,3}})(?:_(.+))?$", underscored)
        if found:
            return known[path], int(found[1]), found[2] or ""
    if family is not None:
        return None
    found = re.match(r"(?P<path>\D+?)[._](?P<number>\d{1,3})[._](?P<rest>.+)", name)
    return (found["path"], int(found["number"]), found["rest"]) if found else None


def _in_diffusers_unet(found: re.Match[str]) -> tuple[str, int, str]:
    """Returns list, number and layer of the original UNet for a name in diffusers.

    As in all of SD 1, 2 and XL, with two blocks at each resolution going down and three going up.
    """
    rest = found["rest"]
    if found["middle"]:
        return "middle_block", 0, rest
    side = found["side"] or found["sampler_side"]
    level = int(found["level"] or found["sampler_level"])
    if side == "down":
        index = int(found["index"]) if found["side"] else 2
        return "input_blocks", 1 + 3 * level + index, rest if found["side"] else "op"
    index = int(found["index"]) if found["side"] else 2
    return "output_blocks", 3 * level + index, rest if found["side"] else "conv"
