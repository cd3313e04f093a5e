"""Which camera is taken: what states one anywhere near goes before a default, and a default is said."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from samples import write_sevenscenes
from samples_desk import write_open3d, write_tum

from pri3d.api.prepare import prepare
from pri3d.files.kinds import is_id
from pri3d.recordings import Scene, open_recording
from pri3d.recordings._shared.text import clean_id
from pri3d.store import Store


def tum(folder: Path, bag: str | None, listed: str = "rgb.txt") -> Scene:
    """A sequence without calibration.txt whose list names the bag in its second line, as the benchmark's do."""
    write_tum(folder.parent, folder.name)
    (folder / "calibration.txt").unlink()
    if bag is not None:
        lines = (folder / listed).read_text().splitlines()[1:]
        head = ["# color images", f"# file: '{bag}'", "# timestamp filename"]
        (folder / listed).write_text("\n".join(head + lines) + "\n")
    return open_recording(folder).scenes()[0]


@pytest.mark.parametrize("listed", ["rgb.txt", "depth.txt", "groundtruth.txt"])
@pytest.mark.parametrize(("kinect", "fx"), [(1, 517.3), (2, 520.9), (3, 535.4)])
def test_the_bag_that_a_list_names_says_which_kinect(tmp_path: Path, kinect: int, fx: float, listed: str) -> None:
    scene = tum(tmp_path / "data", f"rgbd_dataset_freiburg{kinect}_xyz.bag", listed)
    assert scene.assumed == ""
    cameras = scene._opened._cameras
    assert cameras.color.fx == fx
    assert (cameras.color.lens is None) == (kinect == 3)


def test_the_lists_go_before_the_folder_s_name(tmp_path: Path) -> None:
    scene = tum(tmp_path / "my_freiburg3_copy", "rgbd_dataset_freiburg1_desk.bag")
    assert scene._opened._cameras.color.fx == 517.3


def test_a_kinect_that_nothing_names_is_assumed_and_said(tmp_path: Path) -> None:
    scene = tum(tmp_path / "data", None)
    assert scene._opened._cameras.color.fx == 525
    assert "ROS's default of a Kinect" in scene.assumed
    (tmp_path / "cameras.yaml").write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\n")
    (again,) = open_recording(tmp_path / "data").scenes()  # a scene alone: the folder above is the recording
    assert (again.assumed, again.frame(0).color_camera.fx) == ("", 40)


def test_intrinsics_above_a_sequence_that_is_given_alone(tmp_path: Path) -> None:
    """As in 3DMatch: SCENE/camera-intrinsics.txt and SCENE/seq-01."""
    root = write_sevenscenes(tmp_path / "scene").root
    expected = open_recording(root).scenes()[0].frame(0).color_camera
    (alone,) = open_recording(root / "seq-01").scenes()
    assert alone.frame(0).color_camera == expected
    assert alone.assumed == ""
    flags = {"size": "48x36", "pairs": False, "surface": False, "processes": 1}
    prepare([root / "seq-01"], tmp_path / "out", **flags)
    record = Store(tmp_path / "out").manifest["scenes"]["seq-01"]
    assert list(record["cameras"]) == ["../camera-intrinsics.txt"]
    (root / "camera-intrinsics.txt").unlink()
    assert "f = 585" in open_recording(root / "seq-01").scenes()[0].assumed


def test_a_default_is_said_by_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_open3d(tmp_path / "desk").root
    assert open_recording(root).scenes()[0].assumed == ""
    (root / "camera_intrinsic.json").unlink()
    assert "Redwood" in open_recording(root).scenes()[0].assumed
    sevenscenes = write_sevenscenes(tmp_path / "seven").root
    (sevenscenes / "camera-intrinsics.txt").unlink()
    for path in sevenscenes.rglob("*.png"):
        with Image.open(path) as image:
            larger = image.resize((640, 480), Image.Resampling.NEAREST)
        larger.save(path)
    prepare([sevenscenes], tmp_path / "out", size="48x36", pairs=False, surface=False, processes=1)
    said = capsys.readouterr().err
    assert "seq-01: no camera-intrinsics.txt or cameras.yaml states its camera: f = 585" in said


IDS = {
    "scene0000_00": "scene0000_00",
    "my room (1)": "my_room__1_",
    "客厅": "客厅",
    "リビング 2": "リビング_2",
    "кухня": "кухня",
    "Küche": "Küche",
    unicodedata.normalize("NFD", "Köln"): "Köln",
    "हिन्दी": "हिन्दी",
    ".hidden": "hidden",
}


def test_ids_keep_the_letters_of_every_script() -> None:
    for name, wanted in IDS.items():
        assert clean_id(name) == wanted
        assert is_id(clean_id(name))


def test_ids_stay_distinct_where_letters_are_lost() -> None:
    lost = ["房间①🙂", "房间①🙃", "🙂", "🙃", "kitchen→", "kitchen←"]
    ids = [clean_id(name) for name in lost]
    assert len(set(ids)) == len(lost)
    assert all(is_id(each) for each in ids)
    assert ids == [clean_id(name) for name in lost]
    assert clean_id("kitchen→").startswith("kitchen_-")


def test_a_scene_behind_a_link_has_the_link_s_name(tmp_path: Path) -> None:
    """Two links to folders of one name, and a folder of another script, go into one store and stay there."""
    for place in ("monday", "tuesday"):
        write_tum(tmp_path / place, "seq-01")
    recording = tmp_path / "recording"
    recording.mkdir()
    for name, place in (("кухня", "monday"), ("客厅", "tuesday")):
        (recording / name).symlink_to(tmp_path / place / "seq-01", target_is_directory=True)
    (tmp_path / "link").symlink_to(recording, target_is_directory=True)
    flags = {"size": "48x36", "pairs": False, "surface": False, "processes": 1}
    prepare([tmp_path / "link"], tmp_path / "out", **flags)
    store = Store(tmp_path / "out")
    assert sorted(store.scenes) == sorted(["кухня", "客厅"])
    assert store.scene("客厅").view(0).color.shape == (36, 48, 3)
    prepare([tmp_path / "link"], tmp_path / "out", **flags)  # nothing to do: the source is the same
    alone = tmp_path / "alone"
    alone.symlink_to(tmp_path / "monday" / "seq-01", target_is_directory=True)
    assert [scene.id for scene in open_recording(alone).scenes()] == ["alone"]
    here = Path.cwd()
    try:
        os.chdir(recording / "кухня")
        (scene,) = open_recording(Path()).scenes()
        assert scene.id == "seq-01"  # the system says where we are without the link
    finally:
        os.chdir(here)
