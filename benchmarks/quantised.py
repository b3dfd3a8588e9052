"""Adapters on quantised layers: what is lost of their change, and what a step takes.

The stock loader dequantises a weight, adds the change and quantises the sum, by rounding at random
(stochastic, so that small changes are not lost in the mean). Hooks leave the weight alone.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from figures import Claim, Result
from settings import Settings

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from quantised_layers import QuantisedCase

KINDS: Mapping[str, str] = {
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8 (e5m2)",
    "scaled fp8": "scaled fp8",
    "mixed precision": "mixed precision fp8",
    "float8_e4m3fn with scales": "mixed precision fp8",
    "nvfp4 with scales": "mixed precision nvfp4",
}
"""Those of `quantised_layers` that are shown, as far as this ComfyUI has them."""
LAYERS = 4
WIDTH = {"small": 640, "large": 1280}
RANK = 16
RELATIVE = 0.02
"""Norm of the change over that of the weight: about what a trained LoRA has at strength 1."""
HOOK, STOCK, NEAREST = "ours, hook", "stock loader", "merged and rounded to nearest"


class Bench(nn.Module):
    """Some quantised layers in a row, and a LoRA on each of them."""

    def __init__(self, case: "QuantisedCase", width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList()
        self.factors: list[tuple[Tensor, Tensor]] = []
        self.numbers: list[Tensor] = []
        self.nearest: list[nn.Module] = []
        for _ in range(LAYERS):
            weight = torch.randn(width, width, generator=generator) / width**0.5
            bias = torch.zeros(width)
            up, down = (torch.randn(*size, generator=generator) for size in self._sizes(width))
            module, numbers = case.make(weight, bias)
            numbers = module(torch.eye(width)).T if numbers is None else numbers.float()
            up *= RELATIVE * numbers.norm() / (up @ down).norm()
            self.layers.append(module.eval())
            self.factors.append((up, down))
            self.numbers.append(numbers)
            self.nearest.append(case.make(numbers + up @ down, bias)[0].eval())

    @staticmethod
    def _sizes(width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (width, RANK), (RANK, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what comes out of all layers."""
        for layer in self.layers:
            x = layer(x)
        return x

    def hooked(self, patcher: "ModelPatcher") -> "ModelPatcher":
        """Returns the model with the LoRAs as hooks."""
        from anyadapter.algorithms.adapters.lora import Lora
        from anyadapter.algorithms.binding import Bound
        from anyadapter.algorithms.keymap import Target
        from anyadapter.algorithms.strength import Dial
        from anyadapter.nodes.host.injections import add_hooks

        clone = patcher.clone()
        bound = [
            Bound(f"layers.{number}", Target(f"layers.{number}.weight"), Lora(*pair))
            for number, pair in enumerate(self.factors)
        ]
        add_hooks(clone, bound, Dial(1.0))
        return clone

    def patched(self, patcher: "ModelPatcher") -> "ModelPatcher":
        """Returns the model with the LoRAs as the stock loader puts them on."""
        import comfy.lora

        clone = patcher.clone()
        tensors, names = {}, {}
        for number, (up, down) in enumerate(self.factors):
            names[f"l{number}"] = f"layers.{number}.weight"
            tensors |= {f"l{number}.lora_up.weight": up, f"l{number}.lora_down.weight": down}
        clone.add_patches(comfy.lora.load_lora(tensors, names), 1.0)
        return clone

    def lost(
        self, x: Tensor, layers: "list[nn.Module] | nn.ModuleList", base: list[Tensor]
    ) -> float:
        """Returns the error of the changes of all layers, over the changes, in their outputs."""
        wrong = whole = 0.0
        for layer, (up, down), before in zip(layers, self.factors, base, strict=True):
            exact = x.double() @ down.double().T @ up.double().T
            found = layer(x).double() - before.double()
            wrong += float((found - exact).square().sum())
            whole += float(exact.square().sum())
        return (wrong / whole) ** 0.5


def _benches(settings: Settings) -> "dict[str, tuple[Bench, ModelPatcher]]":
    import comfy.model_management
    from comfy.model_patcher import ModelPatcher

    import quantised_layers

    device = comfy.model_management.get_torch_device()
    found: dict[str, tuple[Bench, ModelPatcher]] = {}
    for case in quantised_layers.OF_THE_HOST:
        if case.name in KINDS:
            bench = Bench(case, WIDTH[settings.size])
            found[KINDS[case.name]] = bench, ModelPatcher(bench, device, torch.device("cpu"))
    return found


def _loaded(patcher: "ModelPatcher") -> "ModelPatcher":
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher])
    return patcher


def error(_: "ModelPatcher", settings: Settings) -> Result:
    """Compares how wrong the change of a layer's output is that a LoRA makes."""
    title = f"error of a LoRA's change of {RELATIVE:.0%} of the weight"
    result = Result("quantised", title, (), "share")
    claims: list[Claim] = []
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, WIDTH[settings.size], generator=generator)
    for kind, (bench, patcher) in _benches(settings).items():
        _loaded(patcher.clone())
        base = [layer(x) for layer in bench.layers]
        names = {who: f"{kind}: {who}" for who in (HOOK, STOCK, NEAREST)}
        for who, build in ((HOOK, bench.hooked), (STOCK, bench.patched)):
            adapted = _loaded(build(patcher))  # held: a patcher that dies takes its changes off
            result.samples[names[who]] = [bench.lost(x, adapted.model.layers, base)]
        result.samples[names[NEAREST]] = [bench.lost(x, bench.nearest, base)]
        claims += [Claim(names[HOOK], names[STOCK], 0.01), Claim(names[NEAREST], names[STOCK])]
    result.claims = tuple(claims)
    result.notes.append(
        f"over the outputs of {LAYERS} layers {WIDTH[settings.size]} wide, against float64. Above "
        "100 % what rounding adds is larger than the change itself."
    )
    return result


def step(_: "ModelPatcher", settings: Settings) -> Result:
    """Compares the time of a step through quantised layers."""
    tokens = settings.latent**2 * settings.batch
    result = Result("quantised-step", f"{LAYERS} quantised layers, {tokens} tokens", ())
    claims: list[Claim] = []
    x = torch.randn(tokens, WIDTH[settings.size])
    for kind, (bench, patcher) in _benches(settings).items():
        hook, stock = f"{kind}: {HOOK}", f"{kind}: {STOCK}"
        builds = {hook: bench.hooked(patcher), stock: bench.patched(patcher)}
        result.samples |= {name: [] for name in builds}
        for _round in range(settings.runs):
            for name, clone in builds.items():
                model = _loaded(clone).model
                model(x)
                started = time.perf_counter()
                model(x)
                result.samples[name].append(time.perf_counter() - started)
        claims.append(Claim(hook, stock))
    result.claims = tuple(claims)
    return result


COMPARISONS: "Mapping[str, Callable[[ModelPatcher, Settings], Result]]" = {
    "quantised": error,
    "quantised-step": step,
}
