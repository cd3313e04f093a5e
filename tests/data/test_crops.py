"""Crops: drawn by the seed alone, within the recipe's bounds, from frames and from folders of any images."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop

from pri3d.data.crops import (
    CropDataset,
    CropRecipe,
    ImageFolder,
    PairFrames,
    check_crops,
    collate_crops,
    draw_box,
    random_crop,
)
from pri3d.data.sampler import Draw, MixedSampler
from pri3d.errors import ConfigError, DataError
from pri3d.store import Store

SMALL = CropRecipe(size=24)
PLAIN = CropRecipe(size=16, scale=(1, 1), ratio=(1, 1), color=None, p_mirror=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(256, size=(height, width, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images in folders of classes. Do not write to it."""
    root = tmp_path_factory.mktemp("images")
    for k in range(10):
        path = root / f"class{k % 3}" / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(30, 40)).save(path)
    return root


def rows(store: Path) -> NDArray[np.int64]:
    return np.arange(len(Store(store).pairs().i))


def test_batch_has_the_stated_shapes(rooms_store: Path) -> None:
    dataset = CropDataset([PairFrames(rooms_store, rows(rooms_store))], 0)
    batch = collate_crops([dataset[Draw(0, k)] for k in range(3)])
    assert batch.crops.shape == (3, 2, 3, 224, 224)
    assert batch.crops.dtype == torch.float32
    assert 0 <= batch.crops.min() < batch.crops.max() <= 1
    assert all("/" in name for name in batch.names)


def test_frames_repeat_as_often_as_they_lead_a_pair(rooms_store: Path) -> None:
    table = Store(rooms_store).pairs()
    wanted = rows(rooms_store)[::2]
    source = PairFrames(rooms_store, wanted)
    assert len(source) == len(wanted)
    names = [source.read(k)[1] for k in range(len(source))]
    store = Store(rooms_store)
    assert names == [f"{table.scene[k]}/{store.scene(str(table.scene[k])).frames.names[table.i[k]]}" for k in wanted]
    assert len(set(names)) < len(names)


def test_the_draw_fixes_every_random_choice(rooms_store: Path, folder: Path) -> None:
    sources = [PairFrames(rooms_store, rows(rooms_store)), ImageFolder(folder)]
    one, two = CropDataset(sources, 3, SMALL), pickle.loads(pickle.dumps(CropDataset(sources, 3, SMALL)))
    item = one.sizes[0] + 4
    torch.manual_seed(1)
    first = one[Draw(1, item)]
    torch.manual_seed(2)
    assert torch.equal(first.crops, two[Draw(1, item)].crops)
    assert not torch.equal(first.crops[0], first.crops[1])
    assert not torch.equal(first.crops, one[Draw(2, item)].crops)
    assert not torch.equal(first.crops, CropDataset(sources, 4, SMALL)[Draw(1, item)].crops)


def test_sources_stand_one_after_the_other(rooms_store: Path, folder: Path) -> None:
    frames, images = PairFrames(rooms_store, rows(rooms_store)), ImageFolder(folder)
    dataset = CropDataset([images, frames], 0, PLAIN)
    assert dataset.sizes == (10, len(frames))
    assert len(dataset) == sum(dataset.sizes)
    assert [dataset[Draw(0, k)].name for k in (0, 9, 10)] == ["class0/0.png", "class2/8.png", frames.read(0)[1]]
    assert dataset[Draw(0, len(dataset) - 1)].name == frames.read(len(frames) - 1)[1]


def test_alternating_batches_come_through_a_loader_with_a_worker(rooms_store: Path, folder: Path) -> None:
    dataset = CropDataset([PairFrames(rooms_store, rows(rooms_store)), ImageFolder(folder)], 0, SMALL)
    sampler = MixedSampler(dataset.sizes, (1, 1), 24, 0, block=4)
    loader = DataLoader(dataset, 4, sampler=sampler, collate_fn=collate_crops, num_workers=1)
    kinds = [{name.startswith("class") for name in batch.names} for batch in loader]
    assert kinds == [{False}, {True}] * 3


@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(0, 10**6), st.floats(0.01, 1), st.floats(0.2, 1),
    st.floats(1, 5),
)  # fmt: skip
def test_boxes_keep_their_bounds(h: int, w: int, seed: int, low: float, narrow: float, wide: float) -> None:
    recipe = CropRecipe(scale=(low, 1.0), ratio=(narrow, wide))
    top, left, height, width = draw_box(h, w, recipe, generator(seed))
    assert 0 <= top <= top + height <= h
    assert 0 <= left <= left + width <= w
    assert height > 0
    assert width > 0
    # Up to the rounding of either side to whole pixels.
    assert (width - 0.51) / (height + 0.51) <= max(wide, 1.51) or height == 1 or width == 1
    assert (width + 0.51) / max(height - 0.51, 0.1) >= narrow or width == 1
    if narrow <= w / h <= wide:
        assert (height + 0.5) * (width + 0.5) >= low * h * w


def test_boxes_are_distributed_as_the_usual_ones() -> None:
    """Means of area, shape and place against torchvision's own drawing, within four standard errors."""
    recipe, image = CropRecipe(), torch.zeros(3, 240, 320)
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)]
    draws = generator(0)
    ours = [draw_box(240, 320, recipe, draws) for _ in range(1500)]

    def facts(boxes: list[tuple[int, int, int, int]]) -> NDArray[np.float64]:
        return np.array([(h * w, math.log(w / h), i / (241 - h), j / (321 - w)) for i, j, h, w in boxes])

    a, b = facts(ours), facts(theirs)
    error = np.sqrt((a.var(0) + b.var(0)) / 1500)
    assert (np.abs(a.mean(0) - b.mean(0)) < 4 * error).all()
    np.testing.assert_allclose(a.std(0), b.std(0), rtol=0.1)
    areas = a[:, 0] / (240 * 320)
    assert 0.195 < areas.min() < 0.25
    assert 0.9 < areas.max() <= 1


def test_boxes_of_extreme_shapes_lie_in_the_middle() -> None:
    assert draw_box(10, 1000, CropRecipe(), generator()) == (0, 493, 10, 13)
    assert draw_box(1000, 10, CropRecipe(), generator()) == (493, 0, 13, 10)
    assert draw_box(1, 1, CropRecipe(), generator()) == (0, 0, 1, 1)


def test_whole_image_without_colours_comes_back_or_mirrored() -> None:
    image = noise(16, 16)
    plain = torch.from_numpy(image).permute(2, 0, 1)
    assert torch.equal(random_crop(image, PLAIN, generator()), plain)
    assert torch.equal(random_crop(image, PLAIN._replace(p_mirror=1), generator()), plain.flip(-1))
    half = [random_crop(image, PLAIN._replace(p_mirror=0.5), generator(k)) for k in range(40)]
    assert 8 < sum(torch.equal(crop, plain) for crop in half) < 32


def test_blur_of_a_crop_is_in_its_own_pixels() -> None:
    recipe = CropRecipe().color
    assert recipe is not None
    assert (recipe.width, recipe.sigma, recipe.p_blur) == (None, (0.1, 2.0), 0.5)
    assert recipe[:6] == (0.4, 0.4, 0.4, 0.1, 0.8, 0.2)


def test_folder_lists_every_image_once_and_in_order(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(4, 4))
    for name in ("b/ä.JPG", "a.webp", "b/c/d.tiff", "B.bmp", ".hidden.png", ".git/e.png", "b/._ä.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    outside = tmp_path.with_name(tmp_path.name + "-outside")
    outside.mkdir()
    picture.save(outside / "f.png")
    (tmp_path / "linked").symlink_to(outside, target_is_directory=True)
    source = ImageFolder(tmp_path)
    assert [source.read(k)[1] for k in range(len(source))] == [
        "B.bmp", "a.webp", "b/c/d.tiff", "b/ä.JPG", "linked/f.png",
    ]  # fmt: skip


def test_folder_without_images_says_so(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=f"{place}: no image in this folder"):
            ImageFolder(place)


@pytest.mark.thorough
def test_large_photographs_are_decoded_smaller(tmp_path: Path) -> None:
    y, x = np.mgrid[:2200, :3000] / 12
    image = np.stack([x, y, (x + y) / 2], axis=2).clip(0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "large.jpg", quality=95)
    found = ImageFolder(tmp_path).read(0)[0]
    assert found.shape == (1100, 1500, 3)
    assert np.abs(found.astype(int) - image[::2, ::2]).max() < 6


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "float", "gone", "huge"])
def test_damaged_images_are_named(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("bad.tiff" if damage == "float" else "bad.jpg")
    Image.fromarray(noise(64, 64)).save(path)
    source = ImageFolder(tmp_path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:900])
    elif damage in {"text", "empty"}:
        path.write_text("no image" if damage == "text" else "")
    elif damage == "float":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    elif damage == "gone":
        path.unlink()
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=f"{path}: not a readable image"):
        CropDataset([source], 0, SMALL)[Draw(0, 0)]


def test_too_few_images_and_no_source_are_refused(folder: Path) -> None:
    dataset = CropDataset([ImageFolder(folder), ImageFolder(folder)], 0, SMALL)
    check_crops(dataset, 20)
    with pytest.raises(DataError, match=r"10 \+ 10 images for batches of 21"):
        check_crops(dataset, 21)
    with pytest.raises(ConfigError, match="no source"):
        CropDataset([], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size = 0"),
        ({"scale": (0, 1)}, "scale"),
        ({"scale": (0.5, 1.5)}, "whole area"),
        ({"ratio": (2, 1)}, "ratio"),
    ],
)
def test_impossible_recipes_are_refused(folder: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CropDataset([ImageFolder(folder)], 0, CropRecipe()._replace(**change))
