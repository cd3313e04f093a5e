"""``pri3d view``: a prepared dataset or a run in the viewer of rerun or as one HTML page."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from pri3d.api.view import ViewOptions
from pri3d.errors import ConfigError
from pri3d.files.archive import encode
from pri3d.files.atomic import usable
from pri3d.reporting.html import Page, picture_address
from pri3d.reporting.viewer_scene import (
    MEASURED,
    RIGHT,
    WRONG,
    Matched,
    Shown,
    ShownPair,
    legs,
    paint,
    show,
)
from pri3d.reporting.widgets import scene_widget
from pri3d.terminal import Terminal

_THUMB = 200  #: pixels
_STYLE = """<style>
.thumbs{display:flex;flex-wrap:wrap;gap:.7rem;margin:1rem 0}
.thumbs figure{margin:0;width:12.5rem}
.thumbs figcaption{margin:.15rem 0 0;overflow-wrap:anywhere;font-size:.8rem}
.thumbs img,.matches svg{padding:0;border:0;border-radius:4px;width:100%;height:auto;display:block}
</style>"""


def view(options: ViewOptions) -> Path | None:
    """Look at what `prepare`, `pretrain` or `finetune` made: cameras, images, depth, surface, pairs and matches.

    See :func:`pri3d.view` for the options.
    """
    source = Path(options.source)
    data = None if options.data is None else Path(options.data)
    save = None if options.save is None else Path(options.save)
    out = None if options.out is None else Path(options.out)
    if save is not None and save.suffix != ".rrd":
        raise ConfigError(f"--save {save}: a rerun file ends in .rrd. For a page give --out.")
    console = Terminal(stderr=True, highlight=False, soft_wrap=True)
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or not sys.platform.startswith("linux")
    obstacle = ""  # why the viewer cannot do what is asked of it
    if find_spec("rerun") is None:
        obstacle = 'The viewer needs rerun: pip install "pri3d[view]". Without it an HTML page is written.'
    elif save is None and not screen:
        obstacle = "There is no display for a window: an HTML page is written. --save writes a rerun file."
    shown = show(source, data, options.scene, options.max_frames, options.max_pairs)
    for note in shown.notes:
        console.print(note)
    written = None
    if save is not None and find_spec("rerun") is not None:
        from pri3d.reporting.viewer_rerun import send_to_rerun  # noqa: PLC0415 (an extra)

        with usable(f"--save {save}"):
            send_to_rerun(shown, save)
        written = save
        console.print(f"{written}: open it with rerun {written}")
    wanted = options.html or out is not None
    if obstacle and (save is not None or not wanted):
        console.print(obstacle)
    if wanted or obstacle:
        page = out or (save.with_suffix(".html") if save else Path(f"{source.resolve().name}-view.html"))
        with usable(str(page)):
            written = write_page(shown, page)
        console.print(f"{written}: open it in a browser")
    if written is None:
        from pri3d.reporting.viewer_rerun import send_to_rerun  # noqa: PLC0415 (an extra)

        send_to_rerun(shown)
    return written


def write_page(shown: Shown, out: Path) -> Path:
    """Write one self-contained HTML file and return ``out``."""
    page = Page(shown.title)
    page.facts("Content", shown.facts)
    page.widget(_STYLE)
    for note in shown.notes:
        page.note(note)
    if len(shown.points) or len(shown.path):
        page.heading("Scene")
        for name in _kinds(shown.pairs) or [""]:
            page.widget(_turning_scene(shown, name))
    if shown.frames:
        page.heading("Frames")
        thumbs = []
        for frame in shown.frames:
            parts = []  # the frame, and its further pictures below it
            for name, color in {frame.name: frame.color, **frame.pictures}.items():
                size = _THUMB, max(1, round(_THUMB * color.shape[0] / color.shape[1]))
                small = Image.fromarray(color).resize(size, Image.Resampling.BILINEAR)
                source = picture_address(encode(np.asarray(small), "JPEG"))
                text = escape(name)
                parts.append(f'<img alt="{text}" src="{source}" loading="lazy"><figcaption>{text}</figcaption>')
            thumbs.append(f"<figure>{''.join(parts)}</figure>")
        page.widget(f'<div class="thumbs">{"".join(thumbs)}</div>')
    if shown.pairs:
        page.heading("Pairs and matches")
        text = "Measured: the 3D points of both ends, from the depth of both frames, are the same.  "
        if any(name != MEASURED for name in _kinds(shown.pairs)):
            text += (
                "By features: the most similar position in the whole second frame, by a network before or after its "
                "training; green if it is within 10 pixels of the measured position in an image 320 wide, orange if "
                "not."
            )
        page.paragraph(text)
        for pair in shown.pairs:
            page.heading(f"{pair.name}: overlap {pair.overlap:.0%}, {np.degrees(pair.angle):.0f}° between the views", 3)
            for name, matched in pair.matches.items():
                page.widget(_drawn_matches(pair, name, matched))
    return page.write(out)


def _kinds(pairs: Sequence[ShownPair]) -> list[str]:
    """Kinds of matches; where networks made some, the last of theirs is drawn in 3D beside the measured."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair.matches))
    return names if len(names) < 3 else [names[0], names[-1]]


def _turning_scene(shown: Shown, name: str) -> str:
    found = [legs(pair, pair.matches[name]) for pair in shown.pairs if name in pair.matches]
    lines = np.concatenate([np.zeros((0, 2, 3)), *(some for some, _ in found)])
    right = np.concatenate([np.zeros(0, bool), *(some for _, some in found)])
    cameras = [
        (frame.name, frame.world_from_camera, frame.intrinsics, (frame.color.shape[1], frame.color.shape[0]))
        for frame in shown.frames
        if frame.world_from_camera is not None and frame.intrinsics is not None
    ]
    kinds = {
        "": "without matches",
        MEASURED: "with the measured matches of the pairs below, each from camera to point to camera",
    }
    kind = kinds.get(
        name,
        f"with the matches of the pairs below by the features {name} training, each from camera to point to point to "
        "camera, green where right, orange where wrong",
    )
    return scene_widget(
        shown.points,
        shown.colors,
        cameras,
        lines,
        title=f"Surface, camera trajectory (blue) and shown frames (red), {kind}. Initially cut above the cameras.",
        alt=f"The scene from above with its cameras, {kind}.",
        match_colors=paint(right),
        path=shown.path,
    )


def _drawn_matches(pair: ShownPair, name: str, matched: Matched) -> str:
    """The two frames side by side with lines over them, sharp at any size."""
    height, width = pair.colors.shape[1:3]
    source = picture_address(encode(np.concatenate(list(pair.colors), axis=1), "JPEG"))
    lines = "".join(
        f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c + width:.1f}" y2="{d:.1f}" stroke="rgb{RIGHT if right else WRONG}"/>'
        for (a, b, c, d), right in zip(matched.pixels.tolist(), matched.right.tolist(), strict=True)
    )
    share = f"{int(matched.right.sum())} of {len(matched.right)} right"
    said = f"{len(matched.right)} measured matches" if name == MEASURED else f"by the features {name}: {share}"
    return (
        f'<figure class="matches"><svg viewBox="0 0 {2 * width} {height}" role="img" '
        f'aria-label="{escape(pair.name)}, {escape(said)}"><image href="{source}" width="{2 * width}" '
        f'height="{height}"/><g stroke-width="{width / 320:.2f}">{lines}</g></svg>'
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )
