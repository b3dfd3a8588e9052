"""What checks annotations at every call: see `install_import_hook` in `tests/conftest.py`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jaxtyping
from beartype import beartype

F = TypeVar("F", bound=Callable[..., object])


def check(function: F) -> F:
    """Returns a function with its annotations checked; one inside of another function as it is.

    That one is made anew at every call, and making its check takes longer than all else.
    """
    return function if "<locals>" in function.__qualname__ else beartype(function)


@contextmanager
def annotations_unchecked() -> Iterator[None]:
    """Runs the pack as its users do, without checks of annotations, which take most of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
