"""What a file is to hold: an adapter in the dtype, under the names and with the metadata wished for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from torch import Tensor

from ..adapters import Adapter
from ..adapters.base import Spelling
from ..adapters.lora import Lora
from ..errors import EditingError, listed
from ..formats.hashes import with_hashes
from ..formats.metadata import AdapterMetadata
from ..formats.parse import AdapterSet, parse_tensors
from ..formats.write import for_kohya, for_peft, settled, to_tensors
from ..keymap import KeyMap
from .dialects import DialectName, in_dialect, spelling_of
from .header_lines import laid_over
from .precision import DTYPES, in_dtype

AS_IT_IS = "as it is"
DIALECTS: tuple[DialectName, ...] = get_args(DialectName)


@dataclass(frozen=True)
class Writing:
    """How a user wants an adapter to be saved."""

    dtype: str = AS_IT_IS
    dialect: str = AS_IT_IS
    whole: bool = False
    """Whether what a dialect has in one weight may become one change of it."""
    keeps_metadata: bool = True
    changes: str = ""
    """Lines that are laid over the metadata."""


@dataclass(frozen=True, eq=False)
class FileContent:
    """What is to be written."""

    tensors: Mapping[str, Tensor]
    strings: Mapping[str, str]
    """The metadata."""
    adapter_set: AdapterSet
    """What is read from such a file."""
    notes: tuple[str, ...]
    """What saving changed, as sentences."""


def file_content(
    adapter_set: AdapterSet, wish: Writing, key_maps: Sequence[KeyMap] = ()
) -> FileContent:
    """Returns the file that holds an adapter as a user wants it.

    Args:
        adapter_set: The adapter, after `as_trained`.
        wish: How.
        key_maps: Of what is connected, for the names of another dialect.

    Raises:
        EditingError: It cannot be named or rounded so, or would not be read back as it is.
        AdapterError: It cannot be read back at all.
    """
    notes: list[str] = []
    if adapter_set.unclaimed:
        notes.append(f"Not saved, as not understood: {listed(adapter_set.unclaimed)}.")
    known = adapter_set.metadata if wish.keeps_metadata else AdapterMetadata({})
    strings = laid_over(known.strings, wish.changes)
    wanted = replace(adapter_set, metadata=replace(known, strings=strings), unclaimed=())
    spelling: Spelling | None = None
    if not key_maps:
        require_model(wish.dialect)
    for dialect in DIALECTS:
        if dialect == wish.dialect:
            wanted, sentences = in_dialect(wanted, key_maps, dialect, whole=wish.whole)
            spelling = spelling_of(dialect)
            notes += sentences
    if spelling is None:
        wanted, spelling, sentences = _as_it_is(wanted)
        notes += sentences
    else:
        wanted = _spelled(wanted, spelling)
    if spelling == "peft" and _loses_scale_of_cuts(adapter_set):
        notes.append(
            "PEFT's files have no alpha, so that the first ranks of this DyLoRA, used alone, act "
            "weaker than those of the file it was: cut it before it is saved."
        )
    tensors, strings = to_tensors(wanted, spelling)
    if wish.dtype != AS_IT_IS:
        tensors, loss = in_dtype(tensors, DTYPES[wish.dtype])
        notes += [loss] if loss else []
    if wish.keeps_metadata:
        strings = with_hashes(strings, tensors)
    return FileContent(tensors, strings, _read_back(wanted, tensors, strings), tuple(notes))


def _spelled(adapter_set: AdapterSet, spelling: Spelling) -> AdapterSet:
    """Returns a set as a file in a spelling holds it.

    Raises:
        EditingError: It has no place for a method.
    """
    ready = settled(adapter_set)
    return for_peft(ready) if spelling == "peft" else for_kohya(ready)


def _as_it_is(adapter_set: AdapterSet) -> tuple[AdapterSet, Spelling, list[str]]:
    """Returns a set for the spelling that it came in, or for kohya's, and why."""
    if adapter_set.spelling == "kohya":
        return _spelled(adapter_set, "kohya"), "kohya", []
    try:
        return _spelled(adapter_set, "peft"), "peft", []
    except EditingError as error:
        note = (
            "Its tensors are named as sd-scripts does (lora_up, lora_down), and not as they were: "
            f"PEFT and diffusers cannot have them. {error}"
        )
        return _spelled(adapter_set, "kohya"), "kohya", [note]


def _loses_scale_of_cuts(adapter_set: AdapterSet) -> bool:
    """Whether the first ranks of a DyLoRA would have a larger scale where alpha is in the tensors."""
    every = [one for several in adapter_set.adapters.values() for one in several]
    return adapter_set.metadata.is_dylora and any(
        isinstance(one, Lora) and one.alpha and not one.constant_scale for one in every
    )


def require_model(dialect: str) -> None:
    """Refuses a dialect that takes a model, where there is none.

    Raises:
        EditingError: It is one.
    """
    if dialect in DIALECTS:
        raise EditingError(
            f"The names of {dialect} are made from the layers of a model: connect the MODEL that the "
            "adapter is for, and the CLIP if it is for text encoders too, or leave the dialect "
            f"{AS_IT_IS}."
        )


def _read_back(
    adapter_set: AdapterSet, tensors: Mapping[str, Tensor], strings: Mapping[str, str]
) -> AdapterSet:
    """Returns what is read from a file with these tensors and metadata.

    Raises:
        EditingError: It is not what was to be saved.
        FormatError: It cannot be read.
    """
    read = parse_tensors(tensors, strings, adapter_set.source).as_trained()
    wrong = [
        module
        for module, several in adapter_set.adapters.items()
        if _names(several) != _names(read.adapters.get(module, ()))
    ]
    if wrong or read.unclaimed:
        raise EditingError(
            f"{adapter_set.source} cannot be saved in one file, as {listed(wrong or read.unclaimed)} "
            "would not be read as it is. Keep its metadata, or convert it to LoRA first."
        )
    return read


def _names(adapters: tuple[Adapter, ...]) -> list[str]:
    return sorted(one.label for one in adapters)
