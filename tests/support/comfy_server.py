"""A real ComfyUI in its own process, spoken to over HTTP."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from email.message import Message
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

STARTER = Path(__file__).with_name("start_comfyui.py")
READY_WITHIN_SECONDS = 300
ANSWER_WITHIN_SECONDS = 60
STOP_WITHIN_SECONDS = 15


class ServerStoppedError(RuntimeError):
    """ComfyUI ended by itself, or never answered."""


class PromptRejectedError(RuntimeError):
    """ComfyUI refused to queue a prompt; `node_errors` says why, node by node."""

    def __init__(self, status: int, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer, indent=2))
        self.status = status
        self.error: dict[str, Any] = answer.get("error", {})
        self.node_errors: dict[str, Any] = answer.get("node_errors", {})


class PromptFailedError(RuntimeError):
    """A node raised an error while the prompt ran."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.node_id: str = message["node_id"]
        self.node_type: str = message["node_type"]
        self.exception_type: str = message["exception_type"]
        self.exception_message: str = message["exception_message"]
        self.traceback: str = "".join(message["traceback"])
        super().__init__(
            f"{self.exception_type} in {self.node_id}: {self.exception_message}\n{self.traceback}"
        )


class PromptInterruptedError(RuntimeError):
    """The prompt was stopped by `interrupt` before it was done."""


class ComfyServer:
    """Starts ComfyUI on a free port when entered, and ends it with all its children when left."""

    def __init__(
        self,
        comfyui: Path,
        base_directory: Path,
        *,
        arguments: Sequence[str] = (),
        cpu: bool = True,
    ) -> None:
        self.comfyui = comfyui.resolve()
        self.base_directory = base_directory.resolve()
        self.input_directory = self.base_directory / "input"
        self.output_directory = self.base_directory / "output"
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        # Only what both 0.3.75 and 0.28 understand.
        self._command = [
            *(sys.executable, str(STARTER), str(self.comfyui)),
            *("--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"),
            *("--base-directory", str(self.base_directory)),
            *("--database-url", "sqlite:///:memory:"),
            *(["--cpu"] if cpu else []),
            "--fp32-text-enc",
            *arguments,
        ]
        self._log_path = self.base_directory / "server.log"
        self._log_length_before_prompt = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ComfyServer":
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=os.name != "nt",  # so that its children can be ended with it
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queues a prompt and returns its id."""
        self._log_length_before_prompt = len(self.log())
        try:
            return self._request("POST", "/prompt", {"prompt": prompt})["prompt_id"]
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if error.code != 400:
                raise ServerStoppedError(f"POST /prompt answered {error.code}: {text}") from error
            raise PromptRejectedError(error.code, json.loads(text)) from error

    def wait(self, prompt_id: str, timeout_seconds: float = 300) -> dict[str, Any]:
        """Returns the history entry of a prompt once it has run: `outputs` and `status`."""
        deadline = time.monotonic() + timeout_seconds
        pause_seconds = 0.02
        while time.monotonic() < deadline:
            entry = self._request("GET", f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                _raise_if_unfinished(entry)
                return entry
            time.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, 0.25)
        raise TimeoutError(
            f"Prompt {prompt_id} was not done after {timeout_seconds} s. {self._log_tail()}"
        )

    def run(self, prompt: dict[str, Any], timeout_seconds: float = 300) -> dict[str, Any]:
        """Queues a prompt, waits for it, and returns its history entry."""
        return self.wait(self.queue(prompt), timeout_seconds)

    def wait_until_step(self, step: int = 1, timeout_seconds: float = 60) -> None:
        """Waits until the sampler of the prompt queued last has done so many steps or more."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            printed = self.log()[self._log_length_before_prompt :]
            # The sampler's progress bar: "  3%|...| 3/100 [00:01<...".
            if any(int(done) >= step for done in re.findall(r"\| (\d+)/\d+ \[", printed)):
                return
            time.sleep(0.05)
        raise TimeoutError(f"No step {step} after {timeout_seconds} s. {self._log_tail()}")

    def interrupt(self) -> None:
        """Stops the prompt that runs now, at its next step."""
        self._request("POST", "/interrupt", {})

    def free(self) -> None:
        """Makes ComfyUI unload all models and forget all results, before its next prompt."""
        self._request("POST", "/free", {"unload_models": True, "free_memory": True})

    def object_info(self, node: str) -> dict[str, Any]:
        """Returns what ComfyUI tells its front end about a node class."""
        return self._request("GET", f"/object_info/{node}")[node]

    def get(self, route: str) -> tuple[int, Any]:
        """Returns the status and the JSON that a route answers with, also when it refuses."""
        try:
            return 200, self._request("GET", route)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def send(
        self,
        method: Literal["POST", "DELETE", "OPTIONS"],
        route: str,
        content: bytes | None = None,
        **headers: str,
    ) -> tuple[int, bytes, Message]:
        """Returns status, content and headers that a route answers with; JSON is sent by default.

        Args:
            headers: With `_` for `-` in their names.
        """
        named = {"Content-Type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            self.url + route, data=content, headers=named, method=method
        )
        try:
            with _OPENER.open(request, timeout=ANSWER_WITHIN_SECONDS) as response:
                return response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def log(self) -> str:
        """Returns everything that the server has printed."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while time.monotonic() < deadline:
            try:
                self._request("GET", "/system_stats")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
            else:
                return
        raise ServerStoppedError(
            f"ComfyUI did not answer within {READY_WITHIN_SECONDS} s. {self._log_tail()}"
        )

    def _request(
        self, method: Literal["GET", "POST"], route: str, body: dict[str, Any] | None = None
    ) -> Any:
        if self._process is None or self._process.poll() is not None:
            raise ServerStoppedError(f"ComfyUI does not run (any more). {self._log_tail()}")
        request = urllib.request.Request(
            self.url + route,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with _OPENER.open(request, timeout=ANSWER_WITHIN_SECONDS) as response:
            text = response.read()
        return json.loads(text) if text else None

    def _log_tail(self) -> str:
        if not self._log_path.exists():
            return "It has printed nothing."
        return "The last it printed:\n" + "\n".join(self.log().splitlines()[-30:])

    def kill(self) -> None:
        """Ends ComfyUI at once, as a crash would."""
        self._stop(at_once=True)

    def _stop(self, *, at_once: bool = False) -> None:
        process = self._process
        if process is None:
            return
        self._process = None
        if os.name == "nt":
            end_tree = ["taskkill", "/PID", str(process.pid), "/T", "/F"]
            subprocess.run(end_tree, check=False, capture_output=True)
            process.wait(STOP_WITHIN_SECONDS)
            return
        _signal_group(process, signal.SIGKILL if at_once else signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait(STOP_WITHIN_SECONDS)


# A proxy named in the environment must not come between us and our own machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _raise_if_unfinished(entry: dict[str, Any]) -> None:
    for name, message in entry["status"]["messages"]:
        if name == "execution_error":
            raise PromptFailedError(message)
        if name == "execution_interrupted":
            raise PromptInterruptedError(f"interrupted in {message['node_id']}")


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, number)
