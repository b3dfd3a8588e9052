"""Models of every family of the host train: small ones of its own classes, with random weights."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor, nn

from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.training.config import TrainingConfig
from anyadapter.algorithms.training.dataset import Dataset, Item, LatentSource
from anyadapter.algorithms.training.losses import LossConfig
from anyadapter.algorithms.training.methods import MethodConfig
from anyadapter.algorithms.training.noise import NoiseConfig
from anyadapter.algorithms.training.objective import Objective
from anyadapter.algorithms.training.optimizers import OptimizerConfig
from anyadapter.nodes.host.files import load_adapter
from anyadapter.nodes.host.keymaps import diffusion_model_key_map
from anyadapter.nodes.host.prediction import Predictor, sampling_of
from anyadapter.nodes.host.sessions import Models, Outcome, Session
from anyadapter.nodes.host.training_view import TrainingView
from real_models import MODELS, real_model

CPU = torch.device("cpu")
TOKENS, WIDE, POOLED = 6, 64, 32
SMALL_FLUX = {
    "hidden_size": 128,
    "num_heads": 4,
    "axes_dim": [8, 12, 12],
    "context_in_dim": WIDE,
    "vec_in_dim": POOLED,
    "depth": 2,
    "depth_single_blocks": 2,
}
SMALL: dict[str, dict[str, Any]] = {
    "sdxl": {
        "model_channels": 64,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 1],
        "transformer_depth_output": [0, 0, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": WIDE,
        "num_head_channels": 32,
    },
    "sd35_medium": {
        "depth": 2,
        "adm_in_channels": POOLED,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": WIDE, "out_features": 128},
        },
        "x_block_self_attn_layers": [0],
    },
    "flux": SMALL_FLUX,
    "chroma": {
        **{name: value for name, value in SMALL_FLUX.items() if name != "vec_in_dim"},
        "out_dim": 128,
        "hidden_dim": WIDE,
    },
    "hunyuan_video": SMALL_FLUX,
    "wan": {"dim": 128, "num_heads": 4, "ffn_dim": 256, "num_layers": 2, "text_dim": WIDE},
    "lumina2": {
        "dim": 96,
        "cap_feat_dim": WIDE,
        "n_layers": 2,
        "n_heads": 3,
        "n_kv_heads": 3,
        "axes_dims": [16, 8, 8],
    },
    "qwen_image": {
        "num_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "axes_dims_rope": (8, 12, 12),
        "joint_attention_dim": WIDE,
    },
    "auraflow": {
        "cond_seq_dim": WIDE,
        "n_double_layers": 2,
        "n_layers": 4,
        "dim": 128,
        "n_heads": 4,
    },
}
POOLED_OF = {"sdxl": 1280, "sd35_medium": POOLED, "flux": POOLED, "hunyuan_video": POOLED}
CHANNELS = {"sdxl": 4, "auraflow": 4}
VIDEO = ("hunyuan_video", "wan", "qwen_image")
WITHOUT_EFFECT = {
    f"diffusion_model.transformer_blocks.1.{layer}"
    for layer in ("txt_mlp.net.0.proj", "txt_mlp.net.2", "attn.add_q_proj", "attn.to_add_out")
}
"""Nobody reads the text after the last block of Qwen-Image."""
CONFIG = TrainingConfig(
    MethodConfig("LoRA-LierLa", 4, 4.0), OptimizerConfig(learning_rate=1e-2), steps=3
)


def filled(model: nn.Module) -> nn.Module:
    """Gives a model finite numbers, which its classes leave open."""
    generator = Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        one_dimensional = tensor.ndim < 2
        value = torch.randn(tensor.shape, generator=generator)
        fan_in = math.prod(tensor.shape[1:]) if not one_dimensional else 400
        scale = 1.0 if one_dimensional and name.endswith("weight") else 0.0
        tensor.data = scale + value * 0.6 / fan_in**0.5
    for name, tensor in model.named_buffers():
        if name.endswith("pos_embed"):  # SD 3 leaves it as memory happens to be
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=SMALL)
def family(request: pytest.FixtureRequest) -> tuple[str, ModelPatcher]:
    name = request.param
    with torch.inference_mode():  # as in a prompt
        model = filled(real_model(name, MODELS[name][1] | SMALL[name], CPU))
        return name, ModelPatcher(model, CPU, CPU)


def dataset(name: str) -> Dataset:
    generator = Generator().manual_seed(1)
    shape = (CHANNELS.get(name, 16), *((1,) if name in VIDEO else ()), 8, 12)
    options = {"pooled_output": torch.randn(1, POOLED_OF.get(name, POOLED), generator=generator)}
    conditioning = [[torch.randn(1, TOKENS, WIDE, generator=generator), options]]
    latent = torch.randn(shape, generator=generator)
    return Dataset((Item("one", (96, 64), LatentSource(latent, conditioning)),), resolution_px=64)


def train(
    name: str, patcher: ModelPatcher, config: TrainingConfig, file: str = "family"
) -> Outcome:
    view = TrainingView("1", 1)
    with torch.inference_mode():
        return Session(Models(patcher), dataset(name), config, file, view, resume=False).run()


@cache
def trained(name: str, patcher: ModelPatcher) -> Outcome:
    """Returns what came of a run, once for all tests of a model."""
    return train(name, patcher, CONFIG)


def estimate(name: str, patcher: ModelPatcher) -> Tensor:
    """Returns what the model makes of noise."""
    source = dataset(name).items[0].source
    assert isinstance(source, LatentSource)
    objective = Objective(sampling_of(patcher), NoiseConfig(), LossConfig())
    with torch.inference_mode():
        noised = objective.fixed(source.latent[None], 3)[1]
        patcher.pre_run()
        return Predictor(patcher)([source.conditioning], noised)


def test_it_trains_and_leaves_the_model_as_it_was(family: tuple[str, ModelPatcher]) -> None:
    name, patcher = family
    before = estimate(name, patcher)
    outcome = trained(name, patcher)
    assert len(outcome.losses) == 3
    assert all(math.isfinite(loss) for _, loss in outcome.losses)
    untouched = {
        module
        for module, (adapter,) in outcome.adapter_set.adapters.items()
        if not adapter.tensors()["up"].any()
    }
    assert len(outcome.adapter_set.adapters) > len(WITHOUT_EFFECT)
    assert untouched == (WITHOUT_EFFECT if name == "qwen_image" else set())
    assert torch.equal(estimate(name, patcher), before)
    assert not any("forward" in module.__dict__ for module in patcher.model.modules())


def test_the_file_fits_the_model_it_was_trained_on(family: tuple[str, ModelPatcher]) -> None:
    name, patcher = family
    outcome = trained(name, patcher)
    binding = bind(load_adapter(outcome.name), diffusion_model_key_map(patcher))
    assert len(binding.bound) == len(outcome.adapter_set.adapters)
    assert not binding.unmatched


def test_recomputed_activations_give_the_same_losses(family: tuple[str, ModelPatcher]) -> None:
    name, patcher = family
    plain = trained(name, patcher)
    again = train(name, patcher, replace(CONFIG, gradient_checkpointing=True))
    assert [loss for _, loss in again.losses] == pytest.approx(
        [loss for _, loss in plain.losses], rel=1e-5
    )
