"""Trainings on folders in which not everything is a good picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from broken_pictures import write_cut, write_damaged
from comfy_server import ComfyServer, PromptFailedError
from training_prompts import losses, report, saved, scene, tensors, training

DEEP = np.full((80, 80), 0x8080, np.uint16)


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


GOOD: dict[str, Callable[[Path], object]] = {
    "cmyk.jpg": lambda path: scene().convert("CMYK").save(path),
    "transparent.png": lambda path: Image.new("RGBA", (80, 80), (200, 90, 90, 100)).save(path),
    "deep.png": lambda path: Image.fromarray(DEEP).save(path),
    "animated.gif": animated,
    "huge.jpg": lambda path: Image.new("L", (10_000, 10_000), 128).save(path),
}
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "dot.png": (lambda path: Image.new("RGB", (1, 1)).save(path), "only 1 x 1 pixels"),
    "empty.png": (lambda path: path.write_bytes(b""), "the file is empty"),
    "page.jpg": (lambda path: path.write_text("<html>not found</html>"), "no picture"),
    "cut.png": (write_cut, "image file is truncated"),
    "damaged.png": (write_damaged, "cannot be read"),
}


def fill(server: ComfyServer, folder: str, *names: str) -> str:
    """Makes a folder of the host's inputs of some of these pictures."""
    path = server.input_directory / folder
    path.mkdir()
    for name in names:
        make = GOOD[name] if name in GOOD else BAD[name][0]
        make(path / name)
        (path / name).with_suffix(".txt").write_text("a café", encoding="cp1252")
    return folder


def test_what_is_good_is_trained_on_and_what_is_not_is_named(server: ComfyServer):
    folder = fill(server, "mixed", *GOOD, *BAD)
    prompt = training(folder, steps=len(GOOD), output_name="mixed")
    history = server.run(prompt)
    text = report(history)
    assert f"{len(GOOD)} steps over {len(GOOD)} pictures" in text
    for name, (_, why) in BAD.items():
        assert f"{name}: " in text
        assert why in text.partition(f"{name}: ")[2].partition(";")[0]
    assert "Captions not in UTF-8, read as Windows-1252" in text
    assert "Animated, the first frame is taken: animated.gif" in text
    assert "With transparency, which becomes white: transparent.png" in text
    assert all(0 < loss < 10 for loss in losses(history))
    assert all(tensor.isfinite().all() for tensor in tensors(server, saved(history)).values())


def test_one_picture_is_enough(server: ComfyServer):
    history = server.run(training(fill(server, "single", "cmyk.jpg"), batch_size=4, steps=2))
    assert "2 steps over 1 picture" in report(history)


def test_one_picture_cannot_be_held_out(server: ComfyServer):
    prompt = training(fill(server, "alone", "cmyk.jpg"), validation_share=0.5)
    with pytest.raises(PromptFailedError, match=r"share of 0\.5"):
        server.run(prompt)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ((), "There is no picture to train on in"),
        (tuple(BAD), r"empty.png: the file is empty"),
        (("damaged.png",), "Nothing can be trained on: damaged.png: cannot be read"),
    ],
    ids=["empty", "nothing good", "damaged inside"],
)
def test_a_folder_of_nothing_good_is_refused_with_reasons(
    server: ComfyServer, names: tuple[str, ...], why: str
):
    folder = fill(server, f"bad_{len(names)}", *names)
    with pytest.raises(PromptFailedError, match=why) as caught:
        server.run(training(folder))
    assert caught.value.exception_type.endswith("DatasetError")
    again = training(fill(server, f"good_{len(names)}", "transparent.png"), steps=1)
    assert len(losses(server.run(again))) == 1


def test_a_folder_that_is_not_there_is_named(server: ComfyServer):
    with pytest.raises(PromptFailedError, match="There is no folder nowhere"):
        server.run(training("nowhere"))
