"""On what the figures were made, in a line."""

from __future__ import annotations

import platform
from datetime import date
from pathlib import Path

import torch

from pri3d.machine import bf16_units, cores


def describe_machine() -> str:
    """Processor or GPU, threads, versions and date."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    threads = torch.get_num_threads()
    parts = [where, f"{threads} thread{'s' * (threads > 1)}", f"PyTorch {torch.__version__}", date.today().isoformat()]
    return f"Machine: {', '.join(parts)}."


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = found[0].replace("(R)", "") if found else platform.machine()
    return f"{cores()} cores of {name}" + (" with bf16 instructions" if bf16_units() else "")
