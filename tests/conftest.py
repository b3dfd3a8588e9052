"""Gives the pack its import name, checks shapes at every call, and seeds every test."""

import gc

import pytest
import torch
from jaxtyping import install_import_hook

import pack  # noqa: F401

install_import_hook("anyadapter.algorithms", "checking.check")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    # Or else each collection of garbage looks through all modules and tests again.
    gc.freeze()
