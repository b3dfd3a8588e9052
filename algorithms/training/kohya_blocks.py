"""Network arguments of sd-scripts that speak of blocks and layers, as rules.

    block_dims, block_alphas, conv_block_dims, conv_block_alphas     SD 1, SD 2 and SDXL
    down_lr_weight, mid_lr_weight, up_lr_weight, block_lr_zero_threshold
    network_reg_dims, network_reg_lrs, include_patterns, exclude_patterns
    train_blocks, train_double_block_indices, train_single_block_indices, in_dims, ..._dim    Flux
    train_block_indices, emb_dims, ..._dim                           SD 3
    train_blocks, embedder_dims, ..._dim                             Lumina 2

Source: `networks/lora.py`, `lora_flux.py`, `lora_sd3.py`, `lora_lumina.py` and `lora_anima.py` of
sd-scripts 0.10.1.

Departures: a list of rates that is too long is cut and one that is too short is filled with 1 each
on its own (sd-scripts fails on a long one where the other is not given), and a note says so. What is
no number is an error, not passed over.
"""

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..errors import TrainingError
from ..families import Family
from ..families.blocks import BlockMap
from ..families.diffusion_transformers import SD3
from ..families.flux import CHROMA, FLUX
from ..families.lumina import LUMINA_2
from ..families.unets import SD1, SD2, SDXL
from .rules import Rule, RuleTable, Value
from .targets import Targets

Arguments = Mapping[str, str]

SD_BLOCKS = (
    *(f"IN{number:02}" for number in range(12)),
    "M00",
    *(f"OUT{number:02}" for number in range(12)),
)
"""What each of 25 numbers is for; nothing in IN00 is ever adapted."""
SDXL_BLOCKS = (
    "*time_embed.*, *label_emb.*",
    *(f"IN{number:02}" for number in range(9)),
    *(f"*middle_block.{number}.*" for number in range(3)),
    *(f"OUT{number:02}" for number in range(9)),
    "*model.out.*",
)
"""What each of 23 numbers is for."""
BLOCKS = {SD1.name: SD_BLOCKS, SD2.name: SD_BLOCKS, SDXL.name: SDXL_BLOCKS}

PER_BLOCK = {
    "block_dims": "rank",
    "block_alphas": "alpha",
    "conv_block_dims": "conv_rank",
    "conv_block_alphas": "conv_alpha",
}
"""Argument -> what its numbers are of."""
RATES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")

CURVES: Mapping[str, Callable[[float], float]] = {
    "sine": lambda at: math.sin(math.pi / 2 * at),
    "cosine": lambda at: math.sin(math.pi / 2 * (1 - at)),
    "linear": lambda at: at,
    "reverse_linear": lambda at: 1 - at,
    "zeros": lambda at: 0.0 * at,
}
"""Name of a preset of rates -> its value from the first block (0) to the last (1)."""

FLUX_PARTS = {
    "img_attn_dim": "DOUBLE.img.attn",
    "txt_attn_dim": "DOUBLE.txt.attn",
    "img_mlp_dim": "DOUBLE.img.mlp",
    "txt_mlp_dim": "DOUBLE.txt.mlp",
    "img_mod_dim": "DOUBLE.img.mod",
    "txt_mod_dim": "DOUBLE.txt.mod",
    "single_dim": "SINGLE.linear1, SINGLE.linear2",
    "single_mod_dim": "SINGLE.mod",
}
SD3_PARTS = {
    "context_attn_dim": "ALL.txt.attn",
    "context_mlp_dim": "ALL.txt.mlp",
    "context_mod_dim": "ALL.txt.mod",
    "x_attn_dim": "ALL.img.attn, ALL.img.attn2",
    "x_mlp_dim": "ALL.img.mlp",
    "x_mod_dim": "ALL.img.mod",
}
REFINERS = "NR, CR"
LAYERS = "EARLY, MIDDLE, LATE"
LUMINA_PARTS = {
    "attn_dim": "EARLY.attn, MIDDLE.attn, LATE.attn, NR.attn, CR.attn",
    "mlp_dim": "EARLY.mlp, MIDDLE.mlp, LATE.mlp, NR.mlp, CR.mlp",
    "mod_dim": "EARLY.mod, MIDDLE.mod, LATE.mod, NR.mod",
    "refiner_dim": REFINERS,
}
PARTS = {
    FLUX.name: FLUX_PARTS,
    CHROMA.name: FLUX_PARTS,
    SD3.name: SD3_PARTS,
    LUMINA_2.name: LUMINA_PARTS,
}
"""Family -> argument of a rank -> what it is the rank of."""

FLUX_INPUTS = ("IN.img_in", "IN.time_in", "IN.vector_in", "IN.guidance_in", "IN.txt_in")
EMBEDDERS = {
    FLUX.name: ("in_dims", FLUX_INPUTS),
    CHROMA.name: ("in_dims", FLUX_INPUTS),
    SD3.name: (
        "emb_dims",
        (
            "IN.context_embedder",
            "IN.t_embedder",
            "IN.x_embedder",
            "IN.y_embedder",
            "*final_layer.adaLN_modulation.*",
            "*final_layer.linear",
        ),
    ),
    LUMINA_2.name: ("embedder_dims", ("IN.x_embedder", "IN.t_embedder", "IN.cap_embedder")),
}
"""Family -> argument and what each of its ranks is for, layers that are else not trained."""

CHOICES = {
    FLUX.name: {"all": "", "double": "SINGLE", "single": "DOUBLE"},
    CHROMA.name: {"all": "", "double": "SINGLE", "single": "DOUBLE"},
    LUMINA_2.name: {
        "all": "",
        "transformer": REFINERS,
        "refiners": LAYERS,
        "noise_refiner": f"{LAYERS}, CR",
        "context_refiner": f"{LAYERS}, NR",
    },
}
"""Family -> choice of `train_blocks` -> blocks that it leaves out."""
INDICES = {
    FLUX.name: {"train_double_block_indices": "D", "train_single_block_indices": "S"},
    CHROMA.name: {"train_double_block_indices": "D", "train_single_block_indices": "S"},
    SD3.name: {"train_block_indices": "B"},
}
"""Family -> argument of numbers of blocks -> how the names of these blocks begin."""

BY_NAME = ("network_reg_dims", "network_reg_lrs", "include_patterns", "exclude_patterns")
"""Arguments that work in every family."""
EXCLUDED = "re:^(?:.*(?:_modulation|_norm|_embedder|final_layer).*)$"
"""What is excluded with the patterns of a user, unless one of his includes it."""


def rules_of_arguments(
    arguments: Arguments, targets: Targets, *, learning_rate: float
) -> RuleTable:
    """Returns the rules that network arguments of sd-scripts stand for.

    Args:
        arguments: Argument -> its text, as after `--network_args`.
        targets: Layers of the model.
        learning_rate: Of the run, by which absolute rates are divided.

    Raises:
        TrainingError: An argument is none of this family, or its text means nothing.
    """
    _require_known(arguments, targets.family)
    name = targets.family.name if targets.family else ""
    rules: list[Rule] = []
    notes: list[str] = []
    rules += _by_patterns(arguments)
    rules += _by_regular_expressions(arguments, learning_rate)
    if name in BLOCKS:
        rules += _of_blocks(arguments, BLOCKS[name], notes)
    rules += _of_choices(arguments, name, targets.blocks)
    rules += _of_parts(arguments, name)
    return RuleTable(tuple(rules), tuple(notes))


def arguments_for(family: Family | None) -> tuple[str, ...]:
    """Returns the arguments that mean something for a family."""
    name = family.name if family else ""
    embedders = (EMBEDDERS[name][0],) if name in EMBEDDERS else ()
    return (
        *((*PER_BLOCK, *RATES, "block_lr_zero_threshold") if name in BLOCKS else ()),
        *(("train_blocks",) if name in CHOICES else ()),
        *INDICES.get(name, {}),
        *embedders,
        *PARTS.get(name, {}),
        *BY_NAME,
    )


def indices(text: str, count: int, argument: str) -> tuple[bool, ...]:
    """Returns for each of `count` blocks whether a text means it: `all`, `none`, `3`, `0-5,7`.

    Raises:
        TrainingError: It is none of these, or means a block that is not there.
    """
    text = text.strip()
    if text in ("all", "none", ""):
        return (text == "all",) * count
    meant: set[int] = set()
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        ends = [first, last] if dash else [first]
        if not all(end.strip().isdecimal() for end in ends):
            raise TrainingError(
                f'{argument}: "{piece.strip()}" is no number of a block. Write all, none, or numbers '
                "and ranges as in 0-5,7."
            )
        low, high = int(ends[0]), int(ends[-1])
        if low > high or high >= count:
            raise TrainingError(
                f'{argument}: "{piece.strip()}" means no blocks here: they are 0 to {count - 1}.'
            )
        meant.update(range(low, high + 1))
    return tuple(number in meant for number in range(count))


def block_rates(text: str, count: int, argument: str) -> tuple[tuple[float, ...], str]:
    """Returns the rates of `count` blocks, and a note if a list is not as long as that.

    Args:
        text: Numbers parted by commas, or a name of `CURVES`, perhaps with an offset: `sine+.25`.
        count: How many blocks there are.
        argument: Its name, for messages.

    Raises:
        TrainingError: It is none of these.
    """
    name, plus, offset = text.strip().partition("+")
    if name in CURVES:
        curve, added = CURVES[name], _number(argument, offset) if plus else 0.0
        return tuple(curve(place / max(count - 1, 1)) + added for place in range(count)), ""
    rates = [_number(argument, piece) for piece in text.split(",")]
    if len(rates) == count:
        return tuple(rates), ""
    what = f"{argument} has {len(rates)} rates for {count} blocks"
    if len(rates) > count:
        return tuple(rates[:count]), f"{what}: those after the first {count} were left out."
    filled = [*rates, *[1.0] * (count - len(rates))]
    return tuple(filled), f"{what}: the last {count - len(rates)} blocks have rate 1."


def _require_known(arguments: Arguments, family: Family | None) -> None:
    known = arguments_for(family)
    foreign = [name for name in arguments if name not in known]
    if foreign:
        model = family.name if family else "this model"
        raise TrainingError(
            f"{foreign[0]} is no argument of blocks for {model}. There are {', '.join(known)}."
        )


def _of_blocks(arguments: Arguments, blocks: Sequence[str], notes: list[str]) -> Iterator[Rule]:
    """Yields a rule for each block of a UNet of which something is said."""
    said: list[dict[str, Value]] = [{} for _ in blocks]
    for argument, option in PER_BLOCK.items():
        if argument not in arguments:
            continue
        numbers = arguments[argument].split(",")
        if len(numbers) != len(blocks):
            raise TrainingError(
                f"{argument} has {len(numbers)} numbers, and this model {len(blocks)} blocks: write "
                "one for each, parted by commas."
            )
        for values, text in zip(said, numbers, strict=True):
            values[option] = (
                _rank(argument, text) if option.endswith("rank") else _alpha(argument, text)
            )
    for values, rate in zip(said, _rates(arguments, len(blocks), notes), strict=True):
        if rate is not None:
            values["rate"] = rate
    for block, values in zip(blocks, said, strict=True):
        if values:
            yield Rule(block, None, values, required=False)


def _rates(arguments: Arguments, count: int, notes: list[str]) -> list[float | None]:
    """Returns the rate of each block of a UNet; None where nothing is said of it."""
    given = [name for name in RATES if name in arguments]
    if not given:
        return [None] * count
    # SDXL has one block before these and one behind, which keep their rate.
    side, middle, ends = (12, 1, 0) if count == len(SD_BLOCKS) else (9, 3, 1)
    threshold = _number("block_lr_zero_threshold", arguments.get("block_lr_zero_threshold", "0"))
    rates: list[float | None] = [None] * ends
    for name, length in zip(RATES, (side, middle, side), strict=True):
        found, note = block_rates(arguments.get(name, ",".join("1" * length)), length, name)
        notes += [note] if note else []
        rates += [rate if rate > threshold else 0.0 for rate in found]
    return [*rates, *[None] * ends]


def _by_patterns(arguments: Arguments) -> Iterator[Rule]:
    """Yields what is included, and then what is excluded; patterns are for whole names."""
    if "include_patterns" not in arguments and "exclude_patterns" not in arguments:
        return
    for argument, train in (("include_patterns", True), ("exclude_patterns", False)):
        for pattern in _list(argument, arguments.get(argument, "[]")):
            yield Rule(f"re:^(?:{pattern})$", train)
    yield Rule(EXCLUDED, train=False, required=False)


def _by_regular_expressions(arguments: Arguments, learning_rate: float) -> Iterator[Rule]:
    for pattern, text in _pairs("network_reg_dims", arguments):
        yield Rule(f"re:{pattern}", None, {"rank": _rank("network_reg_dims", text)})
    for pattern, text in _pairs("network_reg_lrs", arguments):
        rate = _number("network_reg_lrs", text)
        if rate and not learning_rate:
            raise TrainingError(
                "network_reg_lrs are parts of the learning rate, which is 0: set it above 0."
            )
        yield Rule(f"re:{pattern}", None, {"rate": rate / learning_rate if rate else 0.0})


def _of_choices(arguments: Arguments, family: str, blocks: BlockMap) -> Iterator[Rule]:
    """Yields what is left out by name or number of blocks."""
    if "train_blocks" in arguments:
        choice, choices = arguments["train_blocks"].strip(), CHOICES[family]
        if choice not in choices:
            raise TrainingError(
                f'train_blocks is "{choice}", and must be one of {", ".join(choices)}.'
            )
        if choices[choice]:
            yield Rule(choices[choice], train=False, required=False)
    for argument, start in INDICES.get(family, {}).items():
        if argument in arguments:
            there = [block for block in blocks.blocks if re.fullmatch(rf"{start}\d+", block)]
            meant = indices(arguments[argument], len(there), argument)
            for block, train in zip(there, meant, strict=True):
                if not train:
                    yield Rule(block, train=False, required=False)


def _of_parts(arguments: Arguments, family: str) -> Iterator[Rule]:
    """Yields the ranks of parts of blocks, and of layers outside of them."""
    for argument, pattern in PARTS.get(family, {}).items():
        if argument in arguments:
            rank = _rank(argument, arguments[argument])
            yield Rule(pattern, None, {"rank": rank}, required=False)
    argument, patterns = EMBEDDERS.get(family, ("", ()))
    if argument not in arguments:
        return
    ranks = arguments[argument].strip().strip("[]").split(",")
    if len(ranks) != len(patterns):
        raise TrainingError(
            f"{argument} has {len(ranks)} ranks, and must have {len(patterns)}: of "
            f"{', '.join(pattern.removeprefix('IN.') for pattern in patterns)}."
        )
    for pattern, text in zip(patterns, ranks, strict=True):
        rank = _rank(argument, text)
        ranks_of_both = {"rank": rank, "conv_rank": rank} if rank else {}
        yield Rule(pattern, bool(rank), ranks_of_both, required=False)


def _pairs(argument: str, arguments: Arguments) -> Iterator[tuple[str, str]]:
    """Yields pattern and number of `pattern=number,...`; a pattern may have = in it, but no comma."""
    for pair in arguments.get(argument, "").split(","):
        pattern, equals, number = pair.strip().rpartition("=")
        if not pair.strip():
            continue
        if not equals:
            raise TrainingError(f'{argument}: "{pair.strip()}" is no pair. Write pattern=number.')
        yield pattern.strip(), number


def _list(argument: str, text: str) -> list[str]:
    """Returns the texts of a list as Python writes it, or of a single one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
        raise TrainingError(
            f"{argument} is no list of patterns. Write it as ['.*attn.*', '.*mlp.*']."
        )
    return patterns


def _number(argument: str, text: str) -> float:
    """Returns a number; an empty one is 0, as in sd-scripts."""
    try:
        number = float(text.strip() or 0)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise TrainingError(f'{argument}: "{text.strip()}" is no number of 0 or more.')
    return number


def _alpha(argument: str, text: str) -> float:
    number = _number(argument, text)
    if not number:
        raise TrainingError(
            f"{argument}: an alpha of 0 scales all away. Write the rank for scale 1."
        )
    return number


def _rank(argument: str, text: str) -> int:
    number = _number(argument, text)
    if number != int(number):
        raise TrainingError(f'{argument}: "{text.strip()}" is no whole number.')
    return int(number)
