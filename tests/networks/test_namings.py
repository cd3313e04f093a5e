"""Backbones under the names their libraries and training scripts publish them by: each is read whole, or named."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from pri3d.api.import_weights import import_weights
from pri3d.errors import ConfigError, WeightsError
from pri3d.files.atomic import is_full
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import load
from pri3d.networks.naming import to_common_names
from pri3d.networks.weights import load_weights, read_provenance, save_state

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnet() -> State:
    torch.manual_seed(0)
    return dict(torchvision.models.resnet18().state_dict())


@pytest.fixture(scope="module")
def vit() -> State:
    torch.manual_seed(0)
    return dict(timm.create_model("vit_tiny_patch16_224").state_dict())


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def hf_resnet(state: State) -> State:
    """As transformers' ResNetForImageClassification saves it."""
    names = {"conv": "convolution", "bn": "normalization"}
    result = {}
    for key, value in state.items():
        if m := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
            name = f"resnet.embedder.embedder.{names[m[1]]}.{m[2]}"
        elif m := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)", key):
            name = f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[4]) - 1}.{names[m[3]]}.{m[5]}"
        elif m := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.(\d)\.(\w+)", key):
            part = list(names.values())[int(m[3])]
            name = f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut.{part}.{m[4]}"
        else:
            name = key.replace("fc.", "classifier.1.")
        result[name] = value
    return result


HF_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
TV_PARTS = {"norm1": "ln_1", "norm2": "ln_2", "attn.proj": "self_attention.out_proj", "mlp.fc1": "mlp.0"}
TV_PARTS |= {"mlp.fc2": "mlp.3"}


def hf_vit(state: State) -> State:
    """As transformers' ViTForImageClassification saves it: query, key and value apart."""
    fixed = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    result = {}
    for key, value in state.items():
        m = re.fullmatch(r"blocks\.(\d+)\.(.*)\.(weight|bias)", key)
        if m is None:
            name = key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
            result[f"vit.{fixed.get(key, name.replace('norm.', 'layernorm.'))}"] = value
        elif m[2] == "attn.qkv":
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[f"vit.encoder.layer.{m[1]}.attention.attention.{part}.{m[3]}"] = third
        else:
            result[f"vit.encoder.layer.{m[1]}.{HF_PARTS[m[2]]}.{m[3]}"] = value
    return result


def tv_vit(state: State) -> State:
    """As torchvision names it."""
    fixed = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    result = {}
    for key, value in state.items():
        m = re.fullmatch(r"blocks\.(\d+)\.(.*)\.(weight|bias)", key)
        if m is None:
            name = key.replace("patch_embed.proj", "conv_proj").replace("norm.", "encoder.ln.")
            result[fixed.get(key, name)] = value
        else:
            joined = f"self_attention.in_proj_{m[3]}"
            part = joined if m[2] == "attn.qkv" else f"{TV_PARTS[m[2]]}.{m[3]}"
            result[f"encoder.layers.encoder_layer_{m[1]}.{part}"] = value
    return result


def holds(path: pathlib.Path, state: State) -> bool:
    own = load(path).encoder.state_dict()
    return all(torch.equal(value, state[key.removeprefix("net.")]) for key, value in own.items() if "num_b" not in key)


RESNETS = {
    "torchvision reference": lambda r: {"model": r, "optimizer": {}, "args": argparse.Namespace(lr=1, where="x")},
    "with paths": lambda r: {"model": r, "args": argparse.Namespace(out=pathlib.Path("runs"))},
    "timm": lambda r: {"arch": "resnet18", "state_dict": r, "args": argparse.Namespace(lr=1), "metric": np.float64(76)},
    "averages alone": lambda r: {"model_ema": {"n_averaged": torch.tensor(1), **under("module.", r)}},
    "swa_utils": lambda r: {"n_averaged": torch.tensor(1), **under("module.module.", r)},
    "ema": lambda r: {"ema": r},
    "averaged_model": lambda r: {"state_dict": under("averaged_model.", r)},
    "ema_pytorch": lambda r: {"initted": torch.tensor(1), "step": torch.tensor(1), **under("ema_model.", r)},
    "lightning": lambda r: {"state_dict": under("model.encoder.", r), "hyper_parameters": {"lr": 1.0}},
    "detector": lambda r: {"model": {**under("backbone.body.", r), "backbone.fpn.x": torch.ones(2)}},
    "mmdet": lambda r: {
        "meta": {},
        "state_dict": {**under("backbone.", r), "ema_backbone_conv1_weight": torch.ones(2)},
    },
    "transformers": hf_resnet,
}


@pytest.mark.parametrize("layout", RESNETS)
def test_a_resnet_is_read_whole(tmp_path, resnet, layout, capsys):
    torch.save(RESNETS[layout](resnet), tmp_path / "x.pth")
    out = import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert holds(out, resnet)
    assert "0 missing" in capsys.readouterr().out
    encoder = build_encoder("resnet18")  # without a step between, too
    assert load_weights(encoder, tmp_path / "x.pth").coverage == 1
    assert torch.equal(encoder.layer4[1].bn2.weight, resnet["layer4.1.bn2.weight"])


def test_the_network_is_taken_and_its_average_named(tmp_path, resnet, capsys):
    average = {"n_averaged": torch.tensor(1), **under("module.", {k: v + 1 for k, v in resnet.items()})}
    torch.save({"model": resnet, "model_ema": average}, tmp_path / "x.pth")
    assert holds(import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors"), resnet)
    assert "not used: moving averages of the same network (model_ema)" in capsys.readouterr().out


def test_averages_in_one_dictionary_are_counted_together(tmp_path, resnet, capsys):
    averages = {f"ema_backbone_{key.replace('.', '_')}": value + 1 for key, value in resnet.items()}
    torch.save({"state_dict": under("backbone.", resnet) | averages}, tmp_path / "x.pth")
    assert holds(import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors"), resnet)
    assert "not used: ema_* (102)" in capsys.readouterr().out


@pytest.mark.parametrize("rename", [hf_vit, tv_vit])
def test_a_vit_is_read_whole(tmp_path, vit, rename):
    save_file({key: value.contiguous() for key, value in rename(vit).items()}, tmp_path / "model.safetensors")
    out = import_weights(tmp_path / "model.safetensors", tmp_path / "y.safetensors", encoder="vit_tiny_patch16_224")
    assert holds(out, vit)


def test_names_of_torchvisions_vit_are_the_librarys():
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16().state_dict()
        ours = timm.create_model("vit_base_patch16_224").state_dict()
    renamed = {key: value.shape for key, value in to_common_names(theirs).items() if "head" not in key}
    assert renamed == {key: value.shape for key, value in ours.items() if "head" not in key}


def meta_dinov3(bias: float) -> State:
    """Names of Meta's release of DINOv3 (ViT-S/16): biases of query, key and value with a mask."""
    torch.manual_seed(0)
    state = {}
    for key, value in timm.create_model("vit_small_patch16_dinov3").state_dict().items():
        name = (
            key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens")
        )
        state[name] = value
    for block in range(12):
        state[f"blocks.{block}.attn.qkv.bias"] = torch.randn(1152) * bias
        state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(1152)
    return state | {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}


@pytest.mark.slow
def test_dinov3_with_biases_becomes_the_network_that_has_them(tmp_path, capsys):
    state = meta_dinov3(0.5)
    torch.save(state, tmp_path / "x.pth")
    out = import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert read_provenance(out)["encoder"] == "vit_small_patch16_dinov3_qkvb.lvd1689m"
    block = load(out).encoder.net.blocks[5].attn
    assert torch.equal(block.q_bias, state["blocks.5.attn.qkv.bias"][:384])
    assert torch.equal(block.v_bias, state["blocks.5.attn.qkv.bias"][768:])
    printed = capsys.readouterr().out
    assert "q_bias" not in printed  # timm's own words
    assert "not used: blocks.N.attn.qkv.bias_mask (12), mask_token (1), rope_embed (1)" in printed
    # Where the network without them is asked for, they are said to be lost.
    import_weights(tmp_path / "x.pth", tmp_path / "z.safetensors", encoder="vit_small_patch16_dinov3")
    assert "blocks.N.attn.qkv.bias (12), blocks.N.attn.qkv.bias_mask (12)" in capsys.readouterr().out


@pytest.mark.slow
def test_dinov3_whose_biases_are_zero_has_none(tmp_path):
    torch.save(meta_dinov3(0.0), tmp_path / "x.pth")
    out = import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert read_provenance(out)["encoder"] == "vit_small_patch16_dinov3.lvd1689m"


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("efficientnet_b0", "torchvision's EfficientNet or MobileNet"),
        ("swin_t", "torchvision's Swin"),
        ("mobilenet_v3_small", "torchvision's, of a network"),
    ],
)
def test_a_naming_that_is_not_read_is_named(tmp_path, name, whose):
    with torch.device("meta"):
        names = torchvision.models.get_model(name).state_dict()
    torch.save(dict.fromkeys(names, torch.ones(2)), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=f"its names are {whose}"):
        import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")
    with pytest.raises(WeightsError, match=f"Its names are {whose}"):
        load_weights(build_encoder("resnet18"), tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bn1.running_var", -torch.ones(64), "bn1.running_var holds negative variances"),
        ("bn1.weight", torch.full((64,), torch.nan), "bn1.weight contains numbers that are not finite"),
        ("conv1.weight", torch.ones(64, 3, 7, 7, dtype=torch.int8), "conv1.weight are int8, quantised numbers"),
    ],
)
def test_values_that_cannot_be_right_are_refused(resnet, key, value, message):
    encoder = build_encoder("resnet18")
    before = encoder.layer1[0].conv1.weight.clone()
    with pytest.raises(WeightsError, match=message):
        load_weights(encoder, resnet | {key: value})
    assert torch.equal(encoder.layer1[0].conv1.weight, before)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (LFS, "a pointer of git-lfs"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b'{"message": "Not Found"}', "JSON text"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 60, "an image"),
        (b"\x1f\x8b\x08" + b"x" * 60, "a packed file"),
        (b"", r"damaged \(it is empty"),
    ],
)
def test_what_is_no_weights_is_called_what_it_is(tmp_path, suffix, content, what):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    for way in (load, lambda path: import_weights(path, tmp_path / "y.safetensors")):
        with pytest.raises(WeightsError, match=f"x{suffix} is {what}"):
            way(path)


def test_a_wrong_ending(tmp_path, resnet):
    save_file(resnet, tmp_path / "x.pth")  # safetensors are taken by any name
    assert holds(import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors"), resnet)
    torch.save(resnet, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="is a torch file, not safetensors: give it a name"):
        import_weights(tmp_path / "x.safetensors", tmp_path / "z.safetensors")


@pytest.mark.parametrize("length", [0x7B, 0x5B])
def test_headers_whose_length_begins_as_json_are_read(tmp_path, length):
    """The first byte of a safetensors file is that of a number."""
    for pad in range(300):
        save_file({"conv1.weight": torch.ones(2)}, tmp_path / "x.safetensors", {"pad": "x" * pad})
        if (tmp_path / "x.safetensors").read_bytes()[0] == length:
            break
    else:
        pytest.skip("headers are padded to whole eights")
    assert load_weights(torch.nn.Identity(), tmp_path / "x.safetensors").unexpected


@pytest.mark.slow
def test_the_advised_line_takes_the_tensors_of_any_checkpoint(tmp_path, resnet, monkeypatch):
    """Of a whole module, and of a dictionary with objects that no list knows."""
    monkeypatch.chdir(tmp_path)
    for content in ({"model": resnet, "code": Unknown()}, torchvision.models.resnet18(), {"code": Unknown(), **resnet}):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(WeightsError, match="runs no code") as error:
            import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")
        line = re.search(r'python -c "(.*)"$', str(error.value))
        exec(line[1].replace("PATH", repr(str(tmp_path / "x.pth"))), {})
        import_weights(tmp_path / "clean.pth", tmp_path / "y.safetensors")


class Unknown:
    """An object of somebody's script."""


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"tag": "a1_in1k"}},
        {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]},
        {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "resnet"}},
    ],
)
def test_folders_of_a_hub_are_imported_and_the_refusal_says_how(tmp_path, resnet, config: Any):
    save_file(resnet, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=rf"`pri3d import {tmp_path} NEW\.safetensors` converts"):
        load(tmp_path)
    assert holds(import_weights(tmp_path, tmp_path / "y.safetensors"), resnet)


def test_a_small_file_that_names_a_giant_makes_nothing_of_its_size(tmp_path, resnet, monkeypatch):
    """On the meta device alone: 1.1 thousand million numbers would be 4.5 GB."""
    save_state(resnet, tmp_path / "x.safetensors", {"encoder": "vit_giant_patch14_dinov2", "part": "encoder"})
    (tmp_path / "hub").mkdir()
    save_file(resnet, tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text('{"architecture": "vit_giant_patch14_dinov2"}')
    made = []
    register = torch.nn.Module.register_parameter

    def count(module, name, parameter):
        made.append(parameter.numel() if parameter is not None and not parameter.is_meta else 0)
        register(module, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", count)
    with pytest.raises(WeightsError, match="does not fit the network its header names: vit_giant"):
        load(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="is no vit_giant_patch14_dinov2"):
        import_weights(tmp_path / "hub", tmp_path / "y.safetensors")
    assert sum(made) == 0


def test_a_full_disk_is_said_by_the_system(tmp_path, resnet):
    """safetensors has an error of its own, which is none of the operating system."""
    resource = pytest.importorskip("resource", reason="file sizes cannot be limited here")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            save_state(resnet, tmp_path / "x.safetensors", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert is_full(error.value)
    assert list(tmp_path.iterdir()) == []
