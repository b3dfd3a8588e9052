"""Picture files as people see them: upright, in RGB, whatever the file holds."""

import struct
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...algorithms.errors import DatasetError
from ...algorithms.training.buckets import Placement
from ...algorithms.training.dataset import Draw, FileSource, LatentSource, MaskSource
from ...algorithms.training.folders import Header

ORIENTATION = 0x0112
TURNED = {5, 6, 7, 8}
"""Orientations that exchange width and height."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

DAMAGES = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, ArithmeticError, LookupError),
    *(TypeError, AttributeError, MemoryError, Image.DecompressionBombError),
)
"""What Pillow's readers raise at damaged files, depending on the format and the damage."""

DEEP = 257
"""65535 / 255: from 16 bits to 8."""


def readable_suffixes() -> frozenset[str]:
    """Returns the suffixes of pictures that this Pillow can read and that training takes."""
    known = Image.registered_extensions()
    wanted = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".avif", ".jxl")
    return frozenset(suffix for suffix in wanted if suffix in known)


def look(path: Path) -> Header:
    """Returns what the beginning of a file tells, and whether its end is there.

    Raises:
        DatasetError: It is no picture or is cut off; the message is the reason alone.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = _orientation(image) in TURNED
        size = (height, width) if turned else (width, height)
        header = Header(size, _has_alpha(image), _is_animated(image))
        if not _ends_well(path, image.format):
            image.load()  # only this can tell whether a strange end means that pixels are missing
    return header


def picture(draw: Draw) -> Tensor:
    """Returns the pixels of a draw, `[height, width, 3]` from 0 to 1, resized, cropped and mirrored.

    Raises:
        DatasetError: The file is damaged; the message is the reason alone.
    """
    source, placement = draw.item.source, draw.placement
    if isinstance(source, LatentSource):
        raise DatasetError("a latent has no pixels")
    if isinstance(source, FileSource):
        image = _decoded(source.path, placement)
        keeps_alpha = draw.item.mask == "alpha"
        pixels = _fitted(_in_colour(image, keeps_alpha=keeps_alpha), placement)
    else:
        channels = source.image.float().cpu().numpy().transpose(2, 0, 1)
        pixels = np.stack([_fitted(Image.fromarray(one), placement) for one in channels], axis=2)
    return _tensor(pixels, flipped=draw.flipped)


def mask(draw: Draw) -> Tensor | None:
    """Returns where a draw is trained, `[height, width]` from 0 to 1, or None for everywhere.

    Raises:
        DatasetError: The file is damaged; the message is the reason alone.
    """
    source, placement = draw.item.mask, draw.placement
    if source is None:
        return None
    if isinstance(source, MaskSource):
        pixels = _fitted(Image.fromarray(source.mask.float().cpu().numpy()), placement)
    elif isinstance(source, FileSource):
        image = _in_colour(_decoded(source.path, placement), keeps_alpha=False)
        pixels = _fitted(image.getchannel("R"), placement)  # red, as sd-scripts reads it
    else:
        assert isinstance(draw.item.source, FileSource)
        image = _decoded(draw.item.source.path, placement)
        pixels = _fitted(image.convert("RGBA").getchannel("A"), placement)
    return _tensor(pixels, flipped=draw.flipped)


@contextmanager
def _opened(path: Path) -> Generator[Image.Image, None, None]:
    """Opens a file; whatever is found to be wrong with it becomes one kind of error."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of pictures above 89 megapixels (and refuses those of twice as many),
            # and of oddities in metadata: neither is of use to who trains.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise DatasetError("too many pixels; make it smaller") from error
    except Image.UnidentifiedImageError as error:
        empty = not path.stat().st_size
        raise DatasetError("the file is empty" if empty else "no picture, or damaged") from error
    except DAMAGES as error:
        raise DatasetError(f"cannot be read ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return words or type(error).__name__


def _decoded(path: Path, placement: Placement) -> Image.Image:
    """Returns a picture as it is seen, not much larger than what is made of it needs.

    Raises:
        DatasetError: The file is damaged.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        # JPEG can be decoded smaller: at twice the size that is needed no difference is seen.
        width, height = (2 * side for side in placement.resized_px)
        image.draft(image.mode, (height, width) if orientation in TURNED else (width, height))
        image.load()
        return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _orientation(image: Image.Image) -> int:
    """Returns how a picture must be turned to be seen as taken, in EXIF's numbers."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # Pillow would decode the whole picture to look for it behind the pixels
    try:
        return image.getexif().get(ORIENTATION, 1)
    except DAMAGES:
        return 1


def _has_alpha(image: Image.Image) -> bool:
    marked = "transparency" in image.info and not image.mode.startswith("I")
    return marked or image.mode in {"RGBA", "LA", "PA"}


def _is_animated(image: Image.Image) -> bool:
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except DAMAGES:  # behind the first frame, which is the one that counts
        return True


def _ends_well(path: Path, kind: str | None) -> bool:
    """Whether the last bytes are those with which such a file ends; True where nothing is known."""
    with path.open("rb") as file:
        start = file.read(8)
        length = file.seek(0, 2)
        file.seek(max(length - 12, 0))
        end = file.read()
    if kind in {"JPEG", "MPO"}:
        return end.rstrip(b"\0").endswith(b"\xff\xd9")
    if kind == "PNG":
        return end.endswith(b"IEND\xaeB`\x82")
    if kind == "GIF":
        return end.endswith(b"\x3b")
    if kind == "WEBP":
        return length >= int.from_bytes(start[4:8], "little") + 8
    return kind != "BMP" or length >= int.from_bytes(start[2:6], "little")


def _in_colour(image: Image.Image, *, keeps_alpha: bool) -> Image.Image:
    """Returns a picture in RGB: transparency over white, or cut off where it is the mask."""
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow would cut them off, not scale them
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((grey // DEEP).clip(0, 255).astype(np.uint8))
    if not _has_alpha(image):
        return image.convert("RGB")
    image = image.convert("RGBA")
    if keeps_alpha:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _fitted(image: Image.Image, placement: Placement) -> NDArray[np.generic]:
    """Returns the pixels that a placement keeps, in its size.

    By area where it shrinks and by Lanczos where it grows, as sd-scripts chooses. The picture is
    resized in what is kept alone, so that a long strip costs no more than its crop.
    """
    across = image.width / placement.resized_px[0]
    down = image.height / placement.resized_px[1]
    left, top, right, bottom = placement.crop_px
    box = (left * across, top * down, right * across, bottom * down)
    kind = Image.Resampling.BOX if min(across, down) >= 1 else Image.Resampling.LANCZOS
    return np.asarray(image.resize(placement.bucket_px, kind, box=box))


def _tensor(pixels: NDArray[np.generic], *, flipped: bool) -> Tensor:
    scale = 255 if pixels.dtype == np.uint8 else 1
    values = (pixels.astype(np.float32) / scale).clip(0, 1)
    return torch.from_numpy(np.ascontiguousarray(values[:, ::-1] if flipped else values))
