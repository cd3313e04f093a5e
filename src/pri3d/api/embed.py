"""``pri3d embed``: its options."""

from __future__ import annotations

from typing import Literal

from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.results import Output


class EmbedOptions(Options):
    """Options of :func:`embed`."""

    weights: str | AnyPath = option("run folder, weights file, export or name on the hub", kw_only=False)
    source: AnyPath = option(
        "image, folder of images, or video (with the extra `video`; animated GIF, WebP and PNG without it)",
        kw_only=False,
    )
    out: AnyPath = option(
        "file to write. .npz holds names, height, width (of the maps, in cells), stride, model (hash of the weights), "
        "record (JSON, how it was made), and features (N, C) or a map each as maps/NAME. .npy holds (N, C), or "
        "(N, h, w, C) of maps of one size; names and the rest lie in OUT.json. .parquet has the columns name, "
        "features, height, width, stride",
        default="embeddings.npz",
        kw_only=False,
    )
    pooled: bool = option("one vector (C,) an image; the default", default=False)
    dense: bool = option("one map (h, w, C) an image", default=False)
    level: int | Literal["features"] = option(
        "which of the encoder's maps, 0 the finest, -1 the coarsest; or features, the output of a run's U-Net",
        default=-1,
    )
    size: str | None = option(
        "size to which images are resized, WIDTHxHEIGHT in pixels; each image's own where it is not given", default=None
    )
    normalise: bool = option("L2-normalise every vector, of maps every cell's", default=False)
    half: bool = option("write float16", default=False)
    batch: int = option(
        "images of one size that are computed together, fewer where they have more than 8 megapixels",
        default=16,
        least=1,
    )
    frame_step: int = option("take every so many images or frames", default=1, least=1)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto, fp32 or bf16; auto is bf16 where the machine is faster in it", default="auto"
    )
    workers: int | None = option(
        "threads that load images; one a core and at most 8 where it is not given", default=None, least=1
    )
    overwrite: bool = option("start over, and replace the file", default=False)


@verb(EmbedOptions, "pri3d embed runs/kitchen photos --out photos.npz")
def embed(options: EmbedOptions) -> Output:
    """Embed an image, a folder of images (with its subfolders) or a video with any backbone.

    Pooled, an image's feature is the mean over the cells of one of the encoder's maps, of a ViT over its patches;
    dense, it is that map (h, w, C), whose cell (i, j) lies over the pixels from (i, j) times the stride on. Rows are in
    the order of the names: the image's path below the folder without suffix; of a video its name and the frame's
    number. Values are float32 whatever the network computes in.

    A stopped command continues: what is done lies in OUT.parts until the file is written, which needs the space twice,
    and the file is the same as that of a run that was not stopped. An image that cannot be read is listed and left out
    while the others go on.

    Returns the file. Raises ConfigError where an option is out of range, or ``out`` or its parts were made otherwise;
    DataError where the source cannot be read, or some image could not be (the others are there); WeightsError where
    there is no such network, or its features are not finite.
    """
    return Output(implementation("pri3d.evaluation.embed:embed")(options))
