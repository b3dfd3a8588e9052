"""The optimiser of a training: from its settings to steps that can be saved and resumed exactly."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from ..errors import TrainingError
from ..families.blocks import Section
from .averaging import Average
from .loss_scaling import LossScale
from .optimizer_kinds import OptimizerKind, check_arguments, kind_of, load_class, read_arguments
from .rounding import WideParameters
from .schedules import ScheduleConfig, factor

AUTOMATIC_RATE = 0.1
"""At or below it the rate of an automatic optimiser was most likely meant for another one."""

RESUME = "Resume with the settings that the training began with."

Shapes = dict[str, list[list[int]]]
"""Of the parameters of each group."""


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser with its settings: numbers, truth values and texts only.

    Raises:
        TrainingError: A value has no meaning.
    """

    name: str = "AdamW"
    """A key of `OPTIMIZERS`, or `pytorch_optimizer.NAME`."""
    learning_rate: float = 1e-4
    text_encoder_rate: float | None = None
    """None is the learning rate; 0 does not train them."""
    weight_decay: float | None = None
    """None is the optimiser's own."""
    arguments: str = ""
    """More arguments of the optimiser, as in sd-scripts: `betas=.9,.99 eps=1e-8`."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float = 1.0
    """Largest norm of all gradients together; 0 does not clip. It does not count for optimisers with
    `own_clipping`."""
    ema_decay: float = 0.0
    """Of the moving average of the parameters, which is then what is saved; 0 keeps none."""
    ema_start: int = 0
    ema_interval: int = 1
    loss_scaling: bool = False
    """For models that compute in float16."""

    def __post_init__(self) -> None:
        kind = kind_of(self.name)
        read_arguments(self.arguments)
        for name in ("learning_rate", "text_encoder_rate", "weight_decay", "clip_norm"):
            value: float | None = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise TrainingError(
                    f"The {name.replace('_', ' ')} must be a number from 0 on, but it is {value}."
                )
        if not 0 <= self.ema_decay < 1:
            raise TrainingError(
                "The decay of the moving average must be from 0 to below 1, but it is "
                f"{self.ema_decay}."
            )
        if self.ema_start < 0 or self.ema_interval < 1:
            raise TrainingError(
                "The moving average must start at step 0 or later and have an interval of 1 or more, "
                f"but they are {self.ema_start} and {self.ema_interval}."
            )
        if kind.schedule_free and self.schedule.name != "constant":
            raise TrainingError(
                f"{self.name} averages its steps in place of a schedule, but the schedule is "
                f"{self.schedule.name}. Choose the schedule constant."
            )
        if kind.schedule_free and self.ema_decay:
            raise TrainingError(
                f"{self.name} averages the parameters itself. Set the decay of the moving average "
                "to 0."
            )

    def warnings(self) -> tuple[str, ...]:
        """Returns what is allowed and most likely not meant."""
        rate = self.learning_rate
        if kind_of(self.name).automatic and 0 < rate <= AUTOMATIC_RATE:
            return (
                f"{self.name} finds its learning rate itself and multiplies it by the one given, "
                f"which should be about 1, but is {rate:g}.",
            )
        return ()


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters that share a learning rate."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    rate_factor: float = 1.0
    """On the rate of the part, with LoRA+'s ratio in it; 0 does not train them."""
    part: Section = "model"

    def rate(self, config: OptimizerConfig) -> float:
        """Returns the learning rate of the group before any schedule."""
        rate = config.learning_rate
        if self.part == "clip" and config.text_encoder_rate is not None:
            rate = config.text_encoder_rate
        return rate * self.rate_factor


@dataclass(frozen=True)
class StepResult:
    """What came of a step."""

    norm: float
    """Of all gradients together, before clipping."""
    skipped: bool
    """Whether the norm was not finite, so that nothing but the count of steps was changed."""


def make_optimizer(
    config: OptimizerConfig,
    groups: Sequence[ParameterGroup],
    total_steps: int,
    generator: Generator,
) -> "Stepper":
    """Returns what steps the parameters of some groups.

    Args:
        config: The settings.
        groups: With names of their own; no parameter is in two of them. Groups of rate 0 are left as
            they are.
        total_steps: Of the optimiser, not of micro-batches: what the schedule runs over.
        generator: Gives the seed of the rounding of bfloat16 parameters, once.

    Raises:
        TrainingError: The optimiser is not installed, or cannot do what the settings or groups ask.
    """
    kind = kind_of(config.name)
    config.schedule.check(total_steps)
    trained = [group for group in groups if group.parameters and group.rate(config) > 0]
    _check_groups(kind, config, groups, trained)
    seed = int(torch.randint(1 << 62, (), generator=generator).item())
    wide = WideParameters([one for group in trained for one in group.parameters], seed)
    with wide.filled():
        optimizer = _construct(kind, config, trained, wide)
    return Stepper(config, optimizer, trained, groups, wide, total_steps)


def _check_groups(
    kind: OptimizerKind,
    config: OptimizerConfig,
    groups: Sequence[ParameterGroup],
    trained: Sequence[ParameterGroup],
) -> None:
    parameters = [one for group in groups for one in group.parameters]
    assert len(set(parameters)) == len(parameters), "a parameter is in exactly one group"
    assert len({group.name for group in groups}) == len(groups), "groups have names of their own"
    assert all(one.requires_grad for one in parameters), "parameters of groups are trained"
    if not trained:
        raise TrainingError(
            "There is nothing to train: no parameters, or every learning rate is 0. Choose targets, "
            "and set a learning rate above 0."
        )
    rates = {group.name: group.rate(config) for group in trained}
    lowest, highest = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    if kind.single_rate and rates[lowest] != rates[highest]:
        raise TrainingError(
            f'{kind.name} has one learning rate for all, but "{lowest}" would have '
            f'{rates[lowest]:g} and "{highest}" {rates[highest]:g}. Set all rates of text encoders, '
            "blocks and LoRA+ alike, or choose an optimiser that takes several, such as "
            "ProdigyPlusScheduleFree."
        )
    for group in trained if kind.matrices_only else ():
        for one in group.parameters:
            if one.ndim != 2:
                raise TrainingError(
                    f'{kind.name} trains matrices only, but "{group.name}" has a tensor of shape '
                    f"{tuple(one.shape)}. Choose another optimiser, or a method and targets "
                    "without convolutions, norms and DoRA."
                )


def _construct(
    kind: OptimizerKind,
    config: OptimizerConfig,
    trained: Sequence[ParameterGroup],
    wide: WideParameters,
) -> Optimizer:
    found = load_class(kind)
    given = read_arguments(config.arguments)
    if config.weight_decay is not None:
        if "weight_decay" in given:
            raise TrainingError("The weight decay is set twice: take it out of the arguments.")
        given["weight_decay"] = config.weight_decay
    arguments = {**kind.arguments, **given}
    check_arguments(kind, found, set(arguments))
    rates = [group.rate(config) for group in trained]
    settings: list[dict[str, Any]] = [
        {"params": [wide.of(one) for one in group.parameters], "lr": rate}
        for group, rate in zip(trained, rates, strict=True)
    ]
    make: Any = found  # the signature was checked above
    try:
        return make(settings, lr=max(rates), **arguments)
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{kind.name} refuses its arguments: {error}") from error


class Stepper:
    """An optimiser with its schedule, clipping, rounding and average, made by `make_optimizer`.

    While it trains, the parameters are those that gradients are taken at. `eval` puts in those that are
    sampled from and saved, where they differ (schedule-free, moving average), and `train` puts back
    the others, bit for bit; meanwhile they are kept in a copy.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        optimizer: Optimizer,
        trained: Sequence[ParameterGroup],
        groups: Sequence[ParameterGroup],
        wide: WideParameters,
        total_steps: int,
    ) -> None:
        self.steps = 0
        """Done so far, skipped ones too: the schedule ends with the training."""
        self._config = config
        self._kind = kind_of(config.name)
        self._optimizer: Any = optimizer  # `train` and `eval` are not torch's
        self._trained = tuple(trained)
        self._groups = tuple(groups)
        self._parameters = [one for group in trained for one in group.parameters]
        self._wide = wide
        self._total_steps = total_steps
        self._scale = LossScale() if config.loss_scaling else None
        self._average: Average | None = None
        if config.ema_decay:
            self._average = Average(
                self._parameters, config.ema_decay, config.ema_start, config.ema_interval
            )
        self._kept: list[Tensor] | None = None
        if self._kind.schedule_free:
            self._optimizer.train()

    def scaled(self, loss: Tensor) -> Tensor:
        """Returns what to call `backward` on: the loss, times the scale where there is one."""
        return loss if self._scale is None else loss * self._scale.factor

    def zero_grad(self) -> None:
        """Drops the gradients of all groups, also of those that are not trained."""
        for group in self._groups:
            for one in group.parameters:
                one.grad = None

    def step(self, limit: Callable[[], None] | None = None) -> StepResult:
        """Moves the parameters by their gradients, clipped by the norm of all of them together.

        Gradients of other parameters do not count. Where the norm is not finite nothing moves.

        Args:
            limit: Called after they have moved, before the moving average takes them in.
        """
        assert self._kept is None, "`train` puts back what `eval` replaced before the next step"
        norm = self._gradient_norm()
        skipped = not math.isfinite(norm)
        multiplier = 1.0
        if self._scale is not None:
            multiplier = 1.0 / self._scale.factor
            norm *= multiplier
            self._scale.update(overflowed=skipped)
        if not skipped:
            if self._config.clip_norm and not self._kind.own_clipping:
                # The small number is torch's, see `clip_grad_norm_`.
                multiplier *= min(self._config.clip_norm / (norm + 1e-6), 1.0)
            self._move(multiplier)
            if limit is not None:
                limit()
        self.steps += 1
        if self._average is not None and not skipped:
            self._average.update(self.steps)
        return StepResult(norm, skipped)

    def rates(self) -> dict[str, float]:
        """Returns the learning rate of each trained group at the next step.

        That of an automatic optimiser is times what it has found so far.
        """
        found = [
            float(group.get("d", 1.0)) if self._kind.automatic else 1.0
            for group in self._optimizer.param_groups
        ]
        rates = zip(self._trained, self._scheduled_rates(), found, strict=True)
        return {group.name: rate * d for group, rate, d in rates}

    def eval(self) -> None:
        """Puts in the parameters that are sampled from and saved."""
        if self._kept is not None or not (self._kind.schedule_free or self._average):
            return
        self._kept = [one.detach().clone() for one in self._parameters]
        if self._average is not None:
            self._average.put_in()
        else:
            with self._wide.filled():
                self._optimizer.eval()

    @torch.no_grad()
    def train(self) -> None:
        """Puts back the parameters that are trained."""
        if self._kept is None:
            return
        if self._kind.schedule_free:
            with self._wide.filled():
                self._optimizer.train()
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            parameter.copy_(kept)
        self._kept = None

    def state(self) -> dict[str, Any]:
        """Returns all that a resumed training needs besides the parameters, as they are in `train`.

        Tensors are the very ones that go on changing, not copies.
        """
        assert self._kept is None, "`train` puts back what `eval` replaced before it is saved"
        return {
            "optimizer": self._optimizer.state_dict(),
            "name": self._config.name,
            "shapes": self._shapes(),
            "steps": self.steps,
            "seed": self._wide.seed,
            "scale": None if self._scale is None else self._scale.state(),
            "average": None if self._average is None else self._average.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes over the state of a stepper that was made with the same settings and groups.

        Raises:
            TrainingError: It is of another optimiser, or of other parameters.
        """
        if state["name"] != self._config.name:
            raise TrainingError(
                f"The saved state is of the optimiser {state['name']}, not {self._config.name}. "
                f"{RESUME}"
            )
        if state["shapes"] != self._shapes():
            raise TrainingError(
                "The saved state is of other parameters: "
                f"{_first_difference(state['shapes'], self._shapes())}. {RESUME}"
            )
        if (state["scale"] is None, state["average"] is None) != (
            self._scale is None,
            self._average is None,
        ):
            raise TrainingError(
                "Loss scaling or the moving average is on now and was not in the saved state, or the "
                f"other way round. {RESUME}"
            )
        self._load_optimizer(state["optimizer"])
        self.steps = state["steps"]
        self._wide.seed = state["seed"]
        if self._scale is not None:
            self._scale.load(state["scale"])
        if self._average is not None:
            self._average.load(state["average"])

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        saved = copy.deepcopy(saved)  # torch keeps the very tensors
        with self._wide.filled():
            self._optimizer.load_state_dict(saved)
        for index, parameter in enumerate(self._parameters):
            state = self._optimizer.state
            stepped = self._wide.of(parameter)
            if stepped in state:
                state[stepped] = _in_saved_dtypes(state[stepped], saved["state"][index])

    def _shapes(self) -> Shapes:
        return {
            group.name: [list(one.shape) for one in group.parameters] for group in self._trained
        }

    def _scheduled_rates(self) -> list[float]:
        now = factor(self._config.schedule, self.steps, self._total_steps)
        return [group.rate(self._config) * now for group in self._trained]

    def _gradient_norm(self) -> float:
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        if not gradients:
            return 0.0
        norms = [torch.linalg.vector_norm(one, dtype=torch.float32) for one in gradients]
        on_one_device = torch.stack([norm.to(norms[0].device) for norm in norms])
        return float(torch.linalg.vector_norm(on_one_device))

    def _move(self, multiplier: float) -> None:
        """Steps with gradients times a number, which is taken in float32."""
        rates = self._scheduled_rates()
        with self._wide.filled(self.steps):
            for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
                for one in group["params"] if multiplier != 1.0 else ():
                    if one.grad is not None:
                        one.grad.mul_(multiplier)
            self._optimizer.step()


def _first_difference(saved: Shapes, mine: Shapes) -> str:
    name = next(one for one in (*mine, *saved) if saved.get(one) != mine.get(one))
    return f'"{name}" has shapes {saved.get(name, "none")} there and {mine.get(name, "none")} here'


def _in_saved_dtypes(loaded: Any, saved: Any) -> Any:
    """Returns loaded optimiser state with the tensors that torch cast to the parameters' dtype anew."""
    if isinstance(loaded, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(loaded, dict):
        return {
            key: _in_saved_dtypes(part, saved[key]) if key in saved else part
            for key, part in loaded.items()
        }
    if type(loaded) in (list, tuple):
        return type(loaded)(_in_saved_dtypes(*pair) for pair in zip(loaded, saved, strict=True))
    return loaded
