"""``pri3d reproduce``: a table or figure of the paper from your own runs, beside the paper's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import Console

from pri3d.errors import ConfigError, DataError
from pri3d.machine import cores, limit_spinning
from pri3d.reproduction.matrix import Matrix, PlannedRun, build_matrix, find_experiment, find_study, groups
from pri3d.reproduction.result import write_result
from pri3d.reproduction.work import ExperimentPlan, StudyFolder, make_parts, make_runs, show_plan, write_slurm_script

On = Literal["rooms", "scannet", "nyuv2"]
T = TypeVar("T")
_HOW = ("jobs", "only", "slurm", "dry_run")  # options that do not say what the work is


def reproduce(
    experiment: str,
    on: On = "rooms",
    scale: Literal["small", "paper"] = "small",
    out: Path = Path("reproduction"),
    seeds: str | None = None,
    fractions: str | None = None,
    encoder: Literal["resnet18", "resnet50"] | None = None,
    scannet: Path | None = None,
    scannet_frames: Path | None = None,
    nyuv2: Path | None = None,
    imagenet: Path | None = None,
    jobs: int = 1,
    only: str | None = None,
    slurm: Path | None = None,
    dry_run: bool = False,
) -> Path:
    """Run, or continue, every training that a table or figure of the paper needs, and write it beside the paper's.

    Data are rendered or prepared first; every run has a folder of its own, which other tables share, so a second call
    makes what is missing and no more. A run that fails is reported and the others go on.

    Args:
        experiment: table1 to table7, figure3, figure4 or figure5.
        on: rooms (rendered; no data needed), scannet, or nyuv2 (pre-training on ScanNet, fine-tuning on NYUv2).
        scale: small (for a laptop: small network, images and numbers of steps) or paper (the paper's settings).
        out: folder for data, runs and results; several experiments may share it.
        seeds: of pre-training and fine-tuning, joined by commas; each is a whole repetition.
        fractions: fractions of the labels, joined by commas, as in 0.2,1; default is the paper's.
        encoder: instead of the study's: resnet18 in small, resnet50 in paper.
        scannet: folder of ScanNet's raw scans (.sens), for pre-training.
        scannet_frames: folder of scannet_frames_25k, for fine-tuning.
        nyuv2: NYUv2's labelled .mat file, or a folder of its images.
        imagenet: folder of ImageNet's images, for the two MoCo rows that mix them in.
        jobs: runs at a time.
        only: part of the work: data, one group of runs by its number in --dry-run, or table.
        slurm: write a script there that submits the work to Slurm as an array job, and do nothing.
        dry_run: print the runs and what they will take, and do nothing.

    Returns:
        The Markdown file of the result (of a picture, the PNG); where --only, --slurm or --dry-run leave it unwritten,
        OUT or the script.

    Raises:
        ConfigError: an unknown name, or a folder of data that was not given; before any work.
        DataError: at the end, where runs have failed; the table is there without them.
    """
    given = dict(locals())
    limit_spinning()
    folders = {"scannet": scannet, "scannet_frames": scannet_frames, "nyuv2": nyuv2, "imagenet": imagenet}
    place = StudyFolder(out, find_study(on, scale), {name: path for name, path in folders.items() if path is not None})
    found = find_experiment(experiment)
    chosen_seeds = _split_numbers("seeds", seeds, int) or place.study.settings["seeds"]
    shares = _split_numbers("fractions", fractions, float) or found.fractions
    if jobs < 1 or not all(0 < share <= 1 for share in shares):
        raise ConfigError(f"--jobs {jobs}, --fractions {fractions}: give at least 1, and fractions between 0 and 1.")
    matrix = build_matrix(found, place.study, chosen_seeds, shares, place.folders, encoder)
    place.check(matrix.parts)
    plan = ExperimentPlan(place, found, matrix)
    if dry_run:
        show_plan(plan, jobs)
        return out
    if slurm is not None:
        return write_slurm_script(slurm, plan, _command_words(given))
    return _run_plan(plan, jobs, only)


def _run_plan(plan: ExperimentPlan, jobs: int, only: str | None) -> Path:
    """Make what ``only`` names, or everything. Raises DataError where runs have failed."""
    runs = _choose_runs(plan.matrix, only)
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    if only in (None, "data"):
        make_parts(plan.place, plan.matrix.parts, cores())
    failed = make_runs(plan.place, runs, jobs, say)
    result = write_result(plan) if only in (None, "table") else plan.place.root
    if failed:
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise DataError(f"{len(failed)} of {len(runs)} runs have failed: {why}. The same command tries them again.")
    return result


def _choose_runs(matrix: Matrix, only: str | None) -> list[PlannedRun]:
    """Runs to make. Raises ConfigError where ``only`` is no part of the work."""
    if only in ("data", "table"):
        return []
    if only is None:
        return list(matrix.runs)
    parts = groups(matrix)
    if not only.isdecimal() or int(only) >= len(parts):
        raise ConfigError(f"--only {only}: give data, table, or a group from 0 to {len(parts) - 1}.")
    return parts[int(only)]


def _command_words(given: Mapping[str, Any]) -> list[str]:
    """The call as words of the command line, without what says how it is to be done."""
    options = [
        (name, value) for name, value in given.items() if name not in ("experiment", *_HOW) and value is not None
    ]
    return [
        str(given["experiment"]),
        *(word for name, value in options for word in ("--" + name.replace("_", "-"), str(value))),
    ]


def _split_numbers(flag: str, text: str | None, kind: Callable[[str], T]) -> list[T]:
    """Values joined by commas. Raises ConfigError for one that is no number."""
    try:
        values = [kind(part) for part in (text or "").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--{flag} {text}: give numbers joined by commas.") from error
    if len(set(values)) < len(values):
        raise ConfigError(f"--{flag} {text}: names a value twice.")
    return values
