"""ARKitScenes: both subsets against the contract; direction of poses, time stamps, resolutions, split."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reader_contract import RecordingContract
from sample_frames import HEIGHT, WIDTH, Sample, rendered
from samples_phone import TIMES, arkitscenes_frames, levels, traj_line, write_arkitscenes

from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.recordings import open_recording
from pri3d.recordings._shared.scenes import LazyScene
from pri3d.testing.reader import check_frame, mutations


def only(root: Path, split: str = "train") -> LazyScene:
    (scene,) = open_recording(root, "arkitscenes", split=split).scenes()
    return scene


class ARKitScenesContract(RecordingContract):
    """The trajectory is one file, so that only images are files of a frame."""

    name = "arkitscenes"

    @pytest.mark.parametrize("part", ["color", "depth"])
    def test_missing_or_damaged_images_name_the_file(self, sample: Sample, part: str) -> None:
        path: Path = getattr(sample, part)
        content = path.read_bytes()
        scene = only(sample.root)
        assert len(scene.names) == 3
        for version in mutations(content, np.random.default_rng(0), count=40):
            path.write_bytes(version)
            try:
                check_frame(scene.frame(0))
            except FrameError as error:
                assert str(path) in str(error)
        path.unlink()
        with pytest.raises(FrameError, match=f"{path.name}: no such file"):
            scene.frame(0)
        check_frame(scene.frame(1))

    def test_a_damaged_trajectory_is_refused_or_gives_frames(self, sample: Sample) -> None:
        refused = 0
        for version in mutations(sample.pose.read_bytes(), np.random.default_rng(1), count=100):
            sample.pose.write_bytes(version)
            try:
                scene = only(sample.root)
                for k in range(len(scene.names)):
                    scene.pose(k)
            except DataError as error:
                assert "lowres_wide.traj" in str(error)
                refused += 1
        assert refused > 30

    def test_the_mesh(self, sample: Sample) -> None:
        mesh = only(sample.root).mesh()
        assert mesh is not None
        assert mesh.name == "41048190_3dod_mesh.ply"

    @pytest.mark.parametrize("deep", [1, 2])
    def test_parts_of_the_data_set_are_recordings_too(self, sample: Sample, deep: int) -> None:
        scene = only(sample.root / Path("Training/41048190").parts[0] / ("41048190" if deep == 2 else ""))
        assert (scene.id, scene.split) == ("41048190", "train")


class TestRaw(ARKitScenesContract):
    def test_confidence(self, sample: Sample) -> None:
        assert np.array_equal(only(sample.root).frame(0).confidence, 50 * levels(rendered()[0]))
        for path in sample.root.rglob("confidence/*.png"):
            path.unlink()
        assert only(sample.root).frame(0).confidence is None

    def test_laser_depth_is_taken_where_its_images_have_poses(self, sample: Sample) -> None:
        folder = sample.pose.parent
        arkitscenes_frames(folder, "41048190", ("wide", "highres_depth"), TIMES)
        shutil.rmtree(folder / "lowres_wide")
        (folder / "wide" / "41048190_99.500.png").write_bytes(b"without depth")
        scene = only(sample.root)
        assert len(scene.names) == 3
        frame = scene.frame(0)
        check_frame(frame)
        assert frame.confidence is None
        np.testing.assert_allclose(frame.world_from_camera, rendered()[0].world_from_camera, atol=1e-8)

    def test_laser_depth_between_poses_is_not(self, sample: Sample) -> None:
        folder = sample.pose.parent
        arkitscenes_frames(folder, "41048190", ("wide", "highres_depth"), [time + 0.03 for time in TIMES])
        assert list(only(sample.root).names) == [f"{time:013.3f}" for time in TIMES]

    def test_images_between_poses_are_passed_over_and_lost_ones_are_not(self, sample: Sample) -> None:
        """60 images a second and 10 poses; a stretch without poses is one where tracking was lost."""
        folder = sample.pose.parent
        for time in (98.867, 98.883, 98.934, 99.5):
            for part, end in (("lowres_wide", "png"), ("lowres_depth", "png"), ("lowres_wide_intrinsics", "pincam")):
                source = folder / part / f"41048190_{TIMES[0]:.3f}.{end}"
                shutil.copy(source, folder / part / f"41048190_{time:.3f}.{end}")
        scene = only(sample.root)
        assert [float(name) for name in scene.names] == [98.85, 98.951, 99.5, 100.05]
        for load in (scene.frame, scene.pose):
            with pytest.raises(FrameError, match=r"lowres_wide\.traj: time 000000099\.500.*no pose"):
                load(2)

    def test_the_nearest_pose_within_five_milliseconds(self, sample: Sample) -> None:
        far = np.eye(4)
        far[0, 3] = 5.0
        truth = rendered()[0].world_from_camera
        lines = [traj_line(98.853, far), traj_line(98.8481, truth), traj_line(98.8441, far)]  # in no order
        sample.pose.write_text("\n".join(lines))
        np.testing.assert_allclose(only(sample.root).frame(0).world_from_camera, truth, atol=1e-8)
        sample.pose.write_text(traj_line(98.8561, truth))
        with pytest.raises(DataError, match=r"no image has a pose|has no pose"):
            only(sample.root).frame(0)

    def test_the_trajectory_is_of_world_to_camera(self, sample: Sample) -> None:
        """Turned by 90 degrees about x (0, 0, 1 of the world is 0, -1, 0 of the camera), then moved by 2 along z."""
        sample.pose.write_text(f"{TIMES[0]} {np.pi / 2} 0 0 0 0 2")
        pose = only(sample.root).frame(0).world_from_camera
        np.testing.assert_allclose(pose @ (0, -1, 2, 1), (0, 0, 1, 1), atol=1e-12)

    def test_intrinsics_a_millisecond_off(self, sample: Sample) -> None:
        folder = sample.pose.parent / "lowres_wide_intrinsics"
        path = folder / f"41048190_{TIMES[0]:.3f}.pincam"
        path.rename(folder / "41048190_98.849.pincam")
        check_frame(only(sample.root).frame(0))
        (folder / "41048190_98.849.pincam").rename(folder / "41048190_98.847.pincam")
        with pytest.raises(FrameError, match=r"98\.850\.pincam: no such file"):
            only(sample.root).frame(0)

    @pytest.mark.parametrize("text", ["", "48 36 40 41 24", "48 36 40 -41 24 18", "a b c d e f", "nan 36 40 41 24 18"])
    def test_damaged_intrinsics(self, sample: Sample, text: str) -> None:
        (sample.pose.parent / "lowres_wide_intrinsics" / f"41048190_{TIMES[0]:.3f}.pincam").write_text(text)
        with pytest.raises(FrameError, match=r"98\.850\.pincam"):
            only(sample.root).frame(0)

    def test_depth_of_another_size(self, sample: Sample) -> None:
        Image.fromarray(np.ones((HEIGHT, 2 * WIDTH), np.uint16)).save(sample.depth)
        with pytest.raises(FrameError, match="96x36"):
            only(sample.root).frame(0)

    def test_without_a_trajectory(self, sample: Sample) -> None:
        sample.pose.unlink()
        with pytest.raises(DataError, match=r"lowres_wide\.traj: no such file.*upsampling"):
            _ = only(sample.root).names

    def test_lines_without_numbers(self, sample: Sample) -> None:
        """Of poses that are not finite nothing is kept; the image nearest in time is one without a pose."""
        lines = sample.pose.read_text().splitlines()
        lines[2] = "100.05 nan nan nan nan nan nan"
        sample.pose.write_text("\n".join(lines))
        with pytest.raises(FrameError, match=r"100\.050.*no pose"):
            only(sample.root).frame(2)


class TestThreeDod(ARKitScenesContract):
    layout = "threedod"

    def test_the_folder_of_images_alone(self, sample: Sample) -> None:
        scene = only(sample.root / "Training/41048190/41048190_frames")
        assert (scene.id, scene.split) == ("41048190", "train")
        assert scene.mesh() is not None


class TestSplit:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = write_arkitscenes(tmp_path / "raw").root
        for target in ("Validation/41048200", "41048210"):
            shutil.copytree(root / "Training/41048190", root / target)
        return root

    @pytest.mark.parametrize(
        ("split", "wanted"),
        [
            ("train", ["41048190", "41048210"]),
            ("val", ["41048200"]),
            ("all", ["41048190", "41048200", "41048210"]),
        ],
    )
    def test_the_folders_are_the_split(self, root: Path, split: str, wanted: list[str]) -> None:
        scenes = open_recording(root, split=split).scenes()
        assert [scene.id for scene in scenes] == wanted
        assert {scene.id: scene.split for scene in scenes}.get("41048210") is None

    def test_none_of_the_split(self, root: Path) -> None:
        with pytest.raises(DataError, match="--split val"):
            open_recording(root / "Validation" / "41048200").scenes()
        with pytest.raises(ConfigError, match="validation"):
            open_recording(root, split="validation")
