"""Folders of pictures: by their names in the host's input folder, or anywhere by a whole path."""

from pathlib import Path

import folder_paths

from ...algorithms.errors import DatasetError, listed
from ...algorithms.training.folders import natural_order


def input_folder(name: str) -> Path:
    """Returns the folder that a name means.

    Args:
        name: As typed or pasted: of a folder in the input folder, or a whole path.

    Raises:
        DatasetError: There is none, or the name leads out of the input folder.
    """
    name, root = name.strip().strip("\"'"), Path(folder_paths.get_input_directory())
    if not name:
        raise DatasetError(f"No folder is named: {_how_to_name(root)}.")
    path = Path(name).expanduser()
    if path.is_absolute():
        if path.is_dir():
            return path
        raise DatasetError(f"There is no folder {path}.")
    path = root / Path(*name.replace("\\", "/").split("/"))
    if ".." in path.parts or not path.is_dir():
        raise DatasetError(f"There is no folder {name}: {_how_to_name(root)}.")
    return path


def _how_to_name(root: Path) -> str:
    found = sorted((one.name for one in root.glob("*/")), key=natural_order)
    there = f", where there is {listed(found)}" if found else ", where there is none yet"
    return f"give the name of a folder in ComfyUI's input folder{there}, or a whole path"
