"""What the numbers were measured on, and how fast that is by itself."""

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch


@dataclass(frozen=True)
class Machine:
    """A machine with its software, on a day."""

    processor: str
    cores: int
    device: str
    torch: str
    comfyui: str
    day: str
    gflop_per_second: float
    """Of a float32 matrix product on the device."""
    gb_per_second: float
    """Read and written, of a copy on the device."""

    @property
    def sentence(self) -> str:
        """Returns what a table says above it."""
        return (
            f"{self.processor}, {self.cores} cores, device {self.device}, PyTorch {self.torch}, "
            f"ComfyUI {self.comfyui}, {self.day}. By itself it does {self.gflop_per_second:.0f} "
            f"GFLOP/s in a float32 matrix product and moves {self.gb_per_second:.0f} GB/s in a copy"
        )


def this_machine() -> Machine:
    """Returns the machine this runs on; measuring it takes a second or two."""
    on_gpu = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if on_gpu else None
    device = device or torch.device("cpu")
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        device=torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        torch=torch.__version__,
        comfyui=comfyui_version(Path(os.environ["COMFYUI_PATH"])),
        day=date.today().isoformat(),
        gflop_per_second=_gflop_per_second(device),
        gb_per_second=_gb_per_second(device),
    )


def comfyui_version(comfyui: Path) -> str:
    """Returns what a ComfyUI says of itself."""
    file = comfyui / "comfyui_version.py"
    text = file.read_text("utf-8") if file.exists() else ""
    found = re.search(r'__version__ = "([^"]+)"', text)
    return found[1] if found else "of unknown version"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text("utf-8") if information.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _cores() -> int:
    return os.cpu_count() or 1


def _gflop_per_second(device: torch.device) -> float:
    size = 2048
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: torch.mm(a, b), device) / 1e9


def _gb_per_second(device: torch.device) -> float:
    source = torch.zeros(1 << 26, device=device)  # 256 MB: no cache holds it
    target = torch.empty_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), device)
    return 2 * source.nbytes / seconds / 1e9


def _best_seconds(run: Callable[[], object], device: torch.device, runs: int = 7) -> float:
    """Returns the shortest of some runs: what the machine can do, not what it did meanwhile."""
    best = float("inf")
    for _ in range(runs):
        started = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
