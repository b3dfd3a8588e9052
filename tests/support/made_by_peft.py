"""Adapters for the small checkpoint by PEFT's own layers, as PEFT saves them.

The effect of a layer is what PEFT's merge makes of its weight and bias, which is what its forward
does (OFT on kernels apart: that forward counts overlapping fields twice).
"""

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from import_peft import peft
from making import (
    ALPHA,
    CHANGE,
    RANK,
    Change,
    Made,
    Make,
    Method,
    Target,
    Task,
    block_deviation,
    in_transformers_and_res_blocks,
    linear,
    targets,
    values,
    with_bias,
)

WIDEST = 3072
"""Most inputs and most outputs of a layer in the small checkpoint."""
BLOCK = 8
FEEDFORWARD = ["ff.net.2", "mlp.fc2", "proj_in", "conv2"]
"""Ends of the names of those layers whose inputs (IA)^3 scales, in place of their outputs."""

PeftLayer = peft.tuners.tuners_utils.BaseTunerLayer
Fill = Callable[[PeftLayer, Task], None]


class _Model(nn.Module):
    """A model of one layer to adapt."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


class _ModelWithWidest(_Model):
    """And one for which VeRA's projections are made, that all layers of a real model share."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.widest = nn.utils.skip_init(nn.Linear, WIDEST, WIDEST)


def _by_peft(
    config: peft.PeftConfig, fill: Fill, wrap: Callable[[nn.Module], nn.Module] = _Model
) -> Make:
    def make(task: Task) -> Made:
        own = copy.deepcopy(config)
        own.target_modules = {name for name, _ in wrap(nn.Identity()).named_children()}
        if isinstance(own, peft.IA3Config):
            fed = task.target.diffusers.endswith(tuple(FEEDFORWARD))
            own.feedforward_modules = {"layer"} if fed else set()
        with warnings.catch_warnings():
            # Of a missing CUDA extension, of experiments, and of the bias of a LoRA.
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(wrap(copy.deepcopy(task.plain)), own)
            layer = model.base_model.model.layer
            with torch.no_grad():
                fill(layer, task)
            saved = peft.get_peft_model_state_dict(model)
        mine = "base_model.model.layer."
        return Made(
            {key.removeprefix(mine): value for key, value in saved.items() if key.startswith(mine)},
            partial(merged, layer, task.plain),
            {key: value for key, value in saved.items() if key.count(".") == 1},
        )

    return make


def merged(layer: PeftLayer, plain: nn.Module) -> Change:
    """Returns how a copy of a PEFT layer differs from the plain one, once it is merged."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.merge()
        base = layer.get_base_layer()
        bias = None if plain.bias is None else base.bias - plain.bias
        return Change(base.weight - plain.weight, bias)


def _scaled_by(*linear_ones: str) -> Fill:
    """Fills with random numbers, and scales the parameters named so that the change fits."""

    def fill(layer: PeftLayer, task: Task) -> None:
        found = _parameters(layer)
        for parameter in found.values():
            task.fill(parameter, 1 / math.sqrt(parameter[0].numel()))
        factor = task.deviation / merged(layer, task.plain).weight.std()
        for name in linear_ones:
            if name in found:
                found[name].mul_(factor)

    return fill


def _fill_dora(layer: PeftLayer, task: Task) -> None:
    found = _parameters(layer)
    up, down = found["lora_B"], found["lora_A"]
    fan_in = down[0].numel()
    scale = layer.scaling["default"]
    task.fill(down, 1 / math.sqrt(fan_in))
    task.fill(up, task.deviation * math.sqrt(fan_in / down.shape[0]) / scale)
    task.vary(found["lora_magnitude_vector"])


def _fill_ia3(layer: PeftLayer, task: Task) -> None:
    (factors,) = _parameters(layer).values()
    task.vary(factors, CHANGE)


def _fill_oft(layer: PeftLayer, task: Task) -> None:
    (vectors,) = _parameters(layer).values()
    task.fill(vectors, block_deviation(BLOCK))


def _fill_boft(layer: PeftLayer, task: Task) -> None:
    found = _parameters(layer)
    blocks = found["boft_R"]
    # (B - B^T) / 2 has the deviation of B divided by the root of 2.
    task.fill(blocks, block_deviation(BLOCK) * math.sqrt(2))
    task.vary(found["boft_s"])


def _parameters(layer: PeftLayer) -> dict[str, torch.Tensor]:
    """Returns the trained parameters by the name of PEFT's container for them."""
    return {
        name.partition(".")[0] + (".bias" if name.endswith(".bias") else ""): parameter
        for name, parameter in layer.named_parameters()
        if parameter.requires_grad
    }


def _saved_config(config: peft.PeftConfig, layers: Iterable[Target]) -> dict[str, Any]:
    """Returns what PEFT saves of a configuration whose targets are these layers."""
    saved = config.to_dict() | {"target_modules": [target.diffusers for target in layers]}
    if isinstance(config, peft.IA3Config):
        saved["feedforward_modules"] = FEEDFORWARD
    # Sets and the like are saved as lists.
    return json.loads(json.dumps(saved, default=list))


def _by_diffusers(
    config: peft.PeftConfig,
    fill: Fill,
    selects: Callable[[Target], bool] = in_transformers_and_res_blocks,
) -> Method:
    """One file for both parts of a pipeline, with their configurations in the header."""
    parts: Mapping[str, str] = {"unet": "unet", "clip": "text_encoder"}
    header: dict[str, Any] = {}
    for part, component in parts.items():
        layers = [one for one in targets() if one.part == part and selects(one)]
        saved = _saved_config(config, layers)
        header |= {f"{component}.{key}": value for key, value in saved.items()}
    return Method(
        make=_by_peft(config, fill),
        selects=selects,
        naming="diffusers",
        metadata={"format": "pt", "lora_adapter_metadata": json.dumps(header, sort_keys=True)},
    )


def _by_peft_alone(
    config: peft.PeftConfig,
    fill: Fill,
    selects: Callable[[Target], bool],
    wrap: Callable[[nn.Module], nn.Module] = _Model,
) -> Method:
    """A folder with the tensors and the configuration, as `save_pretrained` makes it."""
    return Method(
        make=_by_peft(config, fill, wrap),
        selects=selects,
        naming="peft",
        metadata={"format": "pt"},
        config=_saved_config(config, filter(selects, targets())),
    )


PEFT_METHODS: dict[str, Method] = {
    "lora_peft": _by_peft_alone(
        peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_bias=True), _scaled_by("lora_B"), with_bias
    ),
    "rslora_peft": _by_diffusers(
        peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=True), _scaled_by("lora_B")
    ),
    "dora_peft": _by_diffusers(
        peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True), _fill_dora
    ),
    "loha_peft": _by_diffusers(
        peft.LoHaConfig(r=RANK, alpha=ALPHA, use_effective_conv2d=True), _scaled_by("hada_w1_a")
    ),
    "lokr_peft": _by_diffusers(
        peft.LoKrConfig(r=RANK // 2, alpha=ALPHA, decompose_both=True, decompose_factor=16),
        _scaled_by("lokr_w1_b"),
    ),
    "ia3_peft": _by_diffusers(peft.IA3Config(), _fill_ia3),
    "oft_peft": _by_diffusers(
        peft.OFTConfig(oft_block_size=BLOCK, r=0, use_cayley_neumann=True), _fill_oft
    ),
    "oft_peft_exact": _by_peft_alone(
        peft.OFTConfig(oft_block_size=BLOCK, r=0, use_cayley_neumann=False), _fill_oft, linear
    ),
    "boft_peft": _by_diffusers(
        *(peft.BOFTConfig(boft_block_size=BLOCK, boft_n_butterfly_factor=1), _fill_boft, values)
    ),
    "vera": _by_peft_alone(
        peft.VeraConfig(r=RANK), _scaled_by("vera_lambda_b"), linear, _ModelWithWidest
    ),
}
