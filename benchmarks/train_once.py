"""Trains a few times in a process of its own, one after the other; `training.py` starts it.

`python train_once.py JOBS`, a list of `Job` as JSON, prints what `Trained` holds for each.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import torch

import memory
import processes
import world


@dataclass(frozen=True)
class Job:
    """One training, on a model that was loaded for it and those before it."""

    trainer: Literal["ours", "host"]
    size: world.Size
    latent: int
    """Width and height of the examples, in latent pixels."""
    steps: int
    batch: int = 1
    rank: int = 8
    alpha: float = 8.0
    """Of ours, on all layers; the host's node has 1."""
    method: str = "LoRA-C3Lier"
    """Of ours; the host trains LoRA."""
    layers: str = "full"
    """Of ours: a preset. `full` is all of the host's, but for its norms and biases."""
    checkpointing: bool = False
    seed: int = 0
    measure_loss: bool = False


@dataclass(frozen=True)
class Trained:
    """What a training took, and what came out."""

    seconds: float
    """Of one step: the median of all but the first."""
    peak: int
    """Bytes in use at most, without what is mapped of files."""
    losses: tuple[float, float] | None = None
    """The native loss at fixed noise and levels, without an adapter and with what was trained."""


def run(jobs: Sequence[Job], *, exact_memory: bool = False) -> list[Trained]:
    """Returns what some trainings took that were run in one new process.

    Args:
        jobs: With models of one size.
        exact_memory: Whether memory is given back at once, so that a peak is what was needed. It
            makes steps slower.

    Raises:
        RuntimeError: One of them failed.
    """
    given = json.dumps([asdict(job) for job in jobs])
    found = processes.run(__file__, [given], memory.EXACT if exact_memory else {})
    return [Trained(one["seconds"], one["peak"], one["losses"]) for one in found]


def _run(jobs: Sequence[Job]) -> list[Trained]:
    import trainers  # here, as it starts a ComfyUI

    model = trainers.load_model(jobs[0].size)
    return [_trained(trainers.Training(model, job), job.measure_loss) for job in jobs]


def _trained(training: "trainers.Training", measure_loss: bool) -> Trained:
    times: list[float] = []
    memory.forget_peak()
    file = training.run(lambda: times.append(time.perf_counter()))
    peak = memory.now().own
    seconds = statistics.median(later - sooner for sooner, later in pairwise(times))
    losses = (training.native_loss(), training.native_loss(file)) if measure_loss else None
    (world.ADAPTERS / file).unlink()
    return Trained(seconds, peak, losses)


if __name__ == "__main__":
    with torch.inference_mode():  # as ComfyUI runs its prompts
        found = _run([Job(**one) for one in json.loads(sys.argv[1])])
    print(json.dumps([asdict(one) for one in found]))
