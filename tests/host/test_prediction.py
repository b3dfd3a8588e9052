"""Training calls a model as the host's sampling does, and knows its noise levels."""

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.losses import LossConfig
from anyadapter.algorithms.training.model_sampling import zero_terminal
from anyadapter.algorithms.training.noise import NoiseConfig
from anyadapter.algorithms.training.objective import Noised, Objective
from anyadapter.nodes.host.caption_encoding import CaptionEncoder
from anyadapter.nodes.host.precision import compute_in, computed_in, precision_of
from anyadapter.nodes.host.prediction import (
    Conditioning,
    Predictor,
    end_in_pure_noise,
    sampling_of,
)
from training_world import models


class Velocity(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The schedule of SD with a model that predicts v."""


def predicting_v() -> ModelPatcher:
    clone = models().model.clone()
    clone.add_object_patch("model_sampling", Velocity())
    return clone


def captions(*words: str) -> list[Conditioning]:
    clip = models().clip
    assert clip is not None
    encoder = CaptionEncoder(clip, trained=False)
    return [encoder.conditioning(one) for one in words]


def noised(patcher: ModelPatcher, count: int) -> Noised:
    latent = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    objective = Objective(sampling_of(patcher), NoiseConfig(), LossConfig())
    return objective.draw(latent, torch.Generator().manual_seed(1), (64, 64))


def by_host(patcher: ModelPatcher, conditioning: Conditioning, x: Tensor, sigma: Tensor) -> Tensor:
    """Returns the estimate of the host's own guider, at a guidance of 1."""
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds([[one, dict(more)] for one, more in conditioning], [])
    guider.set_cfg(1.0)
    found: list[Tensor] = []

    class Once(comfy.samplers.Sampler):
        def sample(self, model_wrap, *args, **_) -> Tensor:
            found.append(model_wrap(x, sigma, model_options=args[1]["model_options"]))
            return x

    zero = torch.zeros_like(x)
    guider.sample(zero, zero, Once(), torch.tensor([1.0, 0.0]), disable_pbar=True)
    return found[0]


@torch.no_grad()
def test_an_estimate_is_that_of_the_host() -> None:
    patcher, (words,) = models().model, captions("a lighthouse")
    one = noised(patcher, 1)
    expected = by_host(patcher, words, one.noisy, one.sigma)
    patcher.pre_run()
    assert torch.equal(Predictor(patcher)([words], one), expected)


@torch.no_grad()
def test_each_example_of_a_batch_has_its_own_words() -> None:
    patcher = models().model
    patcher.pre_run()
    words = captions("a lighthouse", "a dog " * 60)  # of two lengths
    both = noised(patcher, 2)
    together = Predictor(patcher)(words, both)
    for index, one in enumerate(words):
        alone = Noised(
            both.noisy[index : index + 1],
            both.noise[index : index + 1],
            None,
            both.sigma[index : index + 1],
            both.level[index : index + 1],
        )
        torch.testing.assert_close(
            together[index : index + 1], Predictor(patcher)([one], alone), rtol=1e-4, atol=1e-4
        )


def test_a_conditioning_of_several_parts_is_refused() -> None:
    patcher = models().model
    (words,) = captions("a lighthouse")
    with pytest.raises(TrainingError, match="made of 2 parts"):
        Predictor(patcher)([[*words, *words]], noised(patcher, 1))


def test_the_kind_of_a_model_is_read_from_its_sampling() -> None:
    assert sampling_of(models().model).kind == "eps"
    assert sampling_of(predicting_v()).kind == "v"


def test_the_last_level_of_a_v_model_can_be_pure_noise() -> None:
    patcher = predicting_v()
    before = patcher.get_model_object("model_sampling")
    end_in_pure_noise(patcher)
    moved = patcher.get_model_object("model_sampling")
    assert torch.equal(moved.sigmas, zero_terminal(before.sigmas))
    assert moved.sigmas[-1] > 1000 > before.sigmas[-1]
    assert int(moved.timestep(moved.sigmas[-1:])) == 999
    sampling = sampling_of(patcher)
    objective = Objective(sampling, NoiseConfig(zero_terminal_snr=True), LossConfig())
    assert sampling.sigmas is not None
    assert objective.sampling.sigmas is not None
    assert torch.equal(objective.sampling.sigmas, sampling.sigmas)


def test_a_model_that_predicts_noise_keeps_its_levels() -> None:
    patcher = models().model.clone()
    end_in_pure_noise(patcher)
    assert "model_sampling" not in patcher.object_patches


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("automatic", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_a_clone_computes_in_the_precision_that_is_asked_for(
    precision: str, dtype: torch.dtype
) -> None:
    clone = models().model.clone()
    compute_in(clone, precision)
    assert computed_in(clone) == dtype
    assert precision_of(clone) == ("fp32" if precision == "automatic" else precision)
    assert computed_in(models().model) == torch.float32


def test_bfloat16_takes_the_place_of_float16_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has_bf16, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda _, has=has_bf16: has)
        clone = models().model.clone()
        clone.set_model_compute_dtype(torch.float16)
        compute_in(clone, "automatic")
        assert precision_of(clone) == expected
