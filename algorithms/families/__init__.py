"""Model families: which one a file was made for and which one a model is."""

from .family import Family, Mark, Sizes
from .transformers import CHROMA, FLUX, HUNYUAN_VIDEO, QWEN_IMAGE, SD3, WAN, Z_IMAGE
from .unets import SD1, SD2, SDXL, SDXL_REFINER

__all__ = ["FAMILIES", "Family", "Mark", "detect", "in_text_encoder"]

FAMILIES: tuple[Family, ...] = (
    CHROMA,
    HUNYUAN_VIDEO,
    QWEN_IMAGE,
    Z_IMAGE,
    WAN,
    SD3,
    FLUX,
    SDXL,
    SD2,
    SD1,
    SDXL_REFINER,
)
"""In the order of detection: a family whose names contain another's comes first."""

TEXT_ENCODER_STARTS = ("lora_te", "lora_prior_te", "text_encoder", "clip_l.", "clip_g.", "t5xxl.")


def detect(sizes: Sizes) -> Family | None:
    """Returns the family of the modules of a file or of a model, or None if none is known."""
    return next((family for family in FAMILIES if family.fits(sizes)), None)


def in_text_encoder(module: str) -> bool:
    """Whether a module name of a file belongs to a text encoder."""
    return module.startswith(TEXT_ENCODER_STARTS)
