"""Undoing lens distortion, against the models' formulas written out slowly and a numerical inverse."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import fsolve

from pri3d.geometry.warping import Lens, undistort_color, undistort_nearest
from pri3d.types import Camera

CAMERA = Camera(32, 24, 26.0, 25.0, 15.5, 12.75)
LENSES = {
    "four": Lens("radial", (-0.2, 0.05, 0.01, -0.008)),
    "five": Lens("radial", (0.1, -0.05, 0.002, 0.003, 0.02)),
    "rational": Lens("radial", (0.3, 0.1, -0.004, 0.002, 0.01, 0.4, 0.08, 0.005)),
    "fisheye": Lens("fisheye", (0.05, -0.02, 0.01, -0.003)),
    "equidistant": Lens("fisheye", (0.0, 0.0, 0.0, 0.0)),
}
each_lens = pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)


def formula(lens: Lens, x: float, y: float) -> tuple[float, float]:
    """The two models as their documentation states them, one point at a time."""
    r = math.sqrt(x**2 + y**2)
    if lens.kind == "fisheye":
        k1, k2, k3, k4 = lens.k
        theta = math.atan(r)
        theta_d = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
        return (theta_d / r * x, theta_d / r * y) if r else (0.0, 0.0)
    k1, k2, p1, p2, k3, k4, k5, k6 = [*lens.k, 0, 0, 0, 0][:8]
    radial = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
        y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
    )


def inverse(lens: Lens, x: float, y: float) -> tuple[float, float]:
    """The ideal point that the lens puts at x, y."""
    solution, _, found, why = fsolve(
        lambda p: np.subtract(formula(lens, *p), (x, y)), (x, y), full_output=True, xtol=1e-12
    )
    assert found == 1, why
    return float(solution[0]), float(solution[1])


def centre(camera: Camera, column: int, row: int) -> tuple[float, float]:
    return (column + 0.5 - camera.cx) / camera.fx, (row + 0.5 - camera.cy) / camera.fy


def pattern(x: float, y: float) -> tuple[int, int, int]:
    """A colour that changes slowly over the image."""
    return round(127 + 100 * math.sin(2 * x)), round(127 + 100 * math.cos(3 * y)), round(127 + 60 * (x + y))


def sources(lens: Lens) -> np.ndarray:
    """(H, W, 2) where each pixel of the ideal image lies in the distorted one, in pixels."""
    at = np.empty((CAMERA.height, CAMERA.width, 2))
    for row in range(CAMERA.height):
        for column in range(CAMERA.width):
            x, y = formula(lens, *centre(CAMERA, column, row))
            at[row, column] = x * CAMERA.fx + CAMERA.cx, y * CAMERA.fy + CAMERA.cy
    return at


@each_lens
def test_distort_is_the_formula(lens: Lens) -> None:
    x, y = np.random.default_rng(1).uniform(-0.8, 0.8, (2, 5, 7))
    wanted = np.array([formula(lens, a, b) for a, b in zip(x.flat, y.flat, strict=True)])
    found = np.stack(lens.distort(x, y), axis=-1)
    assert found.shape == (5, 7, 2)
    np.testing.assert_allclose(found.reshape(-1, 2), wanted, atol=1e-14)


@each_lens
def test_a_distorted_pattern_comes_back(lens: Lens) -> None:
    """What a pinhole camera sees, seen through the lens by solving for every pixel's ray, is seen straight again."""
    rows, columns = range(CAMERA.height), range(CAMERA.width)
    ideal = np.array([[pattern(*centre(CAMERA, c, r)) for c in columns] for r in rows], np.uint8)
    bent = np.array([[pattern(*inverse(lens, *centre(CAMERA, c, r))) for c in columns] for r in rows], np.uint8)
    found = undistort_color(bent, CAMERA, lens)
    at = sources(lens)
    inner = ((at > 1) & (at < (CAMERA.width - 1, CAMERA.height - 1))).all(axis=-1)
    assert inner.mean() > 0.5
    difference = np.abs(found.astype(int) - ideal)[inner].max()
    assert difference <= 2
    assert np.abs(bent.astype(int) - ideal)[inner].max() > 3 * difference, "the lens does bend"


@each_lens
def test_nearest_takes_one_pixel_and_never_mixes(lens: Lens) -> None:
    depth = np.random.default_rng(2).permutation(CAMERA.width * CAMERA.height).astype(np.float32) + 1
    depth = depth.reshape(CAMERA.height, CAMERA.width)
    at = np.floor(sources(lens)).astype(int)
    inside = ((at >= 0) & (at < (CAMERA.width, CAMERA.height))).all(axis=-1)
    wanted = np.zeros_like(depth)
    wanted[inside] = depth[at[inside][:, 1], at[inside][:, 0]]
    found = undistort_nearest(depth, CAMERA, lens)
    assert found.dtype == depth.dtype
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kind_and_k", [("radial", (0.0,) * 4), ("radial", (0.0,) * 8), ("radial", ())])
def test_zero_coefficients_change_nothing(kind_and_k) -> None:
    lens = Lens(*kind_and_k)
    rng = np.random.default_rng(3)
    color = rng.integers(256, size=(CAMERA.height, CAMERA.width, 3), dtype=np.uint8)
    ids = rng.integers(65536, size=(CAMERA.height, CAMERA.width), dtype=np.uint16)
    assert np.array_equal(undistort_color(color, CAMERA, lens), color)
    assert np.array_equal(undistort_nearest(ids, CAMERA, lens), ids)


def test_fisheye_at_the_axis() -> None:
    """No division by the radius 0; next to the axis the model does nothing."""
    lens = LENSES["fisheye"]
    with np.errstate(all="raise"):
        x, y = lens.distort(np.array([0.0, 1e-12, 1e-6]), np.array([0.0, 0.0, -1e-6]))
    np.testing.assert_allclose(x, (0, 1e-12, 1e-6), rtol=1e-9)
    np.testing.assert_allclose(y, (0, 0, -1e-6), rtol=1e-9)
    camera = Camera(5, 5, 4.0, 4.0, 2.5, 2.5)  # a pixel's centre lies on the axis
    color = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    assert np.array_equal(undistort_color(color, camera, lens)[2, 2], color[2, 2])


def test_outside_is_invalid() -> None:
    """A lens that spreads the image leaves the ideal border unseen."""
    lens = Lens("radial", (0.8, 0.0, 0.0, 0.0))
    color = np.full((CAMERA.height, CAMERA.width, 3), 200, np.uint8)
    label = np.full((CAMERA.height, CAMERA.width), 7, np.uint8)
    at = sources(lens)
    unseen = ((at < 0) | (at > (CAMERA.width, CAMERA.height))).any(axis=-1)
    assert 0.05 < unseen.mean() < 0.9
    assert np.array_equal((undistort_color(color, CAMERA, lens) == 0).all(axis=-1), unseen)
    assert np.array_equal(undistort_nearest(label, CAMERA, lens, outside=255) == 255, unseen)
    assert np.array_equal(undistort_nearest(label, CAMERA, lens) == 0, unseen)


@pytest.mark.parametrize(
    "lens", [Lens("radial", (-0.6, 0.0, 0.0, 0.0)), Lens("fisheye", (-0.8, 0.0, 0.0, 0.0))], ids=lambda lens: lens.kind
)
def test_what_folds_back_is_outside(lens: Lens) -> None:
    """Where the polynomial turns round, the same pixel would be seen twice: at its place and at the border."""
    k = lens.k[0]
    limit = math.sqrt(-1 / (3 * k))  # of r (1 + k r^2), and of the angle
    limit = math.tan(limit) if lens.kind == "fisheye" else limit
    wide = Camera(64, 48, 16.0, 16.0, 32.0, 24.0)
    found = undistort_nearest(np.ones((48, 64), np.uint8), wide, lens)
    rows, columns = np.indices((48, 64)) + 0.5
    radius = np.hypot((columns - wide.cx) / wide.fx, (rows - wide.cy) / wide.fy)
    assert not found[radius > limit].any()
    assert found[radius < 0.99 * limit].all()
    assert lens.reach(2.0) == pytest.approx(limit, abs=1e-3)
    assert lens.reach(0.5 * limit) == math.inf


def test_a_zero_of_the_denominator_is_outside() -> None:
    lens = Lens("radial", (0.0, 0.0, 0.0, 0.0, 0.0, -4.0, 0.0, 0.0))
    camera = Camera(9, 9, 4.0, 4.0, 4.5, 4.5)  # pixel 6 lies at 2 / 4, where 1 - 4 r^2 is 0
    found = undistort_nearest(np.ones((9, 9), np.uint8), camera, lens)
    assert found[4, 4:].tolist() == [1, 1, 0, 0, 0]


coefficients = st.floats(-1e6, 1e6)


@settings(max_examples=60, deadline=None)
@given(
    lens=st.builds(Lens, st.just("radial"), st.tuples(*[coefficients] * 8))
    | st.builds(Lens, st.just("fisheye"), st.tuples(*[coefficients] * 4))
)
def test_any_coefficients_give_an_image(lens: Lens) -> None:
    image = np.full((CAMERA.height, CAMERA.width, 3), 9, np.uint8)
    with np.errstate(all="raise"):
        assert set(np.unique(undistort_color(image, CAMERA, lens))) <= {0, 9}
        assert set(np.unique(undistort_nearest(image[..., 0], CAMERA, lens))) <= {0, 9}


def test_memory_does_not_grow_with_the_cameras() -> None:
    """Photographs may have a camera each; what was worked out for one is not kept for ever."""
    image = np.zeros((300, 400), np.uint8)
    tracemalloc.start()
    for k in range(12):
        undistort_nearest(image, Camera(400, 300, 300.0 + k, 300.0, 200.0, 150.0), LENSES["four"])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 3 * 2 * 4 * image.size
