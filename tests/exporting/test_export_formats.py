"""Round trips: each format of each kind of network, loaded by the very lines that were printed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
import yaml
from export_networks import IMAGES, last_map, make_run, run_snippet
from timm.layers import Conv2dSame, padding

from pri3d.errors import ConfigError
from pri3d.exporting import onnx
from pri3d.exporting.export import export
from pri3d.exporting.hf import HubModel
from pri3d.exporting.torchvision import TorchvisionFormat
from pri3d.networks import load as loading
from pri3d.networks.state_files import read_state
from pri3d.networks.weights import read_provenance
from pri3d.registry import ENCODERS

pytestmark = pytest.mark.thorough  # but for those that say quick

SLOW = pytest.mark.slow
NETWORKS = {
    "resnet18": ("torchvision", "timm", "smp", "safetensors", "torchscript", "hf"),
    "resnet50": ("torchvision", "timm", "smp", "safetensors", "torchscript", "hf"),
    "convnext_tiny": ("torchvision", "timm", "smp", "safetensors", "torchscript", "hf"),
    "vit_tiny_patch16_224": ("timm", "safetensors", "torchscript", "hf"),
}
QUICK = ("resnet18", "vit_tiny_patch16_224")
ROUND_TRIPS = [
    pytest.param(name, to, marks=() if name in QUICK or (name, to) == ("convnext_tiny", "torchvision") else SLOW)
    for name, formats in NETWORKS.items()
    for to in formats
]
BOTH_PARTS = ("safetensors", "torchscript", "hf")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}

    def run(name):
        if name not in made:
            made[name] = make_run(tmp_path_factory.mktemp(name), name)
        return made[name]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("name", "to"), ROUND_TRIPS)
def test_the_printed_lines_give_the_runs_features(runs, name, to, tmp_path, capsys):
    run = runs(name)
    out = tmp_path / ("net" + {"torchscript": ".pt", "hf": ""}.get(to, ".safetensors"))
    assert export(run, to, out) == out
    net, snippet = run_snippet(capsys.readouterr().out)
    assert str(out) in snippet
    ours = loading.load(run)
    torch.testing.assert_close(last_map(to, net, IMAGES, ours.encoder), ours(IMAGES)[-1].mean((2, 3)).detach())


@pytest.mark.slow
@pytest.mark.parametrize("to", BOTH_PARTS)
def test_the_whole_network(runs, to, capsys):
    run = runs("vit_tiny_patch16_224")
    path = export(run, to, part="all")
    net, _ = run_snippet(capsys.readouterr().out)
    images = torch.rand(2, 3, 50, 71)
    with torch.no_grad():
        ours, theirs = loading.load(run, "all")(images), net(images)
    assert path.name.startswith("model")
    torch.testing.assert_close(theirs[0] if to == "torchscript" else theirs, ours)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
class TestDetectron2:
    """Names and configuration as Detectron2 documents them."""

    @pytest.fixture
    def made(self, runs, name, capsys):
        path = runs(name) / "net.pth"
        if not path.exists():
            export(runs(name), "detectron2", path)
            path.with_suffix(".txt").write_text(capsys.readouterr().out.split("\n\n", 1)[1])
        return path, path.with_suffix(".txt").read_text()

    def test_a_plain_torch_file(self, made, name):
        content = torch.load(made[0], weights_only=True)
        assert set(content) == {"model", "matching_heuristics", "pri3d"}
        assert json.loads(content["pri3d"])["encoder"] == name

    def test_every_name_is_the_networks(self, made, name, runs):
        state, ours = read_state(made[0]), loading.load(runs(name)).encoder.state_dict()
        assert len(state) == {"resnet18": 20 * 5, "resnet50": 53 * 5}[name]  # convolutions, each with its norm
        pairs = {
            "stem.conv1.weight": "conv1.weight",
            "stem.conv1.norm.running_mean": "bn1.running_mean",
            "res2.0.conv2.weight": "layer1.0.conv2.weight",
            "res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
            "res3.0.shortcut.norm.bias": "layer2.0.downsample.1.bias",
            "res5.1.conv2.norm.running_var": "layer4.1.bn2.running_var",
        }
        if name == "resnet50":
            pairs |= {"res4.5.conv3.norm.weight": "layer3.5.bn3.weight", "res2.0.shortcut.weight": None}
        assert all(torch.equal(state[theirs], ours[own]) for theirs, own in pairs.items() if own)
        assert set(pairs) <= set(state)

    def test_the_configuration_beside_it(self, made, name):
        config = yaml.safe_load(made[0].with_suffix(".yaml").read_text())
        model = config["MODEL"]
        assert config["INPUT"] == {"FORMAT": "RGB"}
        assert model["WEIGHTS"] == str(made[0])
        assert model["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
        assert model["PIXEL_STD"] == [58.395, 57.12, 57.375]
        expected = {"DEPTH": int(name[6:]), "STRIDE_IN_1X1": False}
        assert model["RESNETS"] == expected | ({"RES2_OUT_CHANNELS": 64} if name == "resnet18" else {})

    def test_the_printed_lines(self, made):
        called = [ast.unparse(node) for node in ast.walk(ast.parse(made[1])) if isinstance(node, ast.Call)]
        assert f"cfg.merge_from_file({str(made[0].with_suffix('.yaml'))!r})" in called


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_mmseg(runs, name, tmp_path, capsys):
    path = export(runs(name), "mmseg", tmp_path / "net.pth")
    content = torch.load(path, weights_only=True)
    theirs = torchvision.models.get_model(name).state_dict()  # MMSegmentation's plain ResNet has the same names
    wanted = {key for key in theirs if not key.startswith("fc.") and not key.endswith("num_batches_tracked")}
    assert set(content["state_dict"]) == wanted
    names = {}
    exec(path.with_suffix(".py").read_text(), names)
    backbone, inputs = names["model"]["backbone"], names["model"]["data_preprocessor"]
    assert (backbone["type"], backbone["depth"], backbone["style"]) == ("ResNet", int(name[6:]), "pytorch")
    assert backbone["init_cfg"] == {"type": "Pretrained", "checkpoint": f"{{{{ fileDirname }}}}/{path.name}"}
    assert inputs == {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
    snippet = ast.parse(capsys.readouterr().out.split("\n\n", 1)[1])
    assert str(path.with_suffix(".py")) in [n.value for n in ast.walk(snippet) if isinstance(n, ast.Constant)]


@pytest.mark.parametrize(
    ("name", "to", "others"),
    [
        ("vit_tiny_patch16_224", "torchvision", "timm"),
        ("vit_tiny_patch16_224", "smp", "timm"),
        ("vit_tiny_patch16_224", "detectron2", "onnx"),
        ("vit_tiny_patch16_224", "mmseg", "safetensors"),
    ],
)
def test_what_a_format_cannot_hold(runs, name, to, others, tmp_path):
    with pytest.raises(ConfigError, match=rf"{name}.*{others}"):
        export(runs(name), to, tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_record_travels(runs, tmp_path):
    run = runs("resnet18")
    wanted = {"encoder": "resnet18", "steps": 5, "data_hash": "abc", "part": "encoder"}
    for to in ("torchvision", "safetensors"):
        record = read_provenance(export(run, to, tmp_path / f"{to}.safetensors"))
        assert wanted.items() <= record.items()
    folder = export(run, "hf", tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    assert config["pri3d"] == read_provenance(folder)
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("resnet18", 0, 512)
    assert {p.name for p in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    extra = {"pri3d.json": ""}
    torch.jit.load(export(run, "torchscript", tmp_path / "net.pt"), _extra_files=extra)
    assert json.loads(extra["pri3d.json"])["part"] == "encoder"


def test_a_folder_for_the_hub_is_what_load_reads(runs, tmp_path):
    folder = export(runs("resnet18"), "hf", tmp_path / "hf", part="all")
    net = loading.load(folder)
    assert (net.channels, net.strides) == ((8,), (2,))
    torch.testing.assert_close(net(IMAGES), loading.load(runs("resnet18"), "all")(IMAGES))


def test_what_the_hubs_mixin_saves_again_is_complete(runs, tmp_path):
    first = export(runs("resnet18"), "hf", tmp_path / "hf", part="all")
    HubModel.from_pretrained(first).save_pretrained(tmp_path / "again")
    assert read_provenance(tmp_path / "again") == read_provenance(first)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["pri3d"] == read_provenance(first)
    assert read_state(tmp_path / "again").keys() == read_state(first).keys()


def test_the_stated_normalisation_is_the_encoders(runs):
    net = loading.load(runs("resnet18"))
    net.encoder.mean[0] = 0.48145466
    net.record["part"] = "encoder"
    form = TorchvisionFormat(net, "torchvision")
    assert form.mean[1:] == [0.456, 0.406]
    torch.testing.assert_close(form.normalise(IMAGES), net.normalise(IMAGES), atol=1e-6, rtol=0)


class TestOnnx:
    """The extra, and the free sizes."""

    def test_missing_packages_are_named(self, runs, monkeypatch, tmp_path):
        monkeypatch.setattr(onnx, "NEEDED", ("onnx_that_is_absent",))
        with pytest.raises(ConfigError, match=r'onnx_that_is_absent.*pip install "pri3d\[onnx\]"'):
            export(runs("resnet18"), "onnx", tmp_path / "net.onnx")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "part"),
        [
            ("tiny", "encoder"),
            pytest.param("tiny", "all", marks=SLOW),
            pytest.param("resnet18", "encoder", marks=SLOW),
            pytest.param("resnet50", "encoder", marks=SLOW),
            pytest.param("convnext_tiny", "encoder", marks=SLOW),
            pytest.param("tf_efficientnet_lite0", "encoder", marks=SLOW),
            pytest.param("vit_tiny_patch16_224", "encoder", marks=SLOW),
            pytest.param("vit_tiny_patch16_224", "all", marks=SLOW),
        ],
    )
    def test_two_sizes_and_numbers(self, runs, name, part, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(ENCODERS, "tiny", "export_networks:TinyEncoder")
        for package in onnx.NEEDED:
            pytest.importorskip(package, reason="of the extra onnx")
        path = export(runs(name), "onnx", tmp_path / "net.onnx", part=part)
        net, snippet = run_snippet(capsys.readouterr().out)
        assert str(path) in snippet
        assert json.loads(net.get_modelmeta().custom_metadata_map["pri3d"])["encoder"] == name
        ours = loading.load(runs(name), part)
        for shape in ((1, 3, 96, 64), (3, 3, 77, 131)):
            images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                expected = ours(images)
            found = net.run(None, {"images": images.numpy()})
            for a, b in zip(expected if isinstance(expected, list) else [expected], found, strict=True):
                np.testing.assert_allclose(b, a.numpy(), atol=1e-4)

    def test_tensorflows_padding_of_fixed_sizes_stays(self):
        layer, images = Conv2dSame(3, 4, 3, stride=2), torch.rand(1, 3, 33, 50)
        of_size, expected = padding.get_same_padding, layer(images)
        with onnx.constant_padding():
            assert torch.equal(layer(images), expected)
        assert padding.get_same_padding is of_size

    def test_tensorflows_padding_of_free_sizes_is_the_same(self):
        """Of a kernel of 3, 4 or 5, wider or narrower than the stride, at whole multiples of it."""
        for kernel, stride in ((3, 2), (4, 2), (5, 2), (2, 4), (3, 1), (2, 1)):
            net = torch.nn.Sequential(Conv2dSame(3, 4, kernel, stride=stride))
            free = {2: stride * torch.export.Dim("rows"), 3: stride * torch.export.Dim("columns")}
            with onnx.constant_padding():
                graph = torch.export.export(net, (torch.rand(1, 3, 5 * stride, 8 * stride),), dynamic_shapes=(free,))
            images = torch.rand(1, 3, 7 * stride, 4 * stride)
            assert torch.equal(graph.module()(images), net(images))
            assert not any("max" in str(node.target) for node in graph.graph.nodes)


@SLOW
def test_a_format_is_imported_when_it_is_asked_for():
    names = "{'timm', 'torchvision', 'onnxruntime', 'huggingface_hub'}"
    code = f"import sys, pri3d.exporting.export; print(*{names} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
