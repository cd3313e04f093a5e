"""Continue weights that are good already: ImageNet's as a whole, DINOv3's by adapters (LoRA).

    python examples/continue_weights.py STORE [--start imagenet|dinov3] [--out FOLDER]
    python examples/continue_weights.py --tiny

Needs: a prepared dataset (`pri3d prepare RECORDING STORE`); without one, rendered rooms are made.
For `imagenet`: `pip install "pri3d[imagenet]"`. For `dinov3`: a network connection, since timm downloads the weights,
which are under Meta's DINOv3 License.

You should see: what is trained (all parameters, or the adapters alone), the comparison with the start on held-out
frames, how far the features moved (cosine to the start), and a file that timm loads; adapters are merged into it.
"""

# %% Settings
import argparse
from pathlib import Path

import pri3d
from pri3d.api.pretrain import MatchingOptions

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("store", nargs="?", type=Path)
parser.add_argument("--start", choices=("imagenet", "dinov3"), default="imagenet")
parser.add_argument("--out", type=Path, default=Path("continued"))
parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes; shows that it runs, nothing else")
given = parser.parse_args()
out: Path = given.out

# %% Rooms, where there is no store
store, small = given.store, {}
if store is None:
    count, frames, size, distance = (2, 8, "64x48", 0.1) if given.tiny else (24, 40, "160x120", 0.04)
    pri3d.rooms(out / "rooms", rooms=count, frames=frames, size=size, labels=False, processes=1 if given.tiny else 0)
    store = pri3d.prepare([out / "rooms"], out / "prepared", size=size, distance=distance, surface=False, processes=1)
    small = {"size": size, "matching": MatchingOptions(distance=distance)}
if given.tiny:
    small |= {"steps": 2, "batch": 2, "micro_batch": 2, "workers": 0, "holdout": 0.4}

# %% What to start from
if given.start == "imagenet":
    start = {"encoder": "tf_efficientnet_lite0", "weights": "imagenet"}
elif given.tiny:  # the same steps on a network that needs no download
    start = {"encoder": "vit_tiny_patch16_224", "weights": "scratch", "preset": "adapt", "tune": "lora-4"}
else:
    name = "vit_small_patch16_dinov3"
    start = {"encoder": name, "weights": f"timm:{name}", "tune": "lora-8"}

# %% Training. Without --preset it is `adapt` wherever the weights are not random
run = pri3d.pretrain(store, run=out / given.start, **start, **small)

# %% Better or worse?
before, after = run.comparison["start"], run.comparison["best"]
for name in ("encoder_recall", "depth_rmse", "normal_error", "cosine"):
    print(f"{name:>15}: {before[name]:.3f} -> {after[name]:.3f}")
print("stopped early:", run.stopped or "no")

# %% A file for timm; --mix 0.5 of `pri3d export` would take half of the change
print("timm reads", pri3d.export(run, to="timm", out=out / f"{given.start}.safetensors"))
