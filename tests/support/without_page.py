"""Runs nodes outside of a prompt, where there is no page to show their texts on."""

from types import ModuleType, SimpleNamespace

import pytest
from comfy_api.latest import io


def without_page(
    patch: pytest.MonkeyPatch, module: ModuleType, node: type[io.ComfyNode]
) -> list[str]:
    """Returns what the node of a module shows from now on."""
    texts: list[str] = []
    patch.setattr(module, "show_text", lambda _, text: texts.append(text))
    patch.setattr(node, "hidden", SimpleNamespace(unique_id="1"))
    return texts
