"""Every method of training with every form that its arguments give it, and layers to train."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from anyadapter.algorithms.training.methods import METHODS, MethodConfig
from anyadapter.algorithms.training.trainable import TrainableAdapter, TrainableNetwork
from layer_cases import LayerCase, few, layer_of, norm_cases, product_cases

CONFIGS: dict[str, MethodConfig] = {
    name: MethodConfig(
        name, rank=4, alpha=2.0, conv_rank=4, conv_alpha=3.0, unit=2, train_norms=True
    )
    for name in METHODS
}
"""The plain form of each method."""


def _also(method: str, **changes: bool | int | float | str) -> MethodConfig:
    return replace(CONFIGS[method], **changes)


FORMS: dict[str, MethodConfig] = {
    **CONFIGS,
    "LoRA-C3Lier, rsLoRA": _also("LoRA-C3Lier", rs_lora=True),
    "LoRA-C3Lier with a core": _also("LoRA-C3Lier", use_tucker=True),
    "LoRA-C3Lier with DoRA": _also("LoRA-C3Lier", dora=True),
    "LoRA-C3Lier with DoRA on inputs": _also(
        "LoRA-C3Lier", dora=True, dora_on="inputs", dora_detached=False
    ),
    "DyLoRA with DoRA": _also("DyLoRA", dora=True),
    "NestedUNet with DoRA": _also("NestedUNet", dora=True),
    "DyLoRA, full gradient": _also("DyLoRA", dylora_gradient="full", dylora_per_module=True),
    "LoHa with a core": _also("LoHa", use_tucker=True),
    "LoHa with DoRA": _also("LoHa", dora=True, rs_lora=True),
    "LoKr of factors": _also("LoKr", rank=1, conv_rank=1, decompose_both=True),
    "LoKr, whole": _also("LoKr", rank=1, conv_rank=1, full_matrix=True, unbalanced=True),
    "LoKr with a core": _also("LoKr", rank=1, conv_rank=1, use_tucker=True, rs_lora=True),
    "LoKr with DoRA": _also("LoKr", dora=True),
    "(IA)^3 on inputs": _also("(IA)^3", on_input=True),
    "OFT (kohya), limited": _also("OFT (kohya)", constraint=0.02),
    "Diag-OFT, limited": _also("Diag-OFT", constraint=0.02, rescaled=True),
    "BOFT, rescaled": _also("BOFT", rescaled=True),
    "GLoRA, rsLoRA": _also("GLoRA", rs_lora=True),
    "T-LoRA, LyCORIS": _also("T-LoRA", tlora_format="LyCORIS"),
    "T-LoRA, random start": _also("T-LoRA", data_init=False),
    "T-LoRA, last": _also("T-LoRA", triples="last"),
}
"""Name -> configuration, in all forms that change what is computed."""


def _strided() -> LayerCase:
    convolution = nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2))
    module = convolution.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(2, 6, 8, 9, generator=generator, dtype=torch.float64)
    return LayerCase("conv2d 3x5, stride", module, layer_of(module), x)


LAYERS: tuple[LayerCase, ...] = (
    *(case for case in few(product_cases()) if case.name != "conv2d 3x5"),
    _strided(),
    *(case for case in norm_cases() if case.name in ("layer norm", "group norm")),
)
"""Linear, a point, groups, a kernel with stride and padding, and norms."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A method on a layer."""

    config: MethodConfig
    case: LayerCase
    network: TrainableNetwork
    generator: torch.Generator

    @property
    def adapter(self) -> TrainableAdapter:
        return self.network["a"]

    def begin_step(self, levels: Tensor | None = None) -> None:
        self.network.begin_step(levels, self.generator)

    def change(self, x: Tensor | None = None) -> Tensor:
        x = self.case.x if x is None else x
        return self.adapter.change(x, self.case.module(x), self.case.layer)

    def fit(self, steps: int = 5, rate: float = 0.05) -> None:
        """Trains towards some other output, until no tensor stands where it started."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=0.0)
        for _ in range(steps):
            self.begin_step()
            optimizer.zero_grad()
            (self.case.module(self.case.x) + self.change()).pow(3).sum().backward()
            optimizer.step()

    def fill(self) -> "Trained":
        """Gives every trained tensor numbers of both signs."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.network.parameters():
                numbers = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(numbers * 0.3)
        return self


def trained(
    config: MethodConfig, case: LayerCase, dtype: torch.dtype = torch.float64
) -> Trained | None:
    """Returns a method on a layer at its start, or None where it trains no such layer."""
    generator = torch.Generator().manual_seed(0)
    start = METHODS[config.method].start(case.layer, config, generator)
    if start is None:
        return None
    network = TrainableNetwork({"a": TrainableAdapter(start, config, dtype=dtype)})
    return Trained(config, case, network, generator)


def linear(config: MethodConfig) -> Trained:
    """Returns a method on the linear layer."""
    found = trained(config, LAYERS[0])
    assert found is not None
    return found
