"""COLMAP workspaces: both kinds of files, lenses, depth of other sizes, and thousands of damaged files."""

from __future__ import annotations

import re
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reader_contract import RecordingContract
from sample_frames import HEIGHT, WIDTH, Sample, rendered
from samples_outdoor import (
    camera_from_world,
    cameras_bin,
    colmap_camera,
    depth_map,
    images_bin,
    millimetres,
    save,
    write_colmap,
)

from pri3d.api.prepare import prepare
from pri3d.errors import DataError, FrameError
from pri3d.geometry.warping import Lens, undistort_color, undistort_nearest
from pri3d.recordings import open_recording
from pri3d.recordings._shared.colmap_model import ModelCamera, intrinsics, read_model
from pri3d.recordings.colmap import read_depth_map
from pri3d.store import Store
from pri3d.testing.reader import check_frame

CAMERA = rendered()[0].color_camera


class Workspace(RecordingContract):
    name = "colmap"

    def scene(self, sample: Sample):
        return self.open(sample.root).scenes()[0]

    def test_names_are_the_images_in_their_order(self, samples) -> None:
        """Numbers are padded, so that 8, 9, 10 stay in this order; folders belong to the name."""
        assert list(self.scene(samples[self.sample_name]).names) == ["left-08", "left-09", "right-10"]

    @pytest.mark.parametrize("part", ["color", "depth"])
    def test_missing_or_cut_off_part_costs_its_frame(self, sample: Sample, part: str) -> None:
        path: Path = getattr(sample, part)
        scene = self.scene(sample)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
        with pytest.raises(FrameError, match=re.escape(str(path))):
            scene.frame(0)
        path.unlink()
        with pytest.raises(FrameError, match=re.escape(str(path))):
            scene.frame(0)
        check_frame(scene.frame(1))

    @pytest.mark.parametrize("file", ["cameras", "images"])
    def test_cut_off_or_empty_model_costs_the_scene(self, sample: Sample, file: str) -> None:
        path = sample.pose.with_stem(file)
        data = path.read_bytes()
        for content in (b"", data[:20], data[: len(data) * 3 // 5]):
            path.write_bytes(content)
            scene = self.scene(sample)
            with pytest.raises(DataError, match=str(path.parent)):
                len(scene.names)
        path.unlink()
        assert scene.id
        with pytest.raises(DataError, match="holds no scene"):
            self.open(sample.root).scenes()


class TestDense(Workspace):
    def test_given_cameras_win(self, samples, tmp_path: Path) -> None:
        """Depth is in the unit of the poses here, so that ``depth_scale`` is of no image."""
        cameras = tmp_path / "mine.yaml"
        cameras.write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\ndepth_scale: 0.002\n")
        scene = open_recording(samples[self.sample_name].root, self.name, cameras).scenes()[0]
        frame = scene.frame(0)
        assert frame.color_camera == frame.depth_camera == (WIDTH, HEIGHT, 40, 41, 24, 18)
        np.testing.assert_allclose(frame.depth, rendered()[0].depth, rtol=1e-6)
        assert not scene.metric

    def test_unit_is_unknown(self, samples) -> None:
        assert not self.scene(samples[self.sample_name]).metric

    def test_geometric_before_photometric(self, sample: Sample) -> None:
        other = sample.depth.with_name(sample.depth.name.replace("geometric", "photometric"))
        other.write_bytes(depth_map(np.full((HEIGHT, WIDTH), 2.5, np.float32)))
        assert (self.scene(sample).frame(0).depth != 2.5).all()
        sample.depth.unlink()
        assert (self.scene(sample).frame(0).depth == 2.5).all()

    def test_what_is_no_depth_is_invalid(self, sample: Sample) -> None:
        depth = rendered()[0].depth.copy()
        depth[0, :5] = (np.nan, np.inf, -np.inf, -1, 0)
        sample.depth.write_bytes(depth_map(depth))
        found = self.scene(sample).frame(0).depth
        assert (found[0, :5] == 0).all()
        assert np.array_equal(found[1:], depth[1:])

    def test_rows_are_rows(self, tmp_path: Path) -> None:
        """The column runs fastest, as the bytes say: 0 1 2 is the first row of an image three pixels wide."""
        path = tmp_path / "a.bin"
        path.write_bytes(b"3&2&1&" + struct.pack("<6f", 1, 2, 3, 4, 5, 6))
        assert read_depth_map(path).tolist() == [[1, 2, 3], [4, 5, 6]]

    @pytest.mark.parametrize("shape", [(HEIGHT // 2, WIDTH // 2), (HEIGHT * 2, WIDTH * 2), (27, 35)])
    def test_depth_of_another_size(self, sample: Sample, shape: tuple[int, int]) -> None:
        """Stereo of shrunken images has their size: its camera is the image's, resized."""
        sample.depth.write_bytes(depth_map(np.full(shape, 2, np.float32)))
        camera = self.scene(sample).frame(0).depth_camera
        assert camera == pytest.approx(CAMERA.resized(shape[1], shape[0]))

    @pytest.mark.parametrize("shape", [(WIDTH, HEIGHT), (HEIGHT, WIDTH // 2), (1, WIDTH)])
    def test_depth_of_another_shape_is_refused(self, sample: Sample, shape: tuple[int, int]) -> None:
        sample.depth.write_bytes(depth_map(np.full(shape, 2, np.float32)))
        with pytest.raises(FrameError, match=f"{re.escape(str(sample.depth))}.*{shape[1]}x{shape[0]}"):
            self.scene(sample).frame(0)

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"48&36&", b"48&36&3&" + bytes(48 * 36 * 12), b"48&36&1&" + bytes(48 * 36 * 4 + 1)),
            *(b"0&0&1&", b"999999999&999999999&1&", b"-48&36&1&" + bytes(48 * 36 * 4), b"PNG"),
        ],
    )
    def test_other_contents_of_a_depth_map(self, sample: Sample, content: bytes) -> None:
        sample.depth.write_bytes(content)
        with pytest.raises(FrameError, match=re.escape(str(sample.depth))):
            self.scene(sample).frame(0)

    def test_every_image_has_its_own_camera(self, sample: Sample) -> None:
        names = {f"{'left' if k < 2 else 'right'}/{k + 8}.jpg": frame for k, frame in enumerate(rendered())}
        stated = [
            colmap_camera(CAMERA),
            (9, "SIMPLE_PINHOLE", WIDTH, HEIGHT, (50.0, 24.5, 18.25)),
            (5, "FOV", 1, 1, (1.0,) * 5),
        ]
        (sample.pose.with_stem("cameras")).write_bytes(cameras_bin(stated))
        sample.pose.write_bytes(images_bin(names, [1, 9, 1]))
        scene = self.scene(sample)
        assert scene.frame(0).color_camera == pytest.approx(CAMERA)
        assert scene.frame(1).color_camera == (WIDTH, HEIGHT, 50.0, 50.0, 24.5, 18.25)
        sample.pose.write_bytes(images_bin(names, [1, 5, 1]))
        with pytest.raises(DataError, match=r"cameras\.bin.*model FOV.*image_undistorter"):
            self.scene(sample).frame(0)
        sample.pose.write_bytes(images_bin(names, [1, 7, 1]))
        with pytest.raises(DataError, match=r"images\.bin.*left/9\.jpg has camera 7"):
            self.scene(sample).frame(0)

    def test_an_image_of_another_size_than_its_camera(self, sample: Sample) -> None:
        save(sample.color, np.zeros((30, 40, 3), np.uint8))
        with pytest.raises(FrameError, match="40x30"):
            self.scene(sample).frame(0)

    @pytest.mark.thorough
    def test_lens_is_undone(self, sample: Sample) -> None:
        k = (-0.1, 0.02, 0.003, -0.004)
        stated = [(1, "OPENCV", WIDTH, HEIGHT, (*CAMERA[2:], *k))]
        sample.pose.with_stem("cameras").write_bytes(cameras_bin(stated))
        frame = self.scene(sample).frame(0)
        lens = Lens("radial", k)
        bent = np.array(Image.open(sample.color))
        assert np.array_equal(frame.color, undistort_color(bent, CAMERA, lens))
        assert np.array_equal(frame.depth, undistort_nearest(rendered()[0].depth, CAMERA, lens))
        assert not np.array_equal(frame.color, bent)

    @pytest.mark.parametrize("pose", [(0.0,) * 4, (np.nan,) * 4, (np.inf, 0, 0, 0)])
    def test_a_bad_pose_costs_its_frame(self, sample: Sample, pose: tuple[float, ...]) -> None:
        data = bytearray(sample.pose.read_bytes())
        at = data.index(b"left/8.jpg") - 60
        assert np.allclose(struct.unpack_from("<4d", data, at), camera_from_world(rendered()[0])[0])
        struct.pack_into("<4d", data, at, *pose)
        sample.pose.write_bytes(data)
        for ask in (lambda scene: scene.frame(0), lambda scene: scene.pose(0)):
            with pytest.raises(FrameError, match=r"images\.bin: left/8\.jpg"):
                ask(self.scene(sample))
        check_frame(self.scene(sample).frame(1))

    @pytest.mark.parametrize("name", ["../../x.jpg", "/etc/x.jpg", "x" * 300 + ".jpg", "a" * 5000])
    def test_names_that_lead_elsewhere(self, sample: Sample, name: str) -> None:
        sample.pose.write_bytes(images_bin({name: rendered()[0]}))
        with pytest.raises(DataError, match=r"images\.bin"):
            len(self.scene(sample).names)

    def test_names_that_collide(self, sample: Sample) -> None:
        sample.pose.write_bytes(images_bin({"a.jpg": rendered()[0], "a.png": rendered()[1]}))
        with pytest.raises(DataError, match=r"a\.png and a\.jpg both give the frame name a; rename"):
            len(self.scene(sample).names)

    def test_points_are_not_read(self, sample: Sample) -> None:
        names = {f"{k}.jpg": frame for k, frame in enumerate(rendered())}
        sample.pose.write_bytes(images_bin(names, points=200_000))
        cameras = sample.pose.with_stem("cameras")
        read_model(cameras, sample.pose)
        tracemalloc.start()
        assert len(read_model(cameras, sample.pose).images) == 3
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300_000, "they are 14 MB"

    def test_prepared_as_a_recording_of_unknown_unit(self, sample: Sample, tmp_path: Path) -> None:
        options = {"distance": 0.2, "min_overlap": 0.01, "surface": False, "processes": 1}
        prepare([sample.root], tmp_path / "out", size="48x36", **options)
        assert len(Store(tmp_path / "out").scene(Store(tmp_path / "out").scenes[0]).frames.names) == 3


class TestText(Workspace):
    layout = "text"

    def test_metric_by_a_cameras_yaml(self, sample: Sample) -> None:
        """Depth images in millimetres say nothing of the poses; whoever states the cameras has scaled these."""
        assert not self.scene(sample).metric
        (sample.root / "cameras.yaml").write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\n")
        assert self.scene(sample).metric

    def test_depth_may_be_named_without_the_images_ending(self, sample: Sample) -> None:
        sample.depth.rename(sample.depth.with_name("8.png"))
        np.testing.assert_allclose(self.scene(sample).frame(0).depth, rendered()[0].depth, atol=6e-4)

    def test_the_sensors_depth_goes_before_stereo(self, sample: Sample) -> None:
        path = sample.root / "stereo/depth_maps/left/8.jpg.geometric.bin"
        path.parent.mkdir(parents=True)
        path.write_bytes(depth_map(np.full((HEIGHT, WIDTH), 2.5, np.float32)))
        assert (self.scene(sample).frame(0).depth != 2.5).all()
        sample.depth.unlink()
        assert (self.scene(sample).frame(0).depth == 2.5).all()

    def test_binary_before_text(self, sample: Sample) -> None:
        save(sample.root / "images/only.jpg", rendered()[0].color)
        save(sample.root / "depth/only.jpg.png", millimetres(rendered()[0]))
        sample.pose.with_suffix(".bin").write_bytes(images_bin({"only.jpg": rendered()[0]}))
        assert len(self.scene(sample).names) == 3, "both files are needed"
        sample.pose.with_name("cameras.bin").write_bytes(cameras_bin([colmap_camera(CAMERA)]))
        assert list(self.scene(sample).names) == ["only"]

    def test_names_with_blanks_long_lines_and_no_last_end(self, sample: Sample) -> None:
        text = sample.pose.read_text().replace("left/8.jpg", "left/8 of 9.jpg").rstrip()
        lines = text.splitlines()
        lines[2] = "1.5 2.5 -1 " * 100_000
        sample.pose.write_text("\n".join(["", "# more", *lines]))
        sample.color.rename(sample.color.with_name("8 of 9.jpg"))
        sample.depth.rename(sample.depth.with_name("8 of 9.jpg.png"))
        scene = self.scene(sample)
        assert len(scene.names) == 3
        for k in range(3):
            check_frame(scene.frame(k))

    @pytest.mark.parametrize("change", [("PINHOLE", "LENSBABY"), ("PINHOLE", "FOV")])
    def test_unknown_lens(self, sample: Sample, change: tuple[str, str]) -> None:
        path = sample.pose.with_stem("cameras")
        extra = " 0.1\n" if change[1] == "FOV" else "\n"
        path.write_text(path.read_text().rstrip().replace(*change) + extra)
        with pytest.raises(DataError, match=f"{change[1]}.*image_undistorter"):
            self.scene(sample).frame(0)
        (sample.root / "cameras.yaml").write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\n")
        assert self.scene(sample).frame(0).color_camera[2:] == (40, 41, 24, 18)


@pytest.mark.parametrize(
    ("model", "parameters", "wanted"),
    [
        ("SIMPLE_PINHOLE", (50, 24, 18), (50, 50, 24, 18, None)),
        ("PINHOLE", (50, 51, 24, 18), (50, 51, 24, 18, None)),
        ("SIMPLE_RADIAL", (50, 24, 18, 0.1), (50, 50, 24, 18, Lens("radial", (0.1, 0, 0, 0)))),
        ("RADIAL", (50, 24, 18, 0.1, 0.2), (50, 50, 24, 18, Lens("radial", (0.1, 0.2, 0, 0)))),
        ("OPENCV", (50, 51, 24, 18, 1, 2, 3, 4), (50, 51, 24, 18, Lens("radial", (1, 2, 3, 4)))),
        ("OPENCV", (50, 51, 24, 18, 0, 0, 0, 0), (50, 51, 24, 18, None)),
        ("OPENCV_FISHEYE", (50, 51, 24, 18, 1, 2, 3, 4), (50, 51, 24, 18, Lens("fisheye", (1, 2, 3, 4)))),
        ("OPENCV_FISHEYE", (50, 51, 24, 18, 0, 0, 0, 0), (50, 51, 24, 18, Lens("fisheye", (0, 0, 0, 0)))),
        ("FULL_OPENCV", (50, 51, 24, 18, *range(1, 9)), (50, 51, 24, 18, Lens("radial", tuple(range(1, 9))))),
        ("SIMPLE_RADIAL_FISHEYE", (50, 24, 18, 0.1), (50, 50, 24, 18, Lens("fisheye", (0.1, 0, 0, 0)))),
        ("RADIAL_FISHEYE", (50, 24, 18, 0.1, 0.2), (50, 50, 24, 18, Lens("fisheye", (0.1, 0.2, 0, 0)))),
    ],
)
def test_lenses_of_the_models(model: str, parameters: tuple[float, ...], wanted: tuple) -> None:
    found = intrinsics(ModelCamera(model, 48, 36, parameters), "cameras.bin")
    assert (*found[:4], found.lens) == wanted
    assert (found.width, found.height) == (48, 36)


@pytest.mark.parametrize("model", ["FOV", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE"])
def test_other_lenses_are_refused_by_name(model: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"cameras.bin: has a camera of model {model}.*image_undistorter"):
        intrinsics(ModelCamera(model, 48, 36, (1.0,) * 16), "cameras.bin")
    write = write_colmap(tmp_path / "w")
    count = {"FOV": 5, "THIN_PRISM_FISHEYE": 12, "RAD_TAN_THIN_PRISM_FISHEYE": 16}[model]
    stated = [(2, model, 9, 9, (1.0,) * count), colmap_camera(CAMERA)]
    write.pose.with_stem("cameras").write_bytes(cameras_bin(stated))
    assert len(open_recording(write.root).scenes()[0].names) == 3, "no image has it, and what follows is found"


@pytest.mark.parametrize(
    "parameters", [(-1, 50, 24, 18), (np.nan, 50, 24, 18), (50, 50, np.inf, 18), (50, 1e9, 24, 18)]
)
def test_cameras_that_are_none(parameters: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="which is invalid"):
        intrinsics(ModelCamera("PINHOLE", 48, 36, parameters), "cameras.bin")
    with pytest.raises(DataError, match="pixels"):
        intrinsics(ModelCamera("PINHOLE", 2**40, 36, (50, 50, 24, 18)), "cameras.bin")


class TestWhere:
    def test_dense_folders(self, tmp_path: Path) -> None:
        """What automatic reconstruction leaves: the sparse model of all images, and dense ones of its parts."""
        write_colmap(tmp_path / "house")
        shutil.rmtree(tmp_path / "house/stereo")
        write_colmap(tmp_path / "house/dense/0")
        assert [scene.id for scene in open_recording(tmp_path / "house").scenes()] == ["house"]
        check_frame(open_recording(tmp_path / "house").scenes()[0].frame(0))
        write_colmap(tmp_path / "house/dense/1")
        assert [scene.id for scene in open_recording(tmp_path / "house").scenes()] == ["house-0", "house-1"]

    def test_several_workspaces(self, tmp_path: Path) -> None:
        write_colmap(tmp_path / "b")
        write_colmap(tmp_path / "a/dense")
        scenes = open_recording(tmp_path).scenes()
        assert [scene.id for scene in scenes] == ["a", "b"]
        check_frame(scenes[0].frame(0))

    def test_without_depth(self, tmp_path: Path) -> None:
        write_colmap(tmp_path / "a")
        shutil.rmtree(tmp_path / "a/stereo")
        with pytest.raises(DataError, match=r"has no depth.*patch_match_stereo"):
            len(open_recording(tmp_path / "a").scenes()[0].names)

    def test_a_model_that_goes_away(self, tmp_path: Path) -> None:
        write_colmap(tmp_path / "a")
        scene = open_recording(tmp_path / "a").scenes()[0]
        shutil.rmtree(tmp_path / "a/sparse")
        with pytest.raises(DataError, match="was not found"):
            len(scene.names)
