"""FourierFT: a few numbers of the weight's two-dimensional spectrum.

    dW = scaling * Re ifft2(spectrum at n places)

Source: FourierFT, Gao et al. 2024, arXiv 2405.03003, section 3.1.
On disk: PEFT's `fourierft_spectrum`. The places follow from a seed and the shape of the weight: the
first n of torch's random permutation on the CPU; seed and scaling stand in the configuration only.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float, Integer
from .base import Adapter, Completion, InitialConfig, Origin, Role, widened
from .linalg import matrix_sizes

DEFAULT_SEED = 777
DEFAULT_SCALING = 150.0


@dataclass(frozen=True, eq=False)
class FourierFt(Adapter):
    """Numbers of the spectrum, and what tells their places."""

    name = "FourierFT"
    roles = (Role("spectrum", (".fourierft_spectrum", ".fourierft_spectrum.*")),)
    settings = ("scaling", "seed")
    additive = True

    spectrum: Float[Tensor, " K"]
    scaling: float = DEFAULT_SCALING
    seed: int = DEFAULT_SEED
    places: Integer[Tensor, " K"] | None = None
    """Of one shape of weight, row by row; made by `prepared`."""

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the inverse transform in the shape of `weight`; only its shape is read."""
        sizes = matrix_sizes(tuple(weight.shape), self.name)
        values = widened(self.spectrum)
        places = seeded_places(self.seed, values, sizes) if self.places is None else self.places
        spectrum = values.new_zeros(sizes[0] * sizes[1]).index_put((places,), values)
        change = torch.fft.ifft2(spectrum.reshape(sizes)).real * self.scaling
        return change.reshape(weight.shape)

    def prepared(self, weight: Float[Tensor, "O ..."]) -> "FourierFt":
        """Returns the adapter with its places in a weight of this shape."""
        sizes = matrix_sizes(tuple(weight.shape), self.name)
        return replace(self, places=seeded_places(self.seed, self.spectrum, sizes))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[FourierFt]":
        """Returns the adapter with seed and scaling of the configuration."""
        del corrections
        seed, scaling = origin.number("random_loc_seed"), origin.number("scaling")
        if seed is None or scaling is None:
            return Completion(
                self, assumed="FourierFT of seed 777 and scaling 150, PEFT's own defaults"
            )
        return Completion(replace(self, seed=int(seed), scaling=scaling))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "FourierFt":
        """Returns a spectrum of zeros, with as many numbers as a LoRA has."""
        del generator
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        return cls(torch.zeros(min(config.rank * (outputs + inputs), outputs * inputs)))


def seeded_places(
    seed: int, values: Float[Tensor, " K"], sizes: tuple[int, int]
) -> Integer[Tensor, " K"]:
    """Returns where PEFT puts numbers in a matrix, counted row by row.

    Args:
        seed: The seed of the configuration.
        values: The numbers; on the meta device no permutation is drawn.
        sizes: Rows and columns of the matrix.

    Raises:
        ShapeError: The matrix has fewer places.
    """
    count, total = values.shape[0], sizes[0] * sizes[1]
    if count > total:
        raise ShapeError(f"it has {count} numbers for a weight of {total} {list(sizes)}")
    if values.device.type == "meta":
        return torch.empty(count, dtype=torch.int64, device="meta")
    order = torch.randperm(total, generator=Generator().manual_seed(seed))
    return order[:count].clone().to(values.device)
