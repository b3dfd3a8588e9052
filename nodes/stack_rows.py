"""The rows of a stack with the files of the host, for all nodes that have one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..algorithms.block_weights import BlockWeights
from ..algorithms.errors import AdapterError
from ..algorithms.stack import Row, find_adapter, parse_stack
from .host.files import adapter_names, adapter_state
from .host.preset_files import own_texts, preset_text


def own_rows(text: str) -> list[Row]:
    """Returns the rows of a text, with the names of the host's list.

    Raises:
        AdapterError: A line is no row, or its file is needed and cannot be found.
    """
    return [found(row) for row in parse_stack(text)]


def found(row: Row) -> Row:
    """Returns a row with the name of its file in the host's list.

    Raises:
        FileError: It is needed and cannot be found, or could be several.
    """
    # The path is asked first, as the host's list may lack a file that was just made.
    if not row.is_read or adapter_state(row.adapter) is not None:
        return row
    return replace(row, adapter=find_adapter(row.adapter, adapter_names()))


def require_weights(rows: Sequence[Row]) -> None:
    """Checks the weights of blocks of all rows that are read.

    Raises:
        BlockWeightsError: Those of a row mean nothing.
    """
    for row in rows:
        if row.is_read:
            with told_of(row):
                BlockWeights.parse(row.blocks, preset_text)


def state_of(text: str | None) -> str:
    """Returns what changes when a file or a preset of a text does.

    Args:
        text: None where it comes from another node, and is known only when that has run: then every
            file and preset counts.

    Raises:
        AdapterError: A line is no row, or its file is needed and cannot be found.
    """
    if text is None:
        return str((adapter_state(None), *own_texts(None)))
    read = [row for row in own_rows(text) if row.is_read]
    return str([(adapter_state(row.adapter), *own_texts(row.blocks)) for row in read])


@contextmanager
def told_of(row: Row) -> Generator[None]:
    """Makes errors say of which row they are."""
    try:
        yield
    except AdapterError as error:
        if row.adapter in str(error):
            raise
        raise type(error)(f"{row.adapter}: {error}") from error
