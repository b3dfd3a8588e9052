"""What a list of files and a look at one of them show, from the header and from beside the file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .adapters import ADAPTERS
from .binding import families
from .families import FAMILIES, in_text_encoder
from .formats.description import Description, base_model, describe, read_sidecar, thumbnail
from .formats.outline import Outline, outline
from .formats.parse import AdapterSet, Convert
from .report import method_names, rank_span

KNOWN = (*(method.name for method in ADAPTERS), *(family.name for family in FAMILIES))
"""What a summary may tell apart: one that was made when this was less may be wrong by now."""


@dataclass(frozen=True)
class Summary:
    """A file in a list; all fields are plain, so that it can be kept as JSON."""

    method: str | None
    """None for what is no adapter."""
    rank: str
    """`16`, or `4 to 16`; empty for methods without one."""
    family: str | None
    base_model: str
    thumbnail: bool
    """Whether there is a picture in its header."""
    error: str
    """Why the file is no adapter; empty where it is one."""


@dataclass(frozen=True)
class Facts:
    """Everything that is shown of one file."""

    summary: Summary
    description: Description
    layers_model: int
    layers_text_encoders: int
    unclaimed: int
    """Tensors that no method understands."""
    notes: tuple[str, ...]
    metadata: Mapping[str, str]


def summary(path: Path, convert: Convert | None = None) -> Summary:
    """Returns a file for a list; never raises for a bad one. `convert` is as in `outline`."""
    return _summary(outline(path, convert))


def facts(path: Path, convert: Convert | None = None) -> Facts:
    """Returns all about a file; never raises for a bad one. `convert` is as in `outline`."""
    outlined = outline(path, convert)
    adapters = outlined.adapters
    modules = adapters.adapters if adapters else {}
    in_encoders = sum(map(in_text_encoder, modules))
    return Facts(
        summary=_summary(outlined),
        description=describe(outlined.strings, read_sidecar(path)),
        layers_model=len(modules) - in_encoders,
        layers_text_encoders=in_encoders,
        unclaimed=len(adapters.unclaimed) if adapters else 0,
        notes=adapters.notes if adapters else (),
        metadata=outlined.strings,
    )


def _summary(outlined: Outline) -> Summary:
    adapters = outlined.adapters
    return Summary(
        method=method_names(adapters) if adapters else None,
        rank=rank_span(adapters) if adapters else "",
        family=_family(adapters) if adapters else None,
        base_model=base_model(outlined.strings, read_sidecar(outlined.path)),
        thumbnail=thumbnail(outlined.strings) is not None,
        error=outlined.reason,
    )


def _family(adapters: AdapterSet) -> str | None:
    of_file, _ = families(adapters, ())
    return of_file.name if of_file else None
