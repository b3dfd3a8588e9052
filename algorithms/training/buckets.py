"""Buckets: the sizes in which pictures of all aspect ratios are trained, and how one is fitted.

A picture goes to the bucket of the nearest aspect ratio, is resized to cover it and then cropped.

Source: `make_bucket_resolutions` and `BucketManager` of sd-scripts, whose numbers these are.
Departs from it where a picture is narrower than one step and may not be enlarged: sd-scripts makes
a bucket of no width, here the picture is enlarged to one step.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from ..errors import DatasetError

Size = tuple[int, int]
"""Width and height in pixels."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

LONGEST_SIDE = 2
"""A bucket is at most this many times as long as the square one, unless a limit is given: then all
buckets have its area."""


@dataclass(frozen=True)
class BucketConfig:
    """Which buckets there are."""

    enabled: bool = True
    """Off: every picture is cropped to a square."""
    min_px: int = 0
    """Of a side; 0 takes half of the resolution."""
    max_px: int = 0
    """Of a side; 0 takes twice the resolution."""
    step_px: int = 64
    """Sides are multiples of it. The model sets the smallest one: 64 for SD, 32 for SDXL, Flux and
    SD3, 16 for Lumina."""
    no_upscale: bool = False
    """The bucket is made from the picture itself, which is never enlarged. The limits are not read
    then."""

    def __post_init__(self) -> None:
        if self.step_px < 8:
            raise DatasetError(f"The bucket step is {self.step_px} px: use 64, or at least 8.")

    def limits_px(self, resolution_px: int) -> tuple[int, int]:
        """Returns the shortest and the longest side, as multiples of the step.

        Raises:
            DatasetError: The square of the resolution lies outside of them.
        """
        step = self.step_px
        shortest = max((self.min_px or resolution_px // LONGEST_SIDE) // step, 1) * step
        longest = (self.max_px or resolution_px * LONGEST_SIDE) // step * step
        if not shortest <= resolution_px // step * step <= longest:
            raise DatasetError(
                f"Buckets go from {shortest} to {longest} px, which leaves out the resolution "
                f"{resolution_px} itself: widen the limits, or set them to 0 (half and twice the "
                "resolution)."
            )
        return shortest, longest


@dataclass(frozen=True)
class Placement:
    """How a picture is fitted into its bucket."""

    original_px: Size
    resized_px: Size
    """The whole picture, before it is cropped."""
    crop_px: Box
    """What is kept of the resized picture."""
    bucket_px: Size
    random: bool = False
    """The crop was drawn: another epoch has another one, so what is made of it need not be kept."""

    @property
    def aspect_error(self) -> float:
        """How far the aspect ratios of bucket and picture lie apart."""
        return abs(_aspect(self.bucket_px) - _aspect(self.original_px))

    @property
    def condition_box_px(self) -> Box:
        """Where the picture would lie in its bucket if nothing of it were cropped.

        SDXL was told the crop of each picture. sd-scripts, and so nearly every SDXL adapter there is,
        tells this box for it, also where the crop is random.
        """
        width, height = self.bucket_px
        fitted_width, fitted_height = float(width), float(height)
        if _aspect(self.bucket_px) > _aspect(self.original_px):
            fitted_width = height * _aspect(self.original_px)
        else:
            fitted_height = width / _aspect(self.original_px)
        left, top = int((width - fitted_width) // 2), int((height - fitted_height) // 2)
        return left, top, int(left + fitted_width), int(top + fitted_height)

    def condition_left_top_px(self, *, flipped: bool) -> tuple[int, int]:
        """Returns the beginning of `condition_box_px`, in the mirrored picture if it is flipped."""
        left, top, right, _ = self.condition_box_px
        return (self.bucket_px[0] - right if flipped else left), top


def bucket_sizes(resolution_px: int, config: BucketConfig) -> tuple[Size, ...]:
    """Returns all buckets that are made ahead, by width and then by height.

    For every width within the limits the largest height that keeps the area of the resolution, and
    the same lying on its side.

    Raises:
        DatasetError: The limits leave out the resolution, or it is smaller than one step.
    """
    step = config.step_px
    if resolution_px < step:
        raise DatasetError(
            f"The resolution {resolution_px} is smaller than the bucket step of {step} px: raise "
            "the resolution."
        )
    square = resolution_px // step * step
    sizes = {(square, square)}
    if config.enabled and not config.no_upscale:
        shortest, longest = config.limits_px(resolution_px)
        for width in range(shortest, longest + 1, step):
            height = min(longest, resolution_px**2 // width // step * step)
            if height >= shortest:
                sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


@lru_cache(maxsize=4096)  # pictures of one camera, and every epoch anew
def place(size_px: Size, resolution_px: int, config: BucketConfig) -> Placement:
    """Returns how a picture is fitted, cropped in its middle.

    Args:
        size_px: Its size, as it is seen.
        resolution_px: Side of the square whose area buckets have.
        config: Which buckets there are.

    Raises:
        DatasetError: As `bucket_sizes`.
    """
    if config.enabled and config.no_upscale:
        resized = _shrunk(size_px, resolution_px, config.step_px)
        longest = resolution_px**2 // config.step_px  # binds only what had to be enlarged
        bucket = (
            _floored(min(resized[0], longest), config.step_px),
            _floored(min(resized[1], longest), config.step_px),
        )
    else:
        bucket = _nearest(size_px, bucket_sizes(resolution_px, config))
        resized = _covering(size_px, bucket)
    left, top = (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2
    crop = (left, top, left + bucket[0], top + bucket[1])
    return Placement(size_px, resized, crop, bucket)


def _aspect(size: Size) -> float:
    return size[0] / size[1]


def _nearest(size: Size, buckets: tuple[Size, ...]) -> Size:
    """Returns the bucket of that very size, or else of the nearest aspect ratio."""
    if size in buckets:
        return size
    return min(buckets, key=lambda bucket: abs(_aspect(bucket) - _aspect(size)))


def _covering(size: Size, bucket: Size) -> Size:
    """Returns the size of a picture that just covers a bucket."""
    wider = _aspect(size) > _aspect(bucket)
    scale = bucket[1] / size[1] if wider else bucket[0] / size[0]
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def _shrunk(size: Size, resolution_px: int, step: int) -> Size:
    """Returns the size of a picture that has at most the area of the resolution.

    One side becomes a multiple of the step: the one that changes the aspect ratio less once both
    are cropped to a multiple.
    """
    area, aspect = resolution_px**2, _aspect(size)
    if size[0] * size[1] > area:
        width = math.sqrt(area * aspect)
        by_width = _floored(int(width + 0.5), step)
        by_height = _floored(int(area / width + 0.5), step)
        errors = (
            abs(by_width / _floored(int(by_width / aspect + 0.5), step) - aspect),
            abs(_floored(int(by_height * aspect + 0.5), step) / by_height - aspect),
        )
        if errors[0] < errors[1]:
            size = by_width, int(by_width / aspect + 0.5)
        else:
            size = int(by_height * aspect + 0.5), by_height
    scale = max(step / min(size), 1.0)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def _floored(side: int, step: int) -> int:
    """Returns the multiple of the step that is not above `side`, or the first one."""
    return max(side - side % step, step)


def moved(placement: Placement, across: float, down: float) -> Placement:
    """Returns a placement with another crop.

    Args:
        placement: Where it is cropped now does not matter.
        across: Where the crop lies, from 0, the left edge, to 1.
        down: The same from above to below.
    """
    (width, height), (bucket_width, bucket_height) = placement.resized_px, placement.bucket_px
    left, top = round(across * (width - bucket_width)), round(down * (height - bucket_height))
    return Placement(
        placement.original_px,
        placement.resized_px,
        (left, top, left + bucket_width, top + bucket_height),
        placement.bucket_px,
        random=True,
    )
