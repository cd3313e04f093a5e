"""Labels that are looked through before training: every kind of damage, and nothing to learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import DataError, SeveralProblemsError
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.labelled._shared import checks as module
from pri3d.labelled._shared.checks import check_images
from pri3d.types import Instances


class Counted(LabelledImages):
    """A set in memory that remembers what was read of it."""

    looks_for = "nothing"
    has_objects = True

    def __init__(self, path: Path, split: Split = "all", labels: str | None = None, count: int = 1000) -> None:
        self.path, self.class_names, self.things = path, ("one", "two"), (0,)
        self.names = [f"{k:04d}" for k in range(count)]
        self.areas = np.zeros(count, int)  # of the one object, 0 = none
        self.others = 1  # pixels of the other class
        self.crowd = False
        self.read: list[int] = []
        self.sized: list[int] = []

    @classmethod
    def detect(cls, path: Path) -> bool:
        return False

    def color(self, k: int) -> NDArray[np.uint8]:
        return np.zeros((4, 8, 3), np.uint8)

    def check_size(self, k: int) -> None:
        self.sized.append(k)

    def label(self, k: int) -> NDArray[np.uint8]:
        self.read.append(k)
        label = np.full(32, 255, np.uint8)
        label[: self.areas[k]] = 0
        label[self.areas[k] : self.areas[k] + self.others] = 1
        return label.reshape(4, 8)

    def instances(self, k: int) -> Instances:
        mask = self.label(k) == 0
        masks = mask[None] if mask.any() else np.zeros((0, 4, 8), bool)
        count = len(masks)
        boxes = np.tile(np.float32([0, 0, 8, 4]), (count, 1))
        return Instances(masks, boxes, np.zeros(count, np.int64), np.full(count, self.crowd))


@pytest.fixture
def images() -> Counted:
    return Counted(Path("SET"))


def write(root: Path, count: int = 12) -> Path:
    """Images with masks and instance maps of two classes."""
    for folder in ("images", "masks", "instances"):
        (root / folder).mkdir(parents=True)
    for k in range(count):
        label = np.zeros((8, 10), np.uint8)
        label[2:6, 3:7] = 1
        Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(root / "images" / f"{k:02d}.png")
        Image.fromarray(label).save(root / "masks" / f"{k:02d}.png")
        Image.fromarray(label).save(root / "instances" / f"{k:02d}.png")
    (root / "classes.txt").write_text("wall\ncat\n")
    return root


@pytest.mark.parametrize("objects", [False, True])
def test_a_sound_set_passes(tmp_path: Path, rooms_store: Path, objects: bool) -> None:
    for path in (write(tmp_path), rooms_store):
        found = open_labelled(path, "all")
        check_images(found, range(len(found.names)), objects, 1)


@pytest.mark.parametrize("objects", [False, True])
def test_two_hundred_are_read_and_all_are_measured(images: Counted, objects: bool) -> None:
    images.areas[:] = 3
    rows = list(range(1, 1000, 2))
    check_images(images, rows, objects)
    assert images.sized == rows
    assert len(images.read) == module.SAMPLE and set(images.read) <= set(rows)
    assert images.read[0] == 1 and images.read[-1] == 999 and max(np.diff(images.read)) <= 6


def test_the_only_labelled_pixel_is_found(images: Counted) -> None:
    """Whatever the sample hits."""
    images.areas[500] = 1
    check_images(images, range(1000), objects=False)
    assert len(images.read) <= 1000
    images.areas[500] = images.others = 0
    images.read.clear()
    with pytest.raises(DataError, match=r"SET: nothing to learn in 1000 images: every pixel is ignored \(255\)"):
        check_images(images, range(1000), objects=False)
    assert sorted(images.read) == list(range(1000))


def test_objects_that_are_no_use(images: Counted) -> None:
    rows = range(5)
    with pytest.raises(DataError, match=r"nothing to learn in 5 images: they have no objects\. Check"):
        check_images(images, rows, objects=True)
    images.areas[:3] = (4, 7, 6)
    with pytest.raises(DataError, match=r"--min-area 8 leaves out all 3 objects; the largest has 7 pixels"):
        check_images(images, rows, True, 8)
    check_images(images, rows, True, 7)
    images.crowd = True
    with pytest.raises(DataError, match="they have no objects but 3 crowds"):
        check_images(images, rows, objects=True)


def test_the_split_is_named(tmp_path: Path) -> None:
    for place in ("images", "masks"):
        for split in ("train", "val"):
            (tmp_path / place / split).mkdir(parents=True)
            mask = np.full((8, 10), 255 if split == "val" else 0, np.uint8)
            Image.fromarray(mask if place == "masks" else np.zeros((8, 10, 3), np.uint8)).save(
                tmp_path / place / split / "0.png"
            )
    (tmp_path / "classes.txt").write_text("wall\nfloor\n")
    with pytest.raises(DataError, match="nothing to learn in 1 validation images: every pixel is ignored"):
        check_images(open_labelled(tmp_path, "val"), range(1), objects=False)
    with pytest.raises(DataError, match="nothing to learn in 1 training images: every pixel that has a class is wall"):
        check_images(open_labelled(tmp_path, "train"), range(1), objects=False)


def test_unknown_ids_and_other_sizes_are_named_at_once(tmp_path: Path) -> None:
    images = open_labelled(write(tmp_path), "all")
    Image.fromarray(np.full((8, 10), 9, np.uint8)).save(tmp_path / "masks" / "02.png")
    Image.fromarray(np.zeros((10, 8), np.uint8)).save(tmp_path / "masks" / "05.png")
    (tmp_path / "images" / "07.png").write_bytes(b"no image")
    with pytest.raises(SeveralProblemsError) as caught:
        check_images(images, range(12), objects=False)
    wanted = [r"02.png: holds ids [9]", "05.png: is 8x10", "07.png: not a readable image"]
    assert len(caught.value.errors) == 3
    assert all(text in str(error) for text, error in zip(wanted, caught.value.errors, strict=True))
    check_images(images, [0, 1, 3], objects=False)


def test_a_wrong_size_outside_the_sample_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 2)
    images = open_labelled(write(tmp_path), "all")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "instances" / "04.png")
    with pytest.raises(DataError, match=r"instances/04\.png: is 9x8, its image .*04\.png is 10x8"):
        check_images(images, range(12), objects=True)


def test_only_the_first_problems_are_shown(tmp_path: Path) -> None:
    images = open_labelled(write(tmp_path), "all")
    for file in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((8, 10), 9, np.uint8)).save(file)
    with pytest.raises(SeveralProblemsError, match="5 problems found"):
        check_images(images, range(12), objects=False)


def test_labels_of_another_size_than_their_image(images: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a set of somebody else's that compares nothing itself."""
    images.areas[:] = 3
    monkeypatch.setattr(images, "color", lambda k: np.zeros((8, 4, 3), np.uint8))
    for objects in (False, True):
        with pytest.raises(DataError, match=r"SET: the labels of 0003: is 8x4, its image 0003 is 4x8"):
            check_images(images, [3], objects)


def test_coco_images_of_another_size(tmp_path: Path) -> None:
    entry = {"id": 1, "file_name": "a.png", "width": 10, "height": 8}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    content = {"images": [entry], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    images = open_labelled(tmp_path / "set.json", "all")
    with pytest.raises(DataError, match=r"a\.png \(id 1\) is in none of"):
        check_images(images, [0], objects=True)
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    check_images(images, [0], objects=True)
    Image.new("RGB", (10, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is 10x9 pixels upright, .* states 10x8"):
        images.check_size(0)


def test_masks_of_one_class_and_255_are_refused(tmp_path: Path) -> None:
    """255 is ignored: every answer would be right."""
    for mask in (write(tmp_path) / "masks").iterdir():
        label = np.asarray(Image.open(mask)) * np.uint8(255)
        Image.fromarray(label).save(mask)
    images = open_labelled(tmp_path, "train")
    wanted = (
        r"nothing to learn in \d+ training images: every pixel that has a class is wall, and no pixel is cat\. 255 in"
    )
    with pytest.raises(DataError, match=wanted):
        check_images(images, range(len(images.names)), objects=False)
    held = open_labelled(tmp_path, "val")
    (note,) = check_images(held, range(len(held.names)), objects=False)
    assert "wall is the only class in the 2 validation images" in note
    # As the message advises.
    (tmp_path / "map.yaml").write_text("classes: {wall: 0, cat: 255}")
    images = open_labelled(tmp_path, "train", labels=str(tmp_path / "map.yaml"))
    assert check_images(images, range(len(images.names)), objects=False) == []


def test_a_set_of_a_single_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "map.yaml").write_text("classes: {cat: 1}\nignored: rest")
    images = open_labelled(tmp_path, "train", labels=str(tmp_path / "map.yaml"))
    with pytest.raises(DataError, match=r"every pixel that has a class is cat\. 255"):
        check_images(images, range(len(images.names)), objects=False)


@pytest.mark.parametrize("objects", [False, True])
def test_classes_that_never_occur_are_named(tmp_path: Path, objects: bool) -> None:
    write(tmp_path)
    (tmp_path / "classes.txt").write_text("wall\ncat\ndog\n" + "".join(f"kind {k}\n" for k in range(20)))
    images = open_labelled(tmp_path, "train")
    (note,) = check_images(images, range(len(images.names)), objects)
    count = 22 if objects else 23
    assert f"21 of {count} classes occur in none of the 10 training images: dog, kind 0" in note
    assert note.endswith("kind 10 and 9 more. A class that does not occur cannot be learnt")
    held = open_labelled(tmp_path, "val")
    (note,) = check_images(held, range(len(held.names)), objects)
    assert "in none of the 2 validation images: dog" in note and note.endswith(
        "A class that does not occur is not scored"
    )


def test_classes_outside_the_sample_are_not_called_absent(images: Counted) -> None:
    images.areas[:] = 0
    images.areas[1] = 1
    images.class_names = ("one", "two", "three")
    notes = check_images(images, range(1000), objects=False)
    assert notes == [
        "SET: 1 of 3 classes occur in none of the 201 images checked (of 1000): three. A class that does not occur "
        "cannot be learnt"
    ]
