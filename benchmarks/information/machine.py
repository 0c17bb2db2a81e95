"""What every benchmark note states: the machine, the date, the software."""

import datetime
import os
import platform
from pathlib import Path

import torch


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def memory_gib() -> float:
    """Installed memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def header(command: str) -> list[str]:
    """Opening lines of a note."""
    cores = len(os.sched_getaffinity(0))
    return [
        f"- Hardware: {cores} cores ({cpu_model()}), {memory_gib():.0f} GiB of memory, no GPU"
        if not torch.cuda.is_available()
        else f"- Hardware: {cores} cores ({cpu_model()}), {torch.cuda.get_device_name(0)}",
        f"- Date: {datetime.date.today().isoformat()}; torch {torch.__version__}, Python {platform.python_version()}",
        f"- Load average at the start: {os.getloadavg()[0]:.1f}",
        f"- Command: `{command}`",
        "",
    ]


def reset_peak_memory() -> None:
    """Starts a new measurement of the peak resident size."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib() -> float:
    """Largest resident size since ``reset_peak_memory``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**20
    return float("nan")
