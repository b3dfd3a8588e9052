"""VB-LoRA: a LoRA whose factors are put together from a bank of vectors that all layers share.

    dW = B A        each piece of A and B = sum over the K best of softmax(logits)_k bank_k

`VbLoraTopk` is the saved form that keeps only the K best.

Source: VB-LoRA, Li et al. 2024, arXiv 2405.15179, section 3.2.
On disk: PEFT names; `vblora_vector_bank` stands once in the file, K in the configuration only.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float, Integer
from .base import Adapter, Completion, InitialConfig, Origin, Role, widened
from .forms import Product
from .linalg import low_rank, matrix_sizes, require_places
from .lora import Lora

BANK = Role("bank", (".vblora_vector_bank", ".vblora_vector_bank.*"), common=True)
DEFAULT_TOPK = 2
"""PEFT's own."""


@dataclass(frozen=True, eq=False)
class VbLora(Adapter):
    """A choice from the bank for each piece of both factors, as logits over all vectors."""

    name = "VB-LoRA"
    roles = (
        Role("logits_a", (".vblora_logits_A", ".vblora_logits_A.*")),
        Role("logits_b", (".vblora_logits_B", ".vblora_logits_B.*")),
        BANK,
    )
    settings = ("topk",)
    additive = True

    logits_a: Float[Tensor, "R P H"]
    logits_b: Float[Tensor, "Q R H"]
    bank: Float[Tensor, "H L"]
    topk: int = DEFAULT_TOPK

    @property
    def rank(self) -> int:
        """R, the rank of the product."""
        return self.logits_a.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the product in the shape of `weight`; only its shape is read."""
        matrix_sizes(tuple(weight.shape), self.name)
        return low_rank(*self._factors, tuple(weight.shape))

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA that it is."""
        del weight
        return Lora(*self._factors)

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks that it mixes some vectors of the bank, and no more than there are."""
        del shape
        if not 1 <= self.topk <= self.bank.shape[0]:
            raise ShapeError(f"it mixes {self.topk} vectors of a bank of {self.bank.shape[0]}")

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[VbLora]":
        """Returns the adapter with the number of vectors that it mixes."""
        del corrections
        topk = origin.number("topk")
        if topk:
            return Completion(replace(self, topk=int(topk)))
        return Completion(self, assumed="VB-LoRA of the best 2 vectors, as in PEFT")

    def form(self) -> Product:
        """Returns the product."""
        return Product(*self._factors)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "VbLora":
        """Returns random logits, and a bank at zero of pieces that divide both sides."""
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        length = torch.gcd(torch.tensor(outputs), torch.tensor(inputs)).item()
        assert isinstance(length, int), "of whole numbers"
        logits_a = torch.randn(config.rank, inputs // length, 4, generator=generator)
        logits_b = torch.randn(outputs // length, config.rank, 4, generator=generator)
        return cls(logits_a, logits_b, torch.zeros(4, length))

    @property
    def _factors(self) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        self.check(())
        pieces: list[Tensor] = []
        for logits in (self.logits_b, self.logits_a):
            best, indices = widened(logits).topk(self.topk, dim=-1)
            pieces.append(_mixed(self.bank, indices, best.softmax(-1)))
        return _assembled(*pieces)


@dataclass(frozen=True, eq=False)
class VbLoraTopk(Adapter):
    """The same, with the K best vectors and their weights; the last weight fills up to 1."""

    name = "VB-LoRA (best vectors only)"
    roles = (
        Role("indices_a", (".vblora_logits_A_topk_indices",), whole=True),
        Role("weights_a", (".vblora_logits_A_topk_weights",)),
        Role("indices_b", (".vblora_logits_B_topk_indices",), whole=True),
        Role("weights_b", (".vblora_logits_B_topk_weights",)),
        BANK,
    )
    additive = True

    indices_a: Integer[Tensor, "R P K"]
    weights_a: Float[Tensor, "R P J"]
    indices_b: Integer[Tensor, "Q R K"]
    weights_b: Float[Tensor, "Q R J"]
    bank: Float[Tensor, "H L"]

    @property
    def rank(self) -> int:
        """R, the rank of the product."""
        return self.indices_a.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the product in the shape of `weight`; only its shape is read."""
        matrix_sizes(tuple(weight.shape), self.name)
        return low_rank(*self._factors, tuple(weight.shape))

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA that it is."""
        del weight
        return Lora(*self._factors)

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks that every vector that is chosen stands in the bank."""
        del shape
        for places in (self.indices_a, self.indices_b):
            require_places(places, self.bank.shape[0])

    def form(self) -> Product:
        """Returns the product."""
        return Product(*self._factors)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "VbLoraTopk":
        """Returns a random choice for A, and opposite vectors in equal parts for B."""
        start = VbLora.initial(layer, config, generator)
        best, indices_a = start.logits_a.topk(DEFAULT_TOPK, dim=-1)
        bank = torch.randn(start.bank.shape, generator=generator)
        bank[1] = -bank[0]
        indices_b = torch.arange(2).expand(*start.logits_b.shape[:2], 2).clone()
        weights_b = torch.full((*start.logits_b.shape[:2], 1), 0.5)
        return cls(indices_a, best.softmax(-1)[..., :-1].clone(), indices_b, weights_b, bank)

    @property
    def _factors(self) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        both = ((self.indices_b, self.weights_b), (self.indices_a, self.weights_a))
        pieces: list[Tensor] = []
        for indices, stored in both:
            weights = widened(stored)
            weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
            pieces.append(_mixed(self.bank, indices, weights))
        return _assembled(*pieces)


def _mixed(
    bank: Float[Tensor, "H L"], indices: Integer[Tensor, "X Y K"], weights: Float[Tensor, "X Y K"]
) -> Float[Tensor, "X Y L"]:
    vectors = widened(bank)[indices.long()]
    return (weights[..., None].to(vectors.dtype) * vectors).sum(-2)


def _assembled(
    of_b: Float[Tensor, "Q R L"], of_a: Float[Tensor, "R P L"]
) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
    return of_b.transpose(1, 2).flatten(0, 1), of_a.flatten(1)
