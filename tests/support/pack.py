"""Gives the pack its import name `anyadapter`, as it has none outside ComfyUI."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Registered but not executed: the root's `__init__.py` is ComfyUI's entry point.
spec = importlib.machinery.ModuleSpec("anyadapter", None, is_package=True)
spec.submodule_search_locations = [str(ROOT)]
sys.modules["anyadapter"] = importlib.util.module_from_spec(spec)
