"""Which layers two models of one kind share, and what a file calls them."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import AmbiguousNameError
from ..keymap import KeyMap, Target

Shapes = Mapping[str, tuple[int, ...]]
"""Key of each parameter of a model -> its shape."""


@dataclass(frozen=True)
class Shared:
    """A layer of both models, or a parameter that is no weight of a layer."""

    name: str
    """Module name in the file."""
    key: str
    """Of the weight, or of the parameter, in both models."""
    bias: str | None = None
    """Key of the bias beside it, where both have one."""
    is_weight: bool = True


@dataclass(frozen=True)
class Pairing:
    """What two models share, and what not."""

    shared: tuple[Shared, ...]
    alone: tuple[str, ...]
    """Parameters that only one of them has."""
    misfits: tuple[str, ...]
    """Parameters whose shapes differ, with both shapes."""
    nameless: tuple[str, ...]
    """Shared parameters that no file can name, or single numbers, which no method changes."""


def paired(base: Shapes, tuned: Shapes, key_map: KeyMap) -> Pairing:
    """Returns what two models share.

    Names are kohya's, which most tools read, where the host's own loader knows them too: it knows
    some norms, and what is no weight of a layer, by its own names only.

    Args:
        base: Of the model that is adapted.
        tuned: Of the other one.
        key_map: Of the model that is adapted.
    """
    both = {key for key in base if tuned.get(key) == base[key]}
    misfits = [key for key in base if key in tuned and key not in both]
    shared: list[Shared] = []
    nameless: list[str] = []
    for key in (key for key in base if key in both):
        module, _, parameter = key.rpartition(".")
        if parameter == "bias" and f"{module}.weight" in both:
            continue  # goes with its weight
        is_weight = parameter == "weight"
        name = _name(key, key_map)
        if name is None or not base[key]:
            nameless += [key, *[f"{module}.bias"] * (is_weight and f"{module}.bias" in both)]
            continue
        bias = f"{module}.bias" if f"{module}.bias" in both else None
        shared.append(Shared(name, key, bias if is_weight else None, is_weight))
    return Pairing(
        tuple(shared),
        tuple(key for key in {**base, **tuned} if (key in base) != (key in tuned)),
        tuple(f"{key} ({list(base[key])} and {list(tuned[key])})" for key in misfits),
        tuple(nameless),
    )


def _name(key: str, key_map: KeyMap) -> str | None:
    """Returns the first name of a parameter that means it, and nothing else."""
    target = Target(key)
    known = key_map.names(target)
    spelled = (key_map.name(target, dialect) for dialect in ("kohya", "comfy"))
    preferred = [name for name in spelled if name in known]
    return next((name for name in (*preferred, *known) if _means(name, target, key_map)), None)


def _means(name: str, target: Target, key_map: KeyMap) -> bool:
    try:
        return key_map.target(name) == target
    except AmbiguousNameError:
        return False
