"""Latents are made once for each picture, placement and VAE, and none is ever stale."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy.sd import VAE
from PIL import Image
from safetensors.torch import load_file

from anyadapter.algorithms.errors import StorageError, TrainingError
from anyadapter.algorithms.training.dataset import (
    Dataset,
    Draw,
    FileSource,
    ImageSource,
    Item,
    LatentSource,
    MaskSource,
)
from anyadapter.nodes.host.latents import LatentCache
from base_directory import cached_checkpoint
from small_world import LATENT_REACH, VAE_PREFIX


@pytest.fixture(scope="module")
def vae() -> VAE:
    tensors = load_file(cached_checkpoint())
    own = {key: value for key, value in tensors.items() if key.startswith(VAE_PREFIX)}
    return VAE(sd={key.removeprefix(VAE_PREFIX): value for key, value in own.items()})


class Counting:
    """A VAE that tells how often it was asked."""

    def __init__(self, vae: VAE) -> None:
        self.vae, self.calls = vae, 0
        self.vae_dtype, self.first_stage_model = vae.vae_dtype, vae.first_stage_model

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.vae.encode(pixels)


@pytest.fixture
def counting(vae: VAE) -> Any:
    return Counting(vae)


def item(path: Path, seed: int = 0, **options: Any) -> Item:
    noise = np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return Item(path.name, (96, 64), FileSource(path), **options)


def dataset(*items: Item, **options: Any) -> Dataset:
    return Dataset(items, resolution_px=64, **options)


def ignored(_done: int, _total: int) -> None: ...


def test_a_latent_is_that_of_the_picture_and_can_be_trained_on(vae: VAE) -> None:
    white = Item("white", (64, 64), ImageSource(torch.ones(64, 64, 3)))
    (draw,) = dataset(white).views()
    with torch.inference_mode():  # as the host runs nodes
        latent = LatentCache(vae).encoded(draw).latent
    assert latent.shape == (4, 8, 8)
    assert (latent.dtype, latent.device.type) == (torch.float32, "cpu")
    assert torch.allclose(latent, torch.full_like(latent, LATENT_REACH), rtol=1e-3)
    weight = torch.ones(4, 8, 8, requires_grad=True)
    (weight * latent).sum().backward()  # an inference tensor cannot be kept for this
    assert torch.equal(weight.grad, latent)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_each_view_is_encoded_once(where: Any, counting: Any, tmp_path: Path) -> None:
    data = dataset(item(tmp_path / "a.png"), item(tmp_path / "b.png", 1), flip=True)
    folder = tmp_path / "kept" if where == "disk" else None
    cache = LatentCache(counting, folder)
    told: list[tuple[int, int]] = []
    assert cache.fill(data.views(), lambda done, total: told.append((done, total))) == {}
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    latents = [cache.encoded(draw).latent for draw in data.views()]
    assert counting.calls == 4
    assert len({latent.sum().item() for latent in latents}) == 4
    assert torch.allclose(latents[0], latents[1].flip(2), atol=0.1)
    assert all(not latent.is_inference() for latent in latents)


def test_latents_on_disk_outlive_the_run_and_the_place_of_the_folder(
    counting: Any, tmp_path: Path
) -> None:
    mask = MaskSource(torch.ones(64, 96))
    (draw,) = dataset(item(tmp_path / "a.png", mask=mask)).views()
    first = LatentCache(counting, tmp_path / "kept")
    latent, cells = first.encoded(draw).latent, first.encoded(draw).mask
    (moved,) = dataset(item(tmp_path / "b.png", mask=MaskSource(torch.ones(64, 96)))).views()
    second = LatentCache(counting, tmp_path / "kept")
    assert torch.equal(second.encoded(moved).latent, latent)
    assert torch.equal(second.encoded(moved).mask, cells)
    assert counting.calls == 1


def test_another_picture_mask_size_or_vae_is_another_latent(counting: Any, tmp_path: Path) -> None:
    def ask(draw: Draw) -> None:
        LatentCache(counting, tmp_path / "kept").encoded(draw)

    path = tmp_path / "a.png"
    (draw,) = dataset(item(path)).views()
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    ask(draw)
    item(path, seed=1)
    os.utime(path, ns=times)  # as a restored backup has it
    ask(draw)
    assert counting.calls == 2
    ask(dataset(item(path, seed=1)).at(128).views()[0])
    ask(dataset(item(path, seed=1, mask=MaskSource(torch.ones(64, 96)))).views()[0])
    assert counting.calls == 4
    weight = next(counting.first_stage_model.parameters())
    with torch.no_grad():
        weight += 1
        ask(draw)
        weight -= 1
    assert counting.calls == 5


def test_a_latent_that_was_cut_off_is_made_anew(counting: Any, tmp_path: Path) -> None:
    (draw,) = dataset(item(tmp_path / "a.png")).views()
    latent = LatentCache(counting, tmp_path / "kept").encoded(draw).latent
    (file,) = (tmp_path / "kept").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    assert torch.equal(LatentCache(counting, tmp_path / "kept").encoded(draw).latent, latent)
    assert counting.calls == 2


def test_a_place_that_cannot_be_written_is_told(counting: Any, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    (draw,) = dataset(item(tmp_path / "a.png")).views()
    with pytest.raises(StorageError, match="keep them in memory"):
        LatentCache(counting, tmp_path / "kept").encoded(draw)


def test_random_crops_are_not_kept(counting: Any, tmp_path: Path) -> None:
    data = dataset(item(tmp_path / "a.png"), random_crop=True)
    cache = LatentCache(counting)
    assert cache.fill(data.at(256).views(), ignored) == {}
    assert counting.calls == 0
    ((draw,),) = data.at(256).epoch(0, 1, seed=1)
    assert torch.equal(cache.encoded(draw).latent, cache.encoded(draw).latent)
    assert counting.calls == 2


def test_damaged_files_are_told_while_it_fills(counting: Any, tmp_path: Path) -> None:
    bad = item(tmp_path / "bad.png")
    data = dataset(item(tmp_path / "a.png"), bad, flip=True)
    (tmp_path / "bad.png").write_bytes(b"")
    faults = LatentCache(counting).fill(data.views(), ignored)
    assert faults == {bad: "the file is empty"}
    assert data.without(faults).skipped == ("bad.png: the file is empty",)
    kept = LatentCache(counting, tmp_path / "kept")
    (tmp_path / "bad.png").unlink()
    assert set(kept.fill(data.views(), ignored)) == {bad}


def test_a_mask_is_the_mean_over_each_cell(vae: VAE) -> None:
    mask = torch.zeros(64, 64)
    mask[:, :36] = 1
    picture = Item("a", (64, 64), ImageSource(torch.ones(64, 64, 3)), mask=MaskSource(mask))
    (draw,) = dataset(picture).views()
    found = LatentCache(vae).encoded(draw).mask
    assert found is not None
    assert found.shape == (1, 8, 8)
    assert found[0, 0].tolist() == [1, 1, 1, 1, 0.5, 0, 0, 0]


def test_latents_of_the_graph_are_taken_as_they_are() -> None:
    with torch.inference_mode():
        given = torch.randn(4, 1, 8, 8, dtype=torch.float16)
    (draw,) = dataset(Item("latent 1", (64, 64), LatentSource(given, None))).views()
    cache = LatentCache(None)
    latent = cache.encoded(draw).latent
    assert torch.equal(latent, given.float())
    assert not latent.is_inference()
    assert cache.encoded(draw).mask is None


def test_pictures_without_a_vae_and_values_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    (draw,) = dataset(item(tmp_path / "a.png")).views()
    with pytest.raises(TrainingError, match="need a VAE"):
        LatentCache(None).encoded(draw)

    class Broken:
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.full_like(pixels, float("nan"))

    broken: Any = Broken()
    with pytest.raises(TrainingError, match="--fp32-vae"):
        LatentCache(broken).encoded(draw)
