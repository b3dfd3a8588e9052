"""Measures what adapters cost, side by side: this pack, ComfyUI's own nodes, no adapter.

Competitors take turns, one run each in every round, and a ratio is the median of the ratios within
the rounds. The table is printed, and every single sample is written as JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

import editing
import memory
import prompts
import quantised
import training
import world
from figures import Claim, Result, markdown, remarks, spread, table
from machine import this_machine
from settings import Settings

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from in_process import Build  # it starts a ComfyUI, so only those import it who need it

NONE = memory.NOBODY
HOOK = "ours, hook"
BLOCK = "ours, hook, one block slider"
PATCH = "ours, patch"
STOCK = "stock loader"
BYPASS = "stock bypass loader"

TITLES = {
    "lora": "rank-16 LoRA",
    "loha": "LoHa, dim 16",
    "lokr": "LoKr, dim 16, factor 8",
    "ia3": "(IA)^3",
    "oft": "diag-OFT, dim 16",
    "dora": "DoRA, rank 16",
}
STACKED = 5
GB_NEEDED: Mapping[world.Size, int] = {"small": 3, "large": 14}
"""Two sets of weights in float32, as patched ones are kept beside the others, and what a step at 64x64
takes meanwhile: 5 GB, most of it for attention."""


def new_strength(running: prompts.Prompts, settings: Settings) -> Result:
    """Compares prompts that change the strength with prompts without an adapter."""
    file = world.adapter("lora", settings.size)
    loaders = {
        NONE: None,
        HOOK: prompts.ours(file),
        BLOCK: prompts.one_block(file),
        PATCH: prompts.ours(file, "patch"),
        STOCK: prompts.stock(file),
    }
    if running.has(prompts.BYPASS):
        loaders[BYPASS] = prompts.stock(file, prompts.BYPASS)
    claims = (
        Claim(HOOK, NONE, 1.15),
        Claim(BLOCK, HOOK, 1.05),
        *(Claim(name, NONE) for name in loaders if name not in (NONE, HOOK, BLOCK)),
    )
    result = Result("strength", "prompt with a new strength", claims)
    result.samples = prompts.with_new_strengths(running, loaders, settings.runs)
    return result


def first_prompt(running: prompts.Prompts, settings: Settings) -> Result:
    """Compares first prompts with a file: reading, placing and one step."""
    file = world.adapter("lora", settings.size)
    loaders = {
        HOOK: prompts.ours,
        PATCH: lambda name: prompts.ours(name, "patch"),
        STOCK: prompts.stock,
    }
    claims = (Claim(HOOK, STOCK, 1.0), Claim(PATCH, STOCK))
    result = Result("first", "first prompt with a file", claims)
    result.samples = prompts.with_new_files(running, loaders, file, settings.runs)
    return result


def one_lora(model: "ModelPatcher", settings: Settings) -> Result:
    """Compares steps with a LoRA among all competitors."""
    return _all_competitors("lora", model, settings, at_most=1.10)


def other_method(kind: str) -> "Callable[[ModelPatcher, Settings], Result]":
    """Returns the comparison of steps with another method."""
    return lambda model, settings: _all_competitors(kind, model, settings, at_most=1.15)


def stacked(model: "ModelPatcher", settings: Settings) -> Result:
    """Compares steps with several LoRAs at once."""
    files = [world.adapter("lora", settings.size, number) for number in range(STACKED)]
    builds = _ours(model, files)
    title = f"step, {STACKED} rank-16 LoRAs"
    return _steps("stacked", title, builds, (Claim(HOOK, PATCH, 1.25),), settings)


def moving(model: "ModelPatcher", settings: Settings) -> Result:
    """Compares strengths that move over the steps, or differ by prompt, with a constant one."""
    import in_process

    constant, scheduled, asked = "constant", "schedule", "by conditioning"
    files = [world.adapter("lora", settings.size)]
    steady = in_process.ours(model, files, "hook")
    curve = in_process.Schedule.ramp(0.0, 1.0, 1.0, 0.2, "linear")
    rising = in_process.ours(model, files, "hook", schedule=curve)
    half = in_process.Request("", 0.5)
    result = Result(
        "moving",
        "last of 3 steps, two prompts, rank-16 LoRA",
        (
            Claim(scheduled, constant, 1.02),
            Claim(asked, constant, 1.02),
        ),
    )
    result.samples = {constant: [], scheduled: [], asked: []}
    for _ in range(settings.runs):
        for name, patcher, request in (
            (constant, steady, None),
            (scheduled, rising, None),
            (asked, steady, half),
        ):
            steps = in_process.sample(
                patcher, latent=settings.latent, batch=2, steps=3, request=request
            )
            result.samples[name].append(steps[-1].seconds)
            print(f"  {name}: {steps[-1].seconds:.3f} s", flush=True)
    return result


def loading(model: "ModelPatcher", settings: Settings) -> Result:
    """Compares reading and placing a large file with reading alone."""
    import in_process

    file = world.adapter("wide", settings.size)
    megabytes = (world.ADAPTERS / file).stat().st_size / 1e6
    read, touched = "load_file", "load_file and all bytes"
    bound, used = "ours, on the model", "ours, and used once"
    claims = (Claim(bound, read, 1.5), Claim(used, touched))
    result = Result("load", f"a file of {megabytes:.0f} MB", claims)
    result.samples = {name: [] for name in (read, touched, bound, used)}
    in_process.sample(model, latent=8)
    for number in range(settings.runs + 1):
        found = in_process.seconds_of_loading(model, file)
        if number:  # the first is the one that reads from the disk
            for name, seconds in zip(result.samples, found, strict=True):
                result.samples[name].append(seconds)
    return result


def peak_memory(settings: Settings) -> Result:
    """Compares the memory that an adapter takes with its own size."""
    file = world.adapter("wide", settings.size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    name = f"adapter in {str(dtype).removeprefix('torch.')}"
    claims = (Claim(HOOK, name, 1.3), Claim(PATCH, name), Claim(STOCK, name))
    result = Result("memory", "peak memory beyond the model", claims, unit="bytes")
    result.samples = {name: [], HOOK: [], PATCH: [], STOCK: []}
    result.notes.append(
        "the whole peak of a step, less that of a step without an adapter; the pages of mapped "
        "files do not count, as the system takes them back when it needs memory."
    )
    for _ in range(max(1, settings.runs // 3)):
        found = {
            who: memory.measure_in_process(who, "wide", settings.size, settings.latent)
            for who in (NONE, HOOK, PATCH, STOCK)
        }
        result.samples[name].append(world.bytes_in(file, dtype))
        for who in (HOOK, PATCH, STOCK):
            result.samples[who].append(found[who].own - found[NONE].own)
        parts = (
            f"{who} {one.peak / 1e6:.0f} ({one.mapped / 1e6:.0f} of files), then "
            f"{one.after / 1e6:.0f}"
            for who, one in found.items()
        )
        result.notes.append(f"peaks in MB: {'; '.join(parts)}.")
    return result


PROMPTS: "Mapping[str, Callable[[prompts.Prompts, Settings], Result]]" = {
    "strength": new_strength,
    "first": first_prompt,
}
"""What needs a ComfyUI in another process."""
ALONE: Mapping[str, Callable[[Settings], Result]] = {
    "memory": peak_memory,
    **editing.COMPARISONS,
    **training.COMPARISONS,
}
"""What starts processes of its own."""
STEPS: "Mapping[str, Callable[[ModelPatcher, Settings], Result]]" = {
    "lora": one_lora,
    **{kind: other_method(kind) for kind in TITLES if kind != "lora"},
    "stacked": stacked,
    "moving": moving,
    "load": loading,
    **quantised.COMPARISONS,
}
"""What needs a model in this process."""
NAMES = (*PROMPTS, *ALONE, *STEPS)
ALL_OF_TRAINING = "training"


def main(arguments: Sequence[str]) -> int:
    """Runs the comparisons that the command line names."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument(
        *("names",),
        nargs="*",
        metavar="NAME",
        help=f"comparisons, of {', '.join(NAMES)}, or {ALL_OF_TRAINING} for all with that before "
        "their names; default: all",
    )
    parser.add_argument(
        "--full", action="store_true", help="on a model of real size (2 GB on disk), with 7 runs"
    )
    parser.add_argument("--runs", type=int, help="how many rounds in place of 3, or 7")
    parser.add_argument("--latent", type=int, help="size of a step in place of 32, or 64")
    parser.add_argument("--batch", type=int, choices=(1, 2), default=1, help="2: with a negative")
    parser.add_argument("--output", type=Path, help="the JSON file, in place of .host/bench/DATE")
    parser.add_argument("--markdown", action="store_true", help="print what the README shows")
    chosen = parser.parse_args(arguments)
    names = [
        name
        for given in chosen.names
        for name in (training.COMPARISONS if given == ALL_OF_TRAINING else (given,))
    ]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"there is no comparison {unknown[0]!r}; there are {', '.join(NAMES)}")
    if (chosen.runs or 1) < 1:
        parser.error("--runs must be at least 1")
    settings = Settings(
        size="large" if chosen.full else "small",
        runs=chosen.runs or (7 if chosen.full else 3),
        latent=chosen.latent or (64 if chosen.full else 32),
        batch=chosen.batch,
    )
    moment = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    output = chosen.output or world.FOLDER / f"{moment}.json"
    with torch.inference_mode():  # as ComfyUI runs its prompts
        measure(names or NAMES, settings, output, as_markdown=chosen.markdown)
    return 0


def require_memory(size: world.Size) -> None:
    """Ends with a sentence if the measurement would drive this machine out of its memory."""
    free = psutil.virtual_memory().available
    if free < GB_NEEDED[size] * 1e9 and not torch.accelerator.is_available():
        sys.exit(
            f"The {size} model needs {GB_NEEDED[size]} GB of free memory to be measured, and there "
            f"are {free / 1e9:.0f}. Close other programs, or measure without --full."
        )


def measure(names: Sequence[str], settings: Settings, output: Path, *, as_markdown: bool) -> None:
    """Runs comparisons, prints their table, and writes the samples after each of them."""
    print("Making what is missing of checkpoints and adapters ...", flush=True)
    world.make_base(settings.size)
    require_memory(settings.size)
    machine = this_machine()
    print(f"{machine.sentence}.", flush=True)
    results: list[Result] = []
    for result in _results(names, settings):
        results.append(result)
        written = {
            "machine": asdict(machine),
            "settings": asdict(settings),
            "results": [asdict(one) for one in results],
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(written, indent=1), encoding="utf-8")
    print()
    if as_markdown:
        print(markdown(results, machine.sentence))
    else:
        print("\n".join([table(results), *(line for one in results for line in remarks(one))]))
    print(f"\nAll samples: {output}")


def _results(names: Sequence[str], settings: Settings) -> Iterator[Result]:
    """Measures in an order in which only one process at a time has loaded a model."""
    if any(name in PROMPTS for name in names):
        with prompts.running(settings.size) as running:
            for name in _announced(PROMPTS, names):
                yield PROMPTS[name](running, settings)
    for name in _announced(ALONE, names):
        yield ALONE[name](settings)
    if any(name in STEPS for name in names):
        import in_process

        model = in_process.load_model(settings.size)
        for name in _announced(STEPS, names):
            yield STEPS[name](model, settings)


def _announced(known: Mapping[str, object], names: Sequence[str]) -> Iterator[str]:
    for name in known:
        if name in names:
            print(f"\n{name}:", flush=True)
            yield name


def _all_competitors(
    kind: str, model: "ModelPatcher", settings: Settings, *, at_most: float
) -> Result:
    import in_process

    files = [world.adapter(kind, settings.size)]
    builds = _ours(model, files)
    claims = [Claim(HOOK, PATCH, at_most)]
    if kind == "lora":
        builds |= {
            NONE: lambda: model,
            STOCK: lambda: in_process.stock(model, files),
        }
        claims += [Claim(NONE, PATCH), Claim(STOCK, PATCH)]
    if in_process.has_bypass():
        builds[BYPASS] = lambda: in_process.stock(model, files, bypass=True)
        claims.append(Claim(BYPASS, PATCH))
    return _steps(kind, f"step, {TITLES[kind]}", builds, claims, settings)


def _ours(model: "ModelPatcher", files: Sequence[str]) -> "dict[str, Build]":
    import in_process

    return {
        HOOK: lambda: in_process.ours(model, files, "hook"),
        PATCH: lambda: in_process.ours(model, files, "patch"),
    }


def _steps(
    name: str,
    title: str,
    builds: "Mapping[str, Build]",
    claims: Sequence[Claim],
    settings: Settings,
) -> Result:
    import in_process

    result = Result(name, title, tuple(claims))
    turns = in_process.take_turns(
        builds, runs=settings.runs, latent=settings.latent, batch=settings.batch
    )
    result.samples, result.failed = dict(turns.seconds), turns.failed
    if not torch.accelerator.is_available():
        middles = (
            f"{who} {spread(numbers).median:.3f}"
            for who, numbers in turns.processor_seconds.items()
            if numbers
        )
        result.notes.append(f"seconds of processor time: {'; '.join(middles)}.")
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
