"""Files for rerun's viewer: the only module that imports rerun (the extra ``view``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from numpy.typing import NDArray

from pri3d.files.archive import encode
from pri3d.files.atomic import replacing
from pri3d.reporting.viewer_scene import Shown, legs, paint
from pri3d.store import millimetres

TIMELINE = "frame"
_PATH = (86, 180, 233)
_MILLIMETRES = 1000.0


def send_to_rerun(shown: Shown, save: Path | None = None) -> None:
    """Open rerun's viewer, or send to the one that is open already.

    With ``save`` write that .rrd file instead, whole or not at all; no window is opened. The folder is created.
    """
    stream = rr.RecordingStream("pri3d")
    if save is None:
        stream.spawn(default_blueprint=_layout(shown))
        _log(stream, shown)
        stream.flush()
        return
    save.parent.mkdir(parents=True, exist_ok=True)
    with replacing(save) as part:
        stream.save(part, default_blueprint=_layout(shown))
        _log(stream, shown)
        stream.flush()
        stream.disconnect()


def _log(stream: rr.RecordingStream, shown: Shown) -> None:
    stream.send_recording_name(shown.title)
    text = [f"# {shown.title}", *(f"- {key}: {value}" for key, value in shown.facts.items()), "", *shown.notes]
    stream.log("about", rr.TextDocument("\n".join(text), media_type=rr.MediaType.MARKDOWN), static=True)
    if len(shown.points):
        surface = rr.Points3D(shown.points, colors=shown.colors, radii=_radius(shown.points))
        stream.log("world/surface", surface, static=True)
    if len(shown.path) > 1:
        stream.log("world/path", rr.LineStrips3D([shown.path], colors=[_PATH]), static=True)
    for k, frame in enumerate(shown.frames):
        stream.set_time(TIMELINE, sequence=k)
        at = "world/camera" if frame.world_from_camera is not None else "frame"
        stream.log("frame/name", rr.TextLog(frame.name))
        if frame.world_from_camera is not None and frame.intrinsics is not None:
            pose, (fx, fy, cx, cy) = frame.world_from_camera, frame.intrinsics
            height, width = frame.color.shape[:2]
            stream.log(at, rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
            camera = rr.Pinhole(
                focal_length=(fx, fy),
                principal_point=(cx, cy),
                width=width,
                height=height,
                camera_xyz=rr.ViewCoordinates.RDF,
                image_plane_distance=0.3,
            )
            stream.log(at, camera)
        stream.log(f"{at}/color", _picture(frame.color))
        if frame.depth is not None:
            stream.log(f"{at}/depth", rr.DepthImage(millimetres(frame.depth), meter=_MILLIMETRES))
        for name, picture in frame.pictures.items():
            stream.log(f"pictures/{_path(name)}", _picture(picture, "PNG"))
    for k, pair in enumerate(shown.pairs):
        # The two frames side by side, and a layer of lines for each kind of match, there and in the scene.
        stream.log(f"pairs/{k}/color", _picture(np.concatenate(list(pair.colors), axis=1)), static=True)
        for name, matched in pair.matches.items():
            ends = matched.pixels.reshape(-1, 2, 2) + np.array(((0, 0), (pair.colors.shape[2], 0)))
            flat = rr.LineStrips2D(ends.astype(np.float32), colors=paint(matched.right))
            stream.log(f"pairs/{k}/{name}", flat, static=True)
            lines, right = legs(pair, matched)
            if len(lines):
                strips = rr.LineStrips3D(lines.astype(np.float32), colors=paint(right))
                stream.log(f"world/pairs/{k}/{name}", strips, static=True)


def _picture(color: NDArray[np.uint8], kind: str = "JPEG") -> Any:
    return rr.EncodedImage(contents=encode(color, kind), media_type=f"image/{kind.lower()}")


def _path(name: str) -> str:
    return name.replace(" ", "_")


def _radius(points: NDArray[np.float64]) -> float:
    """Half an edge of the cells: the smallest step of the coordinates along x."""
    steps = np.diff(np.unique(np.round(points[:, 0], 6)))
    return float(steps.min()) / 2 if len(steps) else 0.01


def _layout(shown: Shown) -> rrb.Blueprint:
    """The scene at the left, the frame and its pictures at the right, pairs below."""
    names = list(shown.frames[0].pictures) if shown.frames else []
    placed = bool(shown.frames) and shown.frames[0].world_from_camera is not None
    at = "world/camera" if placed else "frame"
    pictures = [rrb.Spatial2DView(origin=at, contents=[f"{at}/color"], name="frame")]
    if placed:
        pictures.append(rrb.Spatial2DView(origin=at, contents=[f"{at}/depth"], name="depth"))
    pictures += [rrb.Spatial2DView(origin=f"pictures/{_path(name)}", name=name) for name in names]
    about = rrb.TextDocumentView(origin="about", name="about")
    pairs = [
        rrb.Spatial2DView(
            origin=f"pairs/{k}", contents=[f"pairs/{k}/color", f"pairs/{k}/{name}"], name=f"{pair.name}: {name}"
        )
        for k, pair in enumerate(shown.pairs)
        for name in pair.matches
    ]
    right = rrb.Vertical(rrb.Grid(*pictures), rrb.Tabs(*pairs, about))
    if not len(shown.points) and not len(shown.path):
        return rrb.Blueprint(right)
    return rrb.Blueprint(rrb.Horizontal(rrb.Spatial3DView(origin="world", name="scene"), right, column_shares=[3, 2]))
