"""Dialects: what tools put before the names of a diffusion model's layers."""

import re
from collections.abc import Iterable, Iterator

from ..keymap import Dialect, Part, Target
from .family import Family, Shapes
from .tables import HOST_PREFIX
from .text_encoders import WRAPPERS

DOTTED = (HOST_PREFIX, "model.diffusion_model.", "transformer.", "unet.")
UNDERSCORED = (
    "lora_unet__",  # Wan-Fun
    "lora_unet_",
    "lora_transformer_",
    "lora_prior_unet_",
    "oft_unet_",
)
PREFIXES = (*DOTTED, *UNDERSCORED, *WRAPPERS)
START = re.compile(f"(?:{'|'.join(map(re.escape, PREFIXES))})+")


def diffusion_model_part(
    shapes: Shapes, pairs: Iterable[tuple[str, Target]], family: Family | None
) -> Part:
    """Returns a diffusion model with every name that files have for its weights.

    Args:
        shapes: Key of every parameter of the model -> its shape.
        pairs: The host's own key map: what it knows with one prefix is then found with any.
        family: What the model is, if it is known.
    """
    host = dict(_own_names(shapes))
    elsewhere = tuple(family.names(shapes)) if family else ()
    diffusers: dict[Target, str] = {}
    for name, target in elsewhere:
        diffusers.setdefault(target, name)
    if family:
        same = re.compile(family.same_names)
        shared = {target: name for target, name in host.items() if same.fullmatch(name)}
        diffusers = shared | diffusers
    by_host = [(bare(name), target) for name, target in pairs]
    own = [(name, target) for target, name in host.items()]
    # A norm whose weight is called so is named by its module, as any other.
    own += [(name[: -len(".scale")], target) for name, target in own if name.endswith(".scale")]
    names = [*own, *elsewhere, *by_host]
    prefix = family.diffusers_prefix if family else "transformer."
    kohya = family.kohya if family else "host"
    dialects = (
        Dialect("comfy", HOST_PREFIX, "host"),
        Dialect("kohya", "lora_unet_", kohya, underscored=True),
        Dialect("onetrainer", _onetrainer(prefix), "diffusers", underscored=True),
        Dialect("diffusers", prefix, "diffusers"),
        Dialect("peft", "base_model.model.", "diffusers"),
        Dialect("lycoris", "lycoris_", "diffusers", underscored=True),
    )
    return Part(PREFIXES, tuple(dict.fromkeys(names)), host, diffusers, dialects)


def _own_names(shapes: Shapes) -> Iterator[tuple[Target, str]]:
    """Returns (target, the host's name of it): of a module, or of a parameter that is no weight."""
    for key in shapes:
        if key.startswith(HOST_PREFIX) and not key.endswith(".bias"):
            yield Target(key), key.removeprefix(HOST_PREFIX).removesuffix(".weight")


def bare(name: str) -> str:
    """Returns a module name of a diffusion model without its prefixes."""
    if name.startswith(HOST_PREFIX):
        return name.removeprefix(HOST_PREFIX)
    start = START.match(name)
    return name[start.end() :] if start else name


def _onetrainer(prefix: str) -> str:
    return "lora_unet_" if prefix == "unet." else "lora_transformer_"
