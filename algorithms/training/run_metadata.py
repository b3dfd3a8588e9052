"""What a trained file says of its making: sd-scripts' keys, ModelSpec, and the whole configuration.

Sources: `train_network.py` and `library/sai_model_spec.py` of sd-scripts 0.10.1 for `ss_...`, with
which all tools show how a file was trained; ModelSpec 1.0.1 (github.com/Stability-AI/ModelSpec) for
`modelspec....`. Values are text: of numbers and truth values as Python writes it, of tables as JSON.
Folders are nobody's business: of each path its last part is written.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from ..families import Family
from ..families.diffusion_transformers import AURAFLOW, HIDREAM, PIXART, QWEN_IMAGE, SD3
from ..families.flux import CHROMA, FLUX, FLUX_2, HUNYUAN_VIDEO
from ..families.lumina import LUMINA_2, Z_IMAGE
from ..families.unets import SD1, SD2, SDXL, SDXL_REFINER
from ..families.wan import WAN
from .model_sampling import Kind

CONFIGURATION = "anyadapter.training"
"""Key of the configuration, as JSON."""
SOFTWARE = "Any Adapter"
MODELSPEC = "1.0.1"
ADAPTER = "lora"
"""What ModelSpec calls adapters of every method."""
STABILITY = "https://github.com/Stability-AI/generative-models"
COMFYUI = "https://github.com/comfyanonymous/ComfyUI"
BLACK_FOREST_LABS = "https://github.com/black-forest-labs/flux"

MINIMUM = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
"""Keys without which tools misread a file; they are all that is written without training details."""

# Folders before a name, wherever a path from a root, a drive, a server or a home stands in a text; not
# in a web address, a fraction or a regular expression.
ABSOLUTE = re.compile(
    r"(?<![\w.*)\]/:\\])(?:(?:file://)?~?/|[A-Za-z]:[\\/]|\\\\)"
    r"(?:[^\\/\n\"]+[\\/]+)*(?=[^\\/\s])"
)


@dataclass(frozen=True)
class Naming:
    """How others call a family."""

    base_model_version: str
    """`ss_base_model_version`."""
    architecture: str
    """`modelspec.architecture`."""
    implementation: str = COMFYUI
    """`modelspec.implementation`: whose names of layers it is."""
    side_px: int = 1024
    """Of the pictures that it was made for."""


FAMILY_NAMES: Mapping[str, Naming] = {
    SD1.name: Naming("sd_v1", "stable-diffusion-v1", "diffusers", 512),
    SD2.name: Naming("sd_v2", "stable-diffusion-v2-512", "diffusers", 512),
    SDXL.name: Naming("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", STABILITY),
    SDXL_REFINER.name: Naming("sdxl_refiner_v1-0", "stable-diffusion-xl-v1-refiner", STABILITY),
    SD3.name: Naming("sd3", "stable-diffusion-3"),
    FLUX.name: Naming("flux1", "flux-1-dev", BLACK_FOREST_LABS),
    FLUX_2.name: Naming("flux2", "flux-2"),
    CHROMA.name: Naming("chroma", "chroma"),
    LUMINA_2.name: Naming("lumina2", "lumina-2"),
    Z_IMAGE.name: Naming("z_image", "z-image"),
    WAN.name: Naming("wan2", "wan-2"),
    HUNYUAN_VIDEO.name: Naming("hunyuan-video", "hunyuan-video"),
    QWEN_IMAGE.name: Naming("qwen_image", "qwen-image"),
    HIDREAM.name: Naming("hidream", "hidream-i1"),
    AURAFLOW.name: Naming("auraflow", "auraflow"),
    PIXART.name: Naming("pixart", "pixart"),
}
"""Name of a family -> how sd-scripts and ModelSpec call it, or what goes with their names."""
SD2_V = Naming("sd_v2_v", "stable-diffusion-v2-768-v", "diffusers", 768)
"""SD 2.x that predicts velocities."""
UNKNOWN = Naming("unknown", "unknown")


@dataclass(frozen=True)
class DataFacts:
    """What was trained on. Fields are called as in sd-scripts, without `ss_`; None says nothing."""

    num_train_images: int | None = None
    """With repeats."""
    num_reg_images: int | None = None
    num_validation_images: int | None = None
    num_batches_per_epoch: int | None = None
    batch_size_per_device: int | None = None
    total_batch_size: int | None = None
    """With accumulation."""
    resolution: tuple[int, int] | None = None
    enable_bucket: bool | None = None
    bucket_no_upscale: bool | None = None
    min_bucket_reso: int | None = None
    max_bucket_reso: int | None = None
    bucket_info: Mapping[str, Any] | None = None
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None
    """Folder -> tag -> how many images have it."""
    dataset_dirs: Mapping[str, Mapping[str, Any]] | None = None
    """Folder -> `n_repeats` and `img_count`."""
    reg_dataset_dirs: Mapping[str, Mapping[str, Any]] | None = None
    cache_latents: bool | None = None
    color_aug: bool | None = None
    flip_aug: bool | None = None
    random_crop: bool | None = None
    shuffle_caption: bool | None = None
    keep_tokens: int | None = None
    caption_dropout_rate: float | None = None
    caption_dropout_every_n_epochs: int | None = None
    caption_tag_dropout_rate: float | None = None
    validation_seed: int | None = None
    validation_split: float | None = None
    validate_every_n_steps: int | None = None


@dataclass(frozen=True)
class OptimizationFacts:
    """How it was trained. Fields are called as in sd-scripts, without `ss_`; None says nothing."""

    learning_rate: float
    unet_lr: float | None = None
    text_encoder_lr: float | None = None
    optimizer: str | None = None
    """Class and arguments: `torch.optim.AdamW(weight_decay=0.01)`."""
    lr_scheduler: str | None = None
    lr_warmup_steps: int | None = None
    max_grad_norm: float | None = None
    max_train_steps: int | None = None
    num_epochs: int | None = None
    gradient_accumulation_steps: int | None = None
    gradient_checkpointing: bool | None = None
    mixed_precision: str | None = None
    seed: int | None = None
    loss_type: str | None = None
    huber_schedule: str | None = None
    huber_c: float | None = None
    huber_scale: float | None = None
    min_snr_gamma: float | None = None
    debiased_estimation: bool | None = None
    noise_offset: float | None = None
    noise_offset_random_strength: bool | None = None
    adaptive_noise_scale: float | None = None
    multires_noise_iterations: int | None = None
    multires_noise_discount: float | None = None
    ip_noise_gamma: float | None = None
    ip_noise_gamma_random_strength: bool | None = None
    zero_terminal_snr: bool | None = None
    prior_loss_weight: float | None = None
    scale_weight_norms: float | None = None
    weighting_scheme: str | None = None
    logit_mean: float | None = None
    logit_std: float | None = None
    mode_scale: float | None = None
    timestep_sampling: str | None = None
    sigmoid_scale: float | None = None
    model_prediction_type: str | None = None
    discrete_flow_shift: float | None = None


@dataclass(frozen=True)
class RunFacts:
    """All that the metadata of a file are made of."""

    family: Family | None
    """Of the base model."""
    prediction: Kind
    """What the base model predicts."""
    network_module: str
    """Of the tool whose format the file has: see `network_args.py`."""
    network_dim: int
    network_alpha: float
    optimization: OptimizationFacts
    output_name: str
    """Of the file, without its ending; folders before it are left out."""
    session_id: int
    """The same in all files of a run."""
    training_started_at: float
    """Unix time."""
    training_finished_at: float
    """Unix time at which this file is written."""
    steps: int
    """Of the optimiser, done."""
    epoch: int
    network_dropout: float | None = None
    network_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further arguments of that module, `conv_dim` for instance."""
    data: DataFacts = field(default_factory=DataFacts)
    trigger_phrase: str = ""
    configuration: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The complete configuration of the run, ready for JSON."""


OF_RUN = (
    "network_dim",
    "network_alpha",
    "network_dropout",
    "output_name",
    "session_id",
    "training_started_at",
    "training_finished_at",
    "steps",
    "epoch",
)
"""Fields of a run that sd-scripts calls the same."""
TABLES_OF_FOLDERS = ("ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs")


def metadata_of(run: RunFacts, *, minimal: bool = False) -> dict[str, str]:
    """Returns the metadata of a trained file; `hashes.with_hashes` adds those of its tensors.

    Args:
        run: What is known.
        minimal: Whether only what tools need to read the file is written, and nothing of its making.
    """
    naming = naming_of(run.family, run.prediction)
    found: dict[str, Any] = {
        "ss_v2": run.family == SD2,
        "ss_base_model_version": naming.base_model_version,
        "ss_network_module": run.network_module,
        "ss_network_args": without_folders(run.network_args) or None,
    }
    found |= {f"ss_{name}": getattr(run, name) for name in OF_RUN}
    for group in (run.optimization, run.data):
        found |= {f"ss_{one.name}": getattr(group, one.name) for one in fields(group)}
    found["ss_output_name"] = _last_part(run.output_name)
    for key in TABLES_OF_FOLDERS:
        table = found[key] or {}
        found[key] = {_last_part(folder): value for folder, value in table.items()} or None
    if run.prediction == "flow" and run.family in (FLUX, CHROMA):
        found["ss_model_type"] = "chroma" if run.family == CHROMA else "flux"
    if minimal:
        return _written({key: found[key] for key in MINIMUM})
    found |= dict(_modelspec(run, naming))
    found["software"] = SOFTWARE
    found[CONFIGURATION] = without_folders(run.configuration) or None
    return _written(found)


def naming_of(family: Family | None, prediction: Kind) -> Naming:
    """Returns how others call the base model."""
    if family == SD2 and prediction == "v":
        return SD2_V
    return FAMILY_NAMES.get(family.name, UNKNOWN) if family else UNKNOWN


def _modelspec(run: RunFacts, naming: Naming) -> Iterator[tuple[str, Any]]:
    finished = datetime.fromtimestamp(int(run.training_finished_at), timezone.utc)
    predicted = {"eps": "epsilon", "v": "v", "flow": None}[run.prediction]
    yield "modelspec.sai_model_spec", MODELSPEC
    yield "modelspec.architecture", f"{naming.architecture}/{ADAPTER}"
    yield "modelspec.implementation", naming.implementation
    yield "modelspec.title", _last_part(run.output_name) or f"{SOFTWARE}@{run.training_finished_at}"
    width, height = run.data.resolution or (naming.side_px, naming.side_px)
    yield "modelspec.resolution", f"{width}x{height}"
    yield "modelspec.date", finished.isoformat()
    yield "modelspec.prediction_type", predicted
    yield "modelspec.trigger_phrase", run.trigger_phrase or None


def _written(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns values as text; what is None is not there."""
    return {key: _text(value) for key, value in values.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value)
    return value if isinstance(value, str) else str(value)


def without_folders(value: Any) -> Any:
    """Returns a JSON value in which no text has the folders of an absolute path."""
    if isinstance(value, str):
        return ABSOLUTE.sub("", value)
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(one) for one in value]
    return value


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
