"""The same as one HTML page: the scene in 3D, the frames as thumbnails, the pairs with their matches."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.files.archive import encode
from pri3d.reporting.html import Page, picture_address
from pri3d.reporting.scene3d import scene_widget
from pri3d.reporting.view_matches import MEASURED, RIGHT, WRONG, Matched, ShownPair, all_legs, paint
from pri3d.reporting.view_scene import Shown, ShownFrame

_THUMB = 200  #: pixels
_STYLE = """<style>
.thumbs{display:flex;flex-wrap:wrap;gap:.7rem;margin:1rem 0}
.thumbs figure{margin:0;width:12.5rem}
.thumbs figcaption{margin:.15rem 0 0;overflow-wrap:anywhere;font-size:.8rem}
.thumbs img,.matches svg{padding:0;border:0;border-radius:4px;width:100%;height:auto;display:block}
</style>"""


def write_page(shown: Shown, out: Path) -> Path:
    """Write one self-contained HTML file and return ``out``."""
    page = Page(shown.title)
    page.facts("What is shown", shown.facts)
    page.widget(_STYLE)
    for note in shown.notes:
        page.note(note)
    if len(shown.points) or len(shown.path):
        page.heading("Scene")
        for name in _kinds(shown.pairs) or [""]:
            page.widget(_scene(shown, name))
    if shown.frames:
        page.heading("Frames")
        page.widget(f'<div class="thumbs">{"".join(_thumbs(frame) for frame in shown.frames)}</div>')
    if shown.pairs:
        page.heading("Pairs and matches")
        page.paragraph(_explain(shown.pairs))
        for pair in shown.pairs:
            page.heading(_title(pair), 3)
            for name, matched in pair.matches.items():
                page.widget(_drawn(pair, name, matched))
    return page.write(out)


def _kinds(pairs: Sequence[ShownPair]) -> list[str]:
    """Kinds of matches; where networks made some, the last of theirs is drawn in 3D beside the measured."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair.matches))
    return names if len(names) < 3 else [names[0], names[-1]]


def _scene(shown: Shown, name: str) -> str:
    lines, right = all_legs(shown.pairs, name)
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
        title=f"Surface, way of the camera (blue) and its shown frames (red), {kind}. It begins cut open above the "
        "cameras.",
        alt=f"The scene from above with its cameras, {kind}.",
        match_colors=paint(right),
        path=shown.path,
    )


def _thumbs(frame: ShownFrame) -> str:
    """The frame, and its further pictures below it."""
    pictures = {frame.name: frame.color, **frame.pictures}
    return "<figure>" + "".join(_thumb(name, color) for name, color in pictures.items()) + "</figure>"


def _thumb(name: str, color: NDArray[np.uint8]) -> str:
    height, width = color.shape[:2]
    small = Image.fromarray(color)
    small = small.resize((_THUMB, max(1, round(_THUMB * height / width))), Image.Resampling.BILINEAR)
    source = picture_address(encode(np.asarray(small), "JPEG"))
    return f'<img alt="{escape(name)}" src="{source}" loading="lazy"><figcaption>{escape(name)}</figcaption>'


def _title(pair: ShownPair) -> str:
    return f"{pair.name}: overlap {pair.overlap:.0%}, {np.degrees(pair.angle):.0f}° between the views"


def _explain(pairs: Sequence[ShownPair]) -> str:
    names = [name for name in _kinds(pairs) if name != MEASURED]
    text = "Measured: the depth of both frames puts the two ends on one place. "
    if names:
        text += (
            "By features: the most similar place of the whole second frame, by a network before or after its training; "
            "green where it lies within 10 pixels of the measured place in an image 320 wide, orange where not."
        )
    return text


def _drawn(pair: ShownPair, name: str, matched: Matched) -> str:
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
