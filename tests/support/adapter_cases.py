"""One line for each method: adapters with every tensor at work, for the laws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Size, Tensor

import peft_cases as peft
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.boft import Boft, PeftBoft
from anyadapter.algorithms.adapters.diff import Diff, FullRank
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.glora import Glora, GloraOld
from anyadapter.algorithms.adapters.ia3 import Ia3, Ia3Peft
from anyadapter.algorithms.adapters.loha import Loha, LohaTucker
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora, LoraTucker
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.adapters.oft import (
    DiagOft,
    OftEmbedding,
    OftV2,
    PeftInputOft,
    PeftOutputOft,
    SplitOft,
)
from anyadapter.algorithms.adapters.replacement import Replacement
from anyadapter.algorithms.adapters.tlora import Tlora
from anyadapter.algorithms.layers import Rows
from layer_cases import LayerCase, few, norm_cases, product_cases, wide_cases

Make = Callable[[LayerCase], Adapter]


@dataclass(frozen=True)
class AdapterCase:
    """A variant of a method and the layers that it can change."""

    name: str
    make: Make
    layers: Callable[[], Sequence[LayerCase]] = product_cases
    rows: Rows = field(default_factory=lambda: Rows(2, 5))
    """Some of 8 rows that the method can change alone."""

    def on(self, layer: LayerCase) -> Adapter:
        """Returns the adapter for a layer, which is the same at every call."""
        return _made(self, layer)


@cache
def _made(case: AdapterCase, layer: LayerCase) -> Adapter:
    return case.make(layer)


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


def _block_size(length: int, wanted: int) -> int:
    """Returns a size that splits a side: `wanted`, or one block for the 5 rows of a slice."""
    return wanted if length % wanted == 0 else length


def _oft(case: LayerCase, *, rescaled: bool = False, alpha: float | None = 0.0) -> DiagOft:
    outputs, *others = case.layer.weight_shape
    size = _block_size(outputs, 4)
    rescale = random(outputs, *[1] * len(others)) if rescaled else None
    return DiagOft(random(outputs // size, size, size), rescale, alpha)


def _split_oft(case: LayerCase) -> SplitOft:
    """Parts of 2, 2 and the rest of the rows, with one block or two each."""
    rest = case.layer.weight_shape[0] - 4
    if rest % 2:
        return SplitOft(random(1, 2, 2), random(1, 3, 3), alpha=0.1875)
    parts = (random(2, 1, 1), random(2, 1, 1), random(2, rest // 2, rest // 2))
    return SplitOft(*parts, alpha=0.1875) if rest else SplitOft(random(2, 2, 2), alpha=0.1875)


def _peft_output_oft(case: LayerCase) -> PeftOutputOft:
    """Three blocks of 3 on 8 outputs: the last one reaches beyond them."""
    outputs = case.layer.weight_shape[0]
    count = 3 if outputs == 8 else 2
    size = -(-outputs // count)
    return PeftOutputOft(random(count, size, size))


def _columns(case: LayerCase) -> int:
    return Size(case.layer.weight_shape[1:]).numel()


def _peft_input_oft(case: LayerCase) -> PeftInputOft:
    columns = _columns(case)
    return PeftInputOft(random(columns // 3, 3, 3), random(case.layer.weight_shape[0], 1))


def _oft_v2(case: LayerCase, *, shared: bool = False, terms: int | None = 5) -> OftV2:
    vectors = random(1 if shared else _columns(case) // 3, 3)
    return OftV2(vectors, terms=terms, kernels="peft")


def _onetrainer_oft(case: LayerCase) -> OftV2:
    return OftV2(random(_columns(case) // 3, 3), scaled=1.0, kernels="onetrainer")


def _dora_oft(case: LayerCase) -> OftV2:
    """All marks of the forks that follow OneTrainer."""
    outputs = case.layer.weight_shape[0]
    return OftV2(
        random(_columns(case) // 3, 3),
        dora_scale=random(outputs, 1),
        initial_norm=random(outputs, 1).abs() + 2,
        alpha=3.0,
        size_mark=3.0,
        share_mark=0.0,
        coft_mark=0.0,
        eps_mark=6e-5,
        scaled_mark=1.0,
        kernels="onetrainer",
    )


def _multiplied_oft(case: LayerCase, *, log: bool) -> OftV2:
    factor = random(case.layer.weight_shape[0])
    stored = {"dora_log_multiplier": factor} if log else {"dora_multiplier": factor}
    return OftV2(random(_columns(case) // 3, 3), scaled=1.0, kernels="onetrainer", **stored)


def _boft(case: LayerCase, *, rescaled: bool = False, alpha: float | None = 0.0) -> Boft:
    """Blocks of 2: 3 stages on 8 outputs, 2 on 4."""
    outputs, *others = case.layer.weight_shape
    count = outputs // 2
    rescale = random(outputs, *[1] * len(others)) if rescaled else None
    return Boft(random(count.bit_length(), count, 2, 2), rescale, alpha)


def _boft_of_wide_blocks(case: LayerCase) -> Boft:
    count = case.layer.weight_shape[0] // 4
    return Boft(random(count.bit_length(), count, 4, 4))


def _peft_boft(case: LayerCase) -> PeftBoft:
    """Two stages where the inputs allow it, blocks of 3 in one stage on 6 inputs."""
    columns, outputs = _columns(case), case.layer.weight_shape[0]
    conv = case.layer.kind == "conv"
    blocks = random(1, 2, 3, 3) if columns == 6 else random(1, columns // 2, 2, 2)
    return PeftBoft(blocks, random(1, outputs) if conv else random(outputs, 1))


def _peft_boft_in_stages(case: LayerCase) -> PeftBoft:
    columns = _columns(case)
    return PeftBoft(random(2, columns // 6, 6, 6), random(case.layer.weight_shape[0], 1))


def _with_pairs_of_blocks() -> list[LayerCase]:
    """Layers whose inputs are an even number of blocks of 6."""
    return [*(case for case in product_cases() if _columns(case) % 12 == 0), *wide_cases()]


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


def _few() -> list[LayerCase]:
    """A layer for each way of a method, for variants that differ in their matrices only."""
    return few(product_cases())


def _convolutions() -> list[LayerCase]:
    return [case for case in product_cases() if case.layer.kind == "conv"]


def _norms_with_bias() -> list[LayerCase]:
    return [case for case in norm_cases() if case.bias is not None]


EVEN_ROWS = Rows(3, 4)
"""BOFT splits rows into a power of two of even blocks, which 5 rows have none of."""


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
    AdapterCase("oft", _oft),
    AdapterCase("oft, limit and rescale", lambda case: _oft(case, rescaled=True, alpha=0.125)),
    AdapterCase("oft in parts", _split_oft),
    AdapterCase("oft of peft, outputs", _peft_output_oft),
    AdapterCase("oft of peft, inputs", _peft_input_oft),
    AdapterCase("oft v2", _oft_v2),
    AdapterCase("oft v2, exact", lambda case: _oft_v2(case, terms=None), _few),
    AdapterCase("oft v2, shared", lambda case: _oft_v2(case, shared=True), _few),
    AdapterCase("oft v2 of an embedding", lambda case: OftEmbedding(_oft_v2(case).vectors), _few),
    AdapterCase("oft of onetrainer", _onetrainer_oft),
    AdapterCase("dora-oft", _dora_oft, _few),
    AdapterCase("oft with multiplier", lambda case: _multiplied_oft(case, log=False), _few),
    AdapterCase("oft with log multiplier", lambda case: _multiplied_oft(case, log=True), _few),
    AdapterCase("boft", _boft, rows=EVEN_ROWS),
    AdapterCase(
        "boft, limit and rescale",
        lambda case: _boft(case, rescaled=True, alpha=0.125),
        rows=EVEN_ROWS,
    ),
    AdapterCase("boft of wide blocks", _boft_of_wide_blocks, _few, EVEN_ROWS),
    AdapterCase("boft of peft", _peft_boft),
    AdapterCase("boft of peft in stages", _peft_boft_in_stages, _with_pairs_of_blocks),
    *PEFT_CASES,
)


def _lora_1x1(case: LayerCase) -> Lora:
    """A convolution's LoRA on a linear layer, as SD 1 files have it on SDXL-like models."""
    outputs, inputs = case.layer.weight_shape
    return Lora(random(outputs, 4, 1, 1), random(4, inputs, 1, 1), 2.0)
