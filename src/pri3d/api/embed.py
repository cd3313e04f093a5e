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
        "file to write. .npz holds names, height, width (of the maps, in cells), stride, model (hash of the "
        "weights), record (JSON, settings), and features (N, C) or one map per image as maps/NAME. .npy holds (N, "
        "C), or (N, h, w, C) for maps of one size; names and the rest are in OUT.json. .parquet has the columns "
        "name, features, height, width, stride",
        default="embeddings.npz",
        kw_only=False,
    )
    pooled: bool = option(
        "one vector (C,) per image, the mean over the map's cells (patches of a ViT); the default", default=False
    )
    dense: bool = option(
        "one map (h, w, C) per image; cell (i, j) starts at pixel (i, j) times the stride", default=False
    )
    level: int | Literal["features"] = option(
        "index of the encoder's map, 0 is the finest, -1 the coarsest; or features, the output of a run's U-Net",
        default=-1,
    )
    size: str | None = option(
        "size to which images are resized, WIDTHxHEIGHT in pixels; default: each image's own", default=None
    )
    normalise: bool = option("L2-normalise every vector (of maps every cell)", default=False)
    half: bool = option("write float16 instead of float32", default=False)
    batch: int = option(
        "batch size of images with the same size; smaller for images above 8 megapixels",
        default=16,
        least=1,
    )
    frame_step: int = option("use every N-th image or frame", default=1, least=1)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto, fp32 or bf16; auto is bf16 if the machine is faster in it", default="auto"
    )
    workers: int | None = option("threads that load images; default: one per core, at most 8", default=None, least=1)
    overwrite: bool = option("start over and replace the file", default=False)


@verb(EmbedOptions, "pri3d embed runs/kitchen photos --out photos.npz")
def embed(options: EmbedOptions) -> Output:
    """Embed an image, a folder of images (with its subfolders) or a video with any backbone.

    Pooled, an image's feature is the mean over the cells of one of the encoder's maps, of a ViT over its patches;
    dense, it is that map (h, w, C), whose cell (i, j) starts at pixel (i, j) times the stride. Rows are in
    the order of the names: the image's path below the folder without suffix; of a video its name and the frame's
    number. Values are float32 whatever the network computes in.

    A stopped command continues: finished parts are in OUT.parts until the file is written, which needs the space twice,
    and the file is the same as that of a run that was not stopped. An image that cannot be read is listed and left out
    while the others go on.

    Returns the file. Raises ConfigError where an option is out of range, or ``out`` or its parts were made otherwise;
    DataError where the source cannot be read, or some image could not be (the others are there); WeightsError where
    there is no such network, or its features are not finite.
    """
    return Output(implementation("pri3d.evaluation.embed:embed")(options))
