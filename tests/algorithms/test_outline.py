"""Outlines: what a file is, told from its header without reading what stands behind it."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapter_cases import ADAPTER_CASES, AdapterCase
from anyadapter.algorithms.errors import FormatError, ShapeError
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.outline import outline
from anyadapter.algorithms.formats.parse import AdapterSet, parse_file
from anyadapter.algorithms.formats.read import (
    Progress,
    RawFile,
    no_progress,
    read_file,
)
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.algorithms.report import methods
from checking import annotations_unchecked

MIB = 2**20
IO_OF_THIS_PROCESS = Path("/proc/self/io")
"""Linux counts there what a process reads, whether from the disk or from the cache of the system."""


def write_sparse(path: Path, shapes: dict[str, list[int]]) -> None:
    """Writes a header of float16 tensors and a hole in place of them, which takes no disk."""
    write_hole(path, *header_of(shapes))


def header_of(shapes: dict[str, list[int]]) -> tuple[bytes, int]:
    """Returns a header of float16 tensors, and how many bytes they take."""
    header: dict[str, object] = {"__metadata__": {"ss_network_module": "networks.lora"}}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text, end


def write_hole(path: Path, header: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)


def lora_shapes(layers: int, rank: int) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for layer in range(layers):
        module = f"lora_unet_blocks_{layer}_to_q"
        shapes[f"{module}.lora_down.weight"] = [rank, 4096]
        shapes[f"{module}.lora_up.weight"] = [4096, rank]
        shapes[f"{module}.alpha"] = []
    return shapes


def bytes_read() -> int:
    """Returns how many bytes this process has read so far."""
    first_line = IO_OF_THIS_PROCESS.read_text().splitlines()[0]
    return int(first_line.removeprefix("rchar: "))


@pytest.mark.skipif(not IO_OF_THIS_PROCESS.exists(), reason="only Linux counts what is read")
def test_outlining_a_thousand_files_reads_their_headers_only(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(1000)]
    header, size = header_of(lora_shapes(layers=2, rank=1024))
    for path in paths:
        write_hole(path, header, size)
    sizes = [path.stat().st_size for path in paths]
    assert min(sizes) > 32 * MIB
    header_bytes = read_header_length(paths[0])
    before = bytes_read()
    with annotations_unchecked():
        outlines = [outline(path) for path in paths]
    read = bytes_read() - before
    assert read < len(paths) * (header_bytes + 2 * 8192)  # a read is rounded up to whole blocks
    assert read < sum(sizes) / 1000
    for one in outlines:
        assert one.adapters is not None
        assert len(one.adapters.adapters) == 2
    assert methods(outlines[0].adapters) == "LoRA-LierLa, rank 1024"


def read_header_length(path: Path) -> int:
    with path.open("rb") as file:
        return struct.unpack("<Q", file.read(8))[0]


def test_an_outline_has_names_shapes_and_metadata_but_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    write_sparse(path, lora_shapes(layers=2, rank=8) | {"mystery": [3]})
    adapters = outline(path).adapters
    assert adapters is not None
    assert tuple(adapters.adapters) == ("lora_unet_blocks_0_to_q", "lora_unet_blocks_1_to_q")
    assert adapters.unclaimed == ("mystery",)
    assert adapters.metadata.network_module == "networks.lora"
    ((adapter,), _) = adapters.adapters.values()
    assert adapter.tensors()["down"].shape == (8, 4096)
    assert all(tensor.is_meta for tensor in adapter.tensors().values())


@pytest.mark.parametrize("case", ADAPTER_CASES, ids=lambda case: case.name)
def test_an_outline_tells_every_method_as_parsing_does(case: AdapterCase, tmp_path: Path) -> None:
    adapter = case.make(case.layers()[0])
    tensors, metadata = to_tensors(AdapterSet("a", {"x": (adapter,)}, AdapterMetadata({})))
    path = tmp_path / "a.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    parsed = parse_file(read_file(path))
    outlined = outline(path).adapters
    assert outlined is not None
    assert methods(outlined) == methods(parsed)
    assert shapes(outlined) == shapes(parsed)
    assert outlined.unclaimed == parsed.unclaimed == ()


def shapes(adapter_set: AdapterSet) -> dict[str, list[dict[str, torch.Size]]]:
    return {
        module: [{name: tensor.shape for name, tensor in one.tensors().items()} for one in adapters]
        for module, adapters in adapter_set.adapters.items()
    }


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.safetensors", None, "not there"),
        ("a.safetensors", b"", "empty"),
        ("a.safetensors", b"<html>", "not a safetensors file"),
        ("a.pt", b"\x80\x02", "pickle"),
    ],
)
def test_a_file_that_is_no_adapter_is_outlined_by_the_reason(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = outline(path)
    assert result.adapters is None
    assert reason in result.reason


class Unread(RawFile):
    """A file whose numbers must not be touched."""

    def is_finite(self, keys: Iterable[str], progress: Progress = no_progress) -> bool:
        del progress
        raise AssertionError(f"{keys} were read")


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({"model.diffusion_model.out.2.weight": [4096, 4096, 100]}, FormatError, "a checkpoint"),
        ({"x.lora_up.weight": [8, 4], "x.lora_down.weight": [5, 6]}, ShapeError, "R is 5 here"),
        ({"x.lora_up.weight": [8, 4]}, FormatError, "incomplete"),
    ],
)
def test_what_the_header_proves_wrong_is_said_before_the_numbers_are_read(
    tmp_path: Path, tensors: dict[str, list[int]], error: type[Exception], words: str
) -> None:
    path = tmp_path / "a.safetensors"
    write_sparse(path, tensors)
    raw = read_file(path)
    with pytest.raises(error, match=words):
        parse_file(Unread(raw.header, raw._opened, raw._mapped))
