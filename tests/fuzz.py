"""How much random input a test tries: ``PRI3D_FUZZ`` times what each change needs. Seeds are fixed either way."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("PRI3D_FUZZ", "1"))


def tries(count: int) -> int:
    """``count``, or as many more as the environment asks for; tests that call this have the mark ``fuzz``."""
    return count * TIMES
