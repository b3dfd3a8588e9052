"""Picture files of which something is lost."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_cut(path: Path) -> None:
    """Writes a picture without its end."""
    _write_noise(path)
    path.write_bytes(path.read_bytes()[:-2000])


def write_damaged(path: Path) -> None:
    """Writes a picture with a gap in the middle, which is seen when the pixels are read."""
    _write_noise(path)
    content = bytearray(path.read_bytes())
    content[3000:3100] = bytes(100)
    path.write_bytes(content)


def _write_noise(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)
    Image.fromarray(noise).save(path)
