"""The studies of real data on a few small files of their layouts: ScanNet's scans and frames, NYUv2's .mat."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pri3d.api.reproduce import reproduce
from pri3d.recordings.scannet import official_split
from pri3d.reproduction import matrix

TESTS = Path(__file__).parents[1]
LITTLE = {"steps": 2, "batch": 2, "micro_batch": 2}
STUDY: dict[str, Any] = {
    "seeds": [0],
    "without": ["imagenet", "moco", "moco-combine", "moco-mixed", "trivial", "depth", "geo", "view+geo"],
    "prepare": {"size": "64x48", "frame_step": 1, "distance": 0.1, "voxel": 0.08, "min_overlap": 0.1},
    "pretrain": {**LITTLE, "init": "scratch", "size": "64x48", "points": 16, "holdout": 0.0, "eval_every": 0},
    "semantic": {**LITTLE, "part": "encoder", "size": "64x48", "eval_every": 2},
    "instance": {**LITTLE, "eval_every": 2, "min_area": 1, "short_side": 48, "long_side": 96},
}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Option -> folder of real data in small; the small studies of real data are made smaller."""
    monkeypatch.syspath_prepend(str(TESTS / "recordings"))
    monkeypatch.syspath_prepend(str(TESTS / "labelled"))
    import_module("samples").write_scannet_sens(tmp_path / "scannet")
    split = official_split()
    for part in ("train", "val"):
        scan = next(name for name, of in split.items() if of == part)
        import_module("test_scannet_images").write_scan(tmp_path / "frames", scan, 3, (64, 48))
    import_module("test_nyuv2").write_mat(tmp_path / "nyu.mat")
    shipped = matrix.stated("studies")
    studies = {on: {"small": {**shipped[on]["small"], **STUDY}} for on in ("scannet", "nyuv2")}
    shown = {**matrix.stated("experiments")["figure4"], "rows": {"Pri3D (View)": {"start": "view"}}}
    experiments = {**matrix.stated("experiments"), "figure4": shown}
    monkeypatch.setattr(matrix, "stated", lambda name: studies if name == "studies" else experiments)
    return {"scannet": tmp_path / "scannet", "scannet_frames": tmp_path / "frames", "nyuv2": tmp_path / "nyu.mat"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "on"), [("table1", "scannet"), ("table5", "nyuv2")])
def test_tables_on_real_layouts(folders: dict[str, Path], tmp_path: Path, name: str, on: str) -> None:
    page = reproduce(name, on=on, out=tmp_path / "out", **folders).path  # type: ignore[arg-type]
    text = page.read_text()
    assert f"on {on}" in text
    for row in ("Scratch", "Pri3D (View)"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} | "))
        assert line.split(" | ")[1] != "–"
    assert (tmp_path / "out/prepared/pretrain/dataset.json").is_file()
    log = tmp_path / f"out/runs/semantic-{'labelled' if on == 'scannet' else 'other'}-resnet18/view-seed0/log.txt"
    assert "step 2/2" in log.read_text()
    picture = reproduce("figure4" if on == "scannet" else "figure3", on=on, out=tmp_path / "out", **folders).path  # type: ignore[arg-type]
    assert picture.read_bytes().startswith(b"\x89PNG")
