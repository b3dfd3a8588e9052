"""Text encoders: which ones a CLIP has, their numbers, and how files name their layers.

Tools number the encoders of a model as its diffusers pipeline does: `lora_te2_` and
`text_encoder_2.` are CLIP-G in SDXL and SD 3, T5 in Flux, CLIP-L in HunyuanVideo. Only sd-scripts calls
T5 `lora_te3_` in Flux too. An encoder that is left out keeps its number: CLIP-G beside T5 is the second
one of SD 3, without the first.
"""

import re
from collections.abc import Iterator

from ..keymap import Dialect, Part, Target
from .family import Shapes

# A language model alone or beside CLIP-L comes first; beside CLIP-G (HiDream) it comes last.
ORDER = ("language model", "CLIP-L", "CLIP-H", "CLIP-G", "T5")
ORDER_WITH_CLIP_G = (*ORDER[1:], ORDER[0])

WRAPPERS = ("base_model.model.", "module.", "_orig_mod.", "lycoris_")
"""Put before any name by what a model is wrapped in: PEFT, parallel training, torch.compile,
LyCORIS."""

NUMBERED = (("lora_te", "_"), ("text_encoder_", "."))
FIRST = ("lora_te_", "lora_prior_te_", "text_encoder.")
ENDS = ("transformer.", "")
T5_NUMBERS = (1, 2, 3)
"""Numbers of T5 in files: with any of them it is known, as its names are no other encoder's."""

STARTS = re.compile(
    r"(?:lora_te|lora_prior_te)(?P<underscored>\d?)_"
    r"|text_encoder(?:_(?P<dotted>\d))?\."
    r"|text_encoders\.|clip_[lgh]\.|t5xxl\."
    r"|(?:base_model\.model\.|lycoris_)?text_model[._]"
)


def in_text_encoder(module: str) -> bool:
    """Whether a module name of a file belongs to a text encoder."""
    return STARTS.match(module) is not None


def encoders(shapes: Shapes) -> tuple[str, ...]:
    """Returns the host's names of the text encoders of a CLIP in their order, `clip_l` for one."""
    found = dict.fromkeys(key.partition(".")[0] for key in shapes if ".transformer." in key)
    order = ORDER_WITH_CLIP_G if "clip_g" in found else ORDER
    return tuple(sorted(found, key=lambda encoder: order.index(kind(encoder))))


def kind(encoder: str) -> str:
    """Returns what a text encoder is, by the host's name for it: one of `ORDER`."""
    if encoder.startswith("clip_"):
        return f"CLIP-{encoder[5:6].upper()}" if encoder[5:6] in ("l", "h", "g") else "CLIP-L"
    return "T5" if "t5" in encoder else "language model"


def kind_of_layer(module: str) -> str | None:
    """Returns what kind of text encoder a module name of a file is for, or None if it is open."""
    if re.search(r"encoder[._]block[._]\d", module):
        return "T5"
    number = number_of(module)
    if re.search(r"text_model|encoder[._]layers[._]\d|text_projection", module):
        return {1: "CLIP-L", 2: "CLIP-G"}.get(number) if number else "CLIP"
    return "language model" if re.search(r"layers[._]\d", module) else None


def number_of(module: str) -> int | None:
    """Returns the number of the text encoder that a module name of a file is for; 1 is the first.

    None if it has no number.
    """
    start = STARTS.match(module)
    if start is None:
        return None
    if module.startswith(("text_encoder.", "text_encoder_")):
        return int(start["dotted"] or 1)
    return int(start["underscored"]) if start["underscored"] else None


def text_encoder_parts(shapes: Shapes) -> tuple[Part, ...]:
    """Returns the text encoders of a CLIP with every name that files have for their weights."""
    order = encoders(shapes)
    return tuple(
        _part(encoder, number, alone=len(order) == 1, shapes=shapes)
        for number, encoder in _numbered(order)
    )


def _numbered(order: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Returns encoders with their numbers: CLIP-G first is the second one of SDXL or SD 3."""
    return enumerate(order, 2 if order and kind(order[0]) == "CLIP-G" else 1)


def _part(encoder: str, number: int, *, alone: bool, shapes: Shapes) -> Part:
    inside = f"{encoder}.transformer."
    host: dict[Target, str] = {}
    bare: dict[Target, str] = {}
    names: list[tuple[str, Target]] = []
    for key in shapes:
        path, _, parameter = key.removeprefix(inside).rpartition(".")
        if not key.startswith(inside) or parameter == "bias":
            continue
        name = path if parameter == "weight" else f"{path}.{parameter}"
        host[Target(key)] = name
        bare[Target(key)] = name.removeprefix("model.")
        names += [(other, Target(key)) for other in _spellings(name)]
    is_t5 = kind(encoder) == "T5"
    numbers = T5_NUMBERS if is_t5 else (number,)
    prefixes = [f"{start}{one}{end}" for one in numbers for start, end in NUMBERED]
    prefixes += FIRST if alone or number == 1 else ()
    prefixes += [f"{start}{encoder}.{end}" for start in ("text_encoders.", "") for end in ENDS]
    diffusers = "text_encoder." if number == 1 else f"text_encoder_{number}."
    dialects = (
        Dialect("comfy", f"text_encoders.{inside}", "host"),
        Dialect(
            "kohya", _of_kohya(number, alone=alone, is_t5=is_t5), "diffusers", underscored=True
        ),
        Dialect("onetrainer", f"lora_te{number}_", "host", underscored=True),
        Dialect("diffusers", diffusers, "host"),
    )
    if alone:
        dialects += (
            Dialect("peft", "base_model.model.", "host"),
            Dialect("lycoris", "lycoris_", "host", underscored=True),
        )
    return Part((*prefixes, *WRAPPERS), tuple(names), host, bare, dialects)


def _of_kohya(number: int, *, alone: bool, is_t5: bool) -> str:
    """Returns what sd-scripts puts before the names of an encoder; of T5 alone ComfyUI reads 1."""
    if is_t5:
        return "lora_te1_" if alone else "lora_te3_"
    return "lora_te_" if alone else f"lora_te{number}_"


def _spellings(name: str) -> Iterator[str]:
    """Returns the names of a layer in the versions and classes of transformers."""
    yield name
    if name.startswith("text_model."):
        yield name.removeprefix("text_model.")  # CLIPTextModel since transformers 5
    if name.startswith("model."):
        inner = name.removeprefix("model.")
        yield from (inner, f"language_model.{inner}", f"model.language_model.{inner}")
    if name == "shared":
        yield "encoder.embed_tokens"
