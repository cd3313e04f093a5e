"""The verb: what it refuses, leaves behind and says of where the weights come from."""

from __future__ import annotations

import json
import os

import pytest
import torch
import torchvision
import yaml
from export_networks import IMAGES, make_run
from safetensors.torch import load_file

from finetuned import instance_task, save_semantic
from pri3d import registry
from pri3d.errors import ConfigError, WeightsError
from pri3d.exporting import FORMATS
from pri3d.exporting.export import describe_leak, describe_licence, export, read_stages
from pri3d.files.atomic import temporary
from pri3d.files.lock import lock_file
from pri3d.networks.detector import LITE, build_detector
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import WeightsSource, load
from pri3d.networks.lora import add_lora
from pri3d.networks.segmentation import build_segmentation
from pri3d.networks.unet import UNet
from pri3d.networks.weights import load_model, read_provenance, save_model
from pri3d.store import Store

pytestmark = pytest.mark.thorough  # but for those that say quick


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", "resnet18", init="scratch")


def test_torchvision_takes_the_export(run, capsys):
    path = export(run)
    net = torchvision.models.resnet18()
    left = net.load_state_dict(load_file(path), strict=False)
    assert set(left.missing_keys) == {"fc.weight", "fc.bias"}
    assert not left.unexpected_keys
    unet, _ = load_model(run)
    net.fc = torch.nn.Identity()
    images = unet.encoder.normalise(IMAGES)
    torch.testing.assert_close(net.eval()(images), unet.encoder(images)[-1].mean((2, 3)))
    names = ["encoder_torchvision.safetensors", "encoder_torchvision.safetensors.md", "weights.safetensors"]
    assert sorted(p.name for p in run.iterdir()) == names
    assert "largest difference from the run's features 0.0e+00 (bound " in capsys.readouterr().out


def test_an_exported_encoder_starts_the_next_run(run):
    encoder = build_encoder("resnet18")
    assert WeightsSource(str(export(run, "safetensors")), on_hub=False).fill(encoder).coverage == 1
    assert torch.equal(encoder.conv1.weight, load_model(run)[0].encoder.conv1.weight)
    with pytest.raises(WeightsError, match="encoder alone"):
        load_model(run / "encoder.safetensors")


@pytest.mark.parametrize("part", ["encoder", "all"])
@pytest.mark.slow
def test_a_mix_with_the_start(run, tmp_path, part):
    start = make_run(tmp_path / "start", "resnet18")
    unet, _ = load_model(start)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.mul_(0.5)
    save_model(unet, run / "initial.safetensors", {})
    path = export(run, "safetensors", tmp_path / "mixed.safetensors", part, 0.7)
    first, last = (load(run / f"{name}.safetensors", part).net.state_dict() for name in ("initial", "weights"))
    mixed = load(path).net.state_dict()
    assert mixed.keys() == first.keys()
    for key, value in mixed.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.3 * first[key] + 0.7 * last[key])
    assert read_provenance(path)["mix"] == 0.7
    card = (tmp_path / "mixed.safetensors.md").read_text()
    assert "| fraction of the run in the mix with its initial weights | 0.7 |" in card
    with pytest.raises(ConfigError, match=r"--mix 0\.5: .*initial\.safetensors does not exist"):
        export(start, mix=0.5)


def test_an_export_can_be_exported(run, tmp_path):
    first = export(run, "safetensors")
    second = export(first, "torchvision", tmp_path / "again.safetensors")
    assert torch.equal(load_file(first)["layer4.1.conv2.weight"], load_file(second)["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("to", "part", "message"),
    [
        ("tensorflow", "encoder", "Choices: torchvision, timm"),
        ("torchvision", "all", "decoder"),
        ("safetensors", "x", "--part"),
    ],
)
def test_combinations_that_do_not_exist(run, to, part, message):
    with pytest.raises(ConfigError, match=message):
        export(run, to, part=part)


def test_places_that_are_something_else(run, tmp_path):
    with pytest.raises(ConfigError, match="run's own"):
        export(run, "safetensors", out=run / "weights.safetensors", part="all")
    with pytest.raises(ConfigError, match="run's own"):
        export(run, "hf", out=run)
    with pytest.raises(ConfigError, match=r"end in \.safetensors"):
        export(run, "timm", out=tmp_path / "net.pkl")
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        export(run, "hf", out=tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "x"


@pytest.mark.parametrize(
    ("to", "out", "own"),
    [
        ("safetensors", "initial.safetensors", "initial.safetensors"),
        ("timm", "net.safetensors", "net.safetensors.md"),
        ("detectron2", "config.pth", "config.yaml"),
        ("mmseg", "train.pth", "train.py"),
        ("mmseg", "train.pth", "train_mmdet.py"),
        ("hf", "project", "project/README.md"),
    ],
)
def test_what_is_no_export_is_not_replaced(run, to, out, own):
    (run / own).parent.mkdir(exist_ok=True)
    (run / own).write_text("mine")
    with pytest.raises(ConfigError, match=f"{own} would be replaced"):
        export(run, to, out=run / out)
    assert (run / own).read_text() == "mine"
    (run / own).unlink()
    export(run, to, out=run / out)
    before = (run / own).stat().st_mtime_ns
    export(run, to, out=run / out)  # an export is
    assert (run / own).stat().st_mtime_ns > before


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"--out .*cannot be written"):
        export(run, "timm", out=tmp_path / "file" / "net.safetensors")


def test_one_process_at_a_time_writes_an_export(run, tmp_path):
    out = tmp_path / "encoder.safetensors"
    with lock_file(out), pytest.raises(ConfigError, match=r"encoder\.safetensors: process \d+ on .* has been"):
        export(run, to="torchvision", out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_export_left_is_removed(run):
    part = temporary(run / "net.safetensors")
    left = part.with_name(part.name.replace(f".{os.getpid()}.", ".99999999."))  # no process has that number
    left.mkdir()
    export(run, "timm")
    assert not left.exists()


@pytest.mark.parametrize(
    ("to", "value"), [*((to, 0.5) for to in FORMATS if to != "onnx"), ("safetensors", float("nan"))]
)
def test_a_file_that_differs_is_not_left_behind(run, monkeypatch, to, value, capsys):
    form = registry.load("exports", FORMATS, to)
    write = form.write

    def bent(self, source, path):
        source.encoder.layer4[1].conv2.weight.data[0] += value
        write(self, source, path)

    monkeypatch.setattr(form, "write", bent)
    with pytest.raises(WeightsError, match="differ"):
        export(run, to)
    assert [p.name for p in run.iterdir()] == ["weights.safetensors"]
    assert not capsys.readouterr().out


def test_what_a_library_raises_is_said(run, monkeypatch):
    form = registry.load("exports", FORMATS, "timm")
    monkeypatch.setattr(form, "features", lambda *_: {}["maps"])
    with pytest.raises(WeightsError, match=r"timm does not support resnet18.*Use another --to"):
        export(run, "timm")
    assert [p.name for p in run.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("network", ["unet", "pspnet", "deeplabv3plus"])
def test_the_encoder_of_a_segmentation_run(network, tmp_path):
    model = build_segmentation(network, build_encoder("resnet18"), 3, "slim", 8)
    path = tmp_path / "weights.safetensors"
    save_semantic(model, path, ["a", "b", "c"], {"part": "all", "init": "scratch"})
    exported = export(tmp_path, "torchvision")
    own = model.encoder.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in load_file(exported).items())
    record = read_provenance(exported)
    assert (record["tuned_for"], record["part"]) == ("semantic", "encoder")
    assert "class_names" not in record
    if network != "unet":
        with pytest.raises(WeightsError, match="no U-Net"):
            export(tmp_path, "safetensors", part="all")
        return
    features = load(export(tmp_path, "safetensors", part="all"))(IMAGES)
    torch.testing.assert_close(features, model.eval().body(IMAGES))


def test_the_encoder_of_a_detection_run(tmp_path):
    model = build_detector("resnet18", 2, LITE)
    instance_task(["a", "b"], model).save(model, tmp_path / "weights.safetensors", {"init": "scratch"})
    state = load_file(export(tmp_path, "smp"))
    assert all(torch.equal(state[key], value) for key, value in model.encoder.state_dict().items())


def test_adapters_are_merged(tmp_path):
    torch.manual_seed(0)
    unet = UNet(build_encoder("vit_tiny_patch16_224"), "slim", 8)
    add_lora(unet.encoder, 2)
    for name, value in unet.encoder.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(value)
    save_model(unet, tmp_path / "weights.safetensors", {})
    path = export(tmp_path, "safetensors")
    with torch.no_grad():
        expected = unet.eval().encoder(unet.encoder.normalise(IMAGES))
        torch.testing.assert_close(load(path)(IMAGES), expected)
    assert not any("parametrizations" in key for key in load_file(path))


class TestCard:
    """The model card."""

    def test_its_head_and_what_it_tells(self, run):
        path = export(run, "hf")
        _, head, text = (path / "README.md").read_text().split("---\n", 2)
        front = yaml.safe_load(head)
        assert {"pri3d", "resnet18"} <= set(front["tags"])
        assert "license" not in front
        code = text.split("```python\n")[1].split("```")[0]
        assert "create_model('hf-hub:USER/encoder_hf', pretrained=True)" in code
        for line in (
            "| preset | view |",
            "| steps | 5 |",
            "random initial weights",
            "difference of a feature was 0.0",
        ):
            assert line in text

    def test_of_a_tuned_run_it_tells_both_stages(self, run, tmp_path):
        model = build_segmentation("unet", build_encoder("resnet18"), 2, "slim", 8)
        folder = tmp_path / "tuned"
        save_semantic(model, folder / "weights.safetensors", ["a", "b"], {"init": str(run), "steps": 77})
        text = export(folder, "timm").with_name("encoder_timm.safetensors.md").read_text()
        assert text.index("fine-tuned: semantic") < text.index("| steps | 77 |") < text.index("| pre-trained |")
        assert "random initial weights" in text

    def test_runs_that_name_each_other_end(self, run):
        record = {**read_provenance(run), "init": str(run)}
        save_model(load_model(run)[0], run / "weights.safetensors", record)
        assert len(list(read_stages(record))) == 8

    @pytest.mark.parametrize(
        ("splits", "said"),
        [
            ({"train": 10}, "none of 10 scenes"),
            ({"train": 7, "val": 2, "test": 1}, "yes: 1 test, 2 val of 10 scenes"),
            ({"none": 4}, "none: its 4 scenes are of no data set with an official split"),
            (None, "not recorded"),
        ],
    )
    def test_validation_scans(self, splits, said):
        assert describe_leak({"splits": splits}) == said

    def test_validation_scans_of_a_prepared_folder(self, tmp_path):
        scenes = {"a": {"hash": "1", "split": "train"}, "b": {"hash": "2", "split": "val"}}
        manifest = {
            "format": 1,
            "state": "finished",
            "class_names": None,
            "settings": {"pairs": True},
            "scenes": scenes,
        }
        (tmp_path / "dataset.json").write_text(json.dumps(manifest))
        for file in ("frames.npz", "frames.zip", "pairs.npz", "surface.npz"):
            for scene in scenes:
                (tmp_path / "scenes" / scene).mkdir(parents=True, exist_ok=True)
                (tmp_path / "scenes" / scene / file).touch()
        record = {"data": str(tmp_path), "data_hash": Store(tmp_path).hash}
        assert describe_leak(record) == "yes: 1 val of 2 scenes"
        assert describe_leak({**record, "data_hash": "another"}) == "not recorded"
        assert describe_leak({**record, "data": str(tmp_path / "gone")}) == "not recorded"

    @pytest.mark.parametrize(
        ("record", "said"),
        [
            ({"init": "scratch"}, "random initial weights"),
            ({"init": "imagenet", "encoder": "resnet50"}, "BSD-3-Clause"),
            ({"init": "timm:vit_small_patch14_dinov2"}, "apache-2.0"),
            ({"init": "moco.pth"}, "those of moco.pth"),
            ({}, "not recorded"),
        ],
    )
    def test_licence_of_the_first_weights(self, record, said):
        assert said in describe_licence(record)
