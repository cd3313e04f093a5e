"""Frames chosen by motion and sharpness: as many as the camera's path asks for, the blurred ones avoided."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from stores import files

from pri3d.api.prepare import prepare
from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.preparation.frames import LOOKED_AT, MOVED, TURNED, pick_frames, sharpness, stretches
from pri3d.recordings import CorrectedScene, Recording, Scene, open_recording
from pri3d.recordings._shared.correction import Correction
from pri3d.recordings._shared.scenes import FrameList, LazyScene
from pri3d.store import Store
from pri3d.types import Frame, View

WIDTH, HEIGHT, FOCAL, WALL = 80, 60, 80.0, 2.0  # pixels, pixels, pixels, metres to a flat wall
STEP = 0.04  # metres a frame: three frames are a stretch
FLAGS = {"size": "80x60", "surface": False, "select": "motion", "processes": 1, "distance": 0.03}


def path() -> list[float]:
    """Metres along the wall: a walk, a rest, a shake, a walk."""
    walk = [STEP * k for k in range(30)]
    rest = [walk[-1]] * 40
    shake = [walk[-1] + 0.03 * float(np.sin(k)) for k in range(20)]
    return [*walk, *rest, *shake, *(walk[-1] + STEP * k for k in range(1, 31))]


def wanted(places: list[float]) -> int:
    """Stretches of a path along a line."""
    count, first = 0, -np.inf
    for place in places:
        if abs(place - first) > MOVED:
            count, first = count + 1, place
    return count


def wall() -> np.ndarray:
    rng = np.random.default_rng(5)
    coarse, fine = rng.uniform(0, 255, (15, 100, 3)), rng.uniform(-60, 60, (HEIGHT, 400, 3))
    image = np.array(Image.fromarray(coarse.astype(np.uint8)).resize((400, HEIGHT))) + fine
    return image.clip(0, 255).astype(np.uint8)


def write(root: Path, places: list[float], blurred: set[int]) -> Path:
    """A recording in the folder layout: views of the wall from these places."""
    for part in ("color", "depth", "pose"):
        (root / part).mkdir(parents=True)
    (root / "cameras.yaml").write_text(f"color: {{fx: {FOCAL}, fy: {FOCAL}, cx: 40, cy: 30}}\n")
    texture = wall()
    depth = Image.fromarray(np.full((HEIGHT, WIDTH), int(1000 * WALL), np.uint16))
    for k, place in enumerate(places):
        left = round(place * FOCAL / WALL)
        image = Image.fromarray(texture[:, left + 20 : left + 20 + WIDTH])
        image = image.filter(ImageFilter.GaussianBlur(2)) if k in blurred else image
        image.save(root / "color" / f"{k:04d}.png")
        depth.save(root / "depth" / f"{k:04d}.png")
        pose = np.eye(4)
        pose[0, 3] = place
        np.savetxt(root / "pose" / f"{k:04d}.txt", pose)
    return root


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames 0, 2, 3, 5, ... of the walk are blurred: of each stretch of three the middle one is sharp."""
    places = path()
    return write(tmp_path_factory.mktemp("walked") / "wall", places, {k for k in range(30) if k % 3 != 1})


class Still(Scene):
    """A scene of given poses, whose frames must not be loaded."""

    id = "still"

    def __init__(self, poses: list[np.ndarray | None]) -> None:
        self.names = [f"{k:03d}" for k in range(len(poses))]
        self._poses = poses

    def frame(self, index: int) -> Frame:
        raise AssertionError("loaded")

    def pose(self, index: int) -> np.ndarray:
        pose = self._poses[index]
        if pose is None:
            raise FrameError(f"{index}: tracking was lost")
        return pose


def turned(angle: float, axis: int = 1) -> np.ndarray:
    pose, (i, j) = np.eye(4), [k for k in range(3) if k != axis]
    pose[i, i] = pose[j, j] = np.cos(angle)
    pose[i, j], pose[j, i] = -np.sin(angle), np.sin(angle)
    return pose


class Video(Recording):
    """Whatever a format says of its videos; scenes are made by hand."""

    def __init__(self, frame_step: int = 25) -> None:
        self.frame_step = frame_step

    def scenes(self) -> list[Scene]:
        raise AssertionError


def scene_at(times: Sequence[float] | None, count: int = 0) -> Still:
    scene = Still([None] * (count if times is None else len(times)))
    scene.times = times
    return scene


class TestPickFrames:
    """What is taken where nobody says --frame-step."""

    @pytest.mark.parametrize(
        ("times", "rate", "taken", "rule"),
        [
            (np.arange(1500) / 30, 25, 60, "every 0.83 s"),  # video: every 25th
            (np.arange(3000) / 60, 25, 60, "every 0.83 s"),
            (np.arange(31) / 2, 2, 31, "one in 1"),  # an app that stores two images a second
            (np.cumsum(np.resize((0.4, 0.9, 1.6, 0.8), 58)), 25, 44, "every 0.83 s"),  # key frames of a SLAM system
            (np.arange(211) / 30, 25, 31, "one in 7"),  # seven seconds: neighbours every 0.8 s would not overlap
        ],
        ids=["30 a second", "60 a second", "two a second", "key frames", "short"],
    )
    def test_by_time(self, times: np.ndarray, rate: int, taken: int, rule: str) -> None:
        picked = pick_frames(scene_at(times.tolist()), Video(rate), "every", None)
        assert (len(picked.indices), picked.rule) == (taken, rule)
        assert picked.total == len(times)

    def test_jitter_does_not_skip_a_frame(self) -> None:
        times = np.arange(3000) / 30 + np.random.default_rng(0).uniform(-0.004, 0.004, 3000)
        picked = pick_frames(scene_at(times.tolist()), Video(), "every", None)
        assert len(picked.indices) in range(118, 123)

    def test_without_times_by_number_and_never_few(self) -> None:
        assert pick_frames(scene_at(None, 2000), Video(), "every", None).indices == list(range(0, 2000, 25))
        assert len(pick_frames(scene_at(None, 211), Video(), "every", None).indices) == 31
        assert pick_frames(scene_at(None, 9), Video(), "every", None).indices == list(range(9))
        assert pick_frames(scene_at(None, 0), Video(), "every", None).indices == []

    def test_what_is_asked_or_chosen_already_is_kept_to(self) -> None:
        times = (np.arange(100) / 30).tolist()
        assert pick_frames(scene_at(times), Video(), "every", 40).indices == [0, 40, 80]
        assert len(pick_frames(scene_at(times), Video(1), "every", None).indices) == 100
        assert len(pick_frames(scene_at(times), Video(), "motion", None).indices) == 100
        assert str(pick_frames(scene_at(times), Video(), "every", 40)) == "3 of 100 frames (one in 40)"


class TestStretches:
    def test_every_reads_no_pose(self) -> None:
        found = stretches(Still([None] * 7), "every", range(0, 7, 3))
        assert [(s.looked_at, s.lost) for s in found] == [([0], {}), ([3], {}), ([6], {})]

    def test_a_resting_camera_gives_one(self) -> None:
        (found,) = stretches(Still([np.eye(4)] * 100), "motion", range(100))
        assert found.looked_at == [10, 30, 50, 70, 90]

    @pytest.mark.parametrize("axis", range(3))
    def test_turning_begins_new_ones(self, axis: int) -> None:
        poses = [turned(TURNED * 0.45 * k, axis) for k in range(12)]
        found = stretches(Still(poses), "motion", range(12))
        assert [s.looked_at for s in found] == [[3 * k, 3 * k + 1, 3 * k + 2] for k in range(4)]

    def test_frames_are_stepped_over(self) -> None:
        found = stretches(Still([turned(0.02 * k) for k in range(40)]), "motion", range(0, 40, 4))
        assert sorted(k for s in found for k in s.looked_at) == list(range(0, 40, 4))

    def test_lost_poses_are_kept_with_their_reason(self) -> None:
        found = stretches(Still([None, np.eye(4), None, np.eye(4), turned(1.0), None]), "motion", range(6))
        assert [s.looked_at for s in found] == [[1, 3], [4]]
        assert {k: why for s in found for k, why in s.lost.items()} == {k: f"{k}: tracking was lost" for k in (0, 2, 5)}

    def test_nothing_but_lost_poses(self) -> None:
        (found,) = stretches(Still([None, None]), "motion", range(2))
        assert (found.looked_at, list(found.lost)) == ([], [0, 1])

    def test_a_scene_without_poses_is_refused(self) -> None:
        scene = LazyScene("s", lambda: FrameList(["0"], lambda _name: pytest.fail()), posed=False)
        with pytest.raises(DataError, match=r"no poses.*--select motion"):
            stretches(scene, "motion", range(1))

    def test_at_most_five_are_looked_at(self) -> None:
        for count in range(1, 40):
            (found,) = stretches(Still([np.eye(4)] * count), "motion", range(count))
            assert len(set(found.looked_at)) == min(count, LOOKED_AT)


def view(color: np.ndarray, pose: np.ndarray) -> View:
    height, width = color.shape[:2]
    return View(color, np.ones((height, width)), np.array((width, width, width / 2, height / 2)), pose, "x")


class TestSharpness:
    color = wall()[:, :WIDTH]

    @pytest.mark.parametrize("radius", [0.7, 1.5, 4])
    def test_falls_with_blur(self, radius: float) -> None:
        blurred = np.array(Image.fromarray(self.color).filter(ImageFilter.GaussianBlur(radius)))
        ahead = np.array((0.0, 0, 1))
        assert sharpness(view(blurred, np.eye(4)), ahead) < 0.6 * sharpness(view(self.color, np.eye(4)), ahead)

    def test_exposure_does_not_count(self) -> None:
        ahead, dark = np.array((0.0, 0, 1)), (self.color // 2).astype(np.uint8)
        assert sharpness(view(dark, np.eye(4)), ahead) == pytest.approx(
            sharpness(view(self.color, np.eye(4)), ahead), rel=0.02
        )

    def test_looks_where_it_is_told(self) -> None:
        """A pattern at the right border counts for a direction to the right alone, whatever way the camera looks."""
        smooth = np.array(Image.fromarray(self.color).filter(ImageFilter.GaussianBlur(3)))
        smooth[:, 60:] = self.color[:, 60:]
        pose = turned(0.5)
        right, left = pose[:3, :3] @ (0.4, 0, 1), pose[:3, :3] @ (-0.4, 0, 1)
        assert sharpness(view(smooth, pose), right) > 5 * sharpness(view(smooth, pose), left)

    def test_extremes(self) -> None:
        grey = np.full((20, 24, 3), 90, np.uint8)
        assert sharpness(view(grey, np.eye(4)), np.array((0.0, 0, 1))) == 0
        for toward in ((0.0, 0, -1), (1.0, 0, 0), (0.0, 50, 1)):
            assert sharpness(view(self.color, np.eye(4)), np.array(toward)) > 0
        assert sharpness(view(self.color[:3, :3], np.eye(4)), np.array((0.0, 0, 1))) == 0


class TestPrepare:
    def test_frames_follow_the_motion_and_are_the_sharp_ones(self, walked: Path, tmp_path: Path) -> None:
        prepare([walked], tmp_path / "out", **FLAGS)
        frames = Store(tmp_path / "out").scene("wall").frames
        chosen = [int(name) for name in frames.names]
        places = path()
        assert len(chosen) == wanted(places) == 20
        assert frames.valid.all()
        assert [k for k in chosen if k < 27] == list(range(1, 27, 3))
        assert len([k for k in chosen if 30 <= k < 90]) <= 1
        assert len(Store(tmp_path / "out").pairs().i) > 20

    @pytest.mark.thorough
    def test_again_elsewhere_and_over_it_gives_the_same_bytes(self, walked: Path, tmp_path: Path) -> None:
        for name in ("a", "b", "a"):
            prepare([walked], tmp_path / name, **FLAGS)
        assert files(tmp_path / "a") == files(tmp_path / "b")
        shutil.rmtree(tmp_path / "a" / "scenes" / "wall")
        prepare([walked], tmp_path / "a", **FLAGS)
        assert files(tmp_path / "a") == files(tmp_path / "b")

    def test_another_choice_is_refused(self, walked: Path, tmp_path: Path) -> None:
        prepare([walked], tmp_path, **FLAGS)
        with pytest.raises(ConfigError, match="select was 'motion', now 'every'"):
            prepare([walked], tmp_path, **FLAGS | {"select": "every"})
        with pytest.raises(ConfigError, match=r"--select 'sharp': choose one of every, motion"):
            prepare([walked], tmp_path, **FLAGS | {"select": "sharp"})

    def test_a_frame_step_is_kept_to(self, walked: Path, tmp_path: Path) -> None:
        prepare([walked], tmp_path, frame_step=2, **FLAGS)
        assert all(int(name) % 2 == 0 for name in Store(tmp_path).scene("wall").frames.names)

    @pytest.mark.thorough
    def test_damaged_frames_make_way_and_are_listed(self, walked: Path, tmp_path: Path) -> None:
        """The sharp one of a stretch cannot be read, another loses its pose: a blurred one is taken."""
        copy = shutil.copytree(walked, tmp_path / "wall")
        (copy / "depth" / "0001.png").write_bytes(b"no image")
        (copy / "pose" / "0003.txt").write_text("-inf " * 16)
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(copy / "depth" / "0007.png")
        prepare([copy], tmp_path / "out", **FLAGS)
        store = Store(tmp_path / "out")
        frames = store.scene("wall").frames
        assert list(frames.names) == sorted(frames.names)
        refused = {n: str(r) for n, ok, r in zip(frames.names, frames.valid, frames.reasons, strict=True) if not ok}
        assert set(refused) == {"0001", "0003", "0007"}
        assert "0001.png" in refused["0001"]
        assert "tracking was lost" in refused["0003"]
        assert "no valid depth" in refused["0007"]
        assert str(frames.names[frames.valid][0]) in {"0000", "0002"}
        assert frames.valid[store.pairs().i].all()
        assert store.manifest["scenes"]["wall"]["rejected"] == 3

    def test_nothing_usable(self, walked: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(walked, tmp_path / "wall")
        for pose in (copy / "pose").iterdir():
            pose.write_text("nan " * 16)
        with pytest.raises(DataError, match=r"none of 120 frames is usable. The first: .*0000\.txt"):
            prepare([copy], tmp_path / "out", **FLAGS)


class TestPoses:
    def test_of_a_corrected_scene(self, walked: Path) -> None:
        scene = open_recording(walked, correct="inverse,opengl").scenes()[0]
        np.testing.assert_allclose(scene.pose(5), scene.frame(5).world_from_camera)
        assert scene.pose(5)[0, 3] == pytest.approx(-5 * STEP)
        assert scene.pose(5)[1, 1] == -1

    def test_without_a_quick_way_come_from_the_frame(self, walked: Path) -> None:
        scene = open_recording(walked).scenes()[0]
        names = list(scene.names)
        slow = LazyScene("s", lambda: FrameList(names, lambda name: scene.frame(names.index(name))))
        for one in (slow, CorrectedScene(slow, Correction())):
            np.testing.assert_array_equal(one.pose(7), scene.pose(7))
