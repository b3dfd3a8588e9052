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
from ..algorithms.training.optimizer_kinds import kind_of
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
                "adapter goes on in the graph without it. Connect a checkpoint and an Image Folder, "
                "give a name, and run; the other sockets are for finer settings."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The diffusion model that is trained on. It is not changed."
                ),
                DatasetSocket.Input(
                    "dataset",
                    tooltip="Pictures with captions, from Image Folder, or from one of the other "
                    "nodes that make datasets.",
                ),
                io.String.Input(
                    "output_name",
                    default="my_lora",
                    tooltip="Name of the file in the LoRA folder; styles/cat makes a folder. No file "
                    "is overwritten: the next one gets a number.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="LoRA-LierLa",
                    tooltip="What kind of adapter is made. LoRA-LierLa is the usual LoRA, right for "
                    "most; LoRA-C3Lier (LoCon) takes convolutions too, for textures and styles; LoKr "
                    "with full_matrix learns most, T-LoRA is for a single picture. The help of "
                    "this node tells them all.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="How much the adapter can learn, and how large its file is: 8 to 32 is "
                    "usual. Of OFT (kohya) it is the number of blocks, of Diag-OFT and BOFT their "
                    "size; (IA)^3 and Full have none.",
                ),
                io.Float.Input(
                    "alpha",
                    default=8.0,
                    min=0.001,
                    max=4096.0,
                    step=0.001,
                    tooltip="Divided by the rank it is a factor on what is learned. Half of the rank, "
                    "or the rank, is usual; with another one the learning rate must be another too.",
                ),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=0,
                    max=1_000_000,
                    tooltip="How often the adapter is corrected, each time by one batch of pictures. "
                    "500 to 2000 is usual for 10 to 40 pictures; too many, and it can only repeat "
                    "them. 0: epochs says how long.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=1e-6,
                    round=False,
                    tooltip="How far each step goes. 0 takes what is recommended for the method, "
                    "0.0001 for LoRA. Raise it if nothing is learned, halve it if the loss jumps or "
                    "pictures fall apart. 1 for Prodigy.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Pictures that are computed together in a step: 1 to 4 is usual. More "
                    "make steadier and longer steps, and need more memory.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Side in pixels of a square of the area that pictures are brought to. 0 "
                    "is that of the dataset; a smaller one needs much less memory.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=False,  # else each prompt would train anew
                    tooltip="Start of all that is random. The same seed and settings give the same "
                    "file.",
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
                MethodSocket.Input(
                    "method_options",
                    optional=True,
                    tooltip="Arguments of the methods, such as DoRA, dropouts and the factor of LoKr: "
                    "from Method Options. Empty: the usual ones.",
                ),
                OptimizerSocket.Input(
                    "optimizer",
                    optional=True,
                    tooltip="How steps are made, and how the learning rate runs over them: from "
                    "Optimizer. Empty: AdamW at a constant rate.",
                ),
                LossSocket.Input(
                    "noise_and_loss",
                    optional=True,
                    tooltip="How noisy pictures are made, and what errors cost: from Noise and Loss. "
                    "Empty: as the model itself was trained.",
                ),
                LayersSocket.Input(
                    "layers",
                    optional=True,
                    tooltip="Which layers learn, text encoders too: from Blocks and Layers. Empty: "
                    "those of the diffusion model that are usual for the method.",
                ),
                SamplesSocket.Input(
                    "samples",
                    optional=True,
                    tooltip="Prompts to draw pictures of while it trains: from Samples. Empty: none.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    optional=True,
                    tooltip="Turn it on if the memory of the device does not suffice: parts of the "
                    "model are computed twice and not kept in between. A third slower, a fraction of "
                    "the memory, the same result.",
                ),
                advanced(
                    io.Int.Input(
                        "epochs",
                        default=10,
                        min=0,
                        max=100_000,
                        optional=True,
                        tooltip="Where steps is 0: how often all pictures are gone through.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "save_every",
                        default=0,
                        min=0,
                        max=1_000_000,
                        optional=True,
                        tooltip="After so many steps, again and again, a file of the moment is saved "
                        "too, so that you can take the best one. 0: only at the end. 250 is usual.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "keep_checkpoints",
                        default=0,
                        min=0,
                        max=10_000,
                        optional=True,
                        tooltip="How many of the files of save_every stay, the newest ones; 0 for all.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "resume",
                        options=[NEW, RESUME],
                        default=NEW,
                        optional=True,
                        tooltip="A run that was stopped, or was too short, goes on from where the "
                        "last one of this output_name ended, as if it had not been cut. Settings "
                        "must be the same; raise steps to make it longer.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "accumulation",
                        default=1,
                        min=1,
                        max=1024,
                        optional=True,
                        tooltip="Batches that make one step together: 4 with a batch_size of 2 learns "
                        "as a batch of 8 does, with the memory of 2, and takes four times as long.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=["automatic", "fp32", "bf16", "fp16"],
                        default="automatic",
                        optional=True,
                        tooltip="What numbers the model computes in. automatic takes it as it is "
                        "loaded, but bf16 in place of fp16 where the device has it. fp32 is exact, "
                        "slower, and needs twice the memory; fp16 is for devices without bf16.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "adapter_precision",
                        options=["fp32", "bf16"],
                        default="fp32",
                        optional=True,
                        tooltip="What numbers are trained. fp32 is right for all but very large "
                        "adapters; bf16 halves their memory, and is rounded at random, up or down, so "
                        "that small steps are not lost.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "cache",
                        options=["memory", "disk"],
                        default="memory",
                        optional=True,
                        tooltip="Where encoded pictures and captions are kept. disk is for many thousands of "
                        "pictures, and is there again in the next run.",
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
                        tooltip="Share of the pictures that are kept back and not trained on. Once "
                        "their loss rises while the other falls, stop. 0.1 with 20 pictures or more; "
                        "0: none.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "validation_every",
                        default=50,
                        min=1,
                        max=1_000_000,
                        optional=True,
                        tooltip="With validation_share: after how many steps their loss is measured.",
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
                        tooltip="Limits how much any single layer may change (scale_weight_norms of "
                        "sd-scripts), against adapters that drown others. 1 is usual, 0 is no limit.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "training_details",
                        default=True,
                        optional=True,
                        tooltip="Writes into the file how it was made: settings, counts and tags of "
                        "the pictures, never paths. Off writes only what loaders need.",
                    )
                ),
            ],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter",
                    tooltip="What was trained: connect it to trained of Load Adapter.",
                ),
                io.String.Output(display_name="file", tooltip="Name of the file among the LoRAs."),
                io.Image.Output(
                    display_name="loss_plot",
                    tooltip="The loss over the steps, smoothed, with that of validation.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was trained for how long, what was saved, and what to look at.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls, output_name: str | None, resume: str | None = NEW, **_: Any
    ) -> str | float:
        """Returns what changes when there is a newer state to go on from."""
        if resume != RESUME:
            return ""
        # A name that another node gives is not known yet.
        return float("nan") if output_name is None else str(state_time(output_name))

    @classmethod
    def execute(
        cls,
        model: Any,
        dataset: Dataset,
        output_name: str,
        method: str,
        rank: int,
        alpha: float,
        steps: int,
        learning_rate: float,
        batch_size: int,
        resolution: int,
        seed: int,
        clip: Any = None,
        vae: Any = None,
        method_options: dict[str, Any] | None = None,
        optimizer: OptimizerConfig | None = None,
        noise_and_loss: tuple[NoiseConfig, LossConfig] | None = None,
        layers: LayersConfig | None = None,
        samples: SamplesConfig | None = None,
        gradient_checkpointing: bool = False,
        epochs: int = 10,
        save_every: int = 0,
        keep_checkpoints: int = 0,
        resume: str = NEW,
        accumulation: int = 1,
        precision: Any = "automatic",
        adapter_precision: Any = "fp32",
        cache: Any = "memory",
        validation_share: float = 0.0,
        validation_every: int = 50,
        max_norm: float = 0.0,
        training_details: bool = True,
    ) -> io.NodeOutput:
        """Trains, and returns the adapter, its file, the plot of the loss and a report."""
        noise, loss = noise_and_loss or (NoiseConfig(), LossConfig())
        optimizer = optimizer or OptimizerConfig()
        automatic = kind_of(optimizer.name).automatic
        rate = learning_rate or (1.0 if automatic else METHODS[method].learning_rate)
        config = TrainingConfig(
            method=MethodConfig(method, rank, alpha, **(method_options or {})),
            optimizer=replace(optimizer, learning_rate=rate),
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
            training_details=training_details,
            samples=samples or SamplesConfig(),
        )
        show_text(cls.hidden.unique_id, "\n".join(config.warnings()))
        models, going_on = Models(model, clip, vae), resume == RESUME
        with closing(TrainingView(cls.hidden.unique_id, steps)) as view:
            outcome = Session(models, dataset, config, output_name, view, resume=going_on).run()
        show_text(cls.hidden.unique_id, outcome.report)
        plot = draw_losses(outcome.losses, outcome.validation)
        ui = {"text": [outcome.report], **view.output()}
        return io.NodeOutput(outcome.adapter_set, outcome.name, plot, outcome.report, ui=ui)
