"""The smallest training: a linear map learns a change of rank 4, over all inputs at once."""

from collections.abc import Sequence

import torch
from torch import Generator, nn

from anyadapter.algorithms.training.methods import METHODS, MethodConfig
from anyadapter.algorithms.training.optimizers import OptimizerConfig, make_optimizer
from anyadapter.algorithms.training.trainable import TrainableAdapter, TrainableNetwork
from layer_cases import layer_of
from toy_training import groups_of

WIDTH, RANK = 256, 8


def regression(method: str, ratio: float, steps: int, rate: float = 2e-4) -> list[float]:
    """Returns the loss before each step.

    Args:
        method: A key of `METHODS`.
        ratio: Of LoRA+.
        steps: How many.
        rate: The learning rate.
    """
    generator = Generator().manual_seed(1)
    left = torch.randn(WIDTH, 4, generator=generator) / WIDTH**0.5
    right = torch.randn(4, WIDTH, generator=generator) / 4
    base = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
    layer = layer_of(base)
    config = MethodConfig(method, RANK, float(RANK), plus_ratio=ratio)
    start = METHODS[method].start(layer, config, Generator().manual_seed(0))
    assert start is not None
    adapter = TrainableAdapter(start, config)
    groups = groups_of(TrainableNetwork({"layer": adapter}), config)
    optimizer = OptimizerConfig(learning_rate=rate, clip_norm=0.0)
    stepper = make_optimizer(optimizer, groups, steps, Generator().manual_seed(0))
    x = torch.eye(WIDTH)
    y, target = base(x), (left @ right).T
    losses: list[float] = []
    for _ in range(steps):
        loss = ((adapter.change(x, y, layer) - target) ** 2).sum() / WIDTH
        losses.append(float(loss.detach()))
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    return losses


def half_at(losses: Sequence[float]) -> int:
    """Returns the first step at which half of the loss is gone."""
    return next(step for step, loss in enumerate(losses) if loss < losses[0] / 2)
