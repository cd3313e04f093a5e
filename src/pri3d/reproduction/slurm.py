"""The work as jobs of a Slurm cluster: data first, then every group of runs, then the table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from pri3d.errors import ConfigError
from pri3d.files.atomic import write_atomic
from pri3d.reproduction.matrix import groups
from pri3d.reproduction.plan import Plan

_SCRIPT = """#!/bin/bash
# {title}: {runs} runs in {groups} groups, each a pre-training with the fine-tunings that begin with it, or a
# fine-tuning alone. Run this file on the login node, in a folder that all nodes see. Options for every sbatch
# (partition, account, time, memory) go into SBATCH_OPTIONS. Run it again after a failure: finished runs stay.
set -eo pipefail
mkdir -p {logs}
options=(${{SBATCH_OPTIONS}})
submit=(sbatch --parsable --output={logs}/%x-%j.txt "${{options[@]}}")
data=$("${{submit[@]}}" --job-name=pri3d-data --wrap={data})
runs=$("${{submit[@]}}" --job-name=pri3d-runs --gpus=1 --array=0-{last} \\
    --dependency="afterok:${{data%%;*}}" --wrap={group})
table=$("${{submit[@]}}" --job-name=pri3d-table --dependency="afterany:${{runs%%;*}}" --wrap={table})
echo "data ${{data}}, runs ${{runs}}, table ${{table}}"
"""


def write_script(path: Path, plan: Plan, options: Sequence[str]) -> Path:
    """Write a bash script that submits three jobs: data, an array with one task a group, the table.

    ``options``: the words after ``pri3d reproduce`` that say what the work is. Raises ConfigError where it has no runs.
    """
    parts = groups(plan.matrix)
    if not parts:
        raise ConfigError(f"--slurm: {plan.experiment.name} has no runs; make it without.")
    words = ["pri3d", "reproduce", *options]

    def quoted(only: str) -> str:
        # The number of the task is for the node's shell to put in.
        return shlex.quote(f"{shlex.join(words)} --only {only}")

    text = _SCRIPT.format(
        title=plan.experiment.title,
        runs=len(plan.matrix.runs),
        groups=len(parts),
        last=len(parts) - 1,
        logs=shlex.quote(str(plan.place.root / "slurm")),
        data=quoted("data"),
        group=quoted("$SLURM_ARRAY_TASK_ID"),
        table=quoted("table"),
    )
    return write_atomic(path, text.encode())
