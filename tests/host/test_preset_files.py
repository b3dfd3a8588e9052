"""The user's presets are kept, whatever happens while they are saved."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest

from anyadapter.algorithms.errors import (
    BlockWeightsError,
    PresetError,
    PresetMissingError,
    PresetTakenError,
    StorageError,
)
from anyadapter.nodes.host import whole_files
from anyadapter.nodes.host.preset_files import (
    delete_preset,
    export_presets,
    import_presets,
    own_presets,
    own_texts,
    preset_text,
    save_preset,
)

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the presets, in a user folder of its own."""
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    return tmp_path / "anyadapter"


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "block_presets.json"


def test_there_are_none_at_first(folder: Path):
    assert own_presets() == {}
    assert not folder.exists()


def test_what_was_saved_is_there(file: Path):
    assert save_preset("  soft face ", "OUT:0.5\n") == "soft face"
    save_preset("顔", "MIDD, IN04:0.2")
    expected = {"soft face": "OUT:0.5", "顔": "MIDD, IN04:0.2"}
    assert own_presets() == expected
    assert json.loads(file.read_text(encoding="utf-8")) == {"version": 1, "presets": expected}


def test_a_preset_is_read_again_when_the_file_has_changed(file: Path):
    save_preset("soft", "OUT:0.5")
    assert own_presets() == {"soft": "OUT:0.5"}
    file.write_text('{"version": 1, "presets": {"hard": "IN:0"}}', encoding="utf-8")
    assert own_presets() == {"hard": "IN:0"}
    file.unlink()
    assert own_presets() == {}


def test_what_is_returned_may_be_changed():
    save_preset("soft", "OUT:0.5")
    own_presets().clear()
    assert own_presets() == {"soft": "OUT:0.5"}


def test_a_name_that_is_there_is_only_replaced_on_demand():
    save_preset("soft", "OUT:0.5")
    with pytest.raises(PresetTakenError, match='There is a preset "soft" already'):
        save_preset("soft", "OUT:0")
    assert own_presets() == {"soft": "OUT:0.5"}
    save_preset("soft", "OUT:0", replace=True)
    assert own_presets() == {"soft": "OUT:0"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (" ", "empty"),
        ("OUT:x", "not a number"),
        ("nobody", "neither a number nor a preset"),
        ("OUT:0," * 4000, "more than"),
        ("IN04.\ud800:0", "half a character"),
    ],
)
def test_a_text_that_means_nothing_is_not_saved(folder: Path, text: str, why: str):
    with pytest.raises((PresetError, BlockWeightsError), match=why):
        save_preset("soft", text)
    assert not folder.exists()


def test_a_preset_names_no_other_of_the_users():
    save_preset("soft", "OUT:0.5")
    with pytest.raises(BlockWeightsError, match="neither a number nor a preset"):
        save_preset("hard", "soft, IN:0")


def test_a_deleted_preset_is_gone_and_the_others_are_not():
    save_preset("soft", "OUT:0.5")
    save_preset("hard", "OUT:0")
    delete_preset(" soft ")
    assert own_presets() == {"hard": "OUT:0"}
    with pytest.raises(PresetMissingError, match='no preset "soft"'):
        delete_preset("soft")
    with pytest.raises(PresetError, match="comes with the pack"):
        delete_preset("MIDD")


def test_a_preset_is_found_by_its_name():
    save_preset("résumé", "OUT:0.5")
    assert preset_text("re\u0301sume\u0301 ") == "OUT:0.5"
    assert preset_text("SD-OUTALL") == "IN:0, MID:0"
    assert preset_text("nobody") is None


def test_the_text_of_a_preset_names_no_other():
    save_preset("soft", "outall, IN04:0.5\n1")
    assert preset_text("soft") == "IN:0, MID:0, IN04:0.5,1"


def test_the_users_presets_in_a_text_are_known():
    save_preset("soft", "OUT:0.5")
    assert own_texts("MIDD, soft\n hard, IN04:0.5, soft:1") == ["OUT:0.5"]
    assert own_texts("1,0,0.5") == []
    assert own_texts("") == []


def test_damaged_presets_are_told_and_left_as_they_are(file: Path):
    save_preset("soft", "OUT:0.5")
    whole = file.read_bytes()
    contents = [
        whole[:-4],
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"version": 1}',
        b'{"version": 2, "presets": {}}',
    ]
    contents += [b'{"version": 1, "presets": {"soft": 1}}', b"[" * 100_000]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(StorageError, match=r"is damaged .* It is left as it is"):
            own_presets()
        with pytest.raises(StorageError, match=r"is damaged .* It is left as it is"):
            save_preset("hard", "OUT:0")
        assert file.read_bytes() == content
    assert preset_text("MIDD") is not None


def test_what_else_is_in_the_file_stays(file: Path):
    save_preset("soft", "OUT:0.5")
    document = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**document, "note": "mine"}), encoding="utf-8")
    save_preset("hard", "OUT:0")
    assert json.loads(file.read_text(encoding="utf-8"))["note"] == "mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows needs a privilege for symbolic links")
def test_a_link_to_a_file_elsewhere_stays_one(tmp_path: Path, file: Path):
    save_preset("soft", "OUT:0.5")
    elsewhere = tmp_path / "elsewhere.json"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    save_preset("hard", "OUT:0")
    assert file.is_symlink()
    assert list(json.loads(elsewhere.read_text(encoding="utf-8"))["presets"]) == ["soft", "hard"]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a preset in which nothing can be written."""
    with (
        tempfile.TemporaryDirectory() as base
    ):  # not in the tests' own, which is for its owner alone
        Path(base).chmod(0o755)
        monkeypatch.setattr(folder_paths, "user_directory", base)
        save_preset("soft", "OUT:0.5")
        folder = Path(base, "anyadapter")
        for path in (*folder.iterdir(), folder):
            path.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # else no rights would count
        yield folder
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="folders on Windows are not read-only")
def test_a_read_only_folder_is_told_and_loses_nothing(read_only: Path):
    before = sorted(path.name for path in read_only.iterdir())
    with pytest.raises(
        StorageError, match=r"cannot be changed: Permission denied\. Nothing was lost"
    ):
        save_preset("hard", "OUT:0")
    with pytest.raises(
        StorageError, match=r"cannot be changed: Permission denied\. Nothing was lost"
    ):
        delete_preset("soft")
    assert own_presets() == {"soft": "OUT:0.5"}
    assert sorted(path.name for path in read_only.iterdir()) == before


def test_a_file_in_the_place_of_the_folder_is_told(folder: Path):
    folder.write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot be changed"):
        save_preset("soft", "OUT:0")
    assert folder.read_text(encoding="utf-8") == "in the way"


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failure_while_saving_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, broken: str
):
    save_preset("soft", "OUT:0.5")
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(whole_files.os, broken, fail)
        with pytest.raises(StorageError, match="No space left on device"):
            save_preset("hard", "OUT:0")
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "block_presets.json",
        "block_presets.lock",
    ]
    save_preset("hard", "OUT:0")
    assert list(own_presets()) == ["soft", "hard"]


@pytest.mark.skipif(os.name == "nt", reason="of locks that Windows has not")
def test_presets_are_saved_on_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch):
    from anyadapter.nodes.host import file_lock

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(file_lock.fcntl, "flock", refuse)
    save_preset("soft", "OUT:0.5")
    assert own_presets() == {"soft": "OUT:0.5"}


PROCESS = """
import os, signal, sys
sys.path[:0] = [{support!r}, {comfyui!r}]
import pack
from start_comfyui import declare_missing_torchvision_ops
declare_missing_torchvision_ops()
from comfy.cli_args import args
args.cpu = True
import utils.extra_config
import folder_paths
folder_paths.user_directory = {user!r}
from anyadapter.nodes.host import preset_files, whole_files
"""


def run(comfyui: Path, user: Path, script: str) -> subprocess.Popen[bytes]:
    """Starts Python that changes presets."""
    head = PROCESS.format(support=str(SUPPORT), comfyui=str(comfyui), user=str(user))
    command = [sys.executable, "-c", head + textwrap.dedent(script)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_while_saving_leaves_the_old_file_and_no_lock(
    comfyui: Path, tmp_path: Path, file: Path
):
    save_preset("soft", "OUT:0.5")
    before = file.read_bytes()
    process = run(
        comfyui,
        tmp_path,
        """
        whole_files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        preset_files.save_preset("hard", "OUT:0")
        """,
    )
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert (file.parent / "block_presets.tmp").exists()
    assert file.read_bytes() == before
    save_preset("sharp", "OUT:0")
    assert list(own_presets()) == ["soft", "sharp"]
    assert not (file.parent / "block_presets.tmp").exists()


def test_threads_lose_nothing_of_each_other():
    errors: list[BaseException] = []

    def save(writer: int) -> None:
        try:
            for number in range(10):
                save_preset(f"{writer} of {number}", "OUT:0")
        except BaseException as error:  # noqa: BLE001 - told below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=save, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(own_presets()) == 40


def test_two_servers_lose_nothing_of_each_other(comfyui: Path, tmp_path: Path):
    script = """
        for number in range(100):
            preset_files.save_preset(f"there {number}", "OUT:0")
        """
    process = run(comfyui, tmp_path, script)
    while not own_presets() and process.poll() is None:
        time.sleep(0.001)
    saved = 0
    while process.poll() is None:
        save_preset(f"here {saved}", "OUT:0")
        saved += 1
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert saved > 0
    assert len(own_presets()) == 100 + saved


def test_what_was_exported_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_preset("soft", "OUT:0.5")
    save_preset("顔", "1,0,0,0.5,1,1,1,1,1,1,1,1")
    presets = own_presets()
    text = json.dumps(export_presets())
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "other"))
    imported = import_presets("\ufeff" + text)
    assert (imported.taken, imported.already, imported.refused) == (["soft", "顔"], [], [])
    assert own_presets() == presets


def test_an_import_replaces_only_on_demand():
    save_preset("soft", "OUT:0.5")
    save_preset("same", "OUT:0")
    text = '{"version": 1, "presets": {"soft": "IN:0", "hard": "IN:1", "same": "OUT:0"}}'
    imported = import_presets(text)
    assert (imported.taken, imported.already) == (["hard", "same"], ["soft"])
    assert own_presets()["soft"] == "OUT:0.5"
    assert import_presets(text, replace=True).already == []
    assert own_presets()["soft"] == "IN:0"


LINES = """\
# from another tool
NONE:0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0

SD-MIDD:1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0
soft:1,0,0,0,1,1,1,0.5,R,1,1,U,0,0,0,0,0
MY FACE: 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1
@SD-BLOCK1-TEST:17,12,7
@SD-FULL-TEST:17
SD-AOUT:A,1,1,1,1,1,1,1,1,1,1,1,A,A,A,A,A
ELEMENT:IN05-OUT05:attn:1
nonsense
empty:
IN04:1,1,1,1,1,1,1,1,1,1,1,1
named:IN04:0.5, OUT:0
spec:%default=0.5,in=1
"""


def test_lines_of_other_tools_are_imported_and_the_rest_is_told():
    imported = import_presets(LINES)
    assert imported.taken == ["soft", "MY FACE", "ELEMENT", "named"]
    assert own_presets() == {
        "soft": "1,0,0,0,1,1,1,0.5,R,1,1,U,0,0,0,0,0",
        "MY FACE": "1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1",
        "ELEMENT": "IN05-OUT05:attn:1",
        "named": "IN04:0.5, OUT:0",
    }
    expected = [
        "NONE: comes with the pack as NONE",
        "SD-MIDD: comes with the pack as MIDD",
        "Line 7 (@SD-BLOCK1-TEST:17,12,7) describes a series",
        "Line 8 (@SD-FULL-TEST:17) describes a series",
        "SD-AOUT: Item 1",
        "Line 11 (nonsense) is no preset",
        "Line 12 (empty:) is no preset",
        'IN04: "IN04" cannot be the name',
        "spec: Block weights that begin with %",
    ]
    assert len(imported.refused) == len(expected)
    for start in expected:
        assert any(sentence.startswith(start) for sentence in imported.refused), start


@pytest.mark.parametrize(
    "text", ["{", '{"presets": {}}', "[1, 2]{", '{"version": 3, "presets": {}}']
)
def test_what_is_no_export_is_refused(folder: Path, text: str):
    if text.startswith("{"):
        with pytest.raises(PresetError, match="This cannot be imported"):
            import_presets(text)
    else:
        assert import_presets(text).refused
    assert not folder.exists()
