"""Runs a ComfyUI in the foreground, with the pack, its workflows and things to try them on."""

import argparse
import os
from pathlib import Path

import torch

import start_comfyui
from base_directory import (
    HOST_BASE,
    make_base_directory,
    make_example_adapters,
    make_example_pictures,
    make_tuned_checkpoint,
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--port", type=int, default=8188)
port = parser.parse_args().port

print("Making the base directory ...", flush=True)
make_base_directory(HOST_BASE)
make_example_adapters(HOST_BASE)
make_example_pictures(HOST_BASE)
make_tuned_checkpoint(HOST_BASE)
print(f"Starting ComfyUI; open http://127.0.0.1:{port} when it says so. Ctrl-C stops it.")
start_comfyui.main(
    Path(os.environ["COMFYUI_PATH"]).resolve(),
    [
        *("--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"),
        *("--base-directory", str(HOST_BASE), "--database-url", "sqlite:///:memory:"),
        *([] if torch.accelerator.is_available() else ["--cpu"]),
    ],
)
