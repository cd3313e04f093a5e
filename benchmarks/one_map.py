"""Backbones in tools that take one map: ``python -m benchmarks.one_map RUN PHOTO`` with a ResNet's run.

Each tool that is installed gets the wrapper of docs/weights.md: lightly-train trains two steps with it, LeRobot's ACT
loads the torchvision export into its vision encoder and trains two steps. VisBench is not on the package index.
"""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.consumers import SIZE, installed, read_photo, two_steps
from safetensors.torch import load_file
from torch import Tensor, nn

from pri3d.exporting.export import export
from pri3d.networks.load import FeatureNet, load


class LightlyBackbone(nn.Module):
    """What lightly-train calls a model wrapper; images come normalised by its transform."""

    def __init__(self, net: FeatureNet) -> None:
        super().__init__()
        self.net = net

    def feature_dim(self) -> int:
        """Channels of the map."""
        return self.net.channels[0]

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images -> map."""
        return {"features": self.net.of_normalised(x)}

    def forward_pool(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map -> its mean."""
        return {"pooled_features": x["features"].mean((2, 3), keepdim=True)}

    def get_model(self) -> nn.Module:
        """What is saved."""
        return self.net


def main(run: str, photo: str) -> None:
    """Print a line for each tool."""
    images = read_photo(Path(photo))
    for tool, check in (("lightly-train", lightly), ("lerobot", lerobot)):
        if not installed(tool):
            print(f"{tool}: not installed")
            continue
        with TemporaryDirectory() as folder:
            for line in check(Path(run), images, Path(folder)):
                print(f"{tool} {installed(tool)}: {line}", flush=True)


def lightly(run: Path, images: Tensor, folder: Path) -> Iterator[str]:
    """Two steps of SimCLR by lightly-train, whose normalisation is the encoder's."""
    import torchvision  # noqa: PLC0415

    for k, image in enumerate(images.repeat(4, 1, 1, 1)):
        (folder / "images").mkdir(exist_ok=True)
        torchvision.utils.save_image(image, folder / "images" / f"{k}.png")
    net = load(run, "encoder", level=-1)
    wrapper = LightlyBackbone(net)
    found = wrapper.forward_features(net.normalise(images))["features"]
    gap = float((found - load(run, "encoder")(images)[-1]).abs().max())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    mean, std = net.encoder.statistics
    import_module("lightly_train").pretrain(
        out=folder / "out",
        data=folder / "images",
        model=wrapper,
        method="simclr",
        epochs=1,
        batch_size=4,
        num_workers=0,
        accelerator="cpu",
        transform_args={"image_size": (64, 64), "normalize": {"mean": mean, "std": std}},
    )
    moved = sum(not torch.equal(value, before[key]) for key, value in net.state_dict().items())
    yield f"features differ by {gap:.0e}; two steps of SimCLR moved {moved} of {len(before)} tensors"


def lerobot(run: Path, images: Tensor, folder: Path) -> Iterator[str]:
    """The vision encoder of ACT with the torchvision export, all of it; two steps of training."""
    if "lerobot.policies" not in sys.modules:  # its list of all policies asks for the packages of each
        package = types.ModuleType("lerobot.policies")
        package.__path__ = [str(Path(find_spec("lerobot").submodule_search_locations[0]) / "policies")]  # type: ignore[union-attr,index]
        sys.modules["lerobot.policies"] = package
    name = load(run, "encoder").encoder.name
    with redirect_stdout(io.StringIO()):
        path = export(run, "torchvision", folder / "net.safetensors")
    features = import_module("lerobot.configs.types")
    kinds, feature = features.FeatureType, features.PolicyFeature
    config = import_module("lerobot.policies.act.configuration_act").ACTConfig(
        input_features={
            "observation.images.top": feature(kinds.VISUAL, (3, *SIZE)),
            "observation.state": feature(kinds.STATE, (6,)),
        },
        output_features={"action": feature(kinds.ACTION, (6,))},
        vision_backbone=name,
        pretrained_backbone_weights=None,
        chunk_size=4,
        n_action_steps=4,
        device="cpu",
    )
    policy = import_module("lerobot.policies.act.modeling_act").ACTPolicy(config)
    policy.model.backbone.load_state_dict(load_file(path))
    net: Callable[..., Any] = load(run, "encoder", level=-1)
    with torch.no_grad():
        found = policy.model.backbone.eval()(load(run).normalise(images))["feature_map"]
        gap = float((found - net(images)).abs().max())
    batch = {
        "observation.images.top": load(run).normalise(images),
        "observation.state": torch.zeros(2, 6),
        "action": torch.zeros(2, 4, 6),
        "action_is_pad": torch.zeros(2, 4, dtype=torch.bool),
    }
    first, second = two_steps(policy, lambda: policy.forward(dict(batch))[0], 1e-5)
    yield f"ACT's vision encoder differs by {gap:.0e}; loss {first:.3f}, {second:.3f}"


if __name__ == "__main__":
    main(*sys.argv[1:])
