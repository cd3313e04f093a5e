"""What other programs call the tensors of a network.

torchvision's ConvNeXt beside timm's; Detectron2's ResNet beside torchvision's (its tools/convert-torchvision-to-d2.py);
EfficientNet and EfficientNet-Lite as the package efficientnet_pytorch names them beside timm's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

#: a ConvNeXt block's parts in timm -> their places in torchvision's sequence
CONVNEXT_BLOCK = {"conv_dw": "block.0", "norm": "block.2", "mlp.fc1": "block.3", "mlp.fc2": "block.5"}
TORCHVISION_CONVNEXT = re.compile(
    r"features\.(?P<place>\d)\.(?P<number>\d+)\.(?:(?P<part>block\.\d)\.)?(?P<leaf>weight|bias|layer_scale)"
)

DETECTRON2 = re.compile(
    r"(?:(?:module|model|backbone|bottom_up)\.)*"
    r"(?:stem|res(?P<stage>[2-5])\.(?P<block>\d+))\.(?P<part>conv[123]|shortcut)\.(?P<norm>norm\.)?(?P<leaf>\w+)"
)

#: parts of efficientnet_pytorch's block -> timm's; of its first stage, which does not expand, the second
EFFICIENTNET_BLOCK = {
    "_expand_conv": ("conv_pw", ""),
    "_bn0": ("bn1", ""),
    "_depthwise_conv": ("conv_dw", "conv_dw"),
    "_bn1": ("bn2", "bn1"),
    "_se_reduce": ("se.conv_reduce", "se.conv_reduce"),
    "_se_expand": ("se.conv_expand", "se.conv_expand"),
    "_project_conv": ("conv_pwl", "conv_pw"),
    "_bn2": ("bn3", "bn2"),
}
EFFICIENTNET_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
EFFICIENTNET = re.compile(
    r"_blocks\.(?P<block>\d+)\.(?P<part>_\w+)\.(?P<leaf>\w+)|(?P<stem>_conv_stem|_bn0)\.(?P<stem_leaf>\w+)"
)


def from_torchvision_convnext(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's ConvNeXt -> timm's whole network; the classifier is left out, names of other networks stay."""
    if "features.1.0.layer_scale" not in state:
        return dict(state)
    parts = {place: part for part, place in CONVNEXT_BLOCK.items()}
    renamed = {}
    for key, value in state.items():
        m = TORCHVISION_CONVNEXT.fullmatch(key)
        if m is None:
            continue
        stage, inner = divmod(int(m["place"]), 2)
        if m["place"] == "0":
            name = f"stem.{m['number']}.{m['leaf']}"
        elif not inner:
            name = f"stages.{stage}.downsample.{m['number']}.{m['leaf']}"
        else:
            part = "gamma" if m["leaf"] == "layer_scale" else f"{parts[m['part']]}.{m['leaf']}"
            name = f"stages.{stage}.blocks.{m['number']}.{part}"
        renamed[name] = value.flatten() if m["leaf"] == "layer_scale" else value
    return renamed


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Detectron2's ResNet to torchvision's names: ``res2.0.conv1.norm`` is ``layer1.0.bn1``; others stay."""
    renamed = {}
    for key, value in state.items():
        m = DETECTRON2.fullmatch(key)
        if m is not None:
            if m["part"] == "shortcut":
                module = "downsample.1" if m["norm"] else "downsample.0"
            else:
                module = m["part"].replace("conv", "bn") if m["norm"] else m["part"]
            stage = "" if m["stage"] is None else f"layer{int(m['stage']) - 1}.{m['block']}."
            key = f"{stage}{module}.{m['leaf']}"  # noqa: PLW2901
        renamed[key] = value
    return renamed


def from_efficientnet(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """efficientnet_pytorch's names -> timm's, without the layers after the last block; names of other networks stay.

    ``own`` are the names of timm's network, whose blocks are counted in each stage: theirs are counted through.
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    places = {(int(m[1]), int(m[2])) for key in own if (m := re.search(r"blocks\.(\d+)\.(\d+)\.", key))}
    blocks = [f"blocks.{stage}.{block}" for stage, block in sorted(places)]
    expands = {int(m[1]) for key in state if (m := re.match(r"_blocks\.(\d+)\._expand_conv\.", key))}
    renamed = {}
    for key, value in state.items():
        m = EFFICIENTNET.fullmatch(key)
        if m is None:
            continue
        if m["stem"]:
            renamed[f"{EFFICIENTNET_STEM[m['stem']]}.{m['stem_leaf']}"] = value
        elif (number := int(m["block"])) < len(blocks) and m["part"] in EFFICIENTNET_BLOCK:
            part = EFFICIENTNET_BLOCK[m["part"]][0 if number in expands else 1]
            renamed[f"{blocks[number]}.{part}.{m['leaf']}"] = value
    return renamed if len(blocks) == len({key.split(".")[1] for key in state if key.startswith("_blocks.")}) else {}
