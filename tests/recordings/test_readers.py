"""The built-in readers against the contract, and what is their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reader_contract import FilesContract
from sample_frames import HEIGHT, WIDTH, rendered
from samples import write_folder, write_rooms, write_sevenscenes

from pri3d.api.rooms import rooms
from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.recordings import detect, open_recording
from pri3d.testing.reader import check_frame
from pri3d.worlds.room import CLASS_NAMES


class TestRooms(FilesContract):
    name = "rooms"

    def test_labels_instances_mesh_and_names(self, samples) -> None:
        recording = self.open(samples["rooms"].root)
        assert tuple(recording.class_names) == CLASS_NAMES
        frame, truth = recording.scenes()[0].frame(1), rendered()[1]
        assert np.array_equal(frame.label, truth.label)
        assert np.array_equal(frame.instance, truth.instance)
        assert recording.scenes()[0].mesh().name == "mesh.ply"

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"class_names": 3}', '{"class_names": [1]}', "\xff"])
    def test_damaged_rooms_json(self, sample, text: str) -> None:
        (sample.root / "rooms.json").write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match=r"rooms\.json"):
            self.open(sample.root)

    def test_no_finished_room(self, sample) -> None:
        for scene in sample.root.glob("room-*"):
            scene.rename(scene.with_name(f".{scene.name}.part"))
        with pytest.raises(DataError, match="no scene"):
            self.open(sample.root).scenes()


class TestFolder(FilesContract):
    name = "folder"

    def test_single_scene_takes_the_folders_name(self, sample) -> None:
        odd = sample.root.rename(sample.root.with_name("my room (1)"))
        assert [scene.id for scene in self.open(odd).scenes()] == ["my_room__1_"]

    def test_without_cameras(self, sample) -> None:
        (sample.root / "cameras.yaml").unlink()
        with pytest.raises(DataError, match="cameras"):
            self.open(sample.root)

    def test_cameras_of_the_recording_serve_every_scene(self, tmp_path: Path) -> None:
        root = write_rooms(tmp_path / "r").root
        (root / "rooms.json").unlink()
        (root / "room-0000" / "cameras.yaml").rename(root / "cameras.yaml")
        own = (root / "room-0001" / "cameras.yaml").read_text()
        first, second = open_recording(root).scenes()
        assert first.frame(0).color_camera == pytest.approx(rendered()[0].color_camera)
        assert f"fx: {second.frame(0).color_camera.fx}" in own

    def test_numbers_without_padding_come_in_time_order(self, sample) -> None:
        for part in ("color", "depth", "pose", "label", "instance"):
            files = {path.stem: path for path in (sample.root / part).iterdir()}
            for old, new in (("000000", "2"), ("000001", "9"), ("000002", "10")):
                files[old].rename(files[old].with_stem(new))
        scene = self.open(sample.root).scenes()[0]
        assert scene.names == ["02", "09", "10"]
        np.testing.assert_allclose(scene.frame(2).world_from_camera, rendered()[2].world_from_camera, atol=1e-8)
        assert scene.frame(2).label is not None

    def test_labels_are_optional_but_must_fit(self, sample) -> None:
        label = sample.root / "label" / "000000.png"
        Image.fromarray(np.full((HEIGHT, WIDTH), len(CLASS_NAMES), np.uint8)).save(label)
        with pytest.raises(FrameError, match=f"class id {len(CLASS_NAMES)}"):
            self.open(sample.root).scenes()[0].frame(0)
        Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(label)
        assert (self.open(sample.root).scenes()[0].frame(0).label == 255).all()
        Image.fromarray(np.zeros((HEIGHT, WIDTH + 1), np.uint8)).save(label)
        with pytest.raises(FrameError, match=f"{WIDTH + 1}x{HEIGHT}"):
            self.open(sample.root).scenes()[0].frame(0)
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(label)
        with pytest.raises(FrameError, match="colours"):
            self.open(sample.root).scenes()[0].frame(0)
        label.unlink()
        (sample.root / "instance" / "000000.png").unlink()
        frame = self.open(sample.root).scenes()[0].frame(0)
        assert frame.label is None
        assert frame.instance is None

    def test_class_names(self, sample) -> None:
        (sample.root / "classes.txt").unlink()
        assert self.open(sample.root).class_names is None
        yaml = sample.root / "classes.yaml"
        yaml.write_text("{1: floor, 0: wall}")
        assert self.open(sample.root).class_names == ["wall", "floor"]
        for wrong in ("{1: wall, 2: floor}", "3", "[1, 2]", "[", "{}", "{true: wall}"):
            yaml.write_text(wrong)
            with pytest.raises(DataError, match=r"classes|class names"):
                self.open(sample.root)

    def test_two_images_of_one_frame(self, sample) -> None:
        shutil.copy(sample.color, sample.color.with_suffix(".png"))
        with pytest.raises(DataError, match="two colour images"):
            self.open(sample.root).scenes()

    def test_empty_scene(self, sample) -> None:
        for path in (sample.root / "color").iterdir():
            path.unlink()
        with pytest.raises(DataError, match="no frame"):
            self.open(sample.root).scenes()

    def test_files_of_another_kind_are_named(self, sample) -> None:
        depth, color = sample.depth, sample.color
        depth.rename(depth.with_suffix(".pfm"))
        wanted = rf"{depth.name}: no such file\. {depth.stem}\.pfm is there, but"
        with pytest.raises(FrameError, match=wanted):
            self.open(sample.root).scenes()[0].frame(0)
        for image in list(color.parent.iterdir()):
            image.rename(image.with_suffix(".heic"))
        with pytest.raises(
            DataError, match=r"color: holds \d+ \.heic; colour is read from \.jpg, \.jpeg, \.png, \.webp"
        ):
            self.open(sample.root).scenes()

    def test_webp_colour_is_read(self, sample) -> None:
        before = self.open(sample.root).scenes()[0].frame(0).color
        for image in list(sample.color.parent.iterdir()):
            Image.open(image).save(image.with_suffix(".webp"), lossless=True)
            image.unlink()
        np.testing.assert_array_equal(self.open(sample.root).scenes()[0].frame(0).color, before)

    def test_sixteen_bit_colour_is_refused(self, sample) -> None:
        sample.color.unlink()
        shutil.copy(sample.depth, sample.color.with_suffix(".png"))
        with pytest.raises(FrameError, match="is it the depth"):
            self.open(sample.root).scenes()[0].frame(0)


class TestSevenScenes(FilesContract):
    name = "sevenscenes"

    @pytest.mark.parametrize("layout", ["flat", "scene"])
    def test_other_layouts(self, sample, layout: str) -> None:
        if layout == "flat":
            folder = sample.root / "seq-01"
            shutil.copy(sample.root / "camera-intrinsics.txt", folder)
            recording, wanted = self.open(folder), "seq-01"
        else:
            (sample.root / "chess").mkdir()
            (sample.root / "seq-01").rename(sample.root / "chess" / "seq-01")
            recording, wanted = self.open(sample.root), "chess-seq-01"
        scene = recording.scenes()[0]
        assert scene.id == wanted
        np.testing.assert_allclose(scene.frame(0).color_camera, rendered()[0].color_camera, atol=1e-6)

    def test_the_formats_own_camera(self, sample) -> None:
        (sample.root / "camera-intrinsics.txt").unlink()
        Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(sample.color)
        with pytest.raises(FrameError, match=f"{WIDTH}x{HEIGHT}.*640x480"):
            self.open(sample.root).scenes()[0].frame(0)
        Image.fromarray(np.zeros((480, 640), np.uint16)).save(sample.depth)
        frame = self.open(sample.root).scenes()[0].frame(0)
        assert frame.color_camera == frame.depth_camera == (640, 480, 585, 585, 320.5, 240.5)

    @pytest.mark.parametrize("text", ["", "1 2 3", "0 0 1 0 0 1 0 0 1", "a b c d e f g h i"])
    def test_damaged_intrinsics(self, sample, text: str) -> None:
        (sample.root / "camera-intrinsics.txt").write_text(text)
        with pytest.raises(ConfigError, match="camera-intrinsics"):
            self.open(sample.root)

    def test_real_recording(self, real_data: Path) -> None:
        scene = open_recording(real_data / "7scenes_redkitchen").scenes()[0]
        assert scene.id == "7scenes_redkitchen"
        assert len(scene.names) == 250
        frame = scene.frame(100)
        check_frame(frame)
        assert frame.color_camera == pytest.approx((640, 480, 517.725, 517.725, 320.5, 237.5))
        assert 0.5 < np.median(frame.depth[frame.depth > 0]) < 5

    def test_real_recording_with_two_cameras(self, real_data: Path, tmp_path: Path) -> None:
        """Depth edges, projected by the stated cameras, lie on colour edges; by the identity they do not."""
        folder = real_data / "7scenes_redkitchen_unregistered"
        stated = tmp_path / "cameras.yaml"
        stated.write_text(
            "color: {fx: 517.7, fy: 517.7, cx: 320.5, cy: 237.5}\ndepth: {fx: 585, fy: 585, cx: 320.5, cy: 240.5}\n"
            "color_from_depth: {translation: [-0.0217, 0, 0]}\npose_of: depth\n"
        )
        sharpness = {}
        for cameras in (None, stated):
            scene = open_recording(folder, cameras=cameras).scenes()[0]
            sharpness[cameras] = np.mean([_gradient_on_depth_edges(scene.frame(k)) for k in (5, 20, 40)])
        assert sharpness[stated] > 1.3 * sharpness[None]


def _gradient_on_depth_edges(frame) -> float:
    depth, c, k = frame.depth.astype(float), frame.depth_camera, frame.color_camera
    step = np.abs(np.diff(depth, axis=1, prepend=depth[:, :1])) > 0.08
    left = np.roll(depth, 1, axis=1)
    v, u = np.nonzero(step & (depth > 0) & (left > 0))
    z = np.minimum(depth, left)[v, u]
    x, y = (u - c.cx) / c.fx * z, (v + 0.5 - c.cy) / c.fy * z
    points = np.stack((x, y, z, np.ones_like(z)), axis=1) @ frame.color_from_depth.T
    column = (points[:, 0] / points[:, 2] * k.fx + k.cx).astype(int)
    row = (points[:, 1] / points[:, 2] * k.fy + k.cy).astype(int)
    inside = (column > 1) & (column < k.width - 2) & (row >= 0) & (row < k.height)
    grey = frame.color.astype(float).mean(axis=2)
    gradient = np.abs(np.gradient(grey, axis=1))
    return float(gradient[row[inside], column[inside]].mean() / gradient.mean())


def test_pose_of_depth_moves_to_the_colour_camera(tmp_path: Path) -> None:
    sample = write_folder(tmp_path / "r")
    cameras = sample.root / "cameras.yaml"
    intrinsics = "{fx: 40, fy: 40, cx: 24, cy: 18}"
    cameras.write_text(f"color: {intrinsics}\npose_of: depth\ncolor_from_depth: {{translation: [0.1, 0.2, 0.3]}}\n")
    frame = open_recording(sample.root).scenes()[0].frame(0)
    np.testing.assert_allclose(
        frame.world_from_camera @ frame.color_from_depth, rendered()[0].world_from_camera, atol=1e-8
    )
    cameras.write_text(f"color: {intrinsics}\ncolor_from_depth: {{translation: [0.1, 0.2, 0.3]}}\n")
    frame = open_recording(sample.root).scenes()[0].frame(0)
    np.testing.assert_allclose(frame.world_from_camera, rendered()[0].world_from_camera, atol=1e-8)


def test_unknown_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.doc").touch()
    with pytest.raises(DataError, match=r"Found notes\.doc\.[^$]*rooms\.json[^$]*frame-000000"):
        open_recording(tmp_path)
    (tmp_path / "year" / "month").mkdir(parents=True)
    write_sevenscenes(tmp_path / "year" / "month" / "kitchen")
    with pytest.raises(DataError, match=r"month is a recording \(sevenscenes\): did you mean that"):
        open_recording(tmp_path / "year")


def test_no_two_readers_fit_one_sample(tmp_path: Path) -> None:
    for name, write in (("rooms", write_rooms), ("folder", write_folder), ("sevenscenes", write_sevenscenes)):
        assert detect(write(tmp_path / write.__name__).root) == [name]


def test_rooms_without_labels(tmp_path: Path) -> None:
    rooms(tmp_path / "r", rooms=1, frames=1, size="32x24", labels=False, processes=1)
    recording = open_recording(tmp_path / "r")
    assert recording.class_names is None
    assert recording.scenes()[0].frame(0).label is None
    assert json.loads((tmp_path / "r" / "rooms.json").read_text())["class_names"] is None
