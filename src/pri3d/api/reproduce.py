"""``pri3d reproduce``: its options."""

from __future__ import annotations

from typing import Literal

from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.results import Output
from pri3d.api.training import Precision


class ReproduceOptions(Options):
    """Options of :func:`reproduce`."""

    experiment: str = option("table1 to table7, figure3, figure4 or figure5", kw_only=False)
    on: Literal["rooms", "scannet", "nyuv2"] = option(
        "rooms (rendered; no data needed), scannet, or nyuv2 (pre-training on ScanNet, fine-tuning on NYUv2)",
        default="rooms",
    )
    scale: Literal["small", "imagenet", "paper"] = option(
        "small (for a laptop: small network, images and numbers of steps, random weights at first), imagenet (the same "
        "from the ImageNet weights of EfficientNet-Lite0, with a row of the preset adapt; rooms alone) or paper (the "
        "paper's settings)",
        default="small",
    )
    out: AnyPath = option("folder for data, runs and results; several experiments may share it", default="reproduction")
    seeds: str | None = option(
        "random seeds of pre-training and fine-tuning, joined by commas, one repetition each; default: 0,1,2, or "
        "0 with --scale paper on real data",
        default=None,
    )
    fractions: str | None = option(
        "fractions of the labels, joined by commas, for example 0.2,1; default: the paper's", default=None
    )
    encoder: Literal["resnet18", "resnet50"] | None = option(
        "resnet18 or resnet50; default: resnet18 with scale small, tf_efficientnet_lite0 with imagenet, resnet50 with "
        "paper",
        default=None,
    )
    scannet: AnyPath | None = option("folder of ScanNet's raw scans (.sens), for pre-training", default=None)
    scannet_frames: AnyPath | None = option("folder of scannet_frames_25k, for fine-tuning", default=None)
    nyuv2: AnyPath | None = option("NYUv2's labelled .mat file, or a folder of its images", default=None)
    imagenet: AnyPath | None = option(
        "folder of ImageNet's images, for the two MoCo rows that use them; without it these rows are left out",
        default=None,
    )
    max_failed: float = option(
        "fraction of the scans that may fail in preparation; the result lists them",
        default=0.05,
        least=0,
        below=1,
    )
    jobs: int = option("concurrent runs; cores and GPUs are divided among them", default=1, least=1)
    devices: int = option(
        "processes of each run on each machine, one per GPU, as far as its batch allows", default=1, least=1
    )
    nodes: int = option("machines of each run, under Slurm", default=1, least=1)
    workers: int | None = option(
        "processes that load data, for each training process; default: 1", default=None, least=0
    )
    micro_batch: int | None = option(
        "pairs per forward pass of pre-training, if the preset's 8 need too much GPU memory",
        default=None,
        least=1,
    )
    precision: Precision | None = option(
        "floating-point precision of the networks; default: the preset's", default=None
    )
    checkpoint_minutes: float | None = option("minutes between checkpoints; default: 10", default=None, above=0)
    only: str | None = option(
        "run only a part: data, table, or one group of runs by its number in --dry-run", default=None
    )
    slurm: AnyPath | None = option(
        "write a script to this file that submits the work to Slurm as an array job, and stop", default=None
    )
    cpus: int | None = option("cores per run in the Slurm script", default=None, least=1)
    memory: str | None = option("memory per run in the Slurm script, for example 64G", default=None)
    machine: str | None = option(
        "GPUs for the estimate of --dry-run, for example 8xa100; default: measured on this machine",
        default=None,
    )
    dry_run: bool = option("print the runs with an estimate of their cost, and stop", default=False)


@verb(ReproduceOptions, "pri3d reproduce table1 --fractions 0.2,1 --jobs 2")
def reproduce(options: ReproduceOptions) -> Output:
    """Reproduce a table or figure of the paper: run (or continue) every training it needs, and compare.

    Data are rendered or prepared first; every run has a folder of its own, which other tables use too, so a second call
    makes what is missing and no more. A run that fails is reported and the others go on.

    Returns the Markdown file of the result (of an image, the PNG); where --only, --slurm or --dry-run leave it
    unwritten, OUT or the script. Raises ConfigError for an unknown name, or a folder of data that was not given, before
    any work; DataError at the end, where runs have failed: the table is there without them.
    """
    return Output(implementation("pri3d.reproduction.reproduce:reproduce")(options))
