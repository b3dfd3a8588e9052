"""Everything that decides what a training run computes: complete, frozen, and kept in its file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..errors import TrainingError
from .losses import LossConfig
from .methods import MethodConfig
from .noise import NoiseConfig
from .optimizer_kinds import kind_of
from .optimizers import OptimizerConfig

Precision = Literal["automatic", "fp32", "bf16", "fp16"]


OF_THE_METHOD = "method"


@dataclass(frozen=True)
class LayersConfig:
    """Which layers learn."""

    preset: str = OF_THE_METHOD
    """A preset of layers, or `method`: those that its own tool adapts."""
    rules: str = ""
    """One rule a line, first match wins: `pattern: key=value ...`."""
    block_arguments: str = ""
    """sd-scripts' arguments, one `key=value` a line: `block_dims`, `down_lr_weight`, ..."""
    text_encoders: bool = False
    """Whether those that are connected learn too."""

    def arguments(self) -> dict[str, str]:
        """Returns `block_arguments` by name.

        Raises:
            TrainingError: A line is no `key=value`.
        """
        found: dict[str, str] = {}
        for line in filter(None, map(str.strip, self.block_arguments.splitlines())):
            key, equals, value = line.partition("=")
            if not equals or not key.strip():
                raise TrainingError(
                    f'The block argument "{line}" is no key=value. Write one a line, for example '
                    "down_lr_weight=cosine."
                )
            found[key.strip()] = value.strip()
        return found


@dataclass(frozen=True)
class SamplesConfig:
    """Pictures that are drawn while a run goes on."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    every_steps: int = 100
    at_first: bool = True
    width_px: int = 512
    height_px: int = 512
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 0


@dataclass(frozen=True)
class TrainingConfig:
    """A run, but for its model and its data."""

    method: MethodConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    steps: int = 500
    """Of the optimiser; 0 where `epochs` says how many."""
    epochs: int = 0
    batch_size: int = 1
    accumulation: int = 1
    resolution_px: int = 512
    seed: int = 0
    precision: Precision = "automatic"
    adapter_precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    cache: Literal["memory", "disk"] = "memory"
    """Where encoded pictures and captions are kept."""
    max_norm: float = 0.0
    validation_share: float = 0.0
    validation_every: int = 50
    save_every: int = 0
    keep_checkpoints: int = 0
    """How many of the files of steps stay; 0 for all."""
    training_details: bool = True
    """Whether files tell how they were made, and not only what loaders need."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)

    def __post_init__(self) -> None:
        """Refuses what does not go together.

        Raises:
            TrainingError: It does not.
        """
        if self.max_norm and kind_of(self.optimizer.name).schedule_free:
            raise TrainingError(
                f"max_norm limits what is trained, and {self.optimizer.name} saves an average that "
                "it keeps to itself. Set max_norm to 0, or choose another optimiser."
            )

    def warnings(self) -> tuple[str, ...]:
        """Returns what is allowed and most likely not meant, a sentence each."""
        return (*self.method.warnings(), *self.optimizer.warnings())

    def to_json(self) -> str:
        """Returns it as one JSON object."""
        return json.dumps(asdict(self), sort_keys=True)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Returns what of another run differs and would make this one go on as a third.

        Args:
            other: What `to_json` gave, read back.
        """
        own = json.loads(self.to_json())
        return [
            f"{path} was {before!r} and is {now!r}"
            for path, before, now in _differences(dict(other), own, "")
            if path.partition(".")[0] not in FREE
        ]


FREE = (
    *("steps", "epochs", "save_every", "keep_checkpoints", "samples", "validation_every"),
    *("gradient_checkpointing", "cache", "training_details"),
)
"""What may change between the parts of one run."""


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str
) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in dict.fromkeys([*before, *now]):
        where = f"{path}.{key}" if path else key
        one, other = before.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _differences(one, other, where)
        elif one != other:
            found.append((where, one, other))
    return found


def steps_of(config: TrainingConfig, batches_per_epoch: int) -> int:
    """Returns how many steps of the optimiser a run has.

    Raises:
        TrainingError: Neither steps nor epochs say anything.
    """
    if config.steps > 0:
        return config.steps
    if config.epochs > 0:
        return max(1, -(-config.epochs * batches_per_epoch // config.accumulation))
    raise TrainingError("The run has no length: set steps, or set steps to 0 and epochs above 0.")
