"""WaveFT: a few numbers of the weight's two-dimensional wavelet transform.

    dW = scaling * idwt2(coefficients at n places), or the coefficients themselves

Source: WaveFT, 2025, arXiv 2505.12532, as in PEFT 0.21.2, with its Haar wavelet (`db1`, the default).
Other wavelets are refused. The four quarters of the coefficients are low, low-high, high-low and
high bands; a side of odd length is padded by one behind, and the result is cut from its middle.
On disk: PEFT's `waveft_spectrum`; places as in FourierFT.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import FormatError
from ..layers import Layer
from ..shapes import Float, Integer
from .base import Adapter, Completion, InitialConfig, Origin, Role, widened
from .fourierft import seeded_places
from .linalg import matrix_sizes

DEFAULT_SEED = 777
DEFAULT_SCALING = 25.0


@dataclass(frozen=True, eq=False)
class WaveFt(Adapter):
    """Coefficients, and what tells their places."""

    name = "WaveFT"
    roles = (Role("spectrum", (".waveft_spectrum", ".waveft_spectrum.*")),)
    settings = ("scaling", "seed", "transformed")
    additive = True

    spectrum: Float[Tensor, " K"]
    scaling: float = DEFAULT_SCALING
    seed: int = DEFAULT_SEED
    transformed: bool = True
    """Whether the coefficients are those of a transform, and not of the weight."""
    places: Integer[Tensor, " K"] | None = None
    """Of one shape of weight, row by row; made by `prepared`."""

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the inverse transform in the shape of `weight`; only its shape is read."""
        sizes = matrix_sizes(tuple(weight.shape), self.name)
        values = widened(self.spectrum) * self.scaling
        places = seeded_places(self.seed, values, sizes) if self.places is None else self.places
        matrix = values.new_zeros(sizes[0] * sizes[1]).index_put((places,), values).reshape(sizes)
        change = _inverse_haar(matrix) if self.transformed else matrix
        return change[: sizes[0], : sizes[1]].reshape(weight.shape)

    def prepared(self, weight: Float[Tensor, "O ..."]) -> "WaveFt":
        """Returns the adapter with its places in a weight of this shape."""
        sizes = matrix_sizes(tuple(weight.shape), self.name)
        return replace(self, places=seeded_places(self.seed, self.spectrum, sizes))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[WaveFt]":
        """Returns the adapter with seed, scaling and transform of the configuration.

        Raises:
            FormatError: The wavelet is not Haar's.
        """
        del corrections
        seed, scaling = origin.number("random_loc_seed"), origin.number("scaling")
        if seed is None or scaling is None:
            return Completion(
                self, assumed="WaveFT of Haar's wavelet, seed 777 and scaling 25, PEFT's defaults"
            )
        transformed = origin.flag("use_idwt") is not False
        wavelet = origin.options.get("wavelet_family", "db1")
        if transformed and wavelet != "db1":
            raise FormatError(
                f"{origin.module} is WaveFT with the wavelet {wavelet}: only Haar's (db1) is known. "
                "Merge it in the tool that trained it."
            )
        return Completion(replace(self, seed=int(seed), scaling=scaling, transformed=transformed))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "WaveFt":
        """Returns coefficients of zero, as many as a LoRA has numbers."""
        del generator
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        return cls(torch.zeros(min(config.rank * (outputs + inputs), outputs * inputs)))


def _inverse_haar(bands: Float[Tensor, "H W"]) -> Float[Tensor, "G V"]:
    """Returns the matrix whose Haar bands are the quarters of `bands`, padded to even sides."""
    height, width = bands.shape
    bands = torch.nn.functional.pad(bands, (0, width % 2, 0, height % 2))
    (low, right), (below, high) = (row.chunk(2, 1) for row in bands.chunk(2, 0))
    top = torch.stack([low + right + below + high, low + right - below - high], -1)
    bottom = torch.stack([low - right + below - high, low - right - below + high], -1)
    return torch.stack([top.flatten(1), bottom.flatten(1)], 1).flatten(0, 1) / 2
