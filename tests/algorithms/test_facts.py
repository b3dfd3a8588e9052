"""Facts: what a list and a look at one file show, from its header and from beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from anyadapter.algorithms.facts import facts, summary
from anyadapter.algorithms.formats.description import (
    MAX_THUMBNAIL_BYTES,
    Description,
    Sidecar,
    TriggerWord,
    describe,
    picture_type,
    read_sidecar,
    thumbnail,
)
from described_files import data_address, png, write_described

KEYS = (
    *("ss_tag_frequency", "ss_datasets", "ss_dataset_dirs", "ss_training_started_at"),
    *("modelspec.trigger_phrase", "modelspec.thumbnail", "modelspec.resolution", "training_info"),
    *("ss_sd_model_name", "ss_resolution", "ss_steps", "ss_learning_rate", "modelspec.date"),
)
NONSENSE = (
    *(
        "",
        "null",
        "None",
        "{",
        "[]",
        "{}",
        "7",
        "nan",
        "1e999",
        '"',
        "[" * 100_000,
        "\x00",
        "\ud800",
    ),
    *(
        '{"a": 1}',
        '{"a": {"b": "c"}}',
        '[{"tag_frequency": 3}]',
        '[1, {"tag_frequency": {"a": 1}}]',
    ),
    *(
        '{"a": {"": 1, "x": -4, "y": true, "z": 1e400}}',
        "data:image/png;base64,",
        "data:image/png;base64,é",
    ),
    *("x" * 1_000_000, "(99999999999, 1)", "C:\\Users\\someone\\model.safetensors"),
)


def described(strings: dict[str, Any], sidecar: Sidecar | None = None) -> Description:
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in strings.items()}
    return describe(texts, sidecar or Sidecar())


def test_a_summary_has_method_rank_family_and_base_model(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_described(path, {"ss_sd_model_name": "/home/me/pony.safetensors"}, rank=16)
    told = summary(path)
    assert (told.method, told.rank, told.family) == ("LoRA-LierLa", "16", "SDXL")
    assert (told.base_model, told.thumbnail, told.error) == ("pony", False, "")


def test_a_summary_says_why_a_file_is_no_adapter(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("<html>")
    told = summary(path)
    assert (told.method, told.rank, told.family) == (None, "", None)
    assert "not a safetensors file" in told.error


def test_facts_count_layers_and_keep_the_metadata_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    metadata = {"ss_steps": "1200", "mine": "kept"}
    write_described(path, metadata)
    told = facts(path)
    assert (told.layers_model, told.layers_text_encoders, told.unclaimed) == (1, 0, 0)
    assert told.metadata == metadata
    assert told.summary == summary(path)


def test_the_metadata_of_a_file_that_is_no_adapter_are_shown(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"mystery": torch.ones(2)}, path, {"modelspec.title": "Mystery"})
    told = facts(path)
    assert told.summary.method is None
    assert "known ending" in told.summary.error
    assert told.description.title == "Mystery"


def test_tags_are_summed_over_folders_and_sorted() -> None:
    told = described(
        {"ss_tag_frequency": {"10_cat": {"cat": 3, " fur ": 2}, "5_dog": {"dog": 4, "fur": 7}}}
    )
    assert told.tags == (("fur", 9), ("dog", 4), ("cat", 3))


def test_tags_of_a_dataset_file_are_found() -> None:
    told = described({"ss_datasets": [{"tag_frequency": {"cats": {"cat": 3}}}, {}]})
    assert told.tags == (("cat", 3),)


def test_trigger_words_come_from_the_phrase_from_beside_and_from_folders() -> None:
    told = described(
        {
            "modelspec.trigger_phrase": "in the style of x",
            "ss_tag_frequency": {"10_sks dog": {"dog": 1}, "images": {}},
            "ss_dataset_dirs": {"2_other": {"n_repeats": 2}, "10_sks dog": {}},
        },
        Sidecar(trigger_words=("xstyle", "sks dog")),
    )
    assert told.trigger_words == (
        TriggerWord("in the style of x", "metadata"),
        TriggerWord("xstyle", "beside"),
        TriggerWord("sks dog", "beside"),
        TriggerWord("other", "folder"),
    )


def test_the_training_is_told_without_what_was_not_given() -> None:
    told = described(
        {
            "ss_steps": "1200",
            "ss_max_train_steps": "2000",
            "ss_num_epochs": "10",
            "ss_unet_lr": "0.0001",
            "ss_text_encoder_lr": "None",
            "ss_network_alpha": "8.0",
            "ss_num_train_images": "20",
        }
    )
    assert told.training == {
        "steps": "1200",
        "epochs": "10",
        "images": "20",
        "alpha": "8.0",
        "learning_rate_model": "0.0001",
    }


def test_the_training_of_ai_toolkit_is_told() -> None:
    told = described({"training_info": {"step": 500, "epoch": 3}})
    assert told.training == {"steps": "500", "epochs": "3"}


@pytest.mark.parametrize(
    ("strings", "date"),
    [
        ({"modelspec.date": "2024-05-01T10:00:00"}, "2024-05-01T10:00:00"),
        ({"ss_training_started_at": "1700000000.25"}, "2023-11-14T22:13:20+00:00"),
        ({"ss_training_finished_at": "1700000001", "ss_training_started_at": "1"},
         "2023-11-14T22:13:21+00:00"),
        ({"ss_training_started_at": "yesterday"}, ""),
    ],
)  # fmt: skip
def test_the_date_is_that_of_the_training(strings: dict[str, str], date: str) -> None:
    assert described(strings).date == date


@pytest.mark.parametrize("text", ["(1024, 768)", "1024x768", "[1024,768]", "1024 x 768"])
def test_a_resolution_is_read_in_all_spellings(text: str) -> None:
    assert described({"ss_resolution": text}).resolution == "1024 x 768"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.civitai.info",
            {"trainedWords": ["ohwx", 3, " man, "], "baseModel": "Pony", "name": "v1"},
            Sidecar(base_model="Pony", trigger_words=("ohwx", "man")),
        ),
        (
            "a.metadata.json",
            {
                "base_model": "Illustrious",
                "model_name": "Cats",
                "notes": "at 0.7",
                "civitai": {"trainedWords": ["cat"]},
            },
            Sidecar("Illustrious", "Cats", "at 0.7", ("cat",)),
        ),
        (
            "a.json",
            {"activation text": "cat, fur", "notes": "n", "sd version": "SDXL"},
            Sidecar("SDXL", "", "n", ("cat, fur",)),
        ),
        ("a.json", [1, 2], Sidecar()),
        ("a.json", {"civitai": [], "trainedWords": "cat", "notes": {}}, Sidecar()),
    ],
)
def test_what_other_tools_leave_beside_a_file_is_read(
    tmp_path: Path, name: str, content: Any, expected: Sidecar
) -> None:
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    assert read_sidecar(tmp_path / "a.safetensors") == expected


def test_a_damaged_file_beside_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff{")
    (tmp_path / "a.civitai.info").mkdir()
    assert read_sidecar(tmp_path / "a.safetensors") == Sidecar()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("text", NONSENSE, ids=lambda text: repr(text[:20]))
def test_nonsense_in_the_metadata_raises_nothing(key: str, text: str) -> None:
    told = described({key: text})
    assert all(count > 0 for _, count in told.tags)
    assert "someone" not in told.base_model
    assert len(told.base_model) <= 100
    thumbnail({key: text})


def test_a_thumbnail_is_given_with_the_type_that_it_has() -> None:
    picture = thumbnail({"modelspec.thumbnail": data_address(png(), "image/jpeg")})
    assert picture is not None
    assert (picture.content_type, picture.data) == ("image/png", png())


@pytest.mark.parametrize(
    "address",
    [
        data_address(b"<svg onload='alert(1)'/>", "image/svg+xml"),
        data_address(b"<html>", "image/png"),
        data_address(png() + bytes(MAX_THUMBNAIL_BYTES), "image/png"),
        "https://example.org/a.png",
        "data:image/png;base64,%%%",
    ],
    ids=["svg", "web page", "too large", "address", "not base64"],
)
def test_what_is_no_small_picture_is_no_thumbnail(address: str) -> None:
    assert thumbnail({"modelspec.thumbnail": address}) is None


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"GIF89a", "image/gif"),
        (b"<svg", None),
        (b"", None),
    ],
)
def test_pictures_are_told_by_their_first_bytes(start: bytes, kind: str | None) -> None:
    assert picture_type(start) == kind
