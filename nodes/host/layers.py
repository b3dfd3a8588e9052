"""A module of ComfyUI as a `Layer`, recognised by what it has and not by its class.

The host's linear layers of quantised models are no `torch.nn.Linear`, and other packs bring their
own; all of them have the attributes of the torch layer whose place they take.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...algorithms.errors import UnsupportedLayerError
from ...algorithms.layers import Layer
from .stored import originals

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
        is_compressed=type(module.weight) not in ORDINARY or module.weight.dtype.itemsize < 2,
        read_bias=partial(_bias, module),
        lend_weight=partial(_lent, module) if _only_applies_its_weight(module) else None,
    )


def _layer(module: Any) -> Layer | None:
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return Layer("linear", (module.out_features, module.in_features))
    if hasattr(module, "kernel_size") and hasattr(module, "dilation"):
        return _convolution(module)
    shape = tuple(module.weight.shape)
    if hasattr(module, "quant_state"):  # those of 4-bit loaders may have no features to ask for
        state = _four_bit_state(module)
        return Layer("linear", shape if state is None else tuple(state.shape))
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
    """Whether the module's class is torch's or the host's, and its weight holds its numbers.

    Those that multiply in fp8, which is quicker, have a `scale_weight` even where it is None.
    """
    does_more = hasattr(module, "convert_weight") or hasattr(module, "scale_weight")
    return is_of_torch_or_host(module) and not does_more and not holds_codes(module, module.weight)


def holds_codes(module: Any, held: Any) -> bool:
    """Whether a parameter is kept as numbers that only the code of its layer makes others of.

    Other packs keep int8 or fp8 in an ordinary tensor of the right shape, and beside it a scale that
    they apply in a `forward` of their own. Its name is all that tells of it.
    """
    if type(held) not in ORDINARY:
        return False
    if not held.is_floating_point():
        return True
    if held.dtype.itemsize > 1 or hasattr(module, "convert_weight"):
        return False
    kept = vars(module)
    kept = {**kept, **kept.get("_parameters", {}), **kept.get("_buffers", {})}
    return any("scale" in name and isinstance(kept[name], Tensor | float) for name in kept)


def shapes_of(patcher: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its key, that of the layer where it is packed.

    Patches do not count: one that is in place right now may have made its weight larger.
    """
    before: dict[str, Any] = originals(patcher)
    shapes = {
        key: tuple(before.get(key, tensor).shape)
        for key, tensor in patcher.model.state_dict().items()
    }
    for name, module in patcher.model.named_modules():
        for part in ("weight", "bias"):
            key = f"{name}.{part}"
            tensor: Any = before.get(key, getattr(module, part, None))
            if key not in shapes or (type(tensor) in ORDINARY and tensor.is_floating_point()):
                continue
            layer = _layer(module) if part == "weight" else None
            shapes[key] = tuple(tensor.shape) if layer is None else layer.weight_shape
    return shapes


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
    layer = _layer(module)
    assert layer is not None, "whoever asks for the weight has the layer"
    known = hasattr(module, "cast_bias_weight") or _four_bit_state(module) is not None
    if not known and holds_codes(module, module.weight):
        raise _unknown(module.weight, layer)
    weight = _numbers(module, device, dtype)
    if hasattr(module, "convert_weight"):  # fp8 with a scale, which only `forward` applies
        weight = module.convert_weight(weight)
    if tuple(weight.shape) != layer.weight_shape or not weight.is_floating_point():
        raise _unknown(weight, layer)
    return weight.detach().to(device, dtype)


def _unknown(weight: Tensor, layer: Layer) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"A layer keeps its weight as {list(weight.shape)} of {weight.dtype}, and is "
        f"{list(layer.weight_shape)}: it is quantised in a way that is unknown here, and this "
        "method needs its numbers. Load the model in an unquantised form."
    )


def _numbers(module: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns an ordinary tensor of what a module gives for its weight, before `convert_weight`."""
    if hasattr(module, "cast_bias_weight"):  # layers of GGUF files bring their own
        return ordinary(module.cast_bias_weight(dtype=dtype, device=device)[0], dtype)
    if hasattr(module, "_v"):  # ComfyUI 0.28 pages weights in, and holds them until it is told
        held = comfy.ops.cast_bias_weight(
            module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
        )
        try:
            return ordinary(held[0], dtype).clone()
        finally:
            comfy.ops.uncast_bias_weight(module, *held)
    state = _four_bit_state(module)
    if state is not None and not module.weight.is_floating_point():
        return _of_four_bits(module.weight, state)
    if not is_quantised(module.weight) and hasattr(module, "weight_function"):
        weight, _ = comfy.ops.cast_bias_weight(module, dtype=dtype, device=device, bias_dtype=dtype)
        return ordinary(weight, dtype)
    weight = ordinary(apart(module.weight).to(device), dtype)
    for function in getattr(module, "weight_function", []):
        weight = function(weight)
    return ordinary(weight, dtype)


def is_quantised(weight: Any) -> bool:
    """Whether a weight is a tensor of a class that knows how to dequantise itself."""
    # Torch's own tensors have a method of that name, for torch's own quantised dtypes.
    return type(weight).dequantize is not Tensor.dequantize


def apart(weight: Any) -> Any:
    """Returns a quantised weight as another tensor that shares its numbers.

    In ComfyUI 0.3.75, to cast one changes what the tensor itself takes for its dtype: its layer
    would then multiply in ours. Without this protocol of torch's it comes back as it is.
    """
    if not hasattr(weight, "__tensor_flatten__"):
        return weight
    names, context = weight.__tensor_flatten__()
    parts = {name: getattr(weight, name) for name in names}
    return type(weight).__tensor_unflatten__(parts, context, weight.size(), weight.stride())


def ordinary(weight: Any, dtype: torch.dtype) -> Tensor:
    """Returns a tensor of torch's own class, dequantised in a dtype where it knows how."""
    if is_quantised(weight):
        return weight.to(dtype).dequantize()
    return weight if type(weight) is Tensor else weight.detach().as_subclass(Tensor)


def _four_bit_state(module: Any) -> Any:
    """Returns how bitsandbytes packed a weight, or None where it did not."""
    state = getattr(module.weight, "quant_state", None)
    return getattr(module, "quant_state", None) if state is None else state


def _of_four_bits(packed: Tensor, state: Any) -> Tensor:
    """Returns a weight that bitsandbytes packed (NF4, FP4) as numbers.

    Raises:
        UnsupportedLayerError: Nobody has loaded bitsandbytes.
    """
    functional: Any = sys.modules.get("bitsandbytes.functional")
    if functional is None:
        raise UnsupportedLayerError(
            "A layer is packed in 4 bits by bitsandbytes, which is not loaded, and this method "
            "needs the numbers of its weight. Load the model in another form, such as fp8."
        )
    return functional.dequantize_4bit(ordinary(packed, packed.dtype), state)


def _bias(module: Any, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Returns the bias as the module's own `forward` sees it, or None without one."""
    bias = getattr(module, "bias", None)
    if bias is None:
        return None
    if type(bias) not in ORDINARY and hasattr(module, "get_weight"):
        bias = module.get_weight(bias.to(device), dtype)  # GGUF files have packed ones too
    bias = ordinary(bias.detach(), dtype).to(device, dtype)
    paged = getattr(module, "bias_lowvram_function", None)
    for function in (*([] if paged is None else [paged]), *getattr(module, "bias_function", [])):
        bias = function(bias)
    return bias
