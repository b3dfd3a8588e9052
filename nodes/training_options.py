"""Nodes with the settings of a training that most people never touch, each for one matter."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..algorithms.adapters.tlora import Triples
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
                "is chosen there have no effect; the defaults are right for a start."
            ),
            inputs=optional(
                io.Int.Input(
                    "conv_rank",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Rank on convolutions with kernels, which draw textures in UNets (SD, "
                    "SDXL): half of rank is usual. 0 leaves them out, but for methods that always "
                    "take them (LoRA-C3Lier), which then use rank and alpha.",
                ),
                io.Float.Input(
                    "conv_alpha",
                    default=1.0,
                    min=0.001,
                    max=4096.0,
                    step=0.001,
                    tooltip="Alpha that goes with conv_rank: 1 up to conv_rank. It has no effect while "
                    "conv_rank is 0.",
                ),
                io.Boolean.Input(
                    "dora",
                    default=False,
                    tooltip="Makes a DoRA of it: how long the rows of a weight are is trained beside "
                    "where they point. Closer to the pictures, slower; halve the learning rate.",
                ),
                io.Combo.Input(
                    "dora_on",
                    options=["outputs", "inputs"],
                    default="outputs",
                    tooltip="Of dora: lengths of rows (outputs, as LyCORIS does) or of columns "
                    "(inputs). ComfyUI's own loader computes only inputs rightly; Load Adapter both.",
                ),
                io.Float.Input(
                    "rank_dropout",
                    default=0.0,
                    **SHARE,
                    tooltip="Share of the ranks that sit out a step, for each picture anew, so that "
                    "none is relied on. For few pictures; 0.1 is usual, 0 is off.",
                ),
                io.Float.Input(
                    "dropout",
                    default=0.0,
                    **SHARE,
                    tooltip="Share of the single values inside the adapter that are set to zero in a "
                    "step. Methods of LoRA only; 0.1 is usual, 0 is off.",
                ),
                io.Float.Input(
                    "module_dropout",
                    default=0.0,
                    **SHARE,
                    tooltip="Share of the layers whose adapter sits out a step. 0.1 is usual, 0 is off.",
                ),
                io.Boolean.Input(
                    "train_norms",
                    default=False,
                    tooltip="Trains the normalisation of these layers too: a few numbers that shift "
                    "colours and contrast.",
                ),
                io.Int.Input(
                    "factor",
                    default=-1,
                    min=-1,
                    max=4096,
                    tooltip="LoKr: size of the smaller of both matrices. -1 splits evenly and makes "
                    "the smallest file; 8 with full_matrix makes a larger and stronger one.",
                ),
                io.Boolean.Input(
                    "full_matrix",
                    default=False,
                    tooltip="LoKr: both matrices are whole, and rank and alpha have no effect. "
                    "Recommended together with factor 8.",
                ),
                io.Boolean.Input(
                    "decompose_both",
                    default=False,
                    tooltip="LoKr: the smaller matrix has a low rank too, where that saves something. "
                    "For very small files.",
                ),
                io.Boolean.Input(
                    "unbalanced",
                    default=False,
                    tooltip="LoKr: gives the larger part of the outputs to the first matrix, which is "
                    "never of low rank unless decompose_both is on. For experiments.",
                ),
                io.Float.Input(
                    "plus_ratio",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="LoRA+, in any method that has one: how many times faster the matrix "
                    "learns that starts at zero. 0 is 16 for LoRA+ and 1 for other methods.",
                ),
                io.Boolean.Input(
                    "rs_lora",
                    default=False,
                    tooltip="Rank-stabilised LoRA: divides alpha by the root of the rank, so that high "
                    "ranks (64 and more) learn as fast as low ones.",
                ),
                io.Boolean.Input(
                    "use_tucker",
                    default=False,
                    tooltip="On convolutions with kernels of LoRA, LoHa and LoKr: a small core carries "
                    "the kernel, for smaller files. No dropout and rank_dropout with LoRA then.",
                ),
                io.Int.Input(
                    "unit",
                    default=4,
                    min=1,
                    max=4096,
                    tooltip="DyLoRA: the file can later be cut to each multiple of it, and it must "
                    "divide the rank. 4 with rank 32 is usual.",
                ),
                io.Combo.Input(
                    "dylora_gradient",
                    options=["frozen", "full"],
                    default="frozen",
                    tooltip="DyLoRA: what learns in a step that uses the first ranks. frozen: only "
                    "the last unit of them, as in the paper. full: all of them.",
                ),
                io.Float.Input(
                    "constraint",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.0001,
                    round=False,
                    tooltip="OFT, BOFT: how far the outputs may be turned. 0 is as far as they like; "
                    "0.001 keeps close to the model.",
                ),
                io.Boolean.Input(
                    "rescaled",
                    default=False,
                    tooltip="Diag-OFT, BOFT: trains lengths of rows too, which a rotation alone "
                    "leaves as they are.",
                ),
                io.Int.Input(
                    "min_rank",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="T-LoRA: ranks that are used at pure noise, where all of them would learn "
                    "the background by heart. Up to half of the rank.",
                ),
                io.Float.Input(
                    "rank_power",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="T-LoRA: how fast ranks are taken away as noise grows. 1 is evenly, more "
                    "is faster.",
                ),
                io.Combo.Input(
                    "tlora_format",
                    options=["LoRA", "LyCORIS"],
                    default="LoRA",
                    tooltip="T-LoRA: what is saved. LoRA loads everywhere, at twice the rank; LyCORIS "
                    "is smaller, and only Load Adapter and LyCORIS read it.",
                ),
                advanced(
                    io.Boolean.Input(
                        "on_input",
                        default=False,
                        tooltip="(IA)^3: scales the inputs of layers and not their outputs. The preset "
                        "ia3 of Blocks and Layers sets it where it is usual.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "dylora_per_module",
                        default=False,
                        tooltip="DyLoRA: each layer draws a rank of its own in each step, as in "
                        "sd-scripts. Off: all use the same one, as after a cut.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "data_init",
                        default=True,
                        tooltip="T-LoRA: starts from the weight of the model. Off: from random "
                        "numbers.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "triples",
                        options=list(get_args(Triples)),
                        default="principal",
                        tooltip="T-LoRA: which directions of the weight it starts from: the strongest, "
                        "those in the middle, or the weakest.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "dora_detached",
                        default=True,
                        tooltip="Of dora: leaves out a part of the computation backward, as the paper "
                        "does to save memory. Off is exact, and what LyCORIS does.",
                    )
                ),
            ),
            outputs=[
                MethodSocket.Output(
                    display_name="method_options", tooltip="For method_options of Train LoRA."
                )
            ],
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
                "The optimiser of Train LoRA, which turns errors into corrections, and the course of "
                "its learning rate. Those of other packages work once they are installed, and say "
                "which one is missing."
            ),
            inputs=optional(
                io.Combo.Input(
                    "name",
                    options=list(OPTIMIZERS),
                    default="AdamW",
                    tooltip="AdamW suits nearly all. AdamW8bit needs less memory. Prodigy and "
                    "ProdigyPlusScheduleFree find their rate themselves: set learning_rate to 1.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(get_args(ScheduleName)),
                    default="constant",
                    tooltip="How the learning rate runs over the steps. constant stays, cosine falls "
                    "softly to minimum, which often gives the cleaner result, rex stays high for "
                    "longer. Names ending in ScheduleFree need constant.",
                ),
                io.Float.Input(
                    "warmup",
                    default=0.0,
                    min=0.0,
                    max=1_000_000.0,
                    step=0.01,
                    tooltip="Steps over which the rate rises from 0, or, below 1, a share of all. 0.05 "
                    "helps where the first steps are wild; 0 is none.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=-1.0,
                    min=-1.0,
                    max=10.0,
                    step=0.0001,
                    round=False,
                    tooltip="Pulls what is trained back towards 0, against learning by heart: 0.01 to "
                    "0.1. -1 is the optimiser's own (0.01 for AdamW).",
                ),
                io.Float.Input(
                    "text_encoder_rate",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=1e-6,
                    round=False,
                    tooltip="Learning rate of text encoders, where Blocks and Layers turns them on: "
                    "half of the other or less is usual. -1 is that of the model.",
                ),
                io.String.Input(
                    "arguments",
                    default="",
                    tooltip="More arguments of the optimiser, as in sd-scripts: betas=.9,.99 eps=1e-8. "
                    "Empty: its own.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.99999,
                    step=0.0001,
                    round=False,
                    tooltip="Saves an average over the last steps, which is smoother than the last one "
                    "alone. 0.99 to 0.999 in runs of 1000 steps and more; 0 is off.",
                ),
                io.Float.Input(
                    "clip_norm",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Shortens single steps that would go much too far. 1 is usual, 0 is off.",
                ),
                advanced(
                    io.String.Input(
                        "other",
                        default="",
                        tooltip="Any optimiser of the package pytorch-optimizer in place of name, for "
                        "example pytorch_optimizer.ADOPT. Empty: name.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "minimum",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.001,
                        tooltip="Share of the rate that schedules which fall end at. 0 or 0.1 is usual.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "cycles",
                        default=1.0,
                        min=0.01,
                        max=1000.0,
                        step=0.01,
                        tooltip="Of cosine_with_restarts: how often it starts anew. Of "
                        "cosine_with_min_lr: half waves.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "power",
                        default=1.0,
                        min=0.01,
                        max=100.0,
                        step=0.01,
                        tooltip="Of polynomial: 1 falls in a straight line, 2 quickly at first.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "decay",
                        default=0.1,
                        min=0.0,
                        max=1_000_000.0,
                        step=0.01,
                        tooltip="Of warmup_stable_decay: the steps at the end in which the rate falls, "
                        "or, below 1, their share of all. 0.1 to 0.2 is usual.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "timescale",
                        default=0.0,
                        min=0.0,
                        max=1_000_000.0,
                        step=1.0,
                        tooltip="Of inverse_sqrt: steps after which the rate has fallen to 0.7. 0 is "
                        "the length of the warm-up.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "ema_start",
                        default=0,
                        min=0,
                        max=1_000_000,
                        tooltip="Of ema_decay: steps before the average begins. 0, or a tenth of all.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "ema_interval",
                        default=1,
                        min=1,
                        max=1000,
                        tooltip="Of ema_decay: takes only every so many-th step into the average. "
                        "1 is usual.",
                    )
                ),
            ),
            outputs=[
                OptimizerSocket.Output(
                    display_name="optimizer", tooltip="For optimizer of Train LoRA."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        name: str = "AdamW",
        schedule: Any = "constant",
        warmup: float = 0.0,
        weight_decay: float = -1.0,
        text_encoder_rate: float = -1.0,
        arguments: str = "",
        ema_decay: float = 0.0,
        clip_norm: float = 1.0,
        other: str = "",
        minimum: float = 0.0,
        cycles: float = 1.0,
        power: float = 1.0,
        decay: float = 0.1,
        timescale: float = 0.0,
        ema_start: int = 0,
        ema_interval: int = 1,
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
                "How noisy the pictures of Train LoRA are made, and what errors cost; names are "
                "those of sd-scripts. What has no meaning for the model that is trained is refused, "
                "not ignored."
            ),
            inputs=optional(
                io.Float.Input(
                    "min_snr_gamma",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="SD and SDXL: lets nearly clean pictures count less, so that it learns "
                    "faster and more evenly. 5 is usual, lower is stronger, 0 is off.",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="SD and SDXL: makes very dark and very bright pictures possible. 0.03 to "
                    "0.1 is usual, 0 is off.",
                ),
                io.Combo.Input(
                    "loss_type",
                    options=["l2", "l1", "huber", "smooth_l1"],
                    default="l2",
                    tooltip="How errors are counted. l2, by their squares, is usual; the others count "
                    "large errors less, against bad pictures in the dataset.",
                ),
                io.Combo.Input(
                    "timestep_sampling",
                    options=["uniform", "sigmoid", "logit_normal", "mode"],
                    default="uniform",
                    tooltip="How often which noise is trained. uniform: all alike. sigmoid and "
                    "logit_normal: the middle more often, usual for Flux and SD3. mode: as in the "
                    "paper of SD3.",
                ),
                io.Combo.Input(
                    "shift",
                    options=["model", "none", "constant", "resolution"],
                    default="model",
                    tooltip="Flux, SD3 and other flow models: how far to noisier levels. model: as "
                    "the model is set (also by ModelSamplingFlux). none. constant: by "
                    "discrete_flow_shift. resolution: by the size of the picture.",
                ),
                io.Float.Input(
                    "discrete_flow_shift",
                    default=3.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Of shift constant: 1 is none, 3 is usual.",
                ),
                io.Int.Input(
                    "min_timestep",
                    default=0,
                    min=0,
                    max=999,
                    tooltip="The least noise that is trained, in thousandths. 0 is usual; more leaves "
                    "out the finest details.",
                ),
                io.Int.Input(
                    "max_timestep",
                    default=1000,
                    min=1,
                    max=1000,
                    tooltip="The most noise that is trained, in thousandths. 1000 is usual; less leaves "
                    "the composition to the model.",
                ),
                io.Float.Input(
                    "prior_loss_weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How much regularisation pictures count beside the others. 1 is usual.",
                ),
                io.Int.Input(
                    "multires_noise_iterations",
                    default=0,
                    min=0,
                    max=20,
                    tooltip="SD and SDXL: adds coarse noise, so that large shapes and brightness are "
                    "learned too; in place of noise_offset. 6 to 10 is usual, 0 is off.",
                ),
                io.Float.Input(
                    "multires_noise_discount",
                    default=0.3,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="With multires_noise_iterations: strength of each coarser noise beside the "
                    "finer one. 0.1 to 0.3 is usual.",
                ),
                io.Boolean.Input(
                    "zero_terminal_snr",
                    default=False,
                    tooltip="Models that predict v: the noisiest level is noise alone. Turn it on if "
                    "the model was trained so, and pictures are drawn so (ModelSamplingDiscrete, zsnr).",
                ),
                io.Boolean.Input(
                    "debiased_estimation_loss",
                    default=False,
                    tooltip="SD and SDXL: another way than min_snr_gamma to let noisy pictures count "
                    "more. Use one of both.",
                ),
                io.Combo.Input(
                    "weighting",
                    options=["none", "sigma_sqrt", "cosmap"],
                    default="none",
                    tooltip="Flux, SD3 and other flow models: how noise levels count. none: all alike. "
                    "sigma_sqrt: clean ones much more. cosmap: the middle more.",
                ),
                *(
                    advanced(one)
                    for one in (
                        io.Float.Input(
                            "sigmoid_scale",
                            default=1.0,
                            min=0.01,
                            max=100.0,
                            step=0.01,
                            tooltip="Of timestep_sampling sigmoid: below 1 gathers more in the middle. "
                            "1 is usual.",
                        ),
                        io.Float.Input(
                            "logit_mean",
                            default=0.0,
                            min=-10.0,
                            max=10.0,
                            step=0.01,
                            tooltip="Of timestep_sampling logit_normal: above 0 means more noise. 0 is "
                            "usual.",
                        ),
                        io.Float.Input(
                            "logit_std",
                            default=1.0,
                            min=0.01,
                            max=10.0,
                            step=0.01,
                            tooltip="Of timestep_sampling logit_normal: how far it spreads. 1 is usual.",
                        ),
                        io.Float.Input(
                            "mode_scale",
                            default=1.29,
                            min=-1.0,
                            max=1.75,
                            step=0.01,
                            tooltip="Of timestep_sampling mode: how much more often the middle comes; "
                            "below 0 the ends. 1.29 is usual.",
                        ),
                        io.Float.Input(
                            "huber_c",
                            default=0.1,
                            min=0.0001,
                            max=10.0,
                            step=0.0001,
                            round=False,
                            tooltip="Of huber and smooth_l1: errors beyond it count less than their "
                            "squares. 0.1 is usual.",
                        ),
                        io.Combo.Input(
                            "huber_schedule",
                            options=["snr", "exponential", "constant"],
                            default="snr",
                            tooltip="Of huber and smooth_l1: snr and exponential lower huber_c with "
                            "noise. snr is usual, and not for flow models.",
                        ),
                        io.Float.Input(
                            "huber_scale",
                            default=1.0,
                            min=0.0001,
                            max=100.0,
                            step=0.0001,
                            round=False,
                            tooltip="Of huber and smooth_l1: a factor on huber_c; snr has none. 1 is "
                            "usual.",
                        ),
                        io.Boolean.Input(
                            "noise_offset_random_strength",
                            default=False,
                            tooltip="Draws noise_offset anew for each picture, from 0 to its value.",
                        ),
                        io.Float.Input(
                            "adaptive_noise_scale",
                            default=0.0,
                            min=-1.0,
                            max=1.0,
                            step=0.001,
                            tooltip="With noise_offset: more of it for pictures that are dark or bright "
                            "themselves. As large as noise_offset is usual, 0 is off.",
                        ),
                        io.Float.Input(
                            "ip_noise_gamma",
                            default=0.0,
                            min=0.0,
                            max=1.0,
                            step=0.01,
                            tooltip="Noise that only the model's input gets, so that it learns to mend "
                            "its own errors. 0.1 is usual, 0 is off.",
                        ),
                        io.Boolean.Input(
                            "ip_noise_gamma_random_strength",
                            default=False,
                            tooltip="Draws ip_noise_gamma anew for each picture, from 0 to its value.",
                        ),
                        io.Boolean.Input(
                            "scale_v_pred_loss_like_noise_pred",
                            default=False,
                            tooltip="Models that predict v: weighs noise levels as models that predict "
                            "noise do, so that details count more.",
                        ),
                        io.Float.Input(
                            "v_pred_like_loss",
                            default=0.0,
                            min=0.0,
                            max=100.0,
                            step=0.01,
                            tooltip="SD and SDXL that predict noise: adds so much of the loss that a "
                            "model has which predicts v, where noisy pictures count more. 0 is off.",
                        ),
                        io.Float.Input(
                            "unmasked_weight",
                            default=0.0,
                            min=0.0,
                            max=1.0,
                            step=0.01,
                            tooltip="With masks: how much black places count all the same. 0 to 0.1 is "
                            "usual.",
                        ),
                        io.Boolean.Input(
                            "normalize_mask",
                            default=False,
                            tooltip="With masks: what is masked counts as much in a picture where it is "
                            "small. Off: by its area.",
                        ),
                    )
                ),
            ),
            outputs=[
                LossSocket.Output(
                    display_name="noise_and_loss", tooltip="For noise_and_loss of Train LoRA."
                )
            ],
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
            description=(
                "Which layers Train LoRA trains, and with which rank, alpha and learning rate. Where "
                "they differ, rules count before block_arguments, and these before preset."
            ),
            inputs=optional(
                io.Combo.Input(
                    "preset",
                    options=[OF_THE_METHOD, *LAYER_PRESETS],
                    default=OF_THE_METHOD,
                    tooltip="method: what is usual for the method. LierLa: attention and feed-forward "
                    "layers. C3Lier: convolutions too. attn-only: the least memory. full and the "
                    "others: presets of LyCORIS.",
                ),
                io.Boolean.Input(
                    "text_encoders",
                    default=False,
                    tooltip="Trains the text encoders too, for a new word in SD and SDXL: connect CLIP "
                    "to Train LoRA. T5 stays as it is, unless a rule turns it on: T5: on.",
                ),
                io.String.Input(
                    "rules",
                    default="",
                    multiline=True,
                    tooltip="One rule a line, the first that fits a layer counts. IN04, IN05: off | "
                    "OUT: rank=8 alpha=4 | *attn2*: rate=0.5 | re:.*to_q$: method=LoKr. Empty: all as "
                    "the preset has it.",
                ),
                io.String.Input(
                    "block_arguments",
                    default="",
                    multiline=True,
                    tooltip="Arguments of sd-scripts, one a line, for who has them: "
                    "down_lr_weight=cosine, block_dims=2,2,4,..., train_double_block_indices=0-5. "
                    "Empty: none.",
                ),
            ),
            outputs=[
                LayersSocket.Output(display_name="layers", tooltip="For layers of Train LoRA.")
            ],
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
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="One picture for each line. Use the trigger word, and things that are not "
                    "in the captions. Empty: no pictures.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    tooltip="What all of them should not show. Empty is usual.",
                ),
                io.Int.Input(
                    "every_steps",
                    default=100,
                    min=1,
                    max=1_000_000,
                    tooltip="After how many steps they are drawn, and after the last one. Drawing takes "
                    "its time: a tenth of all steps is usual.",
                ),
                io.Boolean.Input(
                    "at_first",
                    default=True,
                    tooltip="Draws them before the first step too, to compare with.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=16,
                    max=8192,
                    step=8,
                    tooltip="In pixels: 512 for SD 1.5, 1024 for SDXL, Flux and later models.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=16,
                    max=8192,
                    step=8,
                    tooltip="In pixels: 512 for SD 1.5, 1024 for SDXL, Flux and later models.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Steps of sampling, as in KSampler.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strictly prompts are followed, as in KSampler: 7 for SD and SDXL, 1 "
                    "for Flux.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=samplers(),
                    default="euler",
                    tooltip="As sampler_name in KSampler; euler suits all models.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=schedulers(),
                    default="normal",
                    tooltip="As scheduler in KSampler: normal for SD and SDXL, simple for Flux.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=False,  # else each prompt would train anew
                    tooltip="Of the noise they start from, the same each time, so that what differs is "
                    "what was learned.",
                ),
            ),
            outputs=[
                SamplesSocket.Output(display_name="samples", tooltip="For samples of Train LoRA.")
            ],
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
