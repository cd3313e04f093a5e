"""Fine-tuning on real images from scratch weights: eight COCO images and thirteen of NYUv2 by heart, CamVid in earnest.

    OMP_NUM_THREADS=1 python -m benchmarks.real DATA [coco nyuv2 camvid]

DATA holds coco_tiny, nyuv2 and camvid_segnet. Prints the scores as they rise. The COCO images are the first of the
train split with an object of 1000 pixels; smaller ones are left out, as in the paper's protocol. The first two are
scored on the very images they learn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from PIL import Image

import pri3d
from pri3d.labelled import open_labelled
from pri3d.labelled.convert import to_coco
from pri3d.labelled.spaces import load_space
from pri3d.runs import read_json
from pri3d.tasks.instance import InstanceOptions
from pri3d.tasks.semantic import SemanticOptions

COCO_IMAGES, LEAST = 8, 1000  # pixels of an object
LW_CORNER = (7, 6)  # column and row where the inner part of an NYUv2 image begins


def coco(data: Path, work: Path) -> dict[str, Any]:
    """Mask R-CNN on eight images."""
    images = open_labelled(data / "coco_tiny", "train")
    rows = (k for k in range(len(images.names)) if to_coco(images, [k], LEAST)["annotations"])
    content = to_coco(images, list(islice(rows, COCO_IMAGES)), LEAST)
    for entry in content["images"]:
        entry["file_name"] = str(images.color_file(entry["id"] - 1))
    eight = work / "eight.json"
    eight.write_text(json.dumps(content))
    return {
        "task": "instance",
        "data": eight,
        "val": eight,
        "steps": 400,
        "validation": {"every": 100},
        "lr": 2e-3,
        "options": [InstanceOptions(rois=64, short_side=240, min_area=LEAST)],
        "augment": "none",
        "mirror": False,
    }


def nyuv2(data: Path, work: Path) -> dict[str, Any]:
    """U-Net on thirteen pairs."""
    folder = work / "nyuv2"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for mask in sorted((data / "nyuv2" / "labels13_test").glob("*.png")):
        number = mask.stem.rpartition("_")[2]
        image, target = data / "nyuv2" / "val" / "color" / f"{number}.png", folder / "masks" / f"{number}.png"
        if image.exists():
            target.symlink_to(mask)
        else:  # of some there is the inner part alone
            image = data / "nyuv2" / "lw40" / f"00{number}.png"
            left, top = LW_CORNER
            width, height = Image.open(image).size
            Image.open(mask).crop((left, top, left + width, top + height)).save(target)
        (folder / "images" / target.name).symlink_to(image)
    classes = "".join(f"  {name}: {number}\n" for number, name in enumerate(load_space("nyu13").names, 1))
    (folder / "labels.yaml").write_text(f"classes:\n{classes}ignored: [0]\n")
    return {
        "task": "semantic",
        "data": folder,
        "val": folder,
        "steps": 400,
        "validation": {"every": 100},
        "augment": "none",
        "mirror": False,
        "lr": 2e-3,
    }


def camvid(data: Path, _: Path) -> dict[str, Any]:
    """U-Net on 123 images, scored on 34 others."""
    folder = data / "camvid_segnet"
    return {
        "task": "semantic",
        "data": folder,
        "label_map": "camvid",
        "options": [SemanticOptions(size="240x180")],
        "steps": 800,
        "validation": {"every": 100},
        "augment": "light",
        "mirror": True,
    }


PARTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {"coco": coco, "nyuv2": nyuv2, "camvid": camvid}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--steps", type=int, default=None, help="instead of each part's own")
    options = parser.parse_args()
    print(describe_machine())
    for part in options.parts:
        with tempfile.TemporaryDirectory() as work:
            given = PARTS[part](options.data, Path(work))
            if options.steps:
                given |= {"steps": options.steps, "validation": {"every": options.steps}}
            began, wall = time.process_time(), time.perf_counter()
            run = pri3d.finetune(**given, preset="quick", run=Path(work) / "run", workers=0)
            minutes = (time.process_time() - began) / 60
            print(f"{part}: {minutes:.1f} CPU min, {(time.perf_counter() - wall) / 60:.1f} min, scoring included")
            for entry in read_json(run / "scores.json")["history"]:
                numbers = {
                    k: v
                    for k, v in entry.items()
                    if isinstance(v, float) and not k.endswith(("small", "medium", "large"))
                }
                print(f"  step {entry['step']:5}  " + "  ".join(f"{k} {v:.3f}" for k, v in numbers.items()), flush=True)


if __name__ == "__main__":
    main()
