"""The list of adapter files: kept while they do not change, in memory and on disk."""

import json
import os
from pathlib import Path

import pytest

from anyadapter.nodes.host import library
from anyadapter.nodes.host.library import Entry, Library, entry_and_facts
from described_files import data_address, png, write_described


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "user" / "anyadapter" / "library.json"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, in order."""
    names: list[str] = []
    summary = library.summary

    def noted(path: Path, *rest: object) -> object:
        names.append(path.name)
        return summary(path, *rest)

    monkeypatch.setattr(library, "summary", noted)
    return names


def settled(of: Library, *names: str) -> list[Entry]:
    """Returns the entries once all is read."""
    while True:
        entries = of.entries(names)
        reader = of._reader
        if reader is None and all(entry.summary for entry in entries):
            return entries
        if reader is not None:
            reader.join()


def test_files_are_known_soon_after_they_are_asked_for(loras: Path, index: Path):
    write_described(loras / "sub" / "a.safetensors", rank=8)
    entries = Library(lambda: index).entries(["sub/a.safetensors"])
    assert [entry.name for entry in entries] == ["sub/a.safetensors"]
    (entry,) = settled(Library(lambda: index), "sub/a.safetensors")
    assert entry.summary is not None
    assert (entry.summary.method, entry.summary.rank) == ("LoRA-LierLa", "8")
    assert entry.size_bytes == (loras / "sub" / "a.safetensors").stat().st_size


def test_a_file_is_read_once(loras: Path, index: Path, read: list[str]):
    write_described(loras / "a.safetensors")
    kept = Library(lambda: index)
    settled(kept, "a.safetensors")
    settled(kept, "a.safetensors")
    assert read == ["a.safetensors"]


def test_a_file_is_not_read_again_after_a_restart(loras: Path, index: Path, read: list[str]):
    write_described(loras / "a.safetensors", {"ss_sd_model_name": "x"}, rank=8)
    before = settled(Library(lambda: index), "a.safetensors")
    assert Library(lambda: index).entries(["a.safetensors"]) == before
    assert read == ["a.safetensors"]


def test_a_changed_file_is_taken_up(loras: Path, index: Path):
    kept = Library(lambda: index)
    write_described(loras / "a.safetensors", rank=4)
    settled(kept, "a.safetensors")
    write_described(loras / "a.safetensors", rank=8)
    (entry,) = kept.entries(["a.safetensors"])
    assert entry.summary is None
    (entry,) = settled(kept, "a.safetensors")
    assert entry.summary is not None
    assert entry.summary.rank == "8"


def test_a_changed_description_beside_a_file_is_taken_up(loras: Path, index: Path):
    kept = Library(lambda: index)
    write_described(loras / "a.safetensors")
    settled(kept, "a.safetensors")
    (loras / "a.civitai.info").write_text('{"baseModel": "Pony"}', encoding="utf-8")
    (entry,) = settled(kept, "a.safetensors")
    assert entry.summary is not None
    assert entry.summary.base_model == "Pony"


def test_a_file_that_is_gone_is_left_out_and_forgotten(loras: Path, index: Path):
    kept = Library(lambda: index)
    write_described(loras / "a.safetensors")
    write_described(loras / "b.safetensors")
    settled(kept, "a.safetensors", "b.safetensors")
    (loras / "a.safetensors").unlink()
    write_described(loras / "b.safetensors", rank=8)
    entries = settled(kept, "a.safetensors", "b.safetensors", "never.safetensors", "../x", "")
    assert [entry.name for entry in entries] == ["b.safetensors"]
    assert [*json.loads(index.read_text())["files"]] == [str(loras / "b.safetensors")]


def test_a_file_that_is_no_adapter_is_listed_with_the_reason(loras: Path, index: Path):
    (loras / "a.safetensors").write_text("<html>")
    (entry,) = settled(Library(lambda: index), "a.safetensors")
    assert entry.summary is not None
    assert "not a safetensors file" in entry.summary.error


def damaged(good: str, damage: str) -> str:
    """Returns the text of an index, spoilt in one way."""
    content = json.loads(good)
    (kept,) = content["files"].values()
    if damage == "form":
        content["form"] += 1
    elif damage == "known":
        content["known"].pop()
    elif damage == "type":
        kept[1]["rank"] = 4
    elif damage == "field":
        kept[1]["colour"] = "red"
    elif damage == "state":
        kept[0] = "x"
    elif damage == "list":
        content["files"] = [1]
    return {"cut": good[:-20], "other": "[]"}.get(damage) or json.dumps(content)


@pytest.mark.parametrize(
    "damage", ["form", "known", "type", "field", "state", "list", "cut", "other"]
)
def test_an_index_that_is_damaged_or_of_another_version_is_made_anew(
    loras: Path, index: Path, read: list[str], damage: str
):
    write_described(loras / "a.safetensors", rank=8)
    before = settled(Library(lambda: index), "a.safetensors")
    good = index.read_text()
    index.write_text(damaged(good, damage))
    assert settled(Library(lambda: index), "a.safetensors") == before
    assert read == ["a.safetensors"] * 2
    assert index.read_text() == good


def test_an_index_that_cannot_be_written_harms_nothing(loras: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    write_described(loras / "a.safetensors")
    kept = Library(lambda: tmp_path / "file" / "library.json")  # its folder is a file
    (entry,) = settled(kept, "a.safetensors")
    assert entry.summary is not None


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may write anywhere")
def test_a_folder_that_may_only_be_read_harms_nothing(loras: Path, index: Path):
    index.parent.mkdir(parents=True)
    index.parent.chmod(0o500)
    write_described(loras / "a.safetensors")
    (entry,) = settled(Library(lambda: index), "a.safetensors")
    assert entry.summary is not None


def test_writing_the_index_leaves_nothing_beside_it(loras: Path, index: Path):
    write_described(loras / "a.safetensors")
    settled(Library(lambda: index), "a.safetensors")
    assert [path.name for path in index.parent.iterdir()] == ["library.json"]


@pytest.mark.parametrize("ending", [".png", ".jpeg", ".preview.png", ".preview.webp"])
def test_a_picture_beside_a_file_is_announced(loras: Path, index: Path, ending: str):
    write_described(loras / "a.b.safetensors")
    (loras / f"a.b{ending}").write_bytes(png())
    (entry,) = Library(lambda: index).entries(["a.b.safetensors"])
    assert entry.preview


def test_a_picture_of_another_file_is_not_announced(loras: Path, index: Path):
    write_described(loras / "a.safetensors")
    (loras / "ab.png").write_bytes(png())
    (entry,) = settled(Library(lambda: index), "a.safetensors")
    assert not entry.preview


def test_a_picture_in_the_header_is_announced_once_it_is_read(loras: Path, index: Path):
    write_described(loras / "a.safetensors", {"modelspec.thumbnail": data_address(png())})
    (entry,) = settled(Library(lambda: index), "a.safetensors")
    assert entry.preview


def test_seven_thousand_files_are_listed(loras: Path, index: Path, read: list[str]):
    write_described(loras / "0.safetensors")
    content = (loras / "0.safetensors").read_bytes()
    names = [f"{number}.safetensors" for number in range(7000)]
    for name in names[1:]:
        (loras / name).write_bytes(content[:1])  # damaged, so that reading them takes no time
    kept = Library(lambda: index)
    assert len(settled(kept, *names)) == 7000
    assert len(Library(lambda: index).entries(names)) == 7000
    assert sorted(read) == sorted(names)


def test_facts_are_those_of_the_file_as_it_is_now(loras: Path):
    write_described(loras / "a.safetensors", {"modelspec.title": "Cats"}, rank=8)
    entry, facts = entry_and_facts("a.safetensors")
    assert entry.summary == facts.summary
    assert facts.description.title == "Cats"
