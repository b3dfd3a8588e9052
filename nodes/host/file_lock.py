"""Keeps other processes out while a file is changed."""

import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    @contextmanager
    def locked(path: Path) -> Generator[None]:
        """Waits until no other process holds `path`, and holds it."""
        with path.open("a+b") as file:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
            try:
                yield
            finally:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    @contextmanager
    def locked(path: Path) -> Generator[None]:
        """Waits until no other process holds `path`, and holds it.

        The system lets go when this process ends, however it ends.
        """
        with path.open("a+b") as file:
            with suppress(OSError):  # of a file system without locks, as some over a network are
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
