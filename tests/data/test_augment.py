"""Colour recipes: what is blurred how strongly, and that every draw is the generator's."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from pri3d.data import augment
from pri3d.data.augment import SIMCLR, STRONG, ColorRecipe, Operation, augment_color, recipe, uniform

ONLY_BLUR = ColorRecipe(0, 0, 0, 0, 0, 0, 1.0, sigma=(1.0, 1.0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("width", "sigma", "window"), [(320, 0.5, 5), (None, 1.0, 7), (80, 2.0, 13)])
def test_sigma_is_of_the_stated_width(width: int | None, sigma: float, window: int) -> None:
    image = torch.rand(3, 40, 160, generator=generator())
    found = augment_color(image, ONLY_BLUR._replace(width=width), generator())
    torch.testing.assert_close(found, F.gaussian_blur(image, [window] * 2, [sigma] * 2))


def test_window_is_the_stated_one_and_fits_the_image() -> None:
    image = torch.rand(3, 40, 320, generator=generator())
    found = augment_color(image, ONLY_BLUR._replace(kernel=3), generator())
    torch.testing.assert_close(found, F.gaussian_blur(image, [3, 3], [1.0, 1.0]))
    small = image[:, :8, :8]
    found = augment_color(small, ONLY_BLUR._replace(kernel=25, width=None), generator())
    torch.testing.assert_close(found, F.gaussian_blur(small, [15, 15], [1.0, 1.0]))


def test_simclr_recipe_is_the_released_one() -> None:
    assert recipe("simclr") is SIMCLR
    assert SIMCLR[:7] == (0.8, 0.8, 0.8, 0.2, 0.8, 0.2, 1.0)
    assert (SIMCLR.sigma, SIMCLR.kernel) == ((0.1, 2.0), 25)
    image = torch.randint(256, (3, 24, 320), dtype=torch.uint8, generator=generator())
    results = [augment_color(image, SIMCLR, generator(seed)) for seed in range(12)]
    assert all(r.shape == image.shape and r.dtype == image.dtype for r in results)
    # Noise that is blurred, whatever its colours, has smaller steps between neighbours.
    grey = augment_color(image, SIMCLR._replace(p_jitter=0.0, p_gray=0.0, sigma=(1.0, 1.0)), generator())
    assert grey.float().diff(dim=2).abs().mean() < 0.4 * image.float().diff(dim=2).abs().mean()


def test_global_generator_plays_no_part() -> None:
    image = torch.randint(256, (3, 24, 32), dtype=torch.uint8, generator=generator())
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append([augment_color(image, name, generator(5)) for name in (STRONG, SIMCLR)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    before = torch.get_rng_state()
    assert 2 <= uniform(generator(), 2, 3) < 3
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("sigma", "height"), [(0.1, 40), (0.7, 40), (2.0, 40), (2.0, 5), (1.0, 1)])
def test_blur_in_two_passes_is_torchvisions(sigma: float, height: int) -> None:
    """Whole numbers may differ by one where the last bit decides the rounding."""
    blur = ONLY_BLUR._replace(width=None, sigma=(sigma, sigma))
    window = min(2 * math.ceil(3 * sigma) + 1, 2 * height - 1)
    for image in (
        torch.rand(3, height, 50, generator=generator()),
        torch.randint(256, (3, height, 50), generator=generator()).byte(),
    ):
        found, wanted = augment_color(image, blur, generator()), F.gaussian_blur(image, [window] * 2, [sigma] * 2)
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(
            found.double(), wanted.double(), rtol=1e-5, atol=1 if image.dtype == torch.uint8 else 1e-6
        )
        assert (found.double() - wanted.double()).abs().mean() < 1e-3


def every_kind() -> torch.Tensor:
    """Greys, two equal channels in any order, black, white, and noise."""
    levels = torch.tensor([0, 1, 80, 200, 255], dtype=torch.uint8)
    corners = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 25, 5)
    noise = torch.randint(256, (3, 25, 60), dtype=torch.uint8, generator=generator())
    return torch.cat((corners, noise), dim=2)


@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("brightness", (0.0, 0.6, 1.0, 1.4)),
        ("contrast", (0.0, 0.6, 1.0, 1.4)),
        ("saturation", (0.0, 0.2, 1.0, 1.8)),
        ("hue", (-0.5, -0.31, -0.05, 0.0, 0.02, 0.2, 0.5)),
    ],
)
def test_operations_on_bytes_are_torchvisions(name: str, amounts: tuple[float, ...]) -> None:
    operation = Operation(getattr(augment, name), getattr(F, f"adjust_{name}"))
    image = every_kind()
    for amount in amounts:
        found, expected = operation.apply(image, amount), operation.of_floats(image, amount)
        assert found.dtype == torch.uint8
        apart = (found.int() - expected.int()).abs()
        assert apart.max() <= 1, amount
        assert (apart > 0).float().mean() < (0.01 if name in {"brightness", "contrast"} else 0.1), amount
        turned = operation.apply(image.flip(2).transpose(1, 2), amount)  # not contiguous
        assert torch.equal(turned, found.flip(2).transpose(1, 2))
        assert torch.equal(operation.apply(image / 255, amount), operation.of_floats(image / 255, amount))


@pytest.mark.parametrize(("window", "sigma"), [(1, 0.1), (3, 0.5), (13, 2.0), (25, 1.0)])
def test_blur_of_bytes_is_torchvisions(window: int, sigma: float) -> None:
    recipe = ONLY_BLUR._replace(sigma=(sigma, sigma), width=None, kernel=window)
    image = every_kind()
    found = augment_color(image, recipe, generator())
    expected = F.gaussian_blur(image, [window] * 2, [sigma] * 2)
    assert (found.int() - expected.int()).abs().max() <= 1
    assert (found != expected).float().mean() < 0.01
