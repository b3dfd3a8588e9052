"""Adapters as other tools make them, and the effect that they have there and here, in float32."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapter_cases import random
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.strength import Placed, hooked_output, merged_bias, merged_weight
from layer_cases import LayerCase, product_cases
from start_comfyui import declare_missing_torchvision_ops

declare_missing_torchvision_ops()  # transformers, which PEFT imports, needs them too
from peft import get_peft_model, get_peft_model_state_dict  # noqa: E402

SINGLE = [case.to(torch.float32) for case in product_cases()]
KNOWN_TO_TOOLS = [case for case in SINGLE if case.layer.padding_mode == "zeros"]
"""LyCORIS and PEFT ignore how a convolution pads."""


def read(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    corrections: bool = True,
) -> AdapterSet:
    """Returns the adapters of a file with all that its header and its configuration say."""
    parsed = parse_tensors(tensors, metadata or {}, "file.safetensors", config)
    assert not parsed.unclaimed
    return parsed.as_trained(corrections=corrections)


def only(adapter_set: AdapterSet) -> Adapter:
    ((adapter,),) = adapter_set.adapters.values()
    return adapter


def of_lycoris(made: nn.Module, case: LayerCase) -> tuple[dict[str, Tensor], Tensor]:
    """Fills a LyCORIS module with numbers: returns its file and the effect of its own forward."""
    for parameter in made.parameters():
        parameter.data.add_(random(*parameter.shape).to(parameter.dtype) * 0.5)
    made.org_forward = case.module.forward
    state = made.state_dict()
    with torch.no_grad():
        effect = made(case.x) - case.module(case.x)
    return {f"lycoris_x.{key}": tensor.detach().clone() for key, tensor in state.items()}, effect


def of_peft(config: Any, case: LayerCase) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    """Fills PEFT's layer `x` with numbers: returns its file, its config and its effect."""
    base = case.module(case.x)
    model = get_peft_model(nn.ModuleDict({"x": case.to(torch.float32).module}), config)
    for name, parameter in model.named_parameters():
        if "default" in name:
            parameter.data.add_(random(*parameter.shape).to(parameter.dtype) * 0.5)
    with torch.no_grad():
        effect = model.base_model.model["x"](case.x) - base
    return get_peft_model_state_dict(model), config.to_dict(), effect


def require_effect(
    case: LayerCase, adapter: Adapter, expected: Tensor, strength: float = 1.0
) -> None:
    """Checks both ways of applying an adapter against the effect of another tool, or a formula."""
    base = case.module(case.x)
    assert expected.norm() > 0.05 * base.norm()
    values = case.weight if adapter.prepares_from_weight else case.weight.to("meta")
    ready = Placed(adapter.prepared(values).to("cpu", case.x.dtype), strength)
    placed = [Placed(adapter, strength)]
    weight = merged_weight(case.weight, placed)
    bias = merged_bias(case.bias, case.layer.weight_shape[0], placed)
    hooked = hooked_output(case.x, base, case.layer, [ready]) - base
    for effect in (hooked, case.with_base(weight, bias) - base):
        assert (effect - expected).norm() < 1e-5 * expected.norm()
