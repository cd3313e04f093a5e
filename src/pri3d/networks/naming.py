"""Tensor names of other programs.

torchvision's ConvNeXt beside timm's; Detectron2's ResNet beside torchvision's (its tools/convert-torchvision-to-d2.py);
EfficientNet and EfficientNet-Lite as the package efficientnet_pytorch names them beside timm's. transformers' ResNet
beside torchvision's, its ViT, DeiT, DINOv2 and ConvNeXt and torchvision's ViT beside timm's; moving averages and
detectors' trunks under the names of the network itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
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

#: what stands before every name of a file of averages: torch.optim.swa_utils, Lightning, timm, lucidrains' ema_pytorch
AVERAGE = re.compile(r"(?:module\.)*(?:averaged_model|ema_model|model_ema|ema)\.(?:module\.)*")
COUNTERS = frozenset({"n_averaged", "initted", "step", "decay", "num_updates"})

#: torchvision's detectors have the trunk in ``backbone.body``, beside a pyramid
BODY = re.compile(r"(?:module\.)*backbone\.body\.")

#: parts of a transformer's block in transformers -> timm's; query, key and value are joined
HF_VIT_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    **{same: same for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
    "mlp.weights_in": "mlp.fc1",  # DINOv2's giant, whose layers are gated
    "mlp.weights_out": "mlp.fc2",
}
HF_VIT = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
HF_CONVNEXT_BLOCK = {
    "dwconv": "conv_dw",
    "layernorm": "norm",
    "pwconv1": "mlp.fc1",
    "pwconv2": "mlp.fc2",
}
#: parts of a block of torchvision's ViT -> timm's
TV_VIT_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention.out_proj": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.linear_1": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "mlp.linear_2": "mlp.fc2",
}
TV_VIT = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    **{f"conv_proj.{leaf}": f"patch_embed.proj.{leaf}" for leaf in ("weight", "bias")},
    **{f"encoder.ln.{leaf}": f"norm.{leaf}" for leaf in ("weight", "bias")},
}

#: a tensor's name -> whose naming it is that is known and not read
NOT_READ = {
    r"features\.\d+\.\d+\.attn\.relative_position_bias_table": "torchvision's Swin",
    r"features\.\d+\.\d+\.block\.\d+\.\d+\.weight": "torchvision's EfficientNet or MobileNet",
    r"features\.0\.0\.weight": "torchvision's, of a network that is no ResNet, ConvNeXt, ViT or VGG",
    r"(?:.*\.)?embeddings\.patch_embeddings\..*": "transformers', of no ViT, DeiT, DINOv2 or ConvNeXt",
    r"(?:.*\.)?layer\.\d+\.attention\.q_proj\.weight": "transformers' DINOv3",
    r"(?:.*\.)?embedder\.embedder\..*": "transformers', of a network that is no ResNet",
    r"(?:visual\.)?transformer\.resblocks\.\d+\..*": "those of CLIP or OpenCLIP",
    r"(?:.*\.)?vision_model\.embeddings\..*": "transformers' CLIP or SigLIP",
    r"(?:backbone\.)?layers\.\d+\.attn\.qkv\.weight": "MMPretrain's ViT",
    r"(?:backbone\.)?stages\.\d+\.blocks\.\d+\.attn\.w_msa\..*": "those of MMDetection's or MMPretrain's Swin",
    r"res\d_\d+_branch\d\w*_w": "those of Caffe2's Detectron",
}


def name_of_naming(state: Iterable[str]) -> str | None:
    """Whose names those of a state dict are, where they are known but not read."""
    names = list(state)
    return next((whose for rule, whose in NOT_READ.items() if any(re.fullmatch(rule, name) for name in names)), None)


def to_common_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as their libraries, transformers and reference scripts publish them, under torchvision's or timm's names.

    Those of any other network stay as they are.
    """
    rest = [key for key in state if not AVERAGE.match(key)]
    if len(rest) < len(state) and all(key.rpartition(".")[2] in COUNTERS for key in rest):
        state = {AVERAGE.sub("", key, count=1): value for key, value in state.items() if key not in rest}
    if any(BODY.match(key) for key in state):
        state = {BODY.sub("", key, count=1): value for key, value in state.items()}
    for rule in (from_hf_resnet, from_hf_convnext, from_hf_vit, from_torchvision_vit):
        state = rule(state)
    return dict(state)


def from_hf_resnet(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Hugging Face ResNet -> torchvision's names."""
    if not any(key.endswith("embedder.embedder.convolution.weight") for key in state):
        return state
    leaf = {"convolution": "conv", "normalization": "bn"}
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"^(?:.*\.)?(?=embedder\.embedder\.|encoder\.stages\.)", "", key)
        if m := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name):
            name = f"{leaf[m[1]]}1.{m[2]}"
        elif m := re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.(conv|norm)\w+\.(\w+)", name):
            part = "conv" if m[4] == "conv" else "bn"
            name = f"layer{int(m[1]) + 1}.{m[2]}.{part}{int(m[3]) + 1}.{m[5]}"
        elif m := re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(conv|norm)\w+\.(\w+)", name):
            name = f"layer{int(m[1]) + 1}.{m[2]}.downsample.{int(m[3] == 'norm')}.{m[4]}"
        renamed[name] = value
    return renamed


def from_hf_convnext(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Hugging Face ConvNeXt -> timm's names."""
    if not any(key.endswith("layers.0.layer_scale_parameter") for key in state):
        return state
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"^(?:.*\.)?(?=embeddings\.|encoder\.stages\.)", "", key)
        if m := re.fullmatch(r"embeddings\.(patch_embeddings|layernorm)\.(\w+)", name):
            name = f"stem.{int(m[1] == 'layernorm')}.{m[2]}"
        elif m := re.fullmatch(r"encoder\.stages\.(\d)\.downsampling_layer\.(\d)\.(\w+)", name):
            name = f"stages.{m[1]}.downsample.{m[2]}.{m[3]}"
        elif m := re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer_scale_parameter", name):
            name = f"stages.{m[1]}.blocks.{m[2]}.gamma"
        elif m := re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(\w+)\.(\w+)", name):
            name = f"stages.{m[1]}.blocks.{m[2]}.{HF_CONVNEXT_BLOCK.get(m[3], m[3])}.{m[4]}"
        elif m := re.fullmatch(r"(?:convnext\.)?layernorm\.(\w+)", name):
            name = f"head.norm.{m[1]}"
        renamed[name] = value
    return renamed


def from_hf_vit(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Hugging Face ViT, DeiT and DINOv2 -> timm's names, with query, key and value in one tensor."""
    marker = re.compile(r"^(?:.*\.)?(?=encoder\.layer\.\d+\.attention\.attention\.query\.weight$)")
    start = next((m.group() for key in state if (m := marker.match(key))), None)
    if start is None:
        return state
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix(start)
        m = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)", name)
        if m is None:
            renamed[HF_VIT.get(name, key)] = value
        elif m[2] in ("layer_scale1", "layer_scale2"):
            renamed[f"blocks.{m[1]}.{m[2].replace('layer_scale', 'ls')}.gamma"] = value
        elif m[2] == "attention.attention.query":
            parts = [state.get(key.replace("query", part)) for part in ("query", "key", "value")]
            if all(part is not None for part in parts):
                renamed[f"blocks.{m[1]}.attn.qkv.{m[3]}"] = torch.cat([part for part in parts if part is not None])
        elif m[2] not in ("attention.attention.key", "attention.attention.value"):
            part = HF_VIT_BLOCK.get(m[2])
            renamed[key if part is None else f"blocks.{m[1]}.{part}.{m[3]}"] = value
    if {"reg_token", "cls_token", "pos_embed"} <= renamed.keys():
        # DINOv2 with registers: its class token has a position, which timm adds to the token once and for all.
        places = renamed["pos_embed"]
        renamed |= {"cls_token": renamed["cls_token"] + places[:, :1], "pos_embed": places[:, 1:]}
    return renamed


def from_torchvision_vit(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Torchvision's ViT -> timm's names."""
    if not any(key.endswith("encoder.layers.encoder_layer_0.ln_1.weight") for key in state):
        return state
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"^(?:module\.|model\.|backbone\.)*", "", key)
        m = re.fullmatch(r"encoder\.layers\.encoder_layer_(\d+)\.(.+?)[._](weight|bias)", name)
        if m is None:
            renamed[TV_VIT.get(name, key)] = value
        else:
            part = "attn.qkv" if m[2] == "self_attention.in_proj" else TV_VIT_BLOCK.get(m[2], m[2])
            renamed[f"blocks.{m[1]}.{part}.{m[3]}"] = value
    return renamed


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
