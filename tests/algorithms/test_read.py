"""Reading files: the header, tensors, and every way a file can be none."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from anyadapter.algorithms.errors import FileError
from anyadapter.algorithms.formats import read
from anyadapter.algorithms.formats.cache import ParsedFiles
from anyadapter.algorithms.formats.read import finite, read_file, read_header

LORA = {
    "x.lora_up.weight": torch.ones(3, 2),
    "x.lora_down.weight": torch.ones(2, 5),
    "x.alpha": torch.tensor(1.0),
}


@pytest.fixture
def lora_path(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    save_file(LORA, path, metadata={"ss_network_module": "networks.lora"})
    return path


def test_shapes_and_metadata_come_from_the_header(lora_path: Path) -> None:
    raw = read_file(lora_path)
    assert raw.shapes["x.lora_down.weight"] == (2, 5)
    assert raw.metadata == {"ss_network_module": "networks.lora"}
    assert torch.equal(raw.tensor("x.lora_up.weight"), torch.ones(3, 2))


WHOLE = save(LORA)


def file_of(header: Any, data_bytes: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def entry(*offsets: int, dtype: Any = "F32", shape: Any = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets or (0, 4)}


HEADER_ONLY = struct.pack("<Q", 2) + b"{}"
BAD_JSON = struct.pack("<Q", 4) + b"{oh}"
WRONG_OFFSETS = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.safetensors", b"", "empty"),
        ("a.safetensors", b"short", "not a safetensors file"),
        ("a.safetensors", b"<!DOCTYPE html><html></html>", "web page"),
        ("a.safetensors", WHOLE[:-3], "truncated"),
        ("a.safetensors", WHOLE[:40], "truncated"),
        ("a.safetensors", HEADER_ONLY, "holds no tensors"),
        ("a.safetensors", BAD_JSON, "damaged header"),
        (
            "a.safetensors",
            struct.pack("<Q", len(WRONG_OFFSETS)) + WRONG_OFFSETS + bytes(4),
            "valid",
        ),
        ("a.safetensors", b"PK\x03\x04rest of a zip file", "pickle"),
        ("a.safetensors", file_of(b"{" + b'"a":[' * 99999), "damaged header"),
        ("a.safetensors", file_of(b'{"\xff": 1}'), "damaged header"),
        ("a.safetensors", file_of(b'{"\\ud800": {}}'), "damaged header"),
        ("a.safetensors", struct.pack("<Q", 99_999_999) + b"{", "truncated"),
        ("a.safetensors", struct.pack("<Q", 2**63) + b"{}", "not a safetensors file"),
        ("a.safetensors", file_of({"__metadata__": {"a": 1}}), "damaged header"),
        ("a.safetensors", file_of({"__metadata__": {"a": {"b": "c"}}}), "damaged header"),
        ("a.safetensors", file_of({"__metadata__": ["a"]}), "damaged header"),
        ("a.safetensors", file_of({"a": None}), "a: its entry is no object"),
        ("a.safetensors", file_of({"a": {}}), "a: its dtype None is unknown"),
        ("a.safetensors", file_of({"a": entry(dtype="F5")}, 4), "a: its dtype 'F5' is unknown"),
        ("a.safetensors", file_of({"a": entry(dtype=["F32"])}, 4), "is unknown"),
        ("a.safetensors", file_of({"a": entry(shape=[-1])}, 4), r"\[-1\] are no sizes"),
        ("a.safetensors", file_of({"a": entry(shape=[1.0])}, 4), r"\[1.0\] are no sizes"),
        ("a.safetensors", file_of({"a": entry(shape=[True])}, 4), r"\[True\] are no sizes"),
        ("a.safetensors", file_of({"a": entry(shape=1)}, 4), "1 are no sizes"),
        ("a.safetensors", file_of({"a": entry(shape=[2**62, 2**62])}, 4), "has not 4 bytes"),
        ("a.safetensors", file_of({"a": entry(0, 0, shape=[0, 2**62])}, 0), "too large"),
        ("a.safetensors", file_of({"a": entry(-4, 0)}, 4), "are no sizes"),
        ("a.safetensors", file_of({"a": entry(4, 0)}, 4), "has not -4 bytes"),
        ("a.safetensors", file_of({"a": entry(0, 4, 8)}, 4), "a: "),
        ("a.safetensors", file_of({"a": entry(), "b": entry()}, 4), "gap or overlap"),
        ("a.safetensors", file_of({"a": entry(), "b": entry(8, 12)}, 12), "gap or overlap"),
        ("a.safetensors", file_of({"a": entry()}, 5), "gap or overlap"),
        ("a.pt", b"\x80\x02}q\x00.", "pickle"),
        ("a.ckpt", WHOLE, "not a safetensors file"),
    ],
)
def test_each_broken_file_has_its_own_message(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileError, match=words) as caught:
        read_file(path)
    assert name in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"gone\.safetensors is not there"):
        read_file(tmp_path / "gone.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileError, match=r"folder.safetensors cannot be read"):
        read_file(tmp_path / "folder.safetensors")


def test_a_parsed_file_is_kept_until_it_changes_on_disk(lora_path: Path) -> None:
    files = ParsedFiles()
    first = files.get(lora_path)
    assert files.get(lora_path) is first
    replacement = lora_path.with_name("new")
    save_file(LORA | {"y.diff": torch.ones(2, 2)}, replacement)
    replacement.replace(lora_path)
    second = files.get(lora_path)
    assert set(second.adapters) == {"x", "y"}
    lora_path.unlink()
    with pytest.raises(FileError, match="not there"):
        files.get(lora_path)


def test_only_the_files_used_last_are_kept(lora_path: Path) -> None:
    files = ParsedFiles(limit=1)
    first = files.get(lora_path)
    other = lora_path.with_name("other.safetensors")
    save_file(LORA, other)
    files.get(other)
    assert files.get(lora_path) is not first


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    # 640 is written as 80 02 00 ..., and a file was refused as a pickle.
    path = tmp_path / "a.safetensors"
    for size in range(900):
        save_file(LORA, path, metadata={"note": "x" * size})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:8] == struct.pack("<Q", 640)
    assert read_file(path).shapes.keys() == LORA.keys()


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "U64", "C64", "BOOL"])
def test_a_header_is_read_whatever_the_dtypes_and_empty_sizes(tmp_path: Path, dtype: str) -> None:
    bits = {"F4": 4, "F6_E2M3": 6, "U64": 64, "C64": 64}.get(dtype, 8)
    path = tmp_path / "a.safetensors"
    entries = {"b": entry(0, bits, dtype=dtype, shape=(2, 4)), "a": entry(0, 0, shape=(0, 7))}
    path.write_bytes(file_of(entries, bits))
    forms = read_header(path).forms
    assert (forms["b"].dtype, forms["b"].shape, forms["a"].shape) == (dtype, (2, 4), (0, 7))


def test_a_tensor_that_cannot_be_read_here_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of({"b": entry(0, 3, dtype="F6_E2M3", shape=(4,))}, 3))
    with pytest.raises(FileError, match=r"a\.safetensors: b has the dtype F6_E2M3"):
        read_file(path).tensor("b")


def test_a_tensor_that_lies_across_the_places_of_its_numbers_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    entries = {
        "a": entry(0, 1, dtype="U8"),
        "b": entry(1, 9, shape=(2,)),
        "c": entry(9, 9, shape=(0, 3)),
    }
    whole = bytearray(file_of(entries, 9))
    whole[-8:] = struct.pack("<2f", 1.5, -2.0)
    path.write_bytes(whole)
    raw = read_file(path)
    assert raw.tensor("b").tolist() == [1.5, -2.0]
    assert raw.tensor("c").shape == (0, 3)
    assert raw.is_finite(["b", "c"])


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 37, 99])
def test_one_number_that_is_not_finite_is_found(
    dtype: torch.dtype, value: float, place: int
) -> None:
    numbers = torch.randn(100).to(dtype)
    assert finite(numbers)
    numbers[place] = value
    assert not finite(numbers)


def test_large_numbers_of_a_low_dtype_are_finite() -> None:
    assert finite(torch.full((1000,), 65504.0, dtype=torch.float16))
    assert finite(torch.full((1000,), 448.0).to(torch.float8_e4m3fn))
    assert finite(torch.empty(0, 4))


@pytest.mark.parametrize("bad", ["a", "b", "c", "d", None])
def test_neighbours_are_looked_at_together_and_only_what_was_asked_for(
    tmp_path: Path, bad: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "PIECE", 7)
    tensors = {name: torch.randn(2, 5) for name in "abc"} | {"d": torch.randn(3).half()}
    if bad is not None:
        tensors[bad].view(-1)[1] = torch.nan
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    raw = read_file(path)
    told: list[tuple[int, int]] = []
    assert raw.is_finite("abcd", lambda *one: told.append(one)) == (bad is None)
    if bad is None:
        assert told == [*((28 * (n + 1), 126) for n in range(4)), (120, 126), (126, 126)]
    assert raw.is_finite("ac") == (bad not in ("a", "c"))
    assert raw.is_finite("bd") == (bad not in ("b", "d"))


def test_each_tensor_has_a_storage_of_its_own(lora_path: Path, tmp_path: Path) -> None:
    # Those that share one cannot be saved again.
    raw = read_file(lora_path)
    tensors = {key: raw.tensor(key) for key in raw.header.forms}
    save_file(tensors, tmp_path / "again.safetensors")
    again = read_file(tmp_path / "again.safetensors")
    assert all(torch.equal(again.tensor(key), LORA[key]) for key in LORA)
