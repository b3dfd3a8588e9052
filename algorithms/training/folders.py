"""Reads a folder of pictures and captions: names and headers only, whatever lies in it.

    10_sks dog/photo.png     trained ten times an epoch; "sks dog" where there is no caption
    10_sks dog/photo.txt     its caption
    photo.png                once

Pictures lie in the folder itself or in one below it, as in sd-scripts and in the host; there
folders without a number are left out, here they come once. A bad file is named and never stops.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DatasetError, listed
from .buckets import Size
from .dataset import SMALLEST_PX, FileSource, Item, Mask

REPEATS = re.compile(r"(\d+)_(.*)", re.ASCII | re.DOTALL)
DIGITS = re.compile(r"(\d+)", re.ASCII)

ELSEWHERE = {
    *(".avif", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".raw", ".svg", ".tga"),
    *(".tif", ".tiff", ".avi", ".mkv", ".mov", ".mp4", ".webm"),
}
"""Files that someone may take for pictures to train on, even where they cannot be read."""

LARGEST_CAPTION = 1 << 20
"""Bytes; what is larger is no caption."""

ASPECT_TOLERANCE = 0.02
"""Share by which the aspect ratio of a mask may differ from that of its picture: rounded sides."""


@dataclass(frozen=True)
class Header:
    """What the beginning of a picture's file tells."""

    size_px: Size
    """As it is seen, so with its sides exchanged where it is stored lying."""
    has_alpha: bool = False
    animated: bool = False


@dataclass(frozen=True)
class Reading:
    """How a folder is read."""

    look: Callable[[Path], Header]
    """Reads a header, or raises a DatasetError that says what is wrong with the file."""
    suffixes: Collection[str]
    """Of pictures that can be read, in lower case: `.png`."""
    caption_suffixes: Sequence[str] = (".txt", ".caption")
    """The first of them that is there counts."""
    trigger: str = ""
    regularization: bool = False
    masks: Path | None = None
    """A folder with a mask of the same name for each picture, also in a folder of the same name."""
    alpha_is_mask: bool = False
    leave_out: Collection[Path] = ()
    """Folders that may lie inside and mean something else."""


@dataclass(frozen=True)
class Found:
    """What was read."""

    items: tuple[Item, ...]
    skipped: tuple[str, ...]
    """`name: why`."""
    notes: tuple[str, ...]


def scan(folder: Path, reading: Reading) -> Found:
    """Returns the pictures of a folder, in natural order of their names.

    Raises:
        DatasetError: There is no such folder, or no picture in it.
    """
    return _Scan(folder, reading).found()


def folder_state(folders: Sequence[Path]) -> str:
    """Returns what changes when a file in a folder does: a digest of names, sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for place in _below(folder):
            with suppress(OSError):  # what cannot be opened is told when it is read
                for name, entry in _listing(place):
                    stat = entry.stat()
                    line = f"{place.name}/{name} {stat.st_size} {stat.st_mtime_ns}\n"
                    digest.update(line.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Returns where a name stands among others, on every system alike: `a2` before `A10`."""
    parts = DIGITS.split(unicodedata.normalize("NFC", name).casefold())
    return [int(part) if part.isdigit() and part.isascii() else part for part in parts], name


def decoded_text(raw: bytes) -> tuple[str, str]:
    """Returns the text of a caption file, and how it had to be read if that was a guess."""
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if raw.startswith(mark):
            return raw.decode(encoding, "replace"), ""
    if b"\0" in raw:
        encoding = "utf-16-le" if raw[1:2] == b"\0" else "utf-16-be"
        return raw.decode(encoding, "replace"), encoding
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace"), "Windows-1252"


@dataclass
class _Scan:
    """One reading, with what was met so far."""

    root: Path
    reading: Reading
    skipped: list[str] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    """What is to be said -> of which pictures."""

    def found(self) -> Found:
        if not self.root.is_dir():
            raise DatasetError(
                f"There is no folder {self.root}. Give the name of a folder in ComfyUI's input "
                "folder, or a whole path."
            )
        items = tuple(item for place in self._places() for item in self._items(place))
        if not items:
            why = f": {listed(self.skipped, separator='; ')}" if self.skipped else ""
            raise DatasetError(
                f"There is no picture to train on in {self.root} or in the folders in it{why}. "
                f"Pictures that can be read end in {', '.join(sorted(self.reading.suffixes))}."
            )
        notes = tuple(f"{what}: {listed(names)}" for what, names in self.remarks.items())
        return Found(items, tuple(self.skipped), notes)

    def _places(self) -> Iterator[Path]:
        """Gives the folder and those in it, each once however links lead to it."""
        others = [*self.reading.leave_out, *([self.reading.masks] if self.reading.masks else [])]
        elsewhere = {os.path.realpath(other) for other in others}
        seen: set[str] = set()
        for place in _below(self.root):
            real = os.path.realpath(place)
            name = REPEATS.fullmatch(place.name)
            if real in seen:
                self.skipped.append(f"{place.name}: leads to a folder that is read already")
            elif name and not int(name[1]):
                self.skipped.append(f"{place.name}: to be repeated 0 times")
            elif place == self.root or real not in elsewhere:
                yield place
            seen.add(real)

    def _items(self, place: Path) -> Iterator[Item]:
        try:
            listing = _listing(place)
        except OSError as error:
            self.skipped.append(f"{place.name}: cannot be opened ({error.strerror})")
            return
        files = {name: Path(entry.path) for name, entry in listing if _is_file(entry)}
        texts = {(path.stem, path.suffix.lower()): path for path in files.values()}
        masks = self._masks(place)
        for name, entry in listing:
            title, suffix = self._title(place, name), Path(name).suffix.lower()
            if _is_dir(entry):
                if place != self.root:
                    self._remark("Folders deeper than one level are not read", title)
            elif suffix in self.reading.suffixes or suffix in ELSEWHERE:
                try:
                    yield self._item(place, title, files.get(name), texts, masks)
                except DatasetError as fault:
                    self.skipped.append(f"{title}: {fault}")

    def _item(
        self,
        place: Path,
        title: str,
        path: Path | None,
        texts: dict[tuple[str, str], Path],
        masks: dict[str, Path],
    ) -> Item:
        """Returns one picture.

        Raises:
            DatasetError: It cannot be trained on; the message is the reason alone.
        """
        if path is None:
            raise DatasetError("no file, but a link that leads nowhere or a device")
        if path.suffix.lower() not in self.reading.suffixes:
            raise DatasetError("cannot be read here; convert it to png, jpg or webp")
        header = self.reading.look(path)
        if min(header.size_px) < SMALLEST_PX:
            raise DatasetError(
                f"only {header.size_px[0]} x {header.size_px[1]} pixels, and {SMALLEST_PX} is the "
                "least"
            )
        mask = self._mask(title, path, header, masks)
        if header.animated:
            self._remark("Animated, the first frame is taken", title)
        if header.has_alpha and mask != "alpha":
            self._remark("With transparency, which becomes white", title)
        name = REPEATS.fullmatch(place.name)
        return Item(
            name=title,
            size_px=header.size_px,
            source=FileSource(path),
            lines=self._lines(title, path, texts, name[2].strip() if name else ""),
            folder=place.name,
            repeats=int(name[1]) if name else 1,
            regularization=self.reading.regularization,
            mask=mask,
        )

    def _lines(
        self, title: str, path: Path, texts: dict[tuple[str, str], Path], class_words: str
    ) -> tuple[str, ...]:
        """Returns the caption beside a picture, or what stands for it."""
        beside = (texts.get((path.stem, suffix)) for suffix in self.reading.caption_suffixes)
        file = next((one for one in beside if one), None)
        if file is None:
            trigger = "" if self.reading.regularization else self.reading.trigger
            words = class_words or trigger
            self._remark(f'No caption, "{words}" is taken' if words else "No caption", title)
            return (words,) if words else ()
        try:
            if file.stat().st_size > LARGEST_CAPTION:
                raise DatasetError(f"{file.name} is too large for a caption")
            text, guess = decoded_text(file.read_bytes())
        except OSError as error:
            raise DatasetError(f"{file.name} cannot be read ({error.strerror})") from error
        if guess:
            self._remark(f"Captions not in UTF-8, read as {guess}", title)
        return tuple(line.strip() for line in text.splitlines() if line.strip())

    def _mask(self, title: str, path: Path, header: Header, masks: dict[str, Path]) -> Mask | None:
        if path.stem in masks:
            try:
                size, own = self.reading.look(masks[path.stem]).size_px, header.size_px
            except DatasetError as fault:
                raise DatasetError(f"its mask: {fault}") from fault
            if abs(size[0] * own[1] / (size[1] * own[0]) - 1) > ASPECT_TOLERANCE:
                raise DatasetError(
                    f"its mask has {size[0]} x {size[1]} pixels, the picture {own[0]} x {own[1]}"
                )
            return FileSource(masks[path.stem])
        if self.reading.alpha_is_mask and header.has_alpha:
            return "alpha"
        if self.reading.alpha_is_mask or self.reading.masks:
            self._remark("Without a mask, trained whole", title)
        return None

    def _masks(self, place: Path) -> dict[str, Path]:
        """Returns the masks for the pictures of a folder, by their names without suffix."""
        folder = self.reading.masks
        if folder is None:
            return {}
        if not folder.is_dir():
            raise DatasetError(f"There is no folder of masks {folder}.")
        inside = [] if place == self.root else [folder / place.name]
        return {
            Path(name).stem: Path(entry.path)
            for where in (folder, *inside)
            if where.is_dir()
            for name, entry in _listing(where)
            if Path(name).suffix.lower() in self.reading.suffixes and _is_file(entry)
        }

    def _title(self, place: Path, name: str) -> str:
        """Returns how a file is called: from the folder on, which is named for regularisation."""
        inside = name if place == self.root else f"{place.name}/{name}"
        title = f"{self.root.name}/{inside}" if self.reading.regularization else inside
        return title.encode("utf-8", "backslashreplace").decode()  # names that are no text at all

    def _remark(self, what: str, title: str) -> None:
        self.remarks.setdefault(what, []).append(title)


def _below(folder: Path) -> Iterator[Path]:
    """Gives a folder and those in it, in natural order; nothing if it is not there."""
    if folder.is_dir():
        yield folder
        with suppress(OSError):
            yield from [Path(entry.path) for _, entry in _listing(folder) if _is_dir(entry)]


def _listing(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """Returns what is in a folder, in natural order and without what systems hide there."""
    with os.scandir(folder) as entries:
        found = [(one.name, one) for one in entries if not one.name.startswith((".", "__MACOSX"))]
    return sorted(found, key=lambda one: natural_order(one[0]))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle
        return False


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
