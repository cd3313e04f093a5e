"""``pri3d probe``: its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pri3d.api.labelled import LabelMapField
from pri3d.api.options import AnyPath, implementation, option, verb
from pri3d.api.results import Record


class ProbeOptions(LabelMapField):
    """Options of :func:`probe`."""

    data: AnyPath = option("prepared dataset; it needs no labels but for segmentation", kw_only=False)
    weights: Sequence[str | AnyPath] = option(
        "runs, weights files (of other programs too), names on the hub, or scratch, imagenet, timm:NAME; of a run "
        "folder the state before training is shown too"
    )
    tasks: str | None = option(
        "which tasks, joined by commas; all that are possible where it is not given", default=None
    )
    portion: Literal["heldout", "all"] = option(
        "heldout, or all pairs of a dataset that none of the networks has seen", default="heldout"
    )
    holdout: float = option("fraction of the dataset that was held out, as given to pretrain", default=0.1)
    features: Literal["unet", "encoder"] = option(
        "unet (the encoder's where there is no U-Net) or encoder (of every network)", default="unet"
    )
    encoder: str = option("network of scratch, imagenet and files that do not name theirs", default="resnet18")
    reference: str | AnyPath | None = option(
        "weights that retention compares with; what a run began with where it is not given", default=None
    )
    guard: Sequence[AnyPath] = option(
        "labelled images of another kind, whose classes are read off the encoders too: what is forgotten",
        default_factory=list,
    )
    guard_label_map: Sequence[str] = option(
        "label map of --guard, one for each or one for all; each format's own if not given", default_factory=list
    )
    guard_dataset: Sequence[str] = option(
        "format of --guard, one for each or one for all; auto-detected if not given", default_factory=list
    )
    size: str = option("size of the images, WIDTHxHEIGHT in pixels", default="160x120")
    pixels: float = option(
        "of matching: a point counts as found within this distance, in pixels of a 320-pixel-wide image", default=10.0
    )
    distance: float | None = option(
        "of matching: metres within which two measured points are the same; as prepared where it is not given",
        default=None,
    )
    max_pairs: int = option(
        "at most so many pairs, drawn with the seed, an equal share of each bin of the angle as far as it has them",
        default=400,
        least=1,
    )
    max_frames: int = option(
        "at most so many frames to fit linear probes to, and so many to score them on, evenly spaced",
        default=200,
        least=1,
    )
    seed: int = option(
        "random seed for the choice of pairs, points and pixels, and for random weights", default=0, least=0
    )
    out: AnyPath = option(".json file to write", default="probe.json")


@verb(ProbeOptions, "pri3d probe out/kitchen --weights runs/kitchen")
def probe(options: ProbeOptions) -> Record:
    """Probe frozen features: compare networks by what they know, on frames that they were not trained on.

    Prints one table a task and writes OUT, OUT with .csv and .md, and an image with .png. Tasks: matching (points
    seen in both views, found again by their features), correspondence (recall of the best matches, the protocol of
    probe3d), depth, normals and segmentation (linear probes, fitted in closed form to the rest of the dataset),
    retention (features and weights against those the run began with). docs/probe.md defines every number.

    Returns name of the weights -> scores. Raises ConfigError where an option is wrong, a network has seen what it would
    be scored on, or encoders do not fit; DataError where the dataset cannot serve a task that was asked for, or a file
    is missing; WeightsError where weights cannot be loaded, or give features that are not finite.
    """
    return implementation("pri3d.probing.probe:probe")(options)
