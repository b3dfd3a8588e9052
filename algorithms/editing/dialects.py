"""Dialects: an adapter set under the names, and in the cut of fused weights, of another tool."""

from collections.abc import Sequence
from typing import Literal

from ..formats.parse import AdapterSet
from ..formats.write import Spelling
from ..keymap import KeyMap

DialectName = Literal["kohya", "lycoris", "diffusers", "peft", "comfy", "onetrainer"]


def in_dialect(
    adapter_set: AdapterSet,
    key_maps: Sequence[KeyMap],
    dialect: DialectName,
    *,
    whole: bool = False,
) -> tuple[AdapterSet, tuple[str, ...]]:
    """Returns a completed set with the module names of a tool, and sentences on what was changed.

    Adapters on slices of a weight that the tool has in one are joined, and one on a weight that the
    tool has in parts is split, where that is exact.

    Args:
        adapter_set: The set, after `as_trained`.
        key_maps: What is connected: the diffusion model, the text encoders.
        dialect: The tool.
        whole: Whether what is not low-rank may be joined as a whole change (`diff`).

    Raises:
        EditingError: A module has no home in the models or no name in the dialect, or its method
            can be neither joined nor split.
    """
    raise NotImplementedError


def spelling_of(dialect: DialectName) -> Spelling:
    """Returns how the tensors of a dialect are named, for `to_tensors`."""
    return "peft" if dialect in ("diffusers", "peft") else "kohya"
