"""What can be trained: every method with its arguments, its start on a layer, and its recommended values.

Sources: sd-scripts 0.10.1 (`networks.lora`, `lora_fa`, `dylora`, `oft`) and LyCORIS 4.1.3, whose names
and arguments go into the metadata of a file. Recommended values are those of their documents.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator

from ..adapters import Adapter
from ..adapters.base import InitialConfig
from ..adapters.boft import Boft
from ..adapters.diff import Diff
from ..adapters.dora import Axis, Dora
from ..adapters.glora import Glora
from ..adapters.ia3 import Ia3
from ..adapters.loha import Loha, LohaTucker
from ..adapters.lokr import Lokr
from ..adapters.lora import Lora, LoraTucker
from ..adapters.norm import Norm
from ..adapters.oft import DiagOft
from ..adapters.tlora import Triples
from ..errors import TrainingError
from ..layers import Layer
from .nested_lora import NestedLora
from .trained_tlora import TrainedTlora

Dropout = Literal["dropout", "rank_dropout", "module_dropout"]
ROTATIONS = ("OFT (kohya)", "Diag-OFT", "BOFT")
"""Methods whose alpha limits how far they turn."""
PLUS_RATIO = 16.0
"""Source: LoRA+, Hayou et al. 2024, arXiv 2402.12354, section 5."""
DROPOUTS: tuple[Dropout, ...] = ("dropout", "rank_dropout", "module_dropout")


@dataclass(frozen=True)
class MethodConfig:
    """How adapters are made and trained: one method and all its arguments, ready for JSON.

    Arguments of other methods are without effect.

    Raises:
        TrainingError: A value has no meaning.
    """

    method: str
    """A key of `METHODS`."""
    rank: int = 16
    """Of OFT in kohya's form, the number of blocks; of Diag-OFT and BOFT, the size of a block."""
    alpha: float = 8.0
    conv_rank: int = 0
    """Rank on convolutions with kernels. 0 leaves them out where the method leaves the choice, and
    stands for `rank` and `alpha` where it does not."""
    conv_alpha: float = 1.0
    rs_lora: bool = False
    """Whether the scale is alpha over the root of the rank."""
    use_tucker: bool = False
    """Whether a core carries the kernel of a convolution: LoRA, LoHa and LoKr."""
    dora: bool = False
    """Whether rows or columns have lengths of their own."""
    dora_on: Axis = "outputs"
    dora_detached: bool = True
    """Whether the norm below the lengths counts as a constant in backward: less memory."""
    train_norms: bool = False
    dropout: float = 0.0
    """Part of the values between both factors that is zero, each on its own."""
    rank_dropout: float = 0.0
    """Part of the ranks that is left out, for each sample; of the output rows without ranks."""
    module_dropout: float = 0.0
    """Part of the calls in which an adapter is left out."""
    plus_ratio: float = 0.0
    """How many times faster the factor learns that starts at zero; 0 is 16 for LoRA+ and 1 else."""
    unit: int = 4
    """Of DyLoRA: how many ranks are added at a time."""
    dylora_gradient: Literal["frozen", "full"] = "frozen"
    """Of DyLoRA: whether the newest ranks alone learn in a step, or all that are used."""
    dylora_per_module: bool = False
    """Of DyLoRA: whether each adapter draws a rank of its own."""
    factor: int = -1
    """Of LoKr: the smaller part of each side, -1 for the most square split."""
    full_matrix: bool = False
    decompose_both: bool = False
    unbalanced: bool = False
    on_input: bool = False
    """Of (IA)^3: whether the inputs are scaled, and not the outputs."""
    constraint: float = 0.0
    """Of rotations: how far they turn, times the outputs; 0 for as far as they like."""
    rescaled: bool = False
    """Of Diag-OFT and BOFT: whether the lengths of rows are trained too."""
    min_rank: int = 1
    """Of T-LoRA: ranks that are used at pure noise."""
    rank_power: float = 1.0
    """Of T-LoRA: how fast ranks are taken away with noise."""
    data_init: bool = True
    """Of T-LoRA: whether it starts from the weight, and not from a random matrix."""
    triples: Triples = "principal"
    """Of T-LoRA: which singular triples it starts from."""
    tlora_format: Literal["LoRA", "LyCORIS"] = "LoRA"
    """Of T-LoRA: what is saved. LoRA loads everywhere, at twice the rank."""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        method = METHODS.get(self.method)
        if method is None:
            raise TrainingError(
                f"There is no method {self.method!r}. Choose one of {', '.join(METHODS)}."
            )
        for name, value, least in (
            ("rank", self.rank, 1),
            ("conv_rank", self.conv_rank, 0),
            ("unit", self.unit, 1),
            ("min_rank", self.min_rank, 1),
        ):
            if value < least:
                raise TrainingError(f"{name} is {value}; set it to {least} or more.")
        for name, number in (("alpha", self.alpha), ("conv_alpha", self.conv_alpha)):
            if not number > 0:
                raise TrainingError(
                    f"{name} is {number}; it scales the change, so set it above 0, for example to "
                    "the rank."
                )
        self._require_dropouts(method)
        if self.use_tucker and method.low_rank and (self.dropout or self.rank_dropout):
            raise TrainingError(
                "dropout and rank_dropout have no meaning with use_tucker: switch one or the other off."
            )
        self._require_own(method)

    def _require_dropouts(self, method: "Method") -> None:
        values = (self.dropout, self.rank_dropout, self.module_dropout)
        for name, value in zip(DROPOUTS, values, strict=True):
            if not 0 <= value < 1:
                raise TrainingError(f"{name} is {value}; set it to 0 or more, and below 1.")
            if value and name not in method.dropouts:
                raise TrainingError(
                    f"{name} has no meaning in {self.method}: set it to 0, or use "
                    f"{' or '.join(method.dropouts)}."
                )

    def _require_own(self, method: "Method") -> None:
        if self.dora and not method.takes_dora:
            able = [name for name, other in METHODS.items() if other.takes_dora]
            raise TrainingError(
                f"DoRA has no meaning around {self.method}: switch it off, or choose one of "
                f"{', '.join(able)}."
            )
        if self.method == "DyLoRA" and (self.rank % self.unit or self.conv_rank % self.unit):
            raise TrainingError(
                f"DyLoRA adds {self.unit} ranks at a time, which do not divide "
                f"{self.rank if self.rank % self.unit else self.conv_rank} ranks: change unit or rank."
            )
        if self.method == "NestedUNet" and 0 < min(self.rank, self.conv_rank or self.rank) < 4:
            raise TrainingError(
                "NestedUNet halves the rank twice: set rank and conv_rank to 4 or more."
            )
        if not 0 <= self.plus_ratio < math.inf:
            raise TrainingError(f"plus_ratio is {self.plus_ratio}; set it above 0, 16 is usual.")
        if self.method == "T-LoRA":
            if not self.rank_power > 0:
                raise TrainingError(f"rank_power is {self.rank_power}; set it above 0.")
            if self.min_rank > self.rank:
                raise TrainingError(
                    f"min_rank is {self.min_rank} and rank is {self.rank}: lower min_rank."
                )
            if self.tlora_format == "LyCORIS" and (
                not self.data_init or self.triples != "principal"
            ):
                raise TrainingError(
                    "LyCORIS' format of T-LoRA does not hold the start, which loaders take to be the "
                    "largest triples of the weight: save as LoRA, or start from these."
                )

    @property
    def ratio(self) -> float:
        """How many times faster the factor learns that starts at zero."""
        return self.plus_ratio or (PLUS_RATIO if self.method == "LoRA+" else 1.0)

    @property
    def trains_kernels(self) -> bool:
        """Whether convolutions with kernels are trained."""
        kernels = METHODS[self.method].kernels
        return kernels == "always" or (kernels == "by conv_rank" and self.conv_rank > 0)

    def of_kernels(self) -> tuple[int, float]:
        """Returns rank and alpha on convolutions with kernels."""
        return (self.conv_rank, self.conv_alpha) if self.conv_rank else (self.rank, self.alpha)

    def warnings(self) -> tuple[str, ...]:
        """Returns what the makers of the methods advise against, a sentence each."""
        found = [sentence for wrong, sentence in _advice(self) if wrong]
        return tuple(found)


def _advice(config: MethodConfig) -> tuple[tuple[bool, str], ...]:
    """Returns pairs: whether a limit of the makers is passed, and what they say."""
    method, rank = config.method, max(config.rank, config.conv_rank)
    low_rank = METHODS[method].low_rank
    rotation = method in ROTATIONS
    limited = METHODS[method].scaled and method != "LoKr"
    return (
        (method == "LoHa" and rank > 32, f"LoHa of rank {rank}: above 32 lower the learning rate."),
        (
            low_rank and rank > 128,
            f"{method} of rank {rank}: above 128 the file grows more than the result gains.",
        ),
        (
            limited and (config.alpha > config.rank or config.conv_alpha > max(rank, 1)),
            "alpha above the rank makes the change larger than usual: lower the learning rate.",
        ),
        (
            method == "LoRA-FA" and config.rank < 32,
            f"LoRA-FA of rank {config.rank} can use {config.rank} fixed directions of the input "
            "only: 32 or more is usual, at 4 times the learning rate of LoRA.",
        ),
        (
            config.conv_rank > 0 and METHODS[method].kernels == "never",
            f"{method} trains no convolutions with kernels: conv_rank is without effect.",
        ),
        (
            rotation and config.constraint >= 1,
            f"A constraint of {config.constraint:g} is hardly one: 0.0001 to 0.01 is usual.",
        ),
        (
            method == "LoKr" and config.full_matrix and config.rs_lora,
            "LoKr of whole matrices has no scale: rs_lora is without effect.",
        ),
        (
            config.ratio != 1 and not METHODS[method].plus,
            f"{method} has no factor that starts at zero: plus_ratio is without effect.",
        ),
        (
            config.rs_lora and not METHODS[method].scaled,
            f"{method} has no scale: rs_lora is without effect.",
        ),
        (
            config.use_tucker and METHODS[method].kernels == "never",
            f"{method} trains no convolutions with kernels: use_tucker is without effect.",
        ),
        (config.dora, "DoRA needs a lower learning rate than without: about half of it."),
    )


Start = Callable[[Layer, InitialConfig, MethodConfig, Generator], Adapter]


@dataclass(frozen=True)
class Method:
    """One way to train, on all layers that it takes."""

    description: str
    kernels: Literal["never", "by conv_rank", "always"]
    """Whether convolutions with kernels are trained, besides linear layers and 1x1 convolutions."""
    make: Start
    recommended: Callable[[], MethodConfig]
    """Makes the configuration to begin with."""
    learning_rate: float
    """Recommended for AdamW and the model; text encoders take half of it or less."""
    plus: frozenset[str] = frozenset()
    """Fields that start at zero on the side of the output, which LoRA+ gives a higher rate."""
    fixed: frozenset[str] = frozenset()
    """Fields that do not learn."""
    dropouts: tuple[Dropout, ...] = DROPOUTS
    low_rank: bool = False
    """Whether it goes through ranks, by a `down` and an `up`."""
    scaled: bool = True
    """Whether alpha over the rank scales it."""
    takes_dora: bool = False
    grouped: bool = True
    """Whether it takes convolutions with groups."""

    def start(self, layer: Layer, config: MethodConfig, generator: Generator) -> Adapter | None:
        """Returns an adapter that changes nothing yet, or None where this method trains none.

        Norms are trained as such where the configuration says so, by every method.

        Args:
            layer: The layer; DoRA and T-LoRA read its weight.
            config: Arguments.
            generator: Source of all randomness, on the CPU.

        Raises:
            ShapeError: The layer cannot be split as the method needs it.
            TrainingError: A dropout has no meaning on this layer.
            UnsupportedLayerError: The layer cannot give its weight.
        """
        if layer.kind not in ("linear", "conv"):
            made = InitialConfig(config.rank, config.alpha)
            return Norm.initial(layer, made, generator) if config.train_norms else None
        rank, alpha = config.rank, config.alpha
        if layer.has_kernel:
            if not config.trains_kernels:
                return None
            rank, alpha = config.of_kernels()
        if layer.groups > 1:
            if not self.grouped:
                return None
            if self.low_rank and (config.dropout or config.rank_dropout):
                raise TrainingError(
                    "A convolution with groups has no values between both factors to drop: set "
                    "dropout and rank_dropout to 0, or leave the layer out by a rule."
                )
        if config.rs_lora and self.scaled:
            alpha *= rank**0.5  # divided by the rank, as every loader does: alpha / sqrt(rank)
        inner = self.make(layer, initial_config(config, rank, alpha), config, generator)
        if not config.dora:
            return inner
        return Dora.around(inner, layer, config.dora_on, detached_norm=config.dora_detached)


def initial_config(config: MethodConfig, rank: int, alpha: float) -> InitialConfig:
    """Returns what the start of an adapter reads of a configuration, with the rank of its layer."""
    return InitialConfig(
        rank=rank,
        alpha=alpha,
        factor=config.factor,
        full_matrix=config.full_matrix,
        decompose_both=config.decompose_both,
        unbalanced=config.unbalanced,
        use_tucker=config.use_tucker,
        on_input=config.on_input,
        constraint=config.constraint,
        rescaled=config.rescaled,
    )


def _lora_fa(
    layer: Layer, made: InitialConfig, config: MethodConfig, generator: Generator
) -> Adapter:
    """Returns sd-scripts' start: `down` normal with a deviation of sqrt(2 / (inputs + rank))."""
    del config
    start = Lora.initial(layer, made, generator)
    deviation = (2 / (start.down[0].numel() + made.rank)) ** 0.5
    down = torch.randn(start.down.shape, generator=generator) * deviation
    return replace(start, down=down)


def _dylora(
    layer: Layer, made: InitialConfig, config: MethodConfig, generator: Generator
) -> Adapter:
    del config
    return replace(Lora.initial(layer, made, generator), constant_scale=True)


def _tlora(
    layer: Layer, made: InitialConfig, config: MethodConfig, generator: Generator
) -> Adapter:
    if config.data_init:
        matrix = layer.weight(torch.empty(0, dtype=torch.float64))
    else:  # LyCORIS' deviation
        numbers = torch.randn(layer.weight_shape, generator=generator, dtype=torch.float64)
        matrix = numbers / made.rank
    return TrainedTlora.of_matrix(matrix, made, config.triples)


def _kohya_oft(
    layer: Layer, made: InitialConfig, config: MethodConfig, generator: Generator
) -> Adapter:
    del config, generator
    return DiagOft.initial_of_kohya(layer, made)


def _of(kind: type[Adapter]) -> Start:
    """Returns the start that a method has of its own."""

    def make(
        layer: Layer, made: InitialConfig, config: MethodConfig, generator: Generator
    ) -> Adapter:
        del config
        return kind.initial(layer, made, generator)

    return make


def _with_core(kind: type[Adapter], tucker: type[Adapter]) -> Start:
    """Returns the start of one of two forms: `tucker` on kernels, where it is asked for."""

    def make(
        layer: Layer, made: InitialConfig, config: MethodConfig, generator: Generator
    ) -> Adapter:
        chosen = tucker if config.use_tucker and layer.has_kernel else kind
        return chosen.initial(layer, made, generator)

    return make


UP = frozenset({"up"})
HALF_OF_LORA = 5e-5

METHODS: Mapping[str, Method] = {
    "LoRA-LierLa": Method(
        "Two thin matrices beside each linear layer and 1x1 convolution: small, quick, loads "
        "everywhere.",
        kernels="never",
        make=_of(Lora),
        recommended=lambda: MethodConfig("LoRA-LierLa"),
        learning_rate=1e-4,
        plus=UP,
        low_rank=True,
        takes_dora=True,
    ),
    "LoRA-C3Lier": Method(
        "LoRA on convolutions with kernels too (LoCon): textures and styles of UNets.",
        kernels="always",
        make=_with_core(Lora, LoraTucker),
        recommended=lambda: MethodConfig("LoRA-C3Lier", conv_rank=8, conv_alpha=1.0),
        learning_rate=1e-4,
        plus=UP,
        low_rank=True,
        takes_dora=True,
    ),
    "LoRA+": Method(
        "LoRA whose factor that starts at zero learns faster: fewer steps.",
        kernels="by conv_rank",
        make=_with_core(Lora, LoraTucker),
        recommended=lambda: MethodConfig("LoRA+"),
        learning_rate=HALF_OF_LORA,
        plus=UP,
        low_rank=True,
        takes_dora=True,
    ),
    "LoRA-FA": Method(
        "LoRA with its first factor left at its random start: little memory, less to say.",
        kernels="by conv_rank",
        make=_lora_fa,
        recommended=lambda: MethodConfig("LoRA-FA", rank=32, alpha=32.0),
        learning_rate=4e-4,
        plus=UP,
        fixed=frozenset({"down"}),
        low_rank=True,
        takes_dora=True,
    ),
    "DyLoRA": Method(
        "LoRA whose first ranks work alone: one training, every smaller rank by a cut.",
        kernels="by conv_rank",
        make=_dylora,
        recommended=lambda: MethodConfig("DyLoRA", rank=32, alpha=16.0, unit=4),
        learning_rate=1e-4,
        plus=UP,
        low_rank=True,
        takes_dora=True,
    ),
    "LoHa": Method(
        "The elementwise product of two LoRAs: a high rank in few numbers.",
        kernels="by conv_rank",
        make=_with_core(Loha, LohaTucker),
        recommended=lambda: MethodConfig("LoHa", rank=8, alpha=4.0),
        learning_rate=1e-4,
        plus=frozenset({"w2_a"}),
        dropouts=("rank_dropout", "module_dropout"),
        takes_dora=True,
    ),
    "LoKr": Method(
        "The Kronecker product of two small matrices: the smallest files, or the fullest change.",
        kernels="by conv_rank",
        make=_of(Lokr),
        recommended=lambda: MethodConfig("LoKr", factor=8, full_matrix=True),
        learning_rate=1e-4,
        plus=frozenset({"w2", "w2_b"}),
        dropouts=("rank_dropout", "module_dropout"),
        takes_dora=True,
    ),
    "(IA)^3": Method(
        "A factor for each channel: the fewest numbers.",
        kernels="always",
        make=_of(Ia3),
        recommended=lambda: MethodConfig("(IA)^3"),
        learning_rate=5e-3,
        dropouts=("module_dropout",),
        scaled=False,
    ),
    "Full": Method(
        "Every number of weights and biases: the memory and the file of the whole model.",
        kernels="always",
        make=_of(Diff),
        recommended=lambda: MethodConfig("Full"),
        learning_rate=1e-5,
        dropouts=("rank_dropout", "module_dropout"),
        scaled=False,
    ),
    "OFT (kohya)": Method(
        "Rotates blocks of outputs, as sd-scripts does: rank is their number.",
        kernels="by conv_rank",
        make=_kohya_oft,
        recommended=lambda: MethodConfig("OFT (kohya)", rank=4, constraint=1e-3),
        learning_rate=1e-4,
        dropouts=("module_dropout",),
        scaled=False,
    ),
    "Diag-OFT": Method(
        "Rotates blocks of outputs, as LyCORIS does: rank is their size.",
        kernels="by conv_rank",
        make=_of(DiagOft),
        recommended=lambda: MethodConfig("Diag-OFT", rank=16),
        learning_rate=1e-4,
        dropouts=("module_dropout",),
        scaled=False,
    ),
    "BOFT": Method(
        "Rotates outputs by several stages of small blocks, in a butterfly.",
        kernels="by conv_rank",
        make=_of(Boft),
        recommended=lambda: MethodConfig("BOFT", rank=16),
        learning_rate=1e-4,
        dropouts=("module_dropout",),
        scaled=False,
    ),
    "GLoRA": Method(
        "A LoRA beside the weight, and one on its input.",
        kernels="by conv_rank",
        make=_of(Glora),
        recommended=lambda: MethodConfig("GLoRA"),
        learning_rate=1e-4,
        plus=frozenset({"a2", "b2"}),
        dropouts=("rank_dropout", "module_dropout"),
    ),
    "T-LoRA": Method(
        "Singular triples of the weight, fewer of them at noisier steps: learns from one image "
        "without its background.",
        kernels="never",
        make=_tlora,
        recommended=lambda: MethodConfig("T-LoRA", alpha=16.0),
        learning_rate=1e-4,
        fixed=frozenset({"base_q", "base_p", "base_lengths"}),
        low_rank=True,
        grouped=False,
    ),
    "NestedUNet": Method(
        "Experimental, our own reading of a name: LoRA-C3Lier whose ranks pass a small linear U, "
        "saved as an ordinary LoRA.",
        kernels="always",
        make=_of(NestedLora),
        recommended=lambda: MethodConfig("NestedUNet", conv_rank=8, conv_alpha=1.0),
        learning_rate=1e-4,
        plus=UP,
        low_rank=True,
        takes_dora=True,
    ),
}
"""Name -> method, in the order of a menu.

LoRA+ asks which factor starts at zero and spans the outputs. T-LoRA has none: both sides start from
singular vectors. Nor have methods of one tensor, where a ratio is another learning rate. Of
NestedUNet only `up` spans them; `u1` and `u2` start at zero between the ranks.
"""
