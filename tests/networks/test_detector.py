from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from finetuned import groups_of
from pri3d.api.finetune import resolve_finetuning
from pri3d.errors import ConfigError
from pri3d.networks.detector import COCO, FULL, LITE, SIZES, Detector, Pyramid, Sizes, build_detector
from pri3d.networks.encoders import build_encoder
from pri3d.training.finetune import limit_encoder

TINY = LITE._replace(fpn=16, box=32, mask=16, mask_convs=1, short_sides=(64,), long_side=96)


def target(shape, *boxes):
    """Filled rectangles of classes 1, 2, ..."""
    masks = torch.zeros(len(boxes), *shape, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": corners, "labels": torch.arange(1, len(boxes) + 1), "masks": masks}


@pytest.fixture
def scene():
    """Two images of different sizes, the objects brighter than what lies round them."""
    generator = torch.Generator().manual_seed(0)
    images = [0.3 * torch.rand(3, 64, 80, generator=generator), 0.3 * torch.rand(3, 72, 64, generator=generator)]
    targets = [target((64, 80), (8, 8, 40, 48), (44, 20, 76, 60)), target((72, 64), (10, 30, 50, 64))]
    for image, found in zip(images, targets, strict=True):
        for label, mask in zip(found["labels"], found["masks"], strict=True):
            image[int(label) - 1][mask.bool()] += 0.7
    return images, targets


def detector(encoder="test_resnet", classes=2, sizes=TINY):
    torch.manual_seed(0)
    return build_detector(encoder, classes, sizes)


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ((2, 4, 8, 16, 32), [1, 2, 3, 4]),
        ((4, 8, 16, 32), [0, 1, 2, 3]),
        ((16, 16, 16, 16), [0, 1, 2, 3]),
        ((14, 14), [0, 0, 1, 1]),
        ((16,), [0, 0, 0, 0]),
        ((2, 4, 8, 16), [1, 2, 3, 3]),
        ((4, 8, 16, 16), [0, 1, 3, 3]),
        ((2, 4, 8, 16, 32, 64), [1, 2, 3, 4]),
    ],
)
def test_levels_take_the_map_of_their_stride(strides, expected):
    encoder = SimpleNamespace(strides=strides, channels=(8,) * len(strides))
    assert Pyramid(encoder, 8).levels == expected


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("norms", [False, True])
def test_pyramid_has_its_strides_whatever_the_encoder(encoder, norms):
    maps = Pyramid(build_encoder(encoder), 8, norms).eval()(torch.randn(1, 3, 64, 96))
    shapes = {name: tuple(x.shape) for name, x in maps.items()}
    expected = {"0": (16, 24), "1": (8, 12), "2": (4, 6), "3": (2, 3), "pool": (1, 2)}
    assert shapes == {name: (1, 8, *size) for name, size in expected.items()}


def test_pyramid_on_a_resnet_is_torchvisions():
    ours = Pyramid(build_encoder("resnet18"), 16).eval()
    layers = {f"layer{k + 1}": str(k) for k in range(4)}
    theirs = BackboneWithFPN(resnet18(), layers, [64, 128, 256, 512], 16).eval()
    theirs.body.load_state_dict(ours.encoder.state_dict())
    theirs.fpn.load_state_dict(ours.fpn.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours(images).values(), theirs(images).values(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit"])
def test_images_are_normalised_once_with_the_encoders_own(encoder):
    model = detector(encoder, sizes=TINY._replace(short_sides=(64,), long_side=64)).eval()
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        model([image])
    torch.testing.assert_close(seen[0], model.encoder.normalise(image[None]))
    assert not torch.allclose(seen[0], image[None])


def test_mean_and_deviation_are_the_encoders():
    encoder = build_encoder("test_resnet")
    encoder.statistics = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    transform = Detector(encoder, 1, TINY).net.transform
    assert transform.image_mean == pytest.approx([0.1, 0.2, 0.3])
    assert transform.image_std == pytest.approx([0.4, 0.5, 0.6])


def test_images_are_resized_inside():
    sizes = TINY._replace(short_sides=(64, 96, 128), long_side=160)
    model = detector(sizes=sizes)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    image = torch.rand(3, 50, 50)
    for _ in range(12):
        model([image], [target((50, 50), (5, 5, 40, 40))])
    assert set(seen) == {(64, 64), (96, 96), (128, 128)}
    with torch.no_grad():
        found = model.eval()([image, torch.rand(3, 30, 120)])
    assert seen[-1] == (128, 160)  # the last short side, the long one cut to 160
    assert found[0]["masks"].shape[-2:] == (50, 50) and found[1]["masks"].shape[-2:] == (30, 120)


@pytest.mark.thorough
@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit", "test_convnext"])
def test_loss_falls(encoder, scene):
    model = detector(encoder)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    totals = []
    for _ in range(12):
        loss = torch.stack(list(model(*scene).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert sum(totals[-3:]) < 0.7 * sum(totals[:3])


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("sizes", [TINY, TINY._replace(box_convs=2, norms=True)])
@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_gets_a_gradient(encoder, sizes, empty, scene):
    images, targets = scene
    if empty:
        targets = [target((64, 80)), target((72, 64))]
    model = detector(encoder, sizes=sizes)
    losses = model(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    if empty:
        assert float(losses["loss_mask"].detach()) == float(losses["loss_box_reg"].detach()) == 0
        assert float(losses["loss_classifier"].detach()) > 0


def test_boxes_keep_their_precision_under_autocast(scene):
    images, targets = scene
    model = detector(sizes=TINY._replace(short_sides=(320,), long_side=640))
    anchors, heads, given = [], [], []
    model.net.rpn.anchor_generator.register_forward_hook(lambda _m, _i, out: anchors.extend(out))
    for head in (model.net.rpn.head, model.net.roi_heads.box_predictor):
        head.register_forward_hook(lambda _m, _i, out: heads.extend(x for part in out for x in part))
    model.net.roi_heads.register_forward_pre_hook(lambda _m, args: given.extend(args[1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, targets)
    assert {x.dtype for x in (*anchors, *heads, *given, *losses.values())} == {torch.float32}
    inside = torch.cat(given)
    assert not torch.equal(inside, inside.bfloat16().float())
    far = anchors[0][anchors[0] > 256]
    assert bool((far % 2 == 1).any())  # which bfloat16 does not have there


def test_one_class_alone(scene):
    images, targets = scene
    model = detector(classes=1)
    one = [{**t, "labels": torch.ones_like(t["labels"])} for t in targets]
    assert all(torch.isfinite(value) for value in model(images, one).values())
    with torch.no_grad():
        found = model.eval()(images)
    assert len(found) == 2 and all(set(f["labels"].tolist()) <= {1} for f in found)


def test_predictions_are_in_pixels_of_the_images(scene):
    images, _ = scene
    with torch.no_grad():
        found = detector(sizes=TINY._replace(score=0.0)).eval()(images)
    for image, f in zip(images, found, strict=True):
        height, width = image.shape[-2:]
        assert len(f["boxes"]) == TINY.detections
        assert f["masks"].shape == (len(f["boxes"]), 1, height, width)
        assert float(f["boxes"].min()) >= 0
        assert float(f["boxes"][:, 2].max()) <= width and float(f["boxes"][:, 3].max()) <= height
        assert f["scores"].tolist() == sorted(f["scores"].tolist(), reverse=True)


def test_fixed_norms_and_stages_stay_as_they_are(scene):
    model = detector()
    given = {"tune": "last-3", "backbone": {"norm": "frozen"}}
    fixed = limit_encoder(model.encoder, resolve_finetuning("instance", "quick", given))
    before = state(model.encoder)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        model.train()
        for module in fixed:
            module.eval()
        torch.stack(list(model(*scene).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.encoder.state_dict()
    assert list(after) == list(build_encoder("test_resnet").state_dict())
    norms = {name for name, m in model.encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed and not any(key.rpartition(".")[0] in norms for key in changed)
    assert not any("layer1" in key or "conv1" in key.split(".")[1:2] for key in changed)


def test_head_and_encoder_share_out_the_parameters():
    model = detector("test_vit")
    encoder, head = (list(group.parameters) for group in groups_of(model))
    assert [id(p) for p in encoder] == [id(p) for p in model.encoder.parameters()]
    assert sorted(id(p) for p in (*encoder, *head)) == sorted(id(p) for p in model.parameters())
    assert len(head) > 10


def test_the_published_sizes():
    assert set(SIZES.values()) == {FULL, COCO, LITE}
    assert Sizes() == FULL
    encoder = build_encoder("resnet50")
    with torch.device("meta"):
        full, coco = Detector(encoder, 80, FULL), Detector(encoder, 80, COCO)
    # torchvision's and Detectron2's R50-FPN for 80 classes have 44.4 million.
    assert sum(p.numel() for p in full.parameters()) == pytest.approx(44.4e6, rel=0.005)
    convs = [m for m in coco.net.roi_heads.box_head.modules() if isinstance(m, nn.Conv2d)]
    linear = [m for m in coco.net.roi_heads.box_head.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in coco.net.roi_heads.box_head.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(convs), len(linear), len(norms)) == (4, 1, 4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in full.net.roi_heads.modules())


def test_unknown_encoder():
    with pytest.raises(ConfigError, match="resnet19"):
        build_detector("resnet19", 2)
