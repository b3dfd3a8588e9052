"""Who may import whom: the borders between the parts of the pack."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

OWN_PARTS = {
    "shapes": {"errors"},
    "errors": set(),
    "layers": {"errors", "shapes"},
    "adapters": {"adapters", "shapes", "errors", "layers"},
    "strength": {"adapters", "layers", "schedule", "shapes"},
    "plan": {"adapters", "errors", "layers", "shapes", "strength"},
    "dispatch": {"layers", "plan", "strength"},
    "keymap": {"errors", "layers"},
    "formats": {"formats", "adapters", "errors", "shapes"},
    "families": {"families", "keymap"},
    "analysis": {"adapters", "analysis", "errors", "families", "shapes"},
    "binding": {"adapters", "keymap", "families", "formats", "errors"},
    "block_lists": {"errors", "families"},
    "block_names": {"errors", "families"},
    "block_weights": {"binding", "block_lists", "block_names", "errors", "families"},
    "presets": {"errors", "families"},
    "block_sweep": {"block_weights", "errors", "families"},
    "schedule": {"errors"},
    "inspection_report": {"adapters", "analysis", "errors", "families", "formats", "report"},
    "editing": {
        *("adapters", "analysis", "binding", "editing", "errors", "formats", "keymap", "layers"),
        *("families", "report", "shapes"),
    },
    "rounding": set(),
    "stack": {"errors"},
    "report": {"adapters", "errors", "families", "formats"},
    "facts": {"adapters", "binding", "families", "formats", "report"},
    "training": {
        *("adapters", "block_lists", "block_names", "errors", "families", "formats", "keymap"),
        *("layers", "rounding", "shapes", "training"),
    },
}
FOREIGN = {"torch", "safetensors", "jaxtyping"}
"""What `algorithms` may import besides the standard library (jaxtyping is optional)."""


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def absolute(path: Path) -> set[str]:
    names: set[str] = set()
    for node in imports(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.level == 0:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def own_parts(path: Path) -> set[str]:
    """The parts of `algorithms` that a file of it imports."""
    folder = path.relative_to(ROOT / "algorithms").parent.parts
    parts: set[str] = set()
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = folder[: len(folder) - node.level + 1]
            module = [*above, *(node.module.split(".") if node.module else [])]
            parts |= {module[0]} if module else {alias.name for alias in node.names}
    return parts


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def file_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files("algorithms"), ids=file_id)
def test_algorithms_know_nothing_of_the_host(path: Path) -> None:
    import sys

    assert absolute(path) <= FOREIGN | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", files("algorithms")[1:], ids=file_id)
def test_parts_of_algorithms_know_only_the_parts_below_them(path: Path) -> None:
    part = path.relative_to(ROOT / "algorithms").parts[0].removesuffix(".py")
    if part == "__init__":
        assert not own_parts(path)
    else:
        assert own_parts(path) <= OWN_PARTS[part]


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "nodes").glob("*.py")), *files("nodes/routes")], ids=file_id
)
def test_nodes_meet_comfyui_only_through_their_host_folder(path: Path) -> None:
    assert not absolute(path) & {"comfy", "folder_paths", "server", "execution", "torch"}
