"""Compares making adapters of SDXL's size, by this pack and by a plain SVD of each layer.

Weights are random, so that no spectrum falls off: the hardest case. Each competitor is a process of its
own, and they take turns.
"""

from collections.abc import Callable, Mapping
from functools import partial

from editing_once import COMBINE, EXTRACT, FILES, PLAIN, RANK, Made, measure_in_process
from figures import Claim, Result
from settings import Settings

OURS = "ours"
SVD = "torch.linalg.svd of each layer"
NEEDED = "the adapter, and one layer"
TITLES = {
    EXTRACT: f"a rank-{RANK} LoRA of two models",
    COMBINE: f"{FILES} rank-{RANK} LoRAs into one of rank {RANK}",
}


def seconds(task: str, settings: Settings) -> Result:
    """Compares the time of a task."""
    result = Result(task, f"{TITLES[task]}, {_layers(settings)}", (Claim(OURS, SVD, 0.2),))
    result.samples = {SVD: [], OURS: []}
    for _ in range(settings.runs):
        for who, way in ((SVD, PLAIN), (OURS, task)):
            made = _measured(task, way, settings)
            result.samples[who].append(made.seconds)
            print(f"  {who}: {made.seconds:.1f} s, error {100 * made.error:.3f} %", flush=True)
    if settings.size == "large":
        result.notes.append(
            "one SVD of each size of layers is measured, and counted as often as there are such "
            "layers; ours does all of them."
        )
    return result


def peak_memory(task: str, settings: Settings) -> Result:
    """Compares the memory of a task, beyond what goes in, with what comes out."""
    title = f"peak memory of {TITLES[task]}, {_layers(settings)}"
    result = Result(f"{task}-memory", title, (Claim(OURS, NEEDED),), unit="bytes")
    made = _measured(task, task, settings, exact_memory=True)
    result.samples = {NEEDED: [made.result + made.largest], OURS: [made.peak]}
    result.notes.append(
        f"the adapter {made.result / 1e6:.0f} MB, the largest layer {made.largest / 1e6:.0f} MB, "
        "both in float32."
    )
    return result


def _measured(task: str, way: str, settings: Settings, *, exact_memory: bool = False) -> Made:
    return measure_in_process(task, way, every_layer=settings.size == "large", exact=exact_memory)


def _layers(settings: Settings) -> str:
    return "all layers of SDXL" if settings.size == "large" else "one of each size in SDXL"


COMPARISONS: Mapping[str, Callable[[Settings], Result]] = {
    EXTRACT: partial(seconds, EXTRACT),
    COMBINE: partial(seconds, COMBINE),
    f"{EXTRACT}-memory": partial(peak_memory, EXTRACT),
    f"{COMBINE}-memory": partial(peak_memory, COMBINE),
}
