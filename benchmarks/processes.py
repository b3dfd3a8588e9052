"""Runs a script of this folder in a process of its own, and reads what it found."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parents[1] / "tests" / "support"


def run(script: str, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns the JSON object in the last line that a script printed.

    Args:
        script: Its file.
        arguments: What it is given.
        environment: Variables that it gets besides those of this process.

    Raises:
        RuntimeError: It failed; the text is what it said.
    """
    command = [sys.executable, script, *arguments]
    whole = os.environ | {"PYTHONPATH": str(SUPPORT)} | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=whole)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(script).name} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])
