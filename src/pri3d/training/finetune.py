"""``pri3d finetune``: a backbone + labelled images -> a network for a task and its scores; one run or a comparison."""

from __future__ import annotations

from pathlib import Path

from pri3d.api.finetune import FinetuneOptions
from pri3d.errors import ConfigError
from pri3d.runs import Run
from pri3d.training.comparison import Comparison, compare, default_name, expand, folders_of
from pri3d.training.finetune_run import FinetuneRun, Sets, check_all
from pri3d.training.launch import Options


def finetune(call: FinetuneOptions) -> Run | Comparison:
    """Fine-tune on labelled images; see :func:`pri3d.finetune`."""
    options, sets = Options.of(call), Sets()
    given = call.given()
    jobs = expand(str(call.weights), call.network, given.get("fraction"), call.seed)
    runs = [FinetuneRun(call, job, options, sets) for job in jobs]
    data = Path(call.data)
    if len(jobs) == 1:
        return Run(runs[0].train(Path(call.run or Path("runs") / default_name(call.task, data, jobs[0]))))
    if options.launch.world > 1:
        raise ConfigError(f"{len(jobs)} runs in one call: with several processes every run needs a call of its own.")
    root = Path(call.run or Path("runs") / f"{call.task}-{data.stem}")
    folders = [root / name for name in folders_of(jobs).values()]
    check_all(runs, folders)  # before the first one starts
    finished = {each.job: each.train(folder) for each, folder in zip(runs, folders, strict=True)}
    return compare(root, finished, runs[0].kind.shown)
