"""One layer with an adapter: as another tool has it, and as we have it after reading its file."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import lycoris.modules as lycoris
import pytest
import torch
from torch import Tensor, nn

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.strength import Placed
from import_peft import peft
from layer_cases import LayerCase, few, product_cases

__all__ = ["lycoris", "peft"]

EXACT = [case for case in product_cases() if case.layer.padding_mode == "zeros"]
"""LyCORIS and PEFT ignore how a convolution pads."""
SINGLE = [case.to(torch.float32) for case in EXACT]
"""For tools that compute some of it in float32 whatever they are given."""


def covering(cases: Sequence[LayerCase], variants: Mapping[str, Any]) -> list[Any]:
    """Returns parameters: the first variant on every layer, the others on a few, since golden
    files have their numbers.
    """
    first, *others = variants.items()
    pairs = [(case, first) for case in cases]
    pairs += [(case, other) for other in others for case in few(cases)]
    return [
        pytest.param(case, variant, id=f"{name}, {case.name}" if name else case.name)
        for case, (name, variant) in pairs
    ]


def read_all(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    corrections: bool = True,
) -> AdapterSet:
    """Returns the adapters of a file, completed by what stands in its header and beside it."""
    parsed = parse_tensors(tensors, metadata or {}, "file", config)
    assert not parsed.unclaimed
    return parsed.as_trained(corrections=corrections)


def only(adapter_set: AdapterSet) -> Adapter:
    ((adapter,),) = adapter_set.adapters.values()
    return adapter


def read(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Adapter:
    """Returns the one adapter of a file."""
    return only(read_all(tensors, metadata, config))


def fill(module: nn.Module) -> None:
    """Gives every trainable tensor numbers of both signs; magnitudes stay what they are."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and "dora" not in name and "magnitude" not in name:
            numbers = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(numbers)


def of_lycoris(
    kind: type[lycoris.base.LycorisBaseModule], case: LayerCase, **settings: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns what a module of LyCORIS adds to the output in its forward, and what it saves."""
    module = kind("lycoris_x", case.module, **settings).to(case.x.dtype).eval()
    fill(module)
    if getattr(module, "wd", False):
        magnitudes = module.dora_scale.data
        magnitudes.add_(torch.arange(magnitudes.numel()).view_as(magnitudes) / 4)
    with torch.no_grad():
        added = module(case.x) - case.module(case.x)
    saved = {f"lycoris_x.{name}": tensor.detach() for name, tensor in module.state_dict().items()}
    return added, saved


def given_to_peft(
    module: nn.Module, config: peft.PeftConfig, *, in_memory: bool = False
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Makes PEFT's own model of one layer, filled with numbers.

    Args:
        module: The layer, which PEFT may write to.
        config: Names `layer` as its target.
        in_memory: Whether the tensors keep the adapter's name, as in a state dict not saved by PEFT.

    Returns:
        The model, what PEFT saves, and its configuration.
    """
    model = peft.get_peft_model(nn.Sequential(OrderedDict(layer=module)), config)
    model = model.to(module.weight.dtype).eval()
    fill(model)
    own = model.state_dict()
    raw = {key: value for key, value in own.items() if "base_layer" not in key}
    saved = raw if in_memory else peft.get_peft_model_state_dict(model)
    return model, {key: value.detach().clone() for key, value in saved.items()}, written(config)


def of_peft(
    config: peft.PeftConfig, case: LayerCase, *, in_memory: bool = False
) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    """Returns what PEFT adds to the output in its forward, what it saves, and its configuration."""
    layer = case.to(case.x.dtype).module
    model, saved, config_file = given_to_peft(layer, config, in_memory=in_memory)
    with torch.no_grad():
        added = model(case.x) - case.module(case.x)
    return added, saved, config_file


def written(config: peft.PeftConfig) -> dict[str, Any]:
    """Returns a configuration as its file has it: sets are lists, and kinds are strings."""
    return json.loads(json.dumps(config.to_dict(), default=list))


def change(case: LayerCase, adapter: Adapter, strength: float = 1.0) -> Tensor:
    """Returns what a hook adds to the output of a layer."""
    return case.hooked([Placed(adapter, strength)]) - case.module(case.x)


def weight_effect(case: LayerCase, weight: Tensor) -> Tensor:
    """Returns what another weight adds to the output."""
    return case.with_base(weight.to(case.x.dtype), case.bias) - case.module(case.x)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Returns the error relative to the effect; infinite where there is no effect to compare."""
    size = expected.norm().item()
    return (found - expected).norm().item() / size if size else float("inf")


def require_effect(
    case: LayerCase, adapter: Adapter, expected: Tensor, strength: float = 1.0
) -> None:
    """Checks both ways of applying an adapter against the effect of another tool, or a formula."""
    base = case.module(case.x)
    assert expected.norm() > 0.05 * base.norm()
    placed = [Placed(adapter, strength)]
    for output in (case.hooked(placed), case.merged(placed)):
        assert relative_error(output - base, expected) < 1e-5
