"""What the methods compute, in float64, from the tensors of a file and the base weight."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from making import ALPHA, RANK

Tensors = dict[str, Tensor]
Formula = Callable[[Tensors, Tensor], Tensor]
"""The tensors of one layer, its base weight -> the change of the weight."""


def _scale(tensors: Tensors, down: Tensor) -> float:
    """Alpha / rank; PEFT writes alpha into its configuration."""
    rank = down.shape[0]
    return tensors["alpha"].item() / rank if "alpha" in tensors else ALPHA / rank


def _lora(tensors: Tensors, weight: Tensor) -> Tensor:
    names = ("lora_up", "lora_down") if "lora_up.weight" in tensors else ("lora_B", "lora_A")
    up, down = (tensors[f"{name}.weight"] for name in names)
    product = up.flatten(1) @ down.flatten(1)
    return (_scale(tensors, down) * product).reshape(weight.shape)


def _loha(tensors: Tensors, weight: Tensor) -> Tensor:
    halves = []
    for half in ("1", "2"):
        left, right = (tensors[f"hada_w{half}_{side}"] for side in "ab")
        if f"hada_t{half}" in tensors:
            core = tensors[f"hada_t{half}"]
            halves.append(torch.einsum("mrhw,mo,ri->oihw", core, left, right))
        else:
            halves.append((left.flatten(1) @ right.flatten(1)).reshape(weight.shape))
    return _scale(tensors, tensors["hada_w1_b"]) * halves[0] * halves[1]


def _lokr(tensors: Tensors, weight: Tensor) -> Tensor:
    scale = 1.0
    first, second = tensors.get("lokr_w1"), tensors.get("lokr_w2")
    if first is None:
        first = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
        scale = _scale(tensors, tensors["lokr_w1_b"])
    if second is None:
        left, right = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
        scale = _scale(tensors, right)
        if "lokr_t2" in tensors:
            second = torch.einsum("mrhw,mo,ri->oihw", tensors["lokr_t2"], left, right)
        else:
            second = (left @ right).reshape(left.shape[0], -1, *weight.shape[2:])
    product = torch.einsum("ac,bd...->abcd...", first, second)
    return scale * product.reshape(weight.shape)


def _decomposed(inner: Formula) -> Formula:
    def change(tensors: Tensors, weight: Tensor) -> Tensor:
        changed = weight + inner(tensors, weight)
        if "dora_scale" in tensors:
            lengths = tensors["dora_scale"]
        else:
            lengths = tensors["lora_magnitude_vector"].reshape(-1, *[1] * (weight.ndim - 1))
        axes = [axis for axis, size in enumerate(lengths.shape) if size == 1]
        return (
            lengths * changed / torch.linalg.vector_norm(changed, dim=axes, keepdim=True) - weight
        )

    return change


def _ia3(tensors: Tensors, weight: Tensor) -> Tensor:
    axis = 1 if tensors["on_input"] else 0
    shape = [size if position == axis else 1 for position, size in enumerate(weight.shape)]
    return weight * tensors["weight"].reshape(shape)


def _ia3_of_peft(tensors: Tensors, weight: Tensor) -> Tensor:
    factors = tensors["ia3_l"]
    # Factors of the outputs of a convolution stand on the second axis too.
    if weight.ndim == 4 and factors.shape[1] != weight.shape[1]:
        factors = factors.transpose(0, 1)
    return weight * factors - weight


def _rotation(skew: Tensor) -> Tensor:
    one = torch.eye(skew.shape[-1], dtype=torch.float64)
    # One by one: PyTorch 2.13 factorises stacks of large matrices wrong on two threads.
    each = [torch.linalg.solve(one - part, one + part) for part in skew.reshape(-1, *one.shape)]
    return torch.stack(each).reshape(skew.shape)


def _diag_oft(tensors: Tensors, weight: Tensor) -> Tensor:
    blocks = tensors["oft_blocks"]
    skew = blocks - blocks.mT
    if tensors["alpha"] > 0:
        limit = tensors["alpha"] * weight.shape[0]
        skew = skew * torch.clamp(limit / skew.norm(), max=1)
    turned = torch.block_diag(*_rotation(skew)).T @ weight.flatten(1)
    return tensors.get("rescale", torch.ones(1)) * turned.reshape(weight.shape) - weight


def _boft(tensors: Tensors, weight: Tensor) -> Tensor:
    blocks = tensors["oft_blocks"]
    turned = weight.flatten(1)
    for stage, rotations in enumerate(_rotation(blocks - blocks.mT)):
        half = 2**stage * blocks.shape[-1] // 2
        order = torch.arange(len(weight)).reshape(-1, 2, half).transpose(1, 2).flatten()
        mixed = rotations @ turned[order].unflatten(0, (len(rotations), -1))
        turned = mixed.flatten(0, 1)[order.argsort()]
    return turned.reshape(weight.shape) - weight


def _glora(tensors: Tensors, weight: Tensor, *, stabilised: bool = False) -> Tensor:
    a1, a2, b1, b2 = (tensors[f"{name}.weight"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    rank = a2.shape[0]
    scale = tensors["alpha"].item() / (math.sqrt(rank) if stabilised else rank)
    turned = torch.einsum("oi...,ij->oj...", weight, a1 @ a2)
    return scale * (turned + (b1 @ b2).reshape(weight.shape))


def _tlora(tensors: Tensors, weight: Tensor) -> Tensor:
    p, q = (tensors[f"{name}_layer.weight"].flatten(1) for name in "pq")
    left, lengths, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    base = left[:, :RANK] * lengths[:RANK] @ right[:RANK]
    return (ALPHA / RANK * (p * tensors["lambda_layer"] @ q - base)).reshape(weight.shape)


def _inputs_turned(weight: Tensor, rotations: Tensor) -> Tensor:
    return (weight.flatten(1) @ torch.block_diag(*rotations).T).reshape(weight.shape)


def _oft_of_peft(tensors: Tensors, weight: Tensor, *, exact: bool = False) -> Tensor:
    vectors = tensors["oft_R.weight"]
    size = (1 + math.isqrt(1 + 8 * vectors.shape[1])) // 2
    skew = torch.zeros(len(vectors), size, size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size, 1)
    skew[:, rows, columns], skew[:, columns, rows] = vectors, -vectors
    if exact:
        return _inputs_turned(weight, _rotation(-skew)) - weight
    series = torch.eye(size, dtype=torch.float64) + 2 * skew + 2 * skew @ skew
    series = series + 2 * skew @ skew @ skew + skew @ skew @ skew @ skew
    return _inputs_turned(weight, series) - weight


def _boft_of_peft(tensors: Tensors, weight: Tensor) -> Tensor:
    (blocks,) = tensors["boft_R"]
    rows = tensors["boft_s"].reshape(-1, *[1] * (weight.ndim - 1))
    return rows * _inputs_turned(weight, _rotation((blocks.mT - blocks) / 2)) - weight


def _vera(tensors: Tensors, weight: Tensor) -> Tensor:
    outputs, inputs = weight.shape
    up = tensors["vera_lambda_b"][:, None] * tensors["base_model.vera_B"][:outputs].double()
    return up @ (tensors["vera_lambda_d"][:, None] * tensors["base_model.vera_A"][:, :inputs])


FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(("loha", "loha_tucker", "loha_peft"), _loha),
    **dict.fromkeys(("lokr", "lokr_both", "lokr_full", "lokr_tucker", "lokr_peft"), _lokr),
    **dict.fromkeys(("dora", "dora_input", "dora_peft"), _decomposed(_lora)),
    "lokr_dora": _decomposed(_lokr),
    "ia3": _ia3,
    "ia3_peft": _ia3_of_peft,
    **dict.fromkeys(("diag_oft", "diag_oft_constrained"), _diag_oft),
    "boft": _boft,
    "glora": _glora,
    "glora_stabilised": partial(_glora, stabilised=True),
    "tlora": _tlora,
    "lora_peft": _lora,
    "oft_peft": _oft_of_peft,
    "oft_peft_exact": partial(_oft_of_peft, exact=True),
    "boft_peft": _boft_of_peft,
    "vera": _vera,
}
