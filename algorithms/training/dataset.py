"""What is trained on: items with their captions, and the draws from them that make an epoch."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..errors import DatasetError, listed
from ..shapes import Float
from .buckets import BucketConfig, Placement, Size, bucket_sizes, moved, place
from .captions import CaptionConfig, with_trigger, written

SMALLEST_PX = 16
"""A picture with a shorter side shows nothing but how it was enlarged, and is skipped."""

LATENT_CELL_PX = 8
"""Pixels of a cell of a latent that comes without its picture, as the host too takes them."""


@dataclass(frozen=True, eq=False)
class FileSource:
    """A picture in a file."""

    path: Path


@dataclass(frozen=True, eq=False)
class ImageSource:
    """A picture from the graph, from 0 to 1."""

    image: Float[Tensor, "H W 3"]


@dataclass(frozen=True, eq=False)
class LatentSource:
    """What has been encoded already, as the VAE gave it."""

    latent: Float[Tensor, "C *size"]
    conditioning: Any
    """The host's CONDITIONING of this item; it has no other caption."""


@dataclass(frozen=True, eq=False)
class MaskSource:
    """A mask from the graph: 1 where the picture is trained, 0 where it is not."""

    mask: Float[Tensor, "H W"]


Source = FileSource | ImageSource | LatentSource
Mask = FileSource | MaskSource | Literal["alpha"]
"""Where to train: a picture of it, or the transparency of the picture itself."""


@dataclass(frozen=True, eq=False)
class Item:
    """One picture, or one latent."""

    name: str
    """Unique in its dataset; for people, and the seed of what is drawn for it."""
    size_px: Size
    """As it is seen."""
    source: Source
    lines: tuple[str, ...] = ()
    """Of its caption."""
    folder: str = ""
    """Base name of the folder it lies in."""
    repeats: int = 1
    """How often it comes in an epoch."""
    regularization: bool = False
    """Shows what the trained thing is one of, and is trained with a loss weight of its own."""
    mask: Mask | None = None


@dataclass(frozen=True)
class SizeCondition:
    """What SDXL is told of a picture."""

    original_px: Size
    left_top_px: tuple[int, int]
    """Where the crop begins."""
    target_px: Size


@dataclass(frozen=True)
class Draw:
    """An item as one step trains it."""

    item: Item
    caption: str
    flipped: bool
    placement: Placement

    @property
    def size_condition(self) -> SizeCondition:
        """What SDXL is told, mirrored where the picture is."""
        placement = self.placement
        left_top = placement.condition_left_top_px(flipped=self.flipped)
        return SizeCondition(placement.original_px, left_top, placement.bucket_px)


@dataclass(frozen=True)
class FolderCount:
    """How much of a dataset lies in one folder."""

    repeats: int
    pictures: int
    """Without repeats."""
    regularization: bool


@dataclass(frozen=True, eq=False)
class Dataset:
    """Items, and what an epoch makes of them."""

    items: tuple[Item, ...]
    resolution_px: int = 512
    """Side of the square whose area the buckets have."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    buckets: BucketConfig = field(default_factory=BucketConfig)
    flip: bool = False
    """Whether half of the draws are mirrored."""
    random_crop: bool = False
    skipped: tuple[str, ...] = ()
    """`name: why` of everything that was left out."""
    notes: tuple[str, ...] = ()
    """What else is worth knowing of the items."""

    def __post_init__(self) -> None:
        bucket_sizes(self.resolution_px, self.buckets)

    def at(self, resolution_px: int) -> "Dataset":
        """Returns the same items in the buckets of another resolution.

        Raises:
            DatasetError: The limits of the buckets leave it out.
        """
        return replace(self, resolution_px=resolution_px)

    def without(self, faults: Mapping[Item, str]) -> "Dataset":
        """Returns the dataset without items that proved bad, which it names with the reason.

        Raises:
            DatasetError: Nothing to train remains.
        """
        items = tuple(item for item in self.items if item not in faults)
        skipped = (*self.skipped, *(f"{item.name}: {why}" for item, why in faults.items()))
        if all(item.regularization for item in items):
            raise DatasetError(f"Nothing can be trained on: {listed(skipped, separator='; ')}.")
        return replace(self, items=items, skipped=skipped)

    def split(self, fraction: float, seed: int) -> tuple["Dataset", "Dataset"]:
        """Returns a dataset to train on and one to validate with, which share no item.

        Regularisation items are not held out. Validation draws each item once, whole and unmirrored.

        Args:
            fraction: Share of the items that is held out; the number is rounded.
            seed: Decides which.

        Raises:
            DatasetError: Nothing to train would remain.
        """
        own = [item for item in self.items if not item.regularization]
        count = round(len(own) * fraction)
        if not 0 <= fraction < 1 or count >= len(own):
            raise DatasetError(
                f"Of {len(own)} items a share of {fraction:g} cannot be held out for validation: "
                "some must remain to train on. Lower the share, or add pictures."
            )
        held = set(random.Random(f"{seed}").sample(own, count))
        validation = replace(
            self,
            items=tuple(replace(item, repeats=1) for item in own if item in held),
            captions=self.captions.complete(),
            flip=False,
            random_crop=False,
            skipped=(),
            notes=(),
        )
        return replace(self, items=tuple(one for one in self.items if one not in held)), validation

    def epoch(self, number: int, batch_size: int, seed: int) -> list[tuple[Draw, ...]]:
        """Returns the batches of an epoch, each of one bucket, so the last of a bucket may be short.

        Every item comes as often as its repeats say. Regularisation items are repeated or cut to
        the same number; if they are cut, the next epoch goes on where this one ends.

        Args:
            number: Of the epoch, from 0.
            batch_size: Most draws in a batch.
            seed: Of the run. With the other two it decides everything.
        """
        if batch_size < 1:
            raise DatasetError(f"The batch size is {batch_size}: take at least 1.")
        turns = [*self._turns(regularization=False)]
        pool = [*self._turns(regularization=True)]
        if pool:
            start = number * len(turns)
            again = range(start, start + len(turns))
            turns += [(pool[turn % len(pool)][0], turn) for turn in again]
        order = random.Random(f"{seed + number}")
        order.shuffle(turns)
        together: dict[object, list[Draw]] = {}
        for item, turn in turns:
            chance = random.Random(f"{seed} {number} {turn} {item.name}")
            draw = self._draw(item, number, chance)
            shape = item.source.latent.shape if isinstance(item.source, LatentSource) else ()
            together.setdefault((draw.placement.bucket_px, tuple(shape)), []).append(draw)
        batches = [
            tuple(draws[start : start + batch_size])
            for draws in together.values()
            for start in range(0, len(draws), batch_size)
        ]
        order.shuffle(batches)
        return batches

    def views(self) -> tuple[Draw, ...]:
        """Returns every item once, and once mirrored where that may come: all there is to encode.

        Where crops are random there is no end to them; the middle one stands for all.
        """
        flips = (False, True) if self.flip else (False,)
        return tuple(
            Draw(item, "", flipped, self._cropped(item, 0.5, 0.5))
            for item in self.items
            for flipped in flips
            if not (flipped and isinstance(item.source, LatentSource))
        )

    def placement(self, item: Item) -> Placement:
        """Returns how an item is fitted into its bucket, cropped in its middle."""
        if isinstance(item.source, LatentSource):
            return Placement(item.size_px, item.size_px, (0, 0, *item.size_px), item.size_px)
        return place(item.size_px, self.resolution_px, self.buckets)

    def count(self, *, regularization: bool = False) -> int:
        """Returns how many draws the items make, with repeats and before they are balanced."""
        return sum(1 for _ in self._turns(regularization=regularization))

    def bucket_counts(self) -> dict[Size, int]:
        """Returns how many draws each bucket gets, with repeats, by width and height."""
        counts: Counter[Size] = Counter()
        for item in self.items:
            counts[self.placement(item).bucket_px] += item.repeats
        return dict(sorted(counts.items()))

    def mean_aspect_error(self) -> float:
        """Returns how far aspect ratios of pictures and buckets lie apart, on average."""
        errors = [self.placement(item).aspect_error for item in self.items]
        return sum(errors) / len(errors) if errors else 0.0

    def folders(self) -> dict[str, FolderCount]:
        """Returns what lies in each folder, by its base name."""
        found: dict[str, FolderCount] = {}
        for item in self.items:
            seen = found.get(item.folder)
            pictures = seen.pictures + 1 if seen else 1
            found[item.folder] = FolderCount(item.repeats, pictures, item.regularization)
        return found

    def tag_frequency(self) -> dict[str, dict[str, int]]:
        """Returns in how many captions of a folder each tag is, by the folder's base name.

        In lower case, without repeats, and with the trigger word where it will be added.
        """
        found: dict[str, Counter[str]] = {}
        for item in self.items:
            config = self._captions_of(item)
            text = ",".join(item.lines if config.wildcards else item.lines[:1])
            tags = {tag.strip().lower() for tag in with_trigger(text, config).split(",")}
            found.setdefault(item.folder, Counter()).update(sorted(tags - {""}))
        return {folder: dict(counts.most_common()) for folder, counts in found.items()}

    def _turns(self, *, regularization: bool) -> Iterable[tuple[Item, int]]:
        for item in self.items:
            if item.regularization == regularization:
                yield from ((item, turn) for turn in range(item.repeats))

    def _draw(self, item: Item, epoch: int, chance: random.Random) -> Draw:
        if isinstance(item.source, LatentSource):
            return Draw(item, "", flipped=False, placement=self.placement(item))
        caption = written(item.lines, self._captions_of(item), epoch, chance)
        placement = self._cropped(item, chance.random(), chance.random())
        return Draw(item, caption, self.flip and chance.random() < 0.5, placement)

    def _cropped(self, item: Item, across: float, down: float) -> Placement:
        placement = self.placement(item)
        if self.random_crop and placement.resized_px != placement.bucket_px:
            return moved(placement, across, down)
        return placement

    def _captions_of(self, item: Item) -> CaptionConfig:
        return _untriggered(self.captions) if item.regularization else self.captions


@lru_cache(maxsize=8)
def _untriggered(captions: CaptionConfig) -> CaptionConfig:
    return replace(captions, trigger="")
