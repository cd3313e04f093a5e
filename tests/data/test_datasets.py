"""Store -> batches: geometry survives resizing and shifting, randomness is the draw's, subsets nest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pri3d.data.augment import STRONG, augment_color, recipe
from pri3d.data.labelled import LabelledDataset
from pri3d.data.labelled import collate as collate_labelled
from pri3d.data.pairs import PairDataset, check_pairs, collate, split_pairs
from pri3d.data.sampler import Draw, StreamSampler
from pri3d.errors import ConfigError, DataError
from pri3d.geometry.matching import cell_points, match_pixels, match_voxels
from pri3d.geometry.pose import transform
from pri3d.geometry.resize import shape_box
from pri3d.labelled.prepared import PreparedImages
from pri3d.store import PairTable, SceneWriter, Store, write_manifest, write_pairs
from pri3d.types import View, Voxels


def pairs(store: Path, **options: object) -> PairDataset:
    rows = np.arange(len(Store(store).pairs().i))
    return PairDataset(store, rows, options.pop("size", (64, 48)), 0, **options)  # type: ignore[arg-type]


def test_batch_has_the_stated_shapes(rooms_store: Path) -> None:
    dataset = pairs(rooms_store, voxel=0.08)
    items = [dataset[Draw(0, k)] for k in range(3)]
    batch = collate(items)
    assert batch.color.shape == (3, 2, 3, 48, 64)
    assert items[0].color.dtype == torch.uint8
    torch.testing.assert_close(batch.color, torch.stack([item.color for item in items]) / 255)
    assert batch.depth.shape == (3, 2, 48, 64)
    assert batch.intrinsics.shape == (3, 2, 4)
    assert batch.voxel_cells.shape[1] == 4
    assert set(batch.voxel_cells[:, 0].tolist()) == set(range(6))
    assert float(batch.voxel_size) == pytest.approx(0.08)
    assert batch.names[0].count("+") == 1


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((48, 48), (8, 0, 48, 48)),
        ((64, 36), (0, 6, 64, 36)),
        ((32, 32), (8, 0, 48, 48)),
        ((32, 36), (10, 0, 43, 48)),
        ((48, 16), (0, 13, 64, 21)),
    ],
)
def test_frames_of_another_shape_are_cropped_and_keep_their_geometry(
    rooms_store: Path, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """A pixel of the batch looks where the stored pixel did that it was taken from, and holds its depth."""
    left, top, width, height = box
    dataset = pairs(rooms_store, size=size)
    item, scene = dataset[Draw(0, 0)], Store(rooms_store).scene(str(dataset.table.scene[0]))
    view = scene.view(int(dataset.table.i[0]))
    fx, fy, cx, cy = item.intrinsics[0].tolist()
    u, v = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    rays = np.stack(((u - cx) / fx, (v - cy) / fy))
    stored = (left + u * width / size[0], top + v * height / size[1])
    k = view.intrinsics
    np.testing.assert_allclose(rays, ((stored[0] - k[2]) / k[0], (stored[1] - k[3]) / k[1]), atol=1e-5)
    np.testing.assert_array_equal(item.depth[0], view.depth[stored[1].astype(int), stored[0].astype(int)])
    assert fx / fy == pytest.approx(k[0] / k[1], rel=0.02)  # in shape, but for the rounding of the box


@pytest.mark.parametrize(
    ("have", "want", "box"),
    [
        ((1296, 968), (320, 240), (0, 0, 1296, 968)),  # the paper's: within the tolerance
        ((64, 48), (64, 47), (0, 0, 64, 48)),
        ((640, 360), (320, 240), (80, 0, 480, 360)),
        ((192, 256), (320, 240), (0, 56, 192, 144)),  # a phone held upright
        ((1, 1), (320, 240), (0, 0, 1, 1)),
    ],
)
def test_the_middle_of_another_shape(have: tuple[int, int], want: tuple[int, int], box: tuple[int, ...]) -> None:
    assert shape_box(have, want) == box


def test_one_chunk_a_pair_leaves_the_second_frame_without(rooms_store: Path) -> None:
    dataset = pairs(rooms_store, voxel=0.08, chunks=1)
    batch = collate([dataset[Draw(0, k)] for k in range(3)])
    assert set(batch.voxel_cells[:, 0].tolist()) == {0, 1, 2}


def test_matches_of_a_batch_lie_within_the_distance(rooms_store: Path) -> None:
    dataset = pairs(rooms_store)
    batch = collate([dataset[Draw(0, k)] for k in range(4)])
    grid = (48, 64)
    matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, grid, 0.1)
    assert matches.valid.sum() > 200
    points = [
        transform(batch.world_from_camera[:, v], cell_points(batch.depth[:, v], batch.intrinsics[:, v], grid)[0])
        for v in (0, 1)
    ]
    there = points[1].gather(1, matches.second[..., None].expand(-1, -1, 3))
    gap = (points[0] - there).norm(dim=-1)[matches.valid]
    assert gap.max() < 0.1 + 1e-5


def test_most_pixels_find_their_voxel(rooms_store: Path) -> None:
    dataset = pairs(rooms_store, voxel=0.08)
    batch = collate([dataset[Draw(0, k)] for k in range(4)])
    matches = match_voxels(
        batch.depth.flatten(0, 1), batch.intrinsics.flatten(0, 1), batch.world_from_camera.flatten(0, 1),
        batch.voxel_cells, batch.voxel_size, (12, 16),
    )  # fmt: skip
    # One pixel a voxel stays; every view keeps a good share of its 192 cells.
    assert (matches.valid.sum(1) > 60).all()


@pytest.mark.parametrize(("width", "height"), [(32, 24), (50, 37), (48, 37)])
def test_smaller_images_see_the_same_rays(rooms_store: Path, width: int, height: int) -> None:
    full, small = pairs(rooms_store)[Draw(0, 0)], pairs(rooms_store, size=(width, height))[Draw(0, 0)]
    scale = torch.tensor([width / 64, height / 48] * 2)  # of fx, fy, cx, cy
    torch.testing.assert_close(small.intrinsics, full.intrinsics * scale)
    assert small.color.shape == (2, 3, height, width)
    assert torch.isin(small.depth, full.depth).all()


def test_the_draw_fixes_every_random_choice(rooms_store: Path) -> None:
    dataset = pairs(rooms_store, recipe=STRONG)
    one, again, other = dataset[Draw(1, 2)], dataset[Draw(1, 2)], dataset[Draw(2, 2)]
    assert torch.equal(one.color, again.color)
    assert one.seed == again.seed != other.seed
    assert not torch.equal(one.color, other.color)


def test_clean_images_beside_augmented_ones(rooms_store: Path) -> None:
    """They are those of a data set without augmentation, and change no draw of it."""
    rows = np.arange(len(Store(rooms_store).pairs().i))
    views = ("first", "second", "copy")
    both, plain, augmented = (
        collate([PairDataset(rooms_store, rows, (64, 48), 0, recipe, views=views, clean=clean)[Draw(0, 1)]])
        for recipe, clean in ((STRONG, True), (None, False), (STRONG, False))
    )
    assert torch.equal(both.clean, plain.color[:, :2])
    assert torch.equal(both.color, augmented.color)
    assert not torch.equal(both.color[:, :2], both.clean)
    assert augmented.clean.shape[:2] == (1, 0)


def test_holdout_shares_no_frame(rooms_store: Path) -> None:
    store = Store(rooms_store)
    table = store.pairs()
    train, late = split_pairs(store, 0.4)
    assert len(train)
    assert len(late)
    seen = {(table.scene[k], f) for k in train for f in (table.i[k], table.j[k])}
    assert not seen & {(table.scene[k], f) for k in late for f in (table.i[k], table.j[k])}
    assert len(split_pairs(store, 0.0)[0]) == len(table.i)
    with pytest.raises(ConfigError, match="holdout"):
        split_pairs(store, 1.5)


@pytest.mark.parametrize("holdout", [0.0, 0.4])
def test_pairs_that_overlap_little_are_left_out(rooms_store: Path, holdout: float) -> None:
    store = Store(rooms_store)
    table = store.pairs()
    least = float(np.median(table.overlap))
    every, enough = split_pairs(store, holdout), split_pairs(store, holdout, min_overlap=least)
    for rows, some in zip(every, enough, strict=True):
        assert some.tolist() == [row for row in rows if table.overlap[row] >= np.float32(least)]
    assert 0 < len(enough[0]) < len(every[0])


def test_too_few_pairs_are_refused(rooms_store: Path) -> None:
    with pytest.raises(DataError, match="training pairs"):
        check_pairs(np.arange(3), Store(rooms_store), 8)


def labelled(store: Path, size: tuple[int, int], **options: Any) -> LabelledDataset:
    return LabelledDataset(PreparedImages(store, "all"), size, **options)


def test_labelled_items_and_nested_fractions(rooms_store: Path) -> None:
    every = labelled(rooms_store, (64, 48))
    batch = collate_labelled([every[Draw(0, k)] for k in range(2)])
    assert batch.color.shape == (2, 3, 48, 64)
    assert batch.label.shape == (2, 48, 64)
    images = every.images
    assert set(batch.label.unique().tolist()) <= {*range(len(images.class_names)), 255}
    few, more = (images.subset(fraction) for fraction in (0.25, 0.5))
    assert set(few) < set(more) < set(every.rows)
    some = labelled(rooms_store, (64, 48), rows=few)
    assert [some[Draw(0, k)][2] for k in range(len(some))] == [images.names[row] for row in few]
    with pytest.raises(ConfigError, match="fraction"):
        images.subset(0)


def small_store(root: Path, labels: dict[str, list[bool | None]], names: list[str] | None) -> Path:
    """Scenes of grey 32 x 24 frames; None is a rejected frame. A frame's label is its row."""
    records = {}
    for scene, kept in labels.items():
        with SceneWriter(root, scene, (32, 24)) as writer:
            for row, labelled in enumerate(kept):
                if labelled is None:
                    writer.reject(str(row), "blurred")
                    continue
                grey, depth = np.full((24, 32, 3), 90, np.uint8), np.ones((24, 32), np.float32)
                view = View(grey, depth, np.array((20.0, 20, 16, 12)), np.eye(4), str(row))
                writer.add(view, np.full((24, 32), row, np.uint8) if labelled else None)
            surface = Voxels(np.array([(0, 0, 40), (1, 0, 40), (0, 0, 41)], np.int32), 0.02)
            records[scene] = writer.finish(PairTable.empty(), surface, {})
    settings = {"pairs": True}
    write_manifest(root, {"state": "finished", "settings": settings, "class_names": names, "scenes": records})
    count = len(records)
    rows, ones = np.zeros(count, np.int32), np.ones(count, np.float32)
    write_pairs(root, PairTable(np.array(sorted(records)), rows, rows + 1, ones, ones, ones))
    return root


def test_frames_without_a_label_play_no_part(tmp_path: Path) -> None:
    labels = {"a": [False, True, None, True], "b": [False, False], "c": [True, True]}
    store = small_store(tmp_path, labels, list("wxyz"))
    dataset = labelled(store, (32, 24))
    assert dataset.images.names == ["a/1", "a/3", "c/0", "c/1"]
    assert [int(dataset[Draw(0, k)][1][0, 0]) for k in range(4)] == [1, 3, 0, 1]
    assert len(dataset.images.subset(0.5)) == 2  # of the labelled ones


def test_a_store_without_labels_and_one_without_names_say_what_to_do(tmp_path: Path) -> None:
    for name, classes in (("bare", None), ("named", ["wall"])):
        store = small_store(tmp_path / name, {"a": [False, False]}, classes)
        with pytest.raises(DataError, match=f"{name}: has no labels. Prepare a recording"):
            PreparedImages(store, "all")
    store = small_store(tmp_path / "nameless", {"a": [False, True]}, None)
    with pytest.raises(DataError, match=r"nameless: its classes have no names: add a classes\.txt beside the scenes"):
        PreparedImages(store, "all")


@pytest.mark.thorough
def test_few_surfaces_are_kept_and_only_coarse_ones(tmp_path: Path) -> None:
    scenes = [f"s{k:03d}" for k in range(70)]
    dataset = pairs(small_store(tmp_path, {name: [True, True] for name in scenes}, ["wall"] * 2), voxel=0.04)
    for k in range(len(dataset)):
        dataset[Draw(0, k)]
        assert len(dataset._surfaces[scenes[k]].cells) == 1
    assert list(dataset._surfaces) == scenes[-64:]
    assert {surface.size for surface in dataset._surfaces.values()} == {0.04}


def test_mirroring_moves_label_and_image_together(rooms_store: Path) -> None:
    plain = labelled(rooms_store, (64, 48))
    mirrored = labelled(rooms_store, (64, 48), recipe=recipe("light"), mirror=True)
    states = set()
    for epoch in range(8):
        label = mirrored[Draw(epoch, 0)][1]
        states.add(torch.equal(label, plain[Draw(0, 0)][1]))
        assert torch.equal(label, plain[Draw(0, 0)][1]) or torch.equal(label.flip(-1), plain[Draw(0, 0)][1])
    assert states == {True, False}


def test_augmentation_changes_colours_within_range_and_knows_its_names() -> None:
    image = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    results = [augment_color(image, STRONG, torch.Generator().manual_seed(k)) for k in range(20)]
    assert all(r.shape == image.shape and r.dtype == image.dtype for r in results)
    assert sum(torch.equal(r, image) for r in results) < 10
    assert any((r[0] == r[1]).all() and (r[1] == r[2]).all() for r in results)
    assert augment_color(image, None, torch.Generator()) is image
    with pytest.raises(ConfigError, match="strong"):
        recipe("strongg")


@pytest.mark.thorough
def test_a_loader_process_gives_the_same_batches(rooms_store: Path) -> None:
    """Also without any voxel: an empty tensor travels as well."""
    for voxel in (0.16, 0.0):
        dataset = PairDataset(rooms_store, np.arange(4), (64, 48), 0, recipe("strong"), voxel)
        sampler = StreamSampler(4, 4, 0)
        here, there = (
            next(iter(DataLoader(dataset, 4, sampler=sampler, collate_fn=collate, num_workers=workers)))
            for workers in (0, 1)
        )
        for name, a, b in zip(here._fields, here, there, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
        assert (len(here.voxel_cells) == 0) == (voxel == 0)


def test_chunks_are_cropped_to_a_bound(rooms_store: Path) -> None:
    """Nothing changes where they fit; else the largest lose what is farthest from their cameras."""
    dataset = pairs(rooms_store, voxel=0.08)
    items = [dataset[Draw(0, k)] for k in range(3)]
    sizes = [len(chunk.cells) for item in items for chunk in item.chunks]
    whole = collate(items)
    assert torch.equal(collate(items, most=sum(sizes)).voxel_cells, whole.voxel_cells)
    most = 6 * min(sizes) + 3 * (max(sizes) - min(sizes))
    with pytest.warns(UserWarning, match="nearest to their cameras"):
        cut = collate(items, most=most)
    counts = torch.bincount(cut.voxel_cells[:, 0].long(), minlength=6).tolist()
    limit = max(counts)
    assert counts == [min(size, limit) for size in sizes]
    assert most - 6 < sum(counts) <= most
    number = sizes.index(max(sizes))
    before, after = (batch.voxel_cells[batch.voxel_cells[:, 0] == number, 1:] for batch in (whole, cut))
    eye = whole.world_from_camera.flatten(0, 1)[number, :3, 3]
    near, every = (((cells + 0.5) * whole.voxel_size - eye).norm(dim=1) for cells in (after, before))
    assert near.max() <= every.sort().values[limit - 1] + 1e-5
