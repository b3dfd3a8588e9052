"""How whoever waits for long work is told of it, layer by layer."""

from collections.abc import Callable

Steps = Callable[[int], Callable[[], None]]
"""Told how many layers there are; what it returns is called before each, and may end the work."""


def no_steps(count: int) -> Callable[[], None]:
    """Tells nobody."""
    del count
    return lambda: None
