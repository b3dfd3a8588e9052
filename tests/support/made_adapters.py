"""Adapters for the small checkpoint, made by LyCORIS' own modules, and checkpoints they are baked into.

The pack has no part in this file: what it loads is compared with what LyCORIS computes. The
effect of a layer is read off the *forward* of its LyCORIS module by probing, not from
`get_diff_weight` or `merge_to`, which are wrong for some methods. Where LyCORIS has no method
(sd-scripts' DyLoRA), or has it with a defect (its own DyLoRA), the effect is a formula in float64.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import torch
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.norms import NormModule
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from small_world import (
    CLIP_PREFIX,
    SMALL_UNET,
    UNET_PREFIX,
    LayerShape,
    clip_layers,
    diffusers_name,
    unet_layers,
    write_atomically,
)

Part = Literal["unet", "clip"]
Naming = Literal["kohya", "underscored", "dotted", "diffusers"]

RANK = 8
ALPHA = 6.0
CONV_RANK = 4
CONV_ALPHA = 2.0
DYLORA_BLOCK = 2
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

    def module_name(self, naming: Naming) -> str:
        """Returns what a file of this naming calls the layer."""
        name = self.layer.name
        if self.part == "unet":
            original, diffusers = name, diffusers_name(SMALL_UNET, name)
            return {
                "kohya": f"lora_unet_{diffusers.replace('.', '_')}",
                "underscored": f"lora_unet_{original.replace('.', '_')}",
                "dotted": f"diffusion_model.{original}",
                "diffusers": f"unet.{diffusers}",
            }[naming]
        return {
            "kohya": f"lora_te_text_model_{name.replace('.', '_')}",
            "underscored": f"lora_te1_text_model_{name.replace('.', '_')}",
            "dotted": f"text_encoders.clip_l.transformer.text_model.{name}",
            "diffusers": f"text_encoder.text_model.{name}",
        }[naming]

    def module(self, checkpoint: Mapping[str, Tensor]) -> nn.Module:
        """Builds the layer with its weight and bias from the checkpoint."""
        shape = self.layer.weight
        module: nn.Module
        if self.layer.kind == "linear":
            module = nn.Linear(shape[1], shape[0], bias=self.layer.bias)
        elif self.layer.kind == "conv":
            kernel = shape[2:]
            padding = tuple(size // 2 for size in kernel)
            # Stride 1 everywhere: it is not part of the weight, and probing needs every tap.
            module = nn.Conv2d(shape[1], shape[0], kernel, padding=padding, bias=self.layer.bias)
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
    change: Callable[[], Change]


Make = Callable[[nn.Module, torch.Generator, int], Made]
"""A layer, a source of random numbers and a rank (0: all) -> an adapter."""


@dataclass(frozen=True)
class Method:
    """How files of one method are made."""

    make: Make
    selects: Callable[[Target], bool]
    naming: Naming = "kohya"
    dtype: torch.dtype = torch.float32
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Applied:
    """A method at its strengths; `rank` cuts a DyLoRA, 0 leaves it whole."""

    method: str
    strength_model: float = 1.0
    strength_clip: float = 1.0
    rank: int = 0


def write_adapter(method: str, checkpoint: Path, path: Path) -> None:
    """Writes the adapter file of a method, as the tool that trains it would."""
    made = METHODS[method]
    tensors = {
        f"{target.module_name(made.naming)}.{suffix}": _stored(tensor, made.dtype)
        for target, adapter in _make_all(method, checkpoint, rank=0)
        for suffix, tensor in adapter.tensors.items()
    }
    write_atomically(tensors, path, made.metadata)


def bake(
    method: str,
    checkpoint: Path,
    path: Path,
    *,
    strength_model: float,
    strength_clip: float,
    rank: int = 0,
) -> None:
    """Writes the checkpoint with the effect of one adapter in its weights."""
    bake_sum([Applied(method, strength_model, strength_clip, rank)], checkpoint, path)


def bake_sum(applied: Sequence[Applied], checkpoint: Path, path: Path) -> None:
    """Writes the checkpoint with W + sum of strength * change(W), each change from the base."""
    tensors = load_file(checkpoint)
    for one in applied:
        for target, change in changes(one.method, checkpoint, one.rank).items():
            strength = one.strength_model if target.part == "unet" else one.strength_clip
            if strength == 0:
                continue
            tensors[target.weight] = tensors[target.weight] + strength * change.weight
            if change.bias is not None:
                tensors[target.bias] = tensors[target.bias] + strength * change.bias
    write_atomically(tensors, path)


@lru_cache(maxsize=2)
def changes(method: str, checkpoint: Path, rank: int) -> dict[Target, Change]:
    """Returns what a method does to each layer at full strength."""
    return {target: made.change() for target, made in _make_all(method, checkpoint, rank)}


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


def _make_all(method: str, checkpoint: Path, rank: int) -> Iterator[tuple[Target, Made]]:
    made = METHODS[method]
    with safe_open(checkpoint, framework="pt") as file:
        base = _Lazy(file)
        for target in targets():
            if made.selects(target):
                # A layer's numbers depend on the method and its name alone.
                seed = zlib.crc32(f"{method} {target.weight}".encode())
                generator = torch.Generator().manual_seed(seed)
                yield target, made.make(target.module(base), generator, rank)


class _Lazy(Mapping[str, Tensor]):
    """The tensors of an opened file, each read when asked for."""

    def __init__(self, file: safe_open) -> None:
        self._file = file

    def __getitem__(self, key: str) -> Tensor:
        return self._file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).contiguous()


def _fill(tensor: Tensor, deviation: float, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Fills a parameter with numbers that a file of this dtype keeps exactly."""
    numbers = torch.randn(tensor.shape, generator=generator) * deviation
    with torch.no_grad():
        tensor.copy_(numbers.to(dtype).float())


def _deviation(plain: nn.Module) -> float:
    """The deviation that a change of this layer shall have."""
    return CHANGE * plain.weight.std().item()


def _lora(
    *,
    tucker: bool = False,
    rank_stabilised: bool = False,
    dtype: torch.dtype = torch.float32,
    down_deviation: Callable[[int, int], float] = lambda inputs, _: 1 / math.sqrt(inputs),
) -> Make:
    def make(plain: nn.Module, generator: torch.Generator, _: int) -> Made:
        rank, alpha = (CONV_RANK, CONV_ALPHA) if _has_kernel(plain) else (RANK, ALPHA)
        module = LoConModule(
            *("", plain),
            lora_dim=rank,
            alpha=alpha,
            use_tucker=tucker,
            rs_lora=rank_stabilised,
        )
        down = down_deviation(module.lora_down.weight[0].numel(), rank)
        up = _deviation(plain) / (module.scale * math.sqrt(rank) * down)
        _fill(module.lora_down.weight, down, generator, dtype)
        _fill(module.lora_up.weight, up, generator, dtype)
        if module.tucker:
            _fill(module.lora_mid.weight, 1 / math.sqrt(rank), generator, dtype)
        return Made(module.state_dict(), partial(probe, module, plain))

    return make


def _lora_of_peft(plain: nn.Module, generator: torch.Generator, rank: int) -> Made:
    """PEFT's names. It writes no alpha: scale and rule stand in the metadata alone."""
    made = _lora(rank_stabilised=True)(plain, generator, rank)
    down, up = made.tensors["lora_down.weight"], made.tensors["lora_up.weight"]
    return Made({"lora_A.weight": down, "lora_B.weight": up}, made.change)


def _dylora_of_kohya(plain: nn.Module, generator: torch.Generator, rank: int) -> Made:
    """An ordinary LoRA on disk; its first `rank` rows are one too, with alpha / rank."""
    outputs, *inputs = plain.weight.shape
    ones = [1] * (len(inputs) - 1)
    down, up = torch.empty(RANK, *inputs), torch.empty(outputs, RANK, *ones)
    _fill(down, 1 / math.sqrt(math.prod(inputs)), generator, torch.float32)
    _fill(up, _dylora_up(plain, ALPHA / RANK), generator, torch.float32)
    kept = rank or RANK
    tensors = {
        "lora_down.weight": down,
        "lora_up.weight": up,
        "alpha": torch.tensor(ALPHA),
    }
    return Made(tensors, partial(_low_rank_change, up[:, :kept], down[:kept], ALPHA / kept, plain))


def _dylora_of_lycoris(plain: nn.Module, generator: torch.Generator, rank: int) -> Made:
    """Trained at alpha / blocks, so a file of R rows wants alpha * block_size / R."""
    module = DyLoraModule("", plain, lora_dim=RANK, alpha=ALPHA, block_size=DYLORA_BLOCK)
    scale = ALPHA * DYLORA_BLOCK / RANK
    for down, up in zip(module.down_list, module.up_list, strict=True):
        _fill(down, 1 / math.sqrt(down.shape[1]), generator, torch.float32)
        _fill(up, _dylora_up(plain, scale), generator, torch.float32)
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    kept = rank or RANK
    up, down = tensors["lora_up.weight"][:, :kept], tensors["lora_down.weight"][:kept]
    scale = ALPHA * DYLORA_BLOCK / kept
    return Made(tensors, partial(_low_rank_change, up, down, scale, plain))


def _dylora_up(plain: nn.Module, scale: float) -> float:
    fan_in = math.prod(plain.weight.shape[1:])
    return _deviation(plain) * math.sqrt(fan_in / RANK) / scale


def _low_rank_change(up: Tensor, down: Tensor, scale: float, plain: nn.Module) -> Change:
    product = up.double().flatten(1) @ down.double().flatten(1)
    return Change((scale * product).reshape(plain.weight.shape).float())


def _full(plain: nn.Module, generator: torch.Generator, _: int) -> Made:
    trained = _copy(plain)
    module = FullModule("", trained)
    _fill(module.weight, _deviation(plain), generator, torch.float32)
    if module.bias is not None:
        _fill(module.bias, CHANGE, generator, torch.float32)
    # Its state dict is right only after this.
    module.apply_to()
    return Made(module.state_dict(), partial(probe, module, plain))


def _norm(plain: nn.Module, generator: torch.Generator, _: int) -> Made:
    module = NormModule("", plain)
    _fill(module.w_norm, CHANGE, generator, torch.float32)
    _fill(module.b_norm, CHANGE, generator, torch.float32)
    return Made(module.state_dict(), partial(probe, module, plain))


def _copy(plain: nn.Module) -> nn.Module:
    copy = type(plain).__new__(type(plain))
    copy.__dict__ = plain.__dict__ | {"_parameters": dict(plain._parameters)}
    return copy


def _has_kernel(plain: nn.Module) -> bool:
    return any(size > 1 for size in plain.weight.shape[2:])


def _in_transformers(target: Target) -> bool:
    """What LoRA-LierLa trains: the linear layers and 1x1 convolutions of the transformers."""
    if target.layer.kind not in ("linear", "conv"):
        return False
    name = target.layer.name
    return target.part == "clip" or "transformer_blocks" in name or ".proj_" in name


def _in_some_transformers(target: Target) -> bool:
    """Of the text encoder every third layer: probing all of it takes most of the time."""
    name = target.layer.name
    if not _in_transformers(target):
        return False
    return target.part == "unet" or int(name.split(".")[2]) % 3 == 0


def _in_transformers_and_res_blocks(target: Target) -> bool:
    """What LoRA-C3Lier trains beside that: all of the residual blocks, down and up sampling."""
    inner = (".in_layers.2", ".emb_layers.1", ".out_layers.3", ".skip_connection", ".op", ".conv")
    return _in_some_transformers(target) or target.layer.name.endswith(inner)


def _mapped_from_peft(target: Target) -> bool:
    """Those layers of the transformers whose names in diffusers the host knows with `unet.`."""
    return _in_some_transformers(target) and (
        target.part == "clip" or ".attn" not in target.layer.name
    )


def _few_products(target: Target) -> bool:
    """Enough layers for a clear effect, few enough for a small file: differences are as large as
    the weights."""
    if target.layer.kind not in ("linear", "conv"):
        return False
    if target.part == "clip":
        return target.layer.name.endswith(".v_proj")
    return target.layer.name.startswith(("input_blocks.0", "middle_block", "output_blocks.3"))


def _norms(target: Target) -> bool:
    return target.layer.kind in ("layer_norm", "group_norm")


def _kohya_metadata(network: str, **arguments: str) -> dict[str, str]:
    return {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": network,
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(ALPHA),
        "ss_network_args": json.dumps(arguments),
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }


def _peft_metadata() -> dict[str, str]:
    config = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": True, "peft_type": "LORA"}
    both = {
        f"{part}.{key}": value for part in ("unet", "text_encoder") for key, value in config.items()
    }
    return {"format": "pt", "lora_adapter_metadata": json.dumps(both, sort_keys=True)}


def _conv_arguments(algorithm: str | None = None, **more: str) -> dict[str, str]:
    arguments = {"conv_dim": str(CONV_RANK), "conv_alpha": str(CONV_ALPHA)} | more
    return arguments if algorithm is None else {"algo": algorithm} | arguments


METHODS: dict[str, Method] = {
    "lora": Method(
        make=_lora(dtype=torch.float16),
        selects=_in_transformers,
        dtype=torch.float16,
        metadata=_kohya_metadata("networks.lora"),
    ),
    "locon": Method(
        make=_lora(dtype=torch.bfloat16),
        selects=_in_transformers_and_res_blocks,
        dtype=torch.bfloat16,
        metadata=_kohya_metadata("networks.lora", **_conv_arguments()),
    ),
    "locon_tucker": Method(
        make=_lora(tucker=True),
        selects=_in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_kohya_metadata("lycoris.kohya", **_conv_arguments("locon", use_tucker="True")),
    ),
    "lora_plus": Method(
        make=_lora(),
        selects=_in_some_transformers,
        metadata=_kohya_metadata("networks.lora", loraplus_lr_ratio="16"),
    ),
    "lora_fa": Method(
        make=_lora(down_deviation=lambda inputs, rank: math.sqrt(2 / (inputs + rank))),
        selects=_in_some_transformers,
        naming="underscored",
        metadata=_kohya_metadata("networks.lora_fa"),
    ),
    "rslora": Method(
        make=_lora(rank_stabilised=True),
        selects=_in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_kohya_metadata("lycoris.kohya", **_conv_arguments("locon", rs_lora="True")),
    ),
    "rslora_peft": Method(
        make=_lora_of_peft,
        selects=_mapped_from_peft,
        naming="diffusers",
        metadata=_peft_metadata(),
    ),
    "dylora_kohya": Method(
        make=_dylora_of_kohya,
        selects=_in_transformers_and_res_blocks,
        metadata=_kohya_metadata("networks.dylora", unit="2"),
    ),
    "dylora_lycoris": Method(
        make=_dylora_of_lycoris,
        selects=_in_transformers_and_res_blocks,
        naming="underscored",
        metadata=_kohya_metadata("lycoris.kohya", algo="dylora", block_size=str(DYLORA_BLOCK)),
    ),
    "full": Method(
        make=_full,
        selects=_few_products,
        naming="dotted",
        metadata=_kohya_metadata("lycoris.kohya", algo="full"),
    ),
    "norm": Method(
        make=_norm,
        selects=_norms,
        naming="dotted",
        metadata=_kohya_metadata("lycoris.kohya", algo="full", train_norm="True"),
    ),
}
