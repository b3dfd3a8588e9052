"""Every kind of picture file becomes upright RGB, or is told apart as damaged."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anyadapter.algorithms.errors import DatasetError
from anyadapter.algorithms.training.buckets import BucketConfig, place
from anyadapter.algorithms.training.dataset import (
    Dataset,
    Draw,
    FileSource,
    ImageSource,
    Item,
    MaskSource,
)
from anyadapter.algorithms.training.folders import Reading, scan
from anyadapter.nodes.host import decoding
from broken_pictures import write_damaged

SQUARE = BucketConfig(enabled=False)
RED, WHITE = (1.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def draw_of(path: Path, size: tuple[int, int], side: int = 64, **options: Any) -> Draw:
    flipped = options.pop("flipped", False)
    item = Item(path.name, size, FileSource(path), **options)
    return Draw(item, "", flipped, place(size, side, SQUARE))


def pixels(path: Path, **options: Any) -> torch.Tensor:
    return decoding.picture(draw_of(path, decoding.look(path).size_px, **options))


def colour(image: torch.Tensor, row: int = 32, column: int = 32) -> tuple[float, ...]:
    return tuple(round(value, 2) for value in image[row, column].tolist())


def halves(mode: str = "RGB") -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (96, 96), "blue")
    image.paste("red", (0, 0, 96, 48))
    return image.convert(mode)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def deep_grey() -> Image.Image:
    return Image.fromarray(np.full((96, 96), 0x8080, np.uint16))


FILES: dict[str, tuple[Callable[[], Image.Image], dict[str, Any]]] = {
    "a.png": (halves, {}),
    "a.jpg": (halves, {"quality": 95}),
    "a.webp": (halves, {"lossless": True}),
    "a.bmp": (halves, {}),
    "a.gif": (halves, {}),
    "palette.png": (lambda: halves("P"), {}),
    "cmyk.jpg": (lambda: halves("CMYK"), {"quality": 95}),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_kind_show_the_same(name: str, tmp_path: Path) -> None:
    make, options = FILES[name]
    image = pixels(saved(tmp_path / name, make(), **options))
    assert image.shape == (64, 64, 3)
    assert image.dtype == torch.float32
    assert torch.allclose(image[8, 8], torch.tensor(RED), atol=0.05)
    assert torch.allclose(image[56, 8], torch.tensor((0.0, 0.0, 1.0)), atol=0.05)


def test_sixteen_bits_of_grey_keep_their_brightness(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", deep_grey())
    assert colour(pixels(path)) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_becomes_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    path = tmp_path / "a.png"
    saved(path, image.convert(mode) if mode != "PA" else image.quantize(8))
    assert decoding.look(path).has_alpha
    assert colour(pixels(path)) == WHITE


def test_transparency_can_be_the_mask_and_the_colours_below_it_stay(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    path = saved(tmp_path / "a.png", image)
    draw = draw_of(path, (64, 64), mask="alpha")
    assert colour(decoding.picture(draw), column=60) == RED
    mask = decoding.mask(draw)
    assert mask is not None
    assert (mask[:, :32].mean(), mask[:, 32:].mean()) == (1, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_are_turned_upright(suffix: str, orientation: int, tmp_path: Path) -> None:
    upright = Image.new("RGB", (96, 64), "blue")
    upright.paste("red", (0, 0, 48, 32))
    back = {6: 8, 8: 6}.get(orientation, orientation)
    inverse = decoding.TURNS.get(back)
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(
        tmp_path / f"a.{suffix}", stored, exif=exif, **({"quality": 95} if suffix == "jpg" else {})
    )
    assert decoding.look(path).size_px == (96, 64)
    image = pixels(path)
    assert torch.allclose(image[8, 8], torch.tensor(RED), atol=0.05)
    assert torch.allclose(image[8, 60], torch.tensor((0.0, 0.0, 1.0)), atol=0.05)
    assert torch.allclose(image[60, 8], torch.tensor((0.0, 0.0, 1.0)), atol=0.05)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert decoding.look(path).animated
        assert torch.allclose(pixels(path)[32, 32], torch.tensor(RED), atol=0.05)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
@pytest.mark.parametrize("share", [0.02, 0.6, 0.97])
def test_what_is_cut_off_is_refused_before_training(
    suffix: str, share: float, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DatasetError):
        decoding.look(path)


def test_bytes_behind_the_picture_do_no_harm(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "bmp", "gif"):
        path = saved(tmp_path / f"a.{suffix}", halves())
        path.write_bytes(path.read_bytes() + b"thumbnail of a phone")
        assert decoding.look(path).size_px == (96, 96)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match="empty"):
        decoding.look(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DatasetError, match="no picture"):
        decoding.look(path)
    path.unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        decoding.look(path)


def test_damage_in_the_middle_is_found_when_the_pixels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_damaged(path)
    draw = draw_of(path, decoding.look(path).size_px)
    with pytest.raises(DatasetError, match="cannot be read"):
        decoding.picture(draw)


def test_a_hundred_megapixels_are_read_and_more_than_180_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("L", (10_000, 10_000), 128))
    assert decoding.look(path).size_px == (10_000, 10_000)
    assert pixels(path).shape == (64, 64, 3)
    huge = io.BytesIO()
    Image.new("1", (16, 16)).save(huge, "BMP")
    content = bytearray(huge.getvalue())
    content[18:26] = (20_000).to_bytes(4, "little") * 2
    path = tmp_path / "a.bmp"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="too many pixels"):
        decoding.look(path)


def test_a_long_strip_is_resized_in_its_crop_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (20_000, 16), "red"))
    assert colour(pixels(path, side=512), 200, 200) == RED


def test_a_crop_is_the_middle_and_the_mirror_image_is_mirrored(tmp_path: Path) -> None:
    image = Image.new("RGB", (192, 64), "blue")
    image.paste("red", (64, 0, 96, 64))
    path = saved(tmp_path / "a.png", image)
    straight = pixels(path)
    assert colour(straight, column=4) == RED
    assert colour(straight, column=60) == (0, 0, 1)
    assert torch.equal(pixels(path, flipped=True), straight.flip(1))


def test_a_picture_of_the_graph_is_treated_as_a_file_of_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    file = pixels(saved(tmp_path / "a.png", Image.fromarray(noise)))
    source = ImageSource(torch.from_numpy(noise.astype(np.float32) / 255))
    mask = MaskSource(torch.ones(200, 200))
    item = Item("image 1", (200, 200), source, mask=mask)
    draw = Draw(item, "", False, place((200, 200), 64, SQUARE))
    assert torch.allclose(decoding.picture(draw), file, atol=1 / 255)
    assert torch.equal(decoding.mask(draw), torch.ones(64, 64))


def test_a_mask_in_a_file_is_read_from_its_red(tmp_path: Path) -> None:
    picture = saved(tmp_path / "a.png", halves())
    mask = saved(tmp_path / "b.png", Image.new("RGB", (48, 48), (255, 0, 0)))
    draw = draw_of(picture, (96, 96), mask=FileSource(mask))
    assert torch.equal(decoding.mask(draw), torch.ones(64, 64))


def test_an_unreadable_file_is_named_and_the_others_stay(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", halves())
    saved(tmp_path / "b.png", halves()).write_bytes(b"\x89PNG\r\n\x1a\n")
    reading = Reading(decoding.look, decoding.readable_suffixes())
    found = scan(tmp_path, reading)
    assert [item.name for item in found.items] == ["a.png"]
    assert found.skipped[0].startswith("b.png: ")


def test_five_thousand_files_are_scanned_by_their_headers(tmp_path: Path) -> None:
    saved(tmp_path / "0.jpg", halves(), quality=95)
    for number in range(1, 5000):
        os.link(tmp_path / "0.jpg", tmp_path / f"{number}.jpg")
    found = scan(tmp_path, Reading(decoding.look, decoding.readable_suffixes()))
    dataset = Dataset(found.items)
    assert dataset.bucket_counts() == {(512, 512): 5000}
    assert dataset.items[4999].name == "4999.jpg"
