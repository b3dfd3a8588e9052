"""Text and progress on a node in the page."""

import comfy.model_management
from comfy.utils import ProgressBar
from server import PromptServer

LARGE = 2**28
"""Bytes of a file from which on people wait for it."""


def show_text(node_id: str, text: str) -> None:
    """Shows `text` on a node while and after it runs."""
    PromptServer.instance.send_progress_text(text, node_id)


class ReadingBar:
    """A bar on the running node while it reads a large file."""

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None

    def __call__(self, done: int, total: int) -> None:
        """Shows how many bytes of `total` are read."""
        if total < LARGE:
            return
        self._bar = self._bar or ProgressBar(total)
        self._bar.update_absolute(done)


class LayersBar:
    """A bar on the running node that goes layer by layer, before each of which the user can stop it."""

    def __init__(self, total: int) -> None:
        """Begins at nothing of `total` layers."""
        self._bar = ProgressBar(total)
        self._done = 0

    def __call__(self) -> None:
        """Goes on to the next layer.

        Raises:
            InterruptProcessingException: The user has stopped the run; the host takes it from there.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._done += 1
        self._bar.update_absolute(self._done)
