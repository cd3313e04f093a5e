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
    out: AnyPath = option("folder for data, runs and results; several experiments may use one", default="reproduction")
    seeds: str | None = option(
        "random seeds of pre-training and fine-tuning, joined by commas; each is a whole repetition", default=None
    )
    fractions: str | None = option(
        "fractions of the labels, joined by commas, as in 0.2,1; default is the paper's", default=None
    )
    encoder: Literal["resnet18", "resnet50"] | None = option(
        "instead of the study's: resnet18 in small, tf_efficientnet_lite0 in imagenet, resnet50 in paper", default=None
    )
    scannet: AnyPath | None = option("folder of ScanNet's raw scans (.sens), for pre-training", default=None)
    scannet_frames: AnyPath | None = option("folder of scannet_frames_25k, for fine-tuning", default=None)
    nyuv2: AnyPath | None = option("NYUv2's labelled .mat file, or a folder of its images", default=None)
    imagenet: AnyPath | None = option(
        "folder of ImageNet's images, for the two MoCo rows that mix them in", default=None
    )
    max_failed: float = option(
        "share of the scans that may fail to be prepared; the others go on without them, and the page names them",
        default=0.05,
        least=0,
        below=1,
    )
    jobs: int = option("runs at a time; of several GPUs each has its own", default=1, least=1)
    devices: int = option("processes of each run on each machine, one a GPU, as its batch allows", default=1, least=1)
    nodes: int = option("machines of each run, under Slurm", default=1, least=1)
    workers: int | None = option("processes that load data, for each training process", default=None, least=0)
    micro_batch: int | None = option(
        "pairs a forward pass of pre-training, where a GPU has too little memory for the preset's",
        default=None,
        least=1,
    )
    precision: Precision | None = option("arithmetic of the networks", default=None)
    checkpoint_minutes: float | None = option("minutes between checkpoints", default=None, above=0)
    only: str | None = option(
        "part of the work: data, one group of runs by its number in --dry-run, or table", default=None
    )
    slurm: AnyPath | None = option(
        "write a script there that submits the work to Slurm as an array job, and do nothing", default=None
    )
    cpus: int | None = option("cores that the Slurm script asks for, for each run", default=None, least=1)
    memory: str | None = option("memory that the Slurm script asks for, for each run, as in 64G", default=None)
    machine: str | None = option(
        "GPUs for which --dry-run reckons hours, memory and disk, as in 8xa100; without it this machine is tried",
        default=None,
    )
    dry_run: bool = option("print the runs and what they will take, and do nothing", default=False)


@verb(ReproduceOptions, "pri3d reproduce table1 --fractions 0.2,1 --jobs 2")
def reproduce(options: ReproduceOptions) -> Output:
    """Reproduce a table or figure of the paper: run, or continue, every training it needs, and compare.

    Data are rendered or prepared first; every run has a folder of its own, which other tables use too, so a second call
    makes what is missing and no more. A run that fails is reported and the others go on.

    Returns the Markdown file of the result (of an image, the PNG); where --only, --slurm or --dry-run leave it
    unwritten, OUT or the script. Raises ConfigError for an unknown name, or a folder of data that was not given, before
    any work; DataError at the end, where runs have failed: the table is there without them.
    """
    return Output(implementation("pri3d.reproduction.reproduce:reproduce")(options))
