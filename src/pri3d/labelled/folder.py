"""A folder of images and masks: pairs by list, by split folder, or by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import ConfigError, DataError
from pri3d.files.kinds import count_kinds
from pri3d.labelled import STUFF, LabelledImages, Split, deal
from pri3d.labelled._shared.decoding import SUFFIXES, check_headers, read_ids, read_rgb
from pri3d.labelled.spaces import LabelSpace, load_space, parse_space

#: Names of folders, in any case.
IMAGES = ("images", "image", "imgs", "img", "color", "rgb", "jpegimages")
MASKS = ("masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass")
INSTANCES = ("instances", "instance", "segmentationobject")
#: Folders and lists of a split
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
#: What the name of a mask may have more than that of its image
TAILS = ("_mask", "_masks", "_label", "_labels", "_L", "_gt", "_seg", "_instance", "_instances")

#: where Pascal VOC has its lists; its test images have no masks
VOC_LISTS = Path("ImageSets") / "Segmentation"

_LOOKED = 10  # masks whose ids a message lists


class Pair(NamedTuple):
    """An image with its maps."""

    image: Path
    mask: Path
    instance: Path | None


class PairFolders(NamedTuple):
    """Folders whose files belong together by name."""

    images: Path
    masks: Path
    instances: Path | None


class FolderImages(LabelledImages):
    """Images (JPEG, PNG, WebP, TIFF, BMP, PPM) with masks of one number a pixel, in one of three layouts.

    - ``train.txt``, ``val.txt``, ``test.txt``: a line has the paths of an image and its mask, and optionally of its
      instance map, relative to the folder and separated by tabs or blanks.
    - ``images/train``, ``masks/train`` ... or ``train/images``, ``train/masks`` ...: paired by name.
    - ``images``, ``masks``: paired by name. The lists hold names of images then; without them a fifth is val, dealt
      out by subfolders of ``images`` where it has some, else by image.

    Folders may have other names of :data:`IMAGES`, :data:`MASKS` and :data:`SPLITS`, the first that holds an image
    being taken, and masks one of :data:`TAILS` at the end of theirs.
    Pascal VOC's ``ImageSets/Segmentation`` are lists, too. ``instances`` beside ``masks`` holds object ids,
    0 = none; without it there are no objects.
    The ids are classes by ``--label-map``, else by ``labels.yaml`` (the same format) or ``classes.txt`` (a name a line,
    ids from 0, all countable but wall, floor and ceiling) in the folder.
    Raises DataError naming files where pairs are incomplete or ambiguous, a split is not stated or overlaps train;
    ConfigError where nothing says which ids are which classes.
    """

    looks_for: ClassVar[str] = "images/ and masks/ (or train/images ...), or train.txt with `image mask` in a line"

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        self.path = path
        self._pairs = _of_split(path, split)
        self.has_objects = any(pair.instance is not None for pair in self._pairs)
        self.names = [_name(pair.image, path) for pair in self._pairs]
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise DataError(
                f"{path}: split {split} has {_some(twice)} more than once. Give each image one name and line."
            )
        self.space: LabelSpace = _space(path, labels)
        self.class_names, self.things = self.space.names, self.space.things

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether it has one of the layouts, with a mask in it."""
        if not path.is_dir():
            return False
        rows = [row for file in _lists(path).values() for row in _lines(file)[:1]]
        return any(len(row) > 1 and row[0].lower().endswith(SUFFIXES) for row in rows) or bool(_places(path))

    @classmethod
    def states_split(cls, path: Path) -> bool:
        """Whether there are lists or folders of splits."""
        return bool(_lists(path)) or "all" not in _places(path)

    def color(self, k: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of image k."""
        return read_rgb(self._pairs[k].image)

    def color_file(self, k: int) -> Path:
        """Where image k lies."""
        return self._pairs[k].image

    def check_size(self, k: int) -> None:
        """Compare the headers of image k's files."""
        check_headers(*self._pairs[k])

    def label(self, k: int) -> NDArray[np.uint8]:
        """Class ids (H, W) of image k, 255 = ignored."""
        pair = self._pairs[k]
        return self.space.apply(read_ids(pair.mask, like=pair.image), str(pair.mask))

    def instance(self, k: int) -> NDArray[np.int32] | None:
        """Object ids (H, W) of image k, 0 = none; None where it has no map."""
        pair = self._pairs[k]
        return None if pair.instance is None else read_ids(pair.instance, like=pair.image)


def _of_split(path: Path, split: Split) -> list[Pair]:
    """Pairs of a split, as the folder states it or as dealt out."""
    if not path.is_dir():
        raise DataError(f"{path}: is not a folder. Looked for {FolderImages.looks_for}.")
    places, lists = _places(path), _lists(path)
    if not places and not lists:
        raise DataError(f"{path}: has no images with masks. Looked for {FolderImages.looks_for}.{_unread(path)}")
    if not lists and "all" in places:
        pairs = _by_name(places["all"], path)
        names = [_name(pair.image, places["all"].images) for pair in pairs]
        folders = [name.rpartition("/")[0] for name in names]
        groups = folders if len(set(folders)) > 1 else names
        return [pairs[k] for k in deal(groups, split)] if pairs else []
    stated = _listed(path, lists, places) if lists else {name: _by_name(p, path) for name, p in places.items()}
    seen = {pair.image for pair in stated.get("train", [])}
    for name in set(stated) - {"train"}:
        both = [str(pair.image) for pair in stated[name] if pair.image in seen]
        if both:
            raise DataError(f"{path}: {_some(both)} is in train and in {name}. Remove it from one.")
    if split != "all" and split not in stated:
        raise DataError(f"{path}: states {', '.join(stated)} but no {split}. Add {split}.txt or a folder {split}.")
    return stated[split] if split != "all" else list(dict.fromkeys(pair for pairs in stated.values() for pair in pairs))


def _listed(path: Path, lists: dict[str, Path], places: dict[str, PairFolders]) -> dict[str, list[Pair]]:
    """Pairs of the list files; lines with one word are names of images in the place."""
    named: dict[str, Pair] = {}
    for part, place in places.items():
        for pair in _by_name(place, path, complete=False):
            starts = (path, place.images) if part == "all" else (path,)  # two splits may have the same names
            names = [pair.image.relative_to(start).as_posix() for start in starts]
            named |= dict.fromkeys([*names, *(os.path.splitext(name)[0] for name in names)], pair)  # noqa: PTH122
    result: dict[str, list[Pair]] = {}
    for split, file in lists.items():
        pairs = []
        for k, row in enumerate(_lines(file), 1):
            if len(row) in {2, 3}:
                pairs.append(Pair(path / row[0], path / row[1], path / row[2] if len(row) == 3 else None))
            elif len(row) == 1 and row[0] in named:
                pairs.append(named[row[0]])
            elif len(row) == 1:
                raise DataError(
                    f"{file}: line {k}: no image with a mask is called {row[0]!r}. Write `image mask`, or a name in "
                    "images."
                )
            else:
                raise DataError(
                    f"{file}: line {k}: has {len(row)} parts. Write `image mask`, with a tab between where names have "
                    "blanks."
                )
        gone = [str(part) for pair in pairs for part in pair if part is not None and not part.is_file()]
        if gone:
            raise DataError(f"{file}: {len(gone)} of its files are missing: {_some(gone)}. Paths start at {path}.")
        result[split] = pairs
    return result


def _lists(path: Path) -> dict[str, Path]:
    """Split -> its list file; those of Pascal VOC where the folder has none of its own."""
    own = {split: path / f"{split}.txt" for split in SPLITS if (path / f"{split}.txt").is_file()}
    voc = {split: path / VOC_LISTS / f"{split}.txt" for split in ("train", "val")}
    return own or {split: file for split, file in voc.items() if file.is_file()}


def _lines(file: Path) -> list[list[str]]:
    """Parts of the lines that are not blank."""
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line.strip().split("\t") if "\t" in line.strip() else line.split() for line in lines if line.strip()]


def _places(path: Path) -> dict[str, PairFolders]:
    """Split -> folders to pair; "all" where the folder does not state splits; nothing where it has no such folders."""
    whole = _place(path)
    if whole is None:
        split = {name: _place(folder) for name in SPLITS if (folder := _child(path, SPLITS[name])) is not None}
        return {name: place for name, place in split.items() if place is not None}
    result = {}
    for name, folders in SPLITS.items():
        images, masks = _child(whole.images, folders), _child(whole.masks, folders)
        if images is not None and masks is not None:
            result[name] = PairFolders(images, masks, _child(whole.instances, folders) if whole.instances else None)
    return result or {"all": whole}


def _place(path: Path) -> PairFolders | None:
    images, masks = _child(path, IMAGES), _child(path, MASKS)
    return None if images is None or masks is None else PairFolders(images, masks, _child(path, INSTANCES))


def _child(path: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the named folders below ``path`` that has an image in it."""
    named = {child.name.lower(): child for child in path.iterdir() if child.is_dir()}
    found = (named[name] for name in names if name in named)
    return next((child for child in found if _files(child, first=True)), None)


def _by_name(place: PairFolders, path: Path, complete: bool = True) -> list[Pair]:
    """Images of a place with the maps of the same name, in the order of names.

    Raises DataError where two files have one name, or, if ``complete``, where an image or a mask is alone.
    """
    images = _keyed(place.images)
    masks = _matched(images, place.masks)
    instances = _matched(images, place.instances) if place.instances else {}
    without = [str(images[key]) for key in images if key not in masks]
    if without and complete:
        raise DataError(
            f"{path}: {len(without)} of {len(images)} images have no mask: {_some(without)}. Looked in {place.masks} "
            f"for the same name, also with {', '.join(TAILS)}. Add them, or list the others in train.txt and "
            f"val.txt.{_unread(place.masks)}"
        )
    alone = [str(file) for key, file in masks.items() if key not in images]
    if alone and complete:
        raise DataError(
            f"{path}: {len(alone)} masks have no image in {place.images}: {_some(alone)}. Add or remove "
            f"them.{_unread(place.images)}"
        )
    both = [key for key in images if key in masks]
    bare = [str(images[key]) for key in both if place.instances and key not in instances]
    if bare:
        raise DataError(f"{path}: {len(bare)} images have no map in {place.instances}: {_some(bare)}. Add them.")
    return [Pair(images[key], masks[key], instances.get(key)) for key in both]


def _matched(images: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Key of the image -> map; maps without an image keep a key of their own."""
    result: dict[str, Path] = {}
    for key, file in _keyed(folder).items():
        short = [key.removesuffix(tail) for tail in TAILS if key.endswith(tail)]
        owner = next((k for k in [key, *short] if k in images), key)
        if owner in result:
            raise DataError(f"{folder}: {result[owner].name} and {file.name} both fit one image. Remove one.")
        result[owner] = file
    return result


def _unread(folder: Path) -> str:
    """Sentence on the files of a folder that are no images of a kind that is read; "" where there are none."""
    others = [name for _, _, files in os.walk(folder) for name in files if not name.lower().endswith(SUFFIXES)]
    kinds = count_kinds(others)
    return f" Not read there: {kinds}; images are {', '.join(SUFFIXES)}." if kinds else ""


def _keyed(folder: Path) -> dict[str, Path]:
    """Relative name without suffix -> image file. Raises DataError where two files have one name."""
    result: dict[str, Path] = {}
    for name in _files(folder):
        file = folder / name
        other = result.setdefault(os.path.splitext(name)[0], file)  # noqa: PTH122  # of a hundred thousand names
        if other is not file:
            raise DataError(f"{folder}: {other.name} and {file.name} have one name. Rename or remove one.")
    return result


def _name(file: Path, root: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).with_suffix("").as_posix()


def _files(folder: Path, first: bool = False) -> list[str]:
    """Relative names of the image files below a folder, sorted; hidden ones left out; only some one if ``first``."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        start = Path(place).relative_to(folder).as_posix() + "/"
        names = (name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        found += [(start + name).removeprefix("./") for name in names]
        if first and found:
            break
    return sorted(found)


def _space(path: Path, labels: str | None) -> LabelSpace:
    """Label space of the argument or of the folder. Raises ConfigError where neither says one."""
    stated, listed = path / "labels.yaml", path / "classes.txt"
    if labels is not None or stated.is_file():
        return load_space(labels or str(stated))
    if listed.is_file():
        try:
            names = [line.strip() for line in listed.read_text(encoding="utf-8-sig").rstrip().splitlines()]
            if "" in names:
                raise ValueError(f"line {names.index('') + 1} is blank, which would shift the ids of those after it")
            if len(set(names)) < len(names):
                raise ValueError("two lines are the same")
            classes = {name: k for k, name in enumerate(names)}
            return parse_space({"classes": classes, "things": [name for name in names if name not in STUFF]})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{listed}: {error}. Write one class name per line, for ids 0, 1, ...") from error
    pairs = _of_split(path, "all")  # whatever the split that was asked for, so that all of them say the same
    some = pairs[:: max(1, len(pairs) // _LOOKED)]
    ids = sorted({int(number) for pair in some for number in np.unique(read_ids(pair.mask))})
    raise ConfigError(
        f"{path}: the classes of the ids are not stated; ids in the masks are, for example, "
        f"{_some([str(k) for k in ids], 40)}. "
        "Write classes.txt there (one name per line, for ids 0, 1, ...; 255 is ignored), or labels.yaml, or give "
        "--label-map."
    )


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
