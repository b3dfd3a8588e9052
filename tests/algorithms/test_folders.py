"""A folder is read whatever lies in it, in one order on every system, and a bad file is named."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from anyadapter.algorithms.errors import DatasetError
from anyadapter.algorithms.training.dataset import FileSource, Item
from anyadapter.algorithms.training.folders import (
    Found,
    Header,
    Reading,
    decoded_text,
    folder_state,
    natural_order,
    scan,
)


def header_of(path: Path) -> Header:
    """Files of these tests say in words what a picture's header would tell."""
    words = path.read_text(encoding="utf-8").split()
    if not words or not words[0].isdigit():
        raise DatasetError("damaged")
    return Header((int(words[0]), int(words[1])), "alpha" in words, "animated" in words)


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(folder: Path, **options: Any) -> Found:
    return scan(folder, Reading(header_of, {".png", ".jpg"}, **options))


def named(found: Found) -> dict[str, Item]:
    return {item.name: item for item in found.items}


def test_pictures_are_read_with_repeats_and_captions(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "one.PNG": "64 48",
            "one.txt": "a cat,  red\nsecond\n\n",
            "10_sks dog/b.jpg": "32 32",
            "10_sks dog/b.caption": "a dog",
            "more/c.png": "32 32",
            "more/c.TXT": "",
            "readme.md": "no picture",
        },
    )
    items = named(read(tmp_path))
    assert list(items) == ["one.PNG", "10_sks dog/b.jpg", "more/c.png"]
    one, dog, more = items.values()
    assert (one.size_px, one.lines, one.repeats) == ((64, 48), ("a cat,  red", "second"), 1)
    assert (dog.lines, dog.repeats, dog.folder) == (("a dog",), 10, "10_sks dog")
    assert (more.lines, more.repeats) == ((), 1)


def test_the_order_is_natural_and_the_same_everywhere(tmp_path: Path) -> None:
    names = ["b1.png", "A10.png", "a2.png", "a02.png", "a 1.png", "é.png"]
    put(tmp_path, dict.fromkeys(names, "64 64"))
    expected = ["a02.png", "a2.png", "A10.png", "a 1.png", "b1.png", "é.png"]
    assert [item.name for item in read(tmp_path).items] == expected
    assert sorted(names, key=natural_order) == expected


@pytest.mark.parametrize(
    ("raw", "text", "guess"),
    [
        ("Käse".encode(), "Käse", ""),
        ("Käse".encode("utf-8-sig"), "Käse", ""),
        ("Käse".encode("utf-16"), "Käse", ""),
        (b"\xfe\xff" + "Käse".encode("utf-16-be"), "Käse", ""),
        ("Käse".encode("utf-16-le"), "Käse", "utf-16-le"),
        ("Käse".encode("utf-16-be"), "Käse", "utf-16-be"),
        ("Käse “x”".encode("cp1252"), "Käse “x”", "Windows-1252"),
        (b"a\x81", "a�", "Windows-1252"),
    ],
)
def test_captions_are_read_in_any_encoding(raw: bytes, text: str, guess: str) -> None:
    assert decoded_text(raw) == (text, guess)


def test_a_guessed_encoding_is_told(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": "64 64", "a.txt": "Käse".encode("cp1252")})
    found = read(tmp_path)
    assert found.items[0].lines == ("Käse",)
    assert found.notes == ("Captions not in UTF-8, read as Windows-1252: a.png",)


def test_what_stands_for_a_missing_caption_is_told(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": "64 64", "3_red car/b.png": "64 64", "3_/c.png": "64 64"})
    found = read(tmp_path, trigger="sks")
    assert {name: item.lines for name, item in named(found).items()} == {
        "a.png": ("sks",),
        "3_/c.png": ("sks",),
        "3_red car/b.png": ("red car",),
    }
    assert found.notes == (
        'No caption, "sks" is taken: a.png, 3_/c.png',
        'No caption, "red car" is taken: 3_red car/b.png',
    )
    assert read(tmp_path / "3_").notes == ("No caption: c.png",)


def test_bad_files_are_skipped_and_named(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "good.png": "64 64",
            "bad.png": "nonsense",
            "empty.png": "",
            "dot.png": "1 1",
            "phone.heic": "",
            "long.png": "64 64",
            "long.txt": "x" * (1 << 21),
            "0_off/a.png": "64 64",
            "more/deep/a.png": "64 64",
            ".hidden/a.png": "64 64",
            "._good.png": "",
        },
    )
    (tmp_path / "folder.png").mkdir()
    found = read(tmp_path)
    assert list(named(found)) == ["good.png"]
    assert found.skipped == (
        "bad.png: damaged",
        "dot.png: only 1 x 1 pixels, and 16 is the least",
        "empty.png: damaged",
        "long.png: long.txt is too large for a caption",
        "phone.heic: cannot be read here; convert it to png, jpg or webp",
        "0_off: to be repeated 0 times",
    )
    assert "Folders deeper than one level are not read: more/deep" in found.notes


@pytest.mark.skipif(sys.platform == "win32", reason="links take rights there")
def test_links_in_circles_end_and_are_named(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": "64 64", "sub/b.png": "64 64"})
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "sub")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = read(tmp_path)
    assert list(named(found)) == ["a.png", "again/b.png"]
    assert [line.partition(":")[0] for line in found.skipped] == [
        "gone.png",
        "pipe.png",
        "circle",
        "sub",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"64 64")
    assert read(tmp_path).items[0].name == "\\udcff.png"
    assert folder_state([tmp_path])


def test_masks_are_found_by_name_and_not_trained(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "a.png": "64 32",
            "3_x/a.png": "64 32",
            "b.png": "64 32",
            "c.png": "64 32",
            "masks/a.jpg": "128 64",
            "masks/3_x/a.png": "128 65",
            "masks/c.png": "64 64",
        },
    )
    found = read(tmp_path, masks=tmp_path / "masks")
    masks = {name: item.mask for name, item in named(found).items()}
    assert {name: mask and mask.path for name, mask in masks.items()} == {
        "a.png": tmp_path / "masks" / "a.jpg",
        "b.png": None,
        "3_x/a.png": tmp_path / "masks" / "3_x" / "a.png",
    }
    assert isinstance(masks["a.png"], FileSource)
    assert found.skipped == ("c.png: its mask has 64 x 64 pixels, the picture 64 x 32",)
    assert "Without a mask, trained whole: b.png" in found.notes


def test_transparency_is_a_mask_on_request_and_else_told(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": "64 64 alpha", "b.png": "64 64 animated", "a.txt": "", "b.txt": ""})
    told = read(tmp_path)
    assert told.items[0].mask is None
    assert told.notes == (
        "With transparency, which becomes white: a.png",
        "Animated, the first frame is taken: b.png",
    )
    assert read(tmp_path, alpha_is_mask=True).items[0].mask == "alpha"


def test_regularisation_pictures_are_told_apart(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": "64 64", "reg/2_dog/a.png": "64 64"})
    own = read(tmp_path, trigger="sks", leave_out=[tmp_path / "reg"])
    other = read(tmp_path / "reg", trigger="sks", regularization=True)
    assert list(named(own)) == ["a.png"]
    (item,) = other.items
    assert (item.name, item.lines, item.repeats) == ("reg/2_dog/a.png", ("dog",), 2)
    assert item.regularization


def test_a_caption_file_of_another_kind_can_be_asked_for(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": "64 64", "a.txt": "text", "a.caption": "caption"})
    assert read(tmp_path).items[0].lines == ("text",)
    assert read(tmp_path, caption_suffixes=(".caption",)).items[0].lines == ("caption",)


@pytest.mark.parametrize("content", [{}, {"notes.txt": "x"}, {"a/b/c.png": "64 64"}])
def test_a_folder_without_pictures_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no picture to train on .* end in \.jpg, \.png"):
        read(put(tmp_path, content))


def test_a_folder_of_bad_pictures_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.png: damaged"):
        read(put(tmp_path, {"a.png": ""}))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no folder .*nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no folder of masks"):
        read(put(tmp_path, {"a.png": "64 64"}), masks=tmp_path / "nowhere")


def test_the_state_changes_with_every_edit(tmp_path: Path) -> None:
    put(tmp_path, {"3_x/a.png": "64 64", "3_x/a.txt": "cat"})
    states = [folder_state([tmp_path])]
    (tmp_path / "3_x" / "a.txt").write_text("dog!")
    states.append(folder_state([tmp_path]))
    os.utime(tmp_path / "3_x" / "a.png", ns=(0, 1))
    states.append(folder_state([tmp_path]))
    (tmp_path / "3_x").rename(tmp_path / "4_x")
    states.append(folder_state([tmp_path]))
    assert len(set(states)) == 4
    assert folder_state([tmp_path]) == states[-1]
    assert folder_state([tmp_path / "nowhere"])
