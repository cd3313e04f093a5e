"""``pri3d coco``: its options."""

from __future__ import annotations

from pri3d.api.labelled import LabelledFields
from pri3d.api.options import AnyPath, implementation, option, verb
from pri3d.api.results import Output


class CocoOptions(LabelledFields):
    """Options of :func:`coco`."""

    data: AnyPath = option("labelled images", kw_only=False)
    out: AnyPath = option("json file to write; an existing one is replaced", kw_only=False)
    min_area: int = option(
        "objects with fewer pixels are left out; 1000 is the paper's protocol for ScanNet and NYUv2",
        default=1000,
        least=0,
    )
    fraction: float = option(
        "nested fraction of the images, the same subsets as in training", default=1.0, above=0, most=1
    )


@verb(CocoOptions, "pri3d coco scannet_frames_25k scannet_val.json --split val")
def coco(options: CocoOptions) -> Output:
    """Write the objects of a labelled dataset as COCO json.

    Images keep their files: ``file_name`` is relative to the json's folder where they lie in it, absolute otherwise.
    Those that lie in no file of their own (``.mat``, a prepared dataset) are written as PNG into a folder beside the
    json, named as it. Images without objects are kept. How many objects were too small is printed.

    Returns the json file. Raises ConfigError for another file name than .json, DataError where the set has no objects,
    no object is large enough, or an image is damaged.
    """
    return Output(implementation("pri3d.labelled.convert:coco")(options))
