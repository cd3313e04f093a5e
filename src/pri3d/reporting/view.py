"""``pri3d view``: look at a prepared store or a run, in rerun's viewer or as one HTML page."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from pri3d.errors import ConfigError
from pri3d.files.atomic import usable
from pri3d.reporting.view_page import write_page
from pri3d.reporting.view_scene import Shown, show


def view(
    source: Path,
    data: Path | None = None,
    scene: str | None = None,
    frames: int = 40,
    pairs: int = 4,
    save: Path | None = None,
    out: Path | None = None,
    html: bool = False,
) -> Path | None:
    """Look at what `prepare`, `pretrain` or `finetune` made: cameras, images, depth, surface, pairs and matches.

    Of a pre-training run: features of its network before and after as false colours, and the matches they make beside
    the measured ones. Of a fine-tuning run: ground truth and predictions. Opens rerun's viewer; without rerun, or
    without a screen, it writes a page for any browser.

    Args:
        source: prepared store, or folder of a run.
        data: what the run was trained on, where that lies elsewhere by now.
        scene: id of the scene; the first if not given.
        frames: at most so many frames, evenly over the scene.
        pairs: at most so many pairs, at even ranks of their overlap.
        save: write a recording for rerun, FILE.rrd, and open no window.
        out: write the page to this file, and open no window; default with --html beside the recording of --save,
            else NAME-view.html here.
        html: write the page, and open no window.

    Returns:
        The file that was written last; None where a window was opened.

    Raises:
        ConfigError: a number is out of range, or a file cannot be written.
        DataError: the folder is neither store nor run, is damaged, or has no such scene; a run's data are not there.
    """
    _check(frames, pairs, save)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    obstacle = _obstacle(save)
    shown = show(source, data, scene, frames, pairs)
    for note in shown.notes:
        console.print(note)
    written = None
    if save is not None and find_spec("rerun") is not None:
        written = _save(shown, save)
        console.print(f"{written}: open it with rerun {written}")
    wanted = html or out is not None
    if obstacle and (save is not None or not wanted):
        console.print(obstacle)
    if wanted or obstacle:
        page = out or (save.with_suffix(".html") if save else Path(f"{source.resolve().name}-view.html"))
        with usable(str(page)):
            written = write_page(shown, page)
        console.print(f"{written}: open it in a browser")
    if written is None:
        _open(shown)
    return written


def _obstacle(save: Path | None) -> str:
    """Why the viewer cannot do what is asked of it, "" where it can."""
    if find_spec("rerun") is None:
        return 'The viewer is rerun: pip install "pri3d[view]". Without it the same is written as a page.'
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or not sys.platform.startswith("linux")
    return "" if save or screen else "No screen here to open a window on: a page is written. --save writes a recording."


def _check(frames: int, pairs: int, save: Path | None) -> None:
    if frames < 1:
        raise ConfigError(f"--frames {frames}: show at least one.")
    if pairs < 0:
        raise ConfigError(f"--pairs {pairs}: give a number of pairs, 0 for none.")
    if save is not None and save.suffix != ".rrd":
        raise ConfigError(f"--save {save}: a recording of rerun ends in .rrd. For a page give --out.")


def _save(shown: Shown, path: Path) -> Path:
    from pri3d.reporting.view_rerun import save_recording  # noqa: PLC0415 (an extra)

    with usable(f"--save {path}"):
        return save_recording(shown, path)


def _open(shown: Shown) -> None:
    from pri3d.reporting.view_rerun import open_window  # noqa: PLC0415 (an extra)

    open_window(shown)
