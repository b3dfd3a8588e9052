"""What a combined file says of itself: its parts, and what all of them say alike.

Source of the keys: sd-scripts 0.10.1 `networks/svd_merge_lora.py`, which writes the network and what
all files agree on, and ModelSpec 1.0.1.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..adapters import Adapter
from ..formats.metadata import AdapterMetadata
from .network_metadata import network_metadata

COMBINATION = "anyadapter.combination"
"""Key of what was combined, as JSON."""
OF_BASE = (
    "ss_base_model_version",
    "ss_v2",
    "ss_model_type",
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_vae_name",
    "ss_vae_hash",
    "ss_new_vae_hash",
    "ss_clip_skip",
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
)
"""Keys of the base model, which are kept where all files say the same."""
TAGS = "ss_tag_frequency"
TRIGGER = "modelspec.trigger_phrase"


def combined_metadata(
    files: Sequence[AdapterMetadata],
    adapters: Iterable[Adapter],
    said: Mapping[str, Any],
) -> AdapterMetadata:
    """Returns the metadata of a combined file.

    Args:
        files: Those of the files that went into it.
        adapters: All that are in it.
        said: What was combined and how, ready for JSON.
    """
    strings = {COMBINATION: json.dumps(said)}
    for key in OF_BASE:
        values = {one.strings.get(key) for one in files}
        if len(values) == 1 and None not in values:
            strings[key] = str(*values)
    strings |= network_metadata(adapters, {})
    tags = _tags(files)
    if tags:
        strings[TAGS] = json.dumps(tags)
    phrases = dict.fromkeys(filter(None, (one.strings.get(TRIGGER) for one in files)))
    if phrases:
        strings[TRIGGER] = ", ".join(phrases)
    return AdapterMetadata(strings)


def _tags(files: Sequence[AdapterMetadata]) -> dict[str, dict[str, int]]:
    """Returns folder -> tag -> how many images have it, over all files."""
    found: dict[str, Counter[str]] = {}
    for one in files:
        for folder, tags in _table(one.strings.get(TAGS)).items():
            counts = {tag: n for tag, n in _as_table(tags).items() if isinstance(n, int)}
            found.setdefault(folder, Counter()).update(counts)
    return {folder: dict(counts) for folder, counts in found.items()}


def _table(text: str | None) -> dict[str, Any]:
    try:
        return _as_table(json.loads(text or "{}"))
    except (ValueError, RecursionError):  # what others wrote, and nobody relies on
        return {}


def _as_table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
