"""ComfyUI in this process: models, loaders, and the time of single steps of its sampling."""

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import world
from start_comfyui import declare_missing_torchvision_ops

COMFYUI = Path(os.environ["COMFYUI_PATH"]).resolve()

# First, since ComfyUI has a module `nodes` too.
sys.path.insert(0, str(COMFYUI))
declare_missing_torchvision_ops()

from comfy.cli_args import args  # noqa: E402

args.cpu = not torch.accelerator.is_available()
args.base_directory = str(world.BASE)

# Before ComfyUI's `nodes` puts `comfy/` first on the path: then `utils` would be another.
import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import utils.extra_config  # noqa: E402, F401
from comfy.model_patcher import ModelPatcher  # noqa: E402
from server import PromptServer  # noqa: E402

import pack  # noqa: E402, F401
from anyadapter.algorithms.schedule import Schedule  # noqa: E402, F401
from anyadapter.algorithms.strength import Request  # noqa: E402
from anyadapter.nodes.host.moments import with_request  # noqa: E402
from anyadapter.nodes.loading import LoadAdapter  # noqa: E402

logging.getLogger().setLevel(logging.WARNING)  # the host speaks of every model that it loads

Build = Callable[[], ModelPatcher]
STRENGTH = 0.8
SMALL_LATENT = 8
TOKENS, CONTEXT_WIDTH = 77, 768


class _Unseen:
    """Stands for the page, which the pack's node tells what it did."""

    def send_progress_text(self, *_: Any) -> None:
        """Lets the text go."""

    def send_sync(self, *_: Any) -> None:
        """Lets the message go."""


PromptServer.instance = _Unseen()  # pyright: ignore
Loader = LoadAdapter.PREPARE_CLASS_CLONE({})


def load_model(size: world.Size) -> ModelPatcher:
    """Returns the diffusion model of a checkpoint."""
    path = str(world.checkpoint(size))
    return comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]


def ours(
    model: ModelPatcher,
    files: Sequence[str],
    mode: str,
    *,
    strength: float = STRENGTH,
    **inputs: Any,
) -> ModelPatcher:
    """Returns what a row of Load Adapter nodes makes of a model.

    Args:
        model: The model.
        files: The file of each node.
        mode: hook or patch.
        strength: Of each node.
        **inputs: Further inputs of each node.
    """
    for name in files:
        output = Loader.execute(
            adapter=name,
            strength_model=strength,
            strength_clip=0.0,
            mode=mode,
            model=model,
            **inputs,
        )
        model = output.args[0]
    return model


def stock(model: ModelPatcher, files: Sequence[str], *, bypass: bool = False) -> ModelPatcher:
    """Returns what a row of ComfyUI's own loaders makes of a model."""
    load = comfy.sd.load_bypass_lora_for_models if bypass else comfy.sd.load_lora_for_models
    for name in files:
        tensors = comfy.utils.load_torch_file(str(world.ADAPTERS / name), safe_load=True)
        model, _ = load(model, None, tensors, STRENGTH, 0.0)
    return model


def has_bypass() -> bool:
    """Whether this ComfyUI has a loader that does not patch weights."""
    return hasattr(comfy.sd, "load_bypass_lora_for_models")


@dataclass(frozen=True)
class Step:
    """How long a step took, by the clock and summed over the processor's cores."""

    seconds: float
    processor_seconds: float


@dataclass
class Turns:
    """What competitors that took turns needed for each of their steps."""

    seconds: dict[str, list[float]]
    processor_seconds: dict[str, list[float]]
    failed: dict[str, str] = field(default_factory=dict)
    """Competitors that ended in an error, and what it said."""


def take_turns(builds: Mapping[str, Build], *, runs: int, latent: int, batch: int) -> Turns:
    """Measures steps of several competitors, one of each in every round."""
    turns = Turns({name: [] for name in builds}, {name: [] for name in builds})
    patchers: dict[str, ModelPatcher] = {}
    for number in range(runs):
        for name, build in builds.items():
            if name in turns.failed:
                continue
            try:
                if name not in patchers:
                    patchers[name] = build()
                step = settled_step(patchers[name], latent=latent, batch=batch)
            except Exception as error:
                if name.startswith("ours"):
                    raise
                turns.failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                continue
            turns.seconds[name].append(step.seconds)
            turns.processor_seconds[name].append(step.processor_seconds)
            print(f"  {number + 1}/{runs} {name}: {step.seconds:.3f} s", flush=True)
    return turns


def seconds_of_loading(model: ModelPatcher, file: str) -> tuple[float, float, float, float]:
    """Returns the seconds of reading a file and of putting it on a loaded model.

    Returns:
        `load_file` alone, which only maps the file; the same and a copy of every tensor; the
        pack's node on the file; the same and the first step, beyond a later one.
    """
    path = world.ADAPTERS / file
    started = time.perf_counter()
    load_file(path)
    read = time.perf_counter() - started
    started = time.perf_counter()
    copies = [tensor.clone() for tensor in load_file(path).values()]
    touched = time.perf_counter() - started
    del copies
    path.touch()  # else the pack remembers what is in the file
    started = time.perf_counter()
    patcher = ours(model, [file], "hook")
    bound = time.perf_counter() - started
    started = time.perf_counter()
    sample(patcher, latent=SMALL_LATENT)
    whole = time.perf_counter() - started
    started = time.perf_counter()
    sample(patcher, latent=SMALL_LATENT)
    again = time.perf_counter() - started
    sample(model, latent=SMALL_LATENT)
    return read, touched, bound, bound + whole - again


def settled_step(patcher: ModelPatcher, *, latent: int, batch: int = 1) -> Step:
    """Returns the time of one step of sampling.

    If another clone of the model was in use before, a small step goes ahead that does not count:
    what loading and it prepare is paid once in a prompt, and the comparisons of prompts measure it.

    Args:
        patcher: The model.
        latent: Width and height in latent pixels.
        batch: 1 without a negative prompt, 2 with one.
    """
    loaded = [item.model for item in comfy.model_management.current_loaded_models]
    if not any(item is patcher for item in loaded):
        sample(patcher, latent=SMALL_LATENT, batch=batch)
    return sample(patcher, latent=latent, batch=batch)[0]


def sample(
    patcher: ModelPatcher,
    *,
    latent: int,
    batch: int = 1,
    steps: int = 1,
    request: Request | None = None,
) -> list[Step]:
    """Runs ComfyUI's own sampling for some steps, and returns the time of each.

    Args:
        patcher: The model.
        latent: Width and height in latent pixels.
        batch: 1 without a negative prompt, 2 with one.
        steps: How many.
        request: What the positive prompt asks for.
    """
    assert batch in (1, 2)
    done: list[Step] = []

    def each_step(
        model: Callable[..., torch.Tensor],
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        **_: Any,
    ) -> torch.Tensor:
        for sigma in sigmas[:-1]:
            synchronise()
            started, processor_started = time.perf_counter(), time.process_time()
            denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            synchronise()
            seconds = time.perf_counter() - started
            done.append(Step(seconds, time.process_time() - processor_started))
            assert torch.isfinite(denoised).all(), "numbers that are not finite take another time"
        return x

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, latent, latent, generator=generator)
    positive, negative = (
        [[torch.randn(1, TOKENS, CONTEXT_WIDTH, generator=generator), {}]] for _ in range(2)
    )
    if request is not None:
        positive = with_request(positive, request)
    sampling = patcher.get_model_object("model_sampling")
    comfy.sample.sample_custom(
        patcher,
        noise,
        1.0 if batch == 1 else 3.0,  # at 1 the host leaves the negative prompt out
        comfy.samplers.KSAMPLER(each_step),
        comfy.samplers.calculate_sigmas(sampling, "normal", steps),
        positive,
        negative,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=0,
    )
    assert len(done) == steps
    return done


def synchronise() -> None:
    """Waits until the device has done what it was told."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def forget() -> None:
    """Unloads all models and lets go of what nobody holds."""
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()
