"""Train LoRA: trains an adapter of any method on the host's model, and saves it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..algorithms.training.config import LayersConfig, SamplesConfig, TrainingConfig
from ..algorithms.training.dataset import Dataset
from ..algorithms.training.losses import LossConfig
from ..algorithms.training.methods import METHODS, MethodConfig
from ..algorithms.training.noise import NoiseConfig
from ..algorithms.training.optimizers import OptimizerConfig
from .host.messages import show_text
from .host.sessions import Models, Session
from .host.trained_files import state_time
from .host.training_view import TrainingView
from .loss_plot import draw_losses
from .schema import advanced
from .sockets import (
    AdapterSocket,
    DatasetSocket,
    LayersSocket,
    LossSocket,
    MethodSocket,
    OptimizerSocket,
    SamplesSocket,
)

NEW = "a new run"
RESUME = "go on from the last state"
LARGEST_SEED = 2**53 - 1  # what a page can tell exactly


class TrainAdapter(io.ComfyNode):
    """Trains an adapter while the graph runs, and hands it on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterTrain",
            display_name="Train LoRA",
            category="Any Adapter/training",
            description=(
                "Trains a LoRA, or an adapter of any other method, on pictures with captions. The "
                "file appears among the LoRAs, works in Load Adapter and in other loaders, and the "
                "adapter goes on in the graph without it."
            ),
            inputs=[
                io.Model.Input("model", tooltip="What is trained on. It is not changed."),
                DatasetSocket.Input("dataset", tooltip="Pictures with captions: Image Folder."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="LoRA-LierLa",
                    tooltip="LoRA-LierLa is the usual LoRA on attention and feed-forward layers; "
                    "LoRA-C3Lier (LoCon) takes convolutions too; LoKr makes the smallest files.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="How much the adapter can learn, and how large its file is.",
                ),
                io.Float.Input(
                    "alpha",
                    default=8.0,
                    min=0.001,
                    max=4096.0,
                    step=0.001,
                    tooltip="Divided by the rank, it scales what is learned. Half of the rank is usual.",
                ),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=0,
                    max=1_000_000,
                    tooltip="Of the optimiser. 0: epochs says how long.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=1e-6,
                    round=False,
                    tooltip="0 takes what is recommended for the method: 0.0001 for LoRA.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Pictures that are computed together. More need more memory.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Side in pixels of a square of the area that pictures are brought to. 0: "
                    "that of the dataset.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    tooltip="The same seed and settings give the same file.",
                ),
                io.String.Input(
                    "output_name",
                    default="my_lora",
                    tooltip="Name of the file in the LoRA folder; styles/cat makes a folder. No file "
                    "is overwritten: the next one gets a number.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Encodes the captions. Needed unless the dataset has conditionings.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Encodes the pictures. Needed unless the dataset has latents.",
                ),
                MethodSocket.Input("method_options", optional=True),
                OptimizerSocket.Input("optimizer", optional=True),
                LossSocket.Input("noise_and_loss", optional=True),
                LayersSocket.Input("layers", optional=True),
                SamplesSocket.Input("samples", optional=True),
                advanced(
                    io.Int.Input(
                        "epochs",
                        default=10,
                        min=0,
                        max=100_000,
                        optional=True,
                        tooltip="Where steps is 0: how often the pictures are gone through.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "accumulation",
                        default=1,
                        min=1,
                        max=1024,
                        optional=True,
                        tooltip="Batches whose mean gradient makes one step: 4 with a batch of 2 "
                        "learns as a batch of 8, with the memory of 2.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "gradient_checkpointing",
                        default=False,
                        optional=True,
                        tooltip="Computes blocks twice and keeps less in between: a third slower, and "
                        "a fraction of the memory.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=["automatic", "fp32", "bf16", "fp16"],
                        default="automatic",
                        optional=True,
                        tooltip="What the model computes in. automatic takes bf16 in place of fp16 "
                        "where the device has it, and is as loaded otherwise.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "adapter_precision",
                        options=["fp32", "bf16"],
                        default="fp32",
                        optional=True,
                        tooltip="Of what is trained. bf16 is rounded at random, up or down, so that "
                        "small steps are not lost.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "cache",
                        options=["memory", "disk"],
                        default="memory",
                        optional=True,
                        tooltip="Where encoded pictures and captions are kept: on disk the next run finds "
                        "them too.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "max_norm",
                        default=0.0,
                        min=0.0,
                        max=1000.0,
                        step=0.01,
                        optional=True,
                        tooltip="Largest norm of the change of a layer, 0 for any; 1 is usual.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "validation_share",
                        default=0.0,
                        min=0.0,
                        max=0.9,
                        step=0.01,
                        optional=True,
                        tooltip="Share of the pictures that are not trained on, whose loss shows "
                        "whether more is learned than these pictures.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "validation_every",
                        default=50,
                        min=1,
                        max=1_000_000,
                        optional=True,
                        tooltip="Steps between two measurements of these.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "save_every",
                        default=0,
                        min=0,
                        max=1_000_000,
                        optional=True,
                        tooltip="Steps after which a file of the moment is saved, with all that is "
                        "needed to go on from there. 0: only at the end.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "keep_checkpoints",
                        default=0,
                        min=0,
                        max=10_000,
                        optional=True,
                        tooltip="How many files of moments of this run stay; 0 for all.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "resume",
                        options=[NEW, RESUME],
                        default=NEW,
                        optional=True,
                        tooltip="A run that was stopped, or was too short, goes on from where the "
                        "last one of this output_name ended, as if it had not been cut.",
                    )
                ),
            ],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter", tooltip="For trained of Load Adapter."
                ),
                io.String.Output(display_name="file", tooltip="Its name among the LoRAs."),
                io.Image.Output(display_name="loss_plot"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, output_name: str, resume: str = NEW, **_: Any) -> str:
        """Returns what changes when there is a newer state to go on from."""
        return str(state_time(output_name)) if resume == RESUME and output_name else ""

    @classmethod
    def execute(
        cls,
        model: Any,
        dataset: Dataset,
        method: str,
        rank: int,
        alpha: float,
        steps: int,
        learning_rate: float,
        batch_size: int,
        resolution: int,
        seed: int,
        output_name: str,
        clip: Any = None,
        vae: Any = None,
        method_options: dict[str, Any] | None = None,
        optimizer: OptimizerConfig | None = None,
        noise_and_loss: tuple[NoiseConfig, LossConfig] | None = None,
        layers: LayersConfig | None = None,
        samples: SamplesConfig | None = None,
        epochs: int = 10,
        accumulation: int = 1,
        gradient_checkpointing: bool = False,
        precision: Any = "automatic",
        adapter_precision: Any = "fp32",
        cache: Any = "memory",
        max_norm: float = 0.0,
        validation_share: float = 0.0,
        validation_every: int = 50,
        save_every: int = 0,
        keep_checkpoints: int = 0,
        resume: str = NEW,
    ) -> io.NodeOutput:
        """Trains, and returns the adapter, its file, the plot of the loss and a report."""
        noise, loss = noise_and_loss or (NoiseConfig(), LossConfig())
        rate = learning_rate or METHODS[method].learning_rate
        config = TrainingConfig(
            method=MethodConfig(method, rank, alpha, **(method_options or {})),
            optimizer=replace(optimizer or OptimizerConfig(), learning_rate=rate),
            noise=noise,
            loss=loss,
            layers=layers or LayersConfig(),
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            accumulation=accumulation,
            resolution_px=resolution or dataset.resolution_px,
            seed=seed,
            precision=precision,
            adapter_precision=adapter_precision,
            gradient_checkpointing=gradient_checkpointing,
            cache=cache,
            max_norm=max_norm,
            validation_share=validation_share,
            validation_every=validation_every,
            save_every=save_every,
            keep_checkpoints=keep_checkpoints,
            samples=samples or SamplesConfig(),
        )
        models, going_on = Models(model, clip, vae), resume == RESUME
        with closing(TrainingView(cls.hidden.unique_id, steps)) as view:
            outcome = Session(models, dataset, config, output_name, view, resume=going_on).run()
        show_text(cls.hidden.unique_id, outcome.report)
        plot = draw_losses(outcome.losses, outcome.validation)
        ui = {"text": [outcome.report], **view.output()}
        return io.NodeOutput(outcome.adapter_set, outcome.name, plot, outcome.report, ui=ui)
