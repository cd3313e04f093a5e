"""Making a matrix: data first, then every run in a process of its own; what is finished stays."""

from __future__ import annotations

import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pri3d.errors import ConfigError, Pri3DError
from pri3d.machine import cores, limit_spinning
from pri3d.preparation.run import prepare
from pri3d.reproduction.matrix import Run, Study
from pri3d.runs import RunPaths, read_json, write_json
from pri3d.training.finetune import finetune
from pri3d.training.pretrain import pretrain
from pri3d.worlds.write import rooms

RECORD = "reproduce.json"  #: what a run was asked for; another request for the same folder is refused
LOG = "log.txt"  #: what the run said


class Place(NamedTuple):
    """Where everything of a study lies."""

    root: Path
    study: Study
    folders: Mapping[str, Path] = {}  #: of data, by the name of the option that gave it

    def store(self, part: str) -> Path:
        """Prepared store, or labelled images as they came, of a part of the study. Raises ConfigError as recording."""
        stated = self.study.settings["parts"][part]
        return self._given(stated["images"]) if "images" in stated else self.root / "prepared" / part

    def recording(self, part: str) -> Path:
        """Recording that a part is prepared from. Raises ConfigError where its folder was not given."""
        stated = self.study.settings["parts"][part]
        return self._given(stated["recording"]) if "recording" in stated else self.root / "recordings" / part

    def folder(self, run: str) -> Path:
        """Folder of a run."""
        return self.root / "runs" / run

    def check(self, parts: Sequence[str]) -> None:
        """Raise ConfigError where the user has not named a folder that these parts need."""
        for part in parts:
            stated = self.study.settings["parts"][part]
            for key in ("images", "recording"):
                if key in stated:
                    self._given(stated[key])

    def _given(self, option: str) -> Path:
        if option not in self.folders:
            raise ConfigError(f"--on {self.study.on}: say where its data lie, with --{option} FOLDER.")
        return self.folders[option]


def make_parts(place: Place, parts: Sequence[str], workers: int) -> None:
    """Render and prepare what the runs need; what is there stays. Raises ConfigError and DataError as those verbs."""
    settings = place.study.settings
    for part in parts:
        stated = settings["parts"][part]
        if "images" in stated:
            continue
        if "rooms" in stated:
            rooms(place.recording(part), size=settings["prepare"]["size"], workers=workers, **stated["rooms"])
        pairs = part == "pretrain"
        options = {**settings["prepare"], **stated.get("options", {})}
        prepare([place.recording(part)], place.store(part), pairs=pairs, surface=pairs, workers=workers, **options)


def is_finished(place: Place, run: Run) -> bool:
    """Whether a run is there. Raises ConfigError where its folder holds one of other options."""
    paths = RunPaths(place.folder(run.name))
    record = paths.path / RECORD
    if not record.is_file():
        return False
    before, now = read_json(record), asked(run)
    differ = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    if differ:
        raise ConfigError(f"{paths.path}: was run with other options ({'; '.join(differ)}). Choose another --out.")
    # A fine-tuning run writes its scores every so often; its weights are there when it has ended.
    return paths.weights.is_file() and (run.verb == "pretrain" or paths.scores.is_file())


def finished(place: Place, runs: Sequence[Run]) -> set[str]:
    """Names of the runs that are there. Raises ConfigError as :func:`is_finished`."""
    return {run.name for run in runs if is_finished(place, run)}


def work(place: Place, runs: Sequence[Run], workers: int, say: Callable[[str], None]) -> dict[str, str]:
    """Make the runs, ``workers`` at a time, a pre-training before what begins with it; return why some failed."""
    todo = {run.name: run for run in runs if not is_finished(place, run)}
    count = len(todo)
    failed: dict[str, str] = {}
    processes = max(1, min(workers, count))
    threads = max(1, cores() // processes)
    started: dict[Future[str], tuple[str, ProcessPoolExecutor]] = {}
    try:
        while todo or started:
            for run in _ready(todo, failed, {name for name, _ in started.values()})[: processes - len(started)]:
                # A process each: one that is killed takes no other run along, and its memory is one run's.
                pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(threads,))
                started[pool.submit(do, place, todo.pop(run.name))] = run.name, pool
            for future in wait(started, return_when=FIRST_COMPLETED).done:
                name, pool = started.pop(future)
                pool.shutdown()
                error = future.exception()
                if error is not None:
                    failed[name] = f"{_reason(error)} (see {place.folder(name) / LOG})"
                say(f"[{count - len(todo) - len(started)}/{count}] {name}: {failed.get(name) or future.result()}")
    finally:
        for _, pool in started.values():
            pool.shutdown()
    return failed


def _reason(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its process was killed, as systems do when memory runs out: give fewer --workers"
    return str(error)


def _ready(todo: dict[str, Run], failed: dict[str, str], running: set[str]) -> list[Run]:
    """Runs that wait for none; those whose beginning failed go to ``failed``."""
    for run in list(todo.values()):
        if run.after in failed:
            failed[run.name] = f"{run.after} failed"
            del todo[run.name]
    return [run for run in todo.values() if run.after not in todo and run.after not in running]


def do(place: Place, run: Run) -> str:
    """Make one run, or continue it; say how long it took. What it says goes to its log.

    Raises Pri3DError with the reason, of whatever kind, where it fails.
    """
    began = time.perf_counter()
    folder = place.folder(run.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, asked(run))
    with (folder / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            call(place, run)
        except Pri3DError:
            traceback.print_exc()
            raise
        except Exception as error:  # one run that fails must not end the others; the log has where it failed
            traceback.print_exc()
            raise Pri3DError(f"{type(error).__name__}: {error}") from None
    return f"{(time.perf_counter() - began) / 60:.1f} min"


def call(place: Place, run: Run) -> None:
    """Call the run's verb, to continue where its folder holds a part of it. Raises as the verb does."""
    folder = place.folder(run.name)
    options: dict[str, Any] = dict(run.options) | {"run": folder, "resume": RunPaths(folder).config.exists()}
    stores = [place.store(part) for part in run.parts]
    if run.verb == "pretrain":
        if "images" in options:
            options["images"] = place.folders[options["images"]]
        pretrain(stores[0], **options)
    else:
        weights = place.folder(run.after) if run.after else options.pop("weights")
        finetune(
            options.pop("task"), stores[0], stores[1] if len(stores) > 1 else None, weights=str(weights), **options
        )


def command(place: Place, run: Run) -> str:
    """The run as a command to type, quoted for the shell."""
    options = dict(run.options)
    words = ["pri3d", run.verb]
    words += [options.pop("task")] if run.verb == "finetune" else []
    words.append(str(place.store(run.parts[0])))
    words += ["--val", str(place.store(run.parts[1]))] if len(run.parts) > 1 else []
    words += ["--weights", str(place.folder(run.after))] if run.after else []
    for key, value in options.items():
        shown = place.folders[value] if key == "images" else value
        words += [f"--{key.replace('_', '-')}", str(shown)]
    return shlex.join([*words, "--run", str(place.folder(run.name))])


def asked(run: Run) -> dict[str, Any]:
    """What ``reproduce.json`` says of a run."""
    return {"verb": run.verb, "after": run.after, "parts": list(run.parts), **run.options}


def _begin(threads: int) -> None:
    limit_spinning()
    torch.set_num_threads(threads)
