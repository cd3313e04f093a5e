"""Folders of images and masks: every layout, every way to name and to spoil them; real street scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import ConfigError, DataError
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.labelled.folder import MASKS, TAILS, FolderImages
from pri3d.testing import LabelledSetContract

CLASSES = ("wall", "cat", "dog")


def draw(
    seed: int, height: int = 8, width: int = 10
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
    """Colours, class ids and object ids: two of three objects are countable."""
    rng = np.random.default_rng(seed)
    label, instance = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint16)
    label[2:4, 3:7], instance[2:4, 3:7] = 1, 300
    label[5:, 1:3], instance[5:, 1:3] = 2, 7
    label[0], instance[0] = 0, 9
    label[1, 0] = 255
    return rng.integers(256, size=(height, width, 3), dtype=np.uint8), label, instance


def save(path: Path, pixels: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def fill(images: Path, masks: Path, names: Sequence[str], instances: Path | None = None, tail: str = "") -> None:
    for k, name in enumerate(names):
        color, label, instance = draw(k)
        save(images / f"{name}.jpg", color)
        save(masks / f"{name}{tail}.png", label)
        if instances is not None:
            save(instances / f"{name}.png", instance)


def name_classes(root: Path) -> Path:
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Ten images and masks with named classes."""
    fill(tmp_path / "images", tmp_path / "masks", [f"{k:02d}" for k in range(10)])
    return name_classes(tmp_path)


def names(root: Path, split: Split) -> list[str]:
    return list(FolderImages(root, split).names)


class TestByName(LabelledSetContract):
    name = "folder"

    @pytest.fixture
    def images(self, tmp_path: Path) -> LabelledImages:
        fill(tmp_path / "images", tmp_path / "masks", [f"{k:02d}" for k in range(10)], tmp_path / "instances", "_mask")
        return open_labelled(name_classes(tmp_path), "train")

    def test_what_was_drawn_comes_back(self, images: LabelledImages) -> None:
        assert images.class_names == CLASSES and images.thing_names == ["cat", "dog"]
        assert len(images.names) == 8
        for k in range(8):
            color, label, instance = draw(int(images.names[k][-2:]))
            assert np.abs(images.color(k).astype(int) - color).mean() < 60  # of JPEG; another image differs by 85
            np.testing.assert_array_equal(images.label(k), label)
            found = images.instances(k)
            assert found.classes.tolist() == [1, 0]  # in the order of ids: 7 is the dog
            np.testing.assert_array_equal(found.masks[1], instance == 300)
            assert found.boxes.tolist() == [[1, 5, 3, 8], [3, 2, 7, 4]]


class TestLists(LabelledSetContract):
    name = "folder"
    split = "all"
    has_objects = False

    @pytest.fixture
    def images(self, tmp_path: Path) -> LabelledImages:
        fill(tmp_path / "a", tmp_path / "b c", ["x", "y", "z"])
        (tmp_path / "train.txt").write_text("a/x.jpg\tb c/x.png\n\na/z.jpg\tb c/z.png\r\n")
        (tmp_path / "val.txt").write_text("\ufeffa/y.jpg\tb c/y.png", encoding="utf-8")
        return open_labelled(name_classes(tmp_path), "all")

    def test_splits_are_those_of_the_lists(self, images: LabelledImages) -> None:
        assert names(images.path, "train") == ["a/x", "a/z"]
        assert names(images.path, "val") == ["a/y"]
        assert images.names == ["a/x", "a/z", "a/y"]
        assert FolderImages.states_split(images.path)
        with pytest.raises(DataError, match=r"states train, val but no test\. Add test\.txt"):
            FolderImages(images.path, "test")
        with pytest.raises(DataError, match="has no instance maps"):
            images.instances(0)


@pytest.mark.parametrize(
    ("images", "masks", "instances"),
    [
        ("images/{}", "masks/{}", "instances/{}"),
        ("{}/images", "{}/masks", "{}/instances"),
        ("JPEGImages/{}", "SegmentationClass/{}", "SegmentationObject/{}"),
        ("{}/RGB", "{}/Label", "{}/Instance"),
    ],
)
@pytest.mark.parametrize("split", [("train", "val", "test"), ("training", "validation", "testing")])
def test_split_folders(tmp_path: Path, images: str, masks: str, instances: str, split: Sequence[str]) -> None:
    for part in split:
        fill(
            *(tmp_path / folder.format(part) for folder in (images, masks)),
            ["1", part],
            tmp_path / instances.format(part),
        )
    name_classes(tmp_path)
    assert FolderImages.detect(tmp_path) and FolderImages.states_split(tmp_path)
    for known, part in zip(("train", "val", "test"), split, strict=True):
        found = FolderImages(tmp_path, known)  # type: ignore[arg-type]
        assert found.names == [f"{images.format(part)}/{name}" for name in ("1", part)]
        assert len(found.instances(1).classes) == 2
    assert len(names(tmp_path, "all")) == 6


@pytest.mark.parametrize("folder", MASKS)
@pytest.mark.parametrize("tail", ["", *TAILS])
def test_names_of_masks(tmp_path: Path, folder: str, tail: str) -> None:
    fill(tmp_path / "img", tmp_path / folder.capitalize(), ["sub/a.b", "sub/c_L", "d"], tail=tail)
    found = FolderImages(name_classes(tmp_path), "all")
    assert found.names == ["img/d", "img/sub/a.b", "img/sub/c_L"]
    assert [pair.mask.stem for pair in found._pairs] == [f"d{tail}", f"a.b{tail}", f"c_L{tail}"]


def test_folder_of_other_labels_is_passed_over(plain: Path) -> None:
    (plain / "labels").mkdir()
    (plain / "labels" / "00.txt").write_text("0 0.5 0.5 1 1")
    (plain / "images" / ".hidden.png").write_text("")
    (plain / "images" / "Thumbs.db").write_text("")
    assert len(names(plain, "all")) == 10


def test_dealt_split_is_fixed_and_whole(plain: Path) -> None:
    train, val = names(plain, "train"), names(plain, "val")
    assert sorted(train + val) == names(plain, "all")
    assert len(val) == 2
    with pytest.raises(DataError, match="state no test split; val is a held-out fifth"):
        names(plain, "test")
    assert not FolderImages.states_split(plain)
    moved = plain.with_name("moved")
    plain.rename(moved)
    assert names(moved, "val") == val


def test_dealt_split_keeps_subfolders_together(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", [f"room{k % 5}/{k}" for k in range(20)])
    name_classes(tmp_path)
    rooms = [{name.split("/")[1] for name in names(tmp_path, split)} for split in ("train", "val")]  # type: ignore[arg-type]
    assert len(rooms[0]) == 4 and len(rooms[1]) == 1 and not rooms[0] & rooms[1]


def test_lists_of_names_choose_among_pairs(plain: Path) -> None:
    (plain / "train.txt").write_text("00\n02.jpg\nimages/04.jpg\n")
    (plain / "val.txt").write_text("01\n")
    save(plain / "images" / "unlabelled.jpg", draw(0)[0])
    assert names(plain, "train") == ["images/00", "images/02", "images/04"]
    assert names(plain, "val") == ["images/01"]
    assert FolderImages.detect(plain) and FolderImages.states_split(plain)
    (plain / "val.txt").write_text("01\nunlabelled\n")
    with pytest.raises(DataError, match=r"val\.txt: line 2: no image with a mask is called 'unlabelled'"):
        names(plain, "val")


def test_third_column_is_the_instance_map(tmp_path: Path) -> None:
    fill(tmp_path / "a", tmp_path / "b", ["x"], tmp_path / "c")
    (tmp_path / "train.txt").write_text("a/x.jpg b/x.png c/x.png")
    assert len(FolderImages(name_classes(tmp_path), "train").instances(0).classes) == 2


def test_lists_may_point_outside(plain: Path) -> None:
    root = plain / "lists"
    root.mkdir()
    name_classes(root)
    (root / "train.txt").write_text(f"../images/00.jpg ../masks/00.png\n{plain}/images/01.jpg {plain}/masks/01.png")
    assert len(set(names(root, "train"))) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("images/00.jpg masks/99.png", r"1 of its files are missing: .*masks/99\.png\. Paths start at"),
        ("/elsewhere/00.jpg masks/00.png", "missing: /elsewhere/00.jpg"),
        ("a b c d", r"train\.txt: line 1: has 4 parts"),
        ("images/00.jpg masks/00.png\n" * 2, "split train has images/00 more than once"),
        ("", "no labelled image in split train"),
    ],
)
def test_bad_lists(plain: Path, lines: str, message: str) -> None:
    (plain / "train.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        open_labelled(plain, "train", "folder")


def test_image_of_two_splits_is_refused(plain: Path) -> None:
    (plain / "train.txt").write_text("00\n01\n")
    (plain / "val.txt").write_text("01\n")
    for split in ("train", "val", "all"):
        with pytest.raises(DataError, match=r"images/01\.jpg is in train and in val"):
            names(plain, split)  # type: ignore[arg-type]


def test_lost_files_are_listed(plain: Path) -> None:
    for k in range(4):
        (plain / "masks" / f"{k:02d}.png").unlink()
    with pytest.raises(
        DataError, match=r"4 of 10 images have no mask: .*00\.jpg, .*02\.jpg, \.\.\.\. Looked in .*masks"
    ):
        names(plain, "all")
    for k in range(5):
        (plain / "images" / f"{k:02d}.jpg").unlink()
    with pytest.raises(DataError, match=r"1 masks have no image in .*images: .*04\.png"):
        names(plain, "all")


def test_lost_instance_map_is_named(plain: Path) -> None:
    save(plain / "instances" / "03.png", draw(3)[2])
    with pytest.raises(DataError, match=r"9 images have no map in .*instances: .*00\.jpg"):
        names(plain, "all")


def test_two_files_of_one_name_are_refused(plain: Path) -> None:
    other = save(plain / "images" / "03.png", draw(3)[0])
    with pytest.raises(DataError, match=r"03\.jpg and 03\.png have one name"):
        names(plain, "all")
    other.unlink()
    save(plain / "masks" / "03_mask.png", draw(3)[1])
    with pytest.raises(DataError, match=r"03\.png and 03_mask\.png both fit one image"):
        names(plain, "all")


def test_empty_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a known set of labelled images"):
        open_labelled(tmp_path, "train")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=r"has no images with masks\. Looked for images/ and masks/"):
        open_labelled(tmp_path, "train", "folder")
    (tmp_path / "file").write_text("")
    assert not FolderImages.detect(tmp_path / "file")
    with pytest.raises(DataError, match="is not a folder"):
        FolderImages(tmp_path / "file", "train")


def test_damage_is_named_where_it_is(plain: Path) -> None:
    images, mask = FolderImages(plain, "all"), plain / "masks" / "00.png"
    save(mask, np.zeros((8, 9), np.uint8))
    with pytest.raises(DataError, match=rf"{mask}: is 9x8, its image .*00\.jpg is 10x8"):
        images.label(0)
    save(mask, np.full((8, 10), 77, np.uint8))
    with pytest.raises(DataError, match=rf"{mask}: holds ids \[77\], which have no class"):
        images.label(0)
    save(mask, draw(0)[0])
    with pytest.raises(DataError, match=rf"{mask}: its pixels are colours"):
        images.label(0)
    mask.write_bytes(b"")
    with pytest.raises(DataError, match=f"{mask}: not a readable image"):
        images.label(0)
    mask.unlink()
    with pytest.raises(DataError, match=f"{mask}: not a readable image"):
        images.label(0)


def test_classes_come_from_the_argument_then_the_folder(plain: Path) -> None:
    (plain / "labels.yaml").write_text("classes: {background: 0, pet: [1, 2]}\nthings: [pet]\n")
    found = FolderImages(plain, "all")
    assert found.class_names == ("background", "pet") and found.thing_names == ["pet"]
    np.testing.assert_array_equal(found.label(0), np.where(draw(0)[1] == 2, 1, draw(0)[1]))
    own = plain / "own.yaml"
    own.write_text("classes: {dog: 2}\nignored: rest\n")
    assert FolderImages(plain, "all", str(own)).class_names == ("dog",)
    with pytest.raises(ConfigError, match="Choices: "):
        FolderImages(plain, "all", "no-such-space")


def test_without_classes_it_says_which_ids_there_are(plain: Path) -> None:
    (plain / "classes.txt").unlink()
    save(plain / "masks" / "03.png", np.full((8, 10), 5, np.uint8))
    said = set()
    for split in ("train", "val"):
        with pytest.raises(
            ConfigError, match=r"ids in the masks are, for example, 0, 1, 2, 5, 255\. Write classes\.txt"
        ) as caught:
            FolderImages(plain, split)  # type: ignore[arg-type]
        said.add(str(caught.value))
    assert len(said) == 1  # so that it is shown once


@pytest.mark.parametrize("content", [b"", b"a\nb\na\n", b"caf\xe9", b"a\n\nb\n", b"\na\n"])
def test_bad_class_names_are_refused(plain: Path, content: bytes) -> None:
    (plain / "classes.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"classes\.txt: .*Write one class name per line"):
        FolderImages(plain, "train")


def test_blank_lines_of_class_names(plain: Path) -> None:
    """One inside would give the later names other ids, those at the end do no harm."""
    (plain / "classes.txt").write_text("wall\n\ncat\ndog\n")
    with pytest.raises(ConfigError, match=r"classes\.txt: line 2 is blank, which would shift the ids"):
        FolderImages(plain, "train")
    (plain / "classes.txt").write_text("wall\ncat\ndog\n \n\n")
    assert FolderImages(plain, "train").class_names == CLASSES


def test_another_mapping_is_other_data(plain: Path) -> None:
    def hash_of(text: str) -> str:
        (plain / "labels.yaml").write_text(text)
        return FolderImages(plain, "all").hash

    assert hash_of("classes: {a: 0, b: [1, 2]}") != hash_of("classes: {a: [0, 1], b: 2}")


def test_any_kind_of_pixels(tmp_path: Path) -> None:
    """Grey, 16-bit, transparent and turned images; masks of 1, 8 and 16 bits and with a palette."""
    (images, masks), label = (tmp_path / "images", tmp_path / "masks"), draw(0)[1] % 3
    exif = Image.Exif()
    exif[0x0112] = 8
    save(images / "grey.png", draw(0)[0][..., 0])
    save(images / "deep.tif", draw(0)[0][..., 0].astype(np.uint16) * 257)
    save(images / "clear.webp", np.dstack([draw(0)[0], draw(0)[0][..., :1]]))
    Image.fromarray(np.rot90(draw(0)[0], -1)).save(images / "turned.jpg", exif=exif)
    save(masks / "grey.png", label.astype(np.uint16))
    save(masks / "deep.bmp", label)
    save(masks / "clear.png", label == 1)
    palette = Image.fromarray(label)
    palette.putpalette([200, 10, 10, 9, 9, 9, 0, 0, 0])
    palette.save(masks / "turned.png")
    found = FolderImages(name_classes(tmp_path), "all")
    for k, name in enumerate(found.names):
        assert found.color(k).shape == (8, 10, 3)
        np.testing.assert_array_equal(found.label(k), label == 1 if "clear" in name else label)


def test_real_street_scenes(real_data: Path) -> None:
    """CamVid as SegNet has it: lists, 11 classes; the shares of pixels are those of streets."""
    counts, shares = [], np.zeros(256)
    for split in ("train", "val", "test"):
        images = open_labelled(real_data / "camvid_segnet", split, labels="camvid")  # type: ignore[arg-type]
        assert isinstance(images, FolderImages)
        counts.append(len(images.names))
        for k in range(0, counts[-1], 8):
            assert images.color(k).shape == (360, 480, 3)
            shares += np.bincount(images.label(k).ravel(), minlength=256)
    assert counts == [123, 34, 39]
    named = dict(zip(images.class_names, shares / shares.sum(), strict=False))
    assert 0.2 < named["road"] < 0.4 and 0.15 < named["building"] < 0.35 and 0.1 < named["sky"] < 0.25
    assert all(0.001 < named[name] < 0.02 for name in ("pole", "sign", "pedestrian", "bicyclist"))
    assert shares[255] / shares.sum() < 0.06 and shares[11:255].sum() == 0
    with pytest.raises(ConfigError, match="0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"):
        open_labelled(real_data / "camvid_segnet", "train")


def test_pascal_vocs_lists_choose_images_and_splits(tmp_path: Path) -> None:
    """The set has many more images than masks, and test images that have none."""
    fill(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", [f"2007_{k:06d}" for k in range(9)])
    save(tmp_path / "JPEGImages" / "2007_000999.jpg", draw(0)[0])
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"2007_{k:06d}\n" for k in range(7)))
    (lists / "val.txt").write_text("2007_000007\n2007_000008\n")
    (lists / "trainval.txt").write_text("".join(f"2007_{k:06d}\n" for k in range(9)))
    (lists / "test.txt").write_text("2007_000999\n")
    name_classes(tmp_path)
    assert FolderImages.states_split(tmp_path)
    assert names(tmp_path, "train") == [f"JPEGImages/2007_{k:06d}" for k in range(7)]
    assert names(tmp_path, "val") == ["JPEGImages/2007_000007", "JPEGImages/2007_000008"]
    found = open_labelled(tmp_path, "val")
    np.testing.assert_array_equal(found.label(1), draw(8)[1])
    # Lists of the user's own come first.
    (tmp_path / "train.txt").write_text("2007_000008\n")
    (tmp_path / "val.txt").write_text("2007_000001\n")
    assert names(tmp_path, "train") == ["JPEGImages/2007_000008"]


def test_files_of_kinds_that_are_not_read_are_counted_where_something_is_missing(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", ["a", "b", "c"])
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.jpg").rename(tmp_path / "images" / f"{name}.HEIC")
    with pytest.raises(DataError, match=r"2 masks have no image .*Not read there: 2 \.heic; images are \.bmp"):
        FolderImages(name_classes(tmp_path), "train")
