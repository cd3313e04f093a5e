"""Cityscapes and KITTI on small files of their exact layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import DataError
from pri3d.labelled import LabelledImages, open_labelled
from pri3d.labelled.cityscapes import CityscapesImages, numbered_objects
from pri3d.labelled.kitti import KittiImages
from pri3d.labelled.spaces import load_space
from pri3d.testing import LabelledSetContract

CAR, PERSON, ROAD, TRAILER = 26, 24, 7, 30


def save(path: Path, pixels: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def street(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Colours, label ids, and the number of the object: two cars, a person, a group of cars, a trailer, road."""
    color = np.random.default_rng(seed).integers(256, size=(12, 20, 3), dtype=np.uint8)
    label, number = np.full((12, 20), ROAD, np.uint8), np.full((12, 20), -1)
    label[0] = 3  # out of the region of interest
    for rows, columns, kind, count in (
        (slice(2, 5), slice(0, 4), CAR, 0),
        (slice(2, 6), slice(5, 9), CAR, 1),
        (slice(4, 9), slice(10, 12), PERSON, 0),
        (slice(2, 4), slice(13, 19), CAR, -1),
        (slice(10, 12), slice(3, 9), TRAILER, 0),
    ):
        label[rows, columns], number[rows, columns] = kind, count
    return color, label, number


CITIES = {
    "train": ["aachen/aachen_000000_000019", "bremen/bremen_000003_000019", "aachen/aachen_000001_000019"],
    "val": ["frankfurt/frankfurt_000000_000294", "lindau/lindau_000000_000019"],
    "test": ["berlin/berlin_000000_000019"],
}


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for split, frames in CITIES.items():
        for k, frame in enumerate(frames):
            color, label, number = street(k)
            kinds = np.where(number >= 0, label.astype(np.int64) * 1000 + number, label)
            save(tmp_path / "leftImg8bit" / split / f"{frame}_leftImg8bit.png", color)
            save(tmp_path / "gtFine" / split / f"{frame}_gtFine_labelIds.png", label)
            save(tmp_path / "gtFine" / split / f"{frame}_gtFine_instanceIds.png", kinds.astype(np.uint16))
            save(tmp_path / "gtFine" / split / f"{frame}_gtFine_color.png", color)
            (tmp_path / "gtFine" / split / f"{frame}_gtFine_polygons.json").write_text("{}")
    return tmp_path


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    for k in range(10):
        color, label, number = street(k)
        kinds = label.astype(np.int64) * 256 + number + 1  # numbers start at 1, 0 = not told apart
        save(tmp_path / "training" / "image_2" / f"{k:06d}_10.png", color)
        save(tmp_path / "training" / "semantic" / f"{k:06d}_10.png", label)
        save(tmp_path / "training" / "semantic_rgb" / f"{k:06d}_10.png", color)
        save(tmp_path / "training" / "instance" / f"{k:06d}_10.png", kinds.astype(np.uint16))
        save(tmp_path / "testing" / "image_2" / f"{k:06d}_10.png", color)
    return tmp_path


def check_street(images: LabelledImages, k: int, seed: int) -> None:
    """Image k is the street of that seed: 19 classes, the trailer ignored, three objects and a crowd."""
    color, label, number = street(seed)
    np.testing.assert_array_equal(images.color(k), color)
    wanted = {ROAD: 0, CAR: 13, PERSON: 11, TRAILER: 255, 3: 255}
    np.testing.assert_array_equal(images.label(k), np.vectorize(wanted.__getitem__)(label))
    found = images.instances(k)
    objects = [
        (images.thing_names[kind], bool(crowd), *map(int, box))
        for kind, crowd, box in zip(found.classes, found.crowd, found.boxes, strict=True)
    ]
    assert sorted(objects) == [
        ("car", False, 0, 2, 4, 5),
        ("car", False, 5, 2, 9, 6),
        ("car", True, 13, 2, 19, 4),
        ("person", False, 10, 4, 12, 9),
    ]
    np.testing.assert_array_equal(found.masks.any(0), np.isin(label, (CAR, PERSON)))
    np.testing.assert_array_equal(found.masks[found.crowd].any(0), (label == CAR) & (number < 0))


class TestCityscapes(LabelledSetContract):
    name = "cityscapes"

    @pytest.fixture
    def images(self, cityscapes: Path) -> LabelledImages:
        return open_labelled(cityscapes, "train")

    def test_what_was_drawn_comes_back(self, images: LabelledImages) -> None:
        assert type(images) is CityscapesImages
        assert images.names == ["aachen_000000_000019", "aachen_000001_000019", "bremen_000003_000019"]
        for k, seed in enumerate((0, 2, 1)):
            check_street(images, k, seed)

    def test_split_is_the_official_one(self, images: LabelledImages) -> None:
        assert CityscapesImages.states_split(images.path)
        assert open_labelled(images.path, "val").names == ["frankfurt_000000_000294", "lindau_000000_000019"]
        assert len(open_labelled(images.path, "all").names) == 5
        with pytest.raises(DataError, match=r"does not publish the labels of its test split\. Use val"):
            open_labelled(images.path, "test")

    def test_lost_and_damaged_maps_are_named(self, images: LabelledImages) -> None:
        labels, objects = (
            images.path / "gtFine" / "train" / "aachen" / f"aachen_000000_000019_gtFine_{what}.png"
            for what in ("labelIds", "instanceIds")
        )
        save(objects, np.full((12, 20), 34_001, np.uint16))
        with pytest.raises(DataError, match=rf"{objects}: holds ids \[34\], which have no class"):
            images.instances(0)
        save(objects, np.zeros((20, 12), np.uint16))
        with pytest.raises(DataError, match=f"{objects}: is 12x20, its image .* is 20x12"):
            images.instances(0)
        save(labels, np.full((12, 20), 34, np.uint8))
        with pytest.raises(DataError, match=rf"{labels}: holds ids \[34\]"):
            images.label(0)
        labels.unlink()
        with pytest.raises(
            DataError, match=rf"1 of 3 images have no class map, such as gtFine/train/aachen/{labels.name}"
        ):
            open_labelled(images.path, "train")

    def test_classes_can_be_merged(self, images: LabelledImages, tmp_path: Path) -> None:
        space = tmp_path / "two.yaml"
        space.write_text("classes: {ground: [7, 8], mobile: [24, 26, 30]}\nthings: [mobile]\nignored: rest\n")
        found = open_labelled(images.path, "train", labels=str(space)).instances(0)
        assert found.classes.tolist() == [0] * 5 and found.crowd.tolist() == [True, False, False, False, False]


class TestKitti(LabelledSetContract):
    name = "kitti"

    @pytest.fixture
    def images(self, kitti: Path) -> LabelledImages:
        return open_labelled(kitti, "train")

    def test_what_was_drawn_comes_back(self, images: LabelledImages) -> None:
        assert type(images) is KittiImages
        for k, name in enumerate(images.names):
            check_street(images, k, int(name[:6]))

    def test_a_fifth_is_val(self, images: LabelledImages) -> None:
        assert not KittiImages.states_split(images.path)
        val = open_labelled(images.path, "val").names
        assert len(val) == 2 and not set(val) & set(images.names)
        assert len(open_labelled(images.path, "val", whole=True).names) == 10
        with pytest.raises(DataError, match=r"testing folder have no labels\. Use val"):
            open_labelled(images.path, "test")

    def test_lost_and_damaged_maps_are_named(self, images: LabelledImages) -> None:
        file = images.path / "training" / "instance" / f"{images.names[0]}.png"
        file.write_bytes(file.read_bytes()[:40])
        with pytest.raises(DataError, match=f"{file}: not a readable image"):
            images.instances(0)
        (images.path / "training" / "semantic" / "000003_10.png").unlink()
        with pytest.raises(DataError, match=r"1 of 10 images have no class map, such as training/semantic/000003_10"):
            open_labelled(images.path, "train")

    def test_empty_is_refused(self, tmp_path: Path) -> None:
        for folder in ("image_2", "semantic"):
            (tmp_path / "training" / folder).mkdir(parents=True)
        with pytest.raises(DataError, match="no labelled image in split train"):
            open_labelled(tmp_path, "train")


@pytest.mark.thorough
@given(
    st.lists(st.sampled_from([0, 7, 24, 26, 30, 255, 7000, 24000, 24001, 26000, 26255, 30001]), min_size=6, max_size=6)
)
def test_objects_are_those_of_a_loop(flat: list[int]) -> None:
    space = load_space("cityscapes19")
    ids = np.array(flat, np.int32).reshape(2, 3)
    found = numbered_objects(ids, space, "x")
    names = [space.names[k] for k in space.things]
    wanted = []
    for value in sorted(set(flat)):
        kind = {24: "person", 26: "car"}.get(value if value < 1000 else value // 1000)
        if kind is not None:
            wanted.append((kind, value < 1000, (ids == value).tolist()))
    got = zip(found.classes, found.crowd, found.masks, strict=True)
    assert [(names[kind], bool(crowd), mask.tolist()) for kind, crowd, mask in got] == wanted
