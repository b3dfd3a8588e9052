"""Adapters for the small checkpoint by LyCORIS' own modules.

The effect of a layer is the weight that the *forward* of its module hands to its operation, not
`get_diff_weight` or `merge_to`, which are wrong for some methods.
"""

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lycoris.modules.base import LycorisBaseModule
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from lycoris.modules.tlora import TLoraModule
from torch import Tensor, nn

from making import (
    ALPHA,
    CHANGE,
    CONV_ALPHA,
    CONV_RANK,
    RANK,
    Change,
    Made,
    Make,
    Method,
    Task,
    block_deviation,
    few_products,
    in_some_transformers,
    in_transformers,
    in_transformers_and_res_blocks,
    low_rank_change,
    norms,
    probe,
    values,
)

# It tells the sizes of every layer that it makes.
logging.getLogger("LyCORIS").setLevel(logging.WARNING)

DYLORA_BLOCK = 2
OFT_BLOCK = 8
BOFT_BLOCK = 40
"""Largest block: the number of blocks is a power of two, so 320 is cut in 8 of 40."""
CONSTRAINT = 0.004
"""Limit of a rotation, per output of the layer; some layers reach it."""
LOKR_FACTOR = 8
SMALL_LOKR = {"lora_dim": 4, "factor": 16, "decompose_both": True}
"""Sizes at which both sides are decomposed."""

Fill = Callable[[LycorisBaseModule, Task], None]


def applied(module: LycorisBaseModule, plain: nn.Module) -> Change:
    """Returns the change of weight that the forward of a module hands to its operation."""
    found: list[Tensor] = []

    def operation(x: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
        assert bias is None
        found.append(weight)
        return x

    replaced = module.op, module.org_forward
    module.op, module.org_forward = operation, lambda x: x
    with torch.no_grad():
        module(torch.zeros(1))
    module.op, module.org_forward = replaced
    (weight,) = found
    return Change(weight, None if plain.bias is None else torch.zeros_like(plain.bias))


def kohya_metadata(network: str, **arguments: str) -> dict[str, str]:
    """Returns the header that sd-scripts writes."""
    return {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": network,
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(ALPHA),
        "ss_network_args": json.dumps(arguments),
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }


def _lycoris(algorithm: str, **arguments: str) -> dict[str, str]:
    sizes = {"conv_dim": str(CONV_RANK), "conv_alpha": str(CONV_ALPHA)}
    return kohya_metadata("lycoris.kohya", algo=algorithm, **sizes, **arguments)


def _by_lycoris(kind: type[LycorisBaseModule], fill: Fill, **options: Any) -> Make:
    def make(task: Task) -> Made:
        rank, alpha = task.sizes
        sizes = {"lora_dim": rank, "alpha": alpha}
        module = kind("", task.plain, **(sizes | options))
        fill(module, task)
        return Made(module.state_dict(), partial(applied, module, task.plain))

    return make


def _scaled_by(*linear: str) -> Fill:
    """Fills with random numbers, and scales the parameters named so that the change fits."""

    def fill(module: LycorisBaseModule, task: Task) -> None:
        parameters = dict(module.named_parameters())
        magnitudes = parameters.pop("dora_scale", None)
        for parameter in parameters.values():
            task.fill(parameter, 1 / math.sqrt(parameter[0].numel()))
        if magnitudes is not None:
            module.wd = False
            task.vary(magnitudes)
        factor = task.deviation / applied(module, task.plain).weight.std()
        with torch.no_grad():
            for name in linear:
                if name in parameters:
                    parameters[name].mul_(factor)
        if magnitudes is not None:
            module.wd = True

    return fill


_fill_lokr = _scaled_by("lokr_w2", "lokr_w2_a")


def _fill_rotation(module: LycorisBaseModule, task: Task) -> None:
    blocks = module.oft_blocks
    stages = blocks.shape[0] if blocks.ndim == 4 else 1
    # B - B^T has the deviation of B times the root of 2.
    task.fill(blocks, block_deviation(2 * blocks.shape[-1], stages))
    if module.rescaled:
        task.vary(module.rescale)


def _fill_tlora(module: LycorisBaseModule, task: Task) -> None:
    """Leaves the largest singular triples of the base weight, as training does."""
    for parameter in (module.q_layer.weight, module.p_layer.weight):
        task.vary(parameter, 1.0)
    task.vary(module.lambda_layer, 0.5)


def _ia3(task: Task) -> Made:
    """Either side, at random."""
    on_input = bool(torch.randint(2, (), generator=task.generator))
    module = IA3Module("", task.plain, train_on_input=on_input)
    task.fill(module.weight, CHANGE)
    return Made(module.state_dict(), partial(applied, module, task.plain))


def _lora(
    *,
    tucker: bool = False,
    rank_stabilised: bool = False,
    dtype: torch.dtype = torch.float32,
    down_deviation: Callable[[int, int], float] = lambda inputs, _: 1 / math.sqrt(inputs),
) -> Make:
    def make(task: Task) -> Made:
        rank, alpha = task.sizes
        module = LoConModule(
            *("", task.plain),
            lora_dim=rank,
            alpha=alpha,
            use_tucker=tucker,
            rs_lora=rank_stabilised,
        )
        down = down_deviation(module.lora_down.weight[0].numel(), rank)
        up = task.deviation / (module.scale * math.sqrt(rank) * down)
        task.fill(module.lora_down.weight, down, dtype)
        task.fill(module.lora_up.weight, up, dtype)
        if module.tucker:
            task.fill(module.lora_mid.weight, 1 / math.sqrt(rank), dtype)
        return Made(module.state_dict(), partial(applied, module, task.plain))

    return make


def _dylora(task: Task) -> Made:
    """Trained at alpha / blocks, so a file of R rows wants alpha * block_size / R."""
    module = DyLoraModule("", task.plain, lora_dim=RANK, alpha=ALPHA, block_size=DYLORA_BLOCK)
    fan_in = math.prod(task.plain.weight.shape[1:])
    deviation = task.deviation * math.sqrt(fan_in / RANK) / (ALPHA * DYLORA_BLOCK / RANK)
    for down, up in zip(module.down_list, module.up_list, strict=True):
        task.fill(down, 1 / math.sqrt(fan_in))
        task.fill(up, deviation)
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    kept = task.rank or RANK
    up, down = tensors["lora_up.weight"][:, :kept], tensors["lora_down.weight"][:kept]
    scale = ALPHA * DYLORA_BLOCK / kept
    # Not the forward: it takes the last blocks at random, and another scale than it trained with.
    return Made(tensors, partial(low_rank_change, up, down, scale, task.plain))


def _full(task: Task) -> Made:
    trained = _copy(task.plain)
    module = FullModule("", trained)
    task.fill(module.weight, task.deviation)
    if module.bias is not None:
        task.fill(module.bias, CHANGE)
    # Its state dict is right only after this.
    module.apply_to()
    return Made(module.state_dict(), partial(probe, module, task.plain))


def _norm(task: Task) -> Made:
    module = NormModule("", task.plain)
    task.fill(module.w_norm, CHANGE)
    task.fill(module.b_norm, CHANGE)
    return Made(module.state_dict(), partial(probe, module, task.plain))


def _copy(plain: nn.Module) -> nn.Module:
    copy = type(plain).__new__(type(plain))
    copy.__dict__ = plain.__dict__ | {"_parameters": dict(plain._parameters)}
    return copy


def _mixed(task: Task) -> Made:
    """What presets make: another method for each kind of layer."""
    name = task.target.layer.name
    if norms(task.target):
        return _norm(task)
    if task.target.layer.kind == "conv":
        return LYCORIS_METHODS["lokr_dora"].make(task)
    return LYCORIS_METHODS["loha" if ".mlp." in name or ".ff." in name else "glora"].make(task)


LYCORIS_METHODS: dict[str, Method] = {
    "lora": Method(
        make=_lora(dtype=torch.float16),
        selects=in_transformers,
        dtype=torch.float16,
        metadata=kohya_metadata("networks.lora"),
    ),
    "locon": Method(
        make=_lora(dtype=torch.bfloat16),
        selects=in_transformers_and_res_blocks,
        dtype=torch.bfloat16,
        metadata=kohya_metadata(
            "networks.lora", conv_dim=str(CONV_RANK), conv_alpha=str(CONV_ALPHA)
        ),
    ),
    "locon_tucker": Method(
        make=_lora(tucker=True),
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_lycoris("locon", use_tucker="True"),
    ),
    "lora_plus": Method(
        make=_lora(),
        selects=in_some_transformers,
        metadata=kohya_metadata("networks.lora", loraplus_lr_ratio="16"),
    ),
    "lora_fa": Method(
        make=_lora(down_deviation=lambda inputs, rank: math.sqrt(2 / (inputs + rank))),
        selects=in_some_transformers,
        naming="underscored",
        metadata=kohya_metadata("networks.lora_fa"),
    ),
    "rslora": Method(
        make=_lora(rank_stabilised=True),
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_lycoris("locon", rs_lora="True"),
    ),
    "dylora_lycoris": Method(
        make=_dylora,
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=kohya_metadata("lycoris.kohya", algo="dylora", block_size=str(DYLORA_BLOCK)),
    ),
    "loha": Method(
        make=_by_lycoris(LohaModule, _scaled_by("hada_w1_a")),
        selects=in_transformers_and_res_blocks,
        metadata=_lycoris("loha"),
    ),
    "loha_tucker": Method(
        make=_by_lycoris(LohaModule, _scaled_by("hada_w1_a"), use_tucker=True),
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_lycoris("loha", use_tucker="True"),
    ),
    "lokr": Method(
        make=_by_lycoris(LokrModule, _fill_lokr, factor=LOKR_FACTOR),
        selects=in_transformers_and_res_blocks,
        metadata=_lycoris("lokr", factor=str(LOKR_FACTOR)),
    ),
    "lokr_both": Method(
        make=_by_lycoris(LokrModule, _fill_lokr, **SMALL_LOKR),
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_lycoris("lokr", factor="16", decompose_both="True"),
    ),
    "lokr_full": Method(
        make=_by_lycoris(LokrModule, _fill_lokr, factor=LOKR_FACTOR, full_matrix=True),
        selects=in_transformers_and_res_blocks,
        metadata=_lycoris("lokr", factor=str(LOKR_FACTOR), full_matrix="True"),
    ),
    "lokr_tucker": Method(
        make=_by_lycoris(LokrModule, _fill_lokr, factor=LOKR_FACTOR, use_tucker=True),
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_lycoris("lokr", factor=str(LOKR_FACTOR), use_tucker="True"),
    ),
    "dora": Method(
        make=_by_lycoris(LoConModule, _scaled_by("lora_up.weight"), weight_decompose=True),
        selects=in_transformers_and_res_blocks,
        metadata=_lycoris("locon", dora_wd="True"),
    ),
    "dora_input": Method(
        make=_by_lycoris(
            *(LoConModule, _scaled_by("lora_up.weight")), weight_decompose=True, wd_on_out=False
        ),
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_lycoris("locon", dora_wd="True", wd_on_out="False"),
    ),
    "lokr_dora": Method(
        make=_by_lycoris(LokrModule, _fill_lokr, factor=LOKR_FACTOR, weight_decompose=True),
        selects=in_transformers_and_res_blocks,
        metadata=_lycoris("lokr", factor=str(LOKR_FACTOR), dora_wd="True"),
    ),
    "ia3": Method(
        make=_ia3,
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_lycoris("ia3"),
    ),
    "diag_oft": Method(
        make=_by_lycoris(DiagOFTModule, _fill_rotation, lora_dim=OFT_BLOCK),
        selects=in_transformers_and_res_blocks,
        metadata=_lycoris("diag-oft"),
    ),
    "diag_oft_constrained": Method(
        make=_by_lycoris(
            *(DiagOFTModule, _fill_rotation),
            lora_dim=OFT_BLOCK,
            constraint=CONSTRAINT,
            rescaled=True,
        ),
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_lycoris("diag-oft", constraint=str(CONSTRAINT), rescaled="True"),
    ),
    "boft": Method(
        make=_by_lycoris(ButterflyOFTModule, _fill_rotation, lora_dim=BOFT_BLOCK),
        selects=in_transformers_and_res_blocks,
        metadata=_lycoris("boft"),
    ),
    "glora": Method(
        make=_by_lycoris(GLoRAModule, _scaled_by("a2.weight", "b2.weight")),
        selects=in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_lycoris("glora"),
    ),
    "glora_stabilised": Method(
        make=_by_lycoris(GLoRAModule, _scaled_by("a2.weight", "b2.weight"), rs_lora=True),
        selects=in_some_transformers,
        metadata=_lycoris("glora", rs_lora="True"),
    ),
    "tlora": Method(
        make=_by_lycoris(TLoraModule, _fill_tlora),
        selects=values,
        metadata=_lycoris("tlora"),
    ),
    "full": Method(
        make=_full,
        selects=few_products,
        naming="dotted",
        metadata=kohya_metadata("lycoris.kohya", algo="full"),
    ),
    "norm": Method(
        make=_norm,
        selects=norms,
        naming="dotted",
        metadata=kohya_metadata("lycoris.kohya", algo="full", train_norm="True"),
    ),
    "mixed": Method(
        make=_mixed,
        selects=lambda target: in_transformers_and_res_blocks(target) or norms(target),
        metadata=_lycoris("lokr"),
    ),
}
