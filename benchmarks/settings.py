"""How much is measured."""

from dataclasses import dataclass

import world


@dataclass(frozen=True)
class Settings:
    """What the command line says of all comparisons."""

    size: world.Size
    runs: int
    latent: int
    """Width and height of what single steps work on, in latent pixels."""
    batch: int
