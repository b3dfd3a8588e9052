"""Nodes with the settings of a training that most people never touch, each for one matter."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..algorithms.training.config import OF_THE_METHOD, LayersConfig, SamplesConfig
from ..algorithms.training.layer_presets import LAYER_PRESETS
from ..algorithms.training.losses import LossConfig
from ..algorithms.training.noise import NoiseConfig
from ..algorithms.training.optimizer_kinds import OPTIMIZERS
from ..algorithms.training.optimizers import OptimizerConfig
from ..algorithms.training.schedules import ScheduleConfig, ScheduleName
from .host.sample_pictures import samplers, schedulers
from .schema import advanced, optional
from .sockets import (
    LayersSocket,
    LossSocket,
    MethodSocket,
    OptimizerSocket,
    SamplesSocket,
)

CATEGORY = "Any Adapter/training"
SHARE = {"min": 0.0, "max": 0.99, "step": 0.01}


class MethodOptions(io.ComfyNode):
    """Arguments of the methods."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterMethodOptions",
            display_name="Method Options",
            category=CATEGORY,
            description=(
                "Arguments of the methods of Train LoRA. Those of other methods than the one that "
                "is chosen there have no effect."
            ),
            inputs=optional(
                io.Int.Input(
                    "conv_rank",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Rank on convolutions with kernels (LoRA-C3Lier, LoKr, ...). 0 leaves "
                    "them out where the method leaves the choice.",
                ),
                io.Float.Input("conv_alpha", default=1.0, min=0.001, max=4096.0, step=0.001),
                io.Boolean.Input(
                    "dora",
                    default=False,
                    tooltip="Trains lengths of rows or columns beside their directions.",
                ),
                io.Combo.Input("dora_on", options=["outputs", "inputs"], default="outputs"),
                io.Boolean.Input(
                    "train_norms", default=False, tooltip="Trains the norms of these layers too."
                ),
                io.Float.Input(
                    "dropout", default=0.0, **SHARE, tooltip="Of the values between both factors."
                ),
                io.Float.Input(
                    "rank_dropout",
                    default=0.0,
                    **SHARE,
                    tooltip="Of whole ranks, for each picture; 0.1 is usual.",
                ),
                io.Float.Input(
                    "module_dropout", default=0.0, **SHARE, tooltip="Of whole layers, each step."
                ),
                io.Float.Input(
                    "plus_ratio",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="LoRA+: how many times faster the factor learns that starts at zero. 0 is "
                    "16 for LoRA+ and 1 for other methods.",
                ),
                io.Boolean.Input(
                    "rs_lora",
                    default=False,
                    tooltip="Divides alpha by the root of the rank, so that high ranks learn as fast.",
                ),
                io.Boolean.Input(
                    "use_tucker",
                    default=False,
                    tooltip="A small core carries the kernel of a convolution: smaller files.",
                ),
                io.Int.Input(
                    "factor",
                    default=-1,
                    min=-1,
                    max=4096,
                    tooltip="LoKr: the smaller part of each side; -1 splits as evenly as it goes, 8 "
                    "with full_matrix is a larger and stronger file.",
                ),
                io.Boolean.Input("full_matrix", default=False, tooltip="LoKr: no low rank inside."),
                io.Boolean.Input("decompose_both", default=False, tooltip="LoKr."),
                io.Boolean.Input("unbalanced", default=False, tooltip="LoKr."),
                io.Int.Input(
                    "unit",
                    default=4,
                    min=1,
                    max=4096,
                    tooltip="DyLoRA: ranks that are added at a time; the file can be cut after each.",
                ),
                io.Combo.Input(
                    "dylora_gradient",
                    options=["frozen", "full"],
                    default="frozen",
                    tooltip="DyLoRA: whether the newest ranks learn alone, as in the paper.",
                ),
                io.Float.Input(
                    "constraint",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.0001,
                    round=False,
                    tooltip="OFT, BOFT: how far they may turn; 0 is as far as they like.",
                ),
                io.Boolean.Input(
                    "rescaled", default=False, tooltip="Diag-OFT, BOFT: trains lengths of rows too."
                ),
                io.Int.Input(
                    "min_rank",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="T-LoRA: ranks that are used at pure noise.",
                ),
                io.Float.Input(
                    "rank_power",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="T-LoRA: how fast ranks are taken away with noise.",
                ),
                io.Combo.Input(
                    "tlora_format",
                    options=["LoRA", "LyCORIS"],
                    default="LoRA",
                    tooltip="T-LoRA: LoRA loads everywhere, at twice the rank.",
                ),
                advanced(
                    io.Boolean.Input(
                        "dora_detached",
                        default=True,
                        tooltip="Takes the norm for a constant, as the paper does to save memory. Off "
                        "is what LyCORIS does.",
                    )
                ),
            ),
            outputs=[MethodSocket.Output(display_name="method_options")],
        )

    @classmethod
    def execute(cls, **arguments: Any) -> io.NodeOutput:
        """Returns the arguments by name."""
        return io.NodeOutput(arguments)


class OptimizerOptions(io.ComfyNode):
    """The optimiser and the course of its learning rate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterOptimizer",
            display_name="Optimizer",
            category=CATEGORY,
            description=(
                "The optimiser of Train LoRA with its schedule. Those of other packages work once "
                "they are installed, and say which one is missing."
            ),
            inputs=optional(
                io.Combo.Input(
                    "name",
                    options=list(OPTIMIZERS),
                    default="AdamW",
                    tooltip="Prodigy and ProdigyPlusScheduleFree find their rate themselves: set "
                    "learning_rate to 1.",
                ),
                io.Combo.Input(
                    "schedule", options=list(get_args(ScheduleName)), default="constant"
                ),
                io.Float.Input(
                    "warmup",
                    default=0.0,
                    min=0.0,
                    max=1_000_000.0,
                    step=0.01,
                    tooltip="Steps over which the rate rises, or below 1 a share of all.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=-1.0,
                    min=-1.0,
                    max=10.0,
                    step=0.0001,
                    round=False,
                    tooltip="-1 is the optimiser's own.",
                ),
                io.Float.Input(
                    "clip_norm",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Largest norm of all gradients together; 0 does not clip.",
                ),
                io.Float.Input(
                    "text_encoder_rate",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=1e-6,
                    round=False,
                    tooltip="Learning rate of text encoders where they are trained; -1 is that of the "
                    "model.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.99999,
                    step=0.0001,
                    round=False,
                    tooltip="Saves a moving average over the steps; 0.999 is usual, 0 is off.",
                ),
                io.String.Input(
                    "arguments",
                    default="",
                    tooltip="More arguments of the optimiser: betas=.9,.99 eps=1e-8",
                ),
                advanced(
                    io.String.Input(
                        "other",
                        default="",
                        tooltip="Any optimiser of the package pytorch-optimizer in place of name: "
                        "pytorch_optimizer.ADOPT",
                    )
                ),
                advanced(io.Int.Input("ema_start", default=0, min=0, max=1_000_000)),
                advanced(io.Int.Input("ema_interval", default=1, min=1, max=1000)),
                advanced(
                    io.Float.Input(
                        "minimum",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.001,
                        tooltip="Share of the rate that a falling schedule ends at.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "cycles",
                        default=1.0,
                        min=0.01,
                        max=1000.0,
                        step=0.01,
                        tooltip="Restarts of cosine_with_restarts.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "power",
                        default=1.0,
                        min=0.01,
                        max=100.0,
                        step=0.01,
                        tooltip="Of polynomial.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "decay",
                        default=0.1,
                        min=0.0,
                        max=1_000_000.0,
                        step=0.01,
                        tooltip="Steps that warmup_stable_decay falls in, or below 1 a share of all.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "timescale",
                        default=0.0,
                        min=0.0,
                        max=1_000_000.0,
                        step=1.0,
                        tooltip="Of inverse_sqrt, in steps; 0 is the length of the warm-up.",
                    )
                ),
            ),
            outputs=[OptimizerSocket.Output(display_name="optimizer")],
        )

    @classmethod
    def execute(
        cls,
        name: str = "AdamW",
        schedule: Any = "constant",
        warmup: float = 0.0,
        weight_decay: float = -1.0,
        clip_norm: float = 1.0,
        text_encoder_rate: float = -1.0,
        ema_decay: float = 0.0,
        arguments: str = "",
        other: str = "",
        ema_start: int = 0,
        ema_interval: int = 1,
        minimum: float = 0.0,
        cycles: float = 1.0,
        power: float = 1.0,
        decay: float = 0.1,
        timescale: float = 0.0,
    ) -> io.NodeOutput:
        """Returns the settings; the learning rate is that of the training node."""
        course = ScheduleConfig(
            schedule,
            warmup=float(warmup),
            decay=float(decay),
            minimum=float(minimum),
            cycles=float(cycles),
            power=float(power),
            timescale=float(timescale),
        )
        config = OptimizerConfig(
            other.strip() or name,
            text_encoder_rate=None if text_encoder_rate < 0 else float(text_encoder_rate),
            weight_decay=None if weight_decay < 0 else float(weight_decay),
            arguments=arguments,
            schedule=course,
            clip_norm=float(clip_norm),
            ema_decay=float(ema_decay),
            ema_start=ema_start,
            ema_interval=ema_interval,
        )
        return io.NodeOutput(config)


class NoiseAndLoss(io.ComfyNode):
    """Which noise is learned to be taken away, and what errors cost."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterNoiseAndLoss",
            display_name="Noise and Loss",
            category=CATEGORY,
            description=(
                "How noisy the pictures of Train LoRA are made, and how errors are weighed. What "
                "has no meaning for the model that is trained is refused, not ignored."
            ),
            inputs=optional(
                io.Combo.Input(
                    "timestep_sampling",
                    options=["uniform", "sigmoid", "logit_normal", "mode"],
                    default="uniform",
                    tooltip="Which noise levels are met how often: sigmoid prefers middle ones.",
                ),
                io.Int.Input(
                    "min_timestep", default=0, min=0, max=999, tooltip="In thousandths of the way."
                ),
                io.Int.Input("max_timestep", default=1000, min=1, max=1000),
                io.Combo.Input(
                    "shift",
                    options=["model", "none", "constant", "resolution"],
                    default="model",
                    tooltip="Flow models (Flux, SD3, ...): the model's own shift to noisier levels, "
                    "none, discrete_flow_shift, or by the size of the picture.",
                ),
                io.Float.Input("discrete_flow_shift", default=3.0, min=0.01, max=100.0, step=0.01),
                io.Combo.Input(
                    "loss_type", options=["l2", "l1", "huber", "smooth_l1"], default="l2"
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="SD and SDXL: no noise level weighs more than this; 5 is usual, 0 is off.",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="SD and SDXL: learns brightness too; 0.05 is usual, 0 is off.",
                ),
                io.Int.Input(
                    "multires_noise_iterations",
                    default=0,
                    min=0,
                    max=20,
                    tooltip="SD and SDXL: coarse noise besides; 6 is usual, 0 is off.",
                ),
                io.Float.Input(
                    "multires_noise_discount", default=0.3, min=0.01, max=1.0, step=0.01
                ),
                io.Float.Input(
                    "prior_loss_weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Weight of regularisation images.",
                ),
                io.Boolean.Input(
                    "zero_terminal_snr",
                    default=False,
                    tooltip="Models that predict v: the noisiest level is pure noise.",
                ),
                io.Boolean.Input("debiased_estimation_loss", default=False),
                io.Combo.Input(
                    "weighting",
                    options=["none", "sigma_sqrt", "cosmap"],
                    default="none",
                    tooltip="Flow models: how noise levels are weighed.",
                ),
                *(
                    advanced(one)
                    for one in (
                        io.Float.Input("sigmoid_scale", default=1.0, min=0.01, max=100.0),
                        io.Float.Input("logit_mean", default=0.0, min=-10.0, max=10.0),
                        io.Float.Input("logit_std", default=1.0, min=0.01, max=10.0),
                        io.Float.Input("mode_scale", default=1.29, min=-1.0, max=1.75),
                        io.Float.Input("huber_c", default=0.1, min=0.0001, max=10.0, step=0.0001),
                        io.Combo.Input(
                            "huber_schedule",
                            options=["snr", "exponential", "constant"],
                            default="snr",
                        ),
                        io.Float.Input("huber_scale", default=1.0, min=0.0001, max=100.0),
                        io.Boolean.Input("noise_offset_random_strength", default=False),
                        io.Float.Input("adaptive_noise_scale", default=0.0, min=-1.0, max=1.0),
                        io.Float.Input(
                            "ip_noise_gamma",
                            default=0.0,
                            min=0.0,
                            max=1.0,
                            tooltip="Noise that only the input gets; 0.1 is usual.",
                        ),
                        io.Boolean.Input("ip_noise_gamma_random_strength", default=False),
                        io.Boolean.Input("scale_v_pred_loss_like_noise_pred", default=False),
                        io.Float.Input("v_pred_like_loss", default=0.0, min=0.0, max=100.0),
                        io.Float.Input(
                            "unmasked_weight",
                            default=0.0,
                            min=0.0,
                            max=1.0,
                            tooltip="The least that a mask counts anywhere.",
                        ),
                        io.Boolean.Input(
                            "normalize_mask",
                            default=False,
                            tooltip="Divides by the mean of the mask: a small one counts as much.",
                        ),
                    )
                ),
            ),
            outputs=[LossSocket.Output(display_name="noise_and_loss")],
        )

    @classmethod
    def execute(cls, **arguments: Any) -> io.NodeOutput:
        """Returns the settings of both."""
        of_loss = LossConfig.__dataclass_fields__
        loss = {name: value for name, value in arguments.items() if name in of_loss}
        noise = {name: value for name, value in arguments.items() if name not in of_loss}
        return io.NodeOutput((NoiseConfig(**noise), LossConfig(**loss)))


class BlocksAndLayers(io.ComfyNode):
    """Which layers learn, and how fast."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterLayers",
            display_name="Blocks and Layers",
            category=CATEGORY,
            description="Which layers Train LoRA trains, and with which rank, alpha and rate.",
            inputs=optional(
                io.Combo.Input(
                    "preset",
                    options=[OF_THE_METHOD, *LAYER_PRESETS],
                    default=OF_THE_METHOD,
                    tooltip="method is what the method's own tool takes. LierLa is attention and "
                    "feed-forward layers, C3Lier convolutions too, the others are LyCORIS' presets.",
                ),
                io.Boolean.Input(
                    "text_encoders",
                    default=False,
                    tooltip="Trains the text encoders too: connect CLIP to Train LoRA.",
                ),
                io.String.Input(
                    "rules",
                    default="",
                    multiline=True,
                    tooltip="One rule a line, the first that fits counts. IN04, IN05: off | "
                    "OUT: rank=8 alpha=4 | *attn2*: rate=0.5 | re:.*to_q$: method=LoKr",
                ),
                io.String.Input(
                    "block_arguments",
                    default="",
                    multiline=True,
                    tooltip="Arguments of sd-scripts, one a line: down_lr_weight=cosine, "
                    "block_dims=2,2,4,..., train_double_block_indices=0-5",
                ),
            ),
            outputs=[LayersSocket.Output(display_name="layers")],
        )

    @classmethod
    def execute(
        cls,
        preset: str = OF_THE_METHOD,
        text_encoders: bool = False,
        rules: str = "",
        block_arguments: str = "",
    ) -> io.NodeOutput:
        """Returns the settings."""
        return io.NodeOutput(LayersConfig(preset, rules, block_arguments, text_encoders))


class TrainingSamples(io.ComfyNode):
    """Pictures that show how far a training has come."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterSamples",
            display_name="Samples",
            category=CATEGORY,
            description=(
                "Draws pictures while Train LoRA runs, and shows them on its node. CLIP and VAE "
                "must be connected there."
            ),
            inputs=optional(
                io.String.Input(
                    "prompts", default="", multiline=True, tooltip="One picture for each line."
                ),
                io.String.Input("negative", default="", multiline=True),
                io.Int.Input("every_steps", default=100, min=1, max=1_000_000),
                io.Boolean.Input(
                    "at_first", default=True, tooltip="Draws them before the first step too."
                ),
                io.Int.Input("width", default=512, min=16, max=8192, step=8),
                io.Int.Input("height", default=512, min=16, max=8192, step=8),
                io.Int.Input("steps", default=20, min=1, max=1000),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1),
                io.Combo.Input("sampler", options=samplers(), default="euler"),
                io.Combo.Input("scheduler", options=schedulers(), default="normal"),
                io.Int.Input("seed", default=0, min=0, max=2**53 - 1),
            ),
            outputs=[SamplesSocket.Output(display_name="samples")],
        )

    @classmethod
    def execute(
        cls,
        prompts: str = "",
        negative: str = "",
        every_steps: int = 100,
        at_first: bool = True,
        width: int = 512,
        height: int = 512,
        steps: int = 20,
        cfg: float = 7.0,
        sampler: str = "euler",
        scheduler: str = "normal",
        seed: int = 0,
    ) -> io.NodeOutput:
        """Returns the settings."""
        lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
        return io.NodeOutput(
            SamplesConfig(
                lines,
                negative,
                every_steps,
                at_first,
                width,
                height,
                steps,
                float(cfg),
                sampler,
                scheduler,
                seed,
            )
        )
