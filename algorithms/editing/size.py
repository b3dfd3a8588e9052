"""How much of a change a low-rank copy of it keeps."""

from dataclasses import asdict, dataclass

from torch import Tensor

from ..errors import EditingError
from ..shapes import Float
from .weight_shapes import has_kernel


@dataclass(frozen=True)
class Size:
    """A rank, or what decides it from layer to layer; exactly one of the first three counts."""

    rank: int | None = None
    """Of every layer."""
    energy: float | None = None
    """Share of the squared singular values that is kept at least, above 0 and up to 1: the
    `sv_fro` of sd-scripts' resize is the root of it."""
    error: float | None = None
    """Norm of what is lost, as a share of that of the change, at most: 0 and up to below 1."""
    most: int | None = None
    """No rank is larger."""
    kernel_rank: int | None = None
    """Of layers with a kernel, in place of the first three; None is as on the others."""

    def __post_init__(self) -> None:
        """Checks that it means something.

        Raises:
            EditingError: It says several things or nothing, or a number is out of range.
        """
        wishes = [one for one in (self.rank, self.energy, self.error) if one is not None]
        if len(wishes) != 1:
            raise EditingError(
                "The size of an adapter is one of a rank, a share of kept energy, and an error."
            )
        if self.rank is not None and self.rank < 1:
            raise EditingError(f"The rank is {self.rank}, and must be 1 or more.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise EditingError(
                f"The kept energy is {self.energy}, and must be above 0 and up to 1."
            )
        if self.error is not None and not 0 <= self.error < 1:
            raise EditingError(f"The error is {self.error}, and must be from 0 up to below 1.")
        if self.most is not None and self.most < 1:
            raise EditingError(f"The largest rank is {self.most}, and must be 1 or more.")
        if self.kernel_rank is not None and self.kernel_rank < 1:
            raise EditingError(f"The rank of kernels is {self.kernel_rank}, and must be 1 or more.")

    def on(self, shape: tuple[int, ...]) -> "Size":
        """Returns the size on a weight of a shape."""
        if self.kernel_rank is None or not has_kernel(shape):
            return self
        return Size(rank=self.kernel_rank, most=self.most)

    @property
    def fixed_rank(self) -> int | None:
        """The rank of every layer that has so many; None where its change decides."""
        return None if self.rank is None else min(self.rank, self.most or self.rank)

    def said(self) -> dict[str, int | float]:
        """Returns what is not left open, for the metadata."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def lost(self) -> float | None:
        """Squared norm of what may be lost, as a share of that of the change; None for a rank."""
        if self.energy is not None:
            return 1 - self.energy
        return None if self.error is None else self.error**2

    def needed(self, values: Float[Tensor, " S"], total: float | None = None) -> int:
        """Returns how many of the largest singular values are kept: 1 at least.

        Args:
            values: Singular values, largest first; the last ones may be left out where `total` is
                given. Where they do not suffice, all of them.
            total: Norm of the whole change; None for that of the values.
        """
        if self.rank is not None:
            wanted = self.rank
        else:
            squares = values.double().square()
            whole = float(squares.sum()) if total is None else total**2
            allowed = (self.lost or 0.0) * whole
            rest = whole - squares.cumsum(0)  # after keeping 1, 2, ... of them
            # What rounding leaves of a difference of two large numbers counts as nothing.
            enough = rest <= max(allowed, whole * len(values) * 2.0**-50)
            wanted = int((~enough).sum()) + 1
        return max(1, min(wanted, len(values), self.most or len(values)))
