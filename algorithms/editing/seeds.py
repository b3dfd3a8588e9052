"""Chance that is the same wherever and whenever it is asked for."""

import hashlib

from torch import Generator


def generator_of(seed: str) -> Generator:
    """Returns a generator of random numbers that follow from a text alone, as the name of a layer."""
    digest = hashlib.sha256(seed.encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
