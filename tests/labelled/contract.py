"""What every labelled set must do. Inherit, and give the fixture ``images``: an opened set of a few images."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pri3d.errors import ConfigError, DataError
from pri3d.labelled import LabelledImages
from pri3d.labelled.spaces import IGNORED


class LabelledContract:
    """Names, sizes, types and ids."""

    has_classes = True  #: whether the set has class maps
    has_objects = True  #: whether the set has objects

    @pytest.fixture
    def images(self) -> LabelledImages:
        raise NotImplementedError

    def test_names_are_unique(self, images: LabelledImages) -> None:
        assert len(images.names) > 0
        assert len(set(images.names)) == len(images.names)
        assert len(set(images.class_names)) == len(images.class_names)
        assert all(0 <= k < len(images.class_names) for k in images.things)

    def test_detects_itself(self, images: LabelledImages) -> None:
        assert type(images).detect(images.path)

    def test_colour_and_classes(self, images: LabelledImages) -> None:
        for k in range(len(images.names)):
            color = images.color(k)
            assert color.dtype == np.uint8 and color.ndim == 3 and color.shape[2] == 3
            images.check_size(k)
            if self.has_classes:
                label = images.label(k)
                assert label.dtype == np.uint8 and label.shape == color.shape[:2]
                assert set(np.unique(label)) <= {*range(len(images.class_names)), IGNORED}

    def test_objects(self, images: LabelledImages) -> None:
        assert images.has_objects == self.has_objects
        if not self.has_objects:
            with pytest.raises(DataError, match="has no instance maps"):
                images.require_objects()
            return
        for k in range(len(images.names)):
            found = images.instances(k)
            count, shape = len(found.classes), images.color(k).shape[:2]
            assert found.masks.shape == (count, *shape) and found.masks.dtype == bool
            assert found.boxes.shape == (count, 4) and found.boxes.dtype == np.float32
            assert found.crowd.shape == (count,) and found.crowd.dtype == bool
            assert ((found.classes >= 0) & (found.classes < len(images.thing_names))).all()
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            assert found.masks.any((1, 2)).all()

    def test_shares_are_nested(self, images: LabelledImages) -> None:
        few, more = (set(images.subset(fraction)) for fraction in (0.3, 0.7))
        assert few <= more <= set(images.subset(1.0)) == set(range(len(images.names)))
        for fraction in (0.0, 1.5, float("nan")):
            with pytest.raises(ConfigError, match="fraction"):
                images.subset(fraction)

    def test_reaches_the_loading_processes(self, images: LabelledImages) -> None:
        copy = pickle.loads(pickle.dumps(images))
        assert copy.hash == images.hash
        assert np.array_equal(copy.color(0), images.color(0))
