"""Captions as the host's conditionings: encoded once and kept, or each time, with gradients."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.sd import CLIP
from torch import Tensor

from ...algorithms.errors import TrainingError
from ...algorithms.formats.read import Progress
from ...algorithms.training.dataset import SizeCondition
from ...algorithms.training.state_files import pack, unpack
from .kept_tensors import KeptTensors, digest_of_weights
from .out_of_place import OutOfPlace
from .prediction import Conditioning

BARE_BRACKET = re.compile(r"(?<!\\)([()])")
"""The host reads brackets as weights of words; a caption means them as they stand."""
GUIDANCE = 1.0
"""What models with guidance built in are trained with: the picture itself, and not more of it.

Source: sd-scripts' `guidance_scale` for Flux.
"""

FOLDER = "anyadapter/captions"
"""In the host's folder of the user."""
MOST_BYTES = 2 * 2**30
"""Of captions in memory: all of most datasets, and of tags in ever new orders the latest."""
FORM = "anyadapter captions 1"
"""Part of every key on disk: another one where another version would encode otherwise."""


class CaptionEncoder:
    """Makes conditionings of captions with the text encoders."""

    def __init__(self, clip: CLIP, *, trained: bool, on_disk: bool = False) -> None:
        """Takes the text encoders.

        Args:
            clip: The host's CLIP.
            trained: Whether they change from step to step, so that nothing can be kept.
            on_disk: Whether what is kept is there for the next run too.
        """
        self._clip = clip
        self._trained = trained
        folder = Path(folder_paths.get_user_directory(), FOLDER)
        self._on_disk = KeptTensors(folder, FORM, "Captions") if on_disk else None
        self._digest = ""
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()
        self._kept_bytes = 0
        self.made = 0
        """How many captions were encoded so far."""

    def conditioning(
        self, caption: str, size: SizeCondition | None = None, *, as_prompt: bool = False
    ) -> Conditioning:
        """Returns the conditioning of a caption.

        Args:
            caption: The text.
            size: What SDXL is told of the picture.
            as_prompt: Whether its brackets are weights, as in a prompt, and not brackets.
        """
        prompt = caption if as_prompt else BARE_BRACKET.sub(r"\\\1", caption)
        if self._trained:
            encoded = self._encoded(prompt)
        elif prompt in self._kept:
            encoded = self._kept[prompt]
            self._kept.move_to_end(prompt)
        else:
            encoded = self._read(prompt) or self._made(prompt)
            self._keep(prompt, encoded)
        told = {} if size is None else _told(size)
        return [[tensor, {"guidance": GUIDANCE, **options, **told}] for tensor, options in encoded]

    def fill(self, captions: Iterable[str], progress: Progress, *, as_prompt: bool = False) -> None:
        """Encodes captions ahead, where they are kept; `progress` is told after each."""
        missing = [*dict.fromkeys(captions)]
        if self._trained:
            return
        for done, caption in enumerate(missing, start=1):
            self.conditioning(caption, as_prompt=as_prompt)
            progress(done, len(missing))

    def _keep(self, prompt: str, encoded: Conditioning) -> None:
        """Keeps it in memory, where what was not asked for longest goes when there is too much."""
        self._kept[prompt] = encoded
        self._kept_bytes += _bytes_of(encoded)
        while self._kept_bytes > MOST_BYTES and len(self._kept) > 1:
            self._kept_bytes -= _bytes_of(self._kept.popitem(last=False)[1])

    def _made(self, prompt: str) -> Conditioning:
        with torch.no_grad():
            encoded = detached(self._encoded(prompt))
        if self._on_disk is not None:
            tensors, text = pack(encoded)
            header = {"conditioning": text}
            self._on_disk.write(*self._made_from(prompt), tensors=tensors, header=header)
        return encoded

    def _read(self, prompt: str) -> Conditioning | None:
        """Returns what a run before has kept, or None."""
        found = self._on_disk.read(*self._made_from(prompt)) if self._on_disk is not None else None
        if found is None:
            return None
        tensors, header = found
        try:
            return unpack(tensors, header.get("conditioning", ""))
        except TrainingError:  # written by something else
            return None

    def _made_from(self, prompt: str) -> tuple[str, str]:
        """Returns what changes when a conditioning does: text encoders and words."""
        if not self._digest:
            layer = str(getattr(self._clip, "layer_idx", None))
            self._digest = digest_of_weights(self._clip.cond_stage_model, layer)
        return self._digest, prompt

    def _encoded(self, prompt: str) -> Conditioning:
        self.made += 1
        tokens = self._clip.tokenize(prompt)
        with OutOfPlace() if self._trained else nullcontext():
            encoded: dict[str, Any] = self._clip.encode_from_tokens(
                tokens, return_pooled=True, return_dict=True
            )
        return [[encoded.pop("cond"), encoded]]


def _told(size: SizeCondition) -> dict[str, int]:
    """Returns what SDXL is told of a picture, by the host's names."""
    return {
        "width": size.original_px[0],
        "height": size.original_px[1],
        "crop_w": size.left_top_px[0],
        "crop_h": size.left_top_px[1],
        "target_width": size.target_px[0],
        "target_height": size.target_px[1],
    }


def _bytes_of(value: Any) -> int:
    """Returns the bytes of all tensors in a conditioning."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    return sum(map(_bytes_of, value)) if isinstance(value, list) else 0


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
