"""Both trainers on the same model and examples in this process: this pack's, and ComfyUI's own node."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn.functional import interpolate

import in_process  # before the host's modules, which it makes known
import world
from in_process import comfy, load_model
from train_once import Job

# isort: split
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_train import TrainLoraNode

from anyadapter.algorithms.training.config import LayersConfig, Precision, TrainingConfig
from anyadapter.algorithms.training.dataset import Dataset
from anyadapter.algorithms.training.losses import LossConfig
from anyadapter.algorithms.training.methods import MethodConfig
from anyadapter.algorithms.training.noise import NoiseConfig
from anyadapter.algorithms.training.objective import Objective
from anyadapter.algorithms.training.optimizers import OptimizerConfig
from anyadapter.nodes.host.items import latent_items
from anyadapter.nodes.host.prediction import Predictor, sampling_of
from anyadapter.nodes.host.sessions import Models, Session
from anyadapter.nodes.host.training_view import TrainingView

__all__ = ["Training", "load_model"]

StepDone = Callable[[], None]

RATE = 5e-4
"""What the host's node is given if nobody says otherwise."""
EXAMPLES = 4
CELLS = 4
"""Width and height of the examples before they are made larger, and so smooth."""
DEVIATION = 5.5
"""Of the numbers in a latent of SD 1.5, before the host's factor."""
EXAMPLES_SEED, MEASURED_SEED = 0, 1_000_000
"""The second is of the noise that losses are measured at, which no training draws."""
NAME = f"trained-{os.getpid()}"


class Training:
    """One job, and the loss of what comes out of it."""

    def __init__(self, model: ModelPatcher, job: Job) -> None:
        """Takes a loaded model."""
        self._model = model
        self._job = job
        on_gpu = torch.accelerator.is_available()
        self._precision: Precision = "bf16" if on_gpu else "fp32"
        generator = Generator().manual_seed(EXAMPLES_SEED)
        cells = torch.randn(EXAMPLES, 4, CELLS, CELLS, generator=generator) * DEVIATION
        self._latents = interpolate(cells, size=(job.latent, job.latent), mode="bilinear")
        size = (1, in_process.TOKENS, in_process.CONTEXT_WIDTH)
        self._conditionings: list[Any] = [
            [[torch.randn(size, generator=generator), {}]] for _ in range(EXAMPLES)
        ]

    def run(self, step_done: StepDone) -> str:
        """Trains, and returns the name of the file.

        Args:
            step_done: Called after each step.
        """

        def settled() -> None:
            in_process.synchronise()
            step_done()

        return self._ours(settled) if self._job.trainer == "ours" else self._host(settled)

    def native_loss(self, file: str | None = None) -> float:
        """Returns the mean squared error of the predicted noise, over fixed noise and levels.

        Args:
            file: An adapter, put on the model at strength 1.
        """
        model = self._model
        if file is not None:
            model = in_process.ours(model, [file], "hook", strength=1.0)
        comfy.model_management.load_models_gpu([model])
        model.pre_run()
        objective = Objective(sampling_of(model), NoiseConfig(), LossConfig())
        predict = Predictor(model)
        latent: Tensor = model.model.process_latent_in(self._latents.to(model.load_device))
        losses = [
            objective.losses(noised, latent, predict(self._conditionings, noised)).mean()
            for noised in objective.fixed(latent, MEASURED_SEED)
        ]
        return float(torch.stack(losses).mean())

    def _ours(self, step_done: StepDone) -> str:
        job = self._job
        method = MethodConfig(
            job.method, job.rank, job.alpha, conv_rank=job.rank, conv_alpha=job.alpha
        )
        config = TrainingConfig(
            method,
            OptimizerConfig(learning_rate=RATE),
            layers=LayersConfig(job.layers),
            steps=job.steps,
            batch_size=job.batch,
            seed=job.seed,
            precision=self._precision,
            gradient_checkpointing=job.checkpointing,
        )
        dataset = Dataset(latent_items([{"samples": self._latents}], self._conditionings))
        view = _Watched(step_done, job.steps)
        session = Session(Models(self._model), dataset, config, NAME, view, resume=False)
        name = session.run().name
        state = (world.ADAPTERS / name).with_suffix("")
        shutil.rmtree(state.with_name(f"{state.name}-state"))
        return name

    def _host(self, step_done: StepDone) -> str:
        job = self._job
        comfy.utils.set_progress_bar_global_hook(lambda *_, **__: step_done())
        given: dict[str, Any] = {
            "model": self._model,
            "batch_size": job.batch,
            "steps": job.steps,
            "grad_accumulation_steps": 1,
            "learning_rate": RATE,
            "rank": job.rank,
            "optimizer": "AdamW",
            "loss_function": "MSE",
            "seed": job.seed,
            "training_dtype": self._precision,
            "lora_dtype": "fp32",
            "algorithm": "LoRA",
            "gradient_checkpointing": job.checkpointing,
            "existing_lora": "[None]",
            # Later than 0.3.75.
            "checkpoint_depth": 1,
            "offloading": False,
            "quantized_backward": False,
            "bucket_mode": False,
            "bypass_mode": False,
        }
        known = {one.id for one in TrainLoraNode.define_schema().inputs}
        output = TrainLoraNode.execute(
            latents=[{"samples": one[None]} for one in self._latents],
            positive=self._conditionings,
            **{name: [value] for name, value in given.items() if name in known},
        )
        comfy.utils.set_progress_bar_global_hook(None)
        # The model came first in 0.3.75, and is not handed on later.
        (tensors,) = [one for one in output.args if isinstance(one, dict) and "loss" not in one]
        name = f"{NAME}.safetensors"
        save_file({key: one.contiguous() for key, one in tensors.items()}, world.ADAPTERS / name)
        return name


class _Watched(TrainingView):
    """Tells of each step after it has been shown."""

    def __init__(self, step_done: StepDone, steps: int) -> None:
        super().__init__("benchmark", steps)
        self._step_done = step_done

    def step(self, step: int, loss: float, rate: float, seconds_per_step: float) -> None:
        super().step(step, loss, rate, seconds_per_step)
        self._step_done()
