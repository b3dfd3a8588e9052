"""Latents of a dataset: made once by the host's VAE, and kept in memory or on disk."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import folder_paths
import torch
from comfy.sd import VAE
from torch import Tensor
from torch.nn.functional import interpolate

from ...algorithms.errors import DatasetError, TrainingError
from ...algorithms.formats.read import Progress
from ...algorithms.training.dataset import Draw, FileSource, ImageSource, Item, LatentSource
from . import decoding
from .kept_tensors import KeptTensors, bytes_of, digest_of_weights

FOLDER = "anyadapter/latents"
"""In the host's folder of the user."""
FORM = "anyadapter latents 1"
"""Part of every key on disk: another one where another version would make other latents."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A draw as the model sees it, in float32 on the CPU, where gradients may be recorded."""

    latent: Tensor
    """`[C, h, w]`, of video models `[C, T, h, w]`; as the VAE gave it."""
    mask: Tensor | None
    """Where it is trained, `[1, h, w]` from 0 to 1, in cells of the latent; None for everywhere."""


class LatentCache:
    """Encodes draws, and keeps what another epoch will ask for again.

    On disk a latent is found by a digest of the bytes of its picture (and mask), the placement, and
    the weights of the VAE. Bytes and not name and time, since copies and restored backups keep the
    time of other contents: so no latent is ever stale, and those of a moved folder are found.
    Reading a file costs a hundredth of encoding it.
    """

    def __init__(self, vae: VAE | None, folder: Path | None = None) -> None:
        """Takes the VAE, without which only latents of the graph can be had, and where to keep.

        Args:
            vae: The host's.
            folder: For latents on disk, which is made; None keeps them in memory.
        """
        self._vae = vae
        self._on_disk = KeptTensors(folder, FORM, "Latents") if folder is not None else None
        self._kept: dict[object, Encoded] = {}
        self._digests: dict[Item, str] = {}
        self._vae_digest = ""
        self.made = 0
        """How many draws the VAE has encoded so far."""

    def encoded(self, draw: Draw) -> Encoded:
        """Returns a draw with its mask; it is kept, but for those of random crops.

        Raises:
            DatasetError: Its file is damaged.
            TrainingError: There is no VAE, or it gives no numbers.
            StorageError: It cannot be kept on disk.
        """
        if isinstance(draw.item.source, LatentSource):
            with torch.inference_mode(False):
                return Encoded(draw.item.source.latent.clone().float().cpu(), None)
        if draw.placement.random:
            return self._made(draw)
        if self._on_disk is not None:
            return self._from_disk(draw, self._on_disk)
        key = (draw.item, draw.placement, draw.flipped)
        if key not in self._kept:
            self._kept[key] = self._made(draw)
        return self._kept[key]

    def fill(self, draws: Iterable[Draw], progress: Progress) -> dict[Item, str]:
        """Encodes draws ahead, and returns the items whose files are damaged, with the reason.

        Give them to `Dataset.without`. What would not be kept is looked at, but not encoded.

        Args:
            draws: `Dataset.views()`.
            progress: Told after each.

        Raises:
            TrainingError, StorageError: As `encoded`.
        """
        wanted = [*draws]
        faults: dict[Item, str] = {}
        for done, draw in enumerate(wanted, start=1):
            if draw.item not in faults:
                try:
                    if draw.placement.random:
                        decoding.picture(draw)
                        decoding.mask(draw)
                    else:
                        self.encoded(draw)
                except DatasetError as fault:
                    faults[draw.item] = str(fault)
            progress(done, len(wanted))
        return faults

    def _made(self, draw: Draw) -> Encoded:
        if self._vae is None:
            raise TrainingError("Pictures need a VAE to be trained: connect one.")
        pixels, mask = decoding.picture(draw), decoding.mask(draw)
        self.made += 1
        with torch.inference_mode():
            latent = self._vae.encode(pixels[None])[0]
        if not latent.isfinite().all():
            raise TrainingError(
                f"The VAE gives values that are no numbers for {draw.item.name}: start ComfyUI "
                "with --fp32-vae or --bf16-vae, or take another VAE."
            )
        with torch.inference_mode(False):
            # A copy made outside of inference mode is a tensor that autograd may keep.
            return Encoded(
                latent.clone().float().cpu(),
                None if mask is None else _in_cells(mask.clone(), latent),
            )

    def _from_disk(self, draw: Draw, kept: KeptTensors) -> Encoded:
        made_from = self._made_from(draw)
        found = kept.read(*made_from)
        if found is not None:
            tensors, _ = found
            return Encoded(tensors["latent"], tensors.get("mask"))
        encoded = self._made(draw)
        tensors = {"latent": encoded.latent}
        if encoded.mask is not None:
            tensors["mask"] = encoded.mask
        kept.write(*made_from, tensors=tensors)
        return encoded

    def _made_from(self, draw: Draw) -> tuple[str, str, str]:
        """Returns what changes when a latent does: picture, VAE and placement."""
        if draw.item not in self._digests:
            self._digests[draw.item] = _digest_of_item(draw.item)
        if not self._vae_digest:
            vae = self._vae
            dtype = str(vae.vae_dtype) if vae else ""
            self._vae_digest = digest_of_weights(vae.first_stage_model, dtype) if vae else "none"
        placement = draw.placement
        place = (placement.resized_px, placement.crop_px, placement.bucket_px, draw.flipped)
        return self._digests[draw.item], self._vae_digest, str(place)


def latent_cache(vae: VAE | None, where: Literal["memory", "disk"]) -> LatentCache:
    """Returns a cache in memory, or in the folder of the user."""
    folder = Path(folder_paths.get_user_directory(), FOLDER) if where == "disk" else None
    return LatentCache(vae, folder)


def _in_cells(mask: Tensor, latent: Tensor) -> Tensor:
    """Returns the mean of a mask over each cell of a latent, `[1, h, w]`."""
    height, width = latent.shape[-2:]
    return interpolate(mask[None, None], size=(height, width), mode="area")[0]


def _digest_of_item(item: Item) -> str:
    """Returns what changes when the pixels of an item do, or those of its mask.

    Raises:
        DatasetError: A file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=20)
    for source in (item.source, item.mask):
        if isinstance(source, FileSource):
            try:
                data = source.path.read_bytes()
            except OSError as error:
                raise DatasetError(f"cannot be read ({error.strerror})") from error
        elif isinstance(source, ImageSource):
            data = bytes_of(source.image)
        elif source is None or isinstance(source, (str, LatentSource)):
            data = str(source).encode()
        else:
            data = bytes_of(source.mask)
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
