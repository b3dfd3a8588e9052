"""Captions as the host's conditionings: encoded once and kept, or each time, with gradients."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from comfy.sd import CLIP
from torch import Tensor

from .out_of_place import OutOfPlace
from .prediction import Conditioning

BARE_BRACKET = re.compile(r"(?<!\\)([()])")
"""The host reads brackets as weights of words; a caption means them as they stand."""
GUIDANCE = 1.0
"""What models with guidance built in are trained with: the picture itself, and not more of it.

Source: sd-scripts' `guidance_scale` for Flux.
"""

Progress = Callable[[int, int], None]


class CaptionEncoder:
    """Makes conditionings of captions with the text encoders."""

    def __init__(self, clip: CLIP, *, trained: bool) -> None:
        """Takes the text encoders.

        Args:
            clip: The host's CLIP.
            trained: Whether they change from step to step, so that nothing can be kept.
        """
        self._clip = clip
        self._trained = trained
        self._kept: dict[str, Conditioning] = {}
        self.made = 0
        """How many captions were encoded so far."""

    def conditioning(self, caption: str, **sizes: int) -> Conditioning:
        """Returns the conditioning of a caption for a picture of these sizes.

        Args:
            caption: The text, whose brackets mean brackets.
            sizes: What SDXL is told of the picture: `width`, `height`, `crop_w`, `crop_h`,
                `target_width`, `target_height`, in pixels.
        """
        if self._trained:
            encoded = self._encoded(caption)
        elif caption in self._kept:
            encoded = self._kept[caption]
        else:
            with torch.no_grad():
                encoded = detached(self._encoded(caption))
            self._kept[caption] = encoded
        return [[tensor, {"guidance": GUIDANCE, **options, **sizes}] for tensor, options in encoded]

    def fill(self, captions: Iterable[str], progress: Progress) -> None:
        """Encodes captions ahead, where they are kept."""
        missing = [one for one in dict.fromkeys(captions) if one not in self._kept]
        if self._trained:
            return
        for done, caption in enumerate(missing):
            progress(done, len(missing))
            self.conditioning(caption)

    def _encoded(self, caption: str) -> Conditioning:
        self.made += 1
        tokens = self._clip.tokenize(BARE_BRACKET.sub(r"\\\1", caption))
        with OutOfPlace():
            encoded: dict[str, Any] = self._clip.encode_from_tokens(
                tokens, return_pooled=True, return_dict=True
            )
        return [[encoded.pop("cond"), encoded]]


def detached(conditioning: Conditioning) -> Conditioning:
    """Returns a conditioning whose tensors are ordinary ones, on the CPU, without gradients.

    Those of the graph were made in inference mode, and cannot be part of a gradient.
    """
    return [[_plain(tensor), _plain(options)] for tensor, options in conditioning]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value
