"""How fast methods learn on toys whose curves are known: the reference's tables, as orders of curves."""

from functools import cache

import pytest
import torch
from torch import Generator, nn

from anyadapter.algorithms.training.methods import METHODS, MethodConfig
from anyadapter.algorithms.training.optimizers import (
    OptimizerConfig,
    ParameterGroup,
    make_optimizer,
)
from anyadapter.algorithms.training.trainable import TrainableAdapter
from layer_cases import layer_of

WIDTH, RANK = 256, 8


def regression(method: str, ratio: float, steps: int, rate: float = 2e-4) -> list[float]:
    """Returns the losses of learning a change of rank 4 of a linear map, over all inputs at once."""
    generator = Generator().manual_seed(1)
    left = torch.randn(WIDTH, 4, generator=generator) / WIDTH**0.5
    right = torch.randn(4, WIDTH, generator=generator) / 4
    base = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
    layer = layer_of(base)
    config = MethodConfig(method, RANK, float(RANK), plus_ratio=ratio)
    start = METHODS[method].start(layer, config, Generator().manual_seed(0))
    assert start is not None
    adapter = TrainableAdapter(start, config)
    groups = [
        ParameterGroup(name, tuple(parameters), ratio if name == "plus" else 1.0)
        for name, parameters in adapter.groups().items()
        if parameters
    ]
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


@cache
def curve(method: str, ratio: float = 1.0, steps: int = 400) -> tuple[float, ...]:
    return tuple(regression(method, ratio, steps))


def half_at(losses: tuple[float, ...]) -> int:
    """Returns the first step at which half of the loss is gone."""
    return next(step for step, loss in enumerate(losses) if loss < losses[0] / 2)


def test_lora_learns_the_change() -> None:
    assert curve("LoRA-LierLa")[-1] < 0.25 * curve("LoRA-LierLa")[0]


@pytest.mark.parametrize(("ratio", "sooner"), [(4.0, 1.8), (16.0, 2.6)])
def test_lora_plus_reaches_half_of_the_loss_sooner(ratio: float, sooner: float) -> None:
    plain, plus = half_at(curve("LoRA-LierLa")), half_at(curve("LoRA+", ratio))
    assert plain / plus == pytest.approx(sooner, rel=0.15)


def test_lora_fa_ends_where_its_fixed_directions_end() -> None:
    free, fixed = curve("LoRA-LierLa"), curve("LoRA-FA")
    assert fixed[-1] > 0.9 * fixed[0]
    assert free[-1] < 0.3 * fixed[-1]
