"""NYU Depth v2 as a labelled set: the .mat and exported images, its maps of classes, damaged files, real pairs."""

from __future__ import annotations

import pickle
import shutil
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fuzz import tries
from pri3d.errors import ConfigError, DataError, Pri3DError
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.labelled.nyuv2 import NYUImages
from pri3d.labelled.spaces import load_space
from pri3d.recordings._shared.nyu_mat import MatFile, official_train
from pri3d.testing import LabelledSetContract

COUNT, WIDTH, HEIGHT = 6, 16, 12  # images 1 and 2 are test, 3 to 6 train
CHAIR, TABLE, BED, WALL, BOTTLE = 5, 19, 157, 21, 2  # labels of the 894 (the bottle is of class 40, otherprop)
NYU13 = ["bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall"]
NYU13 += ["window"]


def maps() -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Labels and instances (H, W): a wall, two chairs and a table whose numbers begin anew, a bottle, no label."""
    label = np.full((HEIGHT, WIDTH), WALL, np.uint16)
    instance = np.ones((HEIGHT, WIDTH), np.uint8)
    for rows, columns, kind, number in [
        (slice(2, 6), slice(1, 4), CHAIR, 1),
        (slice(2, 6), slice(5, 9), CHAIR, 2),
        (slice(8, 11), slice(1, 12), TABLE, 1),
        (slice(6, 8), slice(12, 13), BOTTLE, 1),
        (slice(0, 1), slice(0, WIDTH), 0, 0),
    ]:
        label[rows, columns], instance[rows, columns] = kind, number
    return label, instance


def colors(count: int = COUNT) -> NDArray[np.uint8]:
    """Images (N, H, W, 3), all different."""
    return np.random.default_rng(0).integers(256, size=(count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def write_mat(path: Path, count: int = COUNT, **other: object) -> Path:
    """The file as MATLAB stores it: a header block before the HDF5, axes in reverse. ``other``: arrays instead."""
    label, instance = maps()
    arrays: dict[str, object] = {
        "images": colors(count).transpose(0, 3, 2, 1),
        "labels": np.stack([label.T] * count),
        "instances": np.stack([instance.T] * count),
        "depths": np.ones((count, WIDTH, HEIGHT), np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in (arrays | other).items():
            if array is not None:
                file[name] = array
    return path


def write_exported(root: Path, numbers: tuple[int, ...] = (1, 2, 3, 4), thirteen: bool = True) -> Path:
    """Images 1.. as exported; the ids of each label image are its columns 0, 1, 2, ..."""
    ids = np.tile(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, 1))
    ids[ids > 13] = 0
    for number, color in zip(numbers, colors(len(numbers)), strict=True):
        train = number in official_train()
        folder = root / (("train/color" if train else "val/color") if thirteen else "image")
        labels = root / (("labels13_train" if train else "labels13_test") if thirteen else "label40")
        for path in (folder, labels):
            path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(color).save(folder / f"{number:04d}.png")
        Image.fromarray(ids).save(labels / f"{'new_nyu_class13_' if thirteen else ''}{number:04d}.png")
    return root


@pytest.fixture
def mat(tmp_path: Path) -> Path:
    return write_mat(tmp_path / "nyu" / "nyu_depth_v2_labeled.mat")


class TestMat(LabelledSetContract):
    name = "nyuv2"

    @pytest.fixture
    def images(self, mat: Path) -> LabelledImages:
        return NYUImages(mat, "train")


class TestFolderWithMat(LabelledSetContract):
    name = "nyuv2"
    split = "all"

    @pytest.fixture
    def images(self, mat: Path) -> LabelledImages:
        return NYUImages(mat.parent, "all", "nyu40")


class TestExported13(LabelledSetContract):
    name = "nyuv2"
    has_objects = False

    @pytest.fixture
    def images(self, tmp_path: Path) -> LabelledImages:
        return NYUImages(write_exported(tmp_path), "train")


class TestExported40(LabelledSetContract):
    name = "nyuv2"
    split = "val"
    has_objects = False

    @pytest.fixture
    def images(self, tmp_path: Path) -> LabelledImages:
        return NYUImages(write_exported(tmp_path, thirteen=False), "val")


def test_facts() -> None:
    """Counts as published, labels that everyone knows, and the 13 classes as groups of the 40."""
    train = official_train()
    assert len(train) == 795 and min(train) == 3 and max(train) == 1440
    assert 1 not in train and 1449 not in train
    thirteen, forty = load_space("nyu13"), load_space("nyu40")
    assert list(thirteen.names) == NYU13 and len(forty.names) == 40
    assert (thirteen.table[1:41] < 13).all() and thirteen.table[0] == 255
    assert np.bincount(thirteen.table[1:41]).tolist() == [1, 1, 1, 1, 2, 8, 16, 1, 1, 2, 1, 2, 3]
    assert [thirteen.names[k] for k in thirteen.things] == [
        name for name in NYU13 if name not in ("ceiling", "floor", "objects", "wall")
    ]
    for name, group in [("night stand", "furniture"), ("curtain", "window"), ("door", "wall"), ("desk", "table")]:
        assert thirteen.names[thirteen.table[forty.names.index(name) + 1]] == group


class TestReading:
    @pytest.mark.parametrize(
        ("split", "numbers"), [("train", "3456"), ("val", "12"), ("test", "12"), ("all", "123456")]
    )
    def test_split(self, mat: Path, split: Split, numbers: str) -> None:
        assert open_labelled(mat, split).names == [f"{int(number):04d}" for number in numbers]

    def test_colours(self, mat: Path) -> None:
        images = NYUImages(mat, "train")
        assert all(np.array_equal(images.color(k), colors()[k + 2]) for k in range(4))
        assert images.color_file(0) is None

    @pytest.mark.parametrize("space", [None, "nyu13", "nyu40"])
    def test_classes(self, mat: Path, space: str | None) -> None:
        images = NYUImages(mat, "val", space)
        expected = {
            WALL: "wall",
            CHAIR: "chair",
            TABLE: "table",
            BOTTLE: "otherprop" if space == "nyu40" else "objects",
        }
        for raw, name in expected.items():
            assert set(images.label(0)[maps()[0] == raw]) == {images.class_names.index(name)}
        assert (images.label(0)[0] == 255).all() and (images.label(0)[1:] != 255).all()

    def test_scannets_classes(self, mat: Path) -> None:
        images = NYUImages(mat, "val", "scannet20")
        assert set(np.unique(images.label(0))) == {0, 4, 6, 255}

    def test_objects(self, mat: Path) -> None:
        """Two chairs and a table; the wall and the bottle (objects) are not countable."""
        images = NYUImages(mat, "train")
        found, (label, instance) = images.instances(1), maps()
        assert [images.thing_names[k] for k in found.classes] == ["chair", "chair", "table"]
        for mask, (kind, number) in zip(found.masks, [(CHAIR, 1), (CHAIR, 2), (TABLE, 1)], strict=True):
            assert np.array_equal(mask, (label == kind) & (instance == number))
        assert found.boxes.tolist() == [[1, 2, 4, 6], [5, 2, 9, 6], [1, 8, 12, 11]]

    def test_each_process_opens_the_file(self, mat: Path) -> None:
        images = NYUImages(mat, "train")
        first = images.color(0)
        assert np.array_equal(pickle.loads(pickle.dumps(images)).color(0), first)
        with get_context("fork").Pool(2) as pool:
            for color in pool.map(images.color, [0, 1, 0, 1]):
                assert color.shape == (HEIGHT, WIDTH, 3)
            assert np.array_equal(pool.apply(images.color, (0,)), first)

    def test_exported_ids(self, tmp_path: Path) -> None:
        images = open_labelled(write_exported(tmp_path), "val")
        assert list(images.class_names) == NYU13 and images.names == ["0001", "0002"]
        assert images.label(0)[0].tolist() == [255, *range(13), 255, 255]
        assert images.color_file(1) == tmp_path / "val" / "color" / "0002.png"

    def test_exported_40(self, tmp_path: Path) -> None:
        """Columns 1, 2, 3, ... are wall, floor, cabinet, ..."""
        images = open_labelled(write_exported(tmp_path, thirteen=False), "train")
        names = [images.class_names[k] for k in images.label(0)[0, 1:8]]
        assert names == ["wall", "floor", "furniture", "bed", "chair", "sofa", "table"]
        forty = NYUImages(tmp_path, "train", "nyu40")
        assert forty.label(0)[0].tolist() == [255, *range(13), 255, 255]

    def test_own_classes_of_exported_13(self, tmp_path: Path) -> None:
        space = tmp_path / "own.yaml"
        space.write_text("classes: {bed: 1, books: 2}\nignored: rest\n")
        images = NYUImages(write_exported(tmp_path), "val", str(space))
        assert images.label(0)[0, :4].tolist() == [255, 0, 1, 255]

    def test_what_lacks_its_partner_is_left_out(self, tmp_path: Path) -> None:
        write_exported(tmp_path)
        (tmp_path / "val" / "color" / "0001.png").unlink()
        (tmp_path / "labels13_train" / "new_nyu_class13_0004.png").unlink()
        (tmp_path / "train" / "color" / "._0003.png").write_bytes(b"")
        (tmp_path / "train" / "color" / "notes.txt").write_bytes(b"")
        assert (NYUImages(tmp_path, "val").names, NYUImages(tmp_path, "train").names) == (["0002"], ["0003"])


class TestRefused:
    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"labels": None}, "labels cannot be read"),
            ({"images": np.zeros((COUNT, WIDTH, HEIGHT, 3), np.uint8)}, "do not fit together"),
            ({"labels": np.zeros((COUNT, WIDTH, HEIGHT), np.float64)}, "labels is float64"),
            ({"instances": np.zeros((COUNT, WIDTH), np.uint8)}, "not as published"),
            ({"images": np.zeros((COUNT, 3, WIDTH, HEIGHT), np.uint16)}, "images is uint16"),
            ({"labels": np.full((COUNT, WIDTH, HEIGHT), 895, np.uint16)}, r"image 3 has label 895; 0 to 894"),
            ({"instances": np.full((COUNT, WIDTH, HEIGHT), 1 << 16, np.uint32)}, "has instance 65536"),
        ],
    )
    def test_other_contents(self, tmp_path: Path, other: dict[str, object], message: str) -> None:
        path = write_mat(tmp_path / "nyu_depth_v2_labeled.mat", **other)
        with pytest.raises(DataError, match=message):
            NYUImages(path, "train").instances(0)

    def test_more_images_than_there_are(self, tmp_path: Path) -> None:
        shape = (1450, 4, 4)
        arrays = {"images": np.zeros((1450, 3, 4, 4), np.uint8), "labels": np.zeros(shape, np.uint16)}
        path = write_mat(tmp_path / "x.mat", 1, **arrays, instances=np.zeros(shape, np.uint8))
        with pytest.raises(DataError, match="has 1450 images"):
            MatFile(path)

    @pytest.mark.parametrize("length", [0, 100, 600, -1])
    def test_truncated(self, mat: Path, length: int) -> None:
        mat.write_bytes(mat.read_bytes()[:length])
        with pytest.raises(DataError, match=r"nyu_depth_v2_labeled\.mat: .* cannot be read .* Fetch"):
            NYUImages(mat, "train")

    def test_other_classes_than_there_are(self, tmp_path: Path) -> None:
        write_exported(tmp_path)
        with pytest.raises(ConfigError, match=r"--label-map nyu40: .* has labels of 13 classes only"):
            NYUImages(tmp_path, "val", "nyu40")
        with pytest.raises(DataError, match="no instance maps"):
            NYUImages(tmp_path, "val").instances(0)

    def test_exported_ids_that_are_none(self, tmp_path: Path) -> None:
        write_exported(tmp_path)
        file = tmp_path / "labels13_test" / "new_nyu_class13_0001.png"
        Image.fromarray(np.full((HEIGHT, WIDTH), 14, np.uint8)).save(file)
        with pytest.raises(DataError, match=r"class13_0001\.png: holds ids \[14\]"):
            NYUImages(tmp_path, "val").label(0)
        Image.fromarray(np.full((HEIGHT, WIDTH - 1), 1, np.uint8)).save(file)
        with pytest.raises(DataError, match="is 15x12, its image"):
            NYUImages(tmp_path, "val").label(0)

    def test_numbers(self, tmp_path: Path) -> None:
        write_exported(tmp_path)
        image = tmp_path / "val" / "color" / "0001.png"
        shutil.copy(image, tmp_path / "train" / "color" / "1.png")
        with pytest.raises(DataError, match="is image 1 again"):
            NYUImages(tmp_path, "val")
        (tmp_path / "train" / "color" / "1.png").rename(tmp_path / "train" / "color" / "1450.png")
        with pytest.raises(DataError, match=r"is no image of 1\.\.1449"):
            NYUImages(tmp_path, "val")

    @pytest.mark.thorough
    def test_damaged_bytes(self, tmp_path: Path) -> None:
        """Whatever byte is another: an error of ours, or images that are as they should be. Never a crash."""
        path = write_mat(tmp_path / "nyu_depth_v2_labeled.mat", 1, depths=None)
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        refused = 0
        for _ in range(tries(30)):
            damaged = bytearray(whole)
            damaged[rng.integers(512, 512 + 2600)] ^= 1 << rng.integers(8)
            path.unlink()  # the library would answer for an open file from what it has read
            path.write_bytes(damaged)
            try:
                images = NYUImages(path, "all")
                assert images.color(0).shape == (*images.label(0).shape, 3)
                assert images.instances(0).masks.dtype == bool
            except Pri3DError as error:
                assert path.name in str(error)
                refused += 1
        assert tries(2) < refused < tries(30)


class TestRealPairs:
    def test_13_classes(self, real_data: Path) -> None:
        """Eight test images that have labels; the training images have none."""
        images = open_labelled(real_data / "nyuv2", "val")
        assert isinstance(images, NYUImages)
        assert images.names == ["0001", "0002", "0009", "0014", "0015", "0016", "0017", "0018"]
        labels = np.stack([images.label(k) for k in range(8)])
        assert labels.shape == (8, 480, 640) and set(np.unique(labels)) <= {*range(13), 255}
        assert (labels == 255).mean() < 0.3
        assert all(images.color(k).shape == (480, 640, 3) for k in range(8))
        with pytest.raises(DataError, match="no labelled image in split train"):
            open_labelled(real_data / "nyuv2", "train")

    @pytest.mark.parametrize("number", [834, 972, 1096, 1299, 1391])
    def test_40_classes_are_grouped_to_the_13(self, real_data: Path, tmp_path: Path, number: int) -> None:
        """Two publishers' label images of one frame agree. The 40-class ones are cut out at row 6, column 7."""
        source = real_data / "nyuv2"
        with Image.open(source / "lw40" / f"{number:06d}_mask.png") as image:
            stored = np.array(image)
        forty = np.full((480, 640), 0, np.uint8)
        forty[6 : 6 + 468, 7 : 7 + 625] = np.where(stored == 255, 0, stored + 1)
        for name, root in (("label40", tmp_path / "40"), ("labels13_test", tmp_path / "13")):
            (root / "image").mkdir(parents=True)
            (root / name).mkdir()
            Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(root / "image" / f"{number}.png")
        Image.fromarray(forty).save(tmp_path / "40" / "label40" / f"{number}.png")
        real = source / "labels13_test" / f"new_nyu_class13_{number:04d}.png"
        (tmp_path / "13" / "labels13_test" / real.name).symlink_to(real)
        ours, theirs = (open_labelled(tmp_path / name, "val").label(0) for name in ("40", "13"))
        known = (ours != 255) & (theirs != 255)
        assert known.mean() > 0.5
        assert (ours == theirs)[known].all()
