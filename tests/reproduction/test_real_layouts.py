"""The studies of real data on a few small files of their layouts: ScanNet's scans and frames, NYUv2's .mat."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from safetensors import safe_open

from pri3d.api.reproduce import reproduce
from pri3d.errors import DataError
from pri3d.recordings.scannet import official_split
from pri3d.reproduction import matrix
from pri3d.store import Store

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
    sens = import_module("samples").write_scannet_sens(tmp_path / "scannet").root / "scans/scene0191_00"
    shutil.copytree(sens, sens.with_name("scene0191_01"))
    (sens.with_name("scene0191_01") / "scene0191_00.sens").rename(sens.with_name("scene0191_01") / "scene0191_01.sens")
    corners = np.array([(x, y, 2.0) for x in (-1, 1) for y in (-1, 1)])
    trimesh.Trimesh(corners, [(0, 1, 2), (1, 2, 3)]).export(sens / "scene0191_00_vh_clean_2.ply")
    broken = sens.with_name("scene0119_00")
    broken.mkdir()
    (broken / "scene0119_00.sens").write_bytes((sens / "scene0191_00.sens").read_bytes()[:2000])
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
    options: dict[str, Any] = {"on": on, "out": tmp_path / "out", "max_failed": 0.5, **folders}
    page = reproduce(name, **options).path
    text = page.read_text()
    assert "1 of 3 scans of pretrain failed and are skipped: scene0119_00 (" in text
    assert "The surface of 1 of 2 scans of pretrain was fused from depth, since they have no mesh" in text
    record = Store(tmp_path / "out/prepared/pretrain").manifest["scenes"]
    assert {scene: of["surface"] for scene, of in record.items()} == {"scene0191_00": "mesh", "scene0191_01": "depth"}
    with safe_open(tmp_path / "out/runs/pretrain-resnet18/view-seed0/weights.safetensors", "pt") as file:
        assert "depth 1, mesh 1" in str(file.metadata())
    assert f"on {on}" in text
    for row in ("Scratch", "Pri3D (View)"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} | "))
        assert line.split(" | ")[1] != "–"
    assert (tmp_path / "out/prepared/pretrain/dataset.json").is_file()
    log = tmp_path / f"out/runs/semantic-{'labelled' if on == 'scannet' else 'other'}-resnet18/view-seed0/log.txt"
    assert "step 2/2" in log.read_text()
    picture = reproduce("figure4" if on == "scannet" else "figure3", **options).path
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_too_many_scans_that_fail_stop_the_work(folders: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"on": "scannet", "out": tmp_path / "out", "only": "data", **folders}
    with pytest.raises(DataError, match=r"1 of 3 scans failed, more than --max-failed 0.3 allows[^$]*scene0119_00"):
        reproduce("table1", max_failed=0.3, **options)
    assert not (tmp_path / "out/runs").exists()
