"""Writes the shapes of ComfyUI's models for `make.py`: `COMFYUI_PATH=... python host_shapes.py FILE`."""

import json
import os
import sys
from pathlib import Path

sys.path[:0] = [os.environ["COMFYUI_PATH"], str(Path(__file__).parents[2] / "support")]


def shapes() -> dict[str, dict[str, list[int]]]:
    """Returns family -> name of a weight -> its shape."""
    from start_comfyui import declare_missing_torchvision_ops

    declare_missing_torchvision_ops()
    from comfy.cli_args import args

    args.cpu = True
    from real_models import MODELS, real_model

    prefix = "diffusion_model."
    return {
        family: {
            key.removeprefix(prefix): list(tensor.shape)
            for key, tensor in real_model(family).state_dict().items()
            if key.startswith(prefix)
        }
        for family in MODELS
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(shapes()), encoding="utf-8")
