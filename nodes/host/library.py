"""All adapter files with what a list shows of them, kept in memory and in the user's folder."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import folder_paths
from comfy.lora_convert import convert_lora

from ...algorithms.errors import FileError
from ...algorithms.facts import KNOWN, Facts, Summary, facts, summary
from ...algorithms.formats.description import SIDECARS, picture_type, thumbnail
from ...algorithms.formats.read import gone, read_header
from .files import adapter_names, adapter_path
from .whole_files import replace_file

FORM = 1
"""Of what is kept on disk; counted up when its meaning changes."""

SAVE_EVERY_SECONDS = 10
MAX_PREVIEW_BYTES = 32 * 2**20
PREVIEW_ENDINGS = tuple(
    f"{before}.{ending}"
    for before in ("", ".preview")
    for ending in ("png", "jpg", "jpeg", "webp", "gif")
)
"""What stands in the name of a picture in place of the ending of its adapter."""

State = tuple[int, ...]
"""Sizes and times, in nanoseconds, of a file and of those beside it that describe it."""
Folders = dict[str, Mapping[str, os.DirEntry[str]]]
"""Folder -> its files by name; each is listed once, as many adapters lie in one folder."""


@dataclass(frozen=True)
class Entry:
    """One line of the list."""

    name: str
    """As the host lists it."""
    path: str
    state: State
    size_bytes: int
    modified: float
    """Seconds since 1970."""
    picture: str
    """The name of a picture beside it; empty where there is none."""
    summary: Summary | None = None
    """None as long as the file is not read."""

    @property
    def preview(self) -> bool:
        """Whether there is a picture, as far as is known."""
        return bool(self.picture) or (self.summary is not None and self.summary.thumbnail)


@dataclass(frozen=True)
class Preview:
    """The picture of an adapter: a file beside it, or what is in its header."""

    content_type: str
    modified: float
    """Seconds since 1970."""
    path: Path | None = None
    data: bytes = b""


class Library:
    """What is known of all files, and a thread that reads those that are new or have changed."""

    def __init__(self, index: Callable[[], Path]) -> None:
        """Makes a library that knows nothing yet.

        Args:
            index: Returns where to keep what is known; a place that cannot be written does no harm.
        """
        self._index = index
        self._lock = threading.Lock()
        self._known: dict[str, tuple[State, Summary]] | None = None
        self._wanted: dict[str, State] = {}
        self._reader: threading.Thread | None = None

    def entries(self, names: Sequence[str]) -> list[Entry]:
        """Returns the files that are there, and begins to read those that are not known.

        Args:
            names: All that the host lists.
        """
        folders: Folders = {}
        found: list[Entry] = []
        for name in names:
            with contextlib.suppress(FileError):  # it is gone since the host looked
                found.append(_entry(name, folders))
        with self._lock:
            if self._known is None:
                self._known = _load(self._index())
            for path in self._known.keys() - {entry.path for entry in found}:
                del self._known[path]
            entries = [replace(entry, summary=self._summary(entry)) for entry in found]
            self._wanted |= {one.path: one.state for one in entries if one.summary is None}
            if self._wanted and not (self._reader and self._reader.is_alive()):
                self._reader = threading.Thread(target=self._read, daemon=True)
                self._reader.start()
        return entries

    def _summary(self, entry: Entry) -> Summary | None:
        """Returns what is known of a file in the state that it is in."""
        state, told = (self._known or {}).get(entry.path, (None, None))
        return told if state == entry.state else None

    def _read(self) -> None:
        """Reads all files that are wanted, and ends when there are no more."""
        saved = time.monotonic()
        while True:
            with self._lock:
                path = next(iter(self._wanted), None)
                state = self._wanted.pop(path) if path is not None else ()
            if path is not None:
                told = summary(Path(path), convert_lora)
                with self._lock:
                    if self._known is not None:
                        self._known[path] = (state, told)
            if path is None or time.monotonic() - saved > SAVE_EVERY_SECONDS:
                self._save()
                saved = time.monotonic()
            with self._lock:
                if path is None and not self._wanted:
                    self._reader = None
                    return

    def _save(self) -> None:
        with self._lock:
            known = dict(self._known or {})
        files = {path: [state, asdict(told)] for path, (state, told) in known.items()}
        text = json.dumps({"form": FORM, "known": KNOWN, "files": files})
        with contextlib.suppress(OSError):  # all is read again after the next start then
            index = self._index()
            index.parent.mkdir(parents=True, exist_ok=True)
            replace_file(index, text)


_library = Library(lambda: Path(folder_paths.get_user_directory(), "anyadapter", "library.json"))


def all_entries() -> list[Entry]:
    """Returns all adapter files of the host with what is known of them by now."""
    return _library.entries(adapter_names())


def entry_and_facts(name: str) -> tuple[Entry, Facts]:
    """Returns all about one file, which is read for it.

    Raises:
        FileError: There is no such file.
    """
    entry = _entry(name, {})
    told = facts(Path(entry.path), convert_lora)
    return replace(entry, summary=told.summary), told


def preview_of(name: str) -> Preview:
    """Returns the picture of an adapter.

    Raises:
        FileError: There is no such adapter, or it has none that can be shown.
    """
    entry = _entry(name, {})
    path = Path(entry.path).with_name(entry.picture) if entry.picture else None
    try:
        if path is not None:
            stat = path.stat()
            with path.open("rb") as file:
                content_type = picture_type(file.read(12))
            if content_type and stat.st_size <= MAX_PREVIEW_BYTES:
                return Preview(content_type, stat.st_mtime, path)
    except OSError as error:
        raise FileError(f"The picture of {name} cannot be read: {error.strerror}.") from error
    if picture := thumbnail(read_header(Path(entry.path)).metadata):
        return Preview(picture.content_type, entry.modified, data=picture.data)
    raise FileError(f"{name} has no picture that can be shown.")


def _entry(name: str, folders: Folders) -> Entry:
    """Returns a file as it is on the disk now.

    Raises:
        FileError: There is no such file, or its folder cannot be read.
    """
    path = adapter_path(name)
    folder, own_name = os.path.split(path)
    try:
        if folder not in folders:
            with os.scandir(folder) as listed:
                folders[folder] = {entry.name: entry for entry in listed}
        beside = folders[folder]
        stem = own_name.removesuffix(path.suffix)
        stat = path.stat()
        state = (stat.st_size, stat.st_mtime_ns, *_states(beside, stem))
    except OSError as error:
        raise FileError(gone(path)) from error
    picture = next((stem + one for one in PREVIEW_ENDINGS if stem + one in beside), "")
    return Entry(name, os.fspath(path), state, stat.st_size, stat.st_mtime, picture)


def _states(beside: Mapping[str, os.DirEntry[str]], stem: str) -> list[int]:
    """Returns sizes and times of the files that describe an adapter."""
    stats = [beside[stem + one].stat() for one in SIDECARS if stem + one in beside]
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]


def _load(index: Path) -> dict[str, tuple[State, Summary]]:
    """Returns what was kept on disk; nothing where it is damaged or was made by another version."""
    try:
        kept = json.loads(index.read_text(encoding="utf-8"))
        if kept["form"] != FORM or kept["known"] != [*KNOWN]:
            return {}
        return {
            str(path): (tuple(map(int, state)), _checked(told))
            for path, (state, told) in kept["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _checked(told: dict[str, Any]) -> Summary:
    """Returns a summary from JSON.

    Raises:
        TypeError: It is none.
    """
    made = Summary(**told)
    for name, kind in get_type_hints(Summary).items():
        if not isinstance(getattr(made, name), kind):
            raise TypeError(name)
    return made
