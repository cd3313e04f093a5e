from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import pri3d
from finetuned import instance_task, save_semantic
from pri3d.errors import ConfigError, WeightsError
from pri3d.networks.detector import LITE, build_detector
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import FeatureNet, load
from pri3d.networks.segmentation import build_segmentation
from pri3d.networks.unet import UNet, build_unet
from pri3d.networks.weights import save_model

pytestmark = pytest.mark.thorough  # but for those that say quick

IMAGES = torch.rand(1, 3, 61, 87, generator=torch.Generator().manual_seed(1))


def awake(net):
    """Running statistics away from their start."""
    net.train()
    with torch.no_grad():
        net(torch.rand(2, 3, 64, 64))
    return net.eval()


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return awake(build_unet("resnet18", "slim", channels=7))


@pytest.fixture(scope="module")
def run(unet, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    save_model(unet, path / "weights.safetensors", {"preset": "view", "steps": 5})
    save_model(build_unet("resnet18", "slim", channels=7), path / "initial.safetensors", {})
    return path


def same_encoder(net, encoder):
    """Whether a loaded net gives an encoder's maps of RGB images."""
    with torch.no_grad():
        ours, theirs = net(IMAGES), encoder(encoder.normalise(IMAGES))
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("file", ["", "weights.safetensors"])
def test_a_runs_encoder(run, unet, file):
    net = pri3d.load(run / file)
    assert isinstance(net, FeatureNet)
    assert not any(module.training for module in net.modules())
    assert (net.channels, net.strides) == ((64, 64, 128, 256, 512), (2, 4, 8, 16, 32))
    assert (net.record["preset"], net.record["steps"]) == ("view", 5)
    assert same_encoder(net, unet.encoder)
    assert torch.equal(net.normalise(IMAGES), unet.encoder.normalise(IMAGES))
    assert net.encoder.name == "resnet18"


def test_a_whole_unet(run, unet):
    net = pri3d.load(str(run), part="all")
    assert (net.channels, net.strides) == ((7,), (2,))
    with torch.no_grad():
        features = net(IMAGES)
        assert torch.equal(features, unet(IMAGES))
    assert features.shape == (1, 7, 31, 44)
    assert torch.equal(net.normalise(IMAGES), unet.encoder.normalise(IMAGES))
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize(  # the record's `part` is what the run began with
    ("network", "begun_with"), [("unet", "all"), ("unet", "encoder"), ("pspnet", "all"), ("deeplabv3plus", "encoder")]
)
def test_the_encoder_of_a_segmentation_run(tmp_path, network, begun_with):
    model = build_segmentation(network, build_encoder("resnet18"), 3, "slim", 7)
    with torch.no_grad():
        model.encoder.bn1.running_mean += 0.1
    save_semantic(model, tmp_path / "best.safetensors", ["a", "b", "c"], {"part": begun_with})
    net = load(tmp_path / "best.safetensors")
    assert all(torch.equal(v, model.encoder.state_dict()[k]) for k, v in net.encoder.state_dict().items())
    assert net.strides == (2, 4, 8, 16, 32)  # its own, not those it was dilated to
    if network == "unet":
        assert torch.equal(load(tmp_path / "best.safetensors", "all").net(IMAGES), model.eval().body(IMAGES))
    else:
        with pytest.raises(WeightsError, match=rf"holds a {network}, no U-Net"):
            load(tmp_path / "best.safetensors", part="all")


def test_the_encoder_of_a_detection_run(tmp_path):
    model = build_detector("resnet18", 2, LITE)
    instance_task(["a", "b"], model).save(model, tmp_path / "weights.safetensors", {"part": "all"})
    assert same_encoder(load(tmp_path), model.eval().encoder)


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory):
    """(format, part) -> file or folder, each in a folder of its own."""
    made = {}
    for to, part in (("safetensors", "encoder"), ("safetensors", "all"), ("hf", "all")):
        out = tmp_path_factory.mktemp("export") / ("x.safetensors" if to == "safetensors" else "x")
        made[to, part] = pri3d.export(run, to=to, out=out, part=part)
    return made


@pytest.mark.parametrize(("to", "part"), [("safetensors", "encoder"), ("safetensors", "all"), ("hf", "all")])
def test_exports_say_what_they_are_of(unet, exports, to, part):
    out = exports[to, part]
    for source in (out, out / "model.safetensors" if out.is_dir() else out.parent):
        net = load(source)
        if part == "all":
            assert torch.equal(net(IMAGES), unet(IMAGES))
            assert same_encoder(load(source, part="encoder"), unet.encoder)
        else:
            assert same_encoder(net, unet.encoder)
            with pytest.raises(WeightsError, match="encoder alone"):
                load(source, part="all")


@pytest.fixture
def hub_folder(run, unet, tmp_path):
    """What the hub's own library leaves of an encoder: no header of ours, the record in config.json."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    save_file(unet.encoder.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"encoder": "resnet18", "part": "encoder", "steps": 5}))
    return folder


def test_a_name_on_the_hub(hub_folder, unet, monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(hub_folder)
    )
    net = load("somebody/kitchen-r18@v1")
    assert same_encoder(net, unet.encoder)
    assert net.record["steps"] == 5
    assert asked[0][0] == "somebody/kitchen-r18"
    assert asked[0][1]["revision"] == "v1"
    assert "model.safetensors" in asked[0][1]["allow_patterns"]
    assert not any("*" in pattern for pattern in asked[0][1]["allow_patterns"])


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\udcff"])
def test_a_damaged_configuration(hub_folder, text):
    (hub_folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=r"config.json is damaged"):
        load(hub_folder)


def test_a_hub_that_does_not_answer(monkeypatch):
    def offline(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the files in the cache\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(WeightsError, match=r"no folder somebody/net here.*cannot find the files.*network"):
        load("somebody/net")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="pip install huggingface_hub"):
        load("somebody/net")


def test_what_cannot_be_loaded_says_why(run, tmp_path):
    for source in (tmp_path / "none.safetensors", "none", "a/b.pth"):
        with pytest.raises(WeightsError, match=r"no weights at .*(none|b.pth).*user/name"):
            load(source)
    with pytest.raises(ConfigError, match="Choices: encoder, all"):
        load(run, part="decoder")
    torch.save(build_encoder("resnet18").state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x.pth does not state its encoder.*pri3d import"):
        load(tmp_path / "x.pth")
    state = load_file(run / "weights.safetensors")
    del state["encoder.layer4.1.conv2.weight"]
    save_file(state, tmp_path / "x.safetensors", metadata={"pri3d": json.dumps({"encoder": "resnet18"})})
    with pytest.raises(WeightsError, match=r"does not fit.*layer4.1.conv2.weight"):
        load(tmp_path / "x.safetensors")


def test_a_folder_of_several_or_of_a_run_that_goes_on(run, tmp_path):
    (tmp_path / "initial.safetensors").write_bytes((run / "initial.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"no weights at .*weights.safetensors: give"):
        load(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes((run / "weights.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"there are a.safetensors, b.safetensors: name one"):
        load(tmp_path)


def test_a_timm_network_with_its_own_normalisation(tmp_path):
    unet = UNet(build_encoder("vit_tiny_patch16_224"), "slim", 4).eval()
    save_model(unet, tmp_path / "weights.safetensors", {})
    net = load(tmp_path)
    assert same_encoder(net, unet.encoder)
    assert net.strides == (16,) * 4


ALONE = """
import sys

NEEDED = {"torch", "torchgen", "functorch", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe",
          "fsspec", "filelock", "setuptools", "packaging"}  # torch and what it requires
ALLOWED = NEEDED | {"safetensors", "pri3d"}


class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Block())
import pri3d

assert "torch" not in sys.modules
import torch

for source, maps in zip(sys.argv[1::2], sys.argv[2::2]):
    net = pri3d.load(source)
    out = net(torch.ones(1, 3, 40, 56))
    out = out if isinstance(out, list) else [out]
    assert len(out) == int(maps) == len(net.channels), (len(out), maps)
    assert [tuple(x.shape[1:]) for x in out] == [
        (c, -(-40 // s), -(-56 // s)) for c, s in zip(net.channels, net.strides)
    ]
    print(repr([float(x.double().sum()) for x in out]))
try:
    pri3d.load("somebody/net")
except Exception as error:
    assert type(error).__name__ == "WeightsError" and "huggingface_hub" in str(error), error
from pri3d.networks.encoders import build_encoder
try:
    build_encoder("convnext_tiny")
except Exception as error:
    assert "pip install timm" in str(error), error
assert not {"numpy", "torchvision", "timm", "lightning", "yaml", "PIL", "rich", "scipy"} & set(sys.modules)
"""


@pytest.mark.slow
def test_torch_and_safetensors_are_enough(run, exports, tmp_path):
    """In a process to which no other package exists: a run, an encoder's export, a U-Net's, a hub folder."""
    sources = [(run, 5), *((path, 1 if part == "all" else 5) for (_, part), path in exports.items())]
    words = [str(word) for pair in sources for word in pair]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    run_sums, encoder_sums, *unet_sums = (json.loads(line) for line in done.stdout.splitlines())
    with torch.no_grad():
        expected = [float(x.double().sum()) for x in load(run)(torch.ones(1, 3, 40, 56))]
    assert run_sums == encoder_sums == pytest.approx(expected, rel=1e-5)
    assert unet_sums[0] == unet_sums[1]


class TestOneMap:
    """What tools get that take one map."""

    @pytest.mark.parametrize("level", [0, 3, -1, -5])
    def test_a_level(self, run, level):
        maps, net = load(run)(IMAGES), load(run, level=level)
        assert torch.equal(net(IMAGES), maps[level])
        assert net.channels == (maps[level].shape[1],)
        assert net.strides == ((2, 4, 8, 16, 32)[level],)
        torch.testing.assert_close(net.pool(IMAGES), maps[level].mean((2, 3)))

    def test_fused_maps_lie_over_each_other(self, run):
        maps, net = load(run)(IMAGES), load(run, level="fused")
        found = net(IMAGES)
        assert (net.channels, net.strides) == ((128 + 256 + 512,), (8,))
        assert found.shape == (1, 896, 8, 11)
        assert torch.equal(found[:, :128], maps[2])
        expected = torch.nn.functional.interpolate(maps[4], (8, 11), mode="bilinear", align_corners=False)
        assert torch.equal(found[:, 384:], expected)

    def test_of_one_stride_all_are_fused(self, tmp_path):
        save_model(UNet(build_encoder("vit_tiny_patch16_224"), "slim", 4), tmp_path / "weights.safetensors", {})
        net = load(tmp_path, level="fused")
        assert (net.channels, net.strides) == ((4 * 192,), (16,))
        assert torch.equal(net(IMAGES), torch.cat(load(tmp_path)(IMAGES), 1))

    def test_images_that_a_tool_normalised(self, run):
        net = load(run, level=-1)
        assert torch.equal(net.of_normalised(net.normalise(IMAGES)), net(IMAGES))

    def test_pooled_of_all_maps_is_the_coarsest(self, run):
        net = load(run)
        assert torch.equal(net.pool(IMAGES), net(IMAGES)[-1].mean((2, 3)))
        whole = load(run, "all")
        assert torch.equal(whole.pool(IMAGES), whole(IMAGES).mean((2, 3)))

    @pytest.mark.parametrize(("part", "level"), [(None, 5), (None, -6), (None, "all"), ("all", 0), ("all", "fused")])
    def test_levels_that_do_not_exist(self, run, part, level):
        with pytest.raises(ConfigError, match=r"level .*Choices: a number from"):
            load(run, part, level)


def test_transform_takes_files_images_and_arrays(tmp_path: Path) -> None:
    """The same picture in every form gives the same batch, as the call takes it."""
    array = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    wanted = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array, array / np.float32(255)):
        torch.testing.assert_close(FeatureNet.transform(image), wanted)
    assert FeatureNet.transform(Image.fromarray(array).convert("L")).shape == (1, 3, 12, 17)
    for wrong in (array[..., 0], array.astype(np.int32)):
        with pytest.raises(ConfigError, match="height, width, 3"):
            FeatureNet.transform(wrong)
