"""Adapters of the methods that only PEFT has, with every tensor at work, for the laws."""

import math

import torch
from torch import Tensor

from anyadapter.algorithms.adapters.adalora import AdaLora
from anyadapter.algorithms.adapters.beft import Beft
from anyadapter.algorithms.adapters.c3a import C3a
from anyadapter.algorithms.adapters.deft import Deft
from anyadapter.algorithms.adapters.delora import DeLora
from anyadapter.algorithms.adapters.fourierft import FourierFt
from anyadapter.algorithms.adapters.glora_peft import GloraPeft
from anyadapter.algorithms.adapters.gralora import GraLora
from anyadapter.algorithms.adapters.hira import Hira, HiraEmbedding
from anyadapter.algorithms.adapters.hra import Hra
from anyadapter.algorithms.adapters.ln_tuning import LnTuning
from anyadapter.algorithms.adapters.lora_embedding import LoraEmbedding
from anyadapter.algorithms.adapters.miss import Miss, MissBat
from anyadapter.algorithms.adapters.osf import Osf
from anyadapter.algorithms.adapters.peanut import Peanut
from anyadapter.algorithms.adapters.pvera import Pvera
from anyadapter.algorithms.adapters.randlora import RandLora
from anyadapter.algorithms.adapters.road import Road
from anyadapter.algorithms.adapters.shira import Shira
from anyadapter.algorithms.adapters.supertuning import SuperTuning
from anyadapter.algorithms.adapters.unilora import UniLora
from anyadapter.algorithms.adapters.vblora import VbLora, VbLoraTopk
from anyadapter.algorithms.adapters.vera import Vera
from anyadapter.algorithms.adapters.waveft import WaveFt
from layer_cases import LayerCase


def numbers(*shape: int) -> Tensor:
    """Returns numbers of both signs, from a seed that depends on the shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def whole_numbers(limit: int, *shape: int) -> Tensor:
    """Returns whole numbers below a limit."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, limit, shape, generator=generator)


def sizes(case: LayerCase) -> tuple[int, int]:
    """Returns outputs and all inputs of a layer, with its kernel."""
    outputs, *inputs = case.layer.weight_shape
    return outputs, torch.Size(inputs).numel()


def vera(case: LayerCase) -> Vera:
    outputs, inputs = sizes(case)
    return Vera(numbers(outputs), numbers(4), numbers(4, inputs + 3), numbers(outputs + 2, 4))


def pvera(case: LayerCase) -> Pvera:
    outputs, inputs = sizes(case)
    return Pvera(numbers(outputs), numbers(8), numbers(8, inputs + 3), numbers(outputs + 2, 4))


def adalora(case: LayerCase) -> AdaLora:
    outputs, inputs = sizes(case)
    return AdaLora(numbers(outputs, 4), numbers(4, 1), numbers(4, inputs), 3.0)


def delora(case: LayerCase) -> DeLora:
    outputs, inputs = sizes(case)
    size = torch.tensor([5.0], dtype=torch.float64)
    return DeLora(numbers(4, inputs), numbers(outputs, 4), size, numbers(inputs).abs() + 1)


def hra(case: LayerCase, *, orthogonal: bool = False) -> Hra:
    _, inputs = sizes(case)
    return Hra(numbers(inputs, 4), orthogonal)


def miss(case: LayerCase, columns: int | None = None) -> Miss:
    outputs, _ = sizes(case)
    return Miss(numbers(4, columns or outputs))


def miss_bat(case: LayerCase) -> MissBat:
    outputs, inputs = sizes(case)
    size = math.gcd(outputs, inputs)
    return MissBat(numbers(outputs // size, size, size))


def fourierft(case: LayerCase) -> FourierFt:
    del case
    return FourierFt(numbers(7), scaling=30.0, seed=5)


def waveft(case: LayerCase, *, transformed: bool = True) -> WaveFt:
    outputs, inputs = sizes(case)
    return WaveFt(numbers((outputs - 1) * inputs + 1), scaling=2.0, seed=5, transformed=transformed)


def randlora(case: LayerCase) -> RandLora:
    outputs, inputs = sizes(case)
    short, long = sorted((outputs, inputs))
    return RandLora(
        numbers(4, 2), numbers(2, short), numbers(4, 1, short + 3), numbers(long + 2, 3, 4), 2.0
    )


def vblora(case: LayerCase) -> VbLora:
    outputs, inputs = sizes(case)
    size = math.gcd(outputs, inputs)
    logits = numbers(4, inputs // size, 6), numbers(outputs // size, 4, 6)
    return VbLora(*logits, numbers(6, size), topk=3)


def vblora_topk(case: LayerCase) -> VbLoraTopk:
    outputs, inputs = sizes(case)
    size = math.gcd(outputs, inputs)
    in_a, in_b = (4, inputs // size), (outputs // size, 4)
    indices = [whole_numbers(6, *part, 3) for part in (in_a, in_b)]
    weights = [numbers(*part, 2) for part in (in_a, in_b)]
    return VbLoraTopk(indices[0], weights[0], indices[1], weights[1], numbers(6, size))


def c3a(case: LayerCase) -> C3a:
    outputs, inputs = sizes(case)
    size = math.gcd(outputs, inputs)
    return C3a(numbers(outputs // size, inputs // size, size) * 3)


def shira(case: LayerCase) -> Shira:
    outputs, inputs = sizes(case)
    places = torch.stack([torch.arange(9) % outputs, whole_numbers(inputs, 9)])
    return Shira(numbers(9) * 2, places.int())


def road(case: LayerCase, times: float) -> Road:
    outputs, _ = sizes(case)
    count = int(outputs * times)
    return Road(numbers(count), numbers(count) + 1, group=4 if outputs % 4 == 0 else 6)


def gralora(case: LayerCase, *, hybrid: bool = False) -> GraLora:
    outputs, inputs = sizes(case)
    a, b = numbers(2, inputs // 2, 4), numbers(2, 4, outputs // 2)
    if not hybrid:
        return GraLora(a, b, alpha=2.0)
    return GraLora(a, b, numbers(3, inputs), numbers(outputs, 3), 2.0)


def hira(case: LayerCase) -> Hira:
    outputs, *inputs = case.layer.weight_shape
    return Hira(numbers(outputs, 4, *[1] * (len(inputs) - 1)), numbers(4, *inputs))


def hira_embedding(case: LayerCase) -> HiraEmbedding:
    outputs, inputs = sizes(case)
    return HiraEmbedding(numbers(inputs, 4), numbers(4, outputs))


def lora_embedding(case: LayerCase) -> LoraEmbedding:
    outputs, inputs = sizes(case)
    return LoraEmbedding(numbers(inputs, 4), numbers(4, outputs), 3.0)


def deft(case: LayerCase, *, orthonormal: bool = False) -> Deft:
    outputs, inputs = sizes(case)
    return Deft(numbers(outputs, 3), numbers(3, inputs), 2.0, orthonormal)


def para(case: LayerCase) -> Deft:
    outputs, _ = sizes(case)
    return Deft(numbers(outputs, 3))


def peanut(case: LayerCase, activation: str) -> Peanut:
    outputs, _ = sizes(case)
    return Peanut(numbers(4, outputs), numbers(outputs, 4), scaling=0.5, activation=activation)


def osf(case: LayerCase) -> Osf:
    outputs, inputs = sizes(case)
    return Osf(numbers(outputs, 3), numbers(3), numbers(3, inputs))


def ln_tuning(case: LayerCase) -> LnTuning:
    outputs = case.layer.weight_shape[0]
    bias = None if case.bias is None else numbers(outputs)
    return LnTuning(numbers(*case.layer.weight_shape) * 2, bias)


def beft(case: LayerCase) -> Beft:
    return Beft(numbers(1, case.layer.weight_shape[0]))


def unilora(case: LayerCase) -> UniLora:
    outputs, inputs = sizes(case)
    return UniLora(
        whole_numbers(9, 4, inputs),
        whole_numbers(9, outputs, 4),
        numbers(4, inputs),
        numbers(outputs, 4),
        numbers(9),
    )


def supertuning(case: LayerCase, *, low_rank: bool = False) -> SuperTuning:
    outputs, inputs = sizes(case)
    places = (torch.arange(9) % outputs * inputs + whole_numbers(inputs, 9)).int()
    if not low_rank:
        return SuperTuning(numbers(9), places)
    return SuperTuning(numbers(9), places, numbers(outputs, 4), numbers(4, inputs), 3.0)


def glora(case: LayerCase) -> GloraPeft:
    outputs, inputs = sizes(case)
    return GloraPeft(
        a_xd=numbers(outputs, 4),
        a_xu=numbers(4, inputs),
        b_xd=numbers(outputs, 3),
        b_xu=numbers(3, inputs),
        d_x=numbers(outputs),
        e_x=numbers(outputs),
    )


def glora_of_numbers(case: LayerCase) -> GloraPeft:
    return GloraPeft(
        a_x=numbers(case.layer.weight_shape[0], 1), b_x=numbers(1), d_x=numbers(1), e_x=numbers(1)
    )
