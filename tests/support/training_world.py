"""Trainings on the small checkpoint in this process: of a few layers, on small pictures."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from safetensors.torch import load_file
from torch import Tensor

from anyadapter.algorithms.training.config import LayersConfig, TrainingConfig
from anyadapter.algorithms.training.dataset import Dataset, ImageSource, Item
from anyadapter.algorithms.training.methods import MethodConfig
from anyadapter.algorithms.training.optimizers import OptimizerConfig
from anyadapter.nodes.host.caption_encoding import CaptionEncoder
from anyadapter.nodes.host.sessions import Models, Outcome, Session
from anyadapter.nodes.host.trained_files import output_path
from anyadapter.nodes.host.training_view import TrainingView
from base_directory import cached_checkpoint
from training_prompts import FEW_LAYERS, SIDE_PX


@cache
def models() -> Models:
    """Returns the small checkpoint as the host loads it: in inference mode."""
    with torch.inference_mode():
        path = str(cached_checkpoint())
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(path)
    return Models(model, clip, vae)


def picture(number: int = 0) -> Tensor:
    """Returns a picture of flat areas, `[64, 64, 3]`."""
    areas = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(number)) * 0.3 + 0.35
    side = SIDE_PX // 2
    return areas.repeat_interleave(side, 0).repeat_interleave(side, 1)


def item(number: int = 0, caption: str = "a lighthouse", **more: Any) -> Item:
    """Returns a picture with its caption."""
    source = ImageSource(picture(number))
    return Item(f"image {number}", (SIDE_PX, SIDE_PX), source, (caption,), "graph", **more)


def dataset(*items: Item, **more: Any) -> Dataset:
    """Returns a dataset, of one picture where none is given."""
    return Dataset(items or (item(),), SIDE_PX, **more)


def settings(rules: str = FEW_LAYERS, rate: float = 1e-3, **changes: Any) -> TrainingConfig:
    """Returns a short run of a LoRA."""
    plain = TrainingConfig(
        MethodConfig("LoRA-LierLa", rank=4, alpha=4.0),
        OptimizerConfig(learning_rate=rate),
        layers=LayersConfig(rules=rules),
        steps=3,
        resolution_px=SIDE_PX,
    )
    return replace(plain, **changes)


@dataclass(frozen=True, eq=False)
class Trial:
    """One training, ready to be run."""

    config: TrainingConfig = field(default_factory=settings)
    data: Dataset = field(default_factory=dataset)
    name: str = "cat"
    model: ModelPatcher | None = None
    """The small checkpoint's where None is given."""

    def run(self, *, resume: bool = False, view: TrainingView | None = None) -> Outcome:
        """Trains as the node does."""
        used = replace(models(), model=self.model) if self.model else models()
        view = view or TrainingView("1", self.config.steps)
        with torch.inference_mode():
            return Session(used, self.data, self.config, self.name, view, resume=resume).run()


def with_moment(moment: Callable[[int], None]) -> ModelPatcher:
    """Returns the model of the checkpoint, which first calls something, with the number of the call."""
    clone = models().model.clone()
    numbers = itertools.count(1)

    def called(executor: Any, *args: Any, **kwargs: Any) -> Any:
        moment(next(numbers))
        return executor(*args, **kwargs)

    clone.add_wrapper(WrappersMP.APPLY_MODEL, called)
    return clone


def losses(outcome: Outcome) -> list[float]:
    """Returns the loss of each step."""
    return [loss for _, loss in outcome.losses]


def tensors(name: str) -> dict[str, Tensor]:
    """Returns what is in a trained file."""
    return load_file(output_path(name.removesuffix(".safetensors")))


def same(first: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two files hold the same, bit for bit."""
    return first.keys() == other.keys() and all(
        torch.equal(_bits(first[name]), _bits(other[name])) for name in first
    )


def _bits(tensor: Tensor) -> Tensor:
    """Returns the bytes: weights that a checkpoint lacks are what lay in memory, NaN too."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def sampled(steps: int = 2) -> Tensor:
    """Returns a latent that the host samples with the models of the checkpoint."""
    used = models()
    assert used.clip is not None
    with torch.inference_mode():
        text = CaptionEncoder(used.clip, trained=False)
        positive, negative = (
            [[one, dict(more)] for one, more in text.conditioning(words)]
            for words in ("a lighthouse", "")
        )
        latent = torch.zeros(1, 4, 8, 8)
        noise = comfy.sample.prepare_noise(latent, 1)
        settings = (steps, 3.0, "euler", "normal", positive, negative, latent)
        return comfy.sample.sample(used.model, noise, *settings, seed=1, disable_pbar=True).clone()


def names_below(folder: Path, endings: Sequence[str] = (".safetensors", ".state")) -> list[str]:
    """Returns the files in a folder and below it."""
    found = (path for path in folder.rglob("*") if path.suffix in endings)
    return sorted(path.relative_to(folder).as_posix() for path in found)
