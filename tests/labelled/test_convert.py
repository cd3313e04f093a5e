"""Labelled sets -> COCO json: read back by our reader and by pycocotools, what is left out, where images go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_coco import HEIGHT, WIDTH, content, write
from test_nyuv2 import write_exported, write_mat
from test_scannet_images import TRAIN, VAL, write_scan

from pri3d.api.coco import coco
from pri3d.errors import ConfigError, DataError
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.labelled.coco import CocoImages
from pri3d.labelled.convert import decode_mask, encode_mask, to_coco
from pri3d.labelled.scannet import ScanNetImages
from pri3d.types import Instances

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def same(ours: Instances, theirs: Instances) -> None:
    """The same masks, boxes, classes and crowds in the same order."""
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one, other)


def read_back(path: Path, images: LabelledImages, rows: list[int]) -> CocoImages:
    """The written json has the objects, classes and pixels of the set."""
    again = CocoImages(path, "all")
    assert list(again.class_names) == images.thing_names
    assert again.image_ids == [row + 1 for row in rows]
    for k, row in enumerate(rows):
        same(again.instances(k), images.instances(row))
        assert np.array_equal(again.color(k), images.color(row))
    return again


class TestMasks:
    @given(mask=MASKS)
    def test_round_trip(self, mask: NDArray[np.bool_]) -> None:
        packed = encode_mask(mask)
        assert json.loads(json.dumps(packed)) == packed
        assert np.array_equal(decode_mask(packed, mask.shape, "x"), mask)
        assert np.array_equal(reference.decode(packed), mask)
        assert packed["counts"].encode() == reference.encode(np.asfortranarray(mask, np.uint8))["counts"]

    @given(
        polygons=st.lists(
            st.lists(st.floats(-20, 40), min_size=6, max_size=14).map(lambda xs: xs[: len(xs) // 2 * 2]),
            min_size=1,
            max_size=3,
        )
    )
    def test_polygons(self, polygons: list[list[float]]) -> None:
        expected = reference.decode(reference.merge(reference.frPyObjects(polygons, 20, 30)))
        assert np.array_equal(decode_mask(polygons, (20, 30), "x"), expected)

    @given(
        counts=st.one_of(st.lists(st.integers(-5, 200), max_size=8), st.text(max_size=12), st.binary(max_size=12)),
    )
    def test_any_runs(self, counts: Any) -> None:
        """Runs that do not cover the image are refused, the others are a mask."""
        try:
            mask = decode_mask({"size": [10, 12], "counts": counts}, (10, 12), "file: annotation 5")
        except DataError as error:
            assert "file: annotation 5" in str(error)
        else:
            assert mask.shape == (10, 12)
            if isinstance(counts, list):
                assert sum(counts) == 120 and mask.sum() == sum(counts[1::2])


class TestContent:
    def test_of_coco(self, tmp_path: Path) -> None:
        """Ids are counted anew, all else stays; crowds stay whatever their size."""
        images = CocoImages(write(tmp_path, content()), "all")
        found = to_coco(images, [1, 0, 2], min_area=0)
        assert found["images"][0] == {"id": 2, "file_name": "10.png", "width": WIDTH, "height": HEIGHT}
        assert found["categories"] == [{"id": 1, "name": "table"}, {"id": 2, "name": "chair"}]
        assert [entry["id"] for entry in found["annotations"]] == [1, 2, 3, 4, 5]
        assert [entry["image_id"] for entry in found["annotations"]] == [2, 1, 1, 1, 1]
        assert [entry["area"] for entry in found["annotations"]] == [4 * 20, 100, 72, 36, 120]
        assert found["annotations"][1]["bbox"] == [2, 3, 10, 10]
        assert [entry["iscrowd"] for entry in found["annotations"]] == [0, 0, 0, 0, 1]
        assert found["annotations"][4]["category_id"] == 2

    @pytest.mark.parametrize(("least", "areas"), [(0, [100, 72, 36, 120]), (37, [100, 72, 120]), (1000, [120])])
    def test_small_objects(self, tmp_path: Path, least: int, areas: list[int]) -> None:
        images = CocoImages(write(tmp_path, content()), "all")
        found = to_coco(images, [0], least)
        assert [entry["area"] for entry in found["annotations"]] == areas
        assert len(found["images"]) == 1

    def test_a_thousand_pixels_are_enough(self, tmp_path: Path) -> None:
        """The paper's protocol leaves out what has fewer."""
        for scan, rows in ((TRAIN[0], 25), (TRAIN[1], 24)):
            folder = write_scan(tmp_path, scan, size=(40, 30))
            for part, unit in (("label", 1), ("instance", 1000)):
                ids = np.full((30, 40), unit, np.uint16)
                ids[:rows] = 5 * unit + (unit > 1)
                ids[rows - 1, 39] = unit  # 999 and 959 pixels
                ids[rows, 0] = 5 * unit + (unit > 1) if rows == 25 else unit  # 1000 and 959
                Image.fromarray(ids).save(folder / part / "000000.png")
        found = to_coco(ScanNetImages(tmp_path, "train"), [0, 1])
        assert [(entry["image_id"], entry["area"]) for entry in found["annotations"]] == [(1, 1000)]

    def test_no_objects(self, tmp_path: Path) -> None:
        space = tmp_path / "stuff.yaml"
        space.write_text("classes: {wall: 1}\nthings: []\nignored: rest\n")
        write_scan(tmp_path / "frames", TRAIN[0])
        with pytest.raises(DataError, match="none of its classes is countable"):
            to_coco(ScanNetImages(tmp_path / "frames", "train", str(space)), [0])
        with pytest.raises(DataError, match="no instance maps"):
            coco(write_exported(tmp_path / "nyu"), tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()

    def test_small_objects_are_counted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        stated = content()
        stated["annotations"] = [entry for entry in stated["annotations"] if not entry.get("iscrowd")]
        file = write(tmp_path, stated)
        coco(file, tmp_path / "out.json", split="all", min_area=75)
        text = capsys.readouterr().out
        assert "3 images, 2 objects of 2 classes. 2 objects under 75 pixels left out (--min-area)." in text
        coco(file, tmp_path / "out.json", split="all", min_area=1)
        assert "--min-area" not in capsys.readouterr().out

    def test_nothing_to_write(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """It says why, and leaves no empty progress bar behind."""
        stated = content()
        stated["annotations"] = [entry for entry in stated["annotations"] if not entry.get("iscrowd")]
        file = write(tmp_path, stated)
        with pytest.raises(
            DataError, match="in 3 images of split all: all 4 have fewer than 1000 pixels: give a small"
        ):
            coco(file, tmp_path / "out.json", split="all")
        stated["annotations"] = []
        with pytest.raises(DataError, match="no objects in 3 images of split all: has none"):
            coco(write(tmp_path, stated), tmp_path / "out.json", split="all")
        assert not (tmp_path / "out.json").exists()
        assert "".join(capfd.readouterr()).strip() == ""


class TestVerb:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_scannet(self, tmp_path: Path, split: Split) -> None:
        """Images stay where they are; pycocotools reads the same masks."""
        for scan in (TRAIN[5], VAL[2], TRAIN[0]):
            write_scan(tmp_path / "frames", scan, 2)
        path = coco(tmp_path / "frames", tmp_path / "out" / f"instances_{split}.json", split=split, min_area=1).path
        images = open_labelled(tmp_path / "frames", split)
        read_back(path, images, list(range(len(images.names))))
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
        official = COCO(str(path))
        first = official.loadImgs([1])[0]
        assert first["file_name"] == str(images.color_file(0)) and Path(first["file_name"]).is_absolute()
        masks = [official.annToMask(entry) for entry in official.loadAnns(official.getAnnIds([1]))]
        assert np.array_equal(masks, images.instances(0).masks)

    def test_images_below_the_json_are_relative(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_scan(tmp_path / "frames", VAL[0])
        monkeypatch.chdir(tmp_path)
        path = coco(Path("frames"), Path("val.json"), min_area=1).path
        stated = json.loads(path.read_bytes())["images"][0]["file_name"]
        assert stated == f"frames/{VAL[0]}/color/000000.jpg"
        read_back(path, open_labelled(Path("frames"), "val"), [0])

    def test_nyu(self, tmp_path: Path) -> None:
        """Images of the .mat are written beside the json, pixel by pixel; twice changes nothing."""
        mat = write_mat(tmp_path / "nyu_depth_v2_labeled.mat")
        for _ in range(2):
            path = coco(mat, tmp_path / "out" / "nyu.json", split="train", min_area=1).path
        assert path == tmp_path / "out" / "nyu.json"
        again = read_back(path, open_labelled(mat, "train"), [0, 1, 2, 3])
        assert again.names == [f"nyu/000{k}.png" for k in (3, 4, 5, 6)]
        assert sorted(p.name for p in path.parent.rglob("*")) == [
            *(f"000{k}.png" for k in (3, 4, 5, 6)),
            "nyu",
            "nyu.json",
        ]

    def test_prepared_store(self, rooms_store: Path, tmp_path: Path) -> None:
        path = coco(rooms_store, tmp_path / "rooms.json", split="all", min_area=1, fraction=0.5).path
        images = open_labelled(rooms_store, "all")
        rows = images.subset(0.5)
        assert len(rows) == len(images.names) // 2
        read_back(path, images, rows)

    def test_share_and_format(self, tmp_path: Path) -> None:
        for scan in TRAIN[:30]:
            write_scan(tmp_path / "frames", scan)
        path = coco(
            tmp_path / "frames",
            tmp_path / "few.json",
            split="train",
            dataset="scannet",
            label_map="nyu40",
            min_area=1,
            fraction=0.01,
        ).path
        found = json.loads(path.read_bytes())
        assert len(found["images"]) == 18 and len(found["categories"]) == 37

    def test_again_through_coco(self, tmp_path: Path) -> None:
        """A COCO json without its small objects."""
        file = write(tmp_path, content())
        path = coco(file, tmp_path / "annotations" / "large.json", split="all", min_area=100).path
        found = CocoImages(path, "all")
        assert [len(found.instances(k).classes) for k in range(3)] == [2, 0, 0]
        assert found.instances(0).crowd.tolist() == [False, True]

    def test_name_of_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"name a \.json file, such as .*instances_val\.json"):
            coco(tmp_path, tmp_path / "out")
        with pytest.raises(DataError, match="no such file or folder"):
            coco(tmp_path / "nothing", tmp_path / "out.json")

    def test_names_stay_in_the_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mat = write_mat(tmp_path / "nyu_depth_v2_labeled.mat")
        images = open_labelled(mat, "val")
        images.names = ["../../0001", "0002"]
        monkeypatch.setattr("pri3d.labelled.convert.open_labelled", lambda *_: images)
        with pytest.raises(DataError, match="points outside of the output folder"):
            coco(mat, tmp_path / "out" / "nyu.json", min_area=1)


def test_a_set_scored_against_itself_is_perfect(tmp_path: Path) -> None:
    """COCO's own evaluation takes the content as truth: all AP is 1 where every object is found."""
    path = coco(write_mat(tmp_path / "nyu_depth_v2_labeled.mat"), tmp_path / "nyu.json", split="train", min_area=1).path
    truth = COCO(str(path))
    found = [{**entry, "score": 0.9} for entry in truth.dataset["annotations"]]
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in found]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)
