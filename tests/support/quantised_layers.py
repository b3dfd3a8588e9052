"""Linear layers whose weight is quantised in every way that a ComfyUI in use here can hold one.

Those of the host are filled as it fills them, through `load_state_dict`. Those of other packs are
stand-ins that offer what the originals offer, with the real packing: Q8_0 and Q4_0 of GGUF files
(ggml's `block_q8_0` and `block_q4_0`), and NF4 of bitsandbytes (Dettmers et al. 2023, QLoRA,
arXiv 2305.14314, appendix E).
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.lora
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor, nn

OUTPUTS, INPUTS = 8, 192
"""Whole blocks of 64 in every row, of 3 for rotations, of 12 for those in stages."""
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
Q8_0, Q4_0, BF16 = "Q8_0", "Q4_0", "BF16"


@dataclass(frozen=True, eq=False)
class QuantisedCase:
    """A way to hold a weight."""

    name: str
    make: Callable[[Tensor, Tensor], tuple[nn.Module, Tensor | None]]
    """Takes a weight and a bias; gives the module and what its weight is after it was quantised, or
    None where that is only known from what the module computes."""
    exact: bool = True
    """Whether the module multiplies with these numbers, and not with rounded inputs as well."""

    def module(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Returns the module, the numbers of its weight and its bias, in float64."""
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.3
        bias = torch.randn(OUTPUTS, generator=generator).bfloat16().float()
        with torch.inference_mode():  # as ComfyUI runs the node that loads a model
            module, numbers = self.make(weight, bias)
            if numbers is None:
                numbers = (module(torch.eye(INPUTS)) - bias).T
        return module.eval(), numbers.double().clone(), bias.double()


def _filled(module: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.bias = nn.Parameter(bias, requires_grad=False)
    return module


def _cast(dtype: torch.dtype) -> QuantisedCase:
    def make(weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor]:
        stored = weight.to(dtype)
        module = comfy.ops.manual_cast.Linear(*weight.shape[::-1])
        return _filled(module, stored, bias), stored.double()

    return QuantisedCase(str(dtype).removeprefix("torch."), make)


def _scaled(weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor]:
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    module = comfy.ops.scaled_fp8_ops(override_dtype=torch.float8_e4m3fn).Linear(
        *weight.shape[::-1]
    )
    module.scale_weight = nn.Parameter(scale, requires_grad=False)
    return _filled(module, stored, bias), stored.double() * scale.double()


def _mixed(*, full_precision: bool, dtype: torch.dtype = torch.float32) -> QuantisedCase:
    """`mixed_precision_ops` of ComfyUI 0.3.75."""

    def make(weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor]:
        scale = weight.abs().max() / 448
        stored = (weight / scale).to(torch.float8_e4m3fn)
        ops = comfy.ops.mixed_precision_ops(
            {"layer": {"format": "float8_e4m3fn"}}, dtype, full_precision
        )
        holder = nn.Module()
        holder.layer = ops.Linear(*weight.shape[::-1])
        state = {"layer.weight": stored, "layer.weight_scale": scale, "layer.bias": bias}
        holder.load_state_dict(state)
        return holder.layer, stored.double() * scale.double()

    return QuantisedCase("mixed precision" + (", emulated" if full_precision else ""), make)


def _layout(quant_format: str, dtype: torch.dtype = torch.float32) -> QuantisedCase:
    """`mixed_precision_ops` of ComfyUI 0.28, emulated as on a CPU."""

    def make(weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor | None]:
        options = {"convrot_groupsize": 16} if "rot" in quant_format else {}
        name = quant_format.removesuffix(", rotated")
        settings = {"format": name, "full_precision_matrix_mult": True, **options}
        if quant_format.endswith(", rotated"):
            settings["convrot"] = True
        layout = QUANT_ALGOS[name]["comfy_tensor_layout"]
        wishes = {"scale": "recalculate"} if "float8" in name else {}
        if name == "int8_tensorwise":
            wishes["per_channel"] = True
        wishes |= {key: value for key, value in settings.items() if key.startswith("convrot")}
        quantised = QuantizedTensor.from_float(weight, layout, **wishes)
        ops = comfy.ops.mixed_precision_ops(compute_dtype=dtype)
        holder = nn.Module()
        holder.layer = ops.Linear(*weight.shape[::-1])
        marker = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
        state = {**quantised.state_dict("layer.weight"), "layer.comfy_quant": marker}
        holder.load_state_dict(state | {"layer.bias": bias})
        return holder.layer, None

    rounded = "int8" in quant_format or "w4a4" in quant_format
    return QuantisedCase(f"{quant_format} with scales", make, exact=not rounded)


def of_the_host_in(dtype: torch.dtype) -> QuantisedCase:
    """Returns the host's own mixed precision for a model that computes in a dtype."""
    if IS_NEW:
        return _layout("float8_e4m3fn", dtype)
    return _mixed(full_precision=False, dtype=dtype)


class GgmlTensor(Tensor):
    """Packed bytes that give the shape of what they stand for."""

    tensor_type: str
    tensor_shape: torch.Size

    @staticmethod
    def of(data: Tensor, kind: str, shape: torch.Size) -> "GgmlTensor":
        tensor = data.as_subclass(GgmlTensor)
        tensor.tensor_type, tensor.tensor_shape = kind, shape
        return tensor

    def to(self, *args: Any, **kwargs: Any) -> "GgmlTensor":
        moved = GgmlTensor.of(super().to(*args, **kwargs), self.tensor_type, self.tensor_shape)
        moved.patches = getattr(self, "patches", [])
        return moved

    def detach(self) -> "GgmlTensor":
        return self

    def clone(self, **_: Any) -> "GgmlTensor":
        return self

    @property
    def shape(self) -> torch.Size:
        return getattr(self, "tensor_shape", None) or self.size()


def pack(weight: Tensor, kind: str) -> GgmlTensor:
    """Returns a weight as ggml stores it: blocks of 32 numbers of a row behind their scale."""
    blocks = weight.reshape(-1, 32)
    if kind == Q8_0:
        scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
        numbers = (blocks / scale.float()).round().clamp(-128, 127).to(torch.int8).view(torch.uint8)
    else:
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scale = (largest / -8).half()
        steps = (blocks / scale.float() + 8.5).clamp(0, 15).to(torch.uint8)
        numbers = steps[:, :16] | (steps[:, 16:] << 4)
    rows = torch.cat([scale.view(torch.uint8), numbers], 1).reshape(weight.shape[0], -1)
    return GgmlTensor.of(rows, kind, weight.shape)


def unpack(tensor: GgmlTensor) -> Tensor:
    """Returns the numbers of a packed weight, in float32."""
    data = tensor.as_subclass(Tensor)
    if tensor.tensor_type == BF16:
        return data.view(torch.bfloat16).float()
    blocks = data.reshape(-1, 34 if tensor.tensor_type == Q8_0 else 18)
    scale = blocks[:, :2].contiguous().view(torch.float16).float()
    rest = blocks[:, 2:].contiguous()
    if tensor.tensor_type == Q8_0:
        numbers = rest.view(torch.int8).float()
    else:
        numbers = torch.cat([rest & 15, rest >> 4], 1).float() - 8
    return (scale * numbers).reshape(tensor.tensor_shape)


class GgmlLinear(comfy.ops.manual_cast.Linear):
    """What ComfyUI-GGUF's `GGMLOps.Linear` offers."""

    comfy_cast_weights = True

    def __init__(self, weight: GgmlTensor, bias: GgmlTensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def is_ggml_quantized(self) -> bool:
        return True

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, _: bool) -> None:
        for name in ("weight", "bias"):  # for the estimate of memory only
            tensor = getattr(self, name).as_subclass(Tensor)
            destination[prefix + name] = torch.zeros_like(tensor, device="meta")

    def get_weight(self, tensor: GgmlTensor, dtype: torch.dtype) -> Tensor:
        weight = unpack(tensor).to(dtype)
        for patches, key in getattr(tensor, "patches", []):
            weight = comfy.lora.calculate_weight(patches, weight, key)
        return weight

    def cast_bias_weight(
        self,
        input: Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        bias_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        if input is not None:
            dtype, device = dtype or input.dtype, device or input.device
        assert dtype is not None
        bias = self.get_weight(self.bias.to(device), dtype).to(bias_dtype or dtype)
        return self.get_weight(self.weight.to(device), dtype), bias

    def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
        weight, bias = self.cast_bias_weight(input)
        return nn.functional.linear(input, weight, bias)


class GgufPatcher(ModelPatcher):
    """Leaves patches of a packed weight beside it, as ComfyUI-GGUF's patcher does."""

    def patch_weight_to_device(self, key: str, *_: Any, **__: Any) -> None:
        if key in self.patches:
            comfy.utils.get_attr(self.model, key).patches = [(self.patches[key], key)]

    def unpatch_model(self, *args: Any, **kwargs: Any) -> None:
        for key in self.patches:
            comfy.utils.get_attr(self.model, key).patches = []
        super().unpatch_model(*args, **kwargs)


def _gguf(kind: str) -> QuantisedCase:
    def make(weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor]:
        packed = pack(weight, kind)
        short = GgmlTensor.of(bias.bfloat16().view(torch.uint8), BF16, bias.shape)
        return GgmlLinear(packed, short), unpack(packed)

    return QuantisedCase(f"gguf {kind}", make)


NF4_VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class NormalFloats(nn.Module):
    """What the linear layer of ComfyUI_bitsandbytes_NF4 offers: no features, bytes in a column."""

    def __init__(self, packed: Tensor, state: SimpleNamespace, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.quant_state = state

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize_4bit(self.weight, self.quant_state)
        return nn.functional.linear(x, weight.to(x.dtype), self.bias.to(x.dtype))


def dequantize_4bit(packed: Tensor, quant_state: SimpleNamespace) -> Tensor:
    """Does what the function of this name in bitsandbytes does."""
    values = torch.tensor(NF4_VALUES)
    steps = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).reshape(-1, 64)
    numbers = values[steps.long()] * quant_state.absmax[:, None]
    return numbers.reshape(quant_state.shape)


def _nf4(weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor]:
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1)
    near = (blocks / largest[:, None])[..., None] - torch.tensor(NF4_VALUES)
    steps = near.abs().argmin(-1).to(torch.uint8).reshape(-1, 2)
    packed = (steps[:, :1] << 4) | steps[:, 1:]
    state = SimpleNamespace(absmax=largest, shape=weight.shape)
    numbers = dequantize_4bit(packed, state)
    return NormalFloats(packed, state, bias), numbers


@contextmanager
def bitsandbytes_loaded() -> Iterator[None]:
    """Puts a stand-in where the module is, as if a loader of NF4 files had imported it."""
    before = sys.modules.get("bitsandbytes.functional")
    functional = ModuleType("bitsandbytes.functional")
    functional.dequantize_4bit = dequantize_4bit
    sys.modules["bitsandbytes.functional"] = functional
    try:
        yield
    finally:
        del sys.modules["bitsandbytes.functional"]
        if before is not None:
            sys.modules["bitsandbytes.functional"] = before


NF4 = QuantisedCase("nf4", _nf4)
IS_NEW = not hasattr(comfy.ops, "scaled_fp8_ops")
"""ComfyUI 0.28 has tensors that know their layout for all formats; 0.3.75 has layers for them."""
FORMATS = (*QUANT_ALGOS, "int8_tensorwise, rotated") if IS_NEW else ()
OF_THE_HOST = (
    *(_cast(dtype) for dtype in FP8),
    *([] if IS_NEW else [QuantisedCase("scaled fp8", _scaled)]),
    *([] if IS_NEW else [_mixed(full_precision=each) for each in (True, False)]),
    *(_layout(name) for name in FORMATS),
)
QUANTISED_CASES = (*OF_THE_HOST, _gguf(Q8_0), _gguf(Q4_0), NF4)
