"""The host's lists of pictures, latents and conditionings as items of a dataset."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ...algorithms.errors import DatasetError, listed
from ...algorithms.training.dataset import (
    LATENT_CELL_PX,
    SMALLEST_PX,
    ImageSource,
    Item,
    LatentSource,
    MaskSource,
)

FOLDER = "graph"
"""Stands in metadata where the name of a folder does."""

Part = TypeVar("Part")


def image_items(
    images: Sequence[Tensor], captions: Sequence[str], masks: Sequence[Tensor]
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Returns pictures of the graph as items, and a line for each that cannot be trained on.

    Args:
        images: IMAGE batches.
        captions: One for each picture, for each batch or for all; or none.
        masks: MASK batches, likewise.

    Raises:
        DatasetError: Captions or masks are for another number of pictures, or none can be used.
    """
    sizes = [len(batch) for batch in images]
    flat = [_in_colour(one) for batch in images for one in batch]
    texts = _for_each(captions, sizes, "captions") or [""] * len(flat)
    parts = [one for batch in masks for one in batch.reshape(-1, *batch.shape[-2:])]
    flat_masks = _for_each(parts, sizes, "masks") or [None] * len(flat)
    items: list[Item] = []
    skipped: list[str] = []
    rows = zip(flat, texts, flat_masks, strict=True)
    for number, (image, text, mask) in enumerate(rows, start=1):
        fault = _fault(image, mask)
        if fault:
            skipped.append(f"image {number}: {fault}")
            continue
        item = Item(
            name=f"image {number}",
            size_px=(image.shape[1], image.shape[0]),
            source=ImageSource(image),
            lines=tuple(line.strip() for line in text.splitlines() if line.strip()),
            folder=FOLDER,
            mask=None if mask is None else MaskSource(mask),
        )
        items.append(item)
    if not items:
        raise DatasetError(f"None of the images can be trained on: {listed(skipped)}.")
    return tuple(items), tuple(skipped)


def latent_items(
    latents: Sequence[Mapping[str, Any]], conditionings: Sequence[Any]
) -> tuple[Item, ...]:
    """Returns latents of the graph as items, each with its conditioning.

    Takes what Make Training Dataset gives (a list of single latents and a list of conditionings),
    what Resolution Bucket gives (batches, and a conditioning with as many entries for each), and one
    batch with a conditioning for each of its latents or for all.

    Args:
        latents: LATENT dictionaries.
        conditionings: CONDITIONINGs.

    Raises:
        DatasetError: Numbers do not go together, or a latent is no picture.
    """
    batches = [_samples(latent) for latent in latents]
    sizes = [len(batch) for batch in batches]
    if len(conditionings) == len(batches):
        given = [
            one
            for conditioning, size in zip(conditionings, sizes, strict=True)
            for one in _shared_out(conditioning, size)
        ]
    else:
        given = _for_each(conditionings, sizes, "conditionings")
    flat = [one for batch in batches for one in batch]
    if not flat or not given:
        raise DatasetError("There are no latents or no conditionings to train on: connect both.")
    return tuple(
        Item(
            name=f"latent {number}",
            size_px=(latent.shape[-1] * LATENT_CELL_PX, latent.shape[-2] * LATENT_CELL_PX),
            source=LatentSource(latent, conditioning),
            folder=FOLDER,
        )
        for number, (latent, conditioning) in enumerate(zip(flat, given, strict=True), start=1)
    )


def _for_each(values: Sequence[Part], sizes: Sequence[int], what: str) -> list[Part]:
    """Returns a value for each item of some batches; nothing if there are no values.

    Raises:
        DatasetError: There are neither as many as items, nor as batches, nor one.
    """
    total = sum(sizes)
    if len(values) in (0, total):
        return [*values]
    if len(values) == len(sizes):
        return [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]
    if len(values) == 1:
        return [values[0]] * total
    raise DatasetError(
        f"There are {len(values)} {what} for {total} items: give one for each, or one for all."
    )


def _fault(image: Tensor, mask: Tensor | None) -> str:
    """Returns why a picture cannot be trained on; empty if it can."""
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_PX:
        return f"only {width} x {height} pixels, and {SMALLEST_PX} is the least"
    if mask is not None and not mask.any():
        return "its mask is black all over, so nothing of it would be trained"
    return ""


def _in_colour(image: Tensor) -> Tensor:
    """Returns a picture in three channels, without transparency."""
    return image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[:, :, :3]


def _samples(latent: Mapping[str, Any]) -> Tensor:
    """Returns the latents of a batch.

    Raises:
        DatasetError: They are several in one, as of video with sound, or have no height and width.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False) or samples.ndim < 4:
        raise DatasetError("Only latents of pictures and of video without sound can be trained on.")
    return samples


def _shared_out(conditioning: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Returns the part of a CONDITIONING for each latent of a batch: an entry, or all of it."""
    if size > 1 and len(conditioning) == size:
        return [[entry] for entry in conditioning]
    return [conditioning] * size
