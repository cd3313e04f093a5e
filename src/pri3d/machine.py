"""Cores, memory and number formats that this process can use."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

FEW_PRODUCTS = 200  #: products an output value sums, below which bf16 is slower without matrix units


def cores() -> int:
    """Count the cores this process may use; a container or a job often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prefers_bf16(network: nn.Module) -> bool:
    """Tell whether a network is faster in bf16 than in float32 on this machine: on its GPU, else on its processor.

    A processor without matrix units gains where an output value sums many products; converting costs more than that
    where it sums few, as in networks for phones. Forward and backward of an encoder, float32 over bf16, on an AMD EPYC
    with avx512_bf16, one thread: ResNet-18 1.6, ResNet-50 1.7, ConvNeXt-T 1.6, EfficientNet-Lite0 0.63, MobileNetV3
    0.61. The median layer of the first three sums 384 products or more, of the others 80.
    """
    import torch  # noqa: PLC0415 (the command line asks this module for cores before it needs PyTorch)
    from torch import nn  # noqa: PLC0415

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    units = bf16_units()
    if "amx_bf16" in units:
        return True
    layers = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return bool(units) and (not layers or median(weight[0].numel() for weight in layers) >= FEW_PRODUCTS)


def bf16_units() -> set[str]:
    """Instruction sets of the processor that multiply bf16; PyTorch emulates it slowly elsewhere."""
    info = Path("/proc/cpuinfo")
    if platform.machine() not in {"x86_64", "AMD64"} or not info.exists():
        return set()
    text = info.read_text(encoding="utf-8", errors="replace")
    return {name for name in ("avx512_bf16", "amx_bf16") if name in text}


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
