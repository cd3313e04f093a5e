"""Your own phone recording: is it right, train on it, look at the result.

    python examples/phone_recording.py RECORDING [--out FOLDER]
    python examples/phone_recording.py --tiny

Needs: a recording with depth and poses (Stray Scanner, Record3D, 3D Scanner App, Polycam, or a transforms.json; see
docs/formats.md), some hundred frames that show the same places from several sides, and `pip install "pri3d[imagenet]"`;
`pri3d[video]` too where the app writes videos. Without a recording, a rendered room in nerfstudio's layout stands in.

You should see: the result of the check ("ok"), the number of pairs, a table that compares the encoder before and after
on held-out frames, and the path of a page with curves and similarity maps. If the check finds a mistake, the message
names the option that fixes it (`--correct`, `--cameras`), and nothing is trained.
"""

# %% Settings
import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import yaml

import pri3d
from pri3d.api.pretrain import MatchingOptions
from pri3d.store import Store

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("recording", nargs="?", type=Path)
parser.add_argument("--out", type=Path, default=Path("phone"))
parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes; shows that it runs, nothing else")
given = parser.parse_args()
out: Path = given.out


# %% A stand-in: one rendered room as phone apps export: transforms.json, OpenGL camera axes, depth in millimetres
def write_stand_in(folder: Path) -> Path:
    """Write a recording and return its folder."""
    size, frames = ("96x72", 16) if given.tiny else ("320x240", 60)
    pri3d.rooms(out / "room", rooms=1, frames=frames, size=size, labels=False, first=7, processes=1)
    scene = out / "room" / "room-0007"
    for part in ("color", "depth"):
        shutil.copytree(scene / part, folder / part, dirs_exist_ok=True)
    camera = yaml.safe_load((scene / "cameras.yaml").read_text())["color"]
    stated = {"fl_x": camera["fx"], "fl_y": camera["fy"], "cx": camera["cx"], "cy": camera["cy"]}
    stated |= {"w": camera["width"], "h": camera["height"], "frames": []}
    for pose in sorted((scene / "pose").glob("*.txt")):
        opengl = np.loadtxt(pose) @ np.diag((1.0, -1.0, -1.0, 1.0))
        files = {"file_path": f"color/{pose.stem}.jpg", "depth_file_path": f"depth/{pose.stem}.png"}
        stated["frames"].append({**files, "transform_matrix": opengl.tolist()})
    (folder / "transforms.json").write_text(json.dumps(stated))
    return folder


recording = given.recording or write_stand_in(out / "recording")

# %% Is it right? Raises an error that says what is wrong, and what fixes it
found = pri3d.check(recording, out=out / "check", max_frames=12 if given.tiny else 40)
print(f"check: {found['verdict']}; pictures in {out / 'check'}")

# %% Frames and pairs; those that overlap little are from far apart, and teach the most
size = "64x48" if given.tiny else "160x120"
distance = 0.1 if given.tiny else 0.02
pri3d.prepare([recording], out / "prepared", size=size, distance=distance, processes=1)
pairs = Store(out / "prepared").pairs()
print(f"{len(pairs.i)} pairs, up to {np.degrees(pairs.angle).max():.0f} degrees apart")

# %% Continue ImageNet weights on it
few = {"steps": 3, "batch": 2, "micro_batch": 2, "workers": 0, "holdout": 0.3} if given.tiny else {}
run = pri3d.pretrain(
    out / "prepared",
    encoder="tf_efficientnet_lite0",
    weights="imagenet",
    size=size,
    matching=MatchingOptions(distance=distance),
    run=out / "run",
    **few,
)

# %% What came of it
before, after = run.comparison["start"], run.comparison["best"]
for name, what in (
    ("encoder_recall", "recall of points"),
    ("depth_rmse", "depth, m"),
    ("normal_error", "normals, degrees"),
):
    print(f"{what:>18}: {before[name]:.3f} -> {after[name]:.3f}")
print("open", pri3d.report([run], out=out / "report.html"))
