"""A module of ComfyUI as a `Layer`, recognised by what it has and not by its class.

The host's linear layers of quantised models are no `torch.nn.Linear`, and other packs bring their
own; all of them have the attributes of the torch layer whose place they take.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ...algorithms.errors import UnsupportedLayerError
from ...algorithms.layers import Layer

ORDINARY = (Tensor, nn.Parameter)
"""Of quantised weights there are classes of tensors of their own."""


def layer_of(module: Any) -> Layer | None:
    """Returns the layer that a module is, or None if no hook can serve it."""
    if getattr(module, "weight", None) is None:
        return None
    layer = _layer(module)
    if layer is None:
        return None
    return replace(
        layer,
        read_weight=partial(_weight, module),
        read_bias=partial(_bias, module),
        lend_weight=partial(_lent, module) if _only_applies_its_weight(module) else None,
    )


def _layer(module: Any) -> Layer | None:
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return Layer("linear", (module.out_features, module.in_features))
    if hasattr(module, "kernel_size") and hasattr(module, "dilation"):
        return _convolution(module)
    shape = tuple(module.weight.shape)
    if hasattr(module, "num_groups") and hasattr(module, "eps"):
        return Layer("group_norm", shape, groups=module.num_groups, eps=module.eps)
    if hasattr(module, "normalized_shape") and hasattr(module, "eps"):
        # The host's RMS norm has a bias too, which is None: only its name tells it apart.
        rms = any("RMS" in base.__name__ for base in type(module).__mro__)
        kind = "rms_norm" if rms else "layer_norm"
        return Layer(kind, shape, eps=module.eps)
    return None


def _convolution(module: Any) -> Layer | None:
    """Returns a convolution, unless its class does more in `forward` than convolve.

    A causal convolution of a video model pads its input there: its geometry is not that of its
    attributes. So `forward` must come from a class that is called Conv1d, Conv2d or Conv3d.
    """
    owner = type(module).forward.__qualname__.rpartition(".")[0].rpartition(".")[2]
    plain = owner in ("Conv1d", "Conv2d", "Conv3d") and not module.transposed
    if not plain or isinstance(module.padding, str):
        return None
    return Layer(
        "conv",
        (module.out_channels, module.in_channels // module.groups, *module.kernel_size),
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.padding_mode,
    )


def is_of_torch_or_host(module: Any) -> bool:
    """Whether what a module computes is that of its class in torch or in the host."""
    owner = getattr(getattr(type(module), "forward", None), "__module__", "")
    return owner == "comfy.ops" or owner.startswith("torch.nn.modules.")


def _only_applies_its_weight(module: Any) -> bool:
    """Whether the module's class is torch's or the host's, and its weight holds its numbers."""
    return is_of_torch_or_host(module) and not hasattr(module, "convert_weight")


@contextmanager
def _lent(module: Any, x: Tensor) -> Generator[Tensor | None, None, None]:
    """Lends the weight for an input as the module's own `forward` does: cast, moved, patched."""
    weight = module.weight
    if type(x) is not Tensor or type(weight) not in ORDINARY or not weight.is_floating_point():
        yield None
    elif not hasattr(module, "weight_function"):
        yield weight if (weight.dtype, weight.device) == (x.dtype, x.device) else None
    else:
        comfy.ops.run_every_op()  # where the host looks whether it shall stop
        lent, bias, stream = comfy.ops.cast_bias_weight(module, x, offloadable=True)
        try:
            yield lent
        finally:
            comfy.ops.uncast_bias_weight(module, lent, bias, stream)


def _weight(module: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns the weight as the module's own `forward` sees it: cast, dequantised, patched.

    Raises:
        UnsupportedLayerError: What the module gives are not the numbers of its weight.
    """
    if hasattr(module, "cast_bias_weight"):  # layers of GGUF files bring their own
        weight = module.cast_bias_weight(dtype=dtype, device=device)[0]
    elif hasattr(module, "weight_function"):
        weight, _ = comfy.ops.cast_bias_weight(module, dtype=dtype, device=device, bias_dtype=dtype)
    else:
        weight = module.weight
    if type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize"):
        weight = weight.dequantize()
    if hasattr(module, "convert_weight"):  # fp8 with a scale, which only `forward` applies
        weight = module.convert_weight(weight)
    layer = _layer(module)
    assert layer is not None, "whoever asks for the weight has the layer"
    if tuple(weight.shape) != layer.weight_shape or not weight.is_floating_point():
        raise UnsupportedLayerError(
            f"A layer gives its weight as {list(weight.shape)} of {weight.dtype}, and is "
            f"{list(layer.weight_shape)}: it is quantised in a way that is unknown here, and this "
            "method needs its numbers. Load the model in an unquantised form."
        )
    return weight.detach().to(device, dtype)


def _bias(module: Any, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Returns the bias as the module's own `forward` sees it, or None without one."""
    bias = getattr(module, "bias", None)
    if bias is None:
        return None
    bias = bias.detach().to(device, dtype)
    for function in getattr(module, "bias_function", []):
        bias = function(bias)
    return bias
