"""What the consumers themselves make of an export, and what they write comes back in."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
import yaml
from export_networks import IMAGES, TinyEncoder, make_run
from safetensors.torch import load_file

from flat import pretrain
from pri3d.api.import_weights import import_weights
from pri3d.errors import ConfigError, WeightsError
from pri3d.exporting import _rules
from pri3d.exporting.export import export
from pri3d.exporting.hf import HubModel
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import load
from pri3d.networks.weights import read_provenance
from pri3d.registry import ENCODERS

pytestmark = pytest.mark.thorough  # but for those that say quick

sys.path.insert(0, str(Path(__file__).parents[2]))
VIT = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}

    def run(name):
        if name not in made:
            made[name] = make_run(tmp_path_factory.mktemp("run"), name, init="/at/home/moco.pth", data="/at/home/rooms")
        return made[name]

    return run


def same_weights(path, run):
    """Whether a file holds the run's encoder, number for number."""
    own = load(run).encoder.state_dict()
    found = load(path).encoder.state_dict()
    counters = [key for key in own if key.endswith("num_batches_tracked")]
    return own.keys() == found.keys() and all(torch.equal(found[k], own[k]) for k in own if k not in counters)


class TestDetectron2:
    """By its rules: exact names without the file's word for it, and the configuration's defaults."""

    @pytest.fixture(scope="class")
    def exported(self, runs, tmp_path_factory):
        return export(runs("resnet18"), "detectron2", tmp_path_factory.mktemp("d2") / "net.pth")

    def test_without_its_word_every_tensor_stays_random(self, exported, tmp_path):
        content = torch.load(exported, weights_only=True)
        del content["matching_heuristics"]
        torch.save(content, tmp_path / "net.pth")
        shutil.copy(exported.with_suffix(".yaml"), tmp_path)
        with pytest.raises(WeightsError, match=r"keep random values in 100 of 100 tensors: backbone.bottom_up.stem"):
            _rules.detectron2_maps(tmp_path / "net.pth", tmp_path / "net.yaml", IMAGES)

    def test_a_file_of_whole_names_needs_no_heuristics(self, exported, tmp_path):
        model = torch.load(exported, weights_only=True)["model"]
        torch.save({"model": {f"backbone.bottom_up.{k}": v for k, v in model.items()}}, tmp_path / "net.pth")
        shutil.copy(exported.with_suffix(".yaml"), tmp_path)
        found = _rules.detectron2_maps(tmp_path / "net.pth", tmp_path / "net.yaml", IMAGES)
        assert all(bool(x.isfinite().all()) for x in found)

    @pytest.mark.parametrize("key", ["INPUT", "PIXEL_STD", "RES2_OUT_CHANNELS"])
    def test_its_defaults_are_not_ours(self, exported, tmp_path, key):
        config = yaml.safe_load(exported.with_suffix(".yaml").read_text())
        for part in (config, config["MODEL"], config["MODEL"]["RESNETS"]):
            part.pop(key, None)
        (tmp_path / "net.yaml").write_text(yaml.safe_dump(config))
        expected = _rules.detectron2_maps(exported, exported.with_suffix(".yaml"), IMAGES)[-1]
        try:
            found = _rules.detectron2_maps(exported, tmp_path / "net.yaml", IMAGES)[-1]
        except WeightsError:
            assert key == "RES2_OUT_CHANNELS"
        else:
            assert not torch.allclose(found, expected, rtol=0.1)

    @pytest.mark.slow
    def test_the_stride_of_a_bottleneck_is_told(self, runs, tmp_path):
        path = export(runs("resnet50"), "detectron2", tmp_path / "net.pth")
        expected = load(runs("resnet50"))(IMAGES)[-1]
        config = yaml.safe_load(path.with_suffix(".yaml").read_text())
        found = _rules.detectron2_maps(path, path.with_suffix(".yaml"), IMAGES)[-1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        del config["MODEL"]["RESNETS"]["STRIDE_IN_1X1"]
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
        found = _rules.detectron2_maps(path, tmp_path / "other.yaml", IMAGES)[-1]
        assert not torch.allclose(found, expected, rtol=0.1)

    def test_a_tensor_of_two_places_is_refused(self, tmp_path):
        model = {"a.conv1.weight": torch.ones(1), "b.conv1.weight": torch.ones(1)}
        torch.save({"model": {"conv1.weight": torch.ones(1)}, "matching_heuristics": True}, tmp_path / "x.pth")
        with pytest.raises(WeightsError, match="fits several"):
            _rules.read_by_detectron2(tmp_path / "x.pth", model)

    def test_what_it_saves_comes_back(self, exported, runs, tmp_path):
        model = torch.load(exported, weights_only=True)["model"]
        saved = {f"backbone.bottom_up.{key}": value for key, value in model.items()}
        torch.save({"model": saved, "iteration": 9, "optimizer": {"state": {}}}, tmp_path / "model_final.pth")
        assert same_weights(import_weights(tmp_path / "model_final.pth", tmp_path / "x.safetensors"), runs("resnet18"))


class TestOpenMmlab:
    """MMSegmentation itself where it is installed: the extra ``consumers``."""

    @pytest.fixture(scope="class")
    def mmseg(self):
        pytest.importorskip("mmseg", reason="of the extra consumers")
        importlib.import_module("benchmarks.consumers").provide_operators()
        return importlib.import_module("mmseg.registry").MODELS

    def test_the_backbone_reads_it_and_its_checkpoint_comes_back(self, mmseg, runs, tmp_path, monkeypatch):
        path = export(runs("resnet18"), "mmseg", tmp_path / "net.pth")
        assert "read again by mmsegmentation 1." in path.with_name("net.pth.md").read_text()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        config = importlib.import_module("mmengine.config").Config.fromfile("../net.py")
        net = mmseg.build(config.model["backbone"])
        net.init_weights()
        net.eval()
        images = load(runs("resnet18")).normalise(IMAGES)
        torch.testing.assert_close(net(images)[-1], load(runs("resnet18"))(IMAGES)[-1], rtol=1e-4, atol=1e-4)
        save = importlib.import_module("mmengine.runner").save_checkpoint
        whole = {f"backbone.{key}": value for key, value in net.state_dict().items()}
        save({"meta": {"epoch": 3}, "state_dict": {**whole, "decode_head.conv_seg.bias": torch.ones(2)}}, "epoch_3.pth")
        assert same_weights(import_weights(Path("epoch_3.pth"), tmp_path / "x.safetensors"), runs("resnet18"))
        # The Runner's own checkpoints hold its log, too, which is passed over.
        log = importlib.import_module("mmengine.logging").HistoryBuffer([1.0], [1])
        save({"state_dict": whole, "message_hub": {"log_scalars": {"loss": log}}}, "iter_9.pth")
        assert same_weights(import_weights(Path("iter_9.pth"), tmp_path / "y.safetensors"), runs("resnet18"))

    def test_its_rules_leave_a_file_of_other_names_alone(self, runs, tmp_path):
        path = export(runs("resnet18"), "mmseg", tmp_path / "net.pth")
        wanted = {key: value.shape for key, value in load(runs("resnet18")).encoder.state_dict().items()}
        assert len(_rules.mmengine_state(path, wanted)) == 100
        content = torch.load(path, weights_only=True)
        content["state_dict"] = {f"backbone.{key}": value for key, value in content["state_dict"].items()}
        torch.save(content, path)
        with pytest.raises(WeightsError, match=r"keep random values in 100 of 120 tensors: conv1\.weight"):
            _rules.mmengine_state(path, wanted)

    def test_the_configuration_of_mmdetection(self, runs, tmp_path):
        export(runs("resnet18"), "mmseg", tmp_path / "net.pth")
        names = {}
        exec((tmp_path / "net_mmdet.py").read_text(), names)
        assert set(names["model"]) == {"data_preprocessor", "backbone", "neck"}
        assert names["model"]["neck"] == {"in_channels": [64, 128, 256, 512]}
        assert names["model"]["backbone"]["init_cfg"]["checkpoint"] == "{{ fileDirname }}/net.pth"


class TestHub:
    """A folder of ``hf`` in timm."""

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["resnet18", VIT, pytest.param("convnext_tiny", marks=pytest.mark.slow)])
    def test_by_its_folder_and_from_the_hub(self, runs, name, tmp_path, monkeypatch):
        folder = export(runs(name), "hf", tmp_path / "rooms-r18")
        ours = load(runs(name))
        images = ours.normalise(torch.rand(1, 3, 224, 224))
        local = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

        def fetch(repo_id, filename, **_):
            assert repo_id == "lab/rooms-r18"
            return str(folder / filename)

        monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
        there = timm.create_model("hf-hub:lab/rooms-r18", pretrained=True).eval()
        assert torch.equal(local(images), there(images))
        torch.testing.assert_close(local.forward_features(images).isfinite().all(), torch.tensor(True))
        assert tuple(local.pretrained_cfg["mean"]) == ours.encoder.statistics[0]
        assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)(images).shape == (1, 7)
        assert same_weights(folder, runs(name))

    def test_maps_of_a_folder(self, runs, tmp_path):
        folder = export(runs("resnet18"), "hf", tmp_path / "r18")
        ours = load(runs("resnet18"))
        maps = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()(
            ours.normalise(IMAGES)
        )
        for a, b in zip(maps, ours(IMAGES), strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.slow
    def test_what_timm_saves_comes_back(self, runs, tmp_path):
        folder = export(runs(VIT), "hf", tmp_path / "vit")
        net = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
        timm.models.save_for_hf(net, str(tmp_path / "saved"), safe_serialization=True)
        assert read_provenance(tmp_path / "saved") == {}
        back = import_weights(tmp_path / "saved", tmp_path / "back.safetensors")
        assert same_weights(back, runs(VIT))

    def test_nothing_of_this_machine_is_in_it(self, runs, tmp_path):
        folder = export(runs("resnet18"), "hf", tmp_path / "r18")
        for file in ("config.json", "README.md"):
            text = (folder / file).read_text()
            assert "moco.pth" in text
            assert "/at/home" not in text
            assert str(tmp_path) not in text
        assert read_provenance(folder)["data"] == "rooms"

    def test_the_whole_network_opens_in_pri3d_alone(self, runs, tmp_path):
        folder = export(runs("resnet18"), "hf", tmp_path / "r18", part="all")
        assert set(json.loads((folder / "config.json").read_text())) == {"pri3d"}
        assert "library_name: pri3d" in (folder / "README.md").read_text()

    @pytest.mark.slow
    def test_a_network_that_is_mostly_classifier_stays_ours(self, tmp_path):
        """timm's VGG without classes keeps two layers of 119 million numbers."""
        folder = export(make_run(tmp_path / "run", "vgg11"), "hf", tmp_path / "vgg")
        assert "architecture" not in json.loads((folder / "config.json").read_text())
        assert (folder / "model.safetensors").stat().st_size < 40e6

    def test_a_folder_of_version_0_1(self, runs, tmp_path):
        folder = export(runs("resnet18"), "safetensors", tmp_path / "model.safetensors").parent
        record = read_provenance(folder)
        (folder / "config.json").write_text(json.dumps(record))
        assert torch.equal(HubModel.from_pretrained(folder)(IMAGES)[-1], load(runs("resnet18"))(IMAGES)[-1])


def test_smp_and_back(runs, tmp_path):
    path = export(runs("resnet18"), "smp", tmp_path / "net.safetensors")
    net = smp.Unet("resnet18", encoder_weights=None, classes=2)
    net.encoder.load_state_dict(load_file(path))
    net.save_pretrained(tmp_path / "saved")
    back = import_weights(tmp_path / "saved", tmp_path / "back.safetensors")
    assert same_weights(back, runs("resnet18"))


@pytest.mark.slow
def test_torchvisions_convnext_and_back(runs, tmp_path):
    path = export(runs("convnext_tiny"), "torchvision", tmp_path / "net.safetensors")
    net = torchvision.models.convnext_tiny()
    net.load_state_dict(load_file(path), strict=False)
    torch.save(net.state_dict(), tmp_path / "saved.pth")
    import_weights(tmp_path / "saved.pth", tmp_path / "back.safetensors", "convnext_tiny")
    assert same_weights(tmp_path / "back.safetensors", runs("convnext_tiny"))


class TestOpenVino:
    """The ONNX file in another runtime, whose axes have names."""

    @pytest.mark.slow
    def test_maps_and_axes(self, runs, tmp_path, monkeypatch):
        monkeypatch.setitem(ENCODERS, "tiny", f"{TinyEncoder.__module__}:TinyEncoder")
        openvino = pytest.importorskip("openvino")
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
        path = export(runs("tiny"), "onnx", tmp_path / "net.onnx")
        axes = [d.dim_param or d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
        assert axes == ["batch", 3, "height", "width"]
        net = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for size in ((2, 3, 50, 71), (1, 3, 64, 96)):
            images = torch.rand(size)
            results = net([images.numpy()])
            for port, expected in zip(net.outputs, load(runs("tiny"))(images), strict=True):
                torch.testing.assert_close(torch.from_numpy(results[port]), expected.detach(), rtol=1e-4, atol=1e-4)


SMALL = {"distance": 0.1, "steps": 1, "batch": 2, "micro_batch": 2, "holdout": 0, "workers": 0, "size": "64x48"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite2", "mobilenetv3_small_100"])
def test_from_pretraining_to_timm_and_back(rooms_store, name, tmp_path):
    run = pretrain(rooms_store, run=tmp_path / "run", encoder=name, **SMALL).path
    net = timm.create_model(f"local-dir:{export(run, 'hf', tmp_path / 'net')}", pretrained=True, num_classes=5)
    timm.models.save_for_hf(net, str(tmp_path / "saved"), safe_serialization=True)
    assert same_weights(import_weights(tmp_path / "saved", tmp_path / "back.safetensors"), run)
    (tmp_path / "saved" / "config.json").unlink()
    if name.startswith("mobilenet"):  # timm has it in two paddings
        with pytest.raises(ConfigError, match=rf"--encoder with one of .*{name}"):
            import_weights(tmp_path / "saved", tmp_path / "again.safetensors")


@pytest.mark.slow
def test_a_vgg_from_pretraining_to_torchvision_and_back(rooms_store, tmp_path):
    """timm's names of VGG are torchvision's."""
    run = pretrain(rooms_store, run=tmp_path / "run", encoder="vgg16", **SMALL).path
    state = load_file(export(run, "timm", tmp_path / "net.safetensors"))
    net = torchvision.models.vgg16(init_weights=False)
    left = net.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(key.startswith("classifier.") for key in left.missing_keys)
    torch.save({f"features.{key}": value for key, value in net.features.state_dict().items()}, tmp_path / "saved.pth")
    assert same_weights(import_weights(tmp_path / "saved.pth", tmp_path / "back.safetensors"), run)


def test_an_encoder_of_another_package_is_no_network_of_timm(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, "tiny", f"{TinyEncoder.__module__}:TinyEncoder")
    folder = export(runs("tiny"), "hf", tmp_path / "tiny")
    assert set(json.loads((folder / "config.json").read_text())) == {"pri3d"}
    assert isinstance(build_encoder("tiny"), TinyEncoder)
    assert same_weights(folder, runs("tiny"))
