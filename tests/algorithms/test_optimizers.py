"""Optimisers: each one lowers a loss and resumes exactly; clipping, rates, switches and refusals.

Those of packages are tested where these are installed, and on CI the small ones have to be.
"""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.optimizer_kinds import (
    OPTIMIZERS,
    UNFIT,
    UNSAVABLE,
    OptimizerKind,
    kind_of,
    read_arguments,
    single_rate,
)
from anyadapter.algorithms.training.optimizers import (
    OptimizerConfig,
    ParameterGroup,
    Stepper,
    StepResult,
    make_optimizer,
)
from anyadapter.algorithms.training.schedules import ScheduleConfig
from anyadapter.algorithms.training.state_files import pack, unpack
from through_a_file import through_a_file

SMALL_PACKAGES = ("prodigyopt", "prodigyplus", "schedulefree")
"""What the test environment is to have; others are tested where they happen to be."""

RATES = {"Adadelta": 5.0, "Muon": 0.2}


# Where bitsandbytes happens to be installed: what is paged is memory of a GPU.
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


INSTALLED = [kind for kind in OPTIMIZERS.values() if is_installed(kind.module)]
SCHEDULE_FREE = [kind for kind in INSTALLED if kind.schedule_free]
if is_installed("pytorch_optimizer"):
    SCHEDULE_FREE.append(kind_of("pytorch_optimizer.ScheduleFreeAdamW"))


def of(kinds: Sequence[OptimizerKind]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)


of_each = of(INSTALLED)
of_each_schedule_free = of(SCHEDULE_FREE)
of_each_automatic = of([kind for kind in INSTALLED if kind.automatic])
of_each_with_own_clipping = of([kind for kind in INSTALLED if kind.own_clipping])
in_both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def config_of(kind: OptimizerKind, **settings: Any) -> OptimizerConfig:
    rate = 1.0 if kind.automatic else RATES.get(kind.name, 0.02)
    return OptimizerConfig(
        kind.name, learning_rate=rate, **{"clip_norm": 0.0, "weight_decay": 0.0, **settings}
    )


def group(name: str, *tensors: Tensor, **settings: Any) -> ParameterGroup:
    return ParameterGroup(name, tuple(nn.Parameter(one) for one in tensors), **settings)


def groups_of(kind: OptimizerKind, dtype: torch.dtype = torch.float32) -> list[ParameterGroup]:
    """Matrices wide enough to be factored and quantised; the second starts at zero, as `up` does."""
    torch.manual_seed(5)
    down, up, vector = torch.randn(64, 72) * 0.1, torch.zeros(72, 64), torch.randn(5) * 0.1
    plus = (up,) if kind.matrices_only else (up, vector)
    return [
        group("base", down.to(dtype)),
        group(
            "plus",
            *(one.to(dtype) for one in plus),
            rate_factor=1.0 if kind.single_rate else 1.5,
        ),
    ]


def stepper_of(
    config: OptimizerConfig, groups: Sequence[ParameterGroup], total_steps: int = 200
) -> Stepper:
    return make_optimizer(config, groups, total_steps, torch.Generator().manual_seed(7))


def parameters_of(groups: Sequence[ParameterGroup]) -> list[nn.Parameter]:
    return [one for group in groups for one in group.parameters]


def copies(groups: Sequence[ParameterGroup]) -> list[Tensor]:
    return [one.detach().clone() for one in parameters_of(groups)]


def are_equal(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def loss_of(groups: Sequence[ParameterGroup], offset: float = 0.5) -> Tensor:
    parts = [(one.float() - offset).square().sum() for one in parameters_of(groups)]
    return torch.stack(parts).sum()


def take_step(stepper: Stepper, groups: Sequence[ParameterGroup], offset: float) -> StepResult:
    stepper.zero_grad()
    stepper.scaled(loss_of(groups, offset)).backward()
    return stepper.step()


def take_steps(stepper: Stepper, groups: Sequence[ParameterGroup], steps: range) -> None:
    for step in steps:
        take_step(stepper, groups, 0.5 + 0.1 * math.sin(step))


def are_the_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states agree in all of their numbers and dtypes."""
    (tensors, text), (others, other_text) = pack(one), pack(other)
    same_dtypes = [part.dtype for part in tensors.values()] == [
        part.dtype for part in others.values()
    ]
    return same_dtypes and text == other_text and are_equal([*tensors.values()], [*others.values()])


def test_the_small_packages_are_installed_on_ci():
    missing = [module for module in SMALL_PACKAGES if not is_installed(module)]
    assert os.environ.get("CI") != "true" or not missing


@in_both
@of_each
def test_200_steps_lower_the_loss(kind: OptimizerKind, dtype: torch.dtype):
    groups = groups_of(kind, dtype)
    stepper = stepper_of(config_of(kind), groups)
    before = loss_of(groups).item()
    for _ in range(200):
        assert not take_step(stepper, groups, 0.5).skipped
    stepper.eval()
    assert loss_of(groups).item() < 0.5 * before


@in_both
@of_each
def test_10_and_10_steps_from_a_file_are_20_steps(
    kind: OptimizerKind, dtype: torch.dtype, tmp_path: Path
):
    schedule = ScheduleConfig() if kind.schedule_free else ScheduleConfig("cosine", warmup=3.0)
    config = config_of(kind, schedule=schedule, clip_norm=1.0)
    whole, halves = groups_of(kind, dtype), groups_of(kind, dtype)
    take_steps(stepper_of(config, whole, 20), whole, range(20))

    first = stepper_of(config, halves, 20)
    take_steps(first, halves, range(10))
    resumed_groups = [
        group(one.name, *copies([one]), rate_factor=one.rate_factor) for one in halves
    ]
    state = through_a_file(first.state(), tmp_path / "state.safetensors")
    take_steps(first, halves, range(3))
    # Another seed, so that only the state can bring the right one.
    second = make_optimizer(config, resumed_groups, 20, torch.Generator().manual_seed(99))
    second.load(state)
    assert are_the_same(second.state(), state)
    take_steps(second, resumed_groups, range(10, 20))
    assert are_equal(parameters_of(resumed_groups), parameters_of(whole))


@of_each
def test_gradients_of_zero_give_no_nan(kind: OptimizerKind):
    groups = groups_of(kind)
    stepper = stepper_of(config_of(kind), groups)
    for _ in range(3):
        for one in parameters_of(groups):
            one.grad = torch.zeros_like(one)
        assert stepper.step() == StepResult(0.0, False)
    assert all(one.isfinite().all() for one in parameters_of(groups))


@of_each
def test_parameters_without_gradients_stay(kind: OptimizerKind):
    groups = groups_of(kind)
    before = copies(groups)
    stepper = stepper_of(config_of(kind), groups)
    assert stepper.step() == StepResult(0.0, False)
    assert are_equal(parameters_of(groups), before)


@of_each
def test_a_state_loaded_from_a_living_optimiser_is_apart_from_it(kind: OptimizerKind):
    groups, others = groups_of(kind), groups_of(kind)
    living, loaded = stepper_of(config_of(kind), groups), stepper_of(config_of(kind), others)
    take_steps(living, groups, range(2))
    loaded.load(living.state())
    before = unpack(*pack(loaded.state()))
    take_steps(living, groups, range(2, 4))
    assert are_the_same(loaded.state(), before)


# Schedule-free and moving average: what is trained, and what is saved.


@in_both
@of_each_schedule_free
def test_eval_changes_the_parameters_and_train_puts_them_back_exactly(
    kind: OptimizerKind, dtype: torch.dtype
):
    groups = groups_of(kind, dtype)
    stepper = stepper_of(config_of(kind), groups)
    take_steps(stepper, groups, range(30))
    trained = copies(groups)
    stepper.eval()
    averaged = copies(groups)
    assert not any(torch.equal(one, other) for one, other in zip(averaged, trained, strict=True))
    stepper.eval()
    assert are_equal(parameters_of(groups), averaged)
    stepper.train()
    assert are_equal(parameters_of(groups), trained)


@of_each_schedule_free
def test_looking_at_the_average_does_not_change_the_training(kind: OptimizerKind):
    looked, straight = groups_of(kind), groups_of(kind)
    one, other = stepper_of(config_of(kind), looked), stepper_of(config_of(kind), straight)
    for step in range(10):
        one.eval()
        one.train()
        take_steps(one, looked, range(step, step + 1))
        take_steps(other, straight, range(step, step + 1))
    assert are_equal(parameters_of(looked), parameters_of(straight))


@in_both
def test_the_moving_average_is_put_in_and_the_trained_parameters_put_back(dtype: torch.dtype):
    kind = kind_of("AdamW")
    groups = groups_of(kind, dtype)
    stepper = stepper_of(config_of(kind, ema_decay=0.9), groups)
    take_steps(stepper, groups, range(5))
    trained = copies(groups)
    stepper.eval()
    saved = [one.to(dtype) for one in stepper_average(stepper)]
    assert are_equal(parameters_of(groups), saved)
    stepper.train()
    assert are_equal(parameters_of(groups), trained)


def stepper_average(stepper: Stepper) -> list[Tensor]:
    stepper.train()
    values = stepper.state()["average"]["values"]
    stepper.eval()
    return values


def test_the_moving_average_resumes_exactly(tmp_path: Path):
    kind = kind_of("AdamW")
    config = config_of(kind, ema_decay=0.9, ema_start=3, ema_interval=2)
    whole, halves = groups_of(kind), groups_of(kind)
    straight, first = stepper_of(config, whole), stepper_of(config, halves)
    take_steps(straight, whole, range(20))
    take_steps(first, halves, range(10))
    second = stepper_of(config, halves)
    second.load(through_a_file(first.state(), tmp_path / "state.safetensors"))
    take_steps(second, halves, range(10, 20))
    straight.eval()
    second.eval()
    assert are_equal(parameters_of(halves), parameters_of(whole))


def test_eval_of_what_averages_nothing_leaves_the_parameters():
    kind = kind_of("AdamW")
    groups = groups_of(kind)
    stepper = stepper_of(config_of(kind), groups)
    take_steps(stepper, groups, range(2))
    before = copies(groups)
    stepper.eval()
    assert are_equal(parameters_of(groups), before)
    take_steps(stepper, groups, range(1))


# Clipping, skipped steps and the scale of the loss.


def two_groups(**settings: Any) -> list[ParameterGroup]:
    return [
        group("a", torch.zeros(2, 3), **settings),
        group("b", torch.zeros(4), **settings),
    ]


SGD = OptimizerConfig("SGD", learning_rate=1.0, clip_norm=0.0)


def set_gradients(groups: Sequence[ParameterGroup], value: float) -> None:
    for one in parameters_of(groups):
        one.grad = torch.full_like(one, value)


def test_gradients_are_clipped_as_torch_clips_them():
    groups, others = two_groups(), two_groups()
    set_gradients(groups, 3.0)
    set_gradients(others, 3.0)
    norm = torch.nn.utils.clip_grad_norm_(parameters_of(others), 0.5).item()
    result = stepper_of(replace(SGD, clip_norm=0.5), groups).step()
    assert result.norm == norm == pytest.approx(3 * math.sqrt(10))
    for one, other in zip(parameters_of(groups), parameters_of(others), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(-one, other.grad, rtol=1e-6, atol=0.0)


def test_gradients_within_the_norm_are_left_alone():
    groups = two_groups()
    set_gradients(groups, 0.125)
    stepper_of(replace(SGD, clip_norm=100.0), groups).step()
    assert all((one == -0.125).all() for one in parameters_of(groups))


def test_clipping_ignores_gradients_of_parameters_that_are_not_its_own():
    """kohya's LoRA-FA: the frozen factor's growing gradient shrank every useful step."""
    groups = [*two_groups(), group("frozen", torch.zeros(50), rate_factor=0.0)]
    stepper = stepper_of(replace(SGD, clip_norm=1.0), groups)
    set_gradients(groups, 0.01)
    (frozen,) = groups[2].parameters
    frozen.grad = torch.full((50,), 1e6)
    assert stepper.step().norm == pytest.approx(0.01 * math.sqrt(10))
    assert all((one == -0.01).all() for one in parameters_of(groups[:2]))
    assert (frozen == 0).all()


def test_zero_grad_drops_gradients_of_what_is_not_trained_too():
    groups = [*two_groups(), group("frozen", torch.zeros(3), rate_factor=0.0)]
    set_gradients(groups, 1.0)
    stepper_of(SGD, groups).zero_grad()
    assert all(one.grad is None for one in parameters_of(groups))


@of_each_with_own_clipping
def test_own_clipping_is_left_to_the_optimiser(kind: OptimizerKind):
    clipped, free = groups_of(kind), groups_of(kind)
    for groups, norm in ((clipped, 1e-3), (free, 0.0)):
        take_steps(stepper_of(config_of(kind, clip_norm=norm), groups), groups, range(5))
    assert are_equal(parameters_of(clipped), parameters_of(free))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_of_a_gradient_that_is_not_finite_is_skipped_and_reported(value: float):
    kind = kind_of("AdamW")
    groups = groups_of(kind)
    stepper = stepper_of(config_of(kind, ema_decay=0.5), groups)
    take_steps(stepper, groups, range(2))
    parameters, (_, text) = copies(groups), pack(stepper.state())
    set_gradients(groups, 1.0)
    gradient = parameters_of(groups)[1].grad
    assert gradient is not None
    gradient[0, 0] = value
    result = stepper.step()
    assert result.skipped
    assert not math.isfinite(result.norm)
    assert are_equal(parameters_of(groups), parameters)
    assert pack(stepper.state())[1] == text.replace('["steps", 2]', '["steps", 3]')


def test_a_scaled_loss_makes_the_same_steps():
    kind = kind_of("AdamW")
    plain, scaled = groups_of(kind), groups_of(kind)
    take_steps(stepper_of(config_of(kind), plain), plain, range(10))
    config = config_of(kind, loss_scaling=True)
    take_steps(stepper_of(config, scaled), scaled, range(10))
    for one, other in zip(parameters_of(scaled), parameters_of(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_the_scale_is_that_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("anyadapter.algorithms.training.loss_scaling.GROWTH_INTERVAL", 3)
    theirs = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=3)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    groups = two_groups()
    config = replace(SGD, loss_scaling=True)
    stepper = stepper_of(config, groups)
    one = torch.ones(())
    for step in range(20):
        assert stepper.scaled(one).item() == theirs.scale(one).item()
        value = math.inf if step in (2, 3, 11) else 1.0
        parameter.grad = torch.full((1,), value)
        set_gradients(groups, value)
        theirs.step(optimizer)
        theirs.update()
        assert stepper.step().skipped == (value == math.inf)
        state = through_a_file(stepper.state(), tmp_path / "state.safetensors")
        stepper = stepper_of(config, groups)
        stepper.load(state)


def test_the_norm_is_that_of_the_gradients_without_the_scale():
    groups = two_groups()
    stepper = stepper_of(replace(SGD, loss_scaling=True, clip_norm=1.0), groups)
    set_gradients(groups, 65536.0)
    assert stepper.step().norm == pytest.approx(math.sqrt(10))


# Groups and their rates.


def test_every_group_has_its_rate_and_every_parameter_one_group():
    groups = [
        group("model", torch.zeros(2)),
        group("model plus", torch.zeros(3), rate_factor=16.0),
        group("clip", torch.zeros(4), part="clip"),
        group("clip plus", torch.zeros(5), torch.zeros(6), part="clip", rate_factor=16.0),
        group("off", torch.zeros(7), rate_factor=0.0),
        group("nothing"),
    ]
    config = OptimizerConfig("AdamW", learning_rate=1e-3, text_encoder_rate=1e-4, weight_decay=0.1)
    stepper = stepper_of(config, groups)
    table = stepper.state()["optimizer"]["param_groups"]
    assert [(one["lr"], one["weight_decay"], one["params"]) for one in table] == [
        (1e-3, 0.1, [0]),
        (1e-3 * 16.0, 0.1, [1]),
        (1e-4, 0.1, [2]),
        (1e-4 * 16.0, 0.1, [3, 4]),
    ]
    assert stepper.rates() == {
        "model": 1e-3,
        "model plus": 1e-3 * 16.0,
        "clip": 1e-4,
        "clip plus": 1e-4 * 16.0,
    }


def test_text_encoders_have_the_learning_rate_unless_they_have_their_own():
    clip = group("clip", torch.zeros(1), part="clip")
    assert clip.rate(OptimizerConfig(learning_rate=0.5)) == 0.5
    assert clip.rate(OptimizerConfig(learning_rate=0.5, text_encoder_rate=0.0)) == 0.0


def test_a_parameter_in_two_groups_is_a_mistake():
    (one,) = group("a", torch.zeros(1)).parameters
    with pytest.raises(AssertionError, match="exactly one group"):
        stepper_of(SGD, [ParameterGroup("a", (one,)), ParameterGroup("b", (one,))])


def test_rates_follow_the_schedule_and_a_skipped_step_counts():
    groups = two_groups()
    config = replace(SGD, schedule=ScheduleConfig("linear", warmup=2.0))
    stepper = stepper_of(config, groups, total_steps=4)
    seen: list[float] = []
    for value in (1.0, math.nan, 1.0, 1.0):
        seen.append(stepper.rates()["a"])
        set_gradients(groups, value)
        stepper.step()
    assert seen == [0.0, 0.5, 1.0, 0.5]
    assert all((one == -1.5).all() for one in parameters_of(groups))


def test_a_rate_of_the_groups_is_a_factor_on_their_steps():
    groups = [group("a", torch.zeros(1)), group("b", torch.zeros(1), rate_factor=4.0)]
    set_gradients(groups, 0.25)
    stepper_of(SGD, groups).step()
    assert [one.item() for one in parameters_of(groups)] == [-0.25, -1.0]


@of_each
def test_one_rate_for_all_is_refused_or_several_taken_as_the_table_says(kind: OptimizerKind):
    groups = [replace_factor(one, 1.0 + i) for i, one in enumerate(groups_of(kind))]
    if kind.single_rate:
        with pytest.raises(TrainingError, match='"base" would have 1 and "plus" 2'):
            stepper_of(config_of(kind), groups)
    else:
        take_steps(stepper_of(config_of(kind), groups), groups, range(2))
    assert single_rate(kind.name) == kind.single_rate


def replace_factor(one: ParameterGroup, rate_factor: float) -> ParameterGroup:
    return ParameterGroup(one.name, one.parameters, rate_factor, one.part)


def test_lora_plus_by_another_parameter_is_lora_plus_by_rates():
    """The way round for optimisers of one rate: `u = up / ratio` in place of `up`."""
    ratio, target, x = 16.0, torch.randn(8, 6), torch.randn(32, 6)
    down = torch.randn(4, 6)
    (down_a, up), (down_b, u) = (
        (nn.Parameter(down.clone()), nn.Parameter(torch.zeros(8, 4))) for _ in range(2)
    )
    config = OptimizerConfig("AdamW", learning_rate=1e-3, clip_norm=0.0, weight_decay=0.0)
    by_rates = [
        ParameterGroup("base", (down_a,)),
        ParameterGroup("plus", (up,), rate_factor=ratio),
    ]
    by_parameter = [ParameterGroup("all", (down_b, u))]
    one, other = stepper_of(config, by_rates), stepper_of(config, by_parameter)
    for _ in range(50):
        ((x @ (up @ down_a).T - x @ target.T) ** 2).mean().backward()
        ((x @ (ratio * u @ down_b).T - x @ target.T) ** 2).mean().backward()
        for stepper in (one, other):
            stepper.step()
            stepper.zero_grad()
    assert up.abs().max() > 0.1
    torch.testing.assert_close(ratio * u, up, rtol=0.0, atol=1e-4)


# bfloat16.


def test_bfloat16_goes_on_where_torch_stalls():
    start = torch.ones(16, 16, dtype=torch.bfloat16)
    plain, groups = nn.Parameter(start.clone()), [group("a", start.clone())]
    optimizer = torch.optim.AdamW([plain], lr=1e-4)
    stepper = stepper_of(OptimizerConfig("AdamW", learning_rate=1e-4), groups)
    (rounded,) = groups[0].parameters
    for _ in range(200):
        plain.grad, rounded.grad = torch.ones_like(plain), torch.ones_like(rounded)
        optimizer.step()
        stepper.step()
    assert (plain == 1).all()
    # 200 steps of 1e-4 go down by 0.02; the mean of 256 walks is off by 0.0006.
    assert rounded.float().mean().item() == pytest.approx(0.98, abs=5 * 0.0006)


def test_the_state_of_bfloat16_parameters_is_float32():
    groups = [group("a", torch.ones(4, dtype=torch.bfloat16))]
    stepper = stepper_of(OptimizerConfig(), groups)
    set_gradients(groups, 1.0)
    stepper.step()
    assert stepper.state()["optimizer"]["state"][0]["exp_avg"].dtype == torch.float32


def test_clipping_does_not_round_gradients_of_bfloat16():
    groups = [group("a", torch.zeros(4, dtype=torch.bfloat16))]
    stepper = stepper_of(OptimizerConfig("Adagrad", clip_norm=1.0, arguments="eps=0.5"), groups)
    set_gradients(groups, 1.5)
    stepper.step()
    total = stepper.state()["optimizer"]["state"][0]["sum"]
    assert total[0].item() == pytest.approx((1.5 / (3.0 + 1e-6)) ** 2, rel=1e-6)


# Arguments.


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("  \n", {}),
        ("eps=1e-8", {"eps": 1e-8}),
        ("betas=.9,.99 amsgrad=True", {"betas": (0.9, 0.99), "amsgrad": True}),
        ("betas=(0.9, 0.99)\nfused = None", {"betas": (0.9, 0.99), "fused": None}),
        ("a='x y' b=-3 c=[1, 2]", {"a": "x y", "b": -3, "c": [1, 2]}),
    ],
)
def test_arguments_are_read_as_sd_scripts_writes_them(text: str, arguments: dict[str, Any]):
    assert read_arguments(text) == arguments


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("fused", '"fused" is no argument'),
        ("1=2", '"1=2" is no argument'),
        ("eps=1e-8 eps=2", "eps of the optimiser is given twice"),
        ("mode=fast", r'"mode=fast" is not understood: .* quotes'),
        ("eps=__import__('os').getcwd()", "is not understood"),
        ("eps=", "is not understood"),
    ],
)
def test_a_text_that_is_no_arguments_is_refused(text: str, mistake: str):
    with pytest.raises(TrainingError, match=mistake):
        OptimizerConfig(arguments=text)


@pytest.mark.parametrize(
    ("name", "arguments", "mistake"),
    [
        ("AdamW", "beta=.9", "AdamW has no argument beta. It has betas, eps, weight_decay"),
        ("AdamW", "lr=.9", "by its own input"),
        ("AdamW", "params=1", "has no argument params"),
        ("AdamW", "weight_decay=0.1", "weight decay is set twice"),
        ("AdamW", "betas=2,3", "AdamW refuses its arguments: Invalid beta"),
        ("AdamW", "betas=3", "AdamW refuses its arguments"),
    ],
)
def test_arguments_that_the_optimiser_has_not_are_refused(name: str, arguments: str, mistake: str):
    config = OptimizerConfig(name, arguments=arguments, weight_decay=0.0)
    with pytest.raises(TrainingError, match=mistake):
        stepper_of(config, two_groups())


def test_arguments_reach_the_optimiser_and_overrule_those_of_its_name():
    config = OptimizerConfig("SGDNesterov", arguments="momentum=0.5")
    for one in stepper_of(config, two_groups()).state()["optimizer"]["param_groups"]:
        assert (one["momentum"], one["nesterov"]) == (0.5, True)


# What is refused.


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"name": "Adamm"}, 'no optimiser "Adamm". Choose one of AdamW, '),
        ({"name": "os.path"}, 'no optimiser "os.path"'),
        ({"name": "pytorch_optimizer.a.b"}, "no optimiser"),
        ({"learning_rate": -1.0}, "learning rate must be"),
        ({"learning_rate": math.nan}, "learning rate must be"),
        ({"text_encoder_rate": math.inf}, "text encoder rate must be"),
        ({"weight_decay": -0.1}, "weight decay must be"),
        ({"clip_norm": -1.0}, "clip norm must be"),
        ({"ema_decay": 1.0}, "below 1, but it is 1.0"),
        ({"ema_start": -1}, "they are -1 and 1"),
        ({"ema_interval": 0}, "they are 0 and 0"),
        (
            {"name": "AdamWScheduleFree", "schedule": ScheduleConfig("cosine")},
            "Choose the schedule constant",
        ),
        ({"name": "AdamWScheduleFree", "ema_decay": 0.9}, "averages the parameters itself"),
    ],
)
def test_a_setting_without_meaning_is_refused(settings: dict[str, Any], mistake: str):
    with pytest.raises(TrainingError, match=mistake):
        OptimizerConfig(**settings)


@pytest.mark.parametrize("name", sorted(UNFIT))
def test_optimisers_that_need_more_than_gradients_are_refused(name: str):
    with pytest.raises(TrainingError, match="more than gradients"):
        OptimizerConfig(f"pytorch_optimizer.{name}")


@pytest.mark.parametrize("name", sorted(UNSAVABLE))
def test_optimisers_whose_state_cannot_be_saved_are_refused(name: str):
    with pytest.raises(TrainingError, match="cannot be saved"):
        OptimizerConfig(f"pytorch_optimizer.{name}")


def test_muon_refuses_what_is_no_matrix_and_names_it():
    with pytest.raises(TrainingError, match=r'"b" has a tensor of shape \(4,\)'):
        stepper_of(OptimizerConfig("Muon"), two_groups())


@pytest.mark.parametrize(
    "groups", [[], [group("a")], [group("a", torch.zeros(1), rate_factor=0.0)]]
)
def test_nothing_to_train_is_refused(groups: list[ParameterGroup]):
    with pytest.raises(TrainingError, match="nothing to train"):
        stepper_of(OptimizerConfig(), groups)


def test_a_schedule_longer_than_the_training_is_refused():
    config = OptimizerConfig(schedule=ScheduleConfig("linear", warmup=100.0))
    with pytest.raises(TrainingError, match="a warm-up of 100 steps"):
        stepper_of(config, two_groups(), total_steps=50)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        *((kind.name, kind.package) for kind in OPTIMIZERS.values() if kind.package != "torch"),
        ("pytorch_optimizer.Tiger", "pytorch-optimizer"),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, kind_of(name).module, None)
    with pytest.raises(TrainingError, match=f"{name} needs .* {package}: pip install {package} "):
        stepper_of(OptimizerConfig(name), two_groups())


def test_an_optimiser_that_an_old_version_lacks_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(TrainingError, match="version of the package torch has no optimiser Muon"):
        stepper_of(OptimizerConfig("Muon"), [group("a", torch.zeros(2, 3))])


@pytest.mark.parametrize(
    ("other", "groups", "mistake"),
    [
        (replace(SGD, name="Adam"), two_groups(), "of the optimiser SGD, not Adam"),
        (
            SGD,
            [group("a", torch.zeros(3))],
            r'of other parameters: "a" has shapes \[\[2, 3\]\] there and \[\[3\]\] here',
        ),
        (SGD, two_groups()[:1], r'"b" has shapes \[\[4\]\] there and none here'),
        (replace(SGD, ema_decay=0.5), two_groups(), "moving average is on now"),
        (replace(SGD, loss_scaling=True), two_groups(), "Loss scaling or"),
    ],
)
def test_the_state_of_another_training_is_refused(
    other: OptimizerConfig, groups: list[ParameterGroup], mistake: str
):
    with pytest.raises(TrainingError, match=mistake):
        stepper_of(other, groups).load(stepper_of(SGD, two_groups()).state())


# Settings.


def test_settings_come_back_from_json():
    config = OptimizerConfig(
        "RAdam", text_encoder_rate=1e-5, schedule=ScheduleConfig("linear", warmup=0.1)
    )
    read = json.loads(json.dumps(asdict(config)))
    assert OptimizerConfig(**{**read, "schedule": ScheduleConfig(**read["schedule"])}) == config


def test_a_small_rate_of_an_automatic_optimiser_is_warned_of():
    (warning,) = OptimizerConfig("Prodigy", learning_rate=1e-4).warnings()
    assert "should be about 1, but is 0.0001" in warning
    assert not OptimizerConfig("Prodigy", learning_rate=1.0).warnings()
    assert not OptimizerConfig("AdamW", learning_rate=1e-4).warnings()


@of_each_automatic
def test_rates_of_an_automatic_optimiser_are_times_what_it_found(kind: OptimizerKind):
    groups = groups_of(kind)
    stepper = stepper_of(config_of(kind), groups)
    assert stepper.rates()["base"] == 1e-6
    take_steps(stepper, groups, range(30))
    assert stepper.rates()["base"] > 1e-4
