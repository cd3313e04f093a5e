"""`check` names every mistake of benchmarks/faults.py, says what mends it, and leaves good recordings alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.check import AS_PUBLISHED, real, said
from benchmarks.faults import (
    FAULTS,
    MadeScene,
    both_cameras,
    changed,
    coarser,
    cropped,
    every,
    faulty,
    first,
    of_frames,
    room_scene,
    slow_room_scene,
    turning_room_scene,
)

from pri3d.checking.check import write_sheet
from pri3d.checking.evidence import Shots, stack_shots
from pri3d.checking.hypotheses import Hypothesis, Reprojection, measure_residual
from pri3d.checking.registration import (
    RecameredScene,
    find_depth_edges,
    fit_registration,
    measure_displacement,
    place_edges,
    stream_edges,
)
from pri3d.checking.verdict import judge
from pri3d.errors import DataError, FrameError
from pri3d.recordings import CorrectedScene, Scene
from pri3d.recordings._shared.cameras import read_cameras
from pri3d.recordings._shared.correction import Correction, parse_correction
from pri3d.types import Camera, Frame

FRAMES, PAIRS = 16, 24
#: mistakes that are judged each time; all of them, at the usual number of frames, in the slow tests
QUICK = ("poses inverted", "intrinsics of 2x the size", "depth 1 frame late", "colour not registered", "blurred")


@pytest.fixture(scope="module")
def room() -> MadeScene:
    return room_scene(3, 1, FRAMES, (80, 60))


@pytest.fixture(scope="module")
def large_room() -> MadeScene:
    return room_scene(7, 0, 40, (160, 120))


def check_named(scene: Scene, name: str, frames: int, pairs: int) -> None:
    judgement = judge(faulty(scene, name), frames, pairs)
    fault = FAULTS[name]
    assert sorted(said(judgement)) == sorted(fault.named)
    if fault.correct is not None:
        assert judgement.correct == fault.correct


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_is_named(room: MadeScene, name: str) -> None:
    check_named(room, name, FRAMES, PAIRS)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_every_mistake_is_named_in_a_room(large_room: MadeScene, name: str) -> None:
    check_named(large_room, name, 40, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_every_mistake_is_named_in_real_frames(real_data: Path, name: str) -> None:
    check_named(real(real_data, "7scenes_redkitchen"), name, 40, 60)


@pytest.mark.thorough
def test_a_good_room_passes_with_figures(room: MadeScene) -> None:
    judgement = judge(room, FRAMES, PAIRS)
    assert judgement.verdict == "ok", judgement.findings
    assert judgement.correct == judgement.cameras == ""
    assert judgement.alternatives is not None
    assert judgement.alternatives["as stated"] > 4 * judgement.alternatives["poses inverted"]
    assert {"frames", "intrinsics", "direction", "axes", "depth scale", "time", "registration", "overlap"} <= {
        finding.check for finding in judgement.findings
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "scene",
    [
        lambda: slow_room_scene(30, 0, 200, (80, 60)),
        lambda: room_scene(21, 1, 20, (120, 90), noise=False),
        lambda: cropped(room_scene(34, 0, 20, (160, 120)), 24, 12, 120, 90),
        lambda: coarser(room_scene(36, 0, 20, (160, 120)), 80, 60),
        lambda: room_scene(33, 0, 8, (160, 120)),
    ],
    ids=["filmed", "exact", "cropped", "coarse depth", "few frames"],
)
def test_good_rooms_pass(scene: object) -> None:
    assert judge(scene(), 40, 60).faults == []  # type: ignore[operator]


@pytest.mark.slow
def test_good_real_frames_pass(real_data: Path, tmp_path: Path) -> None:
    kitchen = real(real_data, "7scenes_redkitchen")
    (tmp_path / "cameras.yaml").write_text(AS_PUBLISHED)
    published = real(real_data, "7scenes_redkitchen_unregistered", tmp_path / "cameras.yaml")
    for scene in (kitchen, every(kitchen, 5), first(kitchen, 80), cropped(kitchen, 80, 60, 480, 360), published):
        assert judge(scene).verdict == "ok"


@pytest.mark.slow
def test_unregistered_colour_is_fitted(real_data: Path, tmp_path: Path) -> None:
    judgement = judge(real(real_data, "7scenes_redkitchen_unregistered"))
    assert said(judgement) == ("colour not registered",)
    path = tmp_path / "cameras.yaml"
    path.write_text(judgement.cameras)
    cameras = read_cameras(path)
    assert cameras.color.fx == pytest.approx(517.7, rel=0.03)
    assert cameras.color_from_depth[0, 3] == pytest.approx(-0.0217, abs=0.01)
    assert judge(real(real_data, "7scenes_redkitchen_unregistered", path)).verdict == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poses inverted", "depth x 0.2", "translations in mm", "depth 1 frame late"])
def test_with_the_advice_it_passes(room: MadeScene, name: str) -> None:
    wrong = faulty(room, name)
    advised = parse_correction(judge(wrong, FRAMES, PAIRS).correct)
    assert judge(CorrectedScene(wrong, advised), FRAMES, PAIRS).faults == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["intrinsics of 2x the size", "focal length x 1.2"])
def test_with_the_advised_cameras_it_passes(room: MadeScene, name: str, tmp_path: Path) -> None:
    judgement = judge(faulty(room, name), FRAMES, PAIRS)
    (tmp_path / "cameras.yaml").write_text(judgement.cameras)
    cameras = read_cameras(tmp_path / "cameras.yaml")
    assert cameras.color.fx == pytest.approx(room.frame(0).color_camera.fx, rel=0.02)
    color, depth = (Camera(80, 60, *c[:4]) for c in (cameras.color, cameras.depth))
    assert judge(RecameredScene(faulty(room, name), color, depth), FRAMES, PAIRS).faults == []


def test_no_poses_leaves_what_can_be_judged(room: MadeScene) -> None:
    scene = of_frames("unposed", [room.frame(k)._replace(world_from_camera=np.eye(4)) for k in range(8)])
    scene.posed = False  # type: ignore[attr-defined]
    judgement = judge(scene, FRAMES, PAIRS)
    assert judgement.faults == []
    verdicts = {finding.check: finding.verdict for finding in judgement.findings}
    assert verdicts["poses"] == "unknown"
    assert verdicts["registration"] == "ok"


def test_no_depth_is_a_fault_of_its_own(room: MadeScene) -> None:
    scene = MadeScene("bare", room.names, lambda k: changed(depth=lambda f: np.zeros_like(f.depth))(room, k))
    assert said(judge(scene, FRAMES, PAIRS)) == ("no depth",)


def test_too_few_frames_are_a_warning(room: MadeScene) -> None:
    assert said(judge(first(room, 2), FRAMES, PAIRS)) == ("poses",)


@pytest.mark.thorough
def test_a_factor_that_makes_movement_vanish_explains_nothing(room: MadeScene) -> None:
    wall = changed(depth=lambda f: np.full_like(f.depth, 2), color=lambda f: np.full_like(f.color, 128))
    assert said(judge(MadeScene("wall", room.names, lambda k: wall(room, k)), 8, PAIRS)) == ("poses do not fit",)


@pytest.mark.slow
def test_an_unknown_unit_is_not_judged(room: MadeScene) -> None:
    def far(index: int):  # type: ignore[no-untyped-def]
        frame = room.frame(index)
        pose = frame.world_from_camera.copy()
        pose[:3, 3] *= 300
        return frame._replace(depth=frame.depth * np.float32(300), world_from_camera=pose)

    scene = MadeScene("scaled", room.names, far)
    assert said(judge(scene, FRAMES, PAIRS)) == ("size",)  # a warning: consistent, but 900 m large
    scene.metric = False  # type: ignore[attr-defined]
    judgement = judge(scene, FRAMES, PAIRS)
    assert judgement.verdict == "ok"
    assert {f.check: f.verdict for f in judgement.findings}["size"] == "unknown"


@pytest.mark.thorough
def test_lost_frames_are_a_warning_and_nothing_but_them_a_fault(room: MadeScene) -> None:
    def some(index: int):  # type: ignore[no-untyped-def]
        if index % 3 == 1:
            raise FrameError("pose 7: the pose is not finite")
        return room.frame(index)

    judgement = judge(MadeScene("some", room.names, some), FRAMES, PAIRS)
    assert judgement.verdict == "warning"
    assert "not finite" in judgement.findings[0].figure

    def none(index: int):  # type: ignore[no-untyped-def]
        raise FrameError("pose 7: the pose is not finite")

    assert said(judge(MadeScene("none", room.names, none), FRAMES, PAIRS)) == ("frames unusable",)


def test_a_scene_that_cannot_be_opened_raises() -> None:
    class Closed(Scene):
        id = "closed"

        @property
        def names(self) -> list[str]:
            raise DataError("closed: cannot be opened")

        def frame(self, index: int) -> Frame:
            raise AssertionError(index)

    with pytest.raises(DataError, match="closed"):
        judge(Closed(), FRAMES, PAIRS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "unknown"),
    [
        (lambda room: turning_room_scene(7, 0, 30, (80, 60)), ["depth scale"]),
        (lambda room: turning_room_scene(7, 0, 30, (80, 60), sway=0.01), ["depth scale"]),
        (lambda room: first(room, 5), []),
        (lambda room: of_frames("still", [room.frame(3)._replace(name=f"{k:03d}") for k in range(8)]), None),
        (lambda room: cropped(room, 16, 4, 48, 44), []),
    ],
    ids=["turning", "turning, swaying", "five frames", "one frame eight times", "cropped"],
)
def test_what_the_frames_do_not_determine_is_not_advised(room: MadeScene, scene: object, unknown: list[str]) -> None:
    """Where no scale shows none is corrected; the verdict does not depend on the choice of pairs and points."""
    made = scene(room)  # type: ignore[operator]
    verdicts = set()
    for seed in range(3):
        judgement = judge(made, FRAMES, PAIRS, seed)
        assert judgement.correct == judgement.cameras == ""
        assert judgement.faults == []
        assert not any("--correct" in finding.advice for finding in judgement.findings)
        undetermined = [f.check for f in judgement.findings if f.verdict == "unknown"]
        assert unknown is None or undetermined == unknown
        verdicts.add((judgement.verdict, *sorted(said(judgement))))
    assert len(verdicts) == 1


def off_centre(scene: Scene, right: float, down: float) -> MadeScene:
    moved = both_cameras(lambda c: c._replace(cx=c.cx + right * c.width, cy=c.cy + down * c.width))
    return MadeScene("off-centre", scene.names, lambda k: moved(scene, k))


@pytest.mark.slow
@pytest.mark.parametrize(("right", "down"), [(0.0625, 0.0), (-0.05, 0.0), (0.0, 0.05)])
def test_a_centre_that_is_off_is_found_and_mended(room: MadeScene, right: float, down: float, tmp_path: Path) -> None:
    """40 of 640 pixels: most points agree within 4 % of the depth, but few within the 2 cm of prepare."""
    judgement = judge(off_centre(room, right, down), FRAMES, PAIRS)
    assert said(judgement) == ("centre cx" if right else "centre cy",)
    assert judgement.correct == ""
    (tmp_path / "cameras.yaml").write_text(judgement.cameras)
    cameras, truth = read_cameras(tmp_path / "cameras.yaml"), room.frame(0).color_camera
    assert (cameras.color.cx, cameras.color.cy) == pytest.approx((truth.cx, truth.cy), abs=0.01 * truth.width)
    assert cameras.color.fx == pytest.approx(truth.fx, rel=1e-3)


@pytest.mark.slow
def test_a_centre_a_little_off_is_a_warning_without_a_correction(room: MadeScene) -> None:
    judgement = judge(off_centre(room, 0.023, 0.0), FRAMES, PAIRS)  # 15 of 640 pixels
    assert (said(judgement), judgement.correct, judgement.cameras) == (("centre cx",), "", "")


@pytest.mark.slow
def test_one_cause_is_named_at_a_time(room: MadeScene) -> None:
    judgement = judge(faulty(room, "depth x 1.12"), FRAMES, PAIRS)
    assert [finding.check for finding in judgement.findings if finding.verdict in ("fault", "warning")] == [
        "depth scale"
    ]
    assert judgement.cameras == ""


def test_the_residual_is_the_median_distance_along_z() -> None:
    target = np.zeros((1, 4, 3))
    target[..., 2] = (2.0, 2.0, 2.0, 1.0)
    measured = np.array(((2.0, 1.98, 2.02, np.nan),))
    found = Reprojection(
        target[..., 2] / measured - 1, target, target, np.ones((1, 4), bool), (np.zeros(1), np.zeros(1))
    )
    assert measure_residual(found) == pytest.approx(0.02)
    assert np.isnan(measure_residual(found._replace(residual=np.full((1, 4), np.nan))))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("gap", [0, 1])
def test_depth_edges_lie_between_the_near_and_the_far_side(axis: int, gap: int) -> None:
    """A box of 10 pixels before a wall, with a mixed pixel between or without: its outline is that of the jump."""
    depth = np.full((30, 40), 3.0, np.float32)
    near = np.s_[10:20, 12:22] if axis else np.s_[8:20, 10:26]
    depth[near] = 1.5
    if gap:  # no measurement beside the jump
        rows, columns = near
        depth[rows.start - 1, columns] = 0
    found = find_depth_edges(depth)
    places = place_edges(depth, found)
    rows, columns = near
    assert places[:, 0].min() == columns.start
    assert places[:, 0].max() == columns.stop
    assert places[:, 1].min() == rows.start - gap / 2
    assert places[:, 1].max() == rows.stop


@pytest.mark.slow
def test_registration_that_is_right_reads_no_offset(large_room: MadeScene) -> None:
    """And one that is off reads its own: 0 and 8 of 160 pixels."""
    for moved in (0, 8):
        load = changed(
            color_camera=lambda f, moved=moved: f.color_camera._replace(cx=f.color_camera.cx + moved)  # type: ignore[misc]
        )
        scene = MadeScene("moved", large_room.names, lambda k, load=load: load(large_room, k))  # type: ignore[misc]
        shots = Shots(scene)
        edges = stream_edges(shots, stack_shots(shots, range(40), 0), Hypothesis())
        assert measure_displacement(edges, fit_registration(edges)) * 160 == pytest.approx(moved, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("late", [-0.02, 0.05, -1 / 30])
def test_poses_of_another_time_are_named_and_mended(late: float, tmp_path: Path) -> None:
    """By milliseconds, not by frames: 30 a second."""
    scene = slow_room_scene(30, 0, 120, (120, 90), late=late)
    judgement = judge(scene)
    assert said(judgement) == ("time offset of the poses",)
    correction = parse_correction(judgement.correct)
    assert correction._replace(time=0.0) == Correction()
    assert correction.time == pytest.approx(-late, abs=0.005)
    assert judgement.evidence is not None
    write_sheet(tmp_path / "sheet.png", judgement.evidence, ["title"], rows=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape[1] == 6 * 246 + 6  # as stated, and as advised
    differ = [pixels[60:, 6 + 246 * k : 246 * (k + 1)] for k in (2, 4)]
    assert np.abs(differ[0] - differ[1]).mean() > 1
    mended = judge(CorrectedScene(scene, correction))
    assert mended.verdict == "ok"


@pytest.mark.slow
def test_poses_in_time_are_left_alone() -> None:
    assert judge(slow_room_scene(30, 0, 120, (120, 90))).verdict == "ok"


@pytest.mark.thorough
def test_a_still_camera_is_a_warning(room: MadeScene) -> None:
    scene = of_frames("still", [room.frame(3)._replace(name=f"{k:03d}") for k in range(10)])
    judgement = judge(scene, FRAMES, PAIRS)
    assert judgement.faults == []
    assert "motion" in said(judgement)
    assert {f.check: f.verdict for f in judgement.findings}["registration"] == "unknown"  # all frames are one
