"""What the machine offers this process."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def cores() -> int:
    """Count the cores this process may use; a container or a job often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_has_bf16() -> bool:
    """Tell whether the processor multiplies bf16; PyTorch emulates it slowly elsewhere."""
    info = Path("/proc/cpuinfo")
    if platform.machine() not in {"x86_64", "AMD64"} or not info.exists():
        return False
    text = info.read_text(encoding="utf-8", errors="replace")
    return "avx512_bf16" in text or "amx_bf16" in text


def limit_spinning() -> None:
    """Let waiting threads spin only briefly, unless the environment says otherwise; before PyTorch is imported.

    Threads that spin for long make a busy machine ten times slower, and ones that sleep at once a quiet one four
    times; a short spin costs a tenth. Processes started later inherit it.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def peak_memory() -> float:
    """Return the most memory this process ever held, in MB: of the GPU where PyTorch uses one, else of the machine.

    0 on Windows, which does not say.
    """
    import torch  # noqa: PLC0415 (the command line asks this module for cores before it needs PyTorch)

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "win32":
        return 0.0
    import resource  # noqa: PLC0415 (absent on Windows)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
