"""When frames were taken, as formats state it: what is taken of a video goes by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from samples import SAMPLES

from pri3d.recordings import open_recording

#: seconds between the frames of the sample, or None where the format does not say
APART = {"tum": 1 / 30, "scannetpp": 1 / 60, "record3d": 0.1, "scanner3d": 0.5, "polycam": 0.250142, "folder": None}


@pytest.mark.parametrize("name", APART)
def test_the_times_of_a_format(name: str, tmp_path: Path) -> None:
    scene = open_recording(SAMPLES[name](tmp_path).root).scenes()[0]
    if APART[name] is None:
        assert scene.times is None
    else:
        np.testing.assert_allclose(np.diff(scene.times), APART[name], atol=2e-6)


def test_times_that_do_not_increase_or_are_missing_are_none(tmp_path: Path) -> None:
    root = SAMPLES["scanner3d"](tmp_path).root
    path = next(root.rglob("frame_00000.json"))
    stated = json.loads(path.read_text())
    for time in (9e9, None, "late", float("nan")):
        path.write_text(json.dumps({**stated, "time": time}))
        assert open_recording(root).scenes()[0].times is None
    path.write_text("{")  # this frame is damaged; what is taken goes by number
    assert open_recording(root).scenes()[0].times is None
