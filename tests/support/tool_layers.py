"""One layer with an adapter as other tools compute it, and as we do after reading what they save."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.formats.parse import parse_tensors
from anyadapter.algorithms.strength import Placed, hooked_output
from layer_cases import LayerCase
from start_comfyui import declare_missing_torchvision_ops

declare_missing_torchvision_ops()  # PEFT imports torchvision, so tests take both tools from here

import lycoris.modules as lycoris  # noqa: E402
import peft  # noqa: E402

__all__ = ["change", "fill", "lycoris", "of_lycoris", "of_peft", "peft", "read", "relative_error"]


def read(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Adapter:
    """The one adapter of a file, completed by what stands in its header and beside it."""
    parsed = parse_tensors(tensors, metadata or {}, "file", config).as_trained()
    assert not parsed.unclaimed
    (((adapter,)),) = parsed.adapters.values()
    return adapter


def change(case: LayerCase, adapter: Adapter) -> Tensor:
    """What a hook adds to the output of a layer at strength 1."""
    weight = case.weight if adapter.prepares_from_weight else case.weight.to("meta")
    placed = Placed(adapter.prepared(weight).to("cpu", case.x.dtype), 1.0)
    y = case.module(case.x)
    return hooked_output(case.x, y, case.layer, [placed]) - y


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The error relative to the effect; infinite where there is no effect to compare."""
    size = expected.norm().item()
    return (found - expected).norm().item() / size if size else float("inf")


def fill(module: nn.Module) -> None:
    """Gives every trainable tensor numbers of both signs; magnitudes stay what they are."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and "dora" not in name and "magnitude" not in name:
            numbers = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.copy_(numbers)


def of_lycoris(
    kind: type[lycoris.base.LycorisBaseModule], case: LayerCase, **settings: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a module of LyCORIS adds to the output in its forward, and what it saves."""
    module = kind("x", case.module, **settings).double().eval()
    fill(module)
    if getattr(module, "wd", False):
        magnitudes = module.dora_scale.data
        magnitudes.add_(torch.arange(magnitudes.numel()).view_as(magnitudes) / 4)
    with torch.no_grad():
        added = module(case.x) - case.module(case.x)
    saved = {f"x.{name}": tensor.detach() for name, tensor in module.state_dict().items()}
    return added, saved


def of_peft(
    config: peft.PeftConfig, case: LayerCase, *, in_memory: bool = False
) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    """What PEFT adds to the output in its forward, what it saves, and its configuration.

    Args:
        config: Names `layer` as its target.
        case: The layer.
        in_memory: Whether the tensors keep the adapter's name, as in a state dict not saved by PEFT.
    """
    base = case.to(torch.float64).module
    model = nn.Sequential(OrderedDict(layer=base))
    peft.inject_adapter_in_model(config, model)
    model = model.double().eval()
    fill(model)
    with torch.no_grad():
        added = model(case.x) - case.module(case.x)
    if in_memory:
        own = model.state_dict()
        saved = {key: value for key, value in own.items() if "base_layer" not in key}
    else:
        saved = peft.get_peft_model_state_dict(model)
    # As its file has it: sets are lists, and kinds are strings.
    written = json.loads(json.dumps(config.to_dict(), default=list))
    return added, {key: value.detach() for key, value in saved.items()}, written
