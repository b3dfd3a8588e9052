"""Calls a model of the host for training: its estimate of latents without noise, with gradients."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import copy_nested_dicts
from torch import Tensor

from ...algorithms.errors import TrainingError
from ...algorithms.training.model_sampling import ModelSampling, kind_of, zero_terminal
from ...algorithms.training.objective import Noised
from .out_of_place import OutOfPlace, writes_over_itself

Conditioning = Sequence[Sequence[Any]]
"""The host's CONDITIONING of one example."""


def sampling_of(patcher: ModelPatcher) -> ModelSampling:
    """Returns how a model is noised and what it predicts, as its own `model_sampling` has it.

    Raises:
        TrainingError: It predicts something that no loss is known for.
    """
    own = patcher.get_model_object("model_sampling")

    def noisy(sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        return own.noise_scaling(
            sigma.flatten(), noise.clone(), latent
        )  # it may write to the noise

    def denoised(sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        return own.calculate_denoised(sigma.flatten(), output, x)

    def shifted(level: Tensor) -> Tensor:
        return torch.stack([_sigma_at(own, float(one)) for one in level.flatten()])

    kind = kind_of(noisy, denoised)
    table = own.sigmas.detach().float().cpu().clone() if kind != "flow" else None
    return ModelSampling(kind, table, noisy, denoised, shifted if kind == "flow" else None)


def end_in_pure_noise(patcher: ModelPatcher) -> None:
    """Moves the noise levels of a clone so that the last one is pure noise, where it predicts v.

    The model is told of levels by the host's own table, which is another one then. Whoever draws
    with what was trained so gives the model such a table too: ModelSamplingDiscrete, `zsnr`.
    """
    own = patcher.get_model_object("model_sampling")
    if sampling_of(patcher).kind == "v":
        moved = copy.deepcopy(own)
        moved.set_sigmas(zero_terminal(own.sigmas.detach().clone()))
        patcher.add_object_patch("model_sampling", moved)


def _sigma_at(sampling: Any, level: float) -> Tensor:
    """Returns the noise at a share of the way from the picture to pure noise."""
    return torch.tensor(min(float(sampling.percent_to_sigma(1 - level)), 1.0))


class Predictor:
    """A model that the host has loaded, to be called with conditionings as they are."""

    def __init__(self, patcher: ModelPatcher) -> None:
        """Takes a patcher whose model is loaded."""
        self._patcher = patcher
        self._writes_over_itself = writes_over_itself(patcher.model)
        options: dict[str, Any] = dict(patcher.model_options.get("transformer_options", {}))
        options["wrappers"] = copy_nested_dicts(patcher.wrappers)
        options["callbacks"] = copy_nested_dicts(patcher.callbacks)
        self._options = options

    def __call__(self, conditionings: Sequence[Conditioning], noised: Noised) -> Tensor:
        """Returns the estimates of the latents without noise, in float32.

        Args:
            conditionings: One for each example of the batch.
            noised: The examples with noise, on the model's device.

        Raises:
            TrainingError: A conditioning is made of several.
        """
        conds = [
            self._model_conds(one, noised.noisy[index : index + 1])
            for index, one in enumerate(conditionings)
        ]
        first = conds[0]
        together = all(_go_together(first, other) for other in conds[1:])
        groups = [list(range(len(conds)))] if together else [[index] for index in range(len(conds))]
        parts = [self._apply([conds[index] for index in group], group, noised) for group in groups]
        return torch.cat(parts)

    def _apply(
        self, conds: Sequence[Mapping[str, Any]], group: Sequence[int], noised: Noised
    ) -> Tensor:
        model: Any = self._patcher.model
        x = noised.noisy[group[0] : group[-1] + 1]
        sigma = noised.sigma[group[0] : group[-1] + 1].to(x.device)
        options = {
            **self._options,
            "cond_or_uncond": [0] * len(conds),
            "sigmas": sigma,
            "uuids": [None] * len(conds),
        }
        joined = comfy.samplers.cond_cat([dict(one) for one in conds])
        with OutOfPlace() if self._writes_over_itself else nullcontext():
            return model.apply_model(x, sigma, **joined, transformer_options=options).float()

    def _model_conds(self, conditioning: Conditioning, x: Tensor) -> dict[str, Any]:
        """Returns what the model makes of a conditioning for one example."""
        if len(conditioning) != 1:
            raise TrainingError(
                f"A conditioning of the dataset is made of {len(conditioning)} parts, and one is "
                "trained with one. Connect conditionings that were not combined or scheduled."
            )
        model: Any = self._patcher.model
        conds = comfy.samplers.encode_model_conds(
            model.extra_conds,
            comfy.sampler_helpers.convert_cond(conditioning),
            x,
            x.device,
            "positive",
            latent_image=x,
        )
        return {
            name: cond.process_cond(batch_size=1, device=x.device, area=None)
            for name, cond in conds[0]["model_conds"].items()
        }


def _go_together(first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return first.keys() == other.keys() and all(
        first[name].can_concat(other[name]) for name in first
    )
