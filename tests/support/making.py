"""What all makers of adapters share: the layers to adapt, random numbers, reading off an effect."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from small_world import (
    CLIP_PREFIX,
    SMALL_UNET,
    UNET_PREFIX,
    LayerShape,
    clip_layers,
    diffusers_name,
    unet_layers,
)

Part = Literal["unet", "clip"]
Naming = Literal["kohya", "kohya_oft", "underscored", "dotted", "diffusers", "peft"]

RANK = 8
ALPHA = 6.0
CONV_RANK = 4
CONV_ALPHA = 2.0
CHANGE = 0.4
"""Deviation of a change of weight, relative to that of the weights of the small checkpoint."""


@dataclass(frozen=True)
class Target:
    """One layer of the small checkpoint that an adapter changes."""

    part: Part
    layer: LayerShape

    @property
    def weight(self) -> str:
        """The key of the layer's weight in the checkpoint."""
        return f"{self._stem}.weight"

    @property
    def bias(self) -> str:
        """The key of the layer's bias in the checkpoint."""
        return f"{self._stem}.bias"

    @property
    def _stem(self) -> str:
        return (UNET_PREFIX if self.part == "unet" else CLIP_PREFIX) + self.layer.name

    @property
    def diffusers(self) -> str:
        """What diffusers and transformers call the layer in its own model."""
        name = self.layer.name
        return diffusers_name(SMALL_UNET, name) if self.part == "unet" else f"text_model.{name}"

    def module_name(self, naming: Naming) -> str:
        """Returns what a file of this naming calls the layer."""
        name, diffusers = self.layer.name, self.diffusers
        if self.part == "unet":
            return {
                "kohya": f"lora_unet_{diffusers.replace('.', '_')}",
                "kohya_oft": f"oft_unet_{diffusers.replace('.', '_')}",
                "underscored": f"lora_unet_{name.replace('.', '_')}",
                "dotted": f"diffusion_model.{name}",
                "diffusers": f"unet.{diffusers}",
                "peft": f"base_model.model.{diffusers}",
            }[naming]
        return {
            "kohya": f"lora_te_{diffusers.replace('.', '_')}",
            "underscored": f"lora_te1_{diffusers.replace('.', '_')}",
            "dotted": f"text_encoders.clip_l.transformer.{diffusers}",
            "diffusers": f"text_encoder.{diffusers}",
            "peft": f"base_model.model.{diffusers}",
        }[naming]

    def module(self, checkpoint: Mapping[str, Tensor]) -> nn.Module:
        """Builds the layer with its weight and bias from the checkpoint."""
        shape = self.layer.weight
        module: nn.Module
        if self.layer.kind == "linear":
            module = nn.utils.skip_init(nn.Linear, shape[1], shape[0], bias=self.layer.bias)
        elif self.layer.kind == "conv":
            kernel = shape[2:]
            padding = tuple(size // 2 for size in kernel)
            # Stride 1 everywhere: it is not part of the weight, and probing needs every tap.
            module = nn.utils.skip_init(
                *(nn.Conv2d, shape[1], shape[0], kernel), padding=padding, bias=self.layer.bias
            )
        elif self.layer.kind == "layer_norm":
            module = nn.LayerNorm(shape[0])
        else:
            module = nn.GroupNorm(32, shape[0])
        module.requires_grad_(False)
        module.weight.copy_(checkpoint[self.weight].float())
        if self.layer.bias:
            module.bias.copy_(checkpoint[self.bias].float())
        return module


@dataclass(frozen=True)
class Change:
    """The change of a layer's weight, and of its bias, at full strength."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Made:
    """An adapter of one layer: its tensors as a file has them, and what they do when asked."""

    tensors: Mapping[str, Tensor]
    """What follows the module's name in a key -> tensor."""
    change: Callable[[], Change]
    common: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that all layers of the file share, by their whole keys."""


@dataclass(frozen=True)
class Task:
    """One layer to make an adapter for."""

    target: Target
    plain: nn.Module
    generator: torch.Generator
    rank: int = 0
    """Ranks in use of those of a DyLoRA; 0 for all."""

    @property
    def has_kernel(self) -> bool:
        """Whether the layer is a convolution with more than one tap."""
        return any(size > 1 for size in self.plain.weight.shape[2:])

    @property
    def sizes(self) -> tuple[int, float]:
        """Rank and alpha as trainers give them: convolutions with a kernel get less."""
        return (CONV_RANK, CONV_ALPHA) if self.has_kernel else (RANK, ALPHA)

    @property
    def deviation(self) -> float:
        """The deviation that the change of the layer's weight shall have."""
        return CHANGE * self.plain.weight.std().item()

    def numbers(self, *shape: int, deviation: float = 1.0) -> Tensor:
        """Returns new random numbers around 0."""
        return torch.randn(shape, generator=self.generator) * deviation

    def fill(
        self, tensor: Tensor, deviation: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> None:
        """Fills a parameter with numbers that a file of this dtype keeps exactly."""
        numbers = self.numbers(*tensor.shape, deviation=deviation)
        with torch.no_grad():
            tensor.copy_(numbers.to(dtype).float())

    def vary(self, tensor: Tensor, deviation: float = 0.2) -> None:
        """Multiplies each number of a parameter by one around 1."""
        with torch.no_grad():
            tensor.mul_(1 + self.numbers(*tensor.shape, deviation=deviation))


Make = Callable[[Task], Made]


@dataclass(frozen=True)
class Method:
    """How files of one method are made."""

    make: Make
    selects: Callable[[Target], bool]
    naming: Naming = "kohya"
    dtype: torch.dtype = torch.float32
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] | None = None
    """What an `adapter_config.json` beside the file says; None for no such file."""


def targets() -> Iterator[Target]:
    """Every layer of the small checkpoint's UNet and text encoder."""
    for layer in unet_layers(SMALL_UNET):
        yield Target("unet", layer)
    for layer in clip_layers():
        yield Target("clip", layer)


def probe(adapted: Callable[[Tensor], Tensor], plain: nn.Module) -> Change:
    """Reads off the outputs of a layer how its weight and bias were changed.

    Args:
        adapted: The forward with the adapter.
        plain: The same layer without it.
    """
    with torch.no_grad():
        if isinstance(plain, nn.Linear):
            x = torch.eye(plain.in_features)
            bias = adapted(torch.zeros_like(x[:1]))[0]
            weight = (adapted(x) - bias).T
        elif isinstance(plain, nn.Conv2d):
            # One unit impulse for each input channel, in the middle of a field of the kernel's
            # size: the output then is the kernel of that channel, mirrored.
            inputs = plain.in_channels
            x = torch.zeros(inputs, inputs, *plain.kernel_size)
            row, column = (size // 2 for size in plain.kernel_size)
            x[range(inputs), range(inputs), row, column] = 1
            bias = adapted(torch.zeros_like(x[:1]))[0, :, 0, 0]
            weight = (adapted(x) - bias[:, None, None]).transpose(0, 1).flip(2, 3)
        else:
            return _probe_norm(adapted, plain)
        weight = weight - plain.weight
        return Change(weight, None if plain.bias is None else bias - plain.bias)


def _probe_norm(adapted: Callable[[Tensor], Tensor], plain: nn.Module) -> Change:
    channels = plain.weight.shape[0]
    # A constant input has no deviation: what comes out is the bias.
    constant = torch.zeros(1, channels)
    bias = (adapted(constant) - plain(constant))[0]
    x = torch.randn(64, channels, generator=torch.Generator().manual_seed(0))
    normed = (plain(x) - plain.bias) / plain.weight
    scaled = adapted(x) - plain(x) - bias
    return Change((normed * scaled).sum(0) / normed.square().sum(0), bias)


def low_rank_change(up: Tensor, down: Tensor, scale: float, plain: nn.Module) -> Change:
    """Returns scale * up @ down as a change of the layer's weight, computed in float64."""
    product = up.double().flatten(1) @ down.double().flatten(1)
    return Change((scale * product).reshape(plain.weight.shape).float())


def low_rank_factors(task: Task, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Returns up and down, with the axes of the layer's kernel, whose scaled product fits it."""
    outputs, *inputs = task.plain.weight.shape
    fan_in = math.prod(inputs)
    down = task.numbers(rank, *inputs, deviation=1 / math.sqrt(fan_in))
    deviation = task.deviation * math.sqrt(fan_in / rank) / scale
    up = task.numbers(outputs, rank, *[1] * (len(inputs) - 1), deviation=deviation)
    return up, down


def block_deviation(size: int, stages: int = 1) -> float:
    """Returns the deviation of skew-symmetric blocks whose rotations change a weight by CHANGE.

    A rotation near the identity is 1 + 2Q, and each of its rows mixes `size` others.
    """
    return CHANGE / (2 * math.sqrt(size * stages))


def in_transformers(target: Target) -> bool:
    """What LoRA-LierLa trains: the linear layers and 1x1 convolutions of the transformers."""
    if target.layer.kind not in ("linear", "conv"):
        return False
    name = target.layer.name
    return target.part == "clip" or "transformer_blocks" in name or ".proj_" in name


def in_some_transformers(target: Target) -> bool:
    """Of the text encoder every third layer: all of it takes most of the time."""
    name = target.layer.name
    if not in_transformers(target):
        return False
    return target.part == "unet" or int(name.split(".")[2]) % 3 == 0


def in_transformers_and_res_blocks(target: Target) -> bool:
    """What LoRA-C3Lier trains beside that: all of the residual blocks, down and up sampling."""
    inner = (".in_layers.2", ".emb_layers.1", ".out_layers.3", ".skip_connection", ".op", ".conv")
    return in_some_transformers(target) or target.layer.name.endswith(inner)


def without_kernels(target: Target) -> bool:
    """The linear layers and 1x1 convolutions of those."""
    return in_transformers_and_res_blocks(target) and set(target.layer.weight[2:]) <= {1}


def linear(target: Target) -> bool:
    """The linear layers of those."""
    return in_transformers_and_res_blocks(target) and target.layer.kind == "linear"


def with_bias(target: Target) -> bool:
    """Those that have a bias."""
    return in_transformers_and_res_blocks(target) and target.layer.bias


def values(target: Target) -> bool:
    """Values of attention and the 1x1 convolutions before it, for methods that take long."""
    ends = (".to_v", ".v_proj", ".proj_in")
    return in_some_transformers(target) and target.layer.name.endswith(ends)


def few_products(target: Target) -> bool:
    """Enough layers for a clear effect, few enough for a small file: differences are as large as
    the weights."""
    if target.layer.kind not in ("linear", "conv"):
        return False
    if target.part == "clip":
        return target.layer.name.endswith(".v_proj")
    return target.layer.name.startswith(("input_blocks.0", "middle_block", "output_blocks.3"))


def norms(target: Target) -> bool:
    """All layers that normalise."""
    return target.layer.kind in ("layer_norm", "group_norm")
