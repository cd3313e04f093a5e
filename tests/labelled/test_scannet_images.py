"""ScanNet frames as a labelled set: classes and objects, the official lists and their shares, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import ConfigError, DataError
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.labelled.scannet import ScanNetImages, rows_of_split
from pri3d.labelled.spaces import load_space
from pri3d.recordings.scannet import CLASS_NAMES, official_split
from pri3d.testing import LabelledSetContract

WIDTH, HEIGHT = 16, 12
TRAIN = [scan for scan, split in official_split().items() if split == "train"]
VAL = [scan for scan, split in official_split().items() if split == "val"]
OFFICIAL = {0.01: 18, 0.05: 63, 0.1: 110, 0.2: 235, 0.4: 479, 0.6: 720, 0.8: 961, 1.0: 1201}
NYU40_OF_20 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)


def maps() -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """NYU40 ids: wall and floor, a cabinet, two chairs, blinds (none of the 20), unlabelled; and their instances."""
    label = np.full((HEIGHT, WIDTH), 1, np.uint8)
    label[8:], label[2:5, 1:4], label[2:5, 5:9], label[6:9, 5:9] = 2, 3, 5, 5
    label[0:2, 12:], label[11, 0] = 13, 0
    instance = label.astype(np.uint16) * 1000
    instance[2:5, 1:4] += 1
    instance[2:5, 5:9] += 1
    instance[6:9, 5:9] += 2
    instance[0:2, 12:] += 1
    return label, instance


def write_scan(root: Path, scan: str, frames: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A scan as in scannet_frames_25k; ``size`` of the colour images."""
    label, instance = maps()
    for part in ("color", "label", "instance"):
        (root / scan / part).mkdir(parents=True)
    for k in range(frames):
        color = np.random.default_rng(k).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(color).save(root / scan / "color" / f"{k * 100:06d}.jpg")
        Image.fromarray(label).save(root / scan / "label" / f"{k * 100:06d}.png")
        Image.fromarray(instance).save(root / scan / "instance" / f"{k * 100:06d}.png")
    return root / scan


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Two frames of three training scans, out of their order on disk, and of one val scan."""
    for scan in (TRAIN[700], TRAIN[0], TRAIN[100], VAL[3]):
        write_scan(tmp_path / "scannet_frames_25k", scan, 2)
    return tmp_path / "scannet_frames_25k"


class TestScanNet(LabelledSetContract):
    name = "scannet"

    @pytest.fixture
    def images(self, frames: Path) -> LabelledImages:
        return ScanNetImages(frames, "train")


class TestUserSpace(LabelledSetContract):
    name = "scannet"

    @pytest.fixture
    def images(self, frames: Path, tmp_path: Path) -> LabelledImages:
        space = tmp_path / "seats.yaml"
        space.write_text("classes: {seat: [5, 6], rest: [1, 2, 3]}\nthings: [seat]\nignored: rest\n")
        return ScanNetImages(frames, "train", str(space))


def test_classes(frames: Path) -> None:
    images = open_labelled(frames, "train")
    assert isinstance(images, ScanNetImages)
    assert tuple(images.class_names) == CLASS_NAMES
    assert images.thing_names == list(CLASS_NAMES[2:])
    expected = np.full((HEIGHT, WIDTH), 255)
    for place, number in enumerate(NYU40_OF_20):
        expected[maps()[0] == number] = place
    assert np.array_equal(images.label(0), expected)
    assert set(np.unique(expected)) == {0, 1, 2, 4, 255}


def test_the_space_is_the_benchmarks() -> None:
    table = load_space("scannet20").table
    assert [int(np.nonzero(table == k)[0][0]) for k in range(20)] == list(NYU40_OF_20)
    assert (table[[n for n in range(41) if n not in NYU40_OF_20]] == 255).all()


def test_objects(frames: Path) -> None:
    """One cabinet, two chairs; blinds are no class, and the number 0 of walls and floors is no object."""
    images = ScanNetImages(frames, "train")
    found = images.instances(0)
    label, instance = maps()
    assert [images.thing_names[k] for k in found.classes] == ["cabinet", "chair", "chair"]
    assert np.array_equal(found.masks, np.stack([instance == n for n in (3001, 5001, 5002)]))
    assert found.boxes.tolist() == [[1, 2, 4, 5], [5, 2, 9, 5], [5, 6, 9, 9]]
    assert not found.crowd.any()
    forty = ScanNetImages(frames, "train", "nyu40")
    assert [forty.thing_names[k] for k in forty.instances(0).classes] == ["cabinet", "chair", "chair", "blinds"]
    assert np.array_equal(forty.label(0), np.where(label == 0, 255, label.astype(int) - 1))


def test_instance_images_of_plain_numbers(frames: Path) -> None:
    """The scans' own instance images count objects without their label."""
    for file in frames.glob("*/instance/*.png"):
        plain = np.zeros((HEIGHT, WIDTH), np.uint8)
        plain[2:5, 1:4], plain[2:5, 5:9] = 7, 9
        Image.fromarray(plain).save(file)
    found = ScanNetImages(frames, "train").instances(0)
    assert found.boxes.tolist() == [[1, 2, 4, 5], [5, 2, 9, 5]]


class TestSplit:
    @pytest.mark.parametrize(
        ("split", "scans"),
        [
            ("train", [TRAIN[0], TRAIN[100], TRAIN[700]]),
            ("val", [VAL[3]]),
            ("test", []),
            ("all", [TRAIN[0], TRAIN[100], TRAIN[700], VAL[3]]),
        ],
    )
    def test_official_lists_in_their_order(self, frames: Path, split: Split, scans: list[str]) -> None:
        names = ScanNetImages(frames, split).names
        assert names == [f"{scan}/{frame}" for scan in scans for frame in ("000000", "000100")]

    @pytest.mark.parametrize("where", [".", "scannet_frames_25k", "scans"])
    def test_where_scans_lie(self, tmp_path: Path, where: str) -> None:
        write_scan(tmp_path / "data" / where, TRAIN[0])
        assert open_labelled(tmp_path / "data", "train").names == [f"{TRAIN[0]}/000000"]
        scan = open_labelled(tmp_path / "data" / where / TRAIN[0], "train", "scannet")
        assert scan.names == [f"{TRAIN[0]}/000000"]

    def test_a_scan_of_no_list_counts_as_train(self, frames: Path) -> None:
        write_scan(frames, "kitchen")
        assert ScanNetImages(frames, "train").names[-1] == "kitchen/000000"
        assert "kitchen/000000" not in ScanNetImages(frames, "val").names

    def test_scans_of_no_list_are_dealt(self, tmp_path: Path) -> None:
        for k in range(5):
            write_scan(tmp_path, f"room{k}", 2)
        assert not ScanNetImages.detect(tmp_path) and not ScanNetImages.states_split(tmp_path)
        train, val = (open_labelled(tmp_path, split, "scannet").names for split in ("train", "val"))
        assert (len(train), len(val)) == (8, 2)
        assert set(train).isdisjoint(val)
        assert len(ScanNetImages(tmp_path, "train").subset(0.5)) == 4  # two scans of four, whole

    def test_scans_of_one_room_stay_together(self, tmp_path: Path) -> None:
        """Rooms from 0807 on are in no official list."""
        for room in range(900, 906):
            for scan in range(3):
                write_scan(tmp_path, f"scene{room:04d}_{scan:02d}")
        train, val = ({name[:9] for name in ScanNetImages(tmp_path, split).names} for split in ("train", "val"))
        assert not train & val and (len(train), len(val)) == (5, 1)

    def test_rooms_of_the_lists_decide(self) -> None:
        room = VAL[0].removesuffix("_00")
        scans = ["scene0900_00", VAL[0], "kitchen", f"{room}_77", TRAIN[0], "scene0800_00", "scene0800_01"]
        assert rows_of_split(scans, "val") == [1, 3]
        assert rows_of_split(scans, "train") == [0, 2, 4]
        assert rows_of_split(scans, "test") == [5, 6]
        assert rows_of_split(scans, "all") == list(range(7))
        official = official_split()
        assert len({scan[:9] for scan in official}) == len({(scan[:9], split) for scan, split in official.items()})

    def test_a_part_is_said(self, frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ScanNetImages(frames, "train")
        assert "3 of the 1201 scans of the official train list" in capsys.readouterr().err

    def test_nothing_there(self, tmp_path: Path) -> None:
        write_scan(tmp_path, TRAIN[0])
        with pytest.raises(DataError, match="no labelled image in split val"):
            open_labelled(tmp_path, "val")


@pytest.fixture(scope="module")
def every_scan(tmp_path_factory: pytest.TempPathFactory) -> ScanNetImages:
    """All 1201 training scans with an empty file for each image: shares need names alone."""
    root = tmp_path_factory.mktemp("scannet") / "frames"
    for scan in TRAIN:
        for part, name in (("color", "000000.jpg"), ("label", "000000.png")):
            (root / scan / part).mkdir(parents=True)
            (root / scan / part / name).touch()
    return ScanNetImages(root, "train")


class TestShares:
    @pytest.mark.parametrize(("fraction", "count"), OFFICIAL.items())
    def test_official_ones(self, every_scan: ScanNetImages, fraction: float, count: int) -> None:
        assert [every_scan.names[k].split("/")[0] for k in every_scan.subset(fraction)] == TRAIN[:count]

    @pytest.mark.thorough
    @settings(max_examples=25)
    @given(fractions=st.lists(st.floats(1e-4, 1), min_size=1, max_size=20))
    def test_others_lie_between_them(self, every_scan: ScanNetImages, fractions: list[float]) -> None:
        ordered = sorted([*fractions, *OFFICIAL])
        sizes = [len(every_scan.subset(fraction)) for fraction in ordered]
        assert sizes == sorted(sizes) and sizes[0] >= 1
        assert all(every_scan.subset(f) == list(range(n)) for f, n in zip(ordered, sizes, strict=True))

    @pytest.mark.parametrize("fraction", [0, -0.2, 1.1, float("nan")])
    def test_none(self, every_scan: ScanNetImages, fraction: float) -> None:
        with pytest.raises(ConfigError, match="fraction"):
            every_scan.subset(fraction)

    def test_part_of_the_scans(self, frames: Path) -> None:
        """What is there of the official list: scans 0, 100 and 700 of it, two images each."""
        images = ScanNetImages(frames, "train")
        sizes = {fraction: len(images.subset(fraction)) for fraction in (0.01, 0.05, 0.1, 0.6, 0.4, 1.0)}
        assert sizes == {0.01: 2, 0.05: 2, 0.1: 4, 0.4: 4, 0.6: 6, 1.0: 6}

    def test_at_least_one_scan(self, tmp_path: Path) -> None:
        write_scan(tmp_path, TRAIN[500], 2)
        write_scan(tmp_path, TRAIN[900], 2)
        assert ScanNetImages(tmp_path, "train").subset(0.01) == [0, 1]


class TestSizes:
    def test_labels_are_brought_to_the_colour_image(self, tmp_path: Path) -> None:
        write_scan(tmp_path, TRAIN[0], size=(WIDTH * 2, HEIGHT * 2))
        images = ScanNetImages(tmp_path, "train")
        twice = ScanNetImages(write_scan(tmp_path / "same", TRAIN[0]), "train")
        assert np.array_equal(images.label(0), twice.label(0).repeat(2, 0).repeat(2, 1))
        assert np.array_equal(images.instances(0).masks, twice.instances(0).masks.repeat(2, 1).repeat(2, 2))

    def test_sizes_of_the_sensor(self, tmp_path: Path) -> None:
        """1296x968 colour and 640x480 labels show the same view."""
        write_scan(tmp_path, TRAIN[0], size=(1296, 968))
        for part in ("label", "instance"):
            file = tmp_path / TRAIN[0] / part / "000000.png"
            with Image.open(file) as image:
                image.resize((640, 480), Image.Resampling.NEAREST).save(file)
        images = ScanNetImages(tmp_path, "train")
        assert images.label(0).shape == (968, 1296)
        assert images.instances(0).masks.shape == (3, 968, 1296)

    def test_another_view(self, tmp_path: Path) -> None:
        write_scan(tmp_path, TRAIN[0], size=(HEIGHT, WIDTH))
        images = ScanNetImages(tmp_path, "train")
        for read in (images.label, images.instance):
            with pytest.raises(DataError, match=r"16x12, its image .* is 12x16: they show different views"):
                read(0)
        with pytest.raises(DataError, match=r"000000\.png: is 16x12, .* they show different views"):
            images.check_size(0)


class TestRefused:
    def test_ids_of_the_scans_own_label_images(self, frames: Path) -> None:
        for file in frames.glob("*/label/*.png"):
            Image.fromarray(np.full((HEIGHT, WIDTH), 1191, np.uint16)).save(file)
        for labels in (None, "nyu40"):
            with pytest.raises(DataError, match=r"000000\.png: holds id 1191; expected are NYU40 ids"):
                ScanNetImages(frames, "train", labels).label(0)

    def test_an_id_that_the_space_lacks(self, frames: Path, tmp_path: Path) -> None:
        space = tmp_path / "few.yaml"
        space.write_text("classes: {chair: 5}\nignored: [0, 1]\n")
        with pytest.raises(DataError, match=r"000000\.png: holds ids \[2, 3, 13\]"):
            ScanNetImages(frames, "train", str(space)).label(0)

    @pytest.mark.parametrize("part", ["color", "label", "instance"])
    def test_damaged_image(self, frames: Path, part: str) -> None:
        file = next((frames / TRAIN[0] / part).glob("000000.*"))
        file.write_bytes(file.read_bytes()[:60])
        images = ScanNetImages(frames, "train")
        with pytest.raises(DataError, match=str(file)):
            (images.color if part == "color" else images.instances)(0)
            images.label(0)

    def test_without_instance_images(self, frames: Path) -> None:
        (frames / TRAIN[0] / "instance" / "000000.png").unlink()
        with pytest.raises(DataError, match=f"{TRAIN[0]}/000000 has no instance map, but other images have one"):
            ScanNetImages(frames, "train").instances(0)
        for folder in frames.glob("*/instance"):
            shutil.rmtree(folder)
        images = ScanNetImages(frames, "train")
        assert images.instance(0) is None and not images.has_objects
        with pytest.raises(DataError, match="no instance maps"):
            images.instances(0)

    def test_images_without_labels_are_left_out(self, frames: Path) -> None:
        (frames / TRAIN[0] / "label" / "000000.png").unlink()
        (frames / TRAIN[100] / "color" / "000100.jpg").unlink()
        assert ScanNetImages(frames, "train").names[:2] == [f"{TRAIN[0]}/000100", f"{TRAIN[100]}/000000"]

    def test_no_folder_of_scans(self, tmp_path: Path) -> None:
        (tmp_path / "scene0000_00" / "color").mkdir(parents=True)
        (tmp_path / "notes.txt").touch()
        assert not ScanNetImages.detect(tmp_path) and not ScanNetImages.detect(tmp_path / "notes.txt")
