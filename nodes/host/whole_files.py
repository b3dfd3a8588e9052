"""Writes files so that a crash leaves the old or the new one, whole."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Writes a text as `replace_bytes` does."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that at any moment the old or the new one is there, whole.

    Only one at a time may write a file.

    Raises:
        OSError: It cannot be written; the old one is there.
    """
    with replacing(path) as new:
        new.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Lends a path to write a file to, which then takes the place of `path` in one step.

    Whatever goes wrong, the old file stays and nothing else does. Only one at a time may write a file.

    Raises:
        OSError: It cannot be put there; the old one is there.
    """
    new = path.with_suffix(".tmp")  # one name, so that no crash leaves more than one behind
    with gone_on_failure(new):
        yield new
        put_in_place(new, path)


@contextmanager
def gone_on_failure(path: Path) -> Generator[None]:
    """Takes a file away if what is done meanwhile goes wrong."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def put_in_place(new: Path, path: Path) -> None:
    """Moves a file that was written to where it belongs, in one step that survives a loss of power.

    Raises:
        OSError: It cannot be put there; the old one is there.
    """
    _flush(new)
    new.replace(path)
    _flush_folder(path)


def put_where_nothing_is(new: Path, path: Path) -> bool:
    """Moves a file as `put_in_place` does, if no other is there; whether none was.

    The system says what is the same name, where `Cat` and `cat` are.

    Raises:
        OSError: It cannot be put there.
    """
    _flush(new)
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError:  # a disk that knows no second names, as of a USB stick
        if not _claimed(path):
            return False
        with gone_on_failure(path):
            new.replace(path)
    else:
        with suppress(OSError):  # it has its place; whoever has the first name open may keep it
            new.unlink()
    _flush_folder(path)
    return True


def _claimed(path: Path) -> bool:
    """Makes an empty file that a whole one takes the place of; whether nobody was faster."""
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    return True


def _flush(new: Path) -> None:
    with new.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Makes what was last done to the name of a file survive."""
    if os.name != "nt":  # where folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network disks cannot, and the file is in its place
                os.fsync(folder)
        finally:
            os.close(folder)
