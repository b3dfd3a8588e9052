"""What a file tells its user: base model, training, tags, words for the prompt, a small picture.

All of it is what others wrote, so that nothing is relied on: what is of another kind than expected
is passed over, and nothing here raises. Writers: sd-scripts (`ss_`), ModelSpec (`modelspec.`),
ai-toolkit; beside the file Civitai Helper, LoRA Manager and AUTOMATIC1111's web UI.
"""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

Source = Literal["metadata", "beside", "folder"]
"""Who names a trigger word: the header, a file beside it, or a folder of the training images."""

SIDECARS = (".metadata.json", ".civitai.info", ".json")
"""Endings of the files beside an adapter that describe it (LoRA Manager, Civitai Helper, web UI)."""

MAX_SIDECAR_BYTES = 4 * 2**20
MAX_THUMBNAIL_BYTES = 2 * 2**20

NOTHING = ("", "None", "null")
"""What trainers write for a value that was not given."""

TRAINING = {
    "steps": ("ss_steps", "ss_max_train_steps"),
    "epochs": ("ss_epoch", "ss_num_epochs"),
    "images": ("ss_num_train_images",),
    "batch_size": ("ss_total_batch_size", "ss_batch_size_per_device"),
    "rank": ("ss_network_dim",),
    "alpha": ("ss_network_alpha",),
    "learning_rate": ("ss_learning_rate",),
    "learning_rate_model": ("ss_unet_lr",),
    "learning_rate_text_encoder": ("ss_text_encoder_lr",),
    "optimizer": ("ss_optimizer",),
    "scheduler": ("ss_lr_scheduler",),
    "noise_offset": ("ss_noise_offset",),
    "min_snr_gamma": ("ss_min_snr_gamma",),
    "clip_skip": ("ss_clip_skip",),
    "network": ("ss_network_module",),
    "software": ("software", "modelspec.implementation"),
    "comment": ("ss_training_comment",),
}
"""Fact about the training -> keys that say it, the first one that is there counts."""

REPEATED_FOLDER = re.compile(r"\d+_(.+)", re.DOTALL)
"""`10_name`: sd-scripts repeats the images of such a folder and trains `name` as their caption."""


@dataclass(frozen=True)
class TriggerWord:
    """A word, or several, that a prompt needs for the adapter to show."""

    text: str
    source: Source


@dataclass(frozen=True)
class Description:
    """What a file and those beside it say about it; empty where they say nothing."""

    base_model: str
    architecture: str
    title: str
    author: str
    license: str
    text: str
    """What its author or its owner wrote about it."""
    usage_hint: str
    date: str
    """ISO 8601, of the training or as the author gave it."""
    resolution: str
    training: dict[str, str]
    """A name of `TRAINING` -> what was said."""
    trigger_words: tuple[TriggerWord, ...]
    tags: tuple[tuple[str, int], ...]
    """Each tag of the training images with how many had it, the most frequent first."""


@dataclass(frozen=True)
class Sidecar:
    """What the files beside an adapter say about it."""

    base_model: str = ""
    title: str = ""
    notes: str = ""
    trigger_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture in the form of a file."""

    content_type: str
    data: bytes


def describe(strings: Mapping[str, str], sidecar: Sidecar) -> Description:
    """Returns what a user wants to know about a file.

    Args:
        strings: The metadata of its header.
        sidecar: What is said beside it.
    """
    datasets = _datasets(strings)
    return Description(
        base_model=base_model(strings, sidecar),
        architecture=_first(strings, "modelspec.architecture", "ss_base_model_version"),
        title=sidecar.title or _first(strings, "modelspec.title", "ss_output_name", "name"),
        author=_first(strings, "modelspec.author"),
        license=_first(strings, "modelspec.license"),
        text="\n\n".join(filter(None, (_first(strings, "modelspec.description"), sidecar.notes))),
        usage_hint=_first(strings, "modelspec.usage_hint"),
        date=_date(strings),
        resolution=_resolution(strings),
        training=_training(strings),
        trigger_words=_trigger_words(strings, sidecar, datasets),
        tags=_tags(datasets),
    )


def base_model(strings: Mapping[str, str], sidecar: Sidecar) -> str:
    """Returns the model that a file was trained on, as it is named there; empty if unknown.

    The file name of the model says more (Pony is SDXL) than its architecture; folders before it are
    nobody's business.
    """
    name = _first(strings, "ss_sd_model_name").replace("\\", "/").rpartition("/")[2]
    name = re.sub(r"\.(safetensors|ckpt|sft|pt)$", "", name)
    architecture = _first(strings, "ss_base_model_version", "modelspec.architecture")
    return _short(sidecar.base_model or name or architecture)


def read_sidecar(path: Path) -> Sidecar:
    """Returns what the files beside an adapter say about it."""
    found = [_read_json(path.with_name(path.stem + ending)) for ending in SIDECARS]
    # LoRA Manager keeps Civitai's answer under a name of its own.
    nested = [one["civitai"] for one in found if isinstance(one.get("civitai"), dict)]
    everything: list[dict[str, Any]] = [*found, *nested]
    words: list[str] = []
    for one in everything:
        words += [word for word in _list(one.get("trainedWords")) if isinstance(word, str)]
        words.append(_string(one, "activation text"))
    return Sidecar(
        base_model=_first_of(everything, "base_model", "baseModel", "sd version"),
        title=_first_of(everything, "model_name"),
        notes=_first_of(everything, "notes"),
        trigger_words=tuple(dict.fromkeys(filter(None, (word.strip(" ,\n") for word in words)))),
    )


def thumbnail(strings: Mapping[str, str]) -> Picture | None:
    """Returns the picture in the header, if there is one that a page may show."""
    text = strings.get("modelspec.thumbnail", "")
    start, _, encoded = text.partition(";base64,")
    if not start.startswith("data:image/") or len(encoded) > MAX_THUMBNAIL_BYTES * 4 / 3:
        return None
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    kind = picture_type(data)
    return Picture(kind, data) if kind else None


def picture_type(start: bytes) -> str | None:
    """Returns the content type of a picture by its first 12 bytes; None for what is no picture.

    Only formats that cannot hold a script: what is shown comes from anyone.
    """
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return None


def _first(strings: Mapping[str, str], *keys: str) -> str:
    values = (strings.get(key, "").strip() for key in keys)
    return next((value for value in values if value not in NOTHING), "")


def _first_of(objects: list[dict[str, Any]], *keys: str) -> str:
    values = (_string(one, key) for key in keys for one in objects)
    return next((value for value in values if value not in NOTHING), "")


def _string(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value.strip() if isinstance(value, str) else ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:99] + "…"


def _resolution(strings: Mapping[str, str]) -> str:
    """Returns width and height, which sd-scripts writes as Python does: `(1024, 1024)`."""
    text = _first(strings, "modelspec.resolution", "ss_resolution")
    sizes = re.fullmatch(r"[(\[]?\s*(\d{1,6})\s*[,x]\s*(\d{1,6})\s*[)\]]?", text)
    return f"{sizes[1]} x {sizes[2]}" if sizes else _short(text)


def _date(strings: Mapping[str, str]) -> str:
    given = _first(strings, "modelspec.date")
    if given:
        return _short(given)
    for key in ("ss_training_finished_at", "ss_training_started_at"):
        try:
            moment = datetime.fromtimestamp(float(strings.get(key, "")), timezone.utc)
        except (ValueError, OverflowError, OSError):
            continue
        return moment.replace(microsecond=0).isoformat()
    return ""


def _training(strings: Mapping[str, str]) -> dict[str, str]:
    found = {name: _first(strings, *keys) for name, keys in TRAINING.items()}
    info = _loaded(strings.get("training_info"))  # of ai-toolkit
    if isinstance(info, dict):
        for name, key in (("steps", "step"), ("epochs", "epoch")):
            found[name] = found[name] or _number(info.get(key))
    return {name: value for name, value in found.items() if value}


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _datasets(strings: Mapping[str, str]) -> dict[str, Counter[str]]:
    """Returns folder of training images -> how often each tag is there.

    sd-scripts writes one table, and where the datasets came from a file one table for each of them.
    """
    tables = [_loaded(strings.get("ss_tag_frequency"))]
    if not tables[0]:
        several = _list(_loaded(strings.get("ss_datasets")))
        tables = [one.get("tag_frequency") for one in several if isinstance(one, dict)]
    found: dict[str, Counter[str]] = {}
    for folder, tags in _items(tables):
        counts = found.setdefault(folder, Counter())
        for tag, count in _items([tags]):
            if isinstance(count, int) and count > 0 and tag.strip():
                counts[tag.strip()] += count
    for folder, _ in _items([_loaded(strings.get("ss_dataset_dirs"))]):
        found.setdefault(folder, Counter())
    return found


def _items(tables: list[Any]) -> Iterator[tuple[str, Any]]:
    for table in tables:
        if isinstance(table, dict):
            yield from table.items()


def _tags(datasets: Mapping[str, Counter[str]]) -> tuple[tuple[str, int], ...]:
    total: Counter[str] = Counter()
    for counts in datasets.values():
        total.update(counts)
    return tuple(total.most_common())


def _trigger_words(
    strings: Mapping[str, str], sidecar: Sidecar, datasets: Mapping[str, Counter[str]]
) -> tuple[TriggerWord, ...]:
    """Returns all words that are named, each once, the surest first."""
    folders = (REPEATED_FOLDER.fullmatch(folder) for folder in datasets)
    named: dict[Source, list[str]] = {
        "metadata": [_first(strings, "modelspec.trigger_phrase")],
        "beside": [*sidecar.trigger_words],
        "folder": [folder[1].strip() for folder in folders if folder],
    }
    found: dict[str, Source] = {}
    for source, words in named.items():
        for word in filter(None, words):
            found.setdefault(word, source)
    return tuple(TriggerWord(word, source) for word, source in found.items())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            return {}
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return {}
    value = _loaded(text)
    return value if isinstance(value, dict) else {}


def _loaded(text: str | None) -> Any:
    """Returns what a JSON text says; None for what is none."""
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
