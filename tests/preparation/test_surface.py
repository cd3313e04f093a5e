"""Meshes of a recording that are damaged or hostile: refused in one line, whatever they name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pri3d.errors import DataError
from pri3d.preparation.pipeline import scene_surface


class NoFrames:
    """The mesh is looked at before any frame."""

    stack: Any = None


def write_ply(path: Path, face: str, comment: str = "") -> Path:
    header = f"ply\nformat ascii 1.0\n{comment}element vertex 3\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    path.write_text(f"{header}0 0 0\n1 0 0\n0 1 0\n3 {face}\n")
    return path


@pytest.mark.parametrize("face", ["0 1 99999999", "0 1 -5", "0 1 3"])
def test_triangles_of_corners_that_are_not_there(tmp_path: Path, face: str) -> None:
    with pytest.raises(DataError, match=r"mesh\.ply: its triangles name corners -?\d+ to \d+ of 3: it is damaged"):
        scene_surface(write_ply(tmp_path / "mesh.ply", face), NoFrames(), 0.1)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system here")
def test_a_texture_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    mesh = write_ply(tmp_path / "mesh.ply", "0 1 99999999", "comment TextureFile fifo\n")
    with pytest.raises(DataError, match="corners"):
        scene_surface(mesh, NoFrames(), 0.1)  # type: ignore[arg-type]
