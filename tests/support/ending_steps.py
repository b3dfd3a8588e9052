"""Someone who waits for work, is told of it layer by layer, and ends it."""

from collections.abc import Callable


class EndingSteps:
    """Counts layers, and ends the work before one of them."""

    def __init__(self, ends_at: int) -> None:
        self.ends_at = ends_at
        self.count = 0
        """How many layers there are said to be."""
        self.begun = 0

    def __call__(self, count: int) -> Callable[[], None]:
        self.count = count
        return self.step

    def step(self) -> None:
        if self.begun == self.ends_at:
            raise InterruptedError
        self.begun += 1
