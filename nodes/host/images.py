"""The host's IMAGE tensors as arrays of pixels, and back."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.float32]
"""`[height, width, 3]`, from 0 to 1."""

Images = Tensor
"""The host's IMAGE: `[batch, height, width, 3]`, from 0 to 1."""


def as_image(pixels: NDArray[np.uint8]) -> Images:
    """Returns an IMAGE with one picture of `[height, width, 3]` bytes."""
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None]


def as_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    """Returns pixels as `as_image` takes them."""
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def pictures(images: Images) -> list[Pixels]:
    """Returns the pictures of a batch, in colours and without transparency."""
    arrays = images.detach().float().cpu().numpy()
    return [np.repeat(one, 3, 2) if one.shape[2] == 1 else one[:, :, :3] for one in arrays]
