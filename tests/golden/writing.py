"""What the scripts that make golden files share: the layers, their inputs, and how files are laid.

Every file is a function of the seeds and of the versions in `VERSIONS.json`, byte for byte.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
STRENGTHS = (1.0, 0.5, -0.7)

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(10, 12), (1, 3, 10)),
    "square": (nn.Linear(12, 12, bias=False), (3, 12)),
    "broad": (nn.Linear(20, 30, bias=False), (2, 20)),
    "fused": (nn.Linear(10, 30), (2, 10)),
    "conv": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (1, 6, 5, 4)),
    "wide": (nn.Conv2d(12, 16, 3, padding=1), (1, 12, 2, 3)),
    "dilated": (
        nn.Conv2d(6, 8, (2, 3), dilation=2, padding=(1, 2), bias=False),
        (1, 6, 2, 3),
    ),
    "point": (nn.Conv2d(6, 8, 1), (1, 6, 3, 1)),
    "grouped": (nn.Conv2d(12, 8, 3, groups=2, padding=1), (1, 12, 3, 2)),
    "conv1d": (nn.Conv1d(6, 8, 3, padding=1, bias=False), (1, 6, 4)),
    "conv3d": (nn.Conv3d(4, 6, (2, 1, 3), padding=(1, 0, 1)), (1, 4, 2, 1, 3)),
    "layer_norm": (nn.LayerNorm(12), (1, 3, 12)),
    "group_norm": (nn.GroupNorm(2, 8), (1, 8, 3, 2)),
}
"""Name -> the kind of layer, and the shape of its input: just large enough to meet every tap."""


class Net(nn.Module):
    """Some of the layers, by name."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, fresh(name))

    def forward(self, x: Tensor) -> Tensor:
        """Some tools ask that there is one; the layers are called one by one."""
        return x


def normal(*shape: int, seed: str, std: float = 1.0) -> Tensor:
    """Returns normal numbers that depend on `seed` alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return torch.randn(shape, generator=generator) * std


def fresh(name: str) -> nn.Module:
    """Returns a new module of a layer in float32, with its own random numbers in it."""
    module, _ = LAYERS[name]
    made = type(module)(**_arguments(module))
    for field, parameter in made.named_parameters():
        parameter.data = normal(*parameter.shape, seed=f"{name}.{field}", std=0.5)
        if field == "weight" and parameter.ndim == 1:
            parameter.data += 1
    return made.requires_grad_(False)


def layer_input(name: str) -> Tensor:
    """Returns the input that belongs to a layer, in float32."""
    return normal(*LAYERS[name][1], seed=f"{name}.x")


def _arguments(module: nn.Module) -> dict[str, Any]:
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, nn.Linear):
        return {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": bias,
        }
    if isinstance(module, nn.LayerNorm):
        return {"normalized_shape": module.normalized_shape, "eps": module.eps}
    if isinstance(module, nn.GroupNorm):
        return {"num_groups": module.num_groups, "num_channels": module.num_channels}
    names = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
    )
    return {name: getattr(module, name) for name in names} | {"bias": bias}


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
    save_file(kept, path, dict(metadata))
    path.chmod(0o644)
    order_header(path)


def order_header(path: Path) -> None:
    """Writes the header again with its strings in order: safetensors hashes them at random."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    strings = dict(sorted(header.pop("__metadata__", {}).items()))
    text = json.dumps({"__metadata__": strings, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def save_expected(
    adapter: Path,
    outputs: Mapping[str, tuple[str, Tensor]],
    strengths: tuple[float, ...],
    oracle: str,
) -> None:
    """Writes what a tool computes, beside the adapter file.

    Args:
        adapter: The adapter file.
        outputs: Module name in the file -> name of the layer, and its outputs, one per strength.
        strengths: The strengths of the outputs.
        oracle: What computed them.
    """
    metadata = {
        "layers": json.dumps({module: layer for module, (layer, _) in outputs.items()}),
        "strengths": json.dumps(strengths),
        "oracle": oracle,
    }
    tensors = {module: output.float() for module, (_, output) in outputs.items()}
    save(adapter.with_suffix(".expected.safetensors"), tensors, metadata)


def save_layers() -> None:
    """Writes the base weights and inputs of all layers, and their geometry."""
    tensors: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    for name in LAYERS:
        module = fresh(name)
        tensors[f"{name}.x"] = layer_input(name)
        tensors |= {f"{name}.{field}": value for field, value in module.named_parameters()}
        described[name] = {"kind": type(module).__name__} | _arguments(module)
    save(HERE / "layers.safetensors", tensors, {"layers": json.dumps(described)})


def record_versions(*packages: str) -> None:
    """Notes the versions of the packages that made the files."""
    path = HERE / "VERSIONS.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= {package: version(package) for package in ("torch", "safetensors", *packages)}
    path.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
