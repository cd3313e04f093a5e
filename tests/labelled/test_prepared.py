"""Labelled frames of a prepared dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pri3d.errors import DataError
from pri3d.labelled import LabelledImages, open_labelled
from pri3d.labelled.prepared import PreparedImages
from pri3d.store import Store
from pri3d.testing import LabelledSetContract
from pri3d.worlds.room import CLASS_NAMES


def renamed(store: Path, copy: Path, names: tuple[str, str]) -> Path:
    """A copy of a store of two scenes with other names for them."""
    shutil.copytree(store, copy)
    for old, new in zip(Store(store).scenes, names, strict=True):
        (copy / "scenes" / old).rename(copy / "scenes" / new)
        for file in (copy / "dataset.json", copy / "scenes" / new / "scene.json"):
            file.write_text(file.read_text().replace(f'"{old}"', f'"{new}"'))
    return copy


class TestPrepared(LabelledSetContract):
    name = "prepared"

    @pytest.fixture
    def images(self, rooms_store: Path) -> LabelledImages:
        return open_labelled(rooms_store, "train")

    def test_classes_are_those_of_the_store(self, images: LabelledImages) -> None:
        assert type(images) is PreparedImages
        assert tuple(images.class_names) == CLASS_NAMES
        assert images.thing_names == [name for name in CLASS_NAMES if name not in {"wall", "floor", "ceiling"}]

    def test_frames_are_those_of_the_store(self, images: LabelledImages) -> None:
        store = Store(images.path)
        for k, name in enumerate(images.names):
            scene, _, frame = name.partition("/")
            row = list(store.scene(scene).frames.names).index(frame)
            np.testing.assert_array_equal(images.color(k), store.scene(scene).view(row).color)
            np.testing.assert_array_equal(images.label(k), store.scene(scene).label(row))
            np.testing.assert_array_equal(images.instance(k), store.scene(scene).instance(row))

    def test_objects_cover_the_countable_classes(self, images: LabelledImages) -> None:
        """Every pixel of furniture belongs to one object of its own class: rooms have exact labels."""
        total = 0
        for k in range(len(images.names)):
            found, label = images.instances(k), images.label(k)
            total += len(found.classes)
            assert (found.masks.sum(0) == np.isin(label, images.things)).mean() > 0.99
            for mask, kind in zip(found.masks, found.classes, strict=True):
                assert (label[mask] == images.things[kind]).mean() > 0.6
        assert total > len(images.names)

    def test_rooms_lie_on_one_side(self, images: LabelledImages) -> None:
        val = open_labelled(images.path, "val")
        scenes = [{name.split("/")[0] for name in found.names} for found in (images, val)]
        assert not scenes[0] & scenes[1] and len(scenes[0] | scenes[1]) == 2
        assert len(open_labelled(images.path, "val", whole=True).names) == len(images.names) + len(val.names)

    def test_scans_of_scannet_have_their_split(self, images: LabelledImages, tmp_path: Path) -> None:
        """The official lists', whatever the fifth would be; rescans of other rooms stay together."""
        for names, sides in (
            (("scene0011_00", "scene0000_00"), {"val": ["scene0011_00"], "train": ["scene0000_00"]}),
            (("scene0000_00", "scene0011_00"), {"val": ["scene0011_00"], "train": ["scene0000_00"]}),
        ):
            path = renamed(images.path, tmp_path / names[0], names)
            assert PreparedImages.states_split(path) and not PreparedImages.states_split(images.path)
            for split, scenes in sides.items():
                found = open_labelled(path, split, whole=True)  # type: ignore[arg-type]
                assert {name.split("/")[0] for name in found.names} == set(scenes)
        rescans = renamed(images.path, tmp_path / "rescans", ("scene0900_00", "scene0900_01"))
        with pytest.raises(DataError, match=r"1 group\(s\) of images cannot be split"):
            PreparedImages(rescans, "train")
        only = renamed(images.path, tmp_path / "train", ("scene0000_00", "scene0000_01"))
        with pytest.raises(DataError, match="It has its own splits: give another dataset for val"):
            open_labelled(only, "val")

    def test_objects_are_asked_for(self, images: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
        images.require_objects()
        monkeypatch.setattr(PreparedImages, "instance", lambda self, k: None)
        with pytest.raises(DataError, match="has no instance maps"):
            open_labelled(images.path, "train").require_objects()

    def test_coarse_classes(self, images: LabelledImages) -> None:
        coarse = open_labelled(images.path, "train", labels="rooms-coarse")
        assert coarse.class_names == ("structure", "bed", "table", "seat", "storage", "small things")
        group = {"wall": 0, "floor": 0, "ceiling": 0, "bed": 1, "table": 2, "chair": 3, "sofa": 3, "stool": 3}
        group |= {"shelf": 4, "cabinet": 4, "lamp": 5, "plant": 5, "clutter": 5}
        table = np.array([*(group[name] for name in CLASS_NAMES), *[255] * (256 - len(CLASS_NAMES))], np.uint8)
        for k in range(len(images.names)):
            np.testing.assert_array_equal(coarse.label(k), table[images.label(k)])
            assert len(coarse.instances(k).classes) == len(images.instances(k).classes)
        assert coarse.hash != images.hash

    def test_ids_of_no_class_are_named(self, images: LabelledImages, tmp_path: Path) -> None:
        space = tmp_path / "few.yaml"
        space.write_text("classes: {wall: 0}\n")
        with pytest.raises(DataError, match=rf"{images.path}: frame {images.names[0]}: holds ids \["):
            open_labelled(images.path, "train", labels=str(space)).label(0)

    def test_classes_without_a_name_are_refused(self, images: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "class_names", images.class_names[:1])
        with pytest.raises(DataError, match=r"has class \d+, but only 1 classes have names"):
            images.label(0)
