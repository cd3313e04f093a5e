"""`pri3d check`: a verdict on a recording before hours are spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from pri3d.checking.judge import Judgement, judge
from pri3d.checking.sheet import write_sheet
from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import write_atomic
from pri3d.recordings import Scene, open_recording
from pri3d.recordings._shared.text import clean_id
from pri3d.runs import write_json

_COLORS = {"ok": "green", "warning": "yellow", "fault": "red", "unknown": "dim"}


def check(
    recording: Path,
    reader: str | None = None,
    cameras: Path | None = None,
    split: Literal["train", "val", "test", "all"] = "train",
    correct: str = "",
    scene: str | None = None,
    frames: int = 40,
    pairs: int = 60,
    out: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Tell whether a recording's poses, axes, depth, cameras and times are right, and what to do where they are not.

    Some frames are carried into others: by depth and pose a pixel of one must land where the other measured the same
    depth and shows the same colour. Where that fails, the usual mistakes are tried, and the one under which the frames
    agree is named with the option that mends it. ``out`` gets verdict.json, sheet.png with pairs to look at, and
    cameras.yaml where the advice is to state other cameras. Returns what is in verdict.json.

    Args:
        recording: folder or file of the recording; nothing is written there.
        reader: its format; found out from the layout where it is not given.
        cameras: YAML file that states the colour and the depth camera, as for `pri3d prepare`.
        split: which scenes of a data set that has an official split.
        correct: mistakes that are mended before it is judged, as for `pri3d prepare`.
        scene: which scene is judged; the first that can be opened where it is not given.
        frames: how many frames are looked at; some of their neighbours in time are read beside them.
        pairs: how many pairs of them.
        out: folder for the verdict and its pictures; ./check-NAME where it is not given.
        seed: of the choice of pairs and pixels.

    Raises:
        ConfigError: a flag is out of range, or the recording has no such scene.
        DataError: there are faults (the message lists them), or nothing can be opened.
    """
    if not 4 <= frames <= 1000 or not 6 <= pairs <= 10000 or seed < 0:
        raise ConfigError(f"--frames {frames} --pairs {pairs} --seed {seed}: from 4 to 1000, 6 to 10000, 0 or more.")
    folder = _folder(recording, scene, out)
    scenes = open_recording(recording, reader, cameras, split, correct).scenes()
    chosen = _choose(scenes, scene)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)

        def tell(step: str, done: int, total: int) -> None:
            progress.update(bar, description=f"{chosen.id}: {step}", completed=done, total=total)

        judgement = judge(chosen, frames, pairs, seed, tell)
        advice = judgement
        if judgement.faults and correct:  # what to say instead is found on the recording as it lies
            raw = open_recording(recording, reader, cameras, split).scenes()
            advice = judge(_choose(raw, chosen.id), frames, pairs, seed, tell)
    verdict = _verdict(recording, judgement, advice, correct)
    _write(folder, verdict, judgement)
    _show(verdict, judgement, folder, len(scenes))
    if judgement.faults:
        raise DataError(_refusal(recording, verdict, folder))
    return verdict


def _folder(recording: Path, scene: str | None, out: Path | None) -> Path:
    name = clean_id(recording.resolve().name) + (f"-{clean_id(scene)}" if scene else "")
    folder = out or Path(f"check-{name}")
    if recording.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"--out {folder}: lies in the recording. Choose a folder outside of {recording}.")
    return folder


def _choose(scenes: Any, wanted: str | None) -> Scene:
    """The scene that is wanted, else the first that can be opened."""
    if wanted is not None:
        found: list[Scene] = [scene for scene in scenes if scene.id == wanted]
        if not found:
            some = ", ".join(scene.id for scene in scenes[:8]) + ", ..." * (len(scenes) > 8)
            raise ConfigError(f"--scene {wanted}: the recording has {len(scenes)} scenes: {some}")
        return found[0]
    first: DataError | None = None
    for scene in scenes:
        try:
            if len(scene.names):
                opened: Scene = scene
                return opened
        except DataError as error:
            first = first or error
    raise DataError(f"none of {len(scenes)} scenes can be opened." + (f" The first: {first}" if first else ""))


def _verdict(recording: Path, judgement: Judgement, advice: Judgement, correct: str) -> dict[str, Any]:
    return {
        "recording": str(recording),
        "scene": judgement.scene,
        "corrected": correct,
        "verdict": judgement.verdict,
        "faults": [finding.fault for finding in judgement.faults],
        "correct": (advice.correct if judgement.faults else "") or (correct if not judgement.faults else ""),
        "cameras": advice.cameras if judgement.faults else "",
        "findings": [finding._asdict() for finding in judgement.findings],
        "agreement": judgement.alternatives,
    }


def _write(folder: Path, verdict: dict[str, Any], judgement: Judgement) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "verdict.json", verdict)
    for name in ("cameras.yaml", "sheet.png"):  # of an earlier call
        (folder / name).unlink(missing_ok=True)
    if verdict["cameras"]:
        write_atomic(folder / "cameras.yaml", f"# advised by pri3d check\n{verdict['cameras']}".encode())
    if judgement.evidence is not None:
        faults = "; ".join(verdict["faults"]) or "no fault"
        title = [f"{judgement.scene}: {verdict['verdict']} ({faults})", *_advice(verdict, folder)]
        write_sheet(folder / "sheet.png", judgement.evidence, title)


def _advice(verdict: dict[str, Any], folder: Path) -> list[str]:
    """The options to give to check and prepare, in words."""
    if verdict["verdict"] != "fault":
        return []
    words = [f"--correct {verdict['correct']}"] * bool(verdict["correct"])
    words += [f"--cameras {folder / 'cameras.yaml'}"] * bool(verdict["cameras"])
    if words:
        return [f"give to check, then to prepare: {' '.join(words)}"]
    return [f"leave out --correct {verdict['corrected']}"] * bool(verdict["corrected"])


def _show(verdict: dict[str, Any], judgement: Judgement, folder: Path, scenes: int) -> None:
    table = Table("check", "verdict", "figure", "advice", title=f"{verdict['recording']}: scene {judgement.scene}")
    for finding in judgement.findings:
        shown = f"[{_COLORS[finding.verdict]}]{finding.verdict}"
        what = f"{finding.fault}. {finding.advice}" if finding.fault else finding.advice
        table.add_row(finding.check, shown, escape(finding.figure), escape(what))
    console = Console()
    console.print(table)
    for line in _advice(verdict, folder):
        console.print(escape(line), soft_wrap=True)
    more = f"; one of {scenes} scenes was judged, --scene takes another" if scenes > 1 else ""
    console.print(f"{verdict['verdict']}: see {escape(str(folder))}{more}", soft_wrap=True)


def _refusal(recording: Path, verdict: dict[str, Any], folder: Path) -> str:
    faults = "".join(
        f"\n  - {finding['fault']} ({finding['figure']}). {finding['advice']}"
        for finding in verdict["findings"]
        if finding["verdict"] == "fault"
    )
    advice = "".join(f"\n{line[0].upper()}{line[1:]}" for line in _advice(verdict, folder))
    return f"{recording}: scene {verdict['scene']} has faults:{faults}{advice}\nPictures are in {folder}."
