"""nerfstudio's transforms.json and instant-ngp's: keys, axes, lenses, units, and damaged lists."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reader_contract import RecordingContract
from sample_frames import HEIGHT, WIDTH, Sample, rendered
from samples_outdoor import save, write_nerfstudio

from fuzz import tries
from pri3d.errors import DataError, FrameError
from pri3d.geometry.warping import Lens, undistort_color, undistort_nearest
from pri3d.recordings import open_recording
from pri3d.testing.reader import check_frame, mutations

CAMERA = rendered()[0].color_camera


def change(sample: Sample, edit: Callable[[dict[str, Any]], object]) -> None:
    stated = json.loads(sample.pose.read_text())
    edit(stated)
    sample.pose.write_text(json.dumps(stated))


class Transforms(RecordingContract):
    name = "nerfstudio"

    def scene(self, sample: Sample):
        return self.open(sample.root).scenes()[0]

    @pytest.mark.parametrize("part", ["color", "depth"])
    def test_missing_or_cut_off_part_costs_its_frame(self, sample: Sample, part: str) -> None:
        path: Path = getattr(sample, part)
        scene = self.scene(sample)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
        with pytest.raises(FrameError, match=re.escape(str(path))):
            scene.frame(0)
        path.unlink()
        with pytest.raises(FrameError, match=re.escape(str(path.with_suffix("")))):
            scene.frame(0)
        check_frame(scene.frame(1))

    def test_is_metric(self, samples) -> None:
        assert self.scene(samples[self.sample_name]).metric


@pytest.mark.parametrize(
    ("dtype", "factor"), [("float32", None), ("float64", 0.5), ("uint16", None), ("float16", None)]
)
def test_depth_as_numpy_arrays(tmp_path: Path, dtype: str, factor: float | None) -> None:
    """Metres as they are, or by the stated factor; 16 bits as an image has them."""
    sample = write_nerfstudio(tmp_path)
    metres = rendered()[0].depth / (factor or 1)
    values = np.round(metres * 1000) if dtype == "uint16" else metres
    if dtype != "uint16":
        values[0, :3] = np.nan, np.inf, -1
    path = sample.depth.with_suffix(".npy")
    np.save(path, values.astype(dtype)[..., None] if dtype == "float32" else values.astype(dtype))

    def edit(stated: dict[str, Any]) -> None:
        stated["frames"][-1]["depth_file_path"] = "depth/frame_9.npy"
        if factor is not None:
            stated["depth_unit_scale_factor"] = factor

    change(sample, edit)
    scene = open_recording(tmp_path).scenes()[0]
    expected = rendered()[0].depth.copy()
    expected[0, :3] = expected[0, :3] if dtype == "uint16" else 0
    np.testing.assert_allclose(scene.frame(0).depth, expected, atol=5e-3 if dtype == "float16" else 1e-3)
    good = path.read_bytes()
    for damaged in (good[:-9], b"", b"PK" + good, good.replace(b"'<", b"'|O")):
        path.write_bytes(damaged)
        with pytest.raises(FrameError, match=r"frame_9\.npy"):
            scene.frame(0)
    np.save(path, np.zeros((2, 3, 4)))
    with pytest.raises(FrameError, match=r"frame_9\.npy: .*float64 of shape \(2, 3, 4\)"):
        scene.frame(0)


class TestNgp(Transforms):
    layout = "ngp"

    def test_given_cameras_win(self, samples, tmp_path: Path) -> None:
        """The sample's units are of a quarter of a millimetre, 2 mm are eight of them."""
        cameras = tmp_path / "mine.yaml"
        cameras.write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\ndepth_scale: 0.002\n")
        frame = open_recording(samples[self.sample_name].root, self.name, cameras).scenes()[0].frame(0)
        assert frame.color_camera == (WIDTH, HEIGHT, 40, 41, 24, 18)
        np.testing.assert_allclose(frame.depth, 8 * rendered()[0].depth, atol=2e-3)

    def test_cameras_of_single_frames(self, sample: Sample) -> None:
        change(sample, lambda s: s["frames"][1].update(fl_x=77.5, cx=20))
        scene = self.scene(sample)
        assert scene.frame(0).color_camera == pytest.approx(CAMERA)
        assert scene.frame(1).color_camera == pytest.approx(CAMERA._replace(fx=77.5, cx=20.0))
        change(sample, lambda s: s["frames"][1].pop("fl_x"))
        with pytest.raises(FrameError, match=r"rgb/1: fl_x missing.*cameras\.yaml"):
            self.scene(sample).frame(1)
        (sample.root / "cameras.yaml").write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\ndepth_scale: 0.00025\n")
        assert self.scene(sample).frame(1).color_camera[2:] == (40, 41, 24, 18)

    def test_a_fisheye_flag(self, sample: Sample) -> None:
        change(sample, lambda s: s["frames"][0].update(is_fisheye=True, k1=0.1))
        bent = np.array(Image.open(sample.color))
        wanted = undistort_color(bent, CAMERA, Lens("fisheye", (0.1, 0, 0, 0)))
        assert np.array_equal(self.scene(sample).frame(0).color, wanted)


class TestNerfstudio(Transforms):
    def test_frames_are_in_the_order_of_their_numbers(self, samples) -> None:
        assert list(self.scene(samples[self.sample_name]).names) == ["frame_09", "frame_10", "frame_11"]

    @pytest.mark.parametrize(
        ("stated", "lens"),
        [
            ({"k1": -0.1, "k2": 0.02, "p1": 0.003, "p2": -0.004}, Lens("radial", (-0.1, 0.02, 0.003, -0.004, 0.0))),
            ({"k1": 0.1, "k3": 0.2}, Lens("radial", (0.1, 0, 0, 0, 0.2))),
            ({"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k4": 0.3}, Lens("fisheye", (0.1, 0, 0, 0.3))),
        ],
    )
    def test_lenses_are_undone(self, sample: Sample, stated: dict[str, Any], lens: Lens) -> None:
        change(sample, lambda s: s.update(stated))
        frame = self.scene(sample).frame(0)
        bent = np.array(Image.open(sample.color))
        assert np.array_equal(frame.color, undistort_color(bent, CAMERA, lens))
        assert not np.array_equal(frame.color, bent)
        depth = (np.round(rendered()[0].depth * 1000) * 0.001).astype(np.float32)
        np.testing.assert_allclose(frame.depth, undistort_nearest(depth, CAMERA, lens), atol=1e-6)

    @pytest.mark.parametrize(
        ("stated", "message"),
        [
            ({"camera_model": "EQUIRECTANGULAR"}, "camera_model is 'EQUIRECTANGULAR'; read are SIMPLE_PINHOLE"),
            ({"camera_model": ["OPENCV"]}, "camera_model is"),
            ({"k4": 0.1}, "k4 is 0.1"),
            ({"k1": None}, "not finite"),
            ({"k1": 1e300}, "too large"),
            ({"k1": "x"}, "no number"),
            ({"fl_x": -3}, "camera is -3"),
            ({"fl_x": float("nan")}, "camera is nan"),
            ({"w": 50}, "50x36"),
            ({"cx": 400}, "belong to another size"),
        ],
    )
    def test_cameras_that_are_none(self, sample: Sample, stated: dict[str, Any], message: str) -> None:
        change(sample, lambda s: s.update(stated))
        with pytest.raises(FrameError, match=message):
            self.scene(sample).frame(0)

    def test_units_of_depth(self, sample: Sample) -> None:
        change(sample, lambda s: s.update(depth_unit_scale_factor=0.0002))
        np.testing.assert_allclose(self.scene(sample).frame(0).depth, 0.2 * rendered()[0].depth, atol=2e-4)

    def test_applied_scale_is_taken_back(self, sample: Sample) -> None:
        def scaled(stated: dict[str, Any]) -> None:
            stated["applied_scale"] = 0.25
            for frame in stated["frames"]:
                for row in frame["transform_matrix"][:3]:
                    row[3] *= 0.25

        change(sample, scaled)
        for k, truth in enumerate(rendered()):
            np.testing.assert_allclose(self.scene(sample).pose(k), truth.world_from_camera, atol=1e-8)

    def test_depth_of_another_size(self, sample: Sample) -> None:
        save(sample.depth, np.full((HEIGHT // 2, WIDTH // 2), 1500, np.uint16))
        frame = self.scene(sample).frame(0)
        assert frame.depth_camera == pytest.approx(CAMERA.resized(WIDTH // 2, HEIGHT // 2))
        assert (frame.depth == np.float32(1.5)).all()

    @pytest.mark.parametrize("key", ["fl_x", "cy", "h"])
    def test_missing_intrinsics(self, sample: Sample, key: str) -> None:
        change(sample, lambda s: s.pop(key))
        with pytest.raises(FrameError, match=f"{key} missing"):
            self.scene(sample).frame(0)

    @pytest.mark.parametrize(
        ("matrix", "message"),
        [
            (np.diag((2.0, 2, 2, 1)), "not rigid"),
            (np.diag((1.0, 1, -1, 1)), "mirrors"),
            (np.full((4, 4), np.nan), "not finite"),
            (np.eye(3), "9 numbers"),
            (np.eye(4) * 1e9, "damaged"),
        ],
    )
    def test_a_bad_pose_costs_its_frame(self, sample: Sample, matrix: np.ndarray, message: str) -> None:
        change(sample, lambda s: s["frames"][-1].update(transform_matrix=matrix.tolist()))
        scene = self.scene(sample)
        for ask in (scene.frame, scene.pose):
            with pytest.raises(FrameError, match=rf"transforms\.json: images/frame_9\.png.*{message}"):
                ask(0)
        check_frame(scene.frame(1))

    def test_a_frame_without_depth_or_pose(self, sample: Sample) -> None:
        change(sample, lambda s: (s["frames"][0].pop("depth_file_path"), s["frames"][1].pop("transform_matrix")))
        scene = self.scene(sample)
        check_frame(scene.frame(0))
        with pytest.raises(FrameError, match=r"frame_10\.png.*transform_matrix"):
            scene.frame(1)
        with pytest.raises(FrameError, match=r"frame_11\.png: has no depth_file_path"):
            scene.frame(2)

    @pytest.mark.parametrize("path", ["../depth.png", "/etc/passwd", "x" * 300, "a\0b", "\ud800"])
    def test_paths_that_lead_elsewhere(self, sample: Sample, path: str) -> None:
        change(sample, lambda s: s["frames"][-1].update(depth_file_path=path))
        with pytest.raises(FrameError, match=r"transforms\.json") as caught:
            self.scene(sample).frame(0)
        assert str(caught.value).encode()
        change(sample, lambda s: s["frames"][-1].update(file_path=path))
        with pytest.raises(DataError, match=r"transforms\.json"):
            len(self.scene(sample).names)

    def test_without_any_depth(self, sample: Sample) -> None:
        """It is known for what it is, and said what it lacks."""
        change(sample, lambda s: [frame.pop("depth_file_path") for frame in s["frames"]])
        scene = open_recording(sample.root).scenes()[0]
        with pytest.raises(DataError, match=r"transforms\.json: has no depth: none of its 3 frames"):
            len(scene.names)

    @pytest.mark.parametrize(
        "stated", [{}, {"frames": []}, {"frames": {}}, {"frames": [3]}, {"frames": [{"file_path": 3}]}, []]
    )
    def test_lists_that_are_none(self, sample: Sample, stated: object) -> None:
        sample.pose.write_text(json.dumps(stated))
        with pytest.raises(DataError, match=r"transforms\.json"):
            len(self.scene(sample).names)

    @pytest.mark.parametrize("stated", [{"applied_scale": 0}, {"applied_scale": "x"}, {"depth_unit_scale_factor": -1}])
    def test_factors_that_are_none(self, sample: Sample, stated: dict[str, Any]) -> None:
        change(sample, lambda s: s.update(stated))
        with pytest.raises(DataError, match=f"{next(iter(stated))} is"):
            len(self.scene(sample).names)

    def test_names_twice(self, sample: Sample) -> None:
        change(sample, lambda s: s["frames"].append(s["frames"][0]))
        with pytest.raises(DataError, match="twice"):
            len(self.scene(sample).names)

    def test_several_scenes(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            write_nerfstudio(tmp_path / name)
        (tmp_path / "a/transforms.json").write_text("{")
        scenes = open_recording(tmp_path).scenes()
        assert [scene.id for scene in scenes] == ["a", "b"]
        check_frame(scenes[1].frame(0))
        with pytest.raises(DataError, match=r"a/transforms\.json"):
            len(scenes[0].names)

    def read(self, sample: Sample) -> bool:
        """Whether a sample whose list is damaged gives a frame; any error must be ours."""
        try:
            scene = self.scene(sample)
            scene.pose(0)
            check_frame(scene.frame(0))
        except DataError as error:
            assert str(sample.root) in str(error)
            return False
        return True

    def test_damaged_bytes(self, sample: Sample) -> None:
        versions = mutations(sample.pose.read_bytes(), np.random.default_rng(4), tries(100))
        good = 0
        for version in versions:
            sample.pose.write_bytes(version)
            good += self.read(sample)
        assert 0 < good < len(versions) - 100

    @pytest.mark.thorough
    def test_damaged_values(self, sample: Sample) -> None:
        values = (
            None,
            True,
            -1,
            0,
            0.0002,
            1e300,
            10**400,
            float("nan"),
            "x",
            "",
            "../x",
            [],
            [[1.0] * 4] * 4,
            {},
            [None],
        )
        text, good, count = sample.pose.read_text(), 0, 0
        for place in ("all", "frame"):
            stated = json.loads(text)
            extra = ("is_fisheye", "k3", "k4", "applied_scale", "depth_unit_scale_factor")
            for key in (*(stated if place == "all" else stated["frames"][-1]), *extra):
                for value in values:
                    stated = json.loads(text)
                    (stated if place == "all" else stated["frames"][-1])[key] = value
                    sample.pose.write_text(json.dumps(stated))
                    good += self.read(sample)
                    count += 1
        assert 50 < good < count - 50
