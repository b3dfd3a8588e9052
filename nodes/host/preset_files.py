"""The user's own presets of block weights, kept in ComfyUI's user folder.

A change reads the file, changes one name, writes a new file beside it, and puts that in the old one's
place in one step: whoever reads sees the old presets or the new ones, whenever the power fails. Changes
wait for each other, also those of another ComfyUI with the same folder. What cannot be read is never
written over.
"""

import json
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths

from ...algorithms.block_weights import BlockWeights
from ...algorithms.errors import (
    AdapterError,
    PresetError,
    PresetMissingError,
    PresetTakenError,
    StorageError,
)
from ...algorithms.presets import checked_name, find
from .file_lock import locked
from .whole_files import replace_file

FILE = "anyadapter/block_presets.json"
VERSION = 1
LONGEST_TEXT = 20_000
"""Characters: many times what every part of every block of a large model takes."""
MOST_PRESETS = 10_000

Presets = dict[str, str]
Document = dict[str, Any]

_one_at_a_time = threading.Lock()
_read: dict[Path, tuple[tuple[int, ...], Presets]] = {}
"""Path -> state of the file when it was read, and what was in it."""


@dataclass(frozen=True)
class Imported:
    """What became of presets from elsewhere."""

    taken: list[str] = field(default_factory=list[str])
    """Names."""
    already: list[str] = field(default_factory=list[str])
    """Names that were there before, with another text."""
    refused: list[str] = field(default_factory=list[str])
    """Sentences, each about one."""


def own_presets() -> Presets:
    """Returns the user's presets: name -> text, in the order in which they were saved.

    Raises:
        StorageError: Their file cannot be read.
    """
    path = _path()
    try:
        stat = path.stat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(error) from error
    state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    kept = _read.get(path)
    if kept is None or kept[0] != state:
        kept = _read[path] = (state, _document(path)["presets"])
    return dict(kept[1])


def preset_text(name: str) -> str | None:
    """Returns the text of a preset that comes with the pack or is the user's, or None.

    It names no other preset.

    Raises:
        StorageError: It does not come with the pack, and the user's cannot be read.
    """
    preset = find(name)
    if preset is not None:
        return preset.text
    text = own_presets().get(_stored(name))
    return None if text is None else _without_names(text)


def own_texts(text: str | None) -> list[str]:
    """Returns the texts of the user's presets that a text of block weights names.

    Args:
        text: None where it comes from another node, and is known only when that has run: then what
            is returned changes when any preset does.

    Raises:
        StorageError: They cannot be read.
    """
    if text is None:
        return [str(own_presets())]
    names = [piece for piece in re.split(r"[,\n]", text) if ":" not in piece and not find(piece)]
    own = own_presets() if any(name.strip() for name in names) else {}
    return [own[name] for name in map(_stored, names) if name in own]


def save_preset(name: str, text: str, *, replace: bool = False) -> str:
    """Saves a preset of the user's, and returns its name as it is stored.

    Args:
        name: Of the preset; blanks around it do not count.
        text: Block weights, which may name presets of the pack but none of the user's.
        replace: Whether to take the place of one with the same name.

    Raises:
        PresetTakenError: There is one of that name, and `replace` is not set.
        PresetError, BlockWeightsError: The name or the text cannot be kept.
        StorageError: The file cannot be read or written.
    """
    name, text = checked_name(name), _checked_text(text)

    def change(presets: Presets) -> None:
        if name in presets and not replace:
            raise PresetTakenError(
                f'There is a preset "{name}" already. Replace it, or choose another name.'
            )
        if len(presets) >= MOST_PRESETS:
            raise PresetError(f"There are {MOST_PRESETS} presets, which is all that are kept.")
        presets[name] = text

    _change(change)
    return name


def delete_preset(name: str) -> None:
    """Deletes a preset of the user's.

    Raises:
        PresetMissingError: There is none of that name.
        PresetError: It comes with the pack.
        StorageError: The file cannot be read or written.
    """
    wanted = _stored(name)

    def change(presets: Presets) -> None:
        if wanted in presets:
            del presets[wanted]
        elif find(wanted):
            raise PresetError(f'"{wanted}" comes with the pack and cannot be deleted.')
        else:
            raise PresetMissingError(f'There is no preset "{wanted}" (any more).')

    _change(change)


def export_presets() -> Document:
    """Returns all of the user's presets; as JSON, `import_presets` takes them.

    Raises:
        StorageError: They cannot be read.
    """
    return {"version": VERSION, "presets": own_presets()}


def import_presets(text: str, *, replace: bool = False) -> Imported:
    """Saves presets from elsewhere, all that can be kept at once.

    Args:
        text: What `export_presets` gives, or lines `NAME:1,0,0.5,...` as in the files of
            sd-webui-lora-block-weight and of the Inspire pack.
        replace: Whether to take the place of presets with the same names and other texts.

    Raises:
        PresetError: It is neither.
        StorageError: The file cannot be read or written.
    """
    imported = Imported()
    found = _found_in(text, imported)

    def change(presets: Presets) -> None:
        for name, weights in found.items():
            if presets.get(name, weights) != weights and not replace:
                imported.already.append(name)
            elif name not in presets and len(presets) >= MOST_PRESETS:
                imported.refused.append(f"{name}: {MOST_PRESETS} presets are all that are kept.")
            else:
                presets[name] = weights
                imported.taken.append(name)

    if found:
        _change(change)
    return imported


def _found_in(text: str, imported: Imported) -> Presets:
    """Returns the presets that can be kept, and notes the others."""
    text = text.removeprefix("\ufeff")
    document = text.lstrip().startswith("{")
    named = _in_document(text) if document else _in_lines(text, imported.refused)
    found: Presets = {}
    for name, weights in named:
        preset = find(name)
        if preset is not None and not document:
            imported.refused.append(f"{name}: comes with the pack as {preset.name}.")
            continue
        try:
            found[checked_name(name)] = _checked_text(weights)
        except AdapterError as error:
            imported.refused.append(f"{name}: {error}")
    return found


def _in_document(text: str) -> Iterator[tuple[str, str]]:
    try:
        return iter(_read_document(text)["presets"].items())
    except ValueError as error:
        raise PresetError(f"This cannot be imported: {error}.") from None


def _in_lines(text: str, refused: list[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, weights = (part.strip() for part in line.partition(":"))
        shown = line if len(line) <= 40 else f"{line[:40]}..."
        if line.startswith("@"):
            refused.append(f"Line {number} ({shown}) describes a series of tests, not a preset.")
        elif not colon or not weights:
            refused.append(f"Line {number} ({shown}) is no preset: write NAME:1,0,0.5,...")
        else:
            yield name, weights


def _checked_text(text: str) -> str:
    text = text.strip()
    if not text:
        raise PresetError("The block weights are empty, which is the same as ALL.")
    if len(text) > LONGEST_TEXT:
        raise PresetError(f"The block weights have more than {LONGEST_TEXT} characters.")
    if any(unicodedata.category(letter) == "Cs" for letter in text):
        raise PresetError("The block weights hold half a character.")
    BlockWeights.parse(text, _built_in)
    return text


def _stored(name: str) -> str:
    """Returns a name as it is stored, whether it may be one or not."""
    return unicodedata.normalize("NFC", name).strip()


def _without_names(text: str) -> str:
    """Returns a text with those of the pack's presets in the place of their names."""
    pieces = re.split(r"[,\n]", text)
    return ",".join(piece if ":" in piece else _built_in(piece) or piece for piece in pieces)


def _built_in(name: str) -> str | None:
    preset = find(name)
    return None if preset is None else preset.text


def _path() -> Path:
    # Resolved, so that a link to another folder stays one.
    return Path(folder_paths.get_user_directory(), FILE).resolve()


def _document(path: Path) -> Document:
    """Returns what the file holds.

    Raises:
        StorageError: It cannot be read, or holds something else.
    """
    try:
        return _read_document(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"version": VERSION, "presets": {}}
    except OSError as error:
        raise _unreadable(error) from error
    except ValueError as error:
        raise StorageError(
            f"{FILE} in ComfyUI's user folder is damaged ({error}). It is left as it is: mend it, or "
            "move it away to begin anew."
        ) from error


def _read_document(text: str) -> Document:
    """Reads JSON of ours, and keeps what else is in it.

    Raises:
        ValueError: It is none; says why.
    """
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are too deep") from None
    presets = document.get("presets") if isinstance(document, dict) else None
    if not isinstance(presets, dict):
        raise ValueError('there is no "presets": {name: text} in it')
    if document.get("version") != VERSION:
        raise ValueError(f'its "version" is not {VERSION}, which is all that is understood')
    for name, weights in presets.items():
        if not isinstance(weights, str):
            raise ValueError(f'the preset "{name}" is no text')
    return document


def _written(document: Document) -> str:
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _change(change: Callable[[Presets], None]) -> None:
    """Changes the file in one step, while nobody else does.

    Raises:
        StorageError: It cannot be read or written.
        AdapterError: What `change` raises; then nothing is changed.
    """
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time, locked(path.with_suffix(".lock")):
            document = _document(path)
            before = dict(document["presets"])
            change(document["presets"])
            if document["presets"] != before:
                replace_file(path, _written(document))
    except OSError as error:
        raise StorageError(
            f"The presets in {FILE} of ComfyUI's user folder cannot be changed: {_reason(error)}. "
            "Nothing was lost."
        ) from error


def _unreadable(error: OSError) -> StorageError:
    return StorageError(f"The presets in {FILE} cannot be read: {_reason(error)}.")


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
