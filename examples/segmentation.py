"""Fine-tune segmentation from pre-trained weights, look at predictions, and take the backbone to torchvision.

    python examples/segmentation.py LABELLED VAL --weights RUN [--out FOLDER]
    python examples/segmentation.py --tiny

Needs: labelled images to train on and others to score on (a prepared dataset, COCO, Cityscapes, NYUv2, folders of
images and masks: docs/labelled-data.md), and weights: a pre-training run, a file, `imagenet` or `scratch`. Without
arguments, rooms are rendered with labels and a ResNet-18 is pre-trained on them first.

You should see: mIoU from random weights and from yours, pictures of predictions, and the same backbone in plain
torchvision, to which pri3d is not needed any more. One seed shows little: `--seed 0,1,2` of `pri3d finetune` gives a
mean and its interval.
"""

# %% Settings
import argparse
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file

import pri3d
from pri3d.api.pretrain import MatchingOptions
from pri3d.tasks.semantic import SemanticOptions

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("labelled", nargs="?", type=Path)
parser.add_argument("val", nargs="?", type=Path)
parser.add_argument("--weights")
parser.add_argument("--out", type=Path, default=Path("segmentation"))
parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes; shows that it runs, nothing else")
given = parser.parse_args()
out: Path = given.out
size = "64x48" if given.tiny else "160x120"
few = {"steps": 2, "batch": 2, "micro_batch": 2, "workers": 0} if given.tiny else {}

# %% Labelled rooms, and other rooms to score on, where nothing is given
train, val, weights = given.labelled, given.val, given.weights
distance = 0.1 if given.tiny else 0.04
if train is None:
    for name, first, count in (("train", 0, 2 if given.tiny else 24), ("val", 200, 1 if given.tiny else 12)):
        pri3d.rooms(
            out / "rooms" / name, rooms=count, frames=8 if given.tiny else 20, size=size, first=first, processes=1
        )
    train = pri3d.prepare(
        [out / "rooms" / "train"], out / "train", size=size, distance=distance, voxel=0.08, processes=1
    )
    val = pri3d.prepare([out / "rooms" / "val"], out / "val", size=size, pairs=False, surface=False, processes=1)

# %% Pre-training without the labels
if weights is None:
    matching = MatchingOptions(distance=distance)
    weights = pri3d.pretrain(train, size=size, matching=matching, holdout=0, run=out / "pretrained", **few)

# %% The same network from random weights and from these
options = [SemanticOptions(size=size)]
runs = {
    name: pri3d.finetune("semantic", train, val=val, weights=start, run=out / name, options=options, **few)
    for name, start in (("from-scratch", "scratch"), ("from-pretrained", weights))
}
for name, run in runs.items():
    print(f"{name:>16}: mIoU {run.scores['miou']:.3f}")

# %% Pictures of what it predicts
photos = sorted((out / "rooms" / "val").glob("*/color")) if given.labelled is None else []
for folder in photos[:1]:
    print("look at", pri3d.predict(runs["from-pretrained"], folder, out / "predictions"))

# %% The backbone in torchvision
file = pri3d.export(runs["from-pretrained"], to="torchvision", out=out / "backbone.safetensors")
net = torchvision.models.resnet18()
keys = net.load_state_dict(load_file(str(file)), strict=False)
print(
    "missing in torchvision's network:", ", ".join(keys.missing_keys), "- unexpected:", keys.unexpected_keys or "none"
)
with torch.no_grad():
    print(
        "a batch of its features:",
        tuple(torch.nn.Sequential(*list(net.children())[:-2])(torch.rand(1, 3, 96, 128)).shape),
    )
