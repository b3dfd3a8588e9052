"""Model families: which one a file was made for and which one a model is, and their names."""

from collections.abc import Collection

from .dialects import bare, diffusion_model_part
from .diffusion_transformers import AURAFLOW, HIDREAM, PIXART, QWEN_IMAGE, SD3
from .family import Family, Mark, Shapes, Sizes
from .flux import CHROMA, FLUX, FLUX_2, HUNYUAN_VIDEO
from .lumina import LUMINA_2, Z_IMAGE
from .text_encoders import (
    encoders,
    in_text_encoder,
    kind,
    kind_of_layer,
    number_of,
    text_encoder_parts,
)
from .unets import SD1, SD2, SDXL, SDXL_REFINER
from .wan import WAN

__all__ = [
    "FAMILIES",
    "Family",
    "Mark",
    "Shapes",
    "Sizes",
    "detect",
    "diffusion_model_part",
    "encoders",
    "in_text_encoder",
    "likely_cause",
    "sizes_of",
    "text_encoder_parts",
]

FAMILIES: tuple[Family, ...] = (
    CHROMA,
    FLUX_2,
    HUNYUAN_VIDEO,
    HIDREAM,
    LUMINA_2,
    Z_IMAGE,
    PIXART,
    AURAFLOW,
    WAN,
    SD3,
    FLUX,
    QWEN_IMAGE,
    SDXL_REFINER,
    SDXL,
    SD2,
    SD1,
)
"""In the order of detection: a family whose names contain another's comes first."""


def detect(sizes: Sizes) -> Family | None:
    """Returns the family of the modules of a file or of a model, or None if none is known."""
    # Without prefix first: `transformer.blocks.0` is no `transformer_blocks_0`.
    underscored = {bare(name).replace(".", "_"): axes for name, axes in sizes.items()}
    text = "\n".join(underscored)
    return next((family for family in FAMILIES if family.fits(text, underscored)), None)


def sizes_of(shapes: Shapes) -> Sizes:
    """Returns the axis sizes of a model's weights."""
    return {key: frozenset(shape) for key, shape in shapes.items()}


def likely_cause(
    module: str, sizes: frozenset[int], model: Family | None, present: Collection[str] | None
) -> str:
    """Returns why a module of a file has no home, as the end of a sentence, or "" if it is unknown.

    Args:
        module: Its name in the file.
        sizes: The axis sizes of its tensors.
        model: The family of the connected diffusion model, None if it is unknown or none is there.
        present: The host's names of the connected text encoders (see `encoders`); None without CLIP.
    """
    if in_text_encoder(module):
        return _cause_in_text_encoder(module, present)
    made_for = detect({module: sizes})
    if made_for is not None and made_for != model:
        what = f"it was made for {made_for.name}"
        return f"{what}, the model is {model.name}" if model else what
    return ""


def _cause_in_text_encoder(module: str, present: Collection[str] | None) -> str:
    if present is None:
        return "no text encoder is connected"
    number, needed = number_of(module), kind_of_layer(module)
    kinds = [kind(encoder) for encoder in present]
    if needed is None or any(one.startswith(needed) for one in kinds):
        return "the text encoder has no such layer"
    which = f"text encoder {number} ({needed})" if number else f"its text encoder ({needed})"
    return f"{which} is not in this CLIP"
