"""What a plan does besides being right, which the laws see to: choose, keep, and leave things alone."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.base import InitialConfig
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.ia3 import Ia3
from anyadapter.algorithms.adapters.loha import Loha
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.oft import DiagOft
from anyadapter.algorithms.errors import UnsupportedLayerError
from anyadapter.algorithms.layers import Layer
from anyadapter.algorithms.plan import Budget, LayerPlan, Way
from anyadapter.algorithms.strength import Dial, Placed, Request, Strengths
from layer_cases import WAYS, layer_of

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
W: Way = "in the weight"
O: Way = "on the output"  # noqa: E741

LINEAR = nn.Linear(320, 320)
DEEP = nn.Linear(1280, 1280)
KERNEL = nn.Conv2d(320, 320, 3, padding=1)
DEEP_KERNEL = nn.Conv2d(1280, 1280, 3, padding=1)
NORM = nn.LayerNorm(1280)


def made(method: type[Adapter], module: nn.Module) -> Adapter:
    config = InitialConfig(rank=16, alpha=8.0, factor=8)
    adapter = method.initial(layer_of(module), config, torch.Generator().manual_seed(0))
    return adapter.prepared(torch.empty(module.weight.shape, device="meta"))


def plan_of(*adapters: Adapter, module: nn.Module, budget: Budget | None = None) -> LayerPlan:
    placed = [Placed(adapter, 1.0) for adapter in adapters]
    return LayerPlan(layer_of(module), placed, CPU, torch.float32, budget)


# Positions: a deep layer of 512 px, a prompt, both halves of the deep layer, the middle, the outside.
POSITIONS = (64, 77, 128, 1024, 4096, 16384)


@pytest.mark.parametrize(
    ("method", "module", "ways"),
    [
        # The factors of a LoRA are few numbers beside a large weight, and the other way round.
        pytest.param(Lora, LINEAR, (O, O, O, W, W, W), id="LoRA, 320"),
        pytest.param(Lora, DEEP, (O, O, O, W, W, W), id="LoRA, 1280"),
        pytest.param(Lora, KERNEL, (O, O, O, W, W, W), id="LoRA, 3x3 of 320"),
        pytest.param(Lora, DEEP_KERNEL, (O, O, O, O, W, W), id="LoRA, 3x3 of 1280"),
        # What has no short form costs a second product on the output.
        pytest.param(Diff, DEEP, (O, O, W, W, W, W), id="full, 1280"),
        pytest.param(Loha, DEEP_KERNEL, (O, O, O, W, W, W), id="LoHa, 3x3 of 1280"),
        # Two small products.
        pytest.param(Lokr, DEEP, (O, O, O, O, W, W), id="LoKr, 1280"),
        pytest.param(Lokr, DEEP_KERNEL, (O, O, O, O, O, W), id="LoKr, 3x3 of 1280"),
        # One pass over the output, or over the weight.
        pytest.param(Ia3, DEEP, (O, O, O, O, W, W), id="(IA)^3, 1280"),
        pytest.param(Ia3, DEEP_KERNEL, (O, O, O, O, O, O), id="(IA)^3, 3x3 of 1280"),
        pytest.param(DiagOft, KERNEL, (O, O, O, O, W, W), id="OFT, 3x3 of 320"),
        # On the output a norm would be computed twice.
        pytest.param(Diff, NORM, (W, W, W, W, W, W), id="norm"),
    ],
)
def test_the_cheaper_way_is_chosen(
    method: type[Adapter], module: nn.Module, ways: tuple[Way, ...]
) -> None:
    plan = plan_of(made(method, module), module=module)
    assert tuple(plan.way(layer_of(module), positions) for positions in POSITIONS) == ways


def test_more_adapters_shift_the_choice_towards_the_weight() -> None:
    # The weight is written once for all of them.
    adapters = [made(Lora, DEEP) for _ in range(5)]
    layer = layer_of(DEEP)
    assert plan_of(adapters[0], module=DEEP).way(layer, 700) == O
    assert plan_of(*adapters, module=DEEP).way(layer, 700) == W


def test_a_batch_of_different_strengths_builds_several_weights() -> None:
    plan, layer = plan_of(made(Lora, LINEAR), module=LINEAR), layer_of(LINEAR)
    assert plan.way(layer, 1024, runs=1) == W
    assert plan.way(layer, 1024, runs=8) == O


def test_bfloat16_is_never_rounded_in_the_weight() -> None:
    layer = layer_of(LINEAR)
    plan = LayerPlan(layer, [Placed(made(Diff, LINEAR), 1.0)], CPU, torch.bfloat16)
    assert plan.way(layer, 16384) == O


def small() -> tuple[nn.Linear, Layer, Lora, Tensor]:
    torch.manual_seed(0)
    module = nn.Linear(6, 8).requires_grad_(False)
    adapter = Lora(torch.randn(8, 4), torch.randn(4, 6), 2.0)
    return module, layer_of(module), adapter, torch.randn(2, 7, 6)


def in_weight(plan: LayerPlan, module: nn.Linear, x: Tensor, strength: float) -> Tensor:
    return plan.in_weight(x, layer_of(module), Strengths([[strength]]), module.weight)


@torch.no_grad()
def test_a_built_weight_is_kept_while_the_strength_stays() -> None:
    module, _, adapter, x = small()
    budget = Budget(module.weight.nbytes)
    plan = plan_of(adapter, module=module, budget=budget)
    first = in_weight(plan, module, x, 0.5)
    assert budget.used_bytes == 0  # a strength that changes at each step is never worth keeping
    for _ in range(2):
        assert torch.equal(in_weight(plan, module, x, 0.5), first)
        assert budget.used_bytes == module.weight.nbytes
    assert not torch.equal(in_weight(plan, module, x, 0.7), first)
    assert budget.used_bytes == 0
    assert torch.equal(in_weight(plan, module, x, 0.5), first)


@torch.no_grad()
def test_what_does_not_fit_the_budget_is_built_again() -> None:
    module, _, adapter, x = small()
    budget = Budget(module.weight.nbytes - 1)
    plan = plan_of(adapter, module=module, budget=budget)
    outputs = [in_weight(plan, module, x, 0.5) for _ in range(3)]
    assert budget.used_bytes == 0
    assert torch.equal(outputs[0], outputs[2])


@torch.no_grad()
def test_layers_that_build_in_the_same_room_do_not_disturb_each_other() -> None:
    module, _, adapter, x = small()
    other = nn.Linear(6, 5)
    budget = Budget(0)
    plan = plan_of(adapter, module=module, budget=budget)
    beside = plan_of(Diff(torch.ones(5, 6)), module=other, budget=budget)
    first = in_weight(plan, module, x, 0.5)
    in_weight(beside, other, x, 1.0)
    with torch.enable_grad():  # in memory of its own
        alone = in_weight(plan, module, x, 0.5)
    assert torch.equal(in_weight(plan, module, x, 0.5), first)
    assert torch.equal(alone, first)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_input_and_weight_are_not_written_to(way: Way) -> None:
    module, layer, adapter, x = small()
    plan = plan_of(adapter, Ia3(torch.randn(8), 0.0), Diff(torch.randn(8, 6)), module=module)
    strengths = Strengths([[0.5], [1.0], [-0.7]])
    before = (x.clone(), module.weight.clone())
    if way == "on the output":
        plan.on_output(x, layer, strengths, fresh=True)
    else:
        plan.in_weight(x, layer, strengths, module.weight)
    assert torch.equal(x, before[0])
    assert torch.equal(module.weight, before[1])


@torch.no_grad()
def test_an_output_that_somebody_else_may_hold_is_not_written_to() -> None:
    module, layer, adapter, x = small()
    held = module(x)
    before = held.clone()
    plan = plan_of(adapter, module=module)
    plan.run(x, replace(layer, run=lambda _: held, lend_weight=None), Strengths([[1.0]]))
    assert torch.equal(held, before)


def test_an_input_that_is_no_batch_of_the_prompts_is_refused() -> None:
    module, layer, adapter, x = small()
    plan = plan_of(adapter, module=module)
    with pytest.raises(UnsupportedLayerError, match="1 inputs for a batch of 2"):
        plan.run(x[:1], layer, Strengths([[1.0, 0.0]]))
    plan.run(x[:1], layer, Strengths([[1.0, 1.0]]))


def test_a_hook_is_compiled_in_one_piece_and_follows_the_strength() -> None:
    program = subprocess.run(
        [sys.executable, ROOT / "tests/support/compiled_hook.py"],
        cwd=ROOT.anchor,
        capture_output=True,
        text=True,
    )
    assert program.returncode == 0, program.stderr


DIAL = Dial(0.8, "a.safetensors")
ONE = Request("a.safetensors", 0.5)
OTHER = Request("b.safetensors", 0.25)
EVERY = Request("", 2.0)


@pytest.mark.parametrize(
    ("requests", "everywhere", "on_request"),
    [
        ((), 0.8, 0.0),
        ((ONE,), 0.4, 0.4),
        ((OTHER,), 0.8, 0.0),
        ((EVERY,), 1.6, 1.6),
        ((ONE, EVERY), 0.4, 0.4),
        ((EVERY, ONE), 0.4, 0.4),
        ((ONE, replace(ONE, strength=1.0)), 0.8, 0.8),
    ],
)
def test_a_conditioning_asks_for_adapters_by_name_or_for_all(
    requests: tuple[Request, ...], everywhere: float, on_request: float
) -> None:
    assert DIAL.at(0.0, requests) == pytest.approx(everywhere)
    assert replace(DIAL, on_request=True).at(0.0, requests) == pytest.approx(on_request)
