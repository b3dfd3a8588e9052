"""One line for each method: adapters with every tensor at work, for the laws."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.diff import Diff, FullRank
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.glora import Glora, GloraOld
from anyadapter.algorithms.adapters.ia3 import Ia3, Ia3Peft
from anyadapter.algorithms.adapters.lora import Lora, LoraTucker
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.adapters.replacement import Replacement
from anyadapter.algorithms.adapters.tlora import Tlora
from layer_cases import LayerCase, norm_cases, product_cases

Make = Callable[[LayerCase], Adapter]


@dataclass(frozen=True)
class AdapterCase:
    """A variant of a method and the layers that it can change."""

    name: str
    make: Make
    layers: Callable[[], list[LayerCase]] = product_cases


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


def _glora(case: LayerCase) -> Glora:
    outputs, inputs, *kernel = case.layer.weight_shape
    ones = [1] * len(kernel)
    a = random(inputs, 4, *ones), random(4, inputs, *ones)
    return Glora(*a, random(outputs, 4, *ones), random(4, inputs, *kernel), alpha=2.0)


def _glora_tucker(case: LayerCase) -> Glora:
    inputs, kernel = case.layer.weight_shape[1], case.layer.weight_shape[2:]
    b2, core = random(4, inputs, *[1] * len(kernel)), random(4, 4, *kernel)
    return replace(_glora(case), b2=b2, bm=core)


def _glora_old(case: LayerCase) -> GloraOld:
    outputs, inputs, *ones = case.layer.weight_shape
    a, b = (random(4, inputs, *ones), random(inputs, 4, *ones)), random(outputs, 4, *ones)
    return GloraOld(*a, random(4, inputs, *ones) + 1, b, 2.0)


def _ia3(case: LayerCase, *, inputs: bool = False) -> Ia3:
    channels = case.layer.weight_shape[1 if inputs else 0]
    ones = [1] * (len(case.layer.weight_shape) - 2)
    return Ia3(random(1, channels, *ones) if ones else random(channels), float(inputs))


def _ia3_peft(case: LayerCase, *, inputs: bool = False) -> Ia3Peft:
    channels = case.layer.weight_shape[1 if inputs else 0]
    ones = [1] * (len(case.layer.weight_shape) - 2)
    return Ia3Peft(random(1, channels, *ones) if ones or inputs else random(channels, 1))


def _tlora(case: LayerCase) -> Tlora:
    outputs, inputs, *ones = case.layer.weight_shape
    return Tlora(random(4, inputs, *ones), random(outputs, 4, *ones), random(1, 4), 2.0)


def _replacement(case: LayerCase, *, bias: bool = True) -> Replacement:
    weight = random(*case.layer.weight_shape)
    return Replacement(weight, random(weight.shape[0]) if bias else None)


def _without_kernels() -> list[LayerCase]:
    cases = product_cases()
    return [case for case in cases if set(case.layer.weight_shape[2:]) <= {1}]


def _convolutions() -> list[LayerCase]:
    return [case for case in product_cases() if case.layer.kind == "conv"]


def _norms_with_bias() -> list[LayerCase]:
    return [case for case in norm_cases() if case.bias is not None]


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
    AdapterCase("glora", _glora),
    AdapterCase("glora tucker", _glora_tucker, _convolutions),
    AdapterCase("glora, old order", _glora_old, _without_kernels),
    AdapterCase("ia3 on outputs", _ia3),
    AdapterCase("ia3 on inputs", lambda case: _ia3(case, inputs=True)),
    AdapterCase("ia3 of peft", _ia3_peft),
    AdapterCase("ia3 of peft, feedforward", lambda case: _ia3_peft(case, inputs=True)),
    AdapterCase("tlora", _tlora, _without_kernels),
    AdapterCase("full of ai-toolkit", lambda case: FullRank(_diff(case).diff)),
    AdapterCase("replacement", _replacement),
    AdapterCase("replacement of the weight", lambda case: _replacement(case, bias=False)),
    AdapterCase("replacement of norms", _replacement, norm_cases),
    AdapterCase(
        "norm, shift only",
        lambda case: Norm(b_norm=random(*case.layer.weight_shape)),
        _norms_with_bias,
    ),
)


def _lora_1x1(case: LayerCase) -> Lora:
    """A convolution's LoRA on a linear layer, as SD 1 files have it on SDXL-like models."""
    outputs, inputs = case.layer.weight_shape
    return Lora(random(outputs, 4, 1, 1), random(4, inputs, 1, 1), 2.0)
