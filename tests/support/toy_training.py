"""A small training on the toy UNet, with everything but a host."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from anyadapter.algorithms.errors import ShapeError
from anyadapter.algorithms.layers import Layer
from anyadapter.algorithms.training.loop import Batch, Data, LoopConfig, Run
from anyadapter.algorithms.training.losses import LossConfig
from anyadapter.algorithms.training.methods import METHODS, MethodConfig
from anyadapter.algorithms.training.noise import NoiseConfig
from anyadapter.algorithms.training.objective import Noised, Objective
from anyadapter.algorithms.training.optimizers import (
    OptimizerConfig,
    ParameterGroup,
    make_optimizer,
)
from anyadapter.algorithms.training.trainable import TrainableAdapter, TrainableNetwork
from layer_cases import layer_of
from model_samplings import sampling_of
from toy_unet import ToyUNet, toy_unet

SIDE = 16
"""Of the latents."""


@dataclass(frozen=True)
class Settings:
    """What one training differs by from another."""

    method: MethodConfig
    steps: int = 20
    batch_size: int = 2
    accumulation: int = 1
    pictures: int = 8
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=2e-3))
    max_norm: float = 0.0


def lora(rank: int = 4, **options: Any) -> MethodConfig:
    """Returns LoRA on all layers of the toy."""
    return MethodConfig(
        "LoRA-C3Lier", rank, float(rank), conv_rank=rank, conv_alpha=float(rank), **options
    )


@cache
def latents(count: int) -> Tensor:
    """Returns smooth pictures."""
    generator = Generator().manual_seed(7)
    small = torch.randn(count, 4, 4, 4, generator=generator)
    return nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")


class ToyTraining:
    """A network on a UNet of its own, and the run that trains it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.unet = toy_unet()
        self.network = network_on(self.unet, settings.method, settings.seed)
        groups = groups_of(self.network, settings.method)
        self.stepper = make_optimizer(
            settings.optimizer, groups, settings.steps, Generator().manual_seed(settings.seed)
        )
        self.run = Run(
            self.network,
            Data(self._order, self._load),
            self._predict,
            Objective(sampling_of("flow"), NoiseConfig(), LossConfig()),
            self.stepper,
            LoopConfig(settings.steps, settings.accumulation, settings.max_norm),
            settings.seed,
        )

    def losses(self, steps: int | None = None) -> list[float]:
        """Trains so many steps, or to the end, and returns the loss of each."""
        found: list[float] = []
        for step in self.run.steps():
            found.append(step.loss)
            if len(found) == steps:
                break
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Returns a copy of all that has been learned."""
        state = self.network.state_dict()
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def _order(self, epoch: int) -> Sequence[tuple[int, ...]]:
        """Returns the pictures in an order that does not depend on the size of a batch."""
        count, size = self.settings.pictures, self.settings.batch_size
        generator = Generator().manual_seed(self.settings.seed + epoch)
        order = torch.randperm(count, generator=generator).tolist()
        return [tuple(order[start : start + size]) for start in range(0, count, size)]

    def _load(self, pictures: tuple[int, ...]) -> Batch:
        latent = latents(self.settings.pictures)[list(pictures)]
        return Batch(latent, (8 * SIDE, 8 * SIDE), pictures)

    def _predict(self, batch: Batch, noised: Noised) -> Tensor:
        del batch
        sigma = noised.sigma.reshape(-1, 1, 1, 1)
        return noised.noisy - sigma * self.unet(noised.noisy, noised.sigma)


def network_on(unet: ToyUNet, method: MethodConfig, seed: int = 0) -> TrainableNetwork:
    """Puts adapters on every layer that a method takes."""
    generator = Generator().manual_seed(seed)
    adapters: dict[str, TrainableAdapter] = {}
    for name, module in unet.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        layer = layer_of(module)
        with suppress(ShapeError):  # 4 outputs cannot be turned by every rotation
            start = METHODS[method.method].start(layer, method, generator)
            if start is None:
                continue
            adapters[name] = TrainableAdapter(start, method)
            original = module.forward
            module.forward = partial(_changed, adapters[name], replace(layer, run=original))
    return TrainableNetwork(adapters)


def groups_of(network: TrainableNetwork, method: MethodConfig) -> list[ParameterGroup]:
    """Returns the parameters in the two groups of LoRA+, or in one."""
    found: dict[str, list[nn.Parameter]] = {"base": [], "plus": []}
    for _, adapter in network.items():
        for name, parameters in adapter.groups().items():
            found[name] += parameters
    ratio = method.ratio
    return [
        ParameterGroup(name, tuple(parameters), ratio if name == "plus" else 1.0)
        for name, parameters in found.items()
        if parameters
    ]


def _changed(adapter: TrainableAdapter, layer: Layer, x: Tensor) -> Tensor:
    assert layer.run is not None
    y = layer.run(x)
    return y + adapter.change(x, y, layer)
