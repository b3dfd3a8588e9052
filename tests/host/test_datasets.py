"""The nodes of datasets, in a running ComfyUI and by themselves."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anyadapter.algorithms.errors import DatasetError
from anyadapter.algorithms.training.dataset import Dataset, ImageSource, LatentSource
from anyadapter.nodes import datasets
from anyadapter.nodes.dataset_sheet import Sample, dataset_sheet
from anyadapter.nodes.datasets import ImageFolder, ImagesAndCaptions, LatentsAndConditionings
from anyadapter.nodes.host import input_folders
from base_directory import CHECKPOINT_NAME
from broken_pictures import write_damaged
from comfy_server import ComfyServer, PromptFailedError
from workflows import node, saved_file

ARTEFACTS = Path(__file__).parents[1] / "browser" / "artefacts"
WIDGETS: dict[str, Any] = {"resolution": 64, "trigger_word": "sks", "bucket_step": 16}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nodes run without a server."""
    monkeypatch.setattr(datasets, "show_text", lambda *_: None)
    for one in (ImageFolder, ImagesAndCaptions, LatentsAndConditionings):
        monkeypatch.setattr(one, "hidden", SimpleNamespace(unique_id="1"), raising=False)


def gradient(width: int, height: int, blue: int) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, np.full_like(down, blue)], 2).astype(np.uint8))


def fill(folder: Path) -> Path:
    (folder / "3_sks cat").mkdir(parents=True)
    for number, (width, height) in enumerate([(96, 64), (64, 96), (64, 64), (160, 60)] * 3):
        gradient(width, height, 20 * number).save(folder / "3_sks cat" / f"{number}.png")
        text = f"a cat, number {number}, with a caption that is longer than one line has room for"
        (folder / "3_sks cat" / f"{number}.txt").write_text(text)
    (folder / "3_sks cat" / "12.png").write_bytes(b"")
    return folder


def test_a_folder_becomes_a_dataset_with_a_sheet_and_a_report(server: ComfyServer) -> None:
    fill(server.input_directory / "cats")
    nodes = {
        "folder": node("AnyAdapterDataset", folder="cats", **WIDGETS),
        "report": node("PreviewAny", source=["folder", 2]),
        "save": node("SaveImage", images=["folder", 1], filename_prefix="sheet"),
    }
    history = server.run(nodes)
    (report,) = history["outputs"]["report"]["text"]
    assert "12 items, 36 draws in an epoch." in report
    assert "12.png: the file is empty" in report
    sheet = saved_file(server, history)
    ARTEFACTS.mkdir(exist_ok=True)
    shutil.copy(sheet, ARTEFACTS / "dataset_sheet.png")
    with Image.open(sheet) as image:
        assert image.width == 960
    (server.input_directory / "cats" / "3_sks cat" / "12.png").unlink()
    assert "Skipped" not in server.run(nodes)["outputs"]["report"]["text"][0]


def test_a_folder_that_is_not_there_is_told_with_those_that_are(server: ComfyServer) -> None:
    (server.input_directory / "00_dogs").mkdir(exist_ok=True)
    nodes = {
        "folder": node("AnyAdapterDataset", folder="cast", **WIDGETS),
        "report": node("PreviewAny", source=["folder", 2]),
    }
    with pytest.raises(PromptFailedError, match=r"no folder cast: .* 00_dogs"):
        server.run(nodes)


def test_lists_of_the_graph_become_datasets(server: ComfyServer) -> None:
    nodes = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT_NAME),
        "image": node("EmptyImage", width=96, height=64, batch_size=3, color=0xFF0000),
        "text": node("PrimitiveString", value="a red wall"),
        "images": node(
            "AnyAdapterImageDataset", images=["image", 0], captions=["text", 0], **WIDGETS
        ),
        "encoded": node(
            "MakeTrainingDataset",
            images=["image", 0],
            vae=["checkpoint", 2],
            clip=["checkpoint", 1],
            texts=["text", 0],
        ),
        "latents": node(
            "AnyAdapterLatentDataset", latents=["encoded", 0], conditionings=["encoded", 1]
        ),
        "image_report": node("PreviewAny", source=["images", 2]),
        "latent_report": node("PreviewAny", source=["latents", 1]),
        "sheet": node("PreviewImage", images=["images", 1]),
    }
    outputs = server.run(nodes)["outputs"]
    assert outputs["image_report"]["text"][0].startswith("3 items, 3 draws in an epoch.")
    assert outputs["latent_report"]["text"][0].startswith("3 items, 3 draws in an epoch.")


def read(folder: str, **options: Any) -> Dataset:
    return ImageFolder.execute(folder, 64, bucket_step=16, **options).result[0]


@pytest.mark.usefixtures("alone")
def test_options_reach_the_dataset(tmp_path: Path) -> None:
    folder = fill(tmp_path / "cats")
    fill(folder / "reg")
    fill(folder / "masks")
    dataset = read(
        f'"{folder}"',
        regularization_folder=str(folder / "reg"),
        mask_folder=str(folder / "masks"),
        trigger_word=" sks ",
        flip=True,
        shuffle_tags=True,
        caption_dropout=0.1,
        wildcards=True,
        no_upscale=True,
    )
    assert (dataset.count(), dataset.count(regularization=True)) == (36, 36)
    assert (dataset.captions.trigger, dataset.captions.shuffle) == ("sks", True)
    assert dataset.buckets.no_upscale
    assert {item.mask is None for item in dataset.items if item.regularization} == {True}
    assert {item.mask is None for item in dataset.items if not item.regularization} == {False}


@pytest.mark.usefixtures("alone")
def test_a_picture_that_cannot_be_shown_is_left_out(tmp_path: Path) -> None:
    gradient(64, 64, 0).save(tmp_path / "a.png")
    write_damaged(tmp_path / "b.png")
    dataset = read(str(tmp_path))
    assert [item.name for item in dataset.items] == ["a.png"]
    assert dataset.skipped[0].startswith("b.png: cannot be read")


def test_edits_of_a_folder_are_taken_up(tmp_path: Path) -> None:
    folder = str(fill(tmp_path / "cats"))
    before = ImageFolder.fingerprint_inputs(folder)
    assert ImageFolder.fingerprint_inputs(folder) == before
    (tmp_path / "cats" / "3_sks cat" / "0.txt").write_text("another")
    assert ImageFolder.fingerprint_inputs(folder) != before
    assert "no folder" in ImageFolder.fingerprint_inputs(str(tmp_path / "nowhere"))
    assert ImageFolder.fingerprint_inputs(None)


@pytest.mark.parametrize("name", ["..", "cats/../..", "", " ", "nowhere"])
def test_names_do_not_lead_out_of_the_input_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "input" / "cats" / "black").mkdir(parents=True)
    root = str(tmp_path / "input")
    monkeypatch.setattr(input_folders.folder_paths, "get_input_directory", lambda: root)
    with pytest.raises(DatasetError, match="cats"):
        input_folders.input_folder(name)
    found = input_folders.input_folder("cats\\black")
    assert found == tmp_path / "input" / "cats" / "black"


def lists(**options: Any) -> dict[str, Any]:
    return {name: [value] for name, value in WIDGETS.items()} | options


@pytest.mark.usefixtures("alone")
def test_images_get_their_captions_and_masks() -> None:
    images = [torch.rand(2, 64, 64, 3), torch.rand(1, 64, 96, 1), torch.rand(1, 8, 64, 4)]
    masks = [torch.ones(2, 64, 64), torch.zeros(1, 64, 96), torch.ones(1, 8, 64)]
    captions = ["one", "two\nlines", "three", "four"]
    dataset = ImagesAndCaptions.execute(images, captions=captions, masks=masks, **lists()).result[0]
    assert [item.lines for item in dataset.items] == [("one",), ("two", "lines")]
    assert dataset.skipped == (
        "image 3: its mask is black all over, so nothing of it would be trained",
        "image 4: only 64 x 8 pixels, and 16 is the least",
    )
    sources = [item.source for item in dataset.items]
    assert all(isinstance(source, ImageSource) for source in sources)


@pytest.mark.usefixtures("alone")
def test_captions_of_another_number_are_refused() -> None:
    with pytest.raises(DatasetError, match="2 captions for 3 items"):
        ImagesAndCaptions.execute([torch.rand(3, 64, 64, 3)], captions=["a", "b"], **lists())
    with pytest.raises(DatasetError, match="None of the images"):
        ImagesAndCaptions.execute([torch.rand(1, 1, 1, 3)], **lists())


def entry(number: int) -> list[Any]:
    return [torch.full((1, 2, 3), float(number)), {}]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("sizes", "conditionings", "expected"),
    [
        ([1, 1], [[entry(1)], [entry(2)]], [[1], [2]]),
        ([2, 1], [[entry(1), entry(2)], [entry(3)]], [[1], [2], [3]]),
        ([2], [[entry(1)], [entry(2)]], [[1], [2]]),
        ([1, 1], [[entry(1), entry(2)]], [[1, 2], [1, 2]]),
        ([3], [[entry(1)]], [[1], [1], [1]]),
    ],
)
def test_latents_get_their_conditionings(
    sizes: list[int], conditionings: list[Any], expected: list[list[int]]
) -> None:
    latents = [{"samples": torch.randn(size, 4, 8, 8)} for size in sizes]
    dataset = LatentsAndConditionings.execute(latents, conditionings).result[0]
    given = [item.source.conditioning for item in dataset.items]
    assert [[part[0][0, 0, 0].item() for part in one] for one in given] == expected
    assert all(isinstance(item.source, LatentSource) for item in dataset.items)
    assert {item.size_px for item in dataset.items} == {(64, 64)}


@pytest.mark.usefixtures("alone")
def test_latents_that_are_no_pictures_or_of_another_number_are_refused() -> None:
    two = [{"samples": torch.randn(2, 4, 8, 8)}]
    with pytest.raises(DatasetError, match="3 conditionings for 2"):
        LatentsAndConditionings.execute(two, [[entry(1)]] * 3)
    with pytest.raises(DatasetError, match="without sound"):
        LatentsAndConditionings.execute([{"samples": torch.randn(1, 64, 100)}], [[entry(1)]])
    with pytest.raises(DatasetError, match="connect both"):
        LatentsAndConditionings.execute([], [])


def test_a_sheet_shows_every_bucket_and_picture() -> None:
    pixels = np.full((512, 512, 3), (255, 0, 0), np.uint8)
    samples = [Sample(pixels, "word " * 99), Sample(pixels, "x" * 999), Sample(pixels, "")]
    few = dataset_sheet("cats", {(512, 512): 3}, samples)
    many = dataset_sheet("cats", {(64 * n, 512): n for n in range(1, 40)}, samples)
    assert few.shape[1] == many.shape[1] == 960
    red = (few == (255, 0, 0)).all(2).sum()
    assert red == 3 * 220 * 220
    assert many.shape[0] - few.shape[0] == 24 * 20
