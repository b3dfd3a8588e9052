"""Starts ComfyUI from its folder: `python start_comfyui.py FOLDER [arguments of ComfyUI...]`.

ComfyUI imports torchvision. Where torchvision's compiled part does not fit the installed torch (a
CPU build of torch beside a CUDA build of torchvision), that import fails although ComfyUI
only uses torchvision's transforms, which need no compiled part. This starter mends it.
"""

import importlib
import os
import runpy
import sys
from pathlib import Path

_BOXES_TO_KEEP = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_torchvision_ops() -> None:
    """Makes `import torchvision` work without its compiled part; changes nothing where it loads."""
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", _BOXES_TO_KEEP)
        importlib.import_module("torchvision")


def main(comfyui: Path, arguments: list[str]) -> None:
    """Runs ComfyUI's `main.py` as Python itself would run it."""
    declare_missing_torchvision_ops()
    os.chdir(comfyui)
    sys.path[0] = str(comfyui)
    sys.argv = [str(comfyui / "main.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
