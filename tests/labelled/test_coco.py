"""COCO json as a labelled set: masks of every kind against pycocotools, what is refused, damaged files, real data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from fuzz import tries
from pri3d.errors import ConfigError, DataError, Pri3DError
from pri3d.labelled import LabelledImages, open_labelled
from pri3d.labelled.coco import CocoImages
from pri3d.testing import LabelledSetContract

WIDTH, HEIGHT = 40, 30
Content = dict[str, Any]


def square(x: int, y: int, side: int) -> list[float]:
    """Corners of a square."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def runs(mask: NDArray[np.bool_], packed: bool) -> dict[str, Any]:
    """COCO's run lengths, by pycocotools or by counting."""
    if packed:
        found = reference.encode(np.asfortranarray(mask, np.uint8))
        return {"size": list(mask.shape), "counts": found["counts"].decode()}
    flat = np.concatenate([[False], mask.flatten("F"), [not mask[-1, -1]]])
    edges = np.nonzero(np.diff(flat))[0]
    return {"size": list(mask.shape), "counts": np.diff([0, *edges]).tolist()}


def region(rows: slice, columns: slice) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rows, columns] = True
    return mask


def content() -> Content:
    """Two images with objects of every kind of mask, and one without; categories 7 and 3 in this order."""
    objects = [
        {"image_id": 20, "category_id": 7, "bbox": [2, 3, 10, 10], "segmentation": [square(2, 3, 10)]},
        {
            "image_id": 20,
            "category_id": 3,
            "bbox": [20, 3, 16, 6],
            "segmentation": [square(20, 3, 6), square(30, 3, 6)],
        },
        {"image_id": 20, "category_id": 3, "bbox": [5, 20, 9, 4]}
        | {"segmentation": runs(region(slice(20, 24), slice(5, 14)), packed=True)},
        {"image_id": 20, "category_id": 7, "bbox": [20, 15, 12, 10], "iscrowd": 1}
        | {"segmentation": runs(region(slice(15, 25), slice(20, 32)), packed=False)},
        {"image_id": 10, "category_id": 7, "bbox": [-4.5, 25.0, 60.0, 60.0], "segmentation": [square(0, 26, 20)]},
    ]
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT} for number in (20, 10, 30)
        ],
        "annotations": [{"id": 100 + k, "iscrowd": 0, **entry} for k, entry in enumerate(objects)],
        "categories": [{"id": 7, "name": "chair", "supercategory": "x"}, {"id": 3, "name": "table"}],
    }


def write(root: Path, stated: Any, file: str = "annotations/instances_val2017.json", images: str = "val2017") -> Path:
    """The json, and the images of it."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(stated if isinstance(stated, str) else json.dumps(stated))
    (root / images).mkdir(parents=True, exist_ok=True)
    for number in (10, 20, 30):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), number, np.uint8)).save(root / images / f"{number}.png")
    return root / file


class TestCoco(LabelledSetContract):
    name = "coco"
    split = "all"
    has_classes = False

    @pytest.fixture
    def images(self, tmp_path: Path) -> LabelledImages:
        return CocoImages(write(tmp_path, content()), "all")


class TestFolder(LabelledSetContract):
    name = "coco"
    test_splits_are_disjoint = None  # its two files list the same names
    has_classes = False

    @pytest.fixture
    def images(self, tmp_path: Path) -> LabelledImages:
        write(tmp_path, content())
        write(tmp_path, content(), "annotations/instances_train2017.json", "train2017")
        return CocoImages(tmp_path, "train")


class TestReading:
    def test_classes_and_names(self, tmp_path: Path) -> None:
        images = CocoImages(write(tmp_path, content()), "all")
        assert (list(images.class_names), images.category_ids) == (["table", "chair"], [3, 7])
        assert (images.names, images.image_ids) == (["20.png", "10.png", "30.png"], [20, 10, 30])
        assert images.thing_names == ["table", "chair"]
        with pytest.raises(DataError, match="no class maps"):
            images.label(0)

    def test_objects(self, tmp_path: Path) -> None:
        images = CocoImages(write(tmp_path, content()), "all")
        found = images.instances(0)
        expected = [region(slice(3, 13), slice(2, 12)), region(slice(3, 9), slice(20, 26))]
        expected[1] |= region(slice(3, 9), slice(30, 36))
        expected += [region(slice(20, 24), slice(5, 14)), region(slice(15, 25), slice(20, 32))]
        assert np.array_equal(found.masks, expected)
        assert found.boxes.tolist() == [[2, 3, 12, 13], [20, 3, 36, 9], [5, 20, 14, 24], [20, 15, 32, 25]]
        assert found.classes.tolist() == [1, 0, 0, 1]
        assert found.crowd.tolist() == [False, False, False, True]
        assert images.instances(1).boxes.tolist() == [[0, 25, 40, 30]]  # as stated, cut to the image
        empty = images.instances(2)
        assert empty.masks.shape == (0, HEIGHT, WIDTH) and empty.boxes.shape == (0, 4)

    @pytest.mark.parametrize(
        "entry",
        [
            {"bbox": [2, 3, 0.5, 10]},
            {"bbox": [2, 3, 10, 0]},
            {"bbox": [39.5, 3, 10, 10]},
            {"bbox": [2, 3, -10, 10]},
            {"bbox": [50, 3, 10, 10]},
            {"bbox": [10**400, 3, 10, 10]},
            {"segmentation": runs(np.zeros((HEIGHT, WIDTH), bool), packed=True)},
            {"segmentation": [[2, 3, 8, 9]]},
            {"segmentation": [[]]},
            {"segmentation": [square(45, 35, 10)]},
        ],
    )
    def test_degenerate_objects_are_left_out(self, tmp_path: Path, entry: Content) -> None:
        stated = content()
        stated["annotations"][0] |= entry
        assert len(CocoImages(write(tmp_path, stated), "all").instances(0).classes) == 3

    def test_one_name_of_two_categories(self, tmp_path: Path) -> None:
        stated = content()
        stated["categories"].append({"id": 9, "name": "chair"})
        assert list(CocoImages(write(tmp_path, stated), "all").class_names) == ["table", "chair 7", "chair 9"]

    def test_label_space_counts_category_ids(self, tmp_path: Path) -> None:
        space = tmp_path / "own.yaml"
        space.write_text("classes: {ground: 1, seat: [7, 8]}\nthings: [seat]\nignored: [3]\n")
        images = CocoImages(write(tmp_path, content()), "all", str(space))
        assert images.thing_names == ["seat"]
        assert images.instances(0).classes.tolist() == [0, 0]
        space.write_text("classes: {seat: 7}\n")
        with pytest.raises(DataError, match=r"its categories: holds ids \[3\]"):
            CocoImages(images.file, "all", str(space))

    @pytest.mark.parametrize("where", ["val2017", "images/val2017", "images", ".", "annotations", "annotations/images"])
    def test_where_images_lie(self, tmp_path: Path, where: str) -> None:
        file = write(tmp_path, content(), images=where)
        assert (CocoImages(file, "all").color(1) == 10).all()
        assert CocoImages(file, "all").color_file(0).resolve() == (tmp_path / where / "20.png").resolve()

    def test_absolute_names(self, tmp_path: Path) -> None:
        stated = content()
        for entry in stated["images"]:
            entry["file_name"] = str(tmp_path / "elsewhere" / entry["file_name"])
        assert (CocoImages(write(tmp_path, stated, images="elsewhere"), "all").color(0) == 20).all()


class TestSplit:
    def test_files_of_a_folder(self, tmp_path: Path) -> None:
        write(tmp_path, content())
        few = content()
        few["images"], few["annotations"] = few["images"][:1], few["annotations"][:4]
        write(tmp_path, few, "annotations/instances_train2017.json", "train2017")
        assert [len(open_labelled(tmp_path, split).names) for split in ("train", "val")] == [1, 3]  # type: ignore[arg-type]
        with pytest.raises(DataError, match="for split test, but instances_train2017"):
            open_labelled(tmp_path, "test")
        write(tmp_path, few, "annotations/instances_test2017.json", "test2017")
        assert len(open_labelled(tmp_path, "test").names) == 1
        assert len(open_labelled(tmp_path, "val", whole=True).names) == 3
        with pytest.raises(DataError, match=r"for split all, but instances_test2017\.json, instances_train2017"):
            open_labelled(tmp_path, "all")

    def test_several_of_one_split(self, tmp_path: Path) -> None:
        write(tmp_path, content())
        write(tmp_path, content(), "annotations/instances_val2014.json")
        with pytest.raises(ConfigError, match=r"instances_val2014\.json, instances_val2017\.json. Give the one"):
            open_labelled(tmp_path, "val")
        with pytest.raises(DataError, match="for split train"):
            open_labelled(tmp_path, "train")

    def test_one_file_is_dealt(self, tmp_path: Path) -> None:
        stated = content()
        file = write(tmp_path, stated)
        train, val = (CocoImages(file, split) for split in ("train", "val"))
        assert (len(train.names), len(val.names)) == (2, 1)
        assert sorted([*train.image_ids, *val.image_ids]) == [10, 20, 30]
        objects = [images.instances(k) for images in (train, val) for k in range(len(images.names))]
        assert sorted(len(found.classes) for found in objects) == [0, 1, 4]
        assert len(open_labelled(file, "train", whole=True).names) == 3
        with pytest.raises(DataError, match="state no test split; val is a held-out fifth"):
            open_labelled(file, "test")


def test_hash_covers_the_annotations(tmp_path: Path) -> None:
    """Corrected annotations are other data, another folder is not."""
    stated = content()
    first, elsewhere = (
        CocoImages(write(tmp_path / "a", stated), "all"),
        CocoImages(write(tmp_path / "b", stated), "all"),
    )
    assert first.hash == elsewhere.hash
    del stated["annotations"][0]
    fewer = CocoImages(write(tmp_path / "a", stated), "all")
    assert fewer.hash != first.hash and fewer.names == first.names and fewer.class_names == first.class_names

    def test_nothing_of_it(self, tmp_path: Path) -> None:
        assert not CocoImages.detect(tmp_path)
        with pytest.raises(DataError, match=r"has no instances_\*\.json"):
            CocoImages(tmp_path, "val")


def change(path: str, value: Any) -> Callable[[Content], Any]:
    """Set what lies at ``annotations/0/bbox`` of a json; None removes it."""

    def apply(stated: Content) -> Content:
        *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        place: Any = stated
        for step in way:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
        return stated

    return apply


class TestRefused:
    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("images", None, "has no list `images`"),
            ("annotations", {}, "has no list `annotations`"),
            ("categories", [], "`categories` is empty"),
            ("images/0", 5, r"images\[0\]: its `id` is 5"),
            ("images/0/id", "a", r"images\[0\]: its `id` is 'a', expected a number"),
            ("images/1/file_name", None, r"images\[1\]: its `file_name` is 'nothing', expected a text"),
            ("images/1/width", 0, r"images\[1\]: '10.png' of 0x30 pixels"),
            ("images/1/height", 30.5, "its `height` is 30.5"),
            ("images/1/id", 20, "id of images 20 is there 2 times"),
            ("images/1/file_name", "20.png", "file_name '20.png' is there 2 times"),
            ("categories/1/id", 7, "id of categories 7 is there 2 times"),
            ("categories/1/id", True, "its `id` is True"),
            ("categories/0/name", None, "its `name` is"),
            ("annotations/1/id", 100, "id of annotations 100 is there 2 times"),
            ("annotations/0/image_id", 99, "annotation 100 has image_id 99, which `images` lacks"),
            ("annotations/0/category_id", 1, "annotation 100 has category_id 1, which `categories` lacks"),
            ("annotations/0/bbox", None, "annotation 100: its bbox is None"),
            ("annotations/0/bbox", [1, 2, 3], "its bbox is"),
            ("annotations/0/bbox", [1, 2, 3, float("nan")], "its bbox is"),
            ("annotations/0/bbox", [1, 2, 3, "4"], "its bbox is"),
            ("annotations/0/iscrowd", 2, "its iscrowd is 2"),
            ("annotations/0/segmentation", None, "annotation 100: has no segmentation"),
        ],
    )
    def test_lists(self, tmp_path: Path, path: str, value: Any, message: str) -> None:
        file = write(tmp_path, change(path, value)(content()))
        with pytest.raises(DataError, match=message) as caught:
            CocoImages(file, "all")
        assert str(file) in str(caught.value)

    @pytest.mark.parametrize(
        "segmentation",
        [
            [],
            "polygon",
            7,
            [5, 6, 7],
            [[1, 2, 3, 4, 5, 6, 7]],
            [[1, 2, 3, 4, 5, "6"]],
            [[1, 2, 3, 4, 5, float("inf")]],
            [[1, 2, 3, 4, 5, float("nan")]],
            [[1, 2, 3, 4, 5, 1e9]],
            {},
            {"size": [HEIGHT, WIDTH]},
            {"size": 5, "counts": [1200]},
            {"size": [WIDTH, HEIGHT], "counts": [1200]},
            {"size": [HEIGHT, WIDTH], "counts": [100, 5]},
            {"size": [HEIGHT, WIDTH], "counts": [1300, -100]},
            {"size": [HEIGHT, WIDTH], "counts": [100, 10**12]},
            {"size": [HEIGHT, WIDTH], "counts": [1200.0]},
            {"size": [HEIGHT, WIDTH], "counts": 1200},
            {"size": [HEIGHT, WIDTH], "counts": ""},
            {"size": [HEIGHT, WIDTH], "counts": "999999"},
            {"size": [HEIGHT, WIDTH], "counts": "oooooooooooooooooo"},
            {"size": [HEIGHT, WIDTH], "counts": "é\u0000"},
        ],
    )
    def test_segmentations(self, tmp_path: Path, segmentation: Any) -> None:
        images = CocoImages(write(tmp_path, change("annotations/0/segmentation", segmentation)(content())), "all")
        with pytest.raises(
            DataError, match=r"instances_val2017\.json: annotation 100: its segmentation cannot be read"
        ):
            images.instances(0)
        assert len(images.instances(1).classes) == 1

    @pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "\x00", "[" * 100_000, '{"images": [}'])
    def test_no_json(self, tmp_path: Path, text: str) -> None:
        file = write(tmp_path, text)
        with pytest.raises(DataError, match="json"):
            CocoImages(file, "all")

    def test_bytes_of_no_text(self, tmp_path: Path) -> None:
        file = write(tmp_path, content())
        file.write_bytes(b"\xff\xfe\x00\xd8")
        with pytest.raises(DataError, match="not a readable json file"):
            CocoImages(file, "all")

    def test_missing_image(self, tmp_path: Path) -> None:
        images = CocoImages(write(tmp_path, content()), "all")
        (tmp_path / "val2017" / "20.png").unlink()
        for read in (images.color, images.instances, images.color_file):
            with pytest.raises(DataError, match=r"instances_val2017\.json: image 20\.png \(id 20\) is in none of"):
                read(0)

    def test_image_of_another_size(self, tmp_path: Path) -> None:
        """An image that is turned by its EXIF tag is another than the one that was annotated."""
        images = CocoImages(write(tmp_path, content()), "all")
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "val2017" / "20.png", exif=exif)
        for read in (images.color, images.instances):
            with pytest.raises(DataError, match=r"20\.png: is 30x40 pixels upright, .* states 40x30 \(image id 20\)"):
                read(0)

    def test_damaged_bytes(self, tmp_path: Path) -> None:
        """Whatever byte is another: an error of ours, or objects that are as they should be. Never a crash."""
        file = write(tmp_path, content())
        whole, rng = file.read_bytes(), np.random.default_rng(0)
        refused = 0
        for _ in range(tries(40)):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] = rng.choice([rng.integers(256), *b'0123456789"[]{},:-.e'])
            file.write_bytes(damaged)
            try:
                images = CocoImages(file, "all")
                for k in range(len(images.names)):
                    found = images.instances(k)
                    assert found.masks.shape == (len(found.classes), HEIGHT, WIDTH)
                    assert found.masks.any((1, 2)).all() and (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            except Pri3DError:
                refused += 1
        assert tries(10) < refused < tries(40)


class TestRealData:
    @pytest.mark.slow
    @pytest.mark.parametrize(("split", "count", "total", "crowds"), [("train", 80, 705, 6), ("val", 36, 463, 5)])
    def test_as_pycocotools_reads_it(self, real_data: Path, split: Any, count: int, total: int, crowds: int) -> None:
        """Every mask, box and class."""
        images = open_labelled(real_data / "coco_tiny", split)
        assert isinstance(images, CocoImages)
        official = COCO(str(images.file))
        assert len(images.names) == count and len(images.class_names) == 80
        assert images.category_ids == sorted(official.cats)
        kept = crowd = 0
        for k, number in enumerate(images.image_ids):
            stated = official.loadAnns(official.getAnnIds(imgIds=[number]))
            stated = [entry for entry in stated if min(entry["bbox"][2:]) >= 1]
            found = images.instances(k)
            assert len(found.classes) == len(stated)
            for entry, mask, box, kind in zip(stated, found.masks, found.boxes, found.classes, strict=True):
                assert np.array_equal(mask, official.annToMask(entry).astype(bool))
                x, y, w, h = entry["bbox"]
                assert np.allclose(box, [x, y, x + w, y + h], atol=0.01)
                assert images.category_ids[kind] == entry["category_id"]
            kept, crowd = kept + len(stated), crowd + int(found.crowd.sum())
        assert (kept, crowd) == (total, crowds)
        assert all(images.color(k).shape[2] == 3 for k in range(0, count, 10))
