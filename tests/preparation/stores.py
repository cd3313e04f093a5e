"""Flags for small recordings, and what a folder holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# At 80 x 60 a pixel covers 4 cm: the distances grow with it.
FLAGS: dict[str, Any] = {"size": "40x30", "distance": 0.05, "voxel": 0.05, "processes": 1}


def files(root: Path) -> dict[str, bytes]:
    """Every file's bytes, without the seconds that a run took."""
    content = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: re.sub(rb'"seconds": [\d.]+', b"", data) for name, data in content.items()}


def stamps(root: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in root.rglob("*")}
