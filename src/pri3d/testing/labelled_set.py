"""The contract of labelled datasets.

A new one inherits all checks with its name and a method that writes a small set::

    class TestMine(LabelledSetContract):
        name = "mine"

        def write(self, folder: Path) -> Path:
            ...
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import pytest

from pri3d.errors import ConfigError, DataError, Pri3DError
from pri3d.labelled import LabelledImages, Split, load_dataset, open_labelled
from pri3d.labelled.spaces import IGNORED


class LabelledSetContract:
    """Checks of one format; ``name`` is what it is registered as."""

    name: ClassVar[str]
    split: ClassVar[Split] = "train"  #: the part that is looked at
    has_classes: ClassVar[bool] = True  #: whether the written set has class maps
    has_objects: ClassVar[bool] = True  #: whether the written set has objects

    def write(self, folder: Path) -> Path:
        """Write a set of some images, five at least, into an empty folder; return its folder, or its file."""
        raise NotImplementedError(f"{type(self).__name__}: write a small labelled dataset into the folder.")

    @pytest.fixture
    def images(self, tmp_path: Path) -> LabelledImages:
        """The written set, opened by name."""
        return open_labelled(self.write(tmp_path), self.split, self.name)

    def test_opens_without_being_named(self, images: LabelledImages) -> None:
        """No other format takes it for its own."""
        assert type(images).detect(images.path)
        assert type(images) is load_dataset(self.name)
        assert type(open_labelled(images.path, self.split)) is type(images)
        assert len(images.looks_for) > 10

    def test_names_are_unique(self, images: LabelledImages) -> None:
        """Of images and of classes."""
        assert len(images.names) > 0
        assert len(set(images.names)) == len(images.names)
        assert len(set(images.class_names)) == len(images.class_names)
        assert all(0 <= k < len(images.class_names) for k in images.things)

    def test_splits_are_disjoint(self, images: LabelledImages) -> None:
        """Train and val share no image, and all holds both; a split that does not exist is refused."""
        parts = {}
        for split in get_args(Split):
            try:
                parts[split] = set(open_labelled(images.path, split, self.name).names)
            except Pri3DError:
                assert split != self.split
        assert not parts.get("train", set()) & parts.get("val", set())
        if "all" in parts:
            assert parts.get("train", set()) | parts.get("val", set()) <= parts["all"]

    def test_colour_and_classes(self, images: LabelledImages) -> None:
        """RGB bytes, and ids that have names; a set without class maps says so."""
        assert images.has_classes == self.has_classes
        for k in range(len(images.names)):
            color = images.color(k)
            assert color.dtype == np.uint8
            assert color.shape == (*color.shape[:2], 3)
            images.check_size(k)
            if self.has_classes:
                label = images.label(k)
                assert label.dtype == np.uint8
                assert label.shape == color.shape[:2]
                assert set(np.unique(label)) <= {*range(len(images.class_names)), IGNORED}
            else:
                with pytest.raises(DataError, match="has no class maps"):
                    images.label(k)

    def test_objects(self, images: LabelledImages) -> None:
        """Masks of the image's size with boxes around them; a set without objects says so."""
        assert images.has_objects == self.has_objects
        if not self.has_objects:
            with pytest.raises(DataError, match="has no instance maps"):
                images.require_objects()
            return
        for k in range(len(images.names)):
            found = images.instances(k)
            count, shape = len(found.classes), images.color(k).shape[:2]
            assert found.masks.shape == (count, *shape)
            assert found.masks.dtype == bool
            assert found.boxes.shape == (count, 4)
            assert found.boxes.dtype == np.float32
            assert found.crowd.shape == (count,)
            assert found.crowd.dtype == bool
            assert ((found.classes >= 0) & (found.classes < len(images.thing_names))).all()
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            assert found.masks.any((1, 2)).all()

    def test_fractions_are_nested(self, images: LabelledImages) -> None:
        """A tenth of the images lies in a fifth of them."""
        few, more = (set(images.subset(fraction)) for fraction in (0.3, 0.7))
        assert few <= more <= set(images.subset(1.0)) == set(range(len(images.names)))
        for fraction in (0.0, 1.5, float("nan")):
            with pytest.raises(ConfigError, match="fraction"):
                images.subset(fraction)

    def test_reaches_the_loading_processes(self, images: LabelledImages) -> None:
        """It can be pickled."""
        copy = pickle.loads(pickle.dumps(images))  # noqa: S301 - our own bytes
        assert copy.hash == images.hash
        assert np.array_equal(copy.color(0), images.color(0))
