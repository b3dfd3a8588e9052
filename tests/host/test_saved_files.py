"""Files that are saved: names that are nobody's, and files that are whole or not there."""

import errno
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import folder_paths
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from anyadapter.algorithms.errors import StorageError
from anyadapter.algorithms.formats.read import read_header
from anyadapter.nodes.host import saved_files
from anyadapter.nodes.host.files import adapter_names
from anyadapter.nodes.host.saved_files import checked_name, dated_name, is_taken, write_new
from anyadapter.nodes.host.trained_files import checkpoint_name, free_name, output_path, release

TENSORS = {"a.lora_up.weight": torch.ones(4, 2), "a.alpha": torch.tensor(2.0)}

pytestmark = pytest.mark.usefixtures("loras")


def forks(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that forks, of which later Pythons warn where there are threads."""
    quiet = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    return quiet(pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")(test))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def save(name: str) -> str:
    return write_new(name, TENSORS, {"ss_v2": "x"})


def test_a_file_holds_what_it_was_given_and_is_listed_at_once(loras: Path):
    (loras / "styles").mkdir()
    times = loras.stat(), (loras / "styles").stat()
    assert adapter_names() == []
    assert save("styles/cat") == "styles/cat"
    for path, then in zip((loras, loras / "styles"), times, strict=True):
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))  # as on a disk with coarse times
    assert adapter_names() == [str(Path("styles/cat.safetensors"))]
    path = loras / "styles" / "cat.safetensors"
    read = load_file(path)
    assert all(torch.equal(read[key], tensor) for key, tensor in TENSORS.items())
    assert read_header(path).metadata == {"format": "pt", "ss_v2": "x"}
    fresh = loras / "fresh"
    fresh.write_bytes(b"")
    assert path.stat().st_mode == fresh.stat().st_mode


def test_a_file_that_is_there_stays_and_the_next_gets_a_number(loras: Path):
    (loras / "cat.safetensors").write_bytes(b"old")
    assert [save("cat"), save("cat"), save("cat_2")] == ["cat_2", "cat_3", "cat_2_2"]
    assert (loras / "cat.safetensors").read_bytes() == b"old"


def test_a_name_in_another_of_the_folders_is_taken(loras: Path):
    more = loras.with_name("more")
    more.mkdir()
    folder_paths.add_model_folder_path("loras", str(more))
    (more / "cat.safetensors").write_bytes(b"old")
    assert save("cat") == "cat_2"
    assert files(loras) == {"cat_2.safetensors"}


def test_the_names_of_a_training_are_its_own():
    running = free_name("cat")  # it has written nothing yet
    assert save("cat") == "cat_2"
    release(running)
    assert save("cat") == "cat"
    output_path(checkpoint_name("dog", 500)).write_bytes(b"")
    assert save("dog") == "dog_2"
    assert free_name("dog_2") == "dog_2_2"


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says on a disk that knows no second names for a file."""

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def any_disk(request: pytest.FixtureRequest) -> None:
    if not request.param:
        request.getfixturevalue("without_links")


@pytest.mark.usefixtures("any_disk")
def test_names_that_differ_in_case_are_one_where_the_disk_says_so(
    loras: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a disk of Windows or macOS says of a name, on any disk."""
    opened, link = Path.open, os.link

    def on_such_a_disk(path: Path, mode: str = "r", *rest: object, **more: object) -> object:
        if "x" in mode and path.name.lower() in {one.lower() for one in files(loras)}:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        return opened(path, mode, *rest, **more)  # type: ignore[call-overload]

    def linked_on_such_a_disk(new: Path, path: Path) -> None:
        there = [one for one in loras.iterdir() if one.name.lower() == path.name.lower()]
        link(new, there[0] if there else path)

    save("Cat")
    monkeypatch.setattr(Path, "open", on_such_a_disk)
    monkeypatch.setattr(os, "link", linked_on_such_a_disk)
    assert save("cat") == "cat_2"


@pytest.mark.usefixtures("any_disk")
def test_many_that_save_at_once_get_a_file_each(loras: Path, monkeypatch: pytest.MonkeyPatch):
    count = 8
    together = Barrier(count)

    def answered_together(name: str) -> bool:
        taken = is_taken(name)
        if name == "cat":
            together.wait(10)
        return taken

    monkeypatch.setattr(saved_files, "is_taken", answered_together)
    with ThreadPoolExecutor(count) as pool:
        names = [*pool.map(lambda number: write_one("cat", number), range(count))]
    assert sorted(names) == sorted(["cat", *(f"cat_{number}" for number in range(2, count + 1))])
    for number, name in enumerate(names):
        assert load_file(loras / f"{name}.safetensors")["number"].item() == number
    assert files(loras) == {f"{name}.safetensors" for name in names}


def write_one(name: str, number: int) -> str:
    return write_new(name, {"number": torch.tensor(number)}, {})


@forks
def test_two_processes_that_save_at_once_get_a_file_each(loras: Path):
    (ready, tell), (wait, go) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.write(tell, b".")
        os.read(wait, 1)
        for _ in range(20):
            write_one("cat", 1)
        os._exit(0)
    os.read(ready, 1)
    os.write(go, b".")
    ours = {write_one("cat", 0) for _ in range(20)}
    assert os.waitpid(child, 0)[1] == 0
    every = {f"cat_{number}" for number in range(2, 41)} | {"cat"}
    assert files(loras) == {f"{name}.safetensors" for name in every}
    found = {name for name in every if load_file(loras / f"{name}.safetensors")["number"] == 0}
    assert found == ours
    for end in (ready, tell, wait, go):
        os.close(end)


def full() -> Exception:
    return OSError(errno.ENOSPC, "No space left on device")


def not_allowed() -> Exception:
    return PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.usefixtures("without_links")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (full, r"cat\.safetensors could not be written: it needs 1\.0 MB, and there are [\d.]+ MB"),
        (not_allowed, r"cat\.safetensors could not be written to .*give ComfyUI leave to write"),
    ],
)
def test_what_fails_while_it_is_written_leaves_nothing(
    loras: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    failure: Callable[[], Exception],
    message: str,
):
    fail_at(moment, failure(), monkeypatch)
    with pytest.raises(StorageError, match=message):
        save("styles/cat")
    assert files(loras) == set()


def fail_at(moment: str, failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise failure

    owner = Path if moment == "replace" else os
    monkeypatch.setattr(owner, moment, fail)


@pytest.mark.usefixtures("without_links")
@pytest.mark.parametrize("moment", ["fsync", "link", "replace"])
def test_an_interruption_leaves_nothing(loras: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    fail_at(moment, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        save("cat")
    assert files(loras) == set()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_file_that_exceeds_what_the_system_grants_is_told_and_leaves_nothing(loras: Path):
    """A limit of the system, as a disk that becomes full while it is written."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"could not be written"):
            write_new("cat", {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(loras) == set()


@forks
@pytest.mark.parametrize("moment", ["fsync", "link", "replace"])
def test_what_a_crash_left_is_no_file_and_is_cleared_away(
    loras: Path, moment: str, request: pytest.FixtureRequest
):
    if moment == "replace":
        request.getfixturevalue("without_links")
    child = os.fork()
    if not child:
        setattr(os, moment, lambda *_, **__: os._exit(9))
        save("cat")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (left,) = [path for path in loras.iterdir() if path.suffix == ".tmp"]
    others = {path.name: path.stat().st_size for path in loras.iterdir() if path != left}
    # At worst an empty file, in the moment of the last step on a disk without links.
    assert set(others.values()) == ({0} if moment == "replace" else set())
    save("cat")
    assert left.exists()  # it may be somebody's who is writing
    long_ago = time.time() - 2 * saved_files.LEFT_AFTER
    os.utime(left, (long_ago, long_ago))
    mine = loras / "cat.draft.tmp"
    mine.write_bytes(b"")
    os.utime(mine, (long_ago, long_ago))
    save("cat")
    assert not left.exists()
    assert mine.exists()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_told(loras: Path):
    loras.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="give ComfyUI leave to write there"):
            save("cat")
    finally:
        loras.chmod(0o700)


def test_a_file_in_place_of_a_folder_is_told(loras: Path):
    (loras / "styles").write_text("")
    with pytest.raises(StorageError, match=r"cat\.safetensors could not be written to"):
        save("styles/cat")
    with pytest.raises(StorageError, match="could not be written to"):
        dated_name("styles/%year%")


def test_a_host_without_a_folder_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([], {".safetensors"}))
    with pytest.raises(StorageError, match="no folder for LoRA files"):
        save("cat")


NAMES = ["", "../cat", "styles/../../cat", "/cat", "a:b", "aux", "cat.", "猫" * 67, "cat\ud800"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_lead_away_or_are_none_somewhere_are_refused(name: str):
    for check in (checked_name, dated_name):
        with pytest.raises(StorageError, match="cannot be the name of an adapter") as caught:
            check(name)
        str(caught.value).encode()  # it can be shown


def test_the_longest_name_is_one_with_all_that_is_put_behind_it():
    name = checked_name("猫" * 66)
    assert [save(name), save(name)] == [name, f"{name}_2"]
    output_path(checkpoint_name(name, 500)).write_bytes(b"")
    release(free_name(f"{name}_3"))


def test_a_name_that_is_too_long_for_the_disk_is_told(monkeypatch: pytest.MonkeyPatch):
    fail_at("fsync", OSError(errno.ENAMETOOLONG, "File name too long"), monkeypatch)
    with pytest.raises(StorageError, match="such a name is too long for the disk"):
        save("cat")


@pytest.mark.parametrize("code", [39, 112])
def test_a_full_disk_is_told_on_windows_too(code: int, monkeypatch: pytest.MonkeyPatch):
    failure = SafetensorError(
        f"I/O error: There is not enough space on the disk. (os error {code})"
    )

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(saved_files, "save_file", fail)
    with pytest.raises(StorageError, match="give ComfyUI leave"):  # here they mean something else
        save("cat")
    monkeypatch.setattr(saved_files, "NO_SPACE_IN_RUST", (39, 112))
    with pytest.raises(
        StorageError, match=r"it needs 1\.0 MB, and there are [\d.]+ MB free in .*\. Free"
    ):
        save("cat")


def test_a_full_disk_is_told_where_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch):
    def gone(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    fail_at("fsync", full(), monkeypatch)
    save_file = saved_files.save_file

    def fill(*what: object) -> None:
        save_file(*what)
        monkeypatch.setattr(saved_files.shutil, "disk_usage", gone)

    monkeypatch.setattr(saved_files, "save_file", fill)
    with pytest.raises(StorageError, match=r"it needs 1\.0 MB in .*loras\. Free some space"):
        save("cat")


def test_the_host_puts_the_time_into_a_name(loras: Path, monkeypatch: pytest.MonkeyPatch):
    now = time.struct_time((2031, 2, 3, 4, 5, 6, 0, 34, 0))
    monkeypatch.setattr(time, "localtime", lambda *_: now)
    assert dated_name("%year%-%month%/cat %hour%%minute%") == "2031-02/cat 0405"
    assert dated_name(" styles/100% cat.safetensors") == "styles/100% cat"
    assert dated_name("cat") == "cat"
    through_link = loras / ".." / loras.name  # as an entry in extra_model_paths may be spelled
    paths = ([f"{through_link}/"], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", paths)
    assert dated_name("%day%/cat") == "03/cat"
