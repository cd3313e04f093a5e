"""Weights as transformers saves them: every tensor lands, and features are those of timm's network with the same ones.

The names are those that transformers' own conversion scripts of each model write, checked against nothing of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pri3d.api.import_weights import import_weights
from pri3d.networks.load import load
from pri3d.networks.naming import to_common_names
from pri3d.networks.timm_encoders import ViTEncoder, map_indices, whole_options

State = dict[str, Tensor]

#: timm's name -> theirs; {b} is a block's or stage's number, query, key and value are apart
VIT = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "attn.proj": "attention.output.dense",
}
DEIT = {**VIT, "norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense"}
DEIT |= {"mlp.fc2": "output.dense", "head": "cls_classifier", "head_dist": "distillation_classifier"}
DINOV2 = {**VIT, "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
GIANT = {**DINOV2, "mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
CONVNEXT = {
    "stem.0": "embeddings.patch_embeddings",
    "stem.1": "embeddings.layernorm",
    "gamma": "layer_scale_parameter",
    "conv_dw": "dwconv",
    "norm": "layernorm",
    "mlp.fc1": "pwconv1",
    "mlp.fc2": "pwconv2",
}
TOP = ("classifier", "cls_classifier", "distillation_classifier")  # outside the backbone's prefix


def split(key: str) -> tuple[str, str]:
    """A name without its leaf, and the leaf with its dot."""
    stem, _, leaf = key.rpartition(".")
    return (stem, f".{leaf}") if leaf in ("weight", "bias") else (key, "")


def as_vit(state: State, table: dict[str, str], prefix: str) -> State:
    """Under the names of transformers' ViTs."""
    result = {}
    for key, value in state.items():
        stem, leaf = split(key)
        if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", stem):
            where = f"{prefix}encoder.layer.{block[1]}."
            if block[2] == "attn.qkv":
                for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    result[f"{where}attention.attention.{part}{leaf}"] = third.clone()
            else:
                result[f"{where}{table.get(block[2], block[2])}{leaf}"] = value
        else:
            name = table.get(stem, stem)
            result[name + leaf if name in TOP else f"{prefix}{name}{leaf}"] = value
    return result


def as_convnext(state: State) -> State:
    """Under the names of transformers' ConvNextForImageClassification."""
    result = {}
    for key, value in state.items():
        stem, leaf = split(key)
        if place := re.fullmatch(r"stages\.(\d)\.downsample\.(\d)", stem):
            name = f"convnext.encoder.stages.{place[1]}.downsampling_layer.{place[2]}"
        elif place := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", stem):
            name = f"convnext.encoder.stages.{place[1]}.layers.{place[2]}.{CONVNEXT[place[3]]}"
        else:
            top = {"head.norm": "convnext.layernorm", "head.fc": "classifier"}
            name = top.get(stem) or f"convnext.{CONVNEXT[stem]}"
        result[name + leaf] = value
    return result


def ema_of_timm(state: State) -> dict[str, State]:
    """Timm's training script, the averages alone."""
    return {"state_dict_ema": {f"module.{key}": value for key, value in state.items()}}


def ema_of_release(state: State) -> dict[str, State]:
    """Meta's ConvNeXt: ``convnext_tiny_1k_224_ema.pth`` has the averages as the model."""
    result = {}
    for key, value in state.items():
        name = re.sub(r"stem\.(\d)", r"downsample_layers.0.\1", key)
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2.", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        name = name.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        result[name] = value
    return {"model": result}


def with_class_place(state: State) -> State:
    """Transformers adds a place to the class token, as the release does; timm has added it to the token itself."""
    position = state["pos_embed"]
    place = torch.randn(1, 1, position.shape[2])
    moved = {"pos_embed": torch.cat((place, position), 1), "cls_token": state["cls_token"] - place}
    return as_vit({**state, **moved}, DINOV2, "") | {"embeddings.mask_token": torch.zeros(1, position.shape[2])}


CASES: dict[str, tuple[str, Callable[[State], Any], bool]] = {
    "ConvNeXt": ("test_convnext", as_convnext, True),
    "ViT": ("test_vit", lambda state: as_vit(state, {**DEIT, "head": "classifier"}, "vit."), True),
    "DeiT": ("deit_tiny_patch16_224", lambda state: as_vit(state, DEIT, "deit."), True),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", lambda state: as_vit(state, DEIT, "deit."), True),
    "DINOv2": ("vit_small_patch14_dinov2", lambda state: as_vit(state, DINOV2, "dinov2."), True),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", with_class_place, True),
    "averages of timm": ("test_convnext", ema_of_timm, False),
    "averages of Meta": ("test_convnext", ema_of_release, False),
}


@pytest.mark.thorough
@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * ("DINO" in c)) for c in CASES])
def test_every_tensor_lands_and_features_are_those_of_timm(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, rename, safe = CASES[case]
    torch.manual_seed(0)
    reference = timm.create_model(name)
    state = {key: torch.randn_like(value) * 0.05 for key, value in reference.state_dict().items()}
    path = tmp_path / ("model.safetensors" if safe else "model.pth")
    save_file(rename(state), path) if safe else torch.save(rename(state), path)
    net = load(import_weights(path, tmp_path / "y.safetensors", encoder=name))
    said = capsys.readouterr().out
    assert "0 missing" in said
    left = re.findall(r"([\w.]+?)(?:\.weight|\.bias)? \(\d+\)", said.partition("not used: ")[2].partition("\n")[0])
    assert set(left) <= {"embeddings", "head", *TOP}, said  # of the embeddings DINOv2's token of what is masked
    whole = timm.create_model(name, **whole_options(net.encoder)).eval()
    whole.load_state_dict(state)
    size = 70 if "patch14" in name else 64
    images = torch.rand(2, 3, size, size + (14 if size == 70 else 32))
    norm = isinstance(net.encoder, ViTEncoder)
    with torch.inference_mode():
        expected = whole.forward_intermediates(
            net.normalise(images),
            indices=map_indices(net.encoder),
            norm=norm,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        for found, wanted in zip(net(images), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_giants_gated_layers_are_timms() -> None:
    """DINOv2's largest has SwiGLU: both halves of its first layer in one tensor, as timm has them."""
    with torch.device("meta"):
        state = timm.create_model("vit_giant_patch14_dinov2", num_classes=0, depth=2).state_dict()
    found = to_common_names(as_vit(state, GIANT, ""))
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in state.items()}
