"""One line for each method: adapters with every tensor at work, for the laws."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import peft_cases as peft
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.lora import Lora, LoraTucker
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.layers import Rows
from layer_cases import LayerCase, norm_cases, product_cases

Make = Callable[[LayerCase], Adapter]


@dataclass(frozen=True)
class AdapterCase:
    """A variant of a method and the layers that it can change."""

    name: str
    make: Make
    layers: Callable[[], list[LayerCase]] = product_cases
    rows: Rows = field(default_factory=lambda: Rows(2, 5))
    """Some of 8 rows that the method can change alone."""


def random(*shape: int) -> Tensor:
    """Returns numbers of both signs, from a seed that depends on the shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _lora(case: LayerCase, alpha: float | None = 2.0, *, bias: bool = False) -> Lora:
    outputs, *inputs = case.layer.weight_shape
    up = random(outputs, 4, *[1] * (len(inputs) - 1))
    return Lora(up, random(4, *inputs), alpha, random(outputs) if bias else None)


def _lora_of_matrices(case: LayerCase) -> Lora:
    outputs, *inputs = case.layer.weight_shape
    return Lora(random(outputs, 4), random(4, torch.Size(inputs).numel()), 3.0)


def _tucker(case: LayerCase) -> LoraTucker:
    outputs, inputs, *kernel = case.layer.weight_shape
    ones = [1] * len(kernel)
    return LoraTucker(
        random(outputs, 4, *ones), random(4, 3, *kernel), random(3, inputs, *ones), 2.0
    )


def _dora(case: LayerCase, inner: Adapter, *, inputs: bool = False, peft: bool = False) -> Dora:
    outputs, columns, *kernel = case.layer.weight_shape
    ones = [1] * len(kernel)
    if peft:
        return Dora(
            inner, magnitude_vector=random(1, outputs, *ones).abs() if ones else random(outputs)
        )
    shape = (1, columns, *ones) if inputs else (outputs, 1, *ones)
    return Dora(inner, dora_scale=random(*shape).abs() + 1)


def _diff(case: LayerCase) -> Diff:
    return Diff(random(*case.layer.weight_shape), random(case.layer.weight_shape[0]))


def _norm(case: LayerCase) -> Norm:
    return Norm(random(*case.layer.weight_shape), random(*case.layer.weight_shape))


def _convolutions() -> list[LayerCase]:
    return [case for case in product_cases() if case.layer.kind == "conv"]


def _norms_with_bias() -> list[LayerCase]:
    return [case for case in norm_cases() if case.bias is not None]


def _matrices() -> list[LayerCase]:
    """Linear layers, and the convolution that is one."""
    return [case for case in product_cases() if set(case.layer.weight_shape[2:]) <= {1}]


def _ungrouped() -> list[LayerCase]:
    return [case for case in product_cases() if case.layer.groups == 1]


def _linear() -> list[LayerCase]:
    return [case for case in product_cases() if case.layer.kind == "linear"]


def _all_layers() -> list[LayerCase]:
    return [*product_cases(), *norm_cases()]


PEFT_CASES = (
    AdapterCase("vera", peft.vera, _matrices),
    AdapterCase("pvera", peft.pvera, _matrices),
    AdapterCase("adalora", peft.adalora),
    AdapterCase("delora", peft.delora, _matrices),
    AdapterCase("hra", peft.hra),
    AdapterCase("hra, orthogonal", lambda case: peft.hra(case, orthogonal=True)),
    AdapterCase("miss", peft.miss, _matrices),
    AdapterCase("miss, mini", lambda case: peft.miss(case, 2), _matrices, Rows(2, 6)),
    AdapterCase("miss, bat", peft.miss_bat, _matrices),
    AdapterCase("fourierft", peft.fourierft, _matrices),
    AdapterCase("waveft", peft.waveft, _matrices),
    AdapterCase(
        "waveft, untransformed", lambda case: peft.waveft(case, transformed=False), _matrices
    ),
    AdapterCase("randlora", peft.randlora, _matrices),
    AdapterCase("vblora", peft.vblora, _matrices),
    AdapterCase("vblora, best vectors", peft.vblora_topk, _matrices),
    AdapterCase("c3a", peft.c3a, _matrices),
    AdapterCase("shira", peft.shira, _matrices),
    AdapterCase("road 1", lambda case: peft.road(case, 0.5), _matrices, Rows(2, 6)),
    AdapterCase("road 2", lambda case: peft.road(case, 1), _matrices, Rows(2, 6)),
    AdapterCase("road 4", lambda case: peft.road(case, 2), _matrices, Rows(2, 6)),
    AdapterCase("gralora", peft.gralora, _matrices, Rows(2, 6)),
    AdapterCase(
        "gralora, hybrid", lambda case: peft.gralora(case, hybrid=True), _matrices, Rows(2, 6)
    ),
    AdapterCase("hira", peft.hira),
    AdapterCase("hira, embedding", peft.hira_embedding, _linear),
    AdapterCase("lora, embedding", peft.lora_embedding, _linear),
    AdapterCase("deft", peft.deft, _matrices),
    AdapterCase("deft, orthonormal", lambda case: peft.deft(case, orthonormal=True), _matrices),
    AdapterCase("para", peft.para, _matrices),
    AdapterCase("peanut", lambda case: peft.peanut(case, "relu"), _matrices),
    AdapterCase("peanut, tanh", lambda case: peft.peanut(case, "tanh"), _matrices),
    AdapterCase("osf", peft.osf, _matrices),
    AdapterCase("ln tuning", peft.ln_tuning, _all_layers),
    AdapterCase("beft", peft.beft),
    AdapterCase("unilora", peft.unilora, _matrices),
    AdapterCase("supertuning", peft.supertuning, _matrices),
    AdapterCase(
        "supertuning, low rank", lambda case: peft.supertuning(case, low_rank=True), _matrices
    ),
    AdapterCase("glora of peft", peft.glora, _matrices),
    AdapterCase("glora of peft, numbers", peft.glora_of_numbers, _matrices),
)

ADAPTER_CASES = (
    AdapterCase("lora", _lora),
    AdapterCase("lora without alpha", lambda case: _lora(case, None)),
    AdapterCase("lora with bias", lambda case: _lora(case, bias=True)),
    AdapterCase("lora of matrices", _lora_of_matrices),
    AdapterCase("lora of 1x1 kernels", lambda case: _lora_1x1(case), lambda: [product_cases()[0]]),
    AdapterCase("dylora slice", lambda case: _lora(case).sliced(3)),
    AdapterCase("lora tucker", _tucker, _convolutions),
    AdapterCase("dora on outputs", lambda case: _dora(case, _lora(case))),
    AdapterCase("dora on inputs", lambda case: _dora(case, _lora(case), inputs=True)),
    AdapterCase(
        "dora of peft with bias", lambda case: _dora(case, _lora(case, bias=True), peft=True)
    ),
    AdapterCase("full", _diff),
    AdapterCase("full on norms", _diff, norm_cases),
    AdapterCase("bias only", lambda case: Diff(diff_b=random(case.layer.weight_shape[0]))),
    AdapterCase("norm", _norm, norm_cases),
    AdapterCase(
        "norm, shift only",
        lambda case: Norm(b_norm=random(*case.layer.weight_shape)),
        _norms_with_bias,
    ),
    *PEFT_CASES,
)


def _lora_1x1(case: LayerCase) -> Lora:
    """A convolution's LoRA on a linear layer, as SD 1 files have it on SDXL-like models."""
    outputs, inputs = case.layer.weight_shape
    return Lora(random(outputs, 4, 1, 1), random(4, inputs, 1, 1), 2.0)
