"""Hashes of trained files: computed again from the bytes of files, and what they depend on."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anyadapter.algorithms.formats.hashes import with_hashes

SMALL = {"b.alpha": torch.tensor(4.0), "a.lora_up.weight": torch.arange(12.0).reshape(3, 4).half()}
LARGE = {"a.diff": torch.arange(400_000.0).reshape(1000, 400), "a.alpha": torch.tensor(1)}
METADATA = {"ss_network_dim": "4", "modelspec.title": "cat"}


def body(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize("tensors", [SMALL, LARGE])
def test_the_hash_is_that_of_the_written_file_behind_its_header(
    tmp_path: Path, tensors: dict[str, Tensor]
):
    metadata = with_hashes(METADATA, tensors)
    save_file(tensors, tmp_path / "file.safetensors", metadata)
    expected = hashlib.sha256(body(tmp_path / "file.safetensors")).hexdigest()
    assert metadata["sshs_model_hash"] == expected
    assert metadata["modelspec.hash_sha256"] == f"0x{expected}"
    assert {key: metadata[key] for key in METADATA} == METADATA


def test_the_legacy_hash_is_that_of_a_file_with_the_keys_of_sd_scripts_alone(tmp_path: Path):
    save_file(LARGE, tmp_path / "file.safetensors", {"ss_network_dim": "4"})
    part = (tmp_path / "file.safetensors").read_bytes()[0x100000 : 0x100000 + 0x10000]
    expected = hashlib.sha256(part).hexdigest()[:8]
    assert with_hashes(METADATA, LARGE)["sshs_legacy_hash"] == expected
    assert with_hashes(METADATA, SMALL)["sshs_legacy_hash"] == "e3b0c442"  # of nothing


def test_order_metadata_and_memory_do_not_change_the_hash():
    turned = {name: SMALL[name] for name in reversed(SMALL)}
    turned["a.lora_up.weight"] = SMALL["a.lora_up.weight"].T.contiguous().T.requires_grad_()
    turned["b.alpha"] = torch.tensor([1.0, 4.0])[1]
    first, second = with_hashes(METADATA, SMALL), with_hashes({"ss_steps": "9"}, turned)
    assert first["sshs_model_hash"] == second["sshs_model_hash"]
    assert "modelspec.hash_sha256" not in second
