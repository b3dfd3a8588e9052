"""One line for each method: adapters with every tensor at work, for the laws."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.loha import Loha, LohaTucker
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora, LoraTucker
from anyadapter.algorithms.adapters.norm import Norm
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


def _loha(case: LayerCase, *, rank: int = 2, kernels: bool = False) -> Loha:
    outputs, *inputs = case.layer.weight_shape
    tail = [1] * (len(inputs) - 1) if kernels else []
    columns = inputs if kernels else [torch.Size(inputs).numel()]
    return Loha(
        random(outputs, rank, *tail),
        random(rank, *columns),
        random(outputs, rank, *tail) - 0.5,
        random(rank, *columns) + 0.5,
        3.0,
    )


def _loha_tucker(case: LayerCase) -> LohaTucker:
    outputs, inputs, *kernel = case.layer.weight_shape
    return LohaTucker(
        w1_a=random(4, outputs),
        w1_b=random(3, inputs),
        t1=random(4, 3, *kernel),
        w2_a=random(4, outputs) - 0.5,
        w2_b=random(3, inputs) + 0.5,
        t2=random(4, 3, *kernel) - 0.5,
        alpha=2.0,
    )


def _lokr(case: LayerCase, left: str, right: str) -> Lokr:
    """LoKr with w1 `whole` or `factors`, and w2 `whole`, `factors` or `tucker`."""
    outputs, inputs, *kernel = case.layer.weight_shape
    a, c = 2 - outputs % 2, 3
    b, d, size = outputs // a, inputs // c, torch.Size(kernel).numel()
    first = {
        "whole": {"w1": random(a, c)},
        "factors": {"w1_a": random(a, 5), "w1_b": random(5, c)},
    }
    second = {
        "whole": {"w2": random(b, d, *kernel)},
        "factors": {"w2_a": random(b, 3), "w2_b": random(3, d * size)},
        "tucker": {"w2_a": random(4, b), "w2_b": random(3, d), "t2": random(4, 3, *kernel)},
    }
    return Lokr(**first[left], **second[right], alpha=2.0)


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


ADAPTER_CASES = (
    AdapterCase("lora", _lora),
    AdapterCase("lora without alpha", lambda case: _lora(case, None)),
    AdapterCase("lora with bias", lambda case: _lora(case, bias=True)),
    AdapterCase("lora of matrices", _lora_of_matrices),
    AdapterCase("lora of 1x1 kernels", lambda case: _lora_1x1(case), lambda: [product_cases()[0]]),
    AdapterCase("dylora slice", lambda case: _lora(case).sliced(3)),
    AdapterCase("lora tucker", _tucker, _convolutions),
    AdapterCase("loha", _loha),
    AdapterCase("loha of kernels", lambda case: _loha(case, kernels=True), _convolutions),
    AdapterCase("loha of full rank", lambda case: _loha(case, rank=5)),
    AdapterCase("loha tucker", _loha_tucker, _convolutions),
    AdapterCase("lokr", lambda case: _lokr(case, "whole", "whole")),
    AdapterCase("lokr, w2 of factors", lambda case: _lokr(case, "whole", "factors")),
    AdapterCase("lokr, w1 of factors", lambda case: _lokr(case, "factors", "whole")),
    AdapterCase("lokr of factors", lambda case: _lokr(case, "factors", "factors")),
    AdapterCase("lokr tucker", lambda case: _lokr(case, "whole", "tucker"), _convolutions),
    AdapterCase(
        "lokr tucker, w1 of factors", lambda case: _lokr(case, "factors", "tucker"), _convolutions
    ),
    AdapterCase("dora on outputs", lambda case: _dora(case, _lora(case))),
    AdapterCase("dora on inputs", lambda case: _dora(case, _lora(case), inputs=True)),
    AdapterCase(
        "dora of peft with bias", lambda case: _dora(case, _lora(case, bias=True), peft=True)
    ),
    AdapterCase("dora of lora tucker", lambda case: _dora(case, _tucker(case)), _convolutions),
    AdapterCase(
        "dora of lora tucker on inputs",
        lambda case: _dora(case, _tucker(case), inputs=True),
        _convolutions,
    ),
    AdapterCase("dora of loha", lambda case: _dora(case, _loha(case))),
    AdapterCase("dora of loha on inputs", lambda case: _dora(case, _loha(case), inputs=True)),
    AdapterCase("dora of loha tucker", lambda case: _dora(case, _loha_tucker(case)), _convolutions),
    AdapterCase("dora of lokr", lambda case: _dora(case, _lokr(case, "whole", "whole"))),
    AdapterCase(
        "dora of lokr on inputs",
        lambda case: _dora(case, _lokr(case, "factors", "factors"), inputs=True),
    ),
    AdapterCase(
        "dora of lokr tucker",
        lambda case: _dora(case, _lokr(case, "whole", "tucker")),
        _convolutions,
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
)


def _lora_1x1(case: LayerCase) -> Lora:
    """A convolution's LoRA on a linear layer, as SD 1 files have it on SDXL-like models."""
    outputs, inputs = case.layer.weight_shape
    return Lora(random(outputs, 4, 1, 1), random(4, inputs, 1, 1), 2.0)
