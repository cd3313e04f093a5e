"""ScanNet: three layouts against the contract, the official split, labels, and what one damaged scan may cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reader_contract import FilesContract, RecordingContract
from sample_frames import FRAMES, HEIGHT, WIDTH, rendered
from samples import NYU40, write_folder, write_scannet, write_scannet_sens
from sens_writer import parts, write_sens

from pri3d.api.prepare import prepare
from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.preparation.pipeline import open_cached
from pri3d.recordings import load_reader, open_recording
from pri3d.recordings.scannet import CLASS_NAMES, official_split
from pri3d.store import Store

CAMERA = rendered()[0].color_camera


class TestFrames25k(FilesContract):
    name = "scannet"

    def test_labels_become_benchmark_ids(self, samples) -> None:
        recording = self.open(samples[self.sample_name].root)
        assert recording.class_names == CLASS_NAMES
        assert len(CLASS_NAMES) == 20
        for k, truth in enumerate(rendered()):
            frame = recording.scenes()[0].frame(k)
            assert np.array_equal(frame.label, np.where(truth.label < 20, truth.label, 255))
            assert np.array_equal(frame.instance, truth.instance)

    def test_every_nyu40_id(self, sample) -> None:
        ids = np.zeros((HEIGHT, WIDTH), np.uint8)
        ids[0, :41] = range(41)
        Image.fromarray(ids).save(sample.root / "scene0191_00" / "label" / "000000.png")
        label = self.open(sample.root).scenes()[0].frame(0).label
        wanted = [NYU40.index(k) if k in NYU40 else 255 for k in range(41)]
        assert label[0, :41].tolist() == wanted
        assert (label[1:] == 255).all()
        assert CLASS_NAMES[wanted[39]] == "otherfurniture"
        assert CLASS_NAMES[wanted[16]] == "curtain"

    def test_other_ids_are_refused(self, sample) -> None:
        Image.fromarray(np.full((HEIGHT, WIDTH), 41, np.uint8)).save(
            sample.root / "scene0191_00" / "label" / "000000.png"
        )
        with pytest.raises(FrameError, match=r"frame 000000 holds id 41.*NYU40"):
            self.open(sample.root).scenes()[0].frame(0)

    @pytest.mark.parametrize("camera", ["color", "depth"])
    def test_missing_or_damaged_intrinsics(self, sample, camera: str) -> None:
        path = sample.root / "scene0191_00" / f"intrinsics_{camera}.txt"
        for text in ("", "1 2 3", "0 " * 16, "nan " * 16):
            path.write_text(text)
            with pytest.raises(DataError, match=r"scene0191_00"):
                self.open(sample.root).scenes()[0].frame(0)

    def test_no_frame(self, sample) -> None:
        for path in sample.color.parent.iterdir():
            path.unlink()
        with pytest.raises(DataError, match="no frame"):
            len(self.open(sample.root).scenes()[0].names)


class TestExported(FilesContract):
    name, layout = "scannet", "exported"

    def test_has_no_labels(self, samples) -> None:
        assert self.open(samples[self.sample_name].root).class_names is None

    def test_extrinsics_are_honoured(self, sample) -> None:
        shift = np.eye(4)
        shift[:3, 3] = (0.02, 0, 0)
        folder = sample.root / "scene0191_00" / "intrinsic"
        np.savetxt(folder / "extrinsic_depth.txt", shift)
        frame = self.open(sample.root).scenes()[0].frame(0)
        assert np.array_equal(frame.color_from_depth, shift)
        np.testing.assert_allclose(frame.world_from_camera, rendered()[0].world_from_camera, atol=1e-8)
        np.savetxt(folder / "extrinsic_color.txt", shift)
        with pytest.raises(DataError, match="neither camera"):
            self.open(sample.root).scenes()[0].frame(0)
        np.savetxt(folder / "extrinsic_depth.txt", np.eye(4))
        frame = self.open(sample.root).scenes()[0].frame(0)
        np.testing.assert_allclose(frame.world_from_camera, rendered()[0].world_from_camera @ shift, atol=1e-8)
        np.testing.assert_allclose(frame.world_from_camera @ frame.color_from_depth, rendered()[0].world_from_camera)

    def test_the_scans_own_file_goes_before_its_export(self, sample) -> None:
        scene = sample.root / "scene0191_00"
        write_sens(scene / "scene0191_00.sens", [parts(frame) for frame in rendered()[:2]], CAMERA)
        assert len(self.open(sample.root).scenes()[0].names) == 2


class TestSensRecording(RecordingContract):
    name, layout, atol = "scannet", "sens", 1e-5

    def test_surface(self, sample) -> None:
        scene = self.open(sample.root).scenes()[0]
        assert scene.mesh() is None
        mesh = sample.color.with_name("scene0191_00_vh_clean_2.ply")
        mesh.touch()
        assert scene.mesh() == mesh

    @pytest.mark.parametrize("where", ["", "scans", "scans/scene0191_00"])
    def test_any_folder_of_it_will_do(self, sample, where: str) -> None:
        assert [scene.id for scene in open_recording(sample.root / where).scenes()] == ["scene0191_00"]

    def test_files_side_by_side(self, sample) -> None:
        shutil.copy(sample.color, sample.color.with_name("scene0119_00.sens"))
        assert [scene.id for scene in self.open(sample.root).scenes()] == ["scene0119_00", "scene0191_00"]


class TestSplit:
    def test_the_official_lists(self) -> None:
        split = official_split()
        counts = {name: list(split.values()).count(name) for name in ("train", "val", "test")}
        assert counts == {"train": 1201, "val": 312, "test": 100}
        assert len(split) == 1613
        assert list(split)[:4] == ["scene0191_00", "scene0191_01", "scene0191_02", "scene0119_00"]
        assert split["scene0568_02"] == "val"
        assert split["scene0707_00"] == "test"
        rooms = {name: {scan[:9] for scan in split if split[scan] == name} for name in counts}
        assert not rooms["train"] & rooms["val"]
        assert not rooms["test"] & (rooms["train"] | rooms["val"])

    @pytest.fixture
    def recording(self, tmp_path: Path) -> Path:
        """Two training scans, one of the validation list, one of the test list and one in no list."""
        root = tmp_path / "scannet"
        content = write_scannet_sens(root).color.read_bytes()
        for folder, scan in (("scans", "scene0568_00"), ("scans", "scene0119_00"), ("scans", "office")):
            (root / folder / scan).mkdir()
            (root / folder / scan / f"{scan}.sens").write_bytes(content)
        test = root / "scans_test" / "scene0707_00"
        test.mkdir(parents=True)
        (test / "scene0707_00.sens").write_bytes(content)
        return root

    @pytest.mark.parametrize(
        ("split", "wanted"),
        [
            (None, ["office", "scene0119_00", "scene0191_00"]),
            ("train", ["office", "scene0119_00", "scene0191_00"]),
            ("val", ["scene0568_00"]),
            ("test", ["scene0707_00"]),
            ("all", ["office", "scene0119_00", "scene0191_00", "scene0568_00", "scene0707_00"]),
        ],
    )
    def test_val_only_where_it_is_asked_for(self, recording: Path, split: str | None, wanted: list[str]) -> None:
        options = {} if split is None else {"split": split}
        scenes = open_recording(recording, **options).scenes()
        assert [scene.id for scene in scenes] == wanted
        assert {scene.id: scene.split for scene in scenes}.get("office") is None

    def test_no_scene_of_the_split(self, recording: Path) -> None:
        with pytest.raises(DataError, match=r"none of its 1 scenes is in the official train list.*--split val"):
            open_recording(recording / "scans" / "scene0568_00").scenes()

    def test_unknown_split_and_formats_without_one(self, recording: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="validation"):
            open_recording(recording, split="validation")
        other = write_folder(tmp_path / "r").root
        with pytest.raises(ConfigError, match=r"--split val.*folder"):
            open_recording(other, split="val")
        assert open_recording(other, split="all").scenes()

    def test_the_manifest_says_which_went_in(self, recording: Path, tmp_path: Path) -> None:
        options = {"size": "48x36", "distance": 0.2, "min_overlap": 0.01, "surface": False, "processes": 1}
        options["frame_step"] = 1
        prepare([recording], tmp_path / "train", **options)
        manifest = Store(tmp_path / "train").manifest
        assert manifest["settings"]["split"] == "train"
        there = {scene: record["split"] for scene, record in manifest["scenes"].items()}
        assert there == {"office": None, "scene0119_00": "train", "scene0191_00": "train"}
        with pytest.raises(ConfigError, match=r"split was 'train', now 'val'"):
            prepare([recording], tmp_path / "train", split="val", **options)
        prepare([recording], tmp_path / "val", split="val", **options)
        assert Store(tmp_path / "val").scenes == ["scene0568_00"]
        assert Store(tmp_path / "val").manifest["settings"]["split"] == "val"

    def test_a_store_from_before_the_option_is_continued(self, recording: Path, tmp_path: Path) -> None:
        options = {"size": "48x36", "pairs": False, "surface": False, "processes": 1}
        prepare([recording], tmp_path / "out", **options)
        path = tmp_path / "out" / "dataset.json"
        manifest = json.loads(path.read_text())
        del manifest["settings"]["split"]
        path.write_text(json.dumps(manifest))
        scenes = Store(tmp_path / "out").scenes
        prepare([recording], tmp_path / "out", **options)
        assert Store(tmp_path / "out").scenes == scenes

    def test_a_damaged_scan_costs_itself_alone(self, recording: Path, tmp_path: Path) -> None:
        (recording / "scans/scene0119_00/scene0119_00.sens").write_bytes(b"\x04\0\0\0")
        with pytest.raises(DataError, match=r"1 of 3 scenes failed(.|\n)*scene0119_00\.sens"):
            prepare([recording], tmp_path / "out", size="48x36", pairs=False, surface=False, processes=1)
        assert Store(tmp_path / "out").scenes == ["office", "scene0191_00"]

    def test_changed_cameras_of_a_scan_are_noticed(self, recording: Path, tmp_path: Path) -> None:
        stated = recording / "scans" / "scene0119_00" / "cameras.yaml"
        stated.write_text("color: {fx: 40, fy: 40, cx: 24, cy: 18}\n")
        options = {"size": "48x36", "pairs": False, "surface": False, "processes": 1}
        prepare([recording], tmp_path / "out", **options)
        scenes = Store(tmp_path / "out").manifest["scenes"]
        assert list(scenes["scene0119_00"]["cameras"]) == ["scans/scene0119_00/cameras.yaml"]
        assert scenes["scene0191_00"]["cameras"] == {}
        open_cached.cache_clear()
        stated.write_text("color: {fx: 41, fy: 40, cx: 24, cy: 18}\n")
        with pytest.raises(ConfigError, match="other cameras"):
            prepare([recording], tmp_path / "out", **options)

    def test_of_a_video_every_25th_frame_is_taken_but_never_few(self, recording: Path, tmp_path: Path) -> None:
        prepare([recording], tmp_path / "out", size="48x36", pairs=False, surface=False, processes=1)
        scenes = Store(tmp_path / "out").manifest["scenes"].values()
        assert {(scene["frame_rule"], scene["frames"], scene["source_frames"]) for scene in scenes} == {
            ("one in 1", FRAMES, FRAMES)
        }
        assert load_reader("scannet")(recording).frame_step == 25
        assert open_recording(write_scannet(tmp_path / "frames").root).frame_step == 1

    def test_labels_reach_the_store(self, tmp_path: Path) -> None:
        write_scannet(tmp_path / "frames")
        prepare([tmp_path / "frames"], tmp_path / "out", size="48x36", pairs=False, surface=False, processes=1)
        store = Store(tmp_path / "out")
        assert tuple(store.class_names) == CLASS_NAMES
        scene = store.scene("scene0191_00")
        assert len(scene.frames.names) == FRAMES
        assert np.array_equal(scene.label(0), np.where(rendered()[0].label < 20, rendered()[0].label, 255))
