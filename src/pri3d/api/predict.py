"""``pri3d predict``: its options."""

from __future__ import annotations

from typing import Literal

from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.results import Output


class PredictOptions(Options):
    """Options of :func:`predict`."""

    run: AnyPath = option("folder of a fine-tuning run, or one of its weights files", kw_only=False)
    source: AnyPath = option(
        "image, folder of images, or video (with the extra `video`; animated GIF, WebP and PNG without it)",
        kw_only=False,
    )
    out: AnyPath = option("folder to write to", default="predictions", kw_only=False)
    which: Literal["last", "best"] = option(
        "network of the best validation or of the last step; last if there is no best", default="best"
    )
    threshold: float | None = option(
        "instance segmentation: minimum score of an object; default 0.5",
        default=None,
        least=0,
        most=1,
    )
    frame_step: int = option("use every N-th image or frame", default=1, least=1)
    overwrite: bool = option("overwrite existing predictions", default=False)


@verb(PredictOptions, "pri3d predict runs/kitchen-seg photos --out predictions")
def predict(options: PredictOptions) -> Output:
    """Run a fine-tuned network on an image, a folder of images (with its subfolders) or a video.

    Writes for each image NAME_overlay.jpg to look at and NAME.json: of semantic segmentation the fraction of each
    class, and NAME.png with the class ids as a palette image; of instance segmentation the objects in COCO's form. NAME
    is the image's path below the folder; of a video its name and the frame's number. classes.json says what ids and
    colours mean; of a video an overlay of all frames is written, too. Images that are there already are skipped, so a
    stopped command continues. An image that cannot be read is listed while the others go on.

    Returns the folder of the predictions. Raises ConfigError where an option is out of range or not of the network's
    task, ``out`` was made with other weights or another threshold, or another process is writing there; DataError where
    the source cannot be read, or some image could not be (the others are there); WeightsError where the run has no such
    network.
    """
    return Output(implementation("pri3d.evaluation.predict:predict")(options))
