"""Results of training: their names, that they are whole, and that everyone can load them."""

import errno
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.lora
import folder_paths
import pytest
import torch
from comfy import sdxl_clip
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from anyadapter.algorithms.adapters import Adapter, by_name
from anyadapter.algorithms.adapters.base import InitialConfig
from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.families import FAMILIES
from anyadapter.algorithms.formats.hashes import with_hashes
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet
from anyadapter.algorithms.formats.read import read_header
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.algorithms.training.rules import RuleTable
from anyadapter.algorithms.training.run_metadata import OptimizationFacts, RunFacts, metadata_of
from anyadapter.algorithms.training.targets import Targets
from anyadapter.nodes.host.files import adapter_names, load_adapter
from anyadapter.nodes.host.keymaps import diffusion_model_key_map, text_encoder_key_map
from anyadapter.nodes.host.trained_files import (
    checked_name,
    checkpoint_name,
    free_name,
    output_path,
    read_state,
    release,
    state_folder,
    write_adapter,
    write_state,
)
from anyadapter.nodes.host.training_targets import clip_targets, model_targets
from real_models import as_clip, as_model, real_model

SUPPORT = Path(__file__).parents[1] / "support"
TENSORS = {"a.lora_up.weight": torch.ones(4, 2), "a.alpha": torch.tensor(2.0)}
STATE = {
    "step": torch.tensor(7),
    "moments": torch.arange(6.0).reshape(2, 3).bfloat16(),
    "empty": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
}


@pytest.fixture(autouse=True)
def loras(loras: Path) -> Path:
    """The first of the two LoRA folders of the host."""
    more = loras.with_name("more")
    more.mkdir()
    folder_paths.add_model_folder_path("loras", str(more))
    return loras


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        (" cat.safetensors ", "cat"),
        ("styles/big cat v1.5", "styles/big cat v1.5"),
        ("styles\\cat", "styles/cat"),
        ("猫", "猫"),
    ],
)
def test_names_are_used_as_they_are_written(name: str, expected: str):
    assert checked_name(name) == expected


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "a part of it is empty"),
        (".safetensors", "a part of it is empty"),
        ("styles//cat", "a part of it is empty"),
        ("/cat", "a part of it is empty"),
        ("styles/", "a part of it is empty"),
        ("../cat", "begins with a dot"),
        ("styles/../../cat", "begins with a dot"),
        (".cat", "begins with a dot"),
        ("cat.", "ends with a dot"),
        ("C:\\cat", "no name has ':' on Windows"),
        ("cat?", "no name has '?' on Windows"),
        ("a\tb", "on Windows"),
        ("styles/aux", "aux is a device on Windows"),
        ("COM1.v2", "is a device on Windows"),
        ("x" * 201, "longer than 200 bytes"),
    ],
)
def test_names_that_lead_away_or_are_none_somewhere_are_refused(name: str, why: str):
    with pytest.raises(TrainingError, match=re.escape(why)):
        checked_name(name)


def test_a_name_that_is_taken_gets_a_number(loras: Path):
    assert [free_name("styles/cat") for _ in range(3)] == [
        "styles/cat",
        "styles/cat_2",
        "styles/cat_3",
    ]
    write_adapter(output_path("dog"), TENSORS, {})
    save_file(TENSORS, loras.parent / "more" / "dog_2.safetensors")
    write_adapter(output_path(checkpoint_name("dog_3", 500)), TENSORS, {})
    assert (loras / "dog_3-step00000500.safetensors").is_file()
    assert free_name("dog") == "dog_4"


def test_a_name_is_free_again_when_nothing_was_written():
    release(free_name("cat"))
    assert free_name("cat") == "cat"
    write_state("cat", STATE, "{}")
    release("cat")
    assert free_name("cat") == "cat_2"


PROCESS = """
import os, sys
sys.path[:0] = [{support!r}, {comfyui!r}]
import pack
from start_comfyui import declare_missing_torchvision_ops
declare_missing_torchvision_ops()
from comfy.cli_args import args
args.cpu = True
import utils.extra_config
import folder_paths
folder_paths.folder_names_and_paths["loras"] = ([{folder!r}], {{".safetensors"}})
import torch
from anyadapter.nodes.host.trained_files import free_name, read_state, write_state
"""


def start(comfyui: Path, folder: Path, script: str) -> subprocess.Popen[str]:
    """Starts Python that has a LoRA folder, and talks to it."""
    head = PROCESS.format(support=str(SUPPORT), comfyui=str(comfyui), folder=str(folder))
    command = [sys.executable, "-c", head + textwrap.dedent(script)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


RACE = """
    print("ready", flush=True)
    input()
    print(*[free_name("cat") for _ in range(20)])
"""


def test_no_two_processes_get_the_same_name(loras: Path, comfyui: Path):
    racer = start(comfyui, loras, RACE)
    assert racer.stdout is not None
    assert racer.stdin is not None
    assert racer.stdout.readline() == "ready\n"
    racer.stdin.write("\n")
    racer.stdin.flush()
    names = [free_name("cat") for _ in range(20)]
    names += racer.communicate()[0].split()
    assert set(names) == {"cat", *(f"cat_{number}" for number in range(2, 41))}
    assert len(names) == 40


def test_the_host_lists_a_new_adapter_at_once(loras: Path):
    (loras / "styles").mkdir()
    times = loras.stat(), (loras / "styles").stat()
    assert adapter_names() == []
    write_adapter(output_path("styles/cat"), TENSORS, {"ss_steps": "1"})
    write_state("styles/cat", STATE, "{}")
    for path, time in zip((loras, loras / "styles"), times, strict=True):
        os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))  # as on a disk with coarse times
    assert adapter_names() == ["styles/cat.safetensors"]


def test_an_adapter_is_stored_as_it_is_with_its_metadata():
    whole = torch.arange(12.0).reshape(4, 3)
    tensors = {"a": whole[:2], "b": whole, "c": whole, "d": whole.T, "e": torch.zeros(0)}
    write_adapter(output_path("cat"), {**tensors, "p": torch.nn.Parameter(whole)}, {"ss_v2": "x"})
    read = load_file(output_path("cat"))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read_header(output_path("cat")).metadata == {"format": "pt", "ss_v2": "x"}


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def not_allowed() -> OSError:
    return PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (full, r"cat\.safetensors could not be written: it needs 1\.0 MB, and there are [\d.]+ MB"),
        (not_allowed, r"cat\.safetensors could not be written to .*Close what has the file open"),
    ],
)
def test_what_fails_while_it_is_written_leaves_the_old_file_and_no_other(
    loras: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[[], OSError],
    message: str,
):
    write_adapter(output_path("cat"), TENSORS, {})
    before = output_path("cat").read_bytes()

    def fail(_: int) -> None:
        raise failure()

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TrainingError, match=message):
        write_adapter(output_path("cat"), {"b": torch.zeros(9)}, {})
    assert output_path("cat").read_bytes() == before
    assert files(loras) == {"cat.safetensors"}


def test_a_disk_without_space_is_seen_before_anything_is_written(
    loras: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    with pytest.raises(TrainingError, match=r"it needs 5\.0 MB, and there are 2\.0 MB free in"):
        write_adapter(output_path("cat"), {"a": torch.zeros(1_000_000)}, {})
    assert files(loras) == set()


def test_a_host_without_a_folder_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([], {".safetensors"}))
    with pytest.raises(TrainingError, match="no folder for LoRA files"):
        output_path("cat")


def test_a_file_in_place_of_a_folder_is_an_error(loras: Path):
    (loras / "styles").write_text("")
    (loras / "cat-state").write_text("")
    with pytest.raises(TrainingError, match="styles is needed is a file"):
        free_name("styles/cat")
    with pytest.raises(TrainingError, match="cat-state is needed is a file"):
        free_name("cat")


def test_a_folder_that_cannot_be_made_is_an_error(loras: Path, monkeypatch: pytest.MonkeyPatch):
    (loras / "file").write_text("")
    unusable = ([str(loras / "file" / "loras")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", unusable)
    with pytest.raises(TrainingError, match="Nothing can be written to"):
        free_name("cat")


def test_a_state_comes_back_exactly():
    name = free_name("styles/cat")
    write_state(name, STATE, '{"step": 7, "words": "ünï\\n"}')
    tensors, text = read_state(name)
    assert text == '{"step": 7, "words": "ünï\\n"}'
    assert set(tensors) == set(STATE)
    for key, tensor in STATE.items():
        assert tensors[key].dtype == tensor.dtype
        assert torch.equal(tensors[key], tensor)


CRASHES = """
    for moment in ("fsync", "replace", "open"):
        write_state("cat", {"a": torch.zeros(4)}, "old")
        child = os.fork()
        if not child:
            setattr(os, moment, lambda *args, **options: os._exit(9))
            write_state("cat", {"a": torch.ones(4)}, "new")
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        tensors, text = read_state("cat")
        print(moment, died, text, int(tensors["a"].sum()))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_state_whole(comfyui: Path, loras: Path):
    output, errors = start(comfyui, loras, CRASHES).communicate()
    expected = ["fsync 9 old 0", "replace 9 old 0", "open 9 new 4"]
    assert output.splitlines() == expected, errors
    write_state("cat", {"a": torch.ones(4)}, "newer")
    assert files(loras) == {"cat-state/resume.state"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def foreign(path: Path) -> None:
    save_file(TENSORS, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "it is damaged"),
        (empty, "it is damaged"),
        (flip, "its contents are not what was written"),
        (foreign, "no state of this version"),
        (Path.unlink, "does not exist"),
    ],
)
def test_a_damaged_state_is_refused(damage: Callable[[Path], None], message: str):
    write_state("cat", {"a": torch.zeros(100)}, "{}")
    damage(state_folder("cat") / "resume.state")
    with pytest.raises(TrainingError, match=message):
        read_state("cat")


@cache
def sdxl() -> tuple[Any, Any, Targets]:
    """A diffusion model, its text encoders, and the layers of both."""
    device = torch.device("meta")
    with device:
        clip = as_clip(sdxl_clip.SDXLClipModel(device=device))
    model = as_model(real_model("sdxl"))
    return model, clip, model_targets(model).joined(clip_targets(clip))  # type: ignore[arg-type]


def trained(method: str, targets: Targets) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file with a new adapter on a few layers of each kind."""
    chosen = RuleTable.parse("IN04, IN03, L00, G31: on\nALL: off").followed_by(
        RuleTable.of_preset("C3Lier")
    )
    generator = Generator()
    adapters = {
        one.layer.name: (_initial(method, one.layer.layer, generator),)
        for one in chosen.on(targets).chosen
    }
    run = RunFacts(
        family=next(family for family in FAMILIES if family.name == "SDXL"),
        prediction="eps",
        network_module="networks.lora" if method == "LoRA" else "lycoris.kohya",
        network_dim=4,
        network_alpha=2.0,
        optimization=OptimizationFacts(learning_rate=1e-4),
        output_name="cat",
        session_id=1,
        training_started_at=0.0,
        training_finished_at=1.0,
        steps=1,
        epoch=0,
    )
    tensors, strings = to_tensors(AdapterSet("cat", adapters, AdapterMetadata(metadata_of(run))))
    return tensors, with_hashes(strings, tensors)


def _initial(method: str, layer: Any, generator: Generator) -> Adapter:
    return by_name(method).initial(layer, InitialConfig(4, 2.0), generator)


@pytest.mark.parametrize("method", ["LoRA", "LoHa", "LoKr"])
def test_the_host_and_the_pack_load_what_was_trained(method: str):
    model, clip, targets = sdxl()
    tensors, metadata = trained(method, targets)
    write_adapter(output_path("cat"), tensors, metadata)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    by_name_of = {layer.name: layer.target.weight for layer in targets.layers}
    modules = {key.partition(".")[0] for key in tensors}
    patches = comfy.lora.load_lora(load_file(output_path("cat")), names)
    assert set(patches) == {by_name_of[module] for module in modules}
    assert len(modules) == 26 + 1 + 6 + 6

    read = load_adapter("cat.safetensors")
    assert set(read.adapters) == modules
    assert not read.unclaimed
    assert read.metadata.strings["sshs_model_hash"] == metadata["sshs_model_hash"]
    bound = [
        *bind(read, diffusion_model_key_map(model)).bound,
        *bind(read, text_encoder_key_map(clip)).bound,
    ]
    assert {item.module: item.target.weight for item in bound} == {
        module: by_name_of[module] for module in modules
    }
