"""LoRA: the product of two thin matrices, on linear layers and convolutions.

    dW = (alpha / R) * up @ down

Source: LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1. LoRA-LierLa is its use on linear layers
and 1x1 convolutions, LoRA-C3Lier (LoCon) on all convolutions: `down` then carries the kernel.
On disk: kohya sd-scripts and LyCORIS (`lora_up`, `lora_down`, `alpha`), PEFT (`lora_A`, `lora_B`),
the two older spellings of diffusers, and XLabs' (`.up`, `.down` after a name that ends in `lora1`).
Without `alpha` the scale is 1. LoRA+, LoRA-FA and rsLoRA train it in other ways and save the same
tensors; a DyLoRA file is one too, cut by `sliced`. The bias of PEFT (`lora_B.bias`) is scaled like
the product. `reshape_weight` is ComfyUI's.
"""

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import (
    ALPHA,
    Adapter,
    Completion,
    InitialConfig,
    Origin,
    Pieces,
    Role,
    Work,
    scale_of,
    times,
    widened,
)
from .forms import Product
from .linalg import kaiming, low_rank, require_product, through_core, tucker

UP = Role(
    "up",
    (
        ".lora_up.weight",
        ".lora_B.weight",
        ".lora_B.*.weight",
        ".lora_B",
        "_lora.up.weight",
        ".lora.up.weight",
        ".lora_linear_layer.up.weight",
        ".up.weight",
    ),
    peft=".lora_B.weight",
)

DOWN = Role(
    "down",
    (
        ".lora_down.weight",
        ".lora_A.weight",
        ".lora_A.*.weight",
        ".lora_A",
        "_lora.down.weight",
        ".lora.down.weight",
        ".lora_linear_layer.down.weight",
        ".down.weight",
    ),
    peft=".lora_A.weight",
)
BIAS = Role(
    "bias",
    (".lora_up.bias", ".lora_B.bias", ".lora_B.*.bias"),
    required=False,
    peft=".lora_B.bias",
)
RESHAPE = Role("reshape", (".reshape_weight",), required=False, sizes=True)
MID = Role("mid", (".lora_mid.weight",))


@dataclass(frozen=True, eq=False)
class Lora(Adapter):
    """LoRA with two factors."""

    name = "LoRA"
    roles = (UP, DOWN, ALPHA, BIAS, RESHAPE)
    settings = ("constant_scale",)
    additive = True

    up: Float[Tensor, "O R ..."]
    down: Float[Tensor, "R I ..."]
    alpha: float | None = None
    bias: Float[Tensor, " O"] | None = None
    reshape: tuple[int, ...] | None = None
    """Shape that the weight gets first: the control LoRAs of BFL give `img_in` more inputs."""
    constant_scale: bool = False
    """Whether a cut keeps the scale of the whole and not alpha: how our own DyLoRA is trained."""

    @property
    def rank(self) -> int:
        """R, the inner size of the product."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor on the product: alpha / R, or 1 where the file has no alpha (or 0)."""
        return scale_of(self.alpha, self.rank)

    def grown(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns `reshape` where the file has one."""
        if self.reshape is None:
            return shape
        if len(self.reshape) != len(shape) or any(map(int.__lt__, self.reshape, shape)):
            raise ShapeError(
                f"it gives a weight the shape {list(self.reshape)}, and the model's is {list(shape)}"
            )
        return self.reshape

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled product in the shape of `weight`; only its shape is read."""
        return low_rank(widened(self.up), widened(self.down), tuple(weight.shape)) * self.scale

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the scaled bias of the adapter, where the file has one."""
        del bias
        return None if self.bias is None else widened(self.bias) * self.scale

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns `scale * up(down(x))`, which never builds the weight.

        A grouped convolution takes the way over the weight: a product of the two layers would mix
        the groups. So does rank 0, since no convolution has zero outputs.
        """
        if not layer.chains or self.rank == 0:
            return super().delta_output(x, y, layer)
        up, down = self.up.flatten(1), self.down.flatten(1)
        require_product(up, down, layer.weight_shape)
        kernel = down.reshape(self.rank, *layer.weight_shape[1:])
        hidden = self.between(layer.apply(x, kernel) * self.scale, layer)
        change = layer.pointwise(hidden, up)
        if self.bias is not None:
            change = change + layer.over_channels(self.bias * self.scale, change)
        return change

    def between(self, hidden: Float[Tensor, "B ..."], layer: Layer) -> Float[Tensor, "B ..."]:
        """Returns what goes from `down` to `up`; training puts masks here."""
        del layer
        return hidden

    def pieces(self, layer: Layer) -> Pieces | None:
        """Returns both factors, but for norms and grouped convolutions, where they do not chain."""
        if not layer.chains or self.rank == 0:
            return None
        up, down = self.up.flatten(1), self.down.flatten(1)
        require_product(up, down, layer.weight_shape)
        return Pieces(up, down, self.scale)

    def form(self) -> Product:
        """Returns the scaled product."""
        return Product(widened(self.up).flatten(1) * self.scale, widened(self.down).flatten(1))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Lora]":
        """Returns the adapter with alpha from the header where the tensors have none."""
        own = replace(self, constant_scale=bool(origin.flag("constant_scale")))
        return _completed(own, origin, corrections=corrections)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Lora":
        """Returns Kaiming-uniform `down` (a = sqrt 5, as kohya and PEFT) and `up` at zero."""
        outputs, *inputs = layer.weight_shape
        down = kaiming((config.rank, *inputs), generator)
        up = torch.zeros(outputs, config.rank, *[1] * (len(inputs) - 1))
        return cls(up, down, config.alpha)

    def for_peft(self) -> "Lora | None":
        """Returns the same product of factors of about equal scale, with scale 1."""
        if self.reshape is not None:
            return None
        scale = self.scale
        # One rounding at most: a power of two changes no digit. Small numbers of float16 would be
        # lost if one factor took all of it.
        half = 2.0 ** round(math.log2(abs(scale)) / 2)
        bias = None if self.bias is None else times(self.bias, scale)
        return Lora(times(self.up, scale / half), times(self.down, half), bias=bias)

    def sliced(self, rank: int) -> "Lora":
        """Returns the first `rank` ranks, as DyLoRA trains them to be used; alpha stays as it is.

        So the scale becomes alpha / rank, but where it is constant. Source: DyLoRA, Valipour et al.
        2022, arXiv 2210.07558, section 3, and sd-scripts `extract_lora_from_dylora.py` for the scale.
        """
        rank = min(rank, self.rank)
        cut = replace(self, up=self.up[:, :rank], down=self.down[:rank])
        return replace(cut, alpha=self.scale * rank or None) if self.constant_scale else cut


@dataclass(frozen=True, eq=False)
class LoraTucker(Adapter):
    """LoRA on a convolution with a small core that carries the kernel.

        dW[o, i, *k] = (alpha / R) * sum over m, r of up[o, m] mid[m, r, *k] down[r, i]

    Source: LyCORIS, Yeh et al. 2024, arXiv 2309.14859, section 3 (`use_tucker`, older `use_cp`).
    """

    name = "LoRA (Tucker)"
    roles = (UP, MID, DOWN, ALPHA, BIAS)
    additive = True

    up: Float[Tensor, "O M ..."]
    mid: Float[Tensor, "M R *K"]
    down: Float[Tensor, "R I ..."]
    alpha: float | None = None
    bias: Float[Tensor, " O"] | None = None

    @property
    def rank(self) -> int:
        """R, the inner size next to the input."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor on the product: alpha / R, or 1 where the file has no alpha (or 0)."""
        return scale_of(self.alpha, self.rank)

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled kernel; only the shape of `weight` is read."""
        up, mid, down = widened(self.up), widened(self.mid), widened(self.down)
        return tucker(up.flatten(1), mid, down.flatten(1), tuple(weight.shape)) * self.scale

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the scaled bias of the adapter, where the file has one."""
        del bias
        return None if self.bias is None else widened(self.bias) * self.scale

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns `scale * up(mid(down(x)))`; only `mid` has the geometry of the layer."""
        if layer.groups != 1 or layer.kind != "conv":
            return super().delta_output(x, y, layer)
        hidden = layer.pointwise(x, self.down.flatten(1))
        hidden = layer.apply(hidden, self.mid) * self.scale
        change = layer.pointwise(hidden, self.up.flatten(1))
        if self.bias is not None:
            change = change + layer.over_channels(self.bias * self.scale, change)
        return change

    def work(self, layer: Layer, positions: int) -> Work:
        """Returns the work of the three small layers, or of the kernel."""
        numbers = math.prod(layer.weight_shape)
        outputs, inputs = layer.weight_shape[:2]
        between, rank = self.mid.shape[:2]
        chain = rank * inputs + self.mid.numel() + between * outputs
        return Work(numbers * between, positions * chain)

    def form(self) -> Product:
        """Returns the scaled product of `up` and the other two."""
        right = through_core(widened(self.mid), widened(self.down).flatten(1))
        return Product(widened(self.up).flatten(1) * self.scale, right)

    def for_peft(self) -> Lora | None:
        """Returns the LoRA whose first factor has the kernel, as PEFT has no core."""
        down = through_core(widened(self.mid), widened(self.down).flatten(1))
        kernel = down.reshape(self.mid.shape[0], self.down.shape[1], *self.mid.shape[2:])
        alpha = self.scale * self.mid.shape[0]
        return Lora(self.up, kernel.to(self.down.dtype), alpha, self.bias).for_peft()

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[LoraTucker]":
        """Returns the adapter with alpha from the header where the tensors have none."""
        return _completed(self, origin, corrections=corrections)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "LoraTucker":
        """Returns Kaiming-uniform `down` and `mid`, and `up` at zero, as LyCORIS does."""
        outputs, inputs, *kernel = layer.weight_shape
        rank = config.rank
        down = kaiming((rank, inputs, *[1] * len(kernel)), generator)
        mid = kaiming((rank, rank, *kernel), generator)
        return cls(torch.zeros(outputs, rank, *[1] * len(kernel)), mid, down, config.alpha)


DYLORA_BLOCK_SIZE = 4
"""LyCORIS' default."""


LoraKind = TypeVar("LoraKind", "Lora", "LoraTucker")


def _completed(adapter: LoraKind, origin: Origin, *, corrections: bool) -> Completion[LoraKind]:
    """Fills in alpha, and corrects it where the header proves that it acts otherwise."""
    alpha = adapter.alpha or origin.numerator(adapter.rank)
    if not alpha:
        return Completion(adapter, assumed="scale 1")
    corrected = ""
    if corrections and origin.options.get("algo") == "dylora":
        # Trained with alpha / blocks, saved as alpha, read by every loader as alpha / ranks.
        alpha *= origin.number("block_size") or DYLORA_BLOCK_SIZE
        corrected = "DyLoRA of LyCORIS: times its block size"
    elif corrections and origin.tool == "kohya" and origin.flag("split_qkv"):
        # Each of q, k, v was trained with alpha / R, and saved as one of rank 3 R with alpha.
        blocks = _diagonal_blocks(adapter.up.flatten(1))
        if blocks > 1:
            alpha *= blocks
            corrected = "sd-scripts' split_qkv: times the number of parts"
    return Completion(replace(adapter, alpha=alpha), corrected=corrected)


def _diagonal_blocks(up: Float[Tensor, "O R"]) -> int:
    """Returns of how many LoRAs on parts of a fused weight `up` is made: 4, 3, or 1 for none.

    Their ranks stand side by side and each rank reaches the rows of its own part only.
    """
    outputs, rank = up.shape
    touched = (widened(up) != 0).T.to(torch.uint8)
    first = touched.argmax(1)
    last = outputs - touched.flip(1).argmax(1)
    for parts in (4, 3):
        if rank % parts or not bool(touched.any(1).all()):
            continue
        starts = first.reshape(parts, -1).amin(1)
        ends = last.reshape(parts, -1).amax(1)
        if bool((starts[1:] >= ends[:-1]).all()):
            return parts
    return 1
