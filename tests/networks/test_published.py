"""Checkpoints of the published layout are written here from its documented names, and a slow network of that layout
says what they mean."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from pri3d.errors import WeightsError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import WeightsSource
from pri3d.networks.published import load_published, read_published
from pri3d.networks.resunet3d import SIZES, ResUNet3d, build_resunet3d
from pri3d.networks.unet import build_unet

BLOCKS, PLANES, STEM = (1, 2, 1, 1, 1, 1, 2, 1), (4, 8, 8, 12, 12, 8, 6, 6), 4
DOWN, UP = (1, 2, 4, 8), (16, 8, 4, 2)


def offsets(k):
    """Offsets of a kernel as MinkowskiEngine counts them: x fastest, odd sizes centred, even ones from zero."""
    axis = range(-(k // 2), k // 2 + 1) if k % 2 else range(k)
    return [(x, y, z) for z in axis for y in axis for x in axis]


def norm(state, name, c):
    state[f"{name}.bn.weight"] = 0.5 + torch.rand(c)
    state[f"{name}.bn.bias"] = torch.randn(c) * 0.2
    state[f"{name}.bn.running_mean"] = torch.randn(c) * 0.2
    state[f"{name}.bn.running_var"] = 0.5 + torch.rand(c)
    state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)


def kernel(state, name, k, i, o):
    shape = (k**3, i, o) if k > 1 else (i, o)
    state[f"{name}.kernel"] = torch.randn(shape) * (2 / (k**3 * i)) ** 0.5


def minkunet(inputs=3, outputs=5, blocks=BLOCKS, planes=PLANES, stem=STEM):
    """State dict of a MinkUNet of random weights, by its documented names."""
    state = {}
    kernel(state, "conv0p1s1", 5, inputs, stem)
    norm(state, "bn0", stem)
    width, skips = stem, [stem, *planes[:3]]
    for i in range(8):
        if i < 4:
            kernel(state, f"conv{i + 1}p{DOWN[i]}s2", 2, width, width)
            norm(state, f"bn{i + 1}", width)
        else:
            kernel(state, f"convtr{i}p{UP[i - 4]}s2", 2, width, planes[i])
            norm(state, f"bntr{i}", planes[i])
            width = planes[i] + skips[7 - i]
        for b in range(blocks[i]):
            at = f"block{i + 1}.{b}"
            kernel(state, f"{at}.conv1", 3, width, planes[i])
            norm(state, f"{at}.norm1", planes[i])
            kernel(state, f"{at}.conv2", 3, planes[i], planes[i])
            norm(state, f"{at}.norm2", planes[i])
            if width != planes[i]:
                kernel(state, f"{at}.downsample.0", 1, width, planes[i])
                norm(state, f"{at}.downsample.1", planes[i])
            width = planes[i]
    kernel(state, "final", 1, width, outputs)
    state["final.bias"] = torch.randn(1, outputs)
    return state


class Slow:
    """A MinkUNet in eval mode, voxel by voxel, on tensors of its own layout."""

    def __init__(self, state):
        self.state = {k: v.double() for k, v in state.items()}

    def conv(self, name, x, stride, k):
        """x: {voxel: features} at a tensor stride; outputs at the same voxels, or at every second for k = 2."""
        weight = self.state[f"{name}.kernel"]
        coarse = 2 * stride
        out = {(b, *(c // coarse * coarse for c in p)) for b, *p in x} if k == 2 else set(x)
        result = {}
        for b, *p in out:
            total = torch.zeros(weight.shape[-1], dtype=torch.float64)
            for index, offset in enumerate(offsets(k)):
                neighbour = (b, *(c + stride * o for c, o in zip(p, offset, strict=True)))
                if neighbour in x:
                    total = total + x[neighbour] @ weight[index]
            result[b, *p] = total
        return result

    def transposed(self, name, x, fine, stride):
        """From the voxels of x to those of ``fine`` at tensor stride ``stride``."""
        weight = self.state[f"{name}.kernel"]
        result = {}
        for (b, *p), index in itertools.product(x, range(8)):
            child = (b, *(c + stride * o for c, o in zip(p, offsets(2)[index], strict=True)))
            if child in fine:
                result[child] = x[b, *p] @ weight[index]
        return result

    def norm(self, name, x):
        w, b, m, v = (self.state[f"{name}.bn.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var"))
        return {p: (y - m) / (v + 1e-5).sqrt() * w + b for p, y in x.items()}

    def block(self, name, x, stride):
        y = relu(self.norm(f"{name}.norm1", self.conv(f"{name}.conv1", x, stride, 3)))
        y = self.norm(f"{name}.norm2", self.conv(f"{name}.conv2", y, stride, 3))
        if f"{name}.downsample.0.kernel" in self.state:
            weight = self.state[f"{name}.downsample.0.kernel"]
            x = self.norm(f"{name}.downsample.1", {p: v @ weight for p, v in x.items()})
        return relu({p: y[p] + x[p] for p in y})

    def __call__(self, coords, feats, blocks=BLOCKS):
        x = {tuple(c): f.double() for c, f in zip(coords.tolist(), feats, strict=True)}
        x = relu(self.norm("bn0", self.conv("conv0p1s1", x, 1, 5)))
        skips = [x]
        for i, stride in enumerate(DOWN):
            x = relu(self.norm(f"bn{i + 1}", self.conv(f"conv{i + 1}p{stride}s2", x, stride, 2)))
            for b in range(blocks[i]):
                x = self.block(f"block{i + 1}.{b}", x, 2 * stride)
            skips.append(x)
        for i, stride in enumerate(UP, start=4):
            fine = skips[7 - i]
            x = relu(self.norm(f"bntr{i}", self.transposed(f"convtr{i}p{stride}s2", x, fine, stride // 2)))
            x = {p: torch.cat((x[p], fine[p])) for p in fine}
            for b in range(blocks[i]):
                x = self.block(f"block{i + 1}.{b}", x, stride // 2)
        head, bias = self.state["final.kernel"], self.state["final.bias"][0]
        return torch.stack([x[tuple(c)] @ head + bias for c in coords.tolist()])


def relu(x):
    return {p: v.clamp(min=0) for p, v in x.items()}


def small_net(inputs=3, outputs=5):
    return ResUNet3d(inputs, outputs, BLOCKS, PLANES, STEM, 5).eval()


def write(path, unet=None, net3d=None, heads=None, wrap="{}", place="backbone3d.{}"):
    """A file of the published layout."""
    model = {f"backbone.{k}": v for k, v in (unet.state_dict() if unet else {}).items()}
    model |= {place.format(k): v for k, v in (net3d or {}).items()} | (heads or {})
    model = {wrap.format(k): v for k, v in model.items()}
    torch.save({"step": 3, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 3}, "model": model}, path)
    return path


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet("resnet18", "paper").eval()


@pytest.fixture(scope="module")
def heads():
    return {"w2d.weight": torch.ones(64, 32), "w2d.bias": torch.zeros(64), "headnet.weight": torch.ones(1, 32, 1, 1)}


@pytest.mark.parametrize("wrap", ["{}", "module.{}", "model.module.{}"])
@pytest.mark.parametrize("place", ["backbone3d.{}", "net3d.module.{}"])
def test_every_tensor_has_its_place(tmp_path, unet, heads, wrap, place):
    net3d = minkunet()
    parts = read_published(write(tmp_path / "x.pth", unet, net3d, heads, wrap, place))
    assert set(parts.unet) == set(unet.state_dict())
    assert set(parts.net3d) == set(small_net().state_dict())
    assert set(parts.heads) == set(heads)
    assert {k: v.shape for k, v in parts.net3d.items()} == {k: v.shape for k, v in small_net().state_dict().items()}


def test_names_and_shapes_are_those_of_the_authors_network(tmp_path, monkeypatch):
    size = SIZES["34C"]
    with torch.device("meta"):
        state = minkunet(3, 96, size.blocks, size.planes, size.stem_channels)
        net = build_resunet3d("34C", in_channels=3)
    monkeypatch.setattr("pri3d.networks.published.read_state", lambda path: state)
    parts = read_published(tmp_path / "x.pth")  # the 3D network alone, under its own names
    assert {k: v.shape for k, v in parts.net3d.items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert not parts.unet
    assert not parts.heads


@pytest.mark.thorough
def test_the_loaded_network_computes_what_the_files_layout_means(tmp_path, unet):
    torch.manual_seed(2)
    state = minkunet()
    coords = torch.cat((torch.randint(0, 2, (70, 1)), torch.randint(-4, 7, (70, 3))), 1).unique(dim=0)
    feats = torch.rand(len(coords), 3)
    net3d, target = small_net(), build_unet("resnet18", "paper").eval()
    report = load_published(target, write(tmp_path / "x.pth", unet, state, {"w3d.bias": torch.ones(64)}), net3d)
    with torch.no_grad():
        ours = net3d.double()(coords, feats.double())
        images = torch.rand(1, 3, 32, 48)
        assert torch.equal(target(images), unet(images))
    torch.testing.assert_close(ours, Slow(state)(coords, feats), atol=1e-9, rtol=1e-9)
    assert report.coverage == 1
    assert report.unexpected == ["w3d.bias"]


@pytest.mark.parametrize("offset", [(2, 0, 0), (0, -1, 0), (0, 0, 1), (-2, 1, 2)])
def test_one_offset_reaches_one_neighbour(tmp_path, offset):
    """A stem kernel of a single offset moves a feature by exactly that: no axis is swapped, no direction turned."""
    state = minkunet()
    state["conv0p1s1.kernel"] = torch.zeros(125, 3, 4)
    state["conv0p1s1.kernel"][offsets(5).index(offset)] = torch.eye(3, 4)
    parts = read_published(write(tmp_path / "x.pth", net3d=state))
    net = small_net()
    net.load_state_dict(parts.net3d)
    coords = torch.tensor([[0, 0, 0, 0], [0, *offset], [0, 1, 2, 0]])
    feats = torch.eye(3)
    seen = []
    net.stem.register_forward_hook(lambda module, inputs, output: seen.append((inputs[1], output)))
    with torch.no_grad():
        net(coords, feats)
    geometry, output = seen[0]
    row = output[geometry.inverse][0]  # the voxel at the origin sees the features of the one at ``offset``
    torch.testing.assert_close(row, torch.tensor([0.0, 1.0, 0.0, 0.0]))


@pytest.mark.thorough
def test_an_encoder_starts_from_a_published_file(tmp_path, unet, heads):
    path = write(tmp_path / "x.pth", unet, minkunet(), heads)
    encoder = build_encoder("resnet18")
    assert WeightsSource(str(path), on_hub=False).fill(encoder).coverage == 1
    assert all(torch.equal(v, unet.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())


@pytest.mark.thorough
def test_a_view_only_file_fills_the_unet_alone(tmp_path, unet):
    target = copy.deepcopy(unet)
    path = write(tmp_path / "x.pth", unet)
    assert load_published(target, path).coverage == 1
    with pytest.raises(WeightsError, match="View-only"):
        load_published(target, path, small_net())


@pytest.mark.thorough
def test_what_does_not_fit_changes_nothing(tmp_path, unet):
    target, net3d = copy.deepcopy(unet), small_net(inputs=1)
    for p in target.parameters():
        p.data.zero_()
    before = {k: v.clone() for k, v in (target.state_dict() | net3d.state_dict()).items()}
    path = write(tmp_path / "x.pth", unet, minkunet())
    with pytest.raises(WeightsError, match=r"differs in stem.weight.*in_channels=3, out_channels=5"):
        load_published(target, path, net3d)
    with torch.device("meta"):
        other = build_unet("resnet18", "paper", channels=8)
    with pytest.raises(WeightsError, match="shapes differ"):
        load_published(other, path, small_net())
    with pytest.raises(WeightsError, match="no U-Net"):
        load_published(target, write(tmp_path / "y.pth", net3d=minkunet()))
    assert all(torch.equal(v, before[k]) for k, v in (target.state_dict() | net3d.state_dict()).items())


def test_other_files_are_named(tmp_path):
    path = tmp_path / "x.pth"
    for foreign in (nn.Linear(2, 2), build_encoder("resnet18")):
        torch.save(foreign.state_dict(), path)
        with pytest.raises(WeightsError, match=r"no Pri3D checkpoint.*weight.*--weights"):
            read_published(path)
    state = minkunet() | {"block1.0.conv3.kernel": torch.zeros(4, 4)}
    with pytest.raises(WeightsError, match=r"'block1.0.conv3.kernel' is no tensor of a MinkUNet"):
        read_published(write(path, net3d=state))
    with pytest.raises(WeightsError, match=r"kernel of shape \(26, 3, 4\)"):
        read_published(write(path, net3d=minkunet() | {"conv0p1s1.kernel": torch.zeros(26, 3, 4)}))


@pytest.mark.parametrize(
    ("name", "shape"), [("conv0p1s1", ()), ("conv0p1s1", (0, 3, 4)), ("final", (3,)), ("final", (2, 3, 4))]
)
def test_kernels_of_no_shape_are_refused(tmp_path, name, shape):
    torch.save({f"backbone3d.{name}.kernel": torch.ones(shape)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth: a kernel of shape .* is expected"):
        read_published(tmp_path / "x.pth")
