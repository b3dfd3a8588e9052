"""Makes one adapter of SDXL's size in a process of its own; `editing.py` starts it.

`python editing_once.py TASK WAY LAYERS` prints what `Made` holds, as JSON in its last line.
"""

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import memory
import pack  # noqa: F401
import processes
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.editing.accuracy import Accuracy
from anyadapter.algorithms.editing.combination import Input, Recipe, combined
from anyadapter.algorithms.editing.extraction import Extraction, extracted
from anyadapter.algorithms.editing.sites import Sited
from anyadapter.algorithms.editing.size import Size
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet

EXTRACT, COMBINE, PLAIN = "extract", "combine", "plain"
RANK, FILES = 32, 5

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """What a task took, and what came out."""

    seconds: float
    error: float
    """Relative, over all layers."""
    peak: int
    """Bytes in use at most, beyond what went in."""
    result: int
    """Bytes of the adapter in float32."""
    largest: int
    """Bytes of the largest layer in float32."""


def measure_in_process(task: str, way: str, *, every_layer: bool, exact: bool) -> Made:
    """Returns what a task took in a new process.

    Args:
        task: EXTRACT or COMBINE.
        way: The task itself, or PLAIN for an SVD of each layer.
        every_layer: Whether all layers count, or one of each size.
        exact: Whether memory is given back at once, so that a peak is what was needed.

    Raises:
        RuntimeError: The process failed.
    """
    layers = "all" if every_layer else "sizes"
    environment = memory.EXACT if exact else {}
    return Made(**processes.run(__file__, [task, way, layers], environment))


def sdxl() -> dict[Shape, int]:
    """Returns how many layers of each size the UNet of SDXL has."""
    import in_process  # noqa: F401  as it starts a ComfyUI
    from real_models import real_model

    weights = real_model("sdxl").diffusion_model.parameters()
    return dict(Counter(tuple(one.shape) for one in weights if one.ndim > 1))


def _random(shape: Shape, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def _loras(shape: Shape) -> list[Lora]:
    """Returns the adapters of all files on a layer."""
    ones = [1] * len(shape[2:])
    return [
        Lora(_random((shape[0], RANK, *ones), 2 * one), _random((RANK, *shape[1:]), 2 * one + 1), 1)
        for one in range(FILES)
    ]


def _plain(change: Tensor) -> float:
    """Decomposes a change, and returns the error of what is kept."""
    values = torch.linalg.svd(change.flatten(1), full_matrices=False)[1]
    return float(torch.linalg.vector_norm(values[RANK:]))


class Watch:
    """Counts the time of pieces of work, and the memory in use since a moment."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._before = 0

    @contextmanager
    def running(self, times: int = 1) -> Generator[None]:
        """Counts the time of what is done meanwhile, so many times."""
        start = time.perf_counter()
        yield
        self.seconds += times * (time.perf_counter() - start)

    def begin(self) -> None:
        """Lets memory count from what is there now."""
        if memory.is_measurable():
            memory.forget_peak()
            self._before = memory.now().own

    def peak(self) -> int:
        """Returns the bytes in use at most since then."""
        return memory.now().own - self._before if memory.is_measurable() else 0


def _with_svd(task: str, layers: Mapping[Shape, int], watch: Watch) -> Accuracy:
    accuracy = Accuracy()
    for shape, count in layers.items():
        if task == EXTRACT:
            change = _random(shape, 1, 0.01)
        else:
            products = (one.up.flatten(1) @ one.down.flatten(1) for one in _loras(shape))
            change = torch.stack([*products]).sum(0)
        with watch.running(count):
            error = _plain(change)
        accuracy.add(str(shape), float(change.norm()), error)
    return accuracy


def _extract(layers: Mapping[Shape, int], watch: Watch) -> tuple[Accuracy, list[Tensor]]:
    wish = Extraction(Size(rank=RANK))
    accuracy, made = Accuracy(), list[Tensor]()
    watch.begin()
    for shape, count in layers.items():
        for number in range(count):
            base = _random(shape, 0)
            tuned = base + _random(shape, 1 + number, 0.01)
            with watch.running():
                found = extracted(base, tuned, wish, f"{shape} {number}")
            accuracy.add(str(shape), found.norm, found.error)
            made += [tensor for one in found.adapters for tensor in one.tensors().values()]
    return accuracy, made


def _combine(layers: Mapping[Shape, int], watch: Watch) -> tuple[Accuracy, list[Tensor]]:
    names = [
        (f"{'x'.join(map(str, shape))}_{number}", shape)
        for shape, count in layers.items()
        for number in range(count)
    ]
    several = {shape: _loras(shape) for shape in layers}
    inputs: list[Input] = []
    for file in range(FILES):
        adapters = {name: (several[shape][file],) for name, shape in names}
        known = AdapterSet(f"{file}.safetensors", adapters, AdapterMetadata({}))
        sites = tuple(Sited(name, one) for name, (one,) in adapters.items())
        inputs.append(Input(known, sites, "1"))
    watch.begin()
    with watch.running():
        found = combined(inputs, Recipe("svd", Size(rank=RANK)))
    every = [one for adapters in found.adapter_set.adapters.values() for one in adapters]
    return found.accuracy, [tensor for one in every for tensor in one.tensors().values()]


TASKS: Mapping[str, Callable[[Mapping[Shape, int], Watch], tuple[Accuracy, list[Tensor]]]] = {
    EXTRACT: _extract,
    COMBINE: _combine,
}


def _run(task: str, way: str, *, every_layer: bool) -> Made:
    layers = sdxl()
    if not every_layer:
        layers = dict.fromkeys(layers, 1)
    largest = 4 * max(math.prod(shape) for shape in layers)
    watch = Watch()
    if way == PLAIN:
        accuracy = _with_svd(task, layers, watch)
        return Made(watch.seconds, accuracy.relative, 0, 0, largest)
    accuracy, made = TASKS[task](layers, watch)
    result = sum(4 * tensor.numel() for tensor in made)
    return Made(watch.seconds, accuracy.relative, watch.peak(), result, largest)


if __name__ == "__main__":
    given_task, given_way, given_layers = sys.argv[1:]
    with torch.inference_mode():  # as ComfyUI runs its prompts
        found = _run(given_task, given_way, every_layer=given_layers == "all")
    print(json.dumps(asdict(found)))
