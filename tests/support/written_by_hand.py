"""Adapters of tools that cannot be installed here: their layouts, and formulas in float64.

kohya's sd-scripts (DyLoRA, OFT), OneTrainer (DoRA, LoHa, OFT 2), LyCORIS before 3.0 (GLoRA), and
ComfyUI's `set_weight`. What each one does stands beside it.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from made_by_lycoris import kohya_metadata
from making import (
    ALPHA,
    RANK,
    Change,
    Made,
    Method,
    Task,
    block_deviation,
    in_transformers_and_res_blocks,
    low_rank_change,
    low_rank_factors,
    norms,
    without_kernels,
)

KOHYA_BLOCKS = 8
KOHYA_CONSTRAINT = 0.008
OFT2_BLOCK = 8
ONETRAINER = {"ot_branch": "master", "ot_revision": "1", "modelspec.sai_model_spec": "1.0.0"}


def _dylora_of_kohya(task: Task) -> Made:
    """An ordinary LoRA on disk; its first `rank` rows are one too, with alpha / rank."""
    up, down = low_rank_factors(task, RANK, ALPHA / RANK)
    kept = task.rank or RANK
    tensors = {
        "lora_down.weight": down,
        "lora_up.weight": up,
        "alpha": torch.tensor(ALPHA),
    }
    change = partial(low_rank_change, up[:, :kept], down[:kept], ALPHA / kept, task.plain)
    return Made(tensors, change)


def _oft_of_kohya(task: Task) -> Made:
    """W' = R^T W in `network_dim` blocks of rows, with a limit on all blocks of a layer."""
    outputs = task.plain.weight.shape[0]
    size = outputs // KOHYA_BLOCKS
    blocks = task.numbers(KOHYA_BLOCKS, size, size, deviation=block_deviation(2 * size))
    constraint = torch.tensor(KOHYA_CONSTRAINT)

    def change() -> Change:
        skew = blocks.double() - blocks.double().mT
        length = skew.norm()
        limit = constraint.double() * outputs
        skew = skew * (torch.minimum(length, limit) + 1e-8) / (length + 1e-8)
        one = torch.eye(size, dtype=torch.float64)
        # One by one: PyTorch 2.13 factorises stacks of large matrices wrong on two threads.
        rotation = torch.stack([torch.linalg.solve(one - block, one + block) for block in skew])
        rows = task.plain.weight.double().unflatten(0, (KOHYA_BLOCKS, size))
        turned = torch.einsum("knm,kn...->km...", rotation, rows).flatten(0, 1)
        return _between(task.plain, turned)

    return Made({"oft_blocks": blocks, "alpha": constraint}, change)


def _oft_of_onetrainer(task: Task) -> Made:
    """On the inputs: W R^T for linear layers, W R for convolutions, R a series of five terms."""
    weight = task.plain.weight.double()
    inputs = weight.flatten(1)
    blocks = inputs.shape[1] // OFT2_BLOCK
    shrink = 2 * math.sqrt(OFT2_BLOCK - 1)
    rows, columns = torch.triu_indices(OFT2_BLOCK, OFT2_BLOCK, 1)
    vectors = task.numbers(blocks, len(rows), deviation=block_deviation(OFT2_BLOCK) * shrink)

    def change() -> Change:
        upper = torch.zeros(blocks, OFT2_BLOCK, OFT2_BLOCK, dtype=torch.float64)
        upper[:, rows, columns] = vectors.double() / shrink
        skew = upper - upper.mT
        square = skew @ skew
        rotation = torch.eye(OFT2_BLOCK, dtype=torch.float64) + 2 * skew + 2 * square
        rotation = rotation + 2 * square @ skew + square @ square
        rotation = rotation.mT if isinstance(task.plain, nn.Linear) else rotation
        turned = torch.einsum("okj,kji->oki", inputs.unflatten(1, (blocks, -1)), rotation)
        return _between(task.plain, turned.reshape(weight.shape))

    return Made({"oft_R.weight": vectors, "oft_R.scaled_oft": torch.tensor(True)}, change)


def _dora_of_onetrainer(task: Task) -> Made:
    """W' = m V / ||V||, V = W + change, with a length for each input channel."""
    rank, alpha = task.sizes
    up, down = low_rank_factors(task, rank, alpha / rank)
    axes = [axis for axis in range(task.plain.weight.ndim) if axis != 1]
    magnitudes = torch.linalg.vector_norm(task.plain.weight, dim=axes, keepdim=True)
    task.vary(magnitudes)

    def change() -> Change:
        product = up.double().flatten(1) @ down.double().flatten(1)
        product = alpha / rank * product.reshape(task.plain.weight.shape)
        changed = task.plain.weight.double() + product
        lengths = torch.linalg.vector_norm(changed, dim=axes, keepdim=True)
        return _between(task.plain, magnitudes.double() * changed / lengths)

    tensors = {
        "lora_down.weight": down,
        "lora_up.weight": up,
        "alpha": torch.tensor(alpha),
        "dora_scale": magnitudes,
    }
    return Made(tensors, change)


def _loha_of_onetrainer(task: Task) -> Made:
    """LoHa whose factors keep the axes of the kernel."""
    rank, alpha = task.sizes
    scale = alpha / rank
    outputs, *inputs = task.plain.weight.shape
    ones = [1] * (len(inputs) - 1)
    deviation = math.sqrt(task.deviation / scale / rank)
    tensors = {"alpha": torch.tensor(alpha)}
    for factor in ("w1", "w2"):
        tensors[f"hada_{factor}_a"] = task.numbers(outputs, rank, *ones, deviation=deviation)
        tensors[f"hada_{factor}_b"] = task.numbers(rank, *inputs)

    def change() -> Change:
        first, second = (
            tensors[f"hada_{factor}_a"].double().flatten(1)
            @ tensors[f"hada_{factor}_b"].double().flatten(1)
            for factor in ("w1", "w2")
        )
        product = (scale * first * second).reshape(task.plain.weight.shape)
        return Change(product.float())

    return Made(tensors, change)


def _glora_before_lycoris_3(task: Task) -> Made:
    """W' = W + W a2 a1 + b2 b1. Alpha is the rank: with another one it was trained twice scaled."""
    outputs, inputs, *ones = task.plain.weight.shape
    half = task.deviation / math.sqrt(2)
    base = task.plain.weight.std().item()
    tensors = {
        "a1.weight": task.numbers(RANK, inputs, *ones),
        "a2.weight": task.numbers(
            *(inputs, RANK, *ones), deviation=half / base / math.sqrt(inputs * RANK)
        ),
        "b1.weight": task.numbers(RANK, inputs, *ones),
        "b2.weight": task.numbers(outputs, RANK, *ones, deviation=half / math.sqrt(RANK)),
        "alpha": torch.tensor(float(RANK)),
    }

    def change() -> Change:
        a1, a2, b1, b2 = (
            tensors[f"{name}.weight"].double().flatten(1) for name in ("a1", "a2", "b1", "b2")
        )
        weight = task.plain.weight.double().flatten(1)
        product = weight @ a2 @ a1 + b2 @ b1
        return Change(product.reshape(task.plain.weight.shape).float())

    return Made(tensors, change)


def _set_weight(task: Task) -> Made:
    """The weight itself, not its difference."""
    weight = task.plain.weight + task.numbers(*task.plain.weight.shape, deviation=0.4)
    return Made({"set_weight": weight}, partial(_between, task.plain, weight.double()))


def _between(plain: nn.Module, changed: Tensor) -> Change:
    return Change((changed - plain.weight.double()).float())


HAND_METHODS: dict[str, Method] = {
    "dylora_kohya": Method(
        make=_dylora_of_kohya,
        selects=in_transformers_and_res_blocks,
        metadata=kohya_metadata("networks.dylora", unit="2"),
    ),
    "oft_kohya": Method(
        make=_oft_of_kohya,
        selects=lambda target: target.part == "unet" and in_transformers_and_res_blocks(target),
        naming="kohya_oft",
        metadata=kohya_metadata("networks.oft"),
    ),
    "oft_onetrainer": Method(
        make=_oft_of_onetrainer,
        selects=in_transformers_and_res_blocks,
        metadata=ONETRAINER,
    ),
    "dora_onetrainer": Method(
        make=_dora_of_onetrainer,
        selects=in_transformers_and_res_blocks,
        naming="diffusers",
        metadata=ONETRAINER,
    ),
    "loha_onetrainer": Method(
        make=_loha_of_onetrainer,
        selects=in_transformers_and_res_blocks,
        metadata=ONETRAINER,
    ),
    "glora_old": Method(
        make=_glora_before_lycoris_3,
        selects=without_kernels,
        metadata=kohya_metadata("lycoris.kohya", algo="glora"),
    ),
    "set_weight": Method(make=_set_weight, selects=norms, naming="dotted"),
}
