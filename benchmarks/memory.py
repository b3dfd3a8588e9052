"""Measures the memory of one competitor, in a process of its own; `compare.py` starts it.

`python memory.py WHO KIND SIZE LATENT` prints what `Memory` holds, as JSON in its last line.
"""

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import processes
import world

STATUS = Path("/proc/self/status")
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Makes the C library give memory back at once, where it would keep some for later."""
NOBODY = "no adapter"


@dataclass(frozen=True)
class Memory:
    """Bytes in use since `forget_peak`: while an adapter is put on a model and one step is run, say."""

    peak: int
    after: int
    """Afterwards, with the adapter still on the model."""
    mapped: int
    """Afterwards, of files: the system takes these back when it needs memory. 0 on a GPU."""

    @property
    def own(self) -> int:
        """The peak without what is mapped."""
        return self.peak - self.mapped


def measure_in_process(who: str, kind: str, size: world.Size, latent: int) -> Memory:
    """Returns the memory of one competitor, measured in a new process.

    Raises:
        RuntimeError: The process failed.
    """
    return Memory(**processes.run(__file__, [who, kind, size, str(latent)], EXACT))


def is_measurable() -> bool:
    """Whether this system tells the peak since a moment of choice."""
    return torch.cuda.is_available() or Path("/proc/self/clear_refs").exists()


def _measure(who: str, kind: str, size: world.Size, latent: int) -> Memory:
    import in_process  # here, as it starts a ComfyUI

    files = [world.adapter(kind, size)]
    model = in_process.load_model(size)
    in_process.sample(model, latent=latent)  # so that what a first step takes is in both figures
    in_process.forget()
    in_process.sample(model, latent=latent)
    forget_peak()
    if who == NOBODY:
        patcher = model
    elif who.startswith("ours"):
        patcher = in_process.ours(model, files, "hook" if "hook" in who else "patch")
    else:
        patcher = in_process.stock(model, files, bypass="bypass" in who)
    in_process.sample(patcher, latent=latent)
    return now()


def forget_peak() -> None:
    """Lets the peak begin anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        # Not `getrusage`: its peak is that of loading the checkpoint and cannot be reset.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def now() -> Memory:
    """Returns what is in use, and was at most since `forget_peak`."""
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        return Memory(peak, torch.cuda.memory_allocated(), 0)
    return Memory(_status("VmHWM"), _status("VmRSS"), _status("RssFile"))


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text("ascii"), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    who, kind, size, latent = sys.argv[1:]
    assert size in ("small", "large")
    with torch.inference_mode():  # as ComfyUI runs its prompts
        print(json.dumps(asdict(_measure(who, kind, size, int(latent)))))
