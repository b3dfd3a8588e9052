"""The loop: batches in, steps out; model, device and disk are the caller's.

    for step in run.steps():
        show(step)
        if interrupted():
            break

A run cut in two, with `state` and `load` between, equals the run that was not cut, bit for bit.
"""

import collections.abc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Generator, Tensor

from ..errors import TrainingError
from ..shapes import Float
from .max_norm import limit_norms
from .objective import Noised, Objective
from .optimizers import Stepper
from .trainable import TrainableNetwork

D = TypeVar("D")


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples that are computed together."""

    latent: Float[Tensor, "B C ..."]
    resolution_px: tuple[int, int]
    """Height and width of the pictures."""
    conditions: Any
    """What `Predict` makes conditionings of; one for each example."""
    mask: Float[Tensor, "B 1 ..."] | None = None
    weights: Float[Tensor, " B"] | None = None
    """On the loss of each example: the weight of regularisation images."""


Predict = Callable[[Batch, Noised], Tensor]
"""Gives the model's estimate of the latents without noise, with gradients."""


@dataclass(frozen=True, eq=False)
class Data(Generic[D]):
    """What a run learns from: which examples, in which order, and how they are fetched."""

    order: Callable[[int], Sequence[D]]
    """The batches of an epoch, the same at every call."""
    load: Callable[[D], Batch]


@dataclass(frozen=True)
class LoopConfig:
    """How long a run is, and what happens beside the steps of the optimiser."""

    steps: int
    """Of the optimiser, over the whole run."""
    accumulation: int = 1
    """Batches whose mean gradient makes one step."""
    max_norm: float = 0.0
    """Largest norm of the change of a layer; 0 for any."""


@dataclass(frozen=True)
class Step:
    """What one step of the optimiser has done."""

    number: int
    """Counted from 1."""
    epoch: int
    """Counted from 0."""
    loss: float
    """Mean over the examples of the step."""
    rates: Mapping[str, float]
    gradient_norm: float
    seconds: float
    skipped: bool
    """Whether the step was left out, since a gradient was not finite."""


class Run(Generic[D]):
    """A training run: everything that changes from step to step, and can be written down."""

    def __init__(
        self,
        network: TrainableNetwork,
        data: Data[D],
        predict: Predict,
        objective: Objective,
        stepper: Stepper,
        config: LoopConfig,
        seed: int,
    ) -> None:
        """Takes the parts of a run at its start.

        Args:
            network: What is trained.
            data: What it learns from.
            predict: The model.
            objective: Noise and loss.
            stepper: The optimiser over parameters of `network`.
            config: Length and manner.
            seed: Of noise and ranks. Dropout uses torch's global generator, which is the caller's.
        """
        self.network = network
        self.done = 0
        self.is_whole = True
        """Whether the parameters and the optimiser are those after a step, and not in the middle."""
        self.epoch = 0
        self._data = data
        self._predict = predict
        self._objective = objective
        self._stepper = stepper
        self._config = config
        self._noise = Generator().manual_seed(seed)
        # Apart, so that noise does not depend on how a step is cut into batches.
        self._ranks = Generator().manual_seed(seed)
        self._position = 0
        self._order: Sequence[D] = ()
        self._ordered: int | None = None

    @property
    def total(self) -> int:
        """How many steps the whole run has."""
        return self._config.steps

    def steps(self) -> Iterator[Step]:
        """Trains, and yields after each step, until the last one.

        Where the gradients of a step cannot be had, the run is as it was before that step.

        Raises:
            TrainingError: The loss is not finite.
        """
        while self.done < self._config.steps:
            started = time.perf_counter()
            self.network.train()
            before = self._place()
            try:
                loss = self._accumulated()
            except BaseException:
                self._return_to(before)
                raise
            self.is_whole = False
            result = self._stepper.step(self._limit if self._config.max_norm else None)
            self.done += 1
            self.is_whole = True
            yield Step(
                self.done,
                self.epoch,
                loss,
                self._stepper.rates(),
                result.norm,
                time.perf_counter() - started,
                result.skipped,
            )

    @contextmanager
    def as_used(self) -> collections.abc.Generator[TrainableNetwork]:
        """Lends the network as it will be used: averaged, without dropout, without gradients."""
        self.network.eval()
        self._stepper.eval()
        try:
            with torch.no_grad():
                yield self.network
        finally:
            self._stepper.train()
            self.network.train()

    def validate(self, batches: Sequence[D], seed: int) -> float:
        """Returns the mean loss over batches at fixed noise, which changes nothing of the run."""
        losses: list[Tensor] = []
        with self.as_used() as network:
            for one in batches:
                batch = self._data.load(one)
                for noised in self._objective.fixed(batch.latent, seed):
                    network.begin_step(noised.level, Generator().manual_seed(seed))
                    denoised = self._predict(batch, noised)
                    losses.append(self._losses(batch, noised, denoised))
        return float(torch.cat(losses).mean())

    def state(self) -> dict[str, Any]:
        """Returns everything that the next step depends on: tensors and plain values.

        Nothing that was worked out is left out: parameters in their own precision, the optimiser,
        the generators (also torch's global ones, which dropout draws from), the place in the data.
        """
        return {
            "step": self.done,
            "network": {name: value.detach() for name, value in self.network.state_dict().items()},
            "optimizer": self._stepper.state(),
            **self._place(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of a run with the same network, data and configuration.

        Raises:
            TrainingError: The state is of another network or another optimiser.
        """
        try:
            self.network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise TrainingError(
                "The state to go on from was made with other layers, another method or another rank. "
                "Give this run another output name, or the settings of the run that it goes on from. "
                f"({error})"
            ) from error
        self._stepper.load(state["optimizer"])
        self._return_to(state)
        self.done = state["step"]

    def _limit(self) -> None:
        limit_norms(self.network, self._config.max_norm)

    def _place(self) -> dict[str, Any]:
        """Returns where the run is in its data and in its random numbers."""
        return {
            "epoch": self.epoch,
            "position": self._position,
            "noise": self._noise.get_state(),
            "ranks": self._ranks.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def _return_to(self, place: Mapping[str, Any]) -> None:
        self.epoch, self._position = place["epoch"], place["position"]
        self._noise.set_state(place["noise"])
        self._ranks.set_state(place["ranks"])
        torch.set_rng_state(place["torch"])
        if place["cuda"] and len(place["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(place["cuda"])

    def _accumulated(self) -> float:
        """Adds the gradients of one step, and returns its loss."""
        described = [self._next() for _ in range(self._config.accumulation)]
        batches = [self._data.load(one) for one in described]
        examples = sum(batch.latent.shape[0] for batch in batches)
        self._stepper.zero_grad()
        parts: list[Tensor] = []
        for batch in batches:
            noised = self._objective.draw(batch.latent, self._noise, batch.resolution_px)
            self.network.begin_step(noised.level, self._ranks)
            denoised = self._predict(batch, noised)
            part = self._losses(batch, noised, denoised).sum() / examples
            self._stepper.scaled(part).backward()
            parts.append(part.detach())
        total = 0.0
        for value in torch.stack(parts).tolist():  # once, since to read is to wait for the device
            if not math.isfinite(value):
                self._stepper.zero_grad()
                raise TrainingError(
                    f"The loss of step {self.done + 1} is {value}: the training has come apart. Lower "
                    "the learning rate (or the rank of LoHa), or train in a wider precision. What was "
                    "learned before this step is kept."
                )
            total += value
        return total

    def _losses(self, batch: Batch, noised: Noised, denoised: Tensor) -> Tensor:
        return self._objective.losses(noised, batch.latent, denoised, batch.mask, batch.weights)

    def _next(self) -> D:
        """Returns the next batch, from the next epoch where this one is at its end."""
        if self._ordered != self.epoch:
            self._order, self._ordered = self._data.order(self.epoch), self.epoch
        if self._position >= len(self._order):
            self.epoch += 1
            self._position = 0
            self._order, self._ordered = self._data.order(self.epoch), self.epoch
        batch = self._order[self._position]
        self._position += 1
        return batch
