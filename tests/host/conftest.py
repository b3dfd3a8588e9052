"""Gives tests a ComfyUI: its modules in this process, and a server in another."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from base_directory import make_base_directory
from comfy_server import ComfyServer
from start_comfyui import declare_missing_torchvision_ops

if TYPE_CHECKING:
    from pictures import Pictures

HERE = Path(__file__).parent
COMFYUI = os.environ.get("COMFYUI_PATH")


if COMFYUI is not None:
    # First, since ComfyUI has a module `nodes` too. At import, so that test modules may
    # import `comfy` and the pack's nodes at their top.
    sys.path.insert(0, str(Path(COMFYUI).resolve()))
    declare_missing_torchvision_ops()

    from comfy.cli_args import args

    args.cpu = True
    # Else what a test saves would lie among the files of the ComfyUI's owner.
    args.base_directory = tempfile.mkdtemp(prefix="anyadapter-tests-")
    atexit.register(shutil.rmtree, args.base_directory)

    # Before ComfyUI's `nodes` puts `comfy/` first on the path: then `utils` would be another.
    import utils.extra_config  # noqa: F401


class ModuleWithoutComfyUI(pytest.Module):
    """A test module that is not imported, as its imports would fail."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("COMFYUI_PATH does not name a ComfyUI folder", allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    if COMFYUI is None:
        return ModuleWithoutComfyUI.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("host")


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of the ComfyUI whose modules can be imported here."""
    assert COMFYUI is not None
    return Path(COMFYUI).resolve()


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only LoRA folder of the host in this process."""
    import folder_paths

    folder = tmp_path / "loras"
    folder.mkdir()
    paths = ([str(folder)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", paths)
    yield folder
    folder_paths.filename_list_cache.pop("loras", None)


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with the pack and the small checkpoint `small_sd15.safetensors`."""
    base_directory = tmp_path_factory.mktemp("comfyui")
    make_base_directory(base_directory)
    with ComfyServer(comfyui, base_directory) as running:
        yield running


@pytest.fixture(scope="session")
def pictures(server: ComfyServer) -> "Pictures":
    """Latents of that server, of which those to compare with are kept."""
    # Here, as it needs the tools that make adapters.
    from pictures import Pictures

    return Pictures(server)
