from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import pri3d
from pri3d.api.import_weights import import_weights
from pri3d.cli import main
from pri3d.errors import ConfigError, WeightsError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.importing import FAMILIES, guess_encoder
from pri3d.networks.load import WeightsSource, load
from pri3d.networks.naming import from_detectron2
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import read_provenance, save_model
from pri3d.registry import ENCODERS

pytestmark = pytest.mark.thorough  # but for those that say quick


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18().state_dict()


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(0)
    return build_encoder("resnet50").state_dict()


def to_detectron2(state):
    """torchvision's names -> Detectron2's, as its converter writes them; counters and classifier are dropped."""
    renamed = {}
    for key, value in state.items():
        if "num_batches" in key or key.startswith("fc."):
            continue
        name = key if key.startswith("layer") else f"stem.{key}"
        name = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        renamed[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = value
    return renamed


def holds(path, state):
    """Whether pri3d.load gives an encoder of ``state``'s tensors."""
    own = load(path).encoder.state_dict()
    return all(torch.equal(v, state[k]) for k, v in own.items() if "num_batches" not in k)


@pytest.mark.parametrize("wrap", ["{}", "backbone.bottom_up.{}", "model.backbone.{}"])
def test_detectron2_names_are_turned_round(resnet50, wrap):
    theirs = {wrap.format(k): v for k, v in to_detectron2(resnet50).items()}
    assert wrap.format("res2.0.shortcut.norm.running_var") in theirs
    back = from_detectron2(theirs)
    assert set(back) == {k for k in resnet50 if "num_batches" not in k}
    assert all(torch.equal(back[k], resnet50[k]) for k in back)
    others = {"roi_heads.box_head.fc1.weight": 1, "backbone.fpn_lateral2.weight": 2, "layer1.0.conv1.weight": 3}
    assert from_detectron2(others) == others


def test_a_detectors_file_gives_its_backbone_and_a_warning(tmp_path, resnet, capsys):
    model = {f"backbone.bottom_up.{k}": v for k, v in to_detectron2(resnet).items()}
    model |= {"backbone.fpn_lateral2.weight": torch.ones(3), "roi_heads.mask_head.predictor.bias": torch.ones(2)}
    torch.save({"model": model, "iteration": 90000}, tmp_path / "model_final.pth")
    out = import_weights(tmp_path / "model_final.pth", tmp_path / "new" / "r18.safetensors")
    assert holds(out, resnet)
    printed = capsys.readouterr().out
    assert re.search(r"model_final.pth: resnet18, 100 matched, 0 missing, 2 unexpected.*100.0%", printed)
    assert "not used: fpn_lateral2 (1), roi_heads (1)" in printed
    assert "BGR" in printed
    assert f"pri3d.load('{out}')" in printed


def test_moco_by_the_command_line(tmp_path, resnet, capsys):
    state = {f"module.encoder_q.{k}": v for k, v in resnet.items()} | {"module.queue": torch.ones(4)}
    state |= {f"module.encoder_k.{k}": v + 1 for k, v in resnet.items()}
    file, out = tmp_path / "moco.pth.tar", tmp_path / "moco.safetensors"
    torch.save({"epoch": 800, "state_dict": state}, file)
    assert main(["import", str(file), str(out)]) == 0
    assert "encoder_k (100), queue (1)" in capsys.readouterr().out
    assert holds(out, resnet)
    record = read_provenance(out)
    assert (record["encoder"], record["part"], record["imported_from"]) == ("resnet18", "encoder", "moco.pth.tar")
    assert len(record["imported_hash"]) == 64
    assert WeightsSource(str(out), on_hub=False).fill(build_encoder("resnet18")).coverage == 1
    assert main(["import", str(out), str(tmp_path / "again.safetensors")]) == 1
    assert "is a file of pri3d already" in capsys.readouterr().err


def test_a_published_checkpoint_becomes_a_whole_model(tmp_path, capsys):
    torch.manual_seed(0)
    unet = build_unet("resnet18", "paper").eval()
    model = {f"backbone.{k}": v for k, v in unet.state_dict().items()} | {"w2d.weight": torch.ones(2, 2)}
    torch.save({"model": model, "epoch": 3}, tmp_path / "x.pth")
    out = pri3d.import_weights(tmp_path / "x.pth", tmp_path / "x.safetensors").path
    images = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        assert torch.equal(load(out)(images), unet(images))
    record = read_provenance(out)
    assert (record["decoder"], record["channels"], record["part"]) == ("paper", 32, "all")
    assert "not used: w2d (1)" in capsys.readouterr().out


def test_a_decoder_that_claims_a_thousand_million_channels(tmp_path, resnet):
    state = {f"encoder.{k}": v for k, v in resnet.items()}
    state["decoder.conv0.weight"] = torch.ones(1, 1, 1, 1).expand(10**9, 64, 1, 1)
    torch.save(state, tmp_path / "x.pth")
    out = import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert read_provenance(out)["part"] == "encoder"  # its one number is no decoder


@pytest.mark.parametrize("shape", [(), (64,), (10**8, 0, 3, 3), (0, 64, 1, 1)])
def test_a_decoder_of_no_convolution(tmp_path, resnet, shape):
    state = {f"encoder.{k}": v for k, v in resnet.items()} | {"decoder.conv0.weight": torch.ones(shape)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth: decoder\.conv0\.weight has the shape"):
        import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")


def test_a_decoder_of_another_network_names_the_file(tmp_path, resnet):
    state = {f"encoder.{k}": v for k, v in resnet.items()} | {"decoder.conv0.weight": torch.ones(8, 3, 1, 1)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth is no U-Net with encoder resnet18: .*conv0"):
        import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")


@pytest.mark.parametrize("name", FAMILIES["conv1.weight", (64, 3, 7, 7)])
def test_every_resnet_is_told_by_its_shapes(tmp_path, name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    assert guess_encoder(state, tmp_path) == name


@pytest.mark.parametrize("name", ["resnet152", "resnext50_32x4d"])
def test_other_resnets_are_not_taken_for_smaller_ones(tmp_path, name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    with pytest.raises(ConfigError, match=r"cannot be identified by its tensors.*--encoder.*resnet101"):
        guess_encoder(state, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m"),
        *("vit_small_patch16_dinov3.lvd1689m", "convnext_small.fb_in1k", "swin_small_patch4_window7_224.ms_in1k"),
    ],
)
def test_common_timm_networks_are_told_too(tmp_path, name):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    assert guess_encoder(state, tmp_path) == name


def test_known_networks_exist():
    names = {name for names in FAMILIES.values() for name in names} - set(ENCODERS)
    assert len(names) > 25
    assert sorted(names - set(timm.list_pretrained())) == []


def test_what_no_file_tells_is_asked_for(tmp_path):
    """timm's own ViTs and DINO's have the same tensors, and other images."""
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    save_file(state, tmp_path / "x.safetensors")
    out = tmp_path / "y.safetensors"
    with pytest.raises(ConfigError, match=r"--encoder with one of vit_tiny.*0.5.*; deit_tiny.*0.485"):
        import_weights(tmp_path / "x.safetensors", out)
    assert not out.exists()
    import_weights(tmp_path / "x.safetensors", out, encoder="deit_tiny_patch16_224")
    net = load(out)
    assert net.encoder.statistics[0] == (0.485, 0.456, 0.406)
    assert torch.equal(net.encoder.net.blocks[3].attn.qkv.weight, state["blocks.3.attn.qkv.weight"])


def test_names_of_the_original_release_go_through_timms_rules(tmp_path):
    """ConvNeXt's own: ``downsample_layers.0.0`` is the stem, ``stages.0.0.dwconv`` a block's convolution."""
    torch.manual_seed(0)
    source = timm.create_model("convnext_atto").state_dict()
    theirs = {}
    for key, value in source.items():
        name = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        name = re.sub(r"stages.(\d).downsample", r"downsample_layers.\1", name.replace("stem.", "downsample_layers.0."))
        theirs[name.replace("head.norm", "norm").replace("head.fc", "head")] = value
    torch.save({"model": theirs}, tmp_path / "x.pth")
    out = import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors", encoder="convnext_atto")
    own = load(out).encoder.net.state_dict()
    assert all(torch.equal(v, source[re.sub(r"^(stages|stem)_", r"\1.", k)]) for k, v in own.items())


def test_what_does_not_fit_writes_nothing(tmp_path, resnet):
    torch.save(resnet, tmp_path / "x.pth")
    out = tmp_path / "y.safetensors"
    with pytest.raises(WeightsError, match=r"x.pth is no resnet34.*layer1.2"):
        import_weights(tmp_path / "x.pth", out, encoder="resnet34")
    less = {key: value for key, value in resnet.items() if key != "layer4.1.bn2.weight"}
    torch.save(less, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"no resnet18.*1 missing.*layer4.1.bn2.weight"):
        import_weights(tmp_path / "x.pth", out, encoder="resnet18")
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        import_weights(tmp_path / "x.pth", tmp_path / "y.pth")
    with pytest.raises(WeightsError, match="no weights at"):
        import_weights(tmp_path / "none.pth", out)
    assert not out.exists()
    save_file(less, out)
    with pytest.raises(ConfigError, match="choose another name"):
        import_weights(out, out)


def test_a_model_of_pri3d_is_not_imported(tmp_path):
    save_model(build_unet("resnet18", "slim"), tmp_path / "weights.safetensors", {})
    with pytest.raises(ConfigError, match="already"):
        import_weights(tmp_path / "weights.safetensors", tmp_path / "y.safetensors")


def test_a_pickle_is_never_opened_and_the_line_that_converts_it_works(tmp_path, resnet, monkeypatch):
    """Detectron2's model zoo: a pickle of numpy arrays."""
    arrays = {k: v.numpy() for k, v in to_detectron2(resnet).items()}
    file = tmp_path / "R-18.pkl"
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "x", "matching_heuristics": True}))
    with pytest.raises(WeightsError, match=r"R-18.pkl is a pickle.*runs no code.*python -c") as error:
        import_weights(file, tmp_path / "y.safetensors")
    line = re.search(r'python -c "(.*)"$', str(error.value))[1]
    monkeypatch.chdir(tmp_path)
    exec(line.replace("PATH", repr(str(file))), {})
    assert holds(import_weights(tmp_path / "clean.pth", tmp_path / "y.safetensors"), resnet)
    assert isinstance(arrays["stem.conv1.weight"], np.ndarray)


def test_a_folder_stands_for_the_file_in_it_and_a_bad_place_is_said(tmp_path, resnet):
    (tmp_path / "in").mkdir()
    save_file(resnet, tmp_path / "in" / "net.safetensors")
    with pytest.raises(ConfigError, match=r"y\.safetensors: cannot be written"):
        import_weights(tmp_path / "in", tmp_path / "in" / "net.safetensors" / "y.safetensors")
    out = import_weights(tmp_path / "in", tmp_path / "y.safetensors")
    assert read_provenance(out)["imported_from"] == "net.safetensors"


EFFICIENTNET = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}


def to_efficientnet_pytorch(state):
    """timm's names -> those of the package efficientnet_pytorch: blocks are counted through all stages."""
    blocks = {}
    theirs = {}
    for key, value in state.items():
        if m := re.fullmatch(r"blocks\.(\d+\.\d+)\.(.*)\.(\w+)", key):
            place, part, leaf = m.groups()
            number = blocks.setdefault(place, len(blocks))
            first = place.startswith("0.")  # does not expand
            if part.startswith("se."):
                part = part.replace("se.conv_", "_se_")
            elif first:
                part = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}[part]
            else:
                part = EFFICIENTNET.get(part) or {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}[part]
            theirs[f"_blocks.{number}.{part}.{leaf}"] = value
        else:
            module, leaf = key.rsplit(".", 1)
            name = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            theirs[f"{name.get(module, '_fc')}.{leaf}"] = value
    return theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_efficientnet_as_published(tmp_path, name, capsys):
    torch.manual_seed(0)
    state = timm.create_model(name).state_dict()
    torch.save(to_efficientnet_pytorch(state), tmp_path / "efficientnet.pth")
    out = import_weights(tmp_path / "efficientnet.pth", tmp_path / "y.safetensors")
    assert f"{name}.in1k" in capsys.readouterr().out
    own = load(out).encoder.net.state_dict()
    assert len(own) > 200
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_efficientnet_of_another_size_is_refused(tmp_path):
    state = to_efficientnet_pytorch(timm.create_model("tf_efficientnet_lite1").state_dict())
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="is no tf_efficientnet_lite0"):
        import_weights(tmp_path / "x.pth", tmp_path / "y.safetensors", "tf_efficientnet_lite0")


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg16_bn", "vgg19"])
def test_vgg_is_told_by_torchvisions_names(tmp_path, name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    assert guess_encoder(state, tmp_path) == f"{name}.tv_in1k"


def test_a_whole_mobilenet_is_told_but_not_its_padding(tmp_path):
    with torch.device("meta"):
        state = timm.create_model("mobilenetv3_small_100").state_dict()
    with pytest.raises(ConfigError, match=r"--encoder with one of mobilenetv3_small_100\.lamb.*; tf_mobilenetv3_small"):
        guess_encoder(state, tmp_path)


def test_the_folder_of_a_hub_names_its_network(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("deit_tiny_patch16_224", num_classes=3)
    timm.models.save_for_hf(net, str(tmp_path / "saved"), safe_serialization=True)
    out = import_weights(tmp_path / "saved", tmp_path / "y.safetensors")
    assert read_provenance(out)["encoder"] == "deit_tiny_patch16_224"
    (tmp_path / "saved" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json is damaged"):
        import_weights(tmp_path / "saved", tmp_path / "z.safetensors")


@pytest.mark.parametrize(("name", "start"), [("net.h5", b""), ("net.keras", b"PK"), ("net.pth", b"\x89HDF\r\n\x1a\n")])
def test_files_of_other_programs_get_no_advice_for_torch(tmp_path, name, start):
    (tmp_path / name).write_bytes(start + b"x" * 20)
    with pytest.raises(WeightsError, match=rf"{name} is a file of Keras.*safetensors and torch files") as error:
        import_weights(tmp_path / name, tmp_path / "y.safetensors")
    assert "torch.load" not in str(error.value)
