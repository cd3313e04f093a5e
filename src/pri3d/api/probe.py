"""``pri3d probe``: its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pri3d.api.labelled import LabelMapField
from pri3d.api.options import AnyPath, implementation, option, verb
from pri3d.api.results import Record


class ProbeOptions(LabelMapField):
    """Options of :func:`probe`."""

    data: AnyPath = option("prepared dataset; labels are needed only for segmentation", kw_only=False)
    weights: Sequence[str | AnyPath] = option(
        "runs, weights files (also of other programs), names on the hub, or scratch, imagenet, timm:NAME; several "
        "are compared. For a run folder the network before training is shown, too"
    )
    tasks: str | None = option(
        "matching, correspondence, depth, normals, segmentation, retention, joined by commas; default: all possible",
        default=None,
    )
    portion: Literal["heldout", "all"] = option(
        "heldout: the held-out part; all: all pairs, of a dataset that none of the networks has seen", default="heldout"
    )
    holdout: float = option("held-out fraction, as given to pretrain; not needed with portion all", default=0.1)
    features: Literal["unet", "encoder"] = option(
        "unet: the U-Net's map, or the encoder's without a U-Net; encoder: always the encoder's maps", default="unet"
    )
    encoder: str = option("encoder of scratch, imagenet and files that do not state theirs", default="resnet18")
    reference: str | AnyPath | None = option(
        "weights that retention compares with; default: the initial network of a run", default=None
    )
    guard: Sequence[AnyPath] = option(
        "labelled images of another kind, to measure forgetting: their segmentation is predicted from the "
        "encoder's maps",
        default_factory=list,
    )
    guard_label_map: Sequence[str] = option(
        "label map of --guard, one for each or one for all; default: that of the format", default_factory=list
    )
    guard_dataset: Sequence[str] = option(
        "format of --guard, one for each or one for all; auto-detected if not given", default_factory=list
    )
    size: str = option("size of the images, WIDTHxHEIGHT in pixels", default="160x120")
    pixels: float = option(
        "threshold of matching in pixels of a 320-pixel-wide image: a closer match counts as found", default=10.0
    )
    distance: float | None = option(
        "threshold of matching in metres: closer measured points are the same; default: as prepared",
        default=None,
    )
    max_pairs: int = option(
        "maximum number of pairs, sampled with equal numbers per angle bin as far as possible",
        default=400,
        least=1,
    )
    max_frames: int = option(
        "maximum number of training and of test frames of linear probes, evenly spaced",
        default=200,
        least=1,
    )
    seed: int = option("random seed for pairs, points, pixels, resamples and random weights", default=0, least=0)
    out: AnyPath = option(".json file to write; .csv, .md and .png are written beside it", default="probe.json")


@verb(ProbeOptions, "pri3d probe out/kitchen --weights runs/kitchen")
def probe(options: ProbeOptions) -> Record:
    """Probe frozen features: compare networks by matching and linear probes on frames that they were not trained on.

    Prints one table per task and writes OUT, OUT with .csv and .md, and an image with .png. Tasks: matching (points
    seen in both views, found again by their features), correspondence (recall of the best matches, the protocol of
    probe3d), depth, normals and segmentation (linear probes, fitted in closed form to the rest of the dataset),
    retention (features and weights against those the run began with). docs/probe.md defines every number.

    Returns name of the weights -> scores. Raises ConfigError where an option is wrong, a network has seen what it would
    be scored on, or encoders do not fit; DataError where the dataset cannot serve a task that was asked for, or a file
    is missing; WeightsError where weights cannot be loaded, or give features that are not finite.
    """
    return implementation("pri3d.probing.probe:probe")(options)
