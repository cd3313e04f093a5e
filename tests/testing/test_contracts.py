"""The built-in objectives and tasks against the shipped contracts."""

from __future__ import annotations

import pytest

from pri3d.testing import ObjectiveContract, TaskContract

pytestmark = pytest.mark.thorough  # but for those that say quick


class TestView(ObjectiveContract):
    name = "view"


@pytest.mark.slow
class TestGeometry(ObjectiveContract):
    name = "geometry"
    options = {"net3d": "tiny"}


class TestDepth(ObjectiveContract):
    name = "depth"


class TestTrivial(ObjectiveContract):
    name = "trivial"


class TestMoco(ObjectiveContract):
    name = "moco"
    options = {"queue": 64}


class TestKeep(ObjectiveContract):
    name = "keep"


class TestDistill(ObjectiveContract):
    name = "distill"


class TestDistillRelations(ObjectiveContract):
    name = "distill"
    options = {"targets": "relations", "points": 50, "momentum": 0.9, "free": 0.5}


class TestPyramid(ObjectiveContract):
    name = "pyramid"


class TestSurface(ObjectiveContract):
    name = "surface"


class TestSemantic(TaskContract):
    name = "semantic"
    given = {"semantic": {"size": "64x48"}, "encoder": "resnet18"}


class TestInstance(TaskContract):
    name = "instance"
    given = {"instance": {"short_side": 64, "long_side": 96, "min_area": 10}, "encoder": "resnet18"}
