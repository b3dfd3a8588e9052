"""Gives the pack its import name, checks shapes at every call, and seeds every test."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]

# Outside ComfyUI the pack has no name of its own. This package is registered but not executed:
# the root's `__init__.py` is ComfyUI's entry point and needs ComfyUI.
spec = importlib.machinery.ModuleSpec("anyadapter", None, is_package=True)
spec.submodule_search_locations = [str(ROOT)]
sys.modules["anyadapter"] = importlib.util.module_from_spec(spec)

install_import_hook("anyadapter.algorithms", "checking.check")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
